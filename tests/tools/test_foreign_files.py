"""Files of Gluon, Chainer and tf2cv: there and back, in the libraries themselves, and crafted ones."""
import os
import struct
import subprocess
import zipfile

import h5py
import numpy as np
import pytest

from checkpoints import CheckpointRestore
from command_line import InputError
from conftest import DIGITS_CHECKPOINT, ROOT, random_checkpoint, refused, run_main
from tools import import_weights, state_dict
from tools.foreign_files import FORMATS, LIST_MAGIC

IMPORT = {'script': ['-m', 'tools.import_weights']}
# CPython 3.7 with what requirements-imgclsmob.txt names.
THEIR_PYTHON = os.environ.get('GHOSTNET_IMGCLSMOB_PYTHON', os.path.join(ROOT, '.venv-imgclsmob', 'bin', 'python'))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp('checkpoint') / 'ours', variant='imgclsmob', width=0.25, num_classes=7)


@pytest.fixture(scope='module')
def written(checkpoint, tmp_path_factory):
    """{ending: a file of the checkpoint}"""
    folder = tmp_path_factory.mktemp('written')
    paths = {ending: folder / ('ghostnet' + ending) for ending in FORMATS}
    for path in paths.values():
        import_weights.export_weights('imgclsmob', checkpoint, str(path))
    return paths


@pytest.fixture
def in_this_process(monkeypatch):
    """Files are read here, without limits: a process for each would take seconds."""
    monkeypatch.setattr(state_dict, 'limit', lambda size: None)
    monkeypatch.setattr(import_weights, 'read_state', state_dict.tensors_in)


def assert_same(path, other):
    values, others = CheckpointRestore(path).values, CheckpointRestore(other).values
    assert {name: value.tobytes() for name, value in values.items()} == {name: value.tobytes() for name, value in others.items()}


@pytest.mark.parametrize('ending', sorted(FORMATS))
def test_there_and_back_no_bit_changes(ending, checkpoint, written, tmp_path):
    """Also where the name says nothing."""
    path = tmp_path / 'weights'
    path.write_bytes(written[ending].read_bytes())
    status, out, err = run_main(path, tmp_path / 'back', **IMPORT)
    assert status == 0 and "width 0.25, 7 classes, variant 'imgclsmob'" in out, err
    assert_same(str(tmp_path / 'back'), checkpoint)


def test_what_is_compressed_or_of_a_second_model_is_read_too(checkpoint, written, tmp_path, in_this_process):
    """chainer.serializers.save_npz compresses; Keras numbers the models of a program."""
    with np.load(str(written['.npz'])) as arrays:
        np.savez_compressed(str(tmp_path / 'small.npz'), **arrays)
    with h5py.File(str(written['.h5']), 'r') as f, h5py.File(str(tmp_path / 'second.h5'), 'w') as second:
        names = []
        f.visit(names.append)
        for name in names:
            if isinstance(f[name], h5py.Dataset):
                second[name.replace('ghost_net', 'ghost_net_3')] = f[name][()]
    for name in ('small.npz', 'second.h5'):
        import_weights.import_weights('auto', str(tmp_path / name), str(tmp_path / 'back'))
        assert_same(str(tmp_path / 'back'), checkpoint)


# Files with one array of a kilobyte, or what says that it is one.

def params(count, arrays, names=None, magic=LIST_MAGIC):
    names = [b'a'] if names is None else names
    return struct.pack('<QQQ', magic, 0, count) + arrays + struct.pack('<Q', len(names)) + b''.join(
        struct.pack('<Q', len(name)) + name for name in names)


def array(storage=0, shape=(250,), dtype=0, magic=0xF993FAC9, dimensions=None):
    dimensions = len(shape) if dimensions is None else dimensions
    return struct.pack('<IiI%dqiii' % len(shape), magic, storage, dimensions, *(tuple(shape) + (1, 0, dtype))) + bytes(1000)


