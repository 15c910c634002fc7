"""Checkpoints are read whole or not at all."""
import os
import re
import shutil
import signal
import subprocess
import sys

from tf_compat import tf

import numpy as np
import pytest

from checkpoints import MODEL_VARIABLE, CheckpointMismatch, CheckpointRestore, Record, describe, save_checkpoint, save_values
from command_line import InputError
from conftest import ROOT, small_disk


@pytest.fixture(scope='module')
def small_checkpoint(tmp_path_factory):
    """A checkpoint of four tensors, with what training adds."""
    prefix = str(tmp_path_factory.mktemp('checkpoint') / 'small')
    with tf.Graph().as_default(), tf.Session() as session:
        for name, shape in [('a/W', [3, 3, 8, 16]), ('a/bn/gamma', [16]), ('a/bn/mean/EMA', [16]), ('a/W/Momentum', [3, 3, 8, 16])]:
            tf.get_variable(name, shape)
        tf.get_variable('learning_rate', initializer=0.1)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, prefix, write_meta_graph=False)
    return prefix


def copy_checkpoint(prefix, folder):
    for name in os.listdir(os.path.dirname(prefix)):
        shutil.copy(os.path.join(os.path.dirname(prefix), name), str(folder))
    return str(folder / os.path.basename(prefix))


def test_checkpoint_is_read_by_prefix_or_file(small_checkpoint):
    for suffix in ('', '.index', '.data-00000-of-00001'):
        values = CheckpointRestore(small_checkpoint + suffix).values
        assert sorted(values) == ['a/W', 'a/bn/gamma', 'a/bn/mean/EMA']


@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
def test_missing_or_truncated_checkpoint_is_refused(small_checkpoint, tmp_path, suffix):
    prefix = copy_checkpoint(small_checkpoint, tmp_path)
    size = os.path.getsize(prefix + suffix)
    for length in (size - 1, size // 2, 10, 0):
        with open(prefix + suffix, 'r+b') as f:
            f.truncate(length)
        with pytest.raises(InputError, match='small'):
            CheckpointRestore(prefix)
    os.remove(prefix + suffix)
    with pytest.raises(InputError, match='small%s.* is missing' % suffix[:6]):
        CheckpointRestore(prefix)


def test_flipped_bits_are_found(small_checkpoint, tmp_path):
    """Any of 50 bits flipped in the data of a model variable is refused, with the variable's name."""
    rng = np.random.RandomState(0)
    prefix = copy_checkpoint(small_checkpoint, tmp_path)
    path = prefix + '.data-00000-of-00001'
    data = open(path, 'rb').read()
    reader = tf.train.NewCheckpointReader(small_checkpoint)
    start = data.index(reader.get_tensor('a/W').tobytes())
    for position in rng.randint(0, 3 * 3 * 8 * 16 * 4, 50):
        broken = bytearray(data)
        broken[start + position] ^= 1 << rng.randint(8)
        with open(path, 'wb') as f:
            f.write(broken)
        with pytest.raises(InputError, match='at a/W'):
            CheckpointRestore(prefix)


def test_flipped_bits_in_the_index_never_change_a_value(small_checkpoint, tmp_path):
    prefix = copy_checkpoint(small_checkpoint, tmp_path)
    whole = CheckpointRestore(prefix).values
    data = open(prefix + '.index', 'rb').read()
    refused = 0
    for position in range(0, len(data), 3):
        with open(prefix + '.index', 'wb') as f:
            f.write(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1:])
        try:
            values = CheckpointRestore(prefix).values
            assert all(np.array_equal(values[name], whole[name]) for name in whole)    # a bit that nobody reads
        except InputError:
            refused += 1
    assert refused > len(data) / 3 * 0.8


def test_another_model_is_refused_with_both_shapes(small_checkpoint):
    restore = CheckpointRestore(small_checkpoint)
    with tf.Graph().as_default():
        tf.get_variable('a/W', [3, 3, 8, 32])
        tf.get_variable('a/bn/gamma', [16])
        tf.get_variable('b/W', [1])
        tf.get_variable('learning_rate', [])
        with pytest.raises(CheckpointMismatch) as error:
            restore.compare_with_graph()
    message = str(error.value)
    assert '3 of 4 variables' in message and 'a/W is (3, 3, 8, 16) in the checkpoint, (3, 3, 8, 32) in the model' in message
    assert 'b/W is absent in the checkpoint, (1,) in the model' in message and 'a/bn/mean/EMA is (16,) in the checkpoint' in message


# --------------------------------------------------------------------------------------------------- what is no number at all

