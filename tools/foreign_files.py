"""The files of imgclsmob's sister libraries, read and written without them: Gluon's .params, Chainer's .npz and tf2cv's .h5.

gluoncv2, chainercv2 and tf2cv define the network of pytorchcv. Formats: MXNet's NDArray list (src/ndarray/ndarray.cc), numpy.savez
as chainer.serializers.save_npz calls it, and the HDF5 weights of tf.keras before Keras 3. The functions that read are for the
process of tools/state_dict.py: they raise ValueError, or others, for what is damaged.
"""
import collections
import contextlib
import io
import os
import re
import struct
import zipfile

from checkpoint_index import LONGEST_NAME, MOST_DIMENSIONS, MOST_ENTRIES

# ---------------------------------------------------------------------------------------------------------------- Gluon, .params

LIST_MAGIC = 0x112
ARRAY_MAGICS = (0xF993FAC9, 0xF993FACA)    # versions 2 and 3, which dense arrays do not differ in
DTYPES = {0: '<f4', 1: '<f8', 2: '<f2', 3: 'u1', 4: '<i4', 5: 'i1', 6: '<i8'}
CPU = 1


class Fields:
    """Takes what is in bytes, one after the other, and nothing behind their end."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        """The offset of the next `size` bytes."""
        if size > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += size
        return self.at - size

    def numbers(self, form):
        return struct.unpack_from('<' + form, self.data, self.take(struct.calcsize('<' + form)))

    def array(self):
        import numpy as np
        magic, storage, dimensions = self.numbers('IiI')
        if magic not in ARRAY_MAGICS or storage != 0 or not 0 < dimensions <= MOST_DIMENSIONS:
            raise ValueError("it has other arrays than dense ones of MXNet 1.x")
        shape, count = self.numbers('%dq' % dimensions), 1
        dtype = DTYPES.get(self.numbers('iii')[2])    # behind the device that it was on
        if min(shape) < 0 or dtype is None:
            raise ValueError("an array has no known shape or type")
        for size in shape:
            count *= size
        return np.frombuffer(self.data, dtype, count, self.take(count * np.dtype(dtype).itemsize)).reshape(shape)


def read_gluon(path):
    """{name: np.ndarray} of what net.save_parameters of MXNet's Gluon saves."""
    with open(path, 'rb') as f:
        fields = Fields(f.read())
    if fields.numbers('QQ') != (LIST_MAGIC, 0):
        raise ValueError("it does not begin as one")
    count, = fields.numbers('Q')
    if count > MOST_ENTRIES:
        raise ValueError("it has more arrays than any GhostNet")
    arrays, names = [fields.array() for _ in range(count)], []
    if fields.numbers('Q') != (count,):
        raise ValueError("it has not a name for each array")
    for _ in range(count):
        length, = fields.numbers('Q')
        if length > LONGEST_NAME:
            raise ValueError("a name is longer than %d bytes" % LONGEST_NAME)
        start = fields.take(length)
        names.append(fields.data[start:start + length].decode())
    if fields.at < len(fields.data) or len(set(names)) < count:
        raise ValueError("it has more in it, or two arrays of a name")
    return dict(zip(names, arrays))


def write_gluon(f, state):
    f.write(struct.pack('<QQQ', LIST_MAGIC, 0, len(state)))
    for value in state.values():
        f.write(struct.pack('<IiI%dqiii' % value.ndim, ARRAY_MAGICS[0], 0, value.ndim, *(value.shape + (CPU, 0, 0))))
        f.write(value.astype('<f4').tobytes())
    f.write(struct.pack('<Q', len(state)))
    for name in state:
        f.write(struct.pack('<Q', len(name)) + name.encode())


# ---------------------------------------------------------------------------------------------------------------- Chainer, .npz

LARGEST_RATIO = 4    # of the arrays to the compressed file. Weights barely shrink.