@pytest.mark.parametrize('content, message', [
    (b'', 'ends too early'), (params(1, array())[:40], 'ends too early'), (params(1, array())[:-1], 'ends too early'),
    (params(1, array(), magic=0x113), 'does not begin'), (params(1 << 62, array()), 'more arrays'),
    (params(2, array()), 'other arrays'),
    (params(1, array(shape=(1 << 40,))), 'ends too early'), (params(1, array(shape=(1 << 31,) * 4)), 'ends too early'),
    (params(1, array(shape=(1 << 62, 0))), 'truncated'), (params(1, array(shape=(-250, -1))), 'no known shape'),
    (params(1, array(dimensions=1 << 31)), 'other arrays'), (params(1, array(storage=1)), 'other arrays'),
    (params(1, array(dtype=99)), 'no known shape or type'), (params(1, array(magic=0xF993FAC8)), 'other arrays'),
    (params(1, array(), []), 'not a name for each'), (params(1, array(), [b'a' * 501]), 'longer than'),
    (params(1, array(), [b'\xff']), 'truncated'), (params(1, array(), [b'a\0']), 'names are no text'),
    (params(2, 2 * array(), [b'a', b'a']), 'two arrays of a name'), (params(1, array()) + b'more', 'more in it'),
    (params(1, array()), 'is not a GhostNet of imgclsmob')])
def test_crafted_params_are_refused(content, message, tmp_path, in_this_process):
    (tmp_path / 'x.params').write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        import_weights.import_weights('auto', str(tmp_path / 'x.params'), str(tmp_path / 'ours'))
    assert '\n' not in str(refusal.value) and os.listdir(str(tmp_path)) == ['x.params']


class Code(object):
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def npy(path, shape, data=b'', dtype="'<f4'"):
    header = ("{'descr': %s, 'fortran_order': False, 'shape': %s, }" % (dtype, shape)).encode()
    with zipfile.ZipFile(str(path), 'w') as archive:
        archive.writestr('a.npy', b'\x93NUMPY\1\0' + struct.pack('<H', len(header) + 1) + header + b'\n' + data)


def test_crafted_npz_are_refused(written, tmp_path, in_this_process):
    planted = tmp_path / 'planted'
    np.savez(str(tmp_path / 'pickles.npz'), a=np.array([Code(str(planted))], object))
    np.savez_compressed(str(tmp_path / 'bomb.npz'), a=np.zeros(1 << 24, np.float32))
    npy(tmp_path / 'long.npz', (1 << 40,), bytes(1000))
    npy(tmp_path / 'huge.npz', (1 << 62, 1 << 62), bytes(1000))
    npy(tmp_path / 'negative.npz', (-1, -250), bytes(1000))
    npy(tmp_path / 'text.npz', (1,), b'abcd', "'S4'")
    (tmp_path / 'half.npz').write_bytes(written['.npz'].read_bytes()[:100000])
    with zipfile.ZipFile(str(tmp_path / 'other.npz'), 'w') as archive:
        archive.writestr('a.txt', 'text')
    for name, message in [
            ('pickles.npz', 'a in it is a pickle, which is not executed'), ('bomb.npz', 'more in it than any GhostNet'),
            ('long.npz', 'a in it is not as large'), ('huge.npz', 'a in it is not as large'), ('half.npz', 'truncated'),
            ('negative.npz', 'a in it is not as large'), ('text.npz', 'is not a GhostNet'), ('other.npz', 'not what chainer')]:
        with pytest.raises(InputError, match=message) as refusal:
            import_weights.import_weights('auto', str(tmp_path / name), str(tmp_path / 'ours'))
        assert '\n' not in str(refusal.value), name
    assert 'a pickle, which is not executed' in refused(tmp_path / 'pickles.npz', tmp_path / 'ours', **IMPORT)
    assert not planted.exists()


def test_crafted_h5_are_refused(written, tmp_path, in_this_process):
    def h5(name, make):
        with h5py.File(str(tmp_path / name), 'w') as f:
            make(f)
    (tmp_path / 'secret').write_bytes(bytes(1000))
    h5('external.h5', lambda f: f.create_dataset('g/a', (250,), 'f4', external=[(str(tmp_path / 'secret'), 0, 1000)]))
    h5('absent.h5', lambda f: f.create_dataset('g/a', (1 << 40,), 'f4', chunks=(1000,)))
    h5('small.h5', lambda f: f.create_dataset('g/a', data=np.zeros(1 << 20, 'f4'), compression='gzip'))
    h5('links.h5', lambda f: f.update({'a': h5py.ExternalLink(str(written['.h5']), '/'), 'b': h5py.SoftLink('/b')}))
    (tmp_path / 'half.h5').write_bytes(written['.h5'].read_bytes()[:100000])
    (tmp_path / 'text.h5').write_text('text')
    for name, message in [('external.h5', 'tensor g/a is not in it'), ('absent.h5', 'tensor g/a is not in it'),
                          ('small.h5', 'tensor g/a is not in it'), ('links.h5', 'not a state dict'), ('half.h5', 'truncated'),
                          ('text.h5', 'truncated, or not what model.save_weights of tf2cv saves')]:
        with pytest.raises(InputError, match=message) as refusal:
            import_weights.import_weights('auto', str(tmp_path / name), str(tmp_path / 'ours'))
        assert '\n' not in str(refusal.value), name


