"""Training by workers that TensorFlow's collective operations connect: the same result, and one line for each fault."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from command_line import InputError
from conftest import DIGITS_CHECKPOINT, ROOT, rare, run_main
from dataset import read_images
from recipe import learning_rate
from runs import (
    STEPS,
    STILL,
    VALIDATION,
    cut,
    cut_fixture,
    difference,
    flags,
    started,
    stats_of,
    train,
    two_namespaces,
    variables,
    wait_for,
    wrong,
)
from training.cluster import free_addresses
from training.collective import CollectiveWorkers, fingerprint

RESUME = "the same command with --resume continues after the last whole epoch"
small, sixteen = cut_fixture(64, VALIDATION), cut_fixture(16, VALIDATION)


class Worker:
    """One of them, in the background, with its output in files."""

    def __init__(self, number, args, folder, prefix=(), env=None):
        self.files = [folder / ('%d.%s' % (number, name)) for name in ('out', 'err')]
        with open(str(self.files[0]), 'w') as out, open(str(self.files[1]), 'w') as err:
            self.process = subprocess.Popen(
                list(prefix) + [sys.executable, os.path.join(ROOT, 'main.py'), '--trainer', 'collective'] + [str(a) for a in args],
                cwd=ROOT, stdout=out, stderr=err, env=dict(os.environ, **(env or {})))

    def ended(self, seconds=300):
        """(exit status, last line on stderr)"""
        status = self.process.wait(seconds)
        return status, (self.files[1].read_text().splitlines() or [''])[-1]

    def wait_for(self, text, seconds=120):
        end = time.time() + seconds
        while text not in self.files[0].read_text() + self.files[1].read_text():
            assert self.process.poll() is None and time.time() < end, self.files[1].read_text()[-2000:]
            time.sleep(0.02)


def tf_config(addresses, number):
    """What Kubeflow gives to a worker."""
    return json.dumps({'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': number}, 'environment': 'cloud'})


@contextlib.contextmanager
def pair(folder, args, own=((), ()), addresses=None, prefixes=((), ()), by_config=False):
    """Two workers with the flags `args`, and each its `own`. `by_config`: TF_CONFIG has the cluster, not the flags."""
    folder.mkdir(exist_ok=True)
    addresses = addresses or free_addresses(2)
    workers = []
    for number in (0, 1):
        cluster, env = ['--hosts', ','.join(addresses), '--worker', number], None
        if by_config:
            cluster, env = [], {'TF_CONFIG': tf_config(addresses, number)}
        workers.append(Worker(number, list(args) + cluster + list(own[number]), folder, prefixes[number], env))
    try:
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def train_pair(folder, args, *more, **kwargs):
    with pair(folder, args, *more, **kwargs) as workers:
        for worker in workers:
            status, last = worker.ended()
            assert status == 0, last


@pytest.mark.slow
def test_two_workers_are_as_one_process(sixteen, tmp_path):
    """The first momentum is the gradient. The errors are those of the images of both. TF_CONFIG has the cluster."""
    run = flags(sixteen, tmp_path / 'one', '--epochs', 1, *STILL)
    train(*run)
    train_pair(tmp_path / 'pair', run, [['--log_dir', tmp_path / name] for name in ('two', 'other')], by_config=True)
    assert not (tmp_path / 'other').exists()
    one, two = variables(tmp_path / 'one' / 'model-1'), variables(tmp_path / 'two' / 'model-1')
    assert sorted(one) == sorted(two) and difference(one, two, '/Momentum') < 1e-5
    assert two['learning_rate'] == one['learning_rate']    # of the batch of all workers
    for name in ('val-error-top1', 'val-error-top5'):
        assert stats_of(tmp_path / 'two')[0][name] == pytest.approx(stats_of(tmp_path / 'one')[0][name], rel=1e-6)


@pytest.mark.once
@pytest.mark.slow
def test_killed_and_resumed_is_as_never_interrupted(small, tmp_path):
    """Worker 1 is given neither the seed nor the folder: weights, and where to go on, are worker 0's."""
    more = ['--epochs', 2, '--dropout_keep_prob', 1, '--width_ratio', 1, '--lr', 0.001, '--load', DIGITS_CHECKPOINT]
    own = [['--log_dir', tmp_path / 'log'], ['--log_dir', tmp_path / 'other']]
    with pair(tmp_path / 'killed', flags(small, tmp_path, *more), own) as workers:
        wait_for(workers[0].process, tmp_path / 'log' / 'model-4.index', workers[0].files[1])
        workers[0].process.kill()
        status, last = workers[1].ended(30)
        assert status == 2 and last.startswith('main.py: worker 0 (127.0.0.1:') and last.endswith(RESUME)
    train_pair(tmp_path / 'resumed', flags(small, tmp_path, '--resume', *more), own)
    train_pair(tmp_path / 'whole', flags(small, tmp_path, *more), [['--log_dir', tmp_path / 'whole' / 'log'], own[1]])
    one, two = variables(tmp_path / 'whole' / 'log' / 'model-8'), variables(tmp_path / 'log' / 'model-8')
    for kind, tolerance in (('/W', 1e-6), ('/W/Momentum', 0.01), ('/mean/EMA', 1e-4), ('/variance/EMA', 1e-4)):
        assert difference(one, two, kind) < tolerance, kind
    stats = stats_of(tmp_path / 'log')
    assert [(entry['epoch_num'], entry['global_step']) for entry in stats] == [(1, STEPS), (2, 2 * STEPS)]
    assert abs(stats[-1]['learning_rate'] / learning_rate(7, STEPS, 2, 0.001, 16) - 1) < 1e-5
    # Both have validated with the same weights and BN statistics.
    assert wrong(small, tmp_path / 'log' / 'model-8', tmp_path) == round(stats[-1]['val-error-top1'] * VALIDATION)
    assert not (tmp_path / 'other').exists()


