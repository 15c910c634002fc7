"""What tests share: the project's own data, a run of main.py, checkpoints with recorded weights."""
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import zlib

import forked
import numpy as np
import psutil
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared')
RECORDED = os.path.join(ROOT, 'tests', 'recorded')
DIGITS_CHECKPOINT = os.path.join(ROOT, 'models', 'digits_checkpoint')
sys.path.insert(0, ROOT)
logging.getLogger('tensorpack').addFilter(lambda record: record.levelno >= logging.ERROR)


def pytest_configure():
    """What tests call in their own process finds Keras as the commands have it."""
    from command_line import KERAS_DEFAULTS
    os.environ.update(KERAS_DEFAULTS)


@pytest.fixture(scope='session')
def recorded():
    """What the published program computed: (recorded.json, recorded.npz), see tests/recorded/README.md."""
    with open(os.path.join(RECORDED, 'recorded.json')) as f:
        return json.load(f), np.load(os.path.join(RECORDED, 'recorded.npz'))


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """The embedded data set, prepared again."""
    out = str(tmp_path_factory.mktemp('digits'))
    run = subprocess.run([sys.executable, os.path.join(ROOT, 'data', 'digits', 'prepare.py'), '--out', out])
    assert run.returncode == 0
    return out


@pytest.fixture(scope='session')
def evaluated_digits(digits, tmp_path_factory):
    """One evaluation of the digits by main.py: (stdout, the JSON result, the saved logits)."""
    folder = tmp_path_factory.mktemp('evaluated')
    said, result = evaluated(digits, DIGITS_CHECKPOINT, folder / 'result.json', '--save_logits', folder / 'logits.npz')
    return said, result, np.load(str(folder / 'logits.npz'))


@pytest.fixture(scope='session')
def small(tmp_path_factory):
    """Archives of ILSVRC12's form with 20 classes, 30 validation and 40 training images, and the tree that comes from them."""
    from archives import flags, made, photograph, small_archives
    folder = tmp_path_factory.mktemp('small')
    archives, _, _ = small_archives(folder, 30, 2, photograph)
    made(*flags(archives, folder / 'tree'))
    return archives, str(folder / 'tree')


def rare(*values):
    """Values of a parametrized test that CI leaves out."""
    return pytest.param(*values, marks=pytest.mark.rare)


def worker_processes(pid=None):
    """The worker processes that read pictures for a process, this one by default, in the order in which they began."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):    # it has ended meanwhile
            found += [child] if 'processes.py' in ' '.join(child.cmdline()) else []
    return sorted(found, key=lambda child: child.pid)


def ended(process):
    """Whether a process has ended, although nobody may have asked for its status."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run_main(*args, **kwargs):
    """Runs main.py as a user does, from `cwd` or the project's root, and returns (exit status, stdout, stderr).

    `script`: another one, in a list, such as ['-m', 'tools.export']; `python`, `env`: the Python, the environment.
    """
    script = kwargs.get('script', [os.path.join(ROOT, 'main.py')])
    if not {'python', 'env', 'script'} & set(kwargs) and forked.known_environment():
        return forked.run(script + [str(a) for a in args], str(kwargs.get('cwd', ROOT)), 600)
    command = [kwargs.get('python', sys.executable)] + script
    run = subprocess.run(command + [str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                         cwd=kwargs.get('cwd', ROOT), env=kwargs.get('env'), timeout=600)
    return run.returncode, run.stdout, run.stderr


def refused(*args, **kwargs):
    """Runs main.py on bad input: exit status 2, nothing on stdout, one line on stderr, which is returned."""
    status, out, err = run_main(*args, **kwargs)
    assert status == 2 and out == '' and err.count('\n') == 1 and 'Traceback' not in err, (status, out, err)
    return err


def evaluated(data_dir, checkpoint, out, *flags):
    """stdout of --eval, and its result, which is written to `out`."""
    status, said, err = run_main('--eval', '--data_dir', data_dir, '--load', checkpoint, '--json', out, *flags)
    assert status == 0, err
    with open(str(out)) as f:
        return said, json.load(f)


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes, such as '1m', at `folder`, which it makes. Skips the test where mounting is not allowed."""
    folder.mkdir()
    if subprocess.call(['mount', '-t', 'tmpfs', '-o', 'size=' + size, 'tmpfs', str(folder)], stderr=subprocess.DEVNULL) != 0:
        pytest.skip("needs to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.check_call(['umount', str(folder)])


def without(package, folder):
    """An environment in which `package` is not installed. `folder` is an empty one."""
    (folder / package).mkdir()
    (folder / package / '__init__.py').write_text("raise ModuleNotFoundError('no', name='%s')\n" % package)
    return dict(os.environ, PYTHONPATH=str(folder))


def random_checkpoint(path, seed=0, classes=None, lacking='nothing', **options):
    """A checkpoint of the GhostNet with these options, with weights and BN statistics as recorded ones have.

    `classes`: names that it records. `lacking`: a pattern of the variables that it has not.
    """
    from tf_compat import tf

    from tensorpack.tfutils.tower import PredictTowerContext

    from checkpoints import MODEL_VARIABLE, Record, save_values
    from ghostnet import GhostNet
    with tf.Graph().as_default(), PredictTowerContext(''):
        model = GhostNet(**options)
        model.get_logits(tf.placeholder(tf.uint8, [1, 224, 224, 3]))
        values = {v.op.name: recorded_weight(v.op.name, v.shape.as_list(), seed) for v in tf.global_variables()
                  if MODEL_VARIABLE.search(v.op.name) and not re.search(lacking, v.op.name)}
    save_values(values, str(path), Record(model.variant, classes and [(name, '') for name in classes], None, model.image_size))
    return str(path)


def recorded_weight(name, shape, seed=0):
    """The weights behind the recorded logits (rule in tests/recorded/README.md)."""
    rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) & 0xffffffff)
    leaf = name.split('/')[-1]
    if leaf in ('W', 'DW'):
        depthwise = leaf == 'DW' or (len(shape) == 4 and shape[3] == 1 and ('_dw/' in name or '_depthwise/' in name))
        fan_in = shape[0] * shape[1] * (1 if depthwise else shape[2])
        value = rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)
    elif leaf == 'gamma' or name.endswith('variance/EMA'):
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith('fc2/b'):
        value = rng.uniform(0.3, 0.7, shape)
    else:
        value = rng.standard_normal(shape) * (0.2 if leaf == 'beta' else 0.1)
    return value.astype('float32')
