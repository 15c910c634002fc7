"""What the fuzzer feeds: sound files of each kind to damage, what reads them, and checksums that let damage come through."""
import collections
import contextlib
import gzip
import io
import os
import re
import struct
import tarfile
import tempfile
import zipfile

from command_line import ROOT

PREFIX = os.path.join(ROOT, 'models', 'digits_checkpoint')


# ------------------------------------------------------------------------------------- sound files, {name: [bytes, ...]}

def picture_seeds():
    import cv2
    import numpy as np
    from PIL import Image
    y, x = np.mgrid[:48, :64]
    image = np.stack([x * 4, y * 5, (x * y) % 256], axis=2).astype(np.uint8)
    seeds = [cv2.imencode(extension, image)[1].tobytes() for extension in ('.jpg', '.png', '.bmp', '.webp', '.tif', '.ppm')]
    seeds.append(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes())
    seeds.append(cv2.imencode('.png', image.astype(np.uint16) * 16)[1].tobytes())
    for form, options in (('GIF', {}), ('TIFF', {'compression': 'jpeg'}), ('TIFF', {'compression': 'tiff_lzw'}), ('JPEG2000', {}),
                          ('JPEG', {'exif': b'Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0'})):
        file = io.BytesIO()
        Image.fromarray(image[..., ::-1]).save(file, form, **options)
        seeds.append(file.getvalue())
    return {'picture': seeds}


def metadata_seeds():
    return {'synsets.txt': [b'n00000001\nn00000002\n'], 'val.txt': [b'a.png 0\nn00000002/b.png 1\n'],
            'synset_words.txt': ['n00000001 one\nn00000002 two, z\u00e9ro\n'.encode()]}


def index_seeds():
    with open(PREFIX + '.index', 'rb') as f:
        return {'checkpoint.index': [f.read()]}


def state_seeds():
    import numpy as np
    state = {'conv_stem.weight': np.ones([16, 3, 3, 3], np.float32), 'bn1.num_batches_tracked': np.array(7)}
    seeds = {}
    with contextlib.suppress(ImportError):
        from safetensors.numpy import save
        seeds['state.safetensors'] = [save(state)]
    with contextlib.suppress(ImportError):
        import torch
        seeds['state.pth'] = []
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save({name: torch.from_numpy(value) for name, value in state.items()}, file,
                       _use_new_zipfile_serialization=zipped)
            seeds['state.pth'].append(file.getvalue())
    return dict(seeds, **keras_seeds())


def keras_seeds():
    import h5py
    import numpy as np
    file, archive = io.BytesIO(), io.BytesIO()
    with h5py.File(file, 'w') as f:
        for place, name, shapes in ('conv2d', 'Conv2d_0', [(3, 3, 3, 16)]), ('bn', 'Conv2d_0.bn', [(16,)] * 4):
            variables = f.create_group('layers/%s/vars' % place)
            variables.attrs['name'] = name
            for index, shape in enumerate(shapes):
                variables[str(index)] = np.ones(shape, np.float32)
    with zipfile.ZipFile(archive, 'w') as z:
        z.writestr('model.weights.h5', file.getvalue())
    return {'state.weights.h5': [file.getvalue()], 'state.keras': [archive.getvalue()]}


def darknet_seeds():
    import numpy as np

    from ghostnet import GhostNet
    from tools.darknet import BN, CFG, LABELS, WEIGHTS, Layout, is_bn, to_ours, write
    layout, values = Layout(GhostNet(3, width=0.1)), {}
    for weights in [section.weights for section in layout.sections if section.weights is not None]:
        if isinstance(weights.kernel, str):
            values[weights.kernel] = to_ours(np.zeros(weights.shape, np.float32), weights)
            for name in [weights.norm + '/' + leaf for leaf in BN] if is_bn(weights.norm) else [weights.norm]:
                values[name] = np.zeros(weights.shape[0], np.float32)    # variances too, which comments keep then
    with tempfile.TemporaryDirectory() as folder:
        write(folder, layout, values, [('n1', 'one'), ('n2', 'two, z\u00e9ro'), ('n3', '')])
        seeds = {}
        for name in (CFG, WEIGHTS, LABELS):
            with open(os.path.join(folder, name), 'rb') as f:
                seeds[name] = [f.read()]
    return seeds