# ---------------------------------------------------------------------------------------------------------------- faults

MOMENTS = {'start-up': None, 'first step': 'Start Epoch 1', 'epoch': 'Start Epoch 2'}    # and what worker 0 has printed by then


@contextlib.contextmanager
def struck(tree, folder, victim, signum, moment='epoch', **hosts):
    """Two workers, one of which has just got a signal. `hosts`: of `pair`."""
    with pair(folder, flags(tree, folder / 'log', '--epochs', 1000), **hosts) as workers:
        if moment == 'start-up':    # both know each other, and TensorFlow is being imported
            time.sleep(1.5)
        else:
            workers[0].wait_for(MOMENTS[moment])
        workers[victim].process.send_signal(signum)
        yield workers


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('victim, moment', [
    (0, 'start-up'), (1, 'start-up'), rare(0, 'first step'), rare(1, 'first step'), rare(0, 'epoch'), rare(1, 'epoch')])
def test_a_worker_that_is_killed(small, tmp_path, victim, moment):
    with struck(small, tmp_path, victim, signal.SIGKILL, moment) as workers:
        status, last = workers[1 - victim].ended(30)
    assert status == 2 and last.startswith('main.py: worker %d (127.0.0.1:' % victim) and last.endswith(RESUME)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, rare(1)])
def test_a_worker_that_is_stopped(small, tmp_path, victim):
    """TensorFlow 1 would wait for ever."""
    with struck(small, tmp_path, victim, signal.SIGSTOP) as workers:
        status, last = workers[1 - victim].ended(30)
        assert status == 2 and last.startswith('main.py: worker %d (127.0.0.1:' % victim) and last.endswith(RESUME)
        workers[victim].process.send_signal(signal.SIGCONT)    # it finds itself alone
        assert workers[victim].ended(30)[0] == 2


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('victim', [1, rare(0)])
def test_a_worker_that_is_asked_to_stop(small, tmp_path, victim):
    """All stop after the same step."""
    with struck(small, tmp_path, victim, signal.SIGTERM) as workers:
        (status, last), (other_status, other) = workers[victim].ended(30), workers[1 - victim].ended(30)
    assert status == other_status == 128 + signal.SIGTERM
    assert last.startswith('main.py: stopped after step') and last.endswith(RESUME)
    assert other.startswith('main.py: worker %d was asked to stop: stopped after step' % victim) and other.endswith(RESUME)
    assert (tmp_path / 'log' / 'curves.png').exists()


