"""The index of a checkpoint: what TensorFlow writes is read, and what would make it abort is refused before it sees it."""
import os
import struct

from tf_compat import tf

import numpy as np
import pytest
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
from tensorflow.python.ops import gen_io_ops

import checkpoint_index
from checkpoint_index import MOST_ENTRIES, check_checkpoint, uncompressed
from checkpoints import describe, read_checkpoint
from command_line import InputError
from conftest import ROOT, SHARED, refused

FLOAT, STRING, INT64, RESOURCE, VARIANT_DTYPE = 1, 7, 9, 20, 21
DATA, CK = '.data-00000-of-00001', '<checkpoint>'


# ------------------------------------------------------------------------------------------------- a writer of such indexes

def crc(data, value=0):
    """CRC32C."""
    value ^= 0xffffffff
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
    return value ^ 0xffffffff


def masked(value):
    return struct.pack('<I', ((value >> 15 | value << 17) + 0xa282ead8) & 0xffffffff)


def number(value):
    """A varint."""
    return bytes([value & 127 | (128 if value > 127 else 0)]) + (number(value >> 7) if value > 127 else b'')


def block(entries, restarts=None):
    """Each key whole, so that a restart may point at any."""
    data, starts = b'', []
    for key, value in entries:
        starts.append(len(data))
        data += b'\0' + number(len(key)) + number(len(value)) + key + value
    restarts = starts if restarts is None else restarts
    return data + struct.pack('<%dI' % (len(restarts) + 1), *(list(restarts) + [len(restarts)]))


def table(entries, in_a_block=100, change=lambda data: data, compression=0, handle=None, restarts=None, separator=None):
    """`change` changes the content of the blocks with entries, `handle` is of them all in place of where they are."""
    file, index = b'', []

    def put(data, compression=0):
        where = number(len(file)) + number(len(data))
        return where, file + data + bytes([compression]) + masked(crc(data + bytes([compression])))
    for start in range(0, len(entries), in_a_block):
        part = entries[start:start + in_a_block]
        where, file = put(change(block(part, restarts)), compression)
        index.append((separator or part[-1][0], handle or where))
    meta, file = put(block([], [0]))
    where, file = put(block(index))
    return file + (meta + where).ljust(40, b'\0') + bytes.fromhex('57fb808b247547db')


def entry(dtype=FLOAT, shape=(4,), size=16, value=bytes(16), **kwargs):
    proto = BundleEntryProto(dtype=dtype, size=size, **kwargs)
    proto.shape.SetInParent()
    for dim in shape:
        proto.shape.dim.add(size=dim)
    proto.crc32c, = struct.unpack('<I', masked(crc(value)))
    return proto.SerializeToString()


def header(shards=1, **kwargs):
    return BundleHeaderProto(num_shards=shards, **kwargs).SerializeToString()


def written(folder, index, data=bytes(64)):
    (folder / 'ck.index').write_bytes(index)
    (folder / ('ck' + DATA)).write_bytes(data)
    return str(folder / 'ck')


def strings(lengths, content):
    """The data of a string tensor, with sound CRCs, of these lengths, whatever `content` has; and its CRC's input."""
    check = masked(crc(b''.join(struct.pack('<I' if length < 2 ** 32 else '<Q', length) for length in lengths)))
    return b''.join(map(number, lengths)) + check + content


