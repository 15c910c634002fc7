"""Checkpoints are read whole or not at all."""
import os
import shutil

from tf_compat import tf

import numpy as np
import pytest

from checkpoints import CheckpointMismatch, CheckpointRestore
from command_line import InputError


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