def in_namespaces(two):
    """The arguments of `pair` for two hosts."""
    return {'addresses': ['%s:2222' % address for address in two.addresses],
            'prefixes': [('ip', 'netns', 'exec', name) for name in two.names]}


@pytest.mark.once
@pytest.mark.slow
def test_two_hosts_and_a_cable_that_is_pulled(small, tmp_path):
    with two_namespaces() as two:
        more = flags(small, tmp_path / 'log', '--epochs', 1000)
        with pair(tmp_path / 'two', more, **in_namespaces(two)) as workers:
            workers[0].wait_for('Start Epoch 2')
            subprocess.check_call(['ip', '-n', two.names[1], 'link', 'set', two.interface, 'down'])
            for number, worker in enumerate(workers):
                status, last = worker.ended(30)
                assert status == 2 and 'worker %d (%s:2222) is lost' % (1 - number, two.addresses[1 - number]) in last
                assert last.endswith(RESUME)


@pytest.mark.rare
@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('signum', [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_two_hosts_and_a_signal(small, tmp_path, signum, victim):
    with two_namespaces() as two, struck(small, tmp_path, victim, signum, **in_namespaces(two)) as workers:
        status, last = workers[1 - victim].ended(30)
    assert status == (128 + signum if signum == signal.SIGTERM else 2) and last.endswith(RESUME)
    assert last.startswith('main.py: worker %d ' % victim)


@pytest.mark.rare
@pytest.mark.once
@pytest.mark.slow
def test_two_hosts_are_as_one_process(sixteen, tmp_path):
    run = flags(sixteen, tmp_path / 'one', '--epochs', 1, *STILL)
    train(*run)
    with two_namespaces() as two:
        train_pair(tmp_path / 'pair', run, [['--log_dir', tmp_path / 'two']] * 2, **in_namespaces(two))
    assert difference(variables(tmp_path / 'one' / 'model-1'), variables(tmp_path / 'two' / 'model-1'), '/Momentum') < 1e-5


# ---------------------------------------------------------------------------------------------- what is refused, by name

@pytest.mark.once
@pytest.mark.slow
def test_a_picture_that_one_worker_cannot_read(digits, tmp_path):
    """What one says ends the other, although TensorFlow would wait for it. The files of which contents are compared are others."""
    tree = cut(digits, tmp_path / 'tree', 64, 8)
    images = [line.split()[0] for line in (tree / 'caffe_ilsvrc12' / 'train.txt').read_text().splitlines()]
    (tree / 'train' / images[3]).write_bytes(b'no image')
    with pair(tmp_path / 'pair', flags(tree, tmp_path / 'log', '--epochs', 2)) as workers:
        ends = [worker.ended() for worker in workers]
    assert [status for status, _ in ends] == [2, 2] and all(images[3] in last for _, last in ends)
    assert sum('has ended' in last for _, last in ends) == 1
    assert not (tmp_path / 'log' / 'ghostnet_checkpoint.index').exists()


@pytest.mark.slow
@pytest.mark.parametrize('other', ['batch', 'data'])
def test_a_worker_that_differs(digits, small, tmp_path, other):
    more, expected = ['--batch', 32], 'worker 1 (%s) has --batch 32, and worker 0 16: start all workers alike'
    if other == 'data':    # the same names, another picture
        tree = cut(digits, tmp_path / 'tree', 64, VALIDATION)
        names = [line.split()[0] for line in (tree / 'caffe_ilsvrc12' / 'train.txt').read_text().splitlines()]
        shutil.copy(str(tree / 'train' / names[1]), str(tree / 'train' / names[0]))
        more, expected = ['--data_dir', tree], 'worker 1 (%s) has other training images than worker 0: give all the same'
    addresses = free_addresses(2)
    with pair(tmp_path, flags(small, tmp_path / 'log'), [[], more], addresses) as workers:
        ends = [worker.ended(60) for worker in workers]
    expected = expected % addresses[1]
    assert ends == [(2, 'main.py: ' + expected), (2, 'main.py: worker 0 (%s) has ended: %s' % (addresses[0], expected))]
    assert not (tmp_path / 'log').exists()


class Told:
    """The connections of worker 0 with another one that answers `theirs`."""

    class cluster:
        worker, size, local = 0, 2, [0]

        @staticmethod
        def name(worker):
            return 'worker %d' % worker

    def __init__(self, **theirs):
        self.theirs = theirs

    def gather(self, mine):
        return [mine, dict(mine, **self.theirs)]


def test_what_is_compared(digits):
    images = read_images(digits, 'train')[:100]
    CollectiveWorkers(Told(), None).check({'--lr': 0.1}, images)
    with pytest.raises(InputError, match='worker 1 has TensorFlow 1.15.5, and worker 0'):
        CollectiveWorkers(Told(TensorFlow='1.15.5'), None).check({'--lr': 0.1}, images)
    elsewhere = [[path.replace(digits, digits + '/.'), label] for path, label in images]
    assert fingerprint(images) == fingerprint(elsewhere) != fingerprint(images[:99])
    assert fingerprint(images) != fingerprint([[path, 1] for path, _ in images])


# ------------------------------------------------------------------------------------------------ workers of one machine

@pytest.mark.once
@pytest.mark.slow
def test_workers_that_the_program_starts(small, tmp_path):
    """Ctrl-C reaches the program alone; kill -9 leaves nobody behind."""
    log_dir, output = tmp_path / 'log', tmp_path / 'output'
    run = flags(small, log_dir, '--trainer', 'collective', '--towers', 2, '--epochs', 1000)
    with started(run, output) as process:
        wait_for(process, log_dir / 'model-4.index', output)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
    last = [line for line in output.read_text().splitlines() if line.startswith('main.py: ')]
    assert len(last) == 1 and last[0].endswith(RESUME)
    done = len(stats_of(log_dir))
    with started(run + ['--resume'], output) as process:
        wait_for(process, log_dir / ('model-%d.index' % (STEPS * (done + 1))), output)
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        process.kill()
        _, alive = psutil.wait_procs(workers, 30)
        assert not alive
    assert 'the process that started the workers is gone' in output.read_text()


@pytest.mark.parametrize('more, config, message', [
    ([], None, 'needs workers'),
    (['--hosts', 'a:1'], None, '--hosts and --worker go together'),
    (['--hosts', 'a:1,b:2', '--worker', 2], None, '--hosts has 2 workers, numbered from 0, and this is number 2'),
    (['--hosts', 'a:1,a', '--worker', 0], None, "'a' is not host:port"),
    (['--hosts', 'a:1,a:1', '--worker', 0], None, 'names a worker twice'),
    ([], '{', 'TF_CONFIG is not {"cluster"'),
    ([], {'cluster': {'worker': ['a:1', 'b:1'], 'ps': ['c:1']}, 'task': {'type': 'worker', 'index': 0}}, 'workers alone'),
    ([], {'cluster': {'worker': ['a:1', 'b:1']}, 'task': {'type': 'worker', 'index': 2}}, 'TF_CONFIG has 2 workers'),
])
def test_clusters_that_are_none(small, tmp_path, more, config, message):
    env = dict(os.environ, TF_CONFIG=config if isinstance(config, str) else json.dumps(config) if config else '')
    status, _, err = run_main(*(flags(small, tmp_path / 'log', '--trainer', 'collective') + more), env=env)
    assert status == 2 and message in err and err.count('\n') == 1, err


def test_a_port_that_is_taken(small, tmp_path):
    first, second = free_addresses(2)
    with socket.socket() as taken:
        taken.bind(('', int(first.split(':')[1]) + 1000))
        taken.listen(1)
        status, _, err = run_main(*flags(small, tmp_path / 'log', '--hosts', first + ',' + second, '--worker', 0))
    assert status == 2 and 'worker 0 cannot listen' in err and err.count('\n') == 1
