"""Training on several machines, as horovodrun starts it. 'make test-horovod' runs these, on Horovod's stack."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import ROOT
from recipe import learning_rate
from runs import STILL, cut, cut_fixture, difference, flags, stats_of, train, two_namespaces, variables

pytest.importorskip('horovod.tensorflow', reason="Horovod is not installed here: 'make test-horovod' runs these")
HOROVODRUN = os.path.join(os.path.dirname(sys.executable), 'horovodrun')
small, sixteen = cut_fixture(64, 40), cut_fixture(16, 40)


def command(args, hosts='localhost:2', prefix=(), more=()):
    return list(prefix) + [HOROVODRUN, '-np', '2', '-H', hosts, '--gloo'] + list(more) + [
        sys.executable, os.path.join(ROOT, 'main.py'), '--trainer', 'horovod'] + [str(arg) for arg in args]


def horovodrun(args, *more, **kwargs):
    run = subprocess.run(command(args, *more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                         timeout=300, **kwargs)
    return run.returncode, run.stdout


def test_two_workers_average_the_gradient_of_the_whole_batch(sixteen, tmp_path):
    """Each reads its own half of what one process reads; BN uses stored statistics, which do not depend on the halves."""
    run = ['--epochs', 1] + STILL
    train(*flags(sixteen, tmp_path / 'one', *run))
    status, out = horovodrun(flags(sixteen, tmp_path / 'two', *run))
    assert status == 0, out[-3000:]
    one, two = variables(tmp_path / 'one' / 'model-1'), variables(tmp_path / 'two' / 'model-1')
    assert sorted(one) == sorted(two)
    assert difference(one, two, '/Momentum') < 1e-4
    assert two['learning_rate'] == one['learning_rate'] == np.float32(0.1 * 16 / 256)    # of the global batch


@pytest.mark.parametrize('signalled', [0, 1])
def test_workers_stop_together_and_continue(small, tmp_path, signalled):
    log_dir = tmp_path / 'log'
    run = flags(small, log_dir, '--epochs', 4)
    process = subprocess.Popen(command(run), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    end = time.time() + 180
    while not (log_dir / 'model-4.index').exists():
        assert process.poll() is None and time.time() < end, process.communicate()[0][-3000:]
        time.sleep(0.05)
    # One of the workers alone is told: both stop, and horovodrun with them.
    workers = subprocess.check_output(['pgrep', '-f', '^%s %s/main.py --trainer horovod .*%s' % (sys.executable, ROOT, log_dir)])
    os.kill(int(workers.split()[signalled]), signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and (log_dir / 'curves.png').exists(), out[-3000:]
    # Both say so, unless horovodrun is faster in ending the one that is slower.
    assert 'main.py: stopped after step' in out and 'another worker' not in out and 'UnknownError' not in out, out[-3000:]
    status, out = horovodrun(run + ['--resume'])
    assert status == 0, out[-3000:]
    stats = stats_of(log_dir)
    assert [entry['epoch_num'] for entry in stats] == [1, 2, 3, 4]
    assert abs(stats[-1]['learning_rate'] / learning_rate(15, 4, 4, 0.1, 16) - 1) < 1e-5
    assert sum(name.startswith('events') for name in os.listdir(str(log_dir))) == 2    # worker 0 alone wrote, in both runs


def test_a_batch_that_workers_cannot_share(small, tmp_path):
    status, out = horovodrun(flags(small, tmp_path / 'log', '--batch', 15, '--epochs', 1))
    assert status != 0 and '--batch 15 cannot be split evenly among 2 workers' in out and not (tmp_path / 'log').exists()


def test_what_worker_0_refuses_ends_all_in_one_line(small, tmp_path):
    (tmp_path / 'best-4.index').write_text('')
    status, out = horovodrun(flags(small, tmp_path, '--epochs', 1))
    assert status != 0 and out.count('add --resume') == 1 and 'UnknownError' not in out, out[-3000:]


def test_an_image_that_one_worker_cannot_read_ends_all(digits, tmp_path):
    tree = cut(digits, tmp_path / 'tree', 64, 8)
    image = (tree / 'caffe_ilsvrc12' / 'train.txt').read_text().split()[0]
    (tree / 'train' / image).write_bytes(b'no image')
    status, out = horovodrun(flags(tree, tmp_path / 'log', '--epochs', 2))
    assert status != 0 and image in out and not (tmp_path / 'log' / 'ghostnet_checkpoint.index').exists(), out[-3000:]


@pytest.fixture
def two_hosts(tmp_path):
    """Two network namespaces, with an SSH server in the second: (prefix, hosts, interface, environment)."""
    missing = [tool for tool in ('ssh', 'ssh-keygen', '/usr/sbin/sshd') if shutil.which(tool) is None]
    if missing:
        pytest.skip("needs openssh-server; missing: %s" % ' '.join(missing))
    with two_namespaces() as two:
        for name, address in zip(two.names, two.addresses):
            # Horovod 0.28.1 listens where the host's own name leads to, whatever --network-interface says.
            with open('/etc/netns/%s/hosts' % name, 'w') as f:
                f.write('127.0.0.1 localhost\n%s %s\n' % (address, socket.gethostname()))
        for key in ('host', 'user'):
            subprocess.check_call(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(tmp_path / key)])
        (tmp_path / 'sshd_config').write_text(
            'ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPermitRootLogin yes\nUsePAM no\nPidFile none\n'
            % (two.addresses[1], tmp_path / 'host', tmp_path / 'user.pub'))
        os.makedirs('/run/sshd', exist_ok=True)
        in_second = ['ip', 'netns', 'exec', two.names[1]]
        server = subprocess.Popen(in_second + ['/usr/sbin/sshd', '-D', '-f', str(tmp_path / 'sshd_config')])
        # horovodrun calls ssh; this one leaves the user's own keys and known hosts alone.
        (tmp_path / 'bin').mkdir()
        wrapper = tmp_path / 'bin' / 'ssh'
        wrapper.write_text('#!/bin/sh\nexec %s -F none -i %s -o UserKnownHostsFile=/dev/null "$@"\n'
                           % (shutil.which('ssh'), tmp_path / 'user'))
        wrapper.chmod(0o755)
        try:
            yield (('ip', 'netns', 'exec', two.names[0]), ','.join(address + ':1' for address in two.addresses), two.interface,
                   dict(os.environ, PATH='%s:%s' % (tmp_path / 'bin', os.environ['PATH'])))
        finally:
            server.terminate()
            server.wait()


def test_two_machines(small, tmp_path, two_hosts):
    prefix, hosts, interface, env = two_hosts
    log_dir = tmp_path / 'log'
    status, out = horovodrun(flags(small, log_dir, '--epochs', 2), hosts, prefix, ['--network-interface', interface], env=env)
    assert status == 0, out[-3000:]
    assert [entry['global_step'] for entry in stats_of(log_dir)] == [4, 8]
    assert json.loads((log_dir / 'run.json').read_text())['--batch'] == 16
    assert sum(name.startswith('events') for name in os.listdir(str(log_dir))) == 1