def saved_variables(folder, values):
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in values.items():
            tf.get_variable(name, initializer=value() if callable(value) else value)
        session.run(tf.global_variables_initializer())
        save_checkpoint(session, tf.train.Saver(), str(folder / 'ck'))
    return str(folder / 'ck')


def restored(prefix, names=MODEL_VARIABLE):
    """The values of a checkpoint in a graph with a kernel, its slot and a count."""
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.get_variable(name, shape, kind) for name, shape, kind in [
            ('a/W', [3], 'float32'), ('a/W/Momentum', [3], 'float32'), ('global_step', [], 'int32')]]
        session.run(tf.global_variables_initializer())
        restore = CheckpointRestore(prefix, names)
        restore.init(session)
        return restore, session.run(variables)


@pytest.mark.parametrize('worst', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, worst):
    prefix = saved_variables(tmp_path, {'a/W': np.float32([1, worst, 2]), 'a/beta': np.float32([worst]), 'b/W': np.float32([0])})
    with pytest.raises(InputError, match='ck has NaN or infinity in 2 of 3 variables, such as a/W: .*; take what was saved before'):
        CheckpointRestore(prefix)
    assert CheckpointRestore(prefix, re.compile('^b/')).values['b/W'] == 0    # fine-tuning takes none of the others


def test_slots_that_are_not_finite_are_no_weights(tmp_path):
    slots = np.float32([0, np.nan, np.inf])
    prefix = saved_variables(tmp_path, {'a/W': np.float32([1, 2, 3]), 'a/W/Momentum': slots, 'global_step': 7})
    _, (weights, slots, step) = restored(prefix, re.compile(''))
    assert list(weights) == [1, 2, 3] and np.isnan(slots[1]) and step == 7


@pytest.mark.parametrize('dtype', ['float16', 'float64', 'bfloat16'])
def test_weights_of_another_precision_are_converted(tmp_path, dtype):
    dtype = tf.as_dtype(dtype).as_numpy_dtype
    restore, (weights, _, _) = restored(saved_variables(tmp_path, {'a/W': np.array([1, 0.5, 2]).astype(dtype)}))
    assert restore.values['a/W'].dtype == 'float32' and list(weights) == [1, 0.5, 2]


@pytest.mark.parametrize('value', [
    np.int32([1, 2, 3]), np.array([True, False, True]), lambda: tf.constant(['1', '2', '3']), lambda: tf.constant('text')])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    prefix = saved_variables(tmp_path, {'a/W': value})
    with pytest.raises(InputError, match='ck has in a/W not floating-point numbers, but (int32|bool|object): save it in float32'):
        CheckpointRestore(prefix)


def test_a_training_of_other_dtypes_is_refused(tmp_path):
    for slots in (np.int32([1, 2, 3]), lambda: tf.constant(['1', '2', '3'])):
        prefix = saved_variables(tmp_path, {'a/W': np.float32([1, 2, 3]), 'a/W/Momentum': slots, 'global_step': 7})
        with pytest.raises(InputError, match='does not fit the model: a/W/Momentum is (int32|object) there, not float32'):
            restored(prefix, re.compile(''))


@pytest.mark.parametrize('name', ['folder', 'model.pth', 'model.h5', 'empty.index', 'pipe.index', 'missing', '', '.', '/'])
def test_what_is_no_checkpoint_is_refused(tmp_path, name):
    (tmp_path / 'folder').mkdir()
    for other in ('model.pth', 'model.h5', 'empty.index', 'empty.data-00000-of-00001', 'pipe.data-00000-of-00001'):
        (tmp_path / other).write_bytes(b'')
    os.mkfifo(str(tmp_path / 'pipe.index'))
    with pytest.raises(InputError, match='there is no checkpoint|cannot be read: get it again'):
        CheckpointRestore(str(tmp_path / name) if len(name) > 1 else name)


def test_a_folder_of_any_name(tmp_path):
    """Also one that is not in UTF-8."""
    folder = os.path.join(str(tmp_path), os.fsdecode(b'caf\xe9'))
    shutil.copytree(os.path.dirname(saved_variables(tmp_path, {'a/W': np.float32([1, 2, 3])})), folder)
    assert list(CheckpointRestore(os.path.join(folder, 'ck')).values['a/W']) == [1, 2, 3]


RECORD = Record('pytorch', [(os.fsdecode(b'caf\xe9'), ''), ('red cars', 'autos, voitures'), ('日本\n', '')], 0.25)


@pytest.mark.parametrize('record', [RECORD, Record('published', RECORD.classes, None), Record('published', None, None),
                                    Record('published', None, None, 160), Record('pytorch', RECORD.classes, 0.25, 384)])