def test_what_does_not_fit_is_named_as_in_the_file(written, tmp_path, in_this_process):
    with np.load(str(written['.npz'])) as arrays:
        arrays = dict(arrays)
    for name, value, message in [
            ('features/init_block/conv/W', np.zeros((4, 3, 5, 5), 'f4'), r'W is \(4, 3, 5, 5\) there, \(4, 3, 3, 3\) in the model'),
            ('features/init_block/bn/avg_var', np.full(4, np.nan, 'f4'), 'NaN .* such as features/init_block/bn/avg_var'),
            ('head/W', np.zeros(3, 'f4'), r'head/W is \(3,\) there, absent in the model')]:
        np.savez(str(tmp_path / 'x.npz'), **dict(arrays, **{name: value}))
        with pytest.raises(InputError, match=message):
            import_weights.import_weights('auto', str(tmp_path / 'x.npz'), str(tmp_path / 'ours'))


def test_files_of_another_kind_or_name_are_refused(written, tmp_path):
    message = refused('--from', 'timm', written['.params'], tmp_path / 'ours', **IMPORT)
    assert "is a file of imgclsmob, as Gluon's net.save_parameters writes it, and not of timm" in message
    assert "name for files of imgclsmob" in refused('--to', 'timm', DIGITS_CHECKPOINT, tmp_path / 'theirs.params', **IMPORT)
    assert "only 'imgclsmob' can go there" in refused('--to', 'imgclsmob', DIGITS_CHECKPOINT, tmp_path / 'theirs.h5', **IMPORT)
    assert os.listdir(str(tmp_path)) == []


# ------------------------------------------------------------------------------------------------------- in their libraries

def graph_logits(checkpoint, images):
    """The logits of a checkpoint for images that are preprocessed, in BGR."""
    from tf_compat import tf

    from tensorpack.tfutils.tower import PredictTowerContext

    from ghostnet import from_checkpoint
    with tf.Graph().as_default(), tf.Session() as session, PredictTowerContext(''):
        image, restore = tf.placeholder(tf.float32, images.shape), CheckpointRestore(checkpoint)
        logits = from_checkpoint(restore).get_logits(image)
        restore.init(session)
        return session.run(logits, {image: images})


@pytest.mark.skipif(not os.path.exists(THEIR_PYTHON), reason="needs gluoncv2, chainercv2 and tf2cv: make test-imgclsmob")
@pytest.mark.slow
@pytest.mark.parametrize('ending, width', [('.params', 0.5), ('.npz', 1.3), ('.h5', 1.0)])
def test_logits_are_those_of_the_library_in_both_directions(ending, width, tmp_path):
    images = np.random.RandomState(0).standard_normal((3, 224, 224, 3)).astype('float32')
    np.save(str(tmp_path / 'images.npy'), images)

    def theirs(job, name):
        subprocess.run([THEIR_PYTHON, os.path.join(ROOT, 'tests', 'tools', 'their_files.py'), job, ending, str(width),
                        str(tmp_path / name) + ending, str(tmp_path / 'images.npy'), str(tmp_path / 'logits.npy')], check=True)
        return np.load(str(tmp_path / 'logits.npy'))
    made = theirs('make', 'theirs')
    import_weights.import_weights('auto', str(tmp_path / 'theirs') + ending, str(tmp_path / 'ours'))
    ours = graph_logits(str(tmp_path / 'ours'), images[..., ::-1])
    import_weights.export_weights('imgclsmob', str(tmp_path / 'ours'), str(tmp_path / 'back') + ending)
    for expected in (made, theirs('load', 'back')):
        error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
        print('%s, width %g: relative error %.1e' % (ending, width, error))
        assert error <= 1e-5