def tar_of(members):
    """Bytes of a tar with members (name, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def archive_seeds():
    import numpy as np
    from scipy.io import savemat

    from data.ilsvrc12.classes import SYNSETS_FILE, TRUTH_FILE
    rows = np.empty(2, [(field, object) for field in ('ILSVRC2012_ID', 'WNID', 'words', 'num_children', 'num_train_images')])
    rows[0], rows[1] = (1, 'n00000001', 'one', 0, 2), (2, 'n00000002', 'two', 0, 3)
    seeds = []
    for compressed in (False, True):
        meta = io.BytesIO()
        savemat(meta, {'synsets': rows}, do_compression=compressed)
        seeds.append(tar_of([(SYNSETS_FILE, meta.getvalue()), (TRUTH_FILE, b'1\n2\n1\n')]))
    images = tar_of([('n00000001_1.JPEG', b'one' * 300), ('n00000001_2.JPEG', b''), ('n00000001_%s.JPEG' % ('3' * 150), b'x')])
    return {'images.tar': [images, gzip.compress(images, 1)], 'devkit.tar': seeds + [gzip.compress(seeds[1], 1)]}


# ------------------------------------------------------------------------- what reads them: a path -> nothing, or InputError

def read_picture(path):
    from augmentation import eval_crop
    from pictures import PictureReader
    eval_crop(PictureReader()(path))


def read_metadata(path):
    from dataset import read_images, read_words
    tree = os.path.dirname(os.path.dirname(path))
    read_words(tree)
    read_images(tree, 'val')


def read_index(path):
    from checkpoints import CheckpointRestore
    CheckpointRestore(path)


def read_state(path):
    from tools.state_dict import read_state
    read_state(path)


def read_darknet(path):
    from tools.darknet import CFG
    from tools.read_darknet import read
    read(os.path.join(os.path.dirname(path), CFG))


def read_archive(path):
    from data.ilsvrc12.archives import archive_opened, members
    from data.ilsvrc12.classes import read_devkit
    if path.endswith('devkit.tar'):
        read_devkit(path)
    else:
        with archive_opened(path) as archive:
            for _, size, source in members(archive, path, re.compile('(n[0-9]{8}_[0-9]+)[.]JPEG'), 'n01440764_18.JPEG'):
                source.read(size)


# ---------------------------------------------------------------------------------------------------------------- surroundings

def plant_tree(folder):
    """The rest of a tree around a mutated list. Returns {name: path of the mutated file}."""
    meta, val = os.path.join(folder, 'caffe_ilsvrc12'), os.path.join(folder, 'val')
    os.makedirs(meta)
    os.makedirs(os.path.join(val, 'n00000002'))
    for name in ('a.png', 'n00000002/b.png'):
        open(os.path.join(val, name), 'wb').close()
    return {name: os.path.join(meta, name) for name in metadata_seeds()}


def plant_data(folder):
    """The data of a checkpoint beside a mutated index."""
    os.symlink(PREFIX + '.data-00000-of-00001', os.path.join(folder, 'checkpoint.data-00000-of-00001'))
    return {}


# TensorFlow reads on only where the CRCs of the blocks are right, so damage gets new ones.
def crc32c(data):
    """The masked CRC-32C of a block in a table (RFC 3720, B.4, with TensorFlow's rotation)."""
    crc = 0xffffffff
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xffffffff
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff


def crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = crc_table()


def mend_index(data):
    """An index with the right CRC behind every block that its footer and its index block lead to."""
    from checkpoint_index import FOOTER, varint
    data = bytearray(data)

    def mend(at):
        offset, at = varint(data, at)
        size, _ = varint(data, at)
        if offset + size + 5 <= len(data):
            data[offset + size + 1:offset + size + 5] = struct.pack('<I', crc32c(data[offset:offset + size + 1]))
        return offset, size
    try:
        _, at = varint(data, len(data) - FOOTER)
        _, at = varint(data, at)
        offset, _ = mend(at)
        shared, at = varint(data, offset)
        rest, at = varint(data, at)
        _, at = varint(data, at)
        mend(at + rest)
    except (IndexError, ValueError):
        pass
    return bytes(data)


def mend_png(data):
    """A PNG with the right CRC behind every chunk."""
    if data[:4] != b'\x89PNG':
        return data
    import zlib
    data, position = bytearray(data), 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position:position + 4], 'big')
        data[end:end + 4] = struct.pack('>I', zlib.crc32(data[position + 4:end]))
        position = end + 4
    return bytes(data)


# `seeds`: {name: sound files}; `read`: reads a path; `mend`: makes checksums right, or None; `plant`: makes what lies around it.
Target = collections.namedtuple('Target', 'seeds read mend plant')
TARGETS = collections.OrderedDict([
    ('pictures', Target(picture_seeds, read_picture, mend_png, None)),
    ('metadata', Target(metadata_seeds, read_metadata, None, plant_tree)),
    ('index', Target(index_seeds, read_index, mend_index, plant_data)),
    ('state', Target(state_seeds, read_state, None, None)),
    ('darknet', Target(darknet_seeds, read_darknet, None, None)),
    ('archives', Target(archive_seeds, read_archive, None, None))])
