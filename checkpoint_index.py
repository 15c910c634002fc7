"""The index of a TensorFlow checkpoint, checked before TensorFlow opens it: a crafted one makes that abort, or take all memory.

An index is a table of LevelDB's format (tensorflow/core/lib/io/table_format.txt). Its first value is a BundleHeaderProto, and the
others are BundleEntryProtos: where each tensor lies in the data files. TensorFlow checks the CRCs of both.
"""
import os
import struct

from command_line import InputError

# A checkpoint to train on from has 1,300 entries, of 60 bytes each. Width 10, the largest, makes 2 GB, twice that in training.
LARGEST_INDEX, MOST_ENTRIES, LARGEST_CHECKPOINT = 1 << 20, 20000, 1 << 33
LONGEST_NAME, MOST_DIMENSIONS, MOST_SHARDS, LARGEST_STRINGS = 500, 8, 1000, 1 << 24
BYTES = {'DT_BOOL': 1, 'DT_INT8': 1, 'DT_UINT8': 1, 'DT_INT16': 2, 'DT_UINT16': 2, 'DT_HALF': 2, 'DT_BFLOAT16': 2, 'DT_INT32': 4,
         'DT_UINT32': 4, 'DT_FLOAT': 4, 'DT_INT64': 8, 'DT_UINT64': 8, 'DT_DOUBLE': 8, 'DT_STRING': 1}    # at least, for a string
# A table ends with where two blocks are, and a number. A block is followed by its compression and its CRC.
FOOTER, MAGIC, TRAILER = 48, struct.pack('<Q', 0xdb4775248b80fb57), 5
UNCOMPRESSED, SNAPPY = 0, 1
PARTITIONED = "it has partitioned variables, as no GhostNet has: save them whole"


class Damage(ValueError):
    """What is wrong with a checkpoint, in words that go behind "cannot be read"."""


def demand(condition, message="its index is damaged"):
    if not condition:
        raise Damage(message)


def is_name(text):
    """Whether a text can be the name of a tensor."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable()


def varint(data, at):
    """An unsigned integer of a variable length at an offset in `data`, and the offset behind it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise Damage("its index is damaged")