def read_chainer(path):
    """{name: np.ndarray} of what chainer.serializers.save_npz saves, compressed or not."""
    values = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_ENTRIES or sum(member.file_size for member in members) > LARGEST_RATIO * os.path.getsize(path):
            raise ValueError("it has more in it than any GhostNet")
        for member in members:
            name = re.sub('[.]npy$', '', member.filename)
            if name in values:
                raise ValueError("it has two arrays of a name")
            values[name] = npy_array(archive.read(member), name)
    return values


def npy_array(data, name):
    import numpy as np
    f = io.BytesIO(data)
    version = np.lib.format.read_magic(f)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(f)
    if dtype.hasobject:
        raise ValueError("%s in it is a pickle, which is not executed" % name)
    count = 1
    for size in shape:
        count *= size
    if min(shape + (0,)) < 0 or count * dtype.itemsize != len(data) - f.tell():
        raise ValueError("%s in it is not as large as it says" % name)
    f.seek(0)
    return np.lib.format.read_array(f, allow_pickle=False)


def write_chainer(f, state):
    """With the counter that each of Chainer's BNs has, 0 where the checkpoint has none."""
    import numpy as np
    state = dict({re.sub('gamma$', 'N', name): np.int64(0) for name in state if name.endswith('/gamma')}, **state)
    np.savez(f, **state)


# ---------------------------------------------------------------------------------------------------------------- tf2cv, .h5

def read_tf2cv(path):
    """{name: np.ndarray} of what model.save_weights of tf.keras, before Keras 3, saves of a network of tf2cv."""
    import h5py

    from tools.keras_weights import array_of, groups_below
    values = {}
    with h5py.File(path, 'r') as f:
        for group in groups_below(f, h5py):
            for name in group:
                if isinstance(group.get(name, getlink=True), h5py.HardLink) and isinstance(group[name], h5py.Dataset):
                    # A second model in a program is called ghost_net_1.
                    path_in_file = re.sub(r'/ghost_net_\d+/', '/ghost_net/', group[name].name.lstrip('/'))
                    if path_in_file in values or len(values) > MOST_ENTRIES:
                        raise ValueError("it has two networks in it")
                    values[path_in_file] = array_of(group[name], path_in_file)
    return values


def write_tf2cv(f, state):
    """`state` in the order of the network: Keras goes by that, with what is not trained behind the rest, and not by the names."""
    import h5py
    layers, content = collections.OrderedDict(), io.BytesIO()
    for name in sorted(state, key=lambda name: 'moving_' in name):
        layer, weight = name.split('/', 1)
        layers.setdefault(layer, []).append(weight)
    with h5py.File(content, 'w') as file:
        file.attrs.update({'backend': b'tensorflow', 'keras_version': b'2.13.1', 'layer_names': [name.encode() for name in layers]})
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs['weight_names'] = [weight.encode() for weight in weights]
            for weight in weights:
                group.create_dataset(weight, data=state[layer + '/' + weight])
    f.write(content.getvalue())


# ---------------------------------------------------------------------------------------------------------------- which one

# By the ending of their names: the functions that read a path, and that write {name: array} to an open file; and what saves such.
Format = collections.namedtuple('Format', 'read write writer')
FORMATS = {'.params': Format(read_gluon, write_gluon, "Gluon's net.save_parameters"),
           '.npz': Format(read_chainer, write_chainer, "chainer.serializers.save_npz"),
           '.h5': Format(read_tf2cv, write_tf2cv, "model.save_weights of tf2cv")}


def format_of(path, others):
    """One of FORMATS for a file, by its ending, or else by how it begins; None for those whose names end with `others`."""
    ending = os.path.splitext(path)[1]
    if path.endswith(others) or ending in FORMATS:
        return None if path.endswith(others) else ending
    with contextlib.suppress(OSError, struct.error):
        with open(path, 'rb') as f:
            begin = f.read(30 + LONGEST_NAME)
        if begin.startswith(struct.pack('<Q', LIST_MAGIC)):
            return '.params'
        if begin.startswith(b'\x89HDF\r\n\x1a\n'):
            return '.h5'
        if begin.startswith(b'PK\3\4') and begin[30:30 + struct.unpack_from('<H', begin, 26)[0]].endswith(b'.npy'):
            return '.npz'
    return None
