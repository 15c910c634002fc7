import json
import logging
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared')
sys.path.insert(0, ROOT)
logging.getLogger('tensorpack').addFilter(lambda record: record.levelno >= logging.ERROR)


def pytest_configure(config):
    config.addinivalue_line('markers', "slow: what takes most of the time; leave out with -m 'not slow'")


@pytest.fixture(scope='session')
def shared():
    """The folder of recorded outputs and real images, which a user's clone does not have."""
    if not os.path.isdir(SHARED):
        pytest.skip("needs the recorded outputs in %s" % SHARED)
    return SHARED


@pytest.fixture(scope='session')
def expected(shared):
    with open(os.path.join(shared, 'reference', 'expected.json')) as f:
        return json.load(f)


@pytest.fixture(scope='session')
def mini(shared):
    return os.path.join(shared, 'data', 'ilsvrc12-mini')


@pytest.fixture(scope='session')
def calibrated(shared):
    return os.path.join(shared, 'reference', 'calibrated', 'ghostnet_checkpoint')


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """The embedded data set, prepared anew."""
    out = str(tmp_path_factory.mktemp('digits'))
    run = subprocess.run([sys.executable, os.path.join(ROOT, 'data', 'digits', 'prepare.py'), '--out', out])
    assert run.returncode == 0
    return out


def run_main(*args, **kwargs):
    """Runs main.py as a user does, from `cwd` or the project's root, and returns (exit status, stdout, stderr).

    `script`: another one, in a list, such as ['-m', 'tools.export']; `python`, `env`: the Python, the environment.
    """
    command = [kwargs.get('python', sys.executable)] + kwargs.get('script', [os.path.join(ROOT, 'main.py')])
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


def without(package, folder):
    """An environment in which `package` is not installed. `folder` is an empty one."""
    (folder / package).mkdir()
    (folder / package / '__init__.py').write_text("raise ModuleNotFoundError('no', name='%s')\n" % package)
    return dict(os.environ, PYTHONPATH=str(folder))


def random_checkpoint(path, seed=0, **options):
    """A checkpoint of the GhostNet with these options, with weights and BN statistics as recorded ones have."""
    from tensorpack.tfutils.tower import PredictTowerContext
    from ghostnet import GhostNet
    from imagenet_utils import MODEL_VARIABLE, save_values
    from tf_compat import tf
    with tf.Graph().as_default(), PredictTowerContext(''):
        model = GhostNet(**options)
        model.get_logits(tf.placeholder(tf.uint8, [1, 224, 224, 3]))
        values = {v.op.name: recorded_weight(v.op.name, v.shape.as_list(), seed) for v in tf.global_variables()
                  if MODEL_VARIABLE.search(v.op.name)}
    save_values(values, str(path), model.variant)
    return str(path)


def recorded_weight(name, shape, seed=0):
    """The weights behind the recorded logits (rule in the README of the recorded outputs)."""
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
