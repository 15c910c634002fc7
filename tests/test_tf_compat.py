"""What a user's machine and settings may do to TensorFlow: little memory, packages that cannot be loaded, Keras' own settings."""
import contextlib
import json
import os

import pytest

from command_line import InputError
from conftest import DIGITS_CHECKPOINT, refused, run_main

SLOW_ONCE = (pytest.mark.slow, pytest.mark.once)
PREDICT = ['--predict', 'docs/curves.png', '--load', DIGITS_CHECKPOINT]
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) * 10 ** 6,) * 2)
sys.argv[:3] = sys.argv[2:3]
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize('megabytes', [800, 1200, 1600])
@pytest.mark.parametrize('module, flags', [
    ('main', PREDICT), ('main', ['--flops', '1']), ('tools.export', ['--load', DIGITS_CHECKPOINT, '--format', 'frozen', 'no/out'])])
def test_too_little_address_space_is_told_before_tensorflow_aborts(megabytes, module, flags):
    message = refused(megabytes, module, *flags, script=['-c', LIMITED])
    assert "memory is short: 'ulimit -v' allows %.1f GB" % (megabytes / 1073.7) in message and 'GB are needed at least' in message


def test_training_needs_more(digits, tmp_path):
    from tf_compat import tensorflow
    megabytes = 2900 if tensorflow.__version__ > '2' else 2300
    status, out, err = run_main(megabytes, 'main', '--train', '--data_dir', digits, '--log_dir',
                                tmp_path / 'log', script=['-c', LIMITED])
    assert (status, out) == (2, '') and 'memory is short' in err and err.count('\n') == 1 and not (tmp_path / 'log').exists()


@pytest.mark.parametrize('error, message', [
    ("ImportError('libtensorflow_cc.so.2: failed to map segment from shared object')", 'memory is short (libtensorflow_cc'),
    ("OSError(12, 'Cannot allocate memory')", 'memory is short ('), ("MemoryError()", 'memory is short ('),
    ("RuntimeError(\"can't start new thread\")", 'memory is short ('),
    ("ImportError('libcublas.so: no such file')", 'install the pinned packages')])
def test_what_keeps_tensorflow_from_being_imported(error, message, tmp_path):
    (tmp_path / 'tensorflow.py').write_text('raise ' + error)
    assert message in refused(*PREDICT, env=dict(os.environ, PYTHONPATH=str(tmp_path)))


@pytest.mark.parametrize('job', [['--eval'], PREDICT, ['--train', '--data_dir', '.']], ids=['eval', 'predict', 'train'])
def test_gpus_that_are_not_there_are_refused(job):
    from tf_compat import gpu_count
    if gpu_count():
        pytest.skip("there is a GPU here")
    assert refused(*job + ['--gpu', '0,1']).startswith('main.py: --gpu 0,1 cannot be used: ')


@pytest.mark.parametrize('usable, for_gpus, driver, why', [
    (1, True, True, 'TensorFlow can use 1 of these 2 GPUs'), (0, False, True, 'is one for CPUs alone'),
    (0, True, False, 'has no NVIDIA driver'), (0, True, True, 'install the CUDA libraries'), (2, True, True, None)])
def test_why_there_is_no_gpu(usable, for_gpus, driver, why, monkeypatch):
    import tf_compat
    monkeypatch.setattr(tf_compat, 'gpu_count', lambda: usable)
    monkeypatch.setattr(tf_compat, '_loads', lambda library: driver)
    for name in ('is_built_with_cuda', 'is_built_with_gpu_support'):
        monkeypatch.setattr(tf_compat.tensorflow.test, name, lambda: for_gpus, raising=False)
    with pytest.raises(InputError, match=why) if why else contextlib.ExitStack():
        tf_compat.need_gpus('0,1')


@pytest.fixture(scope='module')
def predicted():
    return run_main(*PREDICT)[1]


@pytest.mark.parametrize('settings', [
    {'image_data_format': 'channels_first', 'floatx': 'float16', 'epsilon': 0.5, 'backend': 'jax'},
    pytest.param({'floatx': 'int7'}, marks=SLOW_ONCE), pytest.param([1], marks=SLOW_ONCE),
    pytest.param(None, marks=SLOW_ONCE)])    # a folder of that name
def test_settings_of_keras_make_no_difference(settings, predicted, tmp_path):
    path = tmp_path / '.keras' / 'keras.json'
    path.parent.mkdir()
    if settings is None:
        path.mkdir()
    else:
        path.write_text(json.dumps(settings))
    env = {name: value for name, value in os.environ.items() if not name.startswith('KERAS_')}
    env.update(HOME=str(tmp_path), KERAS_BACKEND='torch')
    status, out, err = run_main(*PREDICT, env=env)
    assert (status, out, err) == (0, predicted, '')
    assert sorted(os.listdir(str(tmp_path))) == ['.keras'] and os.listdir(str(path.parent)) == ['keras.json']