def test_records_of_a_checkpoint_come_back(tmp_path, record):
    save_values({'a/W': np.ones(3, 'float32')}, str(tmp_path / 'ck'), record)
    restore = CheckpointRestore(str(tmp_path / 'ck'))
    assert restore.record == record == describe(str(tmp_path / 'ck')).record and list(restore.values) == ['a/W']


def test_the_published_size_is_not_recorded(tmp_path):
    """So that such checkpoints have the same bytes as before."""
    for size, names in (224, ['a/W']), (225, ['a/W', 'image_size']):
        save_values({'a/W': np.ones(3, 'float32')}, str(tmp_path / 'ck'), Record('published', None, None, size))
        assert sorted(tf.train.NewCheckpointReader(str(tmp_path / 'ck')).get_variable_to_shape_map()) == names


@pytest.mark.parametrize('name, value', [
    ('classes', np.float32([[1, 2]])), ('classes', lambda: tf.constant('one')), ('classes', lambda: tf.constant(['a', 'b'])),
    ('classes', lambda: tf.constant([['a', ''], ['a', '']])), ('val_share', lambda: tf.constant('much')),
    ('image_size', np.int32(-160)), ('image_size', np.int32(10 ** 9)), ('image_size', np.int32(127)),
    ('image_size', np.float32(np.nan)), ('image_size', np.float32(160)), ('image_size', np.int32([160])),
    ('image_size', np.int64([])), ('image_size', lambda: tf.constant('160'))])
def test_damaged_records_are_refused(tmp_path, name, value):
    with pytest.raises(InputError, match='ck cannot be read at %s, which is no record of that' % name):
        describe(saved_variables(tmp_path, {'a/W': np.float32([1]), name: value}))


# ----------------------------------------------------------------------------------------------------------- saved, or not at all

SAVING = """
import os, sys
sys.path.insert(0, %r)
import tf_compat, checkpoints, numpy, command_line
sync = checkpoints.sync
def end(path):
    sync(path)
    os.kill(os.getpid(), %d)
checkpoints.sync = end
command_line.run(lambda path: checkpoints.save_values({'a/W': numpy.ones(3, 'float32')}, path), sys.argv[1], 'save')
"""


@pytest.mark.parametrize('signum, status, files', [(signal.SIGTERM, 143, 0), (signal.SIGKILL, -signal.SIGKILL, 1)])
def test_what_is_unfinished_goes(tmp_path, signum, status, files):
    """At once, or by the next to write there."""
    child = subprocess.run([sys.executable, '-c', SAVING % (ROOT, signum), str(tmp_path / 'ck')], stderr=subprocess.PIPE)
    assert child.returncode == status and child.stderr.count(b'\n') == 1 - files
    assert len(os.listdir(str(tmp_path))) == files
    save_values({'a/W': np.ones(3, 'float32')}, str(tmp_path / 'other'))
    assert sorted(os.listdir(str(tmp_path))) == ['other.data-00000-of-00001', 'other.index']


@pytest.mark.parametrize('name', ['checkpoint', 'a' * 200, 'caf\u00e9 (1)*?'])
def test_a_checkpoint_of_any_name(tmp_path, name):
    try:
        os.fsencode(name)
    except UnicodeEncodeError:    # CPython 3.6 without a locale
        pytest.skip("needs a locale in UTF-8")
    save_values({'a/W': np.ones(3, 'float32')}, str(tmp_path / name))
    assert sorted(os.listdir(str(tmp_path))) == [name + '.data-00000-of-00001', name + '.index']
    assert list(CheckpointRestore(str(tmp_path / name)).values['a/W']) == [1, 1, 1]


@pytest.mark.parametrize('name', ['run[1]', 'back\\slash'])
def test_a_path_that_tensorflow_takes_for_a_pattern_is_named(small_checkpoint, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match='for a pattern; rename it'):
        CheckpointRestore(copy_checkpoint(small_checkpoint, tmp_path / name))


def test_a_folder_that_tensorflow_cannot_name(tmp_path):
    folder = os.path.join(str(tmp_path), os.fsdecode(b'caf\xe9'))
    os.mkdir(folder)
    with pytest.raises(InputError, match='in UTF-8'):
        save_values({'a/W': np.ones(3, 'float32')}, os.path.join(folder, 'ck'))
    assert os.listdir(folder) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    with small_disk(tmp_path / 'disk', '1m') as disk:
        with pytest.raises(InputError, match='cannot write the checkpoint .*disk/ck .*make room'):
            save_values({'a/W': np.ones(1 << 20, 'float32')}, str(disk / 'ck'))
        assert os.listdir(str(disk)) == []
