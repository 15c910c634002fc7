"""What tests of training share: small trees of digits, runs of main.py, what is in a run's folder."""
import collections
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from checkpoints import CheckpointRestore
from conftest import DIGITS_CHECKPOINT, ROOT, run_main  # noqa: F401

STEPS = 4    # an epoch: 64 images, 16 a step
# From weights that are good already, so that rounding is not amplified; what else depends on chance, or on a share, is off.
STILL = ['--dropout_keep_prob', 1, '--freeze_bn', '--width_ratio', 1, '--load', DIGITS_CHECKPOINT]
VALIDATION = 70    # images: two batches for two towers at once, and one that is left over


def cut(digits, tree, train, val, classes=10):
    """A tree of the first digits of the embedded data set, of the first `classes` classes."""
    shutil.copytree(digits, str(tree))
    for name, count in (('train', train), ('val', val), ('synsets', classes)):
        lists = tree / 'caffe_ilsvrc12' / (name + '.txt')
        lines = lists.read_text().splitlines()
        lines = [line for line in lines if name == 'synsets' or int(line.split()[1]) < classes]
        lists.write_text('\n'.join(lines[:count]) + '\n')
    return tree


def cut_fixture(train, val):
    """A fixture of a module: what `cut` makes of so many images."""
    @pytest.fixture(scope='module')
    def tree(digits, tmp_path_factory):
        return cut(digits, tmp_path_factory.mktemp('cut') / 'tree', train, val)
    return tree


def flags(tree, log_dir, *more):
    """A quick run: a narrow network, 16 small images a step."""
    return ['--train', '--data_dir', tree, '--log_dir', log_dir, '--batch', 16, '--width_ratio', 0.25, '--image_size', 128,
            '--seed', 1] + list(more)


def train(*args):
    status, out, err = run_main(*args)
    assert status == 0, err[-2000:]
    return out


@contextlib.contextmanager
def started(args, output):
    """main.py in the background, its output in a file: a pipe that nobody reads fills up, and holds it up."""
    with open(str(output), 'w') as f:
        process = subprocess.Popen([sys.executable, os.path.join(ROOT, 'main.py')] + [str(arg) for arg in args], cwd=ROOT,
                                   stdout=f, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(process, path, output, seconds=120):
    end = time.time() + seconds
    while not os.path.exists(str(path)):
        assert process.poll() is None and time.time() < end, output.read_text()[-2000:]
        time.sleep(0.02)


Namespaces = collections.namedtuple('Namespaces', 'names addresses interface')


@contextlib.contextmanager
def two_namespaces():
    """Two network namespaces, joined by a cable, as two hosts. Skips the test where they cannot be made."""
    if os.getuid() != 0 or shutil.which('ip') is None:
        pytest.skip("needs root and iproute2")

    def ip(*args):
        subprocess.check_call(('ip',) + args)

    names, addresses, made = ['ghost%d-%d' % (os.getpid(), i) for i in (0, 1)], ['10.213.77.1', '10.213.77.2'], []
    try:
        for name in names:
            ip('netns', 'add', name)
            made.append(name)
        ip('link', 'add', 'ghost0', 'netns', names[0], 'type', 'veth', 'peer', 'name', 'ghost0', 'netns', names[1])
        for name, address in zip(names, addresses):
            os.makedirs('/etc/netns/' + name)
            ip('-n', name, 'addr', 'add', address + '/24', 'dev', 'ghost0')
            ip('-n', name, 'link', 'set', 'ghost0', 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        yield Namespaces(names, addresses, 'ghost0')
    finally:
        for name in made:
            ip('netns', 'del', name)
            shutil.rmtree('/etc/netns/' + name, ignore_errors=True)


def stats_of(log_dir):
    with open(str(log_dir / 'stats.json')) as f:
        return json.load(f)


def variables(path):
    return CheckpointRestore(str(path), re.compile('')).values


def difference(one, other, kind):
    """Relative difference of two checkpoints, over all variables whose names end with `kind`."""
    a, b = (np.concatenate([values[name].ravel() for name in sorted(one) if name.endswith(kind)]) for values in (one, other))
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def wrong(tree, checkpoint, tmp_path, *more):
    """How many validation images a checkpoint gets wrong."""
    train('--eval', '--data_dir', tree, '--load', checkpoint, '--json', tmp_path / 'result.json', *more)
    return json.loads((tmp_path / 'result.json').read_text())['wrong_top1']