# ----------------------------------------------------------------------------------------------------------- sound indexes

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Checkpoints of all kinds of variables: 'whole', 'merged' from two files, 'partitioned'; and their values."""
    folder = str(tmp_path_factory.mktemp('saved'))
    values = {'step': np.int64(7), 'flag': np.array(True), 'half': np.ones([2, 1], 'float16'), 'double': np.float64(2),
              'byte': np.uint8([3]), 'empty': np.zeros([0, 3], 'float32')}
    values.update(('scope/%d/W' % i, np.full([i % 4, 2], i, 'float32')) for i in range(400))
    texts = {'variant': b'pytorch', 'names': [b'a', b'', b'c' * 300]}
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.get_variable(name, initializer=value) for name, value in sorted(values.items())]
        variables += [tf.get_variable(name, initializer=tf.constant(value)) for name, value in texts.items()]
        parts = list(tf.get_variable('parts', [10, 4], partitioner=tf.fixed_size_partitioner(2)))
        session.run(tf.global_variables_initializer())
        prefixes = [os.path.join(folder, name) for name in ('whole', 'partitioned', 'merged-0', 'merged-1')]
        for prefix, some in zip(prefixes, (variables, variables + parts, variables[:100], variables[100:])):
            tf.train.Saver(some).save(session, prefix, write_meta_graph=False, write_state=False)
        session.run(gen_io_ops.merge_v2_checkpoints(prefixes[2:], os.path.join(folder, 'merged')))
    return folder, dict(values, **texts)


@pytest.mark.parametrize('name', ['whole', 'merged'])
def test_what_tensorflow_writes_is_read(saved, name):
    folder, values = saved
    assert len([file for file in os.listdir(folder) if file.startswith(name + '.data')]) == (2 if name == 'merged' else 1)
    _, found = read_checkpoint(os.path.join(folder, name))
    assert set(found) == set(values)
    assert all(np.array_equal(found[key], np.array(value, object if key in ('variant', 'names') else None))
               for key, value in values.items())


def test_partitioned_variables_are_refused(saved):
    with pytest.raises(InputError, match='partitioned variables.*save them whole'):
        check_checkpoint(os.path.join(saved[0], 'partitioned'))


@pytest.mark.skipif(not os.path.isdir(SHARED), reason="needs the published index")
def test_the_published_index_is_sound(tmp_path):
    index = os.path.join(SHARED, 'reference', 'published', 'ghostnet_checkpoint.index')
    with open(index, 'rb') as f, open(str(tmp_path / ('ck' + DATA)), 'wb') as data:
        (tmp_path / 'ck.index').write_bytes(f.read())
        data.truncate(20846136)
    assert len(check_checkpoint(str(tmp_path / 'ck'))) == 435


@pytest.mark.parametrize('kwargs', [{}, {'in_a_block': 1}, {'in_a_block': 2, 'compression': 1,
                                                            # a literal alone; the length of it in two bytes
                                                            'change': lambda data: number(len(data)) + b'\xf4' + struct.pack(
                                                                '<H', len(data) - 1) + data}])
def test_blocks_of_all_kinds_are_read(tmp_path, kwargs):
    names = [b'a/W', b'a/b', 'a/\u00e9'.encode(), b'b']
    prefix = written(tmp_path, table([(b'', header())] + [(name, entry(offset=16 * i)) for i, name in enumerate(names)], **kwargs))
    _, values = read_checkpoint(prefix)
    assert sorted(values) == [name.decode() for name in names] and all(np.array_equal(v, np.zeros(4)) for v in values.values())


def test_snappy():
    assert uncompressed(b'\x0b\x10abcde' + bytes([1 | 2 << 2, 5])) == b'abcdeabcdea'    # a copy of 6 bytes from 5 before
    assert uncompressed(b'\x45\x00a' + bytes([2 | 63 << 2, 1, 0]) + bytes([3 | 3 << 2, 1, 0, 0, 0])) == b'a' * 69
    for data in (b'\x05\x00a', b'\x02\x00a\x01\x02', b'\x01\x10abcde', b'\x80\x80\x80\x80\x10\x00a', b'\x02\x01\x00', b''):
        with pytest.raises((checkpoint_index.Damage, IndexError)):
            uncompressed(data)


# --------------------------------------------------------------------------------------------------------- crafted indexes

HEAD = (b'', header())
CRAFTED = {
    'unknown dtype': entry(dtype=99), 'a resource': entry(dtype=RESOURCE), 'a variant': entry(dtype=VARIANT_DTYPE),
    'no dtype': entry(dtype=0), 'a reference': entry(dtype=101),
    'a negative dimension': entry(shape=[-1]), 'two': entry(shape=[-2, -2]),
    'an overflow': entry(shape=[1 << 40, 1 << 40, 0], size=0),
    'many dimensions': entry(shape=[1] * 300, size=4), '34 GB': entry(shape=[1 << 33], size=1 << 35),
    'another size': entry(shape=[1 << 33]), 'a negative size': entry(size=-16), 'a negative offset': entry(offset=-4),
    'an offset behind the end': entry(offset=60), 'an offset far behind': entry(offset=(1 << 63) - 8),
    'another file': entry(shard_id=1), 'a negative file': entry(shard_id=-1), 'huge strings': entry(STRING, [1 << 30], 1 << 34),
    'many strings': entry(STRING, [40], 40), 'no entry': b'\xff' * 40, 'half an entry': entry()[:-3],
    'a part': entry(slices=[{'extent': [{'start': 0, 'length': 2}]}]), 'a field twice': entry() + b'\x08\x01',
    'a name of a dimension that is no text': entry()[:4] + b'\x12\x06\x12\x04\x12\x02\xff\xfe'}
TABLES = {
    'no header': table([(b'a/W', entry())]), 'no entries': table([]), 'only a header that is none': table([(b'', b'\xff')]),
    'no files': table([(b'', header(0))]), 'many files': table([(b'', header(1 << 30))]),
    'negative files': table([(b'', header(-1))]), 'big-endian': table([(b'', header(endianness=1)), (b'a/W', entry())]),
    'not sorted': table([HEAD, (b'b', entry()), (b'a', entry(offset=16))]),
    'twice': table([HEAD, (b'a', entry()), (b'a', entry(offset=16))]),
    'twice, in two blocks': table([HEAD, (b'a', entry()), (b'a', entry(offset=16))], in_a_block=1),
    'behind the separator': table([HEAD, (b'a', entry())], separator=b'A'),
    'all in one place': table([HEAD] + [(b'%03d' % i, entry()) for i in range(100)]),
    'names without end': table([HEAD] + [(b'a' * 501, entry())]), 'bytes': table([HEAD, (b'Mobile\xff\xfe/W', entry())]),
    'a line': table([HEAD, (b'a\nb', entry())]),
    'NUL': table([HEAD, (b'a\0', entry())]), 'ESC': table([HEAD, (b'\x1b[31m', entry())]),
    'a block without end': table([HEAD], handle=number(0) + number(1 << 60)),
    'a block behind the end': table([HEAD], handle=number(1 << 40) + number(40)),
    'one block again and again': table([HEAD] + [(b'%d' % i, entry()) for i in range(1, 9)], 1, handle=number(0) + number(10)),
    'no restarts': table([HEAD, (b'a/W', entry())], restarts=[]),
    'restarts within': table([HEAD, (b'a/W', entry())], restarts=[0, 7]),
    'restarts behind': table([HEAD, (b'a/W', entry())], restarts=[0, 1 << 31]),
    'more restarts than bytes': table([HEAD, (b'a/W', entry())], change=lambda data: data[:-4] + b'\xff' * 4),
    'lengths that overflow': table([HEAD], change=lambda _: b'\0' + number(0xfffffff0) + number(32) + bytes(9) + b'\1\0\0\0'),
    'no such compression': table([HEAD, (b'a/W', entry())], compression=7),
    'Snappy that is none': table([HEAD, (b'a/W', entry())], compression=1),
    'Snappy without end': table([HEAD], compression=1, change=lambda _: number(1 << 32) + b'\x00a' + b'\xfe\x01\x00' * 999),
    'a wrong end': table([HEAD, (b'a/W', entry())])[:-1] + b'\0', 'nothing': b'', 'only an end': b'\xff' * 40 + table([HEAD])[-8:],
    'too large': bytes(1 << 20) + table([HEAD, (b'a/W', entry())]),
    'a pickle': b'\x80\x02}q\x00.' * 20, 'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(500)}
TABLES.update((name, table([HEAD, (b'a/W', value)])) for name, value in CRAFTED.items())


@pytest.mark.parametrize('name', sorted(TABLES))
def test_crafted_indexes_are_refused(tmp_path, name):
    """TensorFlow would abort at some of them, and with it, this test."""
    prefix = written(tmp_path, TABLES[name])
    for read in (check_checkpoint, read_checkpoint):
        with pytest.raises(InputError, match='the checkpoint .*ck cannot be read: get it again|its file .* is missing') as refusal:
            read(prefix)
        assert '\n' not in str(refusal.value) and '\x1b' not in str(refusal.value)


def test_too_many_entries_are_refused_at_once(tmp_path):
    entries = b''.join(b'\0\5\0%05d' % i for i in range(MOST_ENTRIES + 1))
    prefix = written(tmp_path, table([HEAD], change=lambda data: entries + struct.pack('<2I', 0, 1)))
    with pytest.raises(InputError, match='index is damaged'):
        check_checkpoint(prefix)


@pytest.mark.parametrize('lengths, content', [
    ([1 << 60], b'x'), ([1 << 31], b'x'), ([(1 << 64) - 1], b'x'), ([2], b'x'), ([0], b'x'), ([1 << 60, 1 << 60], b'')])
def test_strings_of_wrong_lengths_are_refused(tmp_path, lengths, content):
    data = strings(lengths, content)
    index = table([HEAD, (b'variant', entry(STRING, [len(lengths)], len(data)))])
    with pytest.raises(InputError, match='strings are damaged at variant|strings of an impossible length'):
        read_checkpoint(written(tmp_path, index, data))


@pytest.mark.parametrize('value, shape, dtype', [(b'\xff\xfe', [], STRING), (bytes(16), [4], FLOAT), (b'a\nb', [], STRING)])
def test_a_variant_that_is_no_text_is_refused(tmp_path, value, shape, dtype):
    data = strings([len(value)], value) if dtype == STRING else value
    length = struct.pack('<I', len(value))
    checked = length + masked(crc(length)) + value if dtype == STRING else value
    prefix = written(tmp_path, table([HEAD, (b'variant', entry(dtype, shape, len(data), checked))]), data)
    with pytest.raises(InputError, match='at variant, which is no record of that'):
        describe(prefix)


def test_tensors_that_tensorflow_passes_over_are_missed(tmp_path):
    """A block whose CRC is wrong is an end to TensorFlow, not an error."""
    index = table([HEAD, (b'a/W', entry()), (b'b/W', entry(offset=16)), (b'variant', entry(offset=32))], in_a_block=3)
    assert index.count(masked(0)) == 0
    at = index.index(b'variant') + 20
    index = index[:at] + bytes([index[at] ^ 1]) + index[at + 1:]
    with pytest.raises(InputError, match='cannot be read'):
        read_checkpoint(written(tmp_path, index))


def test_a_hole_in_place_of_data_is_refused(tmp_path):
    prefix = written(tmp_path, table([HEAD, (b'a/W', entry())]))
    with open(prefix + DATA, 'r+b') as f:
        f.truncate(1 << 34)
    with pytest.raises(InputError, match='truncated, or too short'):
        check_checkpoint(prefix)


# ------------------------------------------------------------------------------------------------------------ by command

@pytest.mark.parametrize('flags, script', [
    (['--predict', os.path.join(ROOT, 'docs', 'bench.png'), '--load', CK], 'main.py'), (['--flops', '1', '--load', CK], 'main.py'),
    (['--load', CK, '--format', 'frozen', 'x.pb'], 'tools.export')])
def test_commands_refuse_a_crafted_index(tmp_path, flags, script):
    """TensorFlow would take 8 GB, and abort."""
    prefix = written(tmp_path, TABLES['huge strings'])
    assert 'impossible length' in refused(*[{CK: prefix, 'x.pb': tmp_path / 'x.pb'}.get(flag, flag) for flag in flags],
                                          script=['-m', script] if script != 'main.py' else ['main.py'])