def uncompressed(data):
    """What Snappy has compressed (format_description.txt there): literals, and copies of what came before."""
    size, at = varint(data, 0)
    demand(size <= LARGEST_INDEX)
    found = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        kind, length = tag & 3, (tag >> 2) + 1
        if kind == 0:
            if length > 60:    # it is in the next 1 to 4 bytes
                width = length - 60
                length, at = int.from_bytes(data[at:at + width], 'little') + 1, at + width
            demand(at + length <= len(data))
            found += data[at:at + length]
            at += length
        else:
            width = (1, 2, 4)[kind - 1]
            offset, at = int.from_bytes(data[at:at + width], 'little'), at + width
            if kind == 1:
                length, offset = (tag >> 2 & 7) + 4, offset + (tag >> 5 << 8)
            demand(0 < offset <= len(found))
            piece = found[len(found) - offset:len(found) - offset + length]    # repeated where it ends before
            found += (piece * (length // len(piece) + 1))[:length]
        demand(len(found) <= size)
    demand(len(found) == size)
    return bytes(found)


def read_block(data, offset, size):
    """The keys and values of a block: [(bytes, bytes), ...]. A key shares its first bytes with the one before."""
    demand(offset + size + TRAILER <= len(data) - FOOTER)
    block, compression = data[offset:offset + size], data[offset + size]
    demand(compression in (UNCOMPRESSED, SNAPPY))
    if compression == SNAPPY:
        block = uncompressed(block)
    restarts = struct.unpack_from('<I', block, len(block) - 4)[0]
    end = len(block) - 4 * (restarts + 1)
    demand(restarts > 0 and end > 0)
    at, key, found, whole = 0, b'', [], []
    while at < end:
        start = at
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        length, at = varint(block, at)
        demand(shared <= len(key) and shared + rest <= LONGEST_NAME and at + rest + length <= end and len(found) < MOST_ENTRIES)
        if shared == 0:
            whole.append(start)
        key, at = key[:shared] + block[at:at + rest], at + rest + length
        found.append((key, block[at - length:at]))
    # TensorFlow jumps to these: elsewhere, it would read other keys than are found here.
    jumps = struct.unpack_from('<%dI' % restarts, block, end)
    demand(jumps[0] == 0 and list(jumps) == sorted(set(jumps)) and set(jumps) <= set(whole))
    return found


def read_table(data):
    """The keys and values of a table, sorted by key: [(bytes, bytes), ...]."""
    demand(len(data) >= FOOTER and data.endswith(MAGIC))
    _, at = varint(data, len(data) - FOOTER)    # of a block that has nothing in it
    _, at = varint(data, at)
    offset, at = varint(data, at)
    size, _ = varint(data, at)
    found, room, before = [], len(data), None
    for last, handle in read_block(data, offset, size):    # a key that lies behind those of its block, and where that is
        offset, at = varint(handle, 0)
        size, _ = varint(handle, at)
        room -= size + TRAILER    # blocks that are read again and again would be endless
        demand(room >= 0)
        block = read_block(data, offset, size)
        keys = [key for key, _ in block]
        demand(all(one < other for one, other in zip(keys, keys[1:])) and keys[-1] <= last and (before is None or before < keys[0]))
        found += block
        before = last
        demand(len(found) <= MOST_ENTRIES)
    return found


def parsed(kind, value):
    """A message of a protocol buffer, as TensorFlow writes it: what another parser might see otherwise is refused."""
    message = kind.FromString(value)
    demand(message.SerializeToString() == value)
    return message


def read_index(path):
    """What an index says: the number of data files, and the tensors.

    Returns:
        (int, dict): the number, and {name: (dtype's name, [int], BundleEntryProto)}.
    Raises:
        Damage: it is no index of a checkpoint, or says what TensorFlow must not be asked to read.
        OSError: it cannot be read.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework.types_pb2 import DataType
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
    demand(os.path.getsize(path) <= LARGEST_INDEX, "its index is larger than that of any GhostNet")
    tensors, name = {}, ''
    with open(path, 'rb') as f:
        data = f.read(LARGEST_INDEX + 1)
    try:
        entries = read_table(data)
        demand(entries and entries[0][0] == b'')
        header = parsed(BundleHeaderProto, entries[0][1])
        demand(header.endianness == BundleHeaderProto.LITTLE and 0 < header.num_shards <= MOST_SHARDS)
        for key, value in entries[1:]:
            demand(not key.startswith(b'\0'), PARTITIONED)    # the name of a part begins so
            name = key.decode()
            demand(is_name(name))
            entry = parsed(BundleEntryProto, value)
            tensors[name] = check_entry(entry, header.num_shards, DataType), [dim.size for dim in entry.shape.dim], entry
    except (IndexError, struct.error, UnicodeError, DecodeError):
        raise Damage("its index is damaged")
    except Damage as error:
        raise Damage('%s%s' % (error, " at " + name if name.isprintable() and name else ''))
    return header.num_shards, tensors


def check_entry(entry, shards, types):
    """The name of a tensor's dtype, if its BundleEntryProto is sound for so many data files. Raises Damage, ValueError."""
    demand(not entry.slices, PARTITIONED)
    dtype = types.Name(entry.dtype) if entry.dtype in types.values() else entry.dtype
    demand(dtype in BYTES, "its index has a dtype, %s, that no GhostNet has" % dtype)
    demand(len(entry.shape.dim) <= MOST_DIMENSIONS and not entry.shape.unknown_rank)
    size, largest = BYTES[dtype], BYTES[dtype]
    for dim in entry.shape.dim:
        size, largest = size * dim.size, largest * max(dim.size, 1)
        demand(dim.size >= 0 and largest <= LARGEST_CHECKPOINT, "its index has an impossible shape")
    if dtype == 'DT_STRING':
        demand(size + 4 <= entry.size <= LARGEST_STRINGS, "its index has strings of an impossible length")
    demand(entry.size == size or dtype == 'DT_STRING', "its index has a size that does not go with the shape")
    demand(0 <= entry.shard_id < shards and entry.offset >= 0)
    return dtype


def check_data(prefix, suffix, entries):
    """Raises Damage if the tensors `entries`, as of `read_index`, cannot all lie in the data file of that suffix."""
    path = check_file(prefix, suffix)
    size = os.path.getsize(path)
    # Many tensors in one place would take more memory than the file has.
    demand(sum(entry.size for _, _, entry in entries.values()) <= size <= LARGEST_CHECKPOINT
           and all(entry.offset + entry.size <= size for _, _, entry in entries.values()),
           "its data are truncated, or too short for its index")
    with open(path, 'rb') as f:
        for name, (dtype, shape, entry) in entries.items():
            if dtype == 'DT_STRING':
                f.seek(entry.offset)
                check_strings(f.read(entry.size), shape, name)


def check_strings(data, shape, name):
    """Raises Damage if the data of a string tensor are not as long as they say: lengths, the CRC of these, and strings."""
    count, at, total = 1, 0, 4
    for size in shape:
        count *= size
    try:
        for _ in range(count):
            length, at = varint(data, at)
            total += length
    except IndexError:
        total = -1
    demand(at + total == len(data), "its strings are damaged at " + name)


def check_checkpoint(prefix):
    """The tensors of a checkpoint that TensorFlow can be asked to read, for its index is sound and its files have room for them.

    Returns:
        dict: {name: shape}, each shape a list of int.
    Raises:
        InputError: it cannot be read.
    """
    try:
        shards, tensors = read_index(check_file(prefix, '.index'))
        for shard in range(shards):
            check_data(prefix, '.data-%05d-of-%05d' % (shard, shards),
                       {name: tensor for name, tensor in tensors.items() if tensor[2].shard_id == shard})
    except Damage as error:
        raise InputError("the checkpoint %s cannot be read: get it again (%s)" % (prefix, error))
    return {name: shape for name, (_, shape, _) in tensors.items()}


def check_file(prefix, suffix):
    """The path of a checkpoint's file. Raises InputError if it is missing."""
    if not os.path.isfile(prefix + suffix):
        raise InputError("there is no checkpoint %s: its file %s is missing" % (prefix, prefix + suffix))
    return prefix + suffix
