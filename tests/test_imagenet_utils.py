"""Reading, preprocessing and augmenting images, the ILSVRC12 tree, checkpoints, and the arithmetic around them."""
import base64
import itertools
import math
import os
import shutil
import struct

import cv2
import numpy as np
import pytest

import imagenet_utils
from imagenet_utils import InputError
from tf_compat import tf

# 24x16 pixels: a CMYK JPEG as Photoshop writes them, and a progressive one.
CMYK = base64.b64decode(
    '/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLUBXQUZMTlJTUjI+WmFaUGBKUVJP/8AAFAgA'
    'EAAYBEMRAE0RAFkRAEsRAP/EABgAAQEBAQEAAAAAAAAAAAAAAAUEAwYH/8QAGhAAAgMBAQAAAAAAAAAAAAAAAAQCAyExYf/aAA4EQwBNAFkASwAAPwDtHG+6cUmp'
    'zD0G6309InMCcb7o8mpzCC630nnMBcb7o6mpzCG630wnMecb7oEmpzC66303nMBcb7o6mpzCG630wnMCcb7o8mpzCC630wnM/9k=')
PROGRESSIVE = base64.b64decode(
    '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBD'
    'AQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wgARCAAQABgDASIAAhEBAxEB/8QAFgABAQEA'
    'AAAAAAAAAAAAAAAAAAID/8QAFQEBAQAAAAAAAAAAAAAAAAAABAX/2gAMAwEAAhADEAAAAbhATmZVX//EABQQAQAAAAAAAAAAAAAAAAAAACD/2gAIAQEAAQUCX//E'
    'ABcRAAMBAAAAAAAAAAAAAAAAAAACAyH/2gAIAQMBAT8BhASGH//EABYRAQEBAAAAAAAAAAAAAAAAAAIAAf/aAAgBAgEBPwECwX//xAAUEAEAAAAAAAAAAAAAAAAA'
    'AAAg/9oACAEBAAY/Al//xAAVEAEBAAAAAAAAAAAAAAAAAAABAP/aAAgBAQABPyFZZZZZb//aAAwDAQACAAMAAAAQ6M//xAAXEQEAAwAAAAAAAAAAAAAAAAAAITFR'
    '/9oACAEDAQE/EKIYH//EABURAQEAAAAAAAAAAAAAAAAAAAAh/9oACAECAQE/EBJ//8QAFBABAAAAAAAAAAAAAAAAAAAAIP/aAAgBAQABPxBf/wD/2Q==')


def picture(height=60, width=90):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def encode(image, extension):
    return cv2.imencode(extension, image)[1].tobytes()


def with_exif(jpeg, orientation):
    """The JPEG with an EXIF header that gives its orientation and holds a whole JPEG as its thumbnail."""
    tiff = b'II*\x00\x08\x00\x00\x00' + struct.pack('<HHHII', 1, 0x0112, 3, 1, orientation) + b'\x00\x00\x00\x00' + PROGRESSIVE
    body = b'Exif\x00\x00' + tiff
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + jpeg[2:]


def read(tmp_path, data, name='image.JPEG'):
    path = str(tmp_path / name)
    with open(path, 'wb') as f:
        f.write(data)
    return imagenet_utils.read_image(path)


def test_recorded_preprocessing_bit_for_bit(shared, mini):
    recorded = np.load(os.path.join(shared, 'reference', 'preprocessed.npz'))
    augmentors = imagenet_utils.eval_augmentors()
    equal = [np.array_equal(augmentors.augment(imagenet_utils.read_image(os.path.join(mini, str(name)))), image)
             for name, image in zip(recorded['files'], recorded['images'])]
    assert sum(equal) == len(equal) == 24


def test_every_real_image_is_read(mini):
    paths = [path for name in ('train', 'val') for path, _ in imagenet_utils.read_images(mini, name)]
    assert len(paths) == 460 and all(imagenet_utils.read_image(path).shape[2] == 3 for path in paths)


def test_images_of_every_kind_that_imagenet_holds(tmp_path):
    jpeg = encode(picture(), '.jpg')
    plain = read(tmp_path, jpeg)
    assert read(tmp_path, CMYK).shape == (16, 24, 3) and read(tmp_path, PROGRESSIVE).shape == (16, 24, 3)
    assert np.array_equal(read(tmp_path, encode(picture(), '.png')), picture())    # a PNG named .JPEG
    assert np.array_equal(read(tmp_path, jpeg + b'\x00trailing \xff\xd9 bytes' * 9), plain)
    assert np.array_equal(read(tmp_path, encode(picture(), '.png') + b'\x00trailing'), picture())
    assert np.array_equal(read(tmp_path, with_exif(jpeg, 1)), plain)
    assert np.array_equal(read(tmp_path, with_exif(jpeg, 6)), np.rot90(plain, -1))    # turned, as cv2.imread does
    grey = encode(picture()[:, :, 0], '.jpg')
    assert read(tmp_path, grey).shape == (60, 90, 3)


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize('kind', ['jpeg', 'exif', 'progressive', 'cmyk', 'png'])
def test_truncated_images_are_refused(tmp_path, kind, share):
    jpeg = encode(picture(), '.jpg')
    data = {'jpeg': jpeg, 'exif': with_exif(jpeg, 1), 'progressive': PROGRESSIVE, 'cmyk': CMYK,
            'png': encode(picture(), '.png')}[kind]
    with pytest.raises(InputError, match='image.JPEG'):
        read(tmp_path, data[:min(int(len(data) * share), len(data) - 1)])


@pytest.mark.parametrize('data', [b'', b'no image at all', b'\xff\xd8\xff\xd9', b'\x89PNG\r\n\x1a\n', b'GIF89a'])
def test_what_is_no_image_is_refused(tmp_path, data):
    with pytest.raises(InputError, match='image.JPEG'):
        read(tmp_path, data)


def test_damaged_but_whole_jpegs_are_read(tmp_path):
    """Stray markers in the compressed data, even with a length that leads behind the end, do not hide the end."""
    jpeg = encode(picture(), '.jpg')
    assert jpeg.endswith(b'\xff\xd9') and imagenet_utils.jpeg_is_whole(jpeg)
    for stray in (b'\xff\xff', b'\xff\xc4\xff\xff', b'\xff\xfe\x7f\xff', b'\xff\x01'):
        assert imagenet_utils.jpeg_is_whole(jpeg[:-2] + stray + jpeg[-2:])
    assert read(tmp_path, jpeg[:-2] + b'\xff\xff\xff' + jpeg[-2:]).shape == (60, 90, 3)


def test_a_png_with_a_flipped_bit_is_refused(tmp_path):
    png = bytearray(encode(picture(), '.png'))
    png[len(png) // 2] ^= 4
    with pytest.raises(InputError, match='broken'):
        read(tmp_path, bytes(png))


def test_missing_image_and_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match='cannot read the image'):
        imagenet_utils.read_image(str(tmp_path / 'nothing.JPEG'))
    with pytest.raises(InputError, match='cannot read the image'):
        imagenet_utils.read_image(str(tmp_path))


def make_tree(root, listing='a.JPEG 0\nb.JPEG 1\n', synsets='n00000001\nn00000002\n', images=('a.JPEG', 'n00000002/b.JPEG')):
    """An ILSVRC12 tree of two classes, with one image in val/ itself and one in its synset's folder."""
    for folder in ('val', 'train', 'caffe_ilsvrc12', 'val/n00000002'):
        os.makedirs(str(root / folder), exist_ok=True)
    for name in images:
        (root / 'val' / name).write_bytes(encode(picture(), '.jpg'))
    if synsets is not None:
        (root / 'caffe_ilsvrc12' / 'synsets.txt').write_text(synsets)
    if listing is not None:
        (root / 'caffe_ilsvrc12' / 'val.txt').write_text(listing)
    return str(root)


def test_a_tree_may_be_flat_or_in_synset_folders(tmp_path):
    tree = make_tree(tmp_path)
    assert imagenet_utils.read_images(tree, 'val') == [
        [os.path.join(tree, 'val', 'a.JPEG'), 0], [os.path.join(tree, 'val', 'n00000002', 'b.JPEG'), 1]]


@pytest.mark.parametrize('change, message', [
    (dict(listing=''), 'val.txt is empty'),
    (dict(listing='a.JPEG 0\n\nb.JPEG 1\n'), 'line 2'),
    (dict(listing='a.JPEG\n'), 'line 1.*<file> <label>'),
    (dict(listing='a.JPEG zero\n'), 'line 1.*<file> <label>'),
    (dict(listing='a.JPEG 0 0\n'), 'line 1.*<file> <label>'),
    (dict(listing='a\0.JPEG 0\n'), 'line 1.*<file> <label>'),
    (dict(listing='a.JPEG 0\nb.JPEG 2\n'), 'line 2: label 2'),
    (dict(listing='a.JPEG -1\n'), 'line 1: label -1'),
    (dict(listing='a.JPEG 0\nc.JPEG 1\n'), 'the image c.JPEG is missing.*line 2'),
    (dict(listing=None), 'val.txt'),
    (dict(synsets=None), 'synsets.txt'),
    (dict(synsets=''), 'synsets.txt'),
    (dict(synsets='n00000001\n\nn00000002\n'), 'synsets.txt'),
])
def test_malformed_trees_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        imagenet_utils.read_images(make_tree(tmp_path, **change), 'val')


@pytest.mark.parametrize('folder', ['', 'val', 'caffe_ilsvrc12'])
def test_missing_folders_are_named(tmp_path, folder):
    tree = make_tree(tmp_path / 'tree')
    shutil.rmtree(os.path.join(tree, folder))
    with pytest.raises(InputError, match='no folder %s' % os.path.join(tree, folder).rstrip('/')):
        imagenet_utils.read_images(tree, 'val')


def test_binary_list_is_refused(tmp_path):
    tree = make_tree(tmp_path)
    (tmp_path / 'caffe_ilsvrc12' / 'val.txt').write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(InputError, match='val.txt'):
        imagenet_utils.read_images(tree, 'val')


def test_ordered_map_keeps_the_order_and_raises():
    from tensorpack.dataflow import DataFromList
    import time

    def slow(datapoint):
        time.sleep(0.01 * (5 - datapoint[0] % 5))
        if datapoint[0] == 37:
            raise InputError('thirty-seven')
        return [datapoint[0] * 2]

    ds = imagenet_utils.OrderedThreadMap(DataFromList([[i] for i in range(30)], shuffle=False), 3, slow, 7)
    ds.reset_state()
    assert [dp[0] for dp in ds] == [2 * i for i in range(30)]
    ds = imagenet_utils.OrderedThreadMap(DataFromList([[i] for i in range(60)], shuffle=False), 3, slow, 7)
    ds.reset_state()
    with pytest.raises(InputError, match='thirty-seven'):
        list(ds)


def test_evaluation_dataflow_ends_with_a_smaller_batch(tmp_path):
    images = imagenet_utils.read_images(make_tree(tmp_path), 'val') * 4
    ds = imagenet_utils.eval_dataflow(images, 3)
    ds.reset_state()
    batches = list(ds)
    assert [len(image) for image, _ in batches] == [3, 3, 2]
    assert batches[0][0].dtype == np.uint8 and batches[0][0].shape[1:] == (224, 224, 3)
    assert np.concatenate([label for _, label in batches]).tolist() == [0, 1] * 4


def test_colours_are_augmented_as_the_three_steps_one_by_one():
    image = picture(224, 224) // 4 + 96    # away from 0 and 255, where only one of the two would clip
    for seed in range(12):
        rng = np.random.RandomState(seed)
        result = imagenet_utils.augment(image, rng, 1.0)
        rng, ready = np.random.RandomState(seed), None
        for _ in range(10):
            aspect = [rng.uniform(1.0, 1), rng.uniform(0.75, 1.333)][1]
            w, h = int(np.sqrt(224 * 224 * aspect) + 0.5), int(np.sqrt(224 * 224 / aspect) + 0.5)
            if rng.uniform() < 0.5:
                w, h = h, w
            if w <= 224 and h <= 224:
                ready = (rng.randint(224 - w + 1), rng.randint(224 - h + 1))
                break
        colours = image.astype(np.float64)
        grey = np.array([0.114, 0.587, 0.299])
        for change in rng.permutation(3):
            factor = rng.uniform(0.6, 1.4)
            if change == 0:
                colours = colours * factor
            elif change == 1:
                colours = factor * colours + (1 - factor) * colours.dot(grey).mean()
            else:
                colours = factor * colours + (1 - factor) * colours.dot(grey)[:, :, None]
        if rng.uniform() < 0.5:
            colours = colours[:, ::-1]
        assert ready in (None, (0, 0))    # the whole image, so that there is no resizing
        assert np.abs(np.clip(colours, 0, 255) - result).max() <= 1.5


def test_crops_have_the_published_distribution():
    """10,000 crops against 10,000 of Tensorpack's augmentor, which the recipe names: Kolmogorov-Smirnov on their measures."""
    from scipy.stats import ks_2samp
    from tensorpack.dataflow import imgaug
    height, width, count = 375, 500, 10000
    for smallest_area in (0.08, 0.49):
        rng = np.random.RandomState(1)
        ours = [imagenet_utils.random_crop(height, width, rng, smallest_area) for _ in range(count)]
        theirs, augmentor = [], imgaug.GoogleNetRandomCropAndResize((smallest_area, 1.0), (0.75, 1.333), 224)
        augmentor.rng = np.random.RandomState(2)
        blank = np.zeros((height, width, 3), np.uint8)
        for _ in range(count):
            crop = augmentor.get_transform(blank).tfms[0]
            theirs.append((crop.x0, crop.y0, crop.w, crop.h) if hasattr(crop, 'x0') else None)
        missing = [sum(crop is None for crop in crops) for crops in (ours, theirs)]
        assert abs(missing[0] - missing[1]) < 5 * math.sqrt(max(missing) + 1)
        for measure in (lambda x, y, w, h: w * h, lambda x, y, w, h: w / h, lambda x, y, w, h: x / (width - w + 1.0),
                        lambda x, y, w, h: y / (height - h + 1.0)):
            samples = [[measure(*crop) for crop in crops if crop is not None] for crops in (ours, theirs)]
            assert ks_2samp(*samples).pvalue > 1e-3
        areas = [crop[2] * crop[3] / (height * width) for crop in ours if crop is not None]
        assert min(areas) > smallest_area * 0.99 and max(areas) <= 1


def test_colours_have_the_published_distribution():
    """The factors are found in 10,000 maps: on greys, saturation does nothing; between two colours, contrast has no offset."""
    rng = np.random.RandomState(3)
    mean, grey = np.array([100.0, 110.0, 120.0]), np.array([0.114, 0.587, 0.299])
    maps = [imagenet_utils.random_colours(mean, rng) for _ in range(10000)]
    # (1, 1, 1) is scaled by brightness and contrast, a colour without grey by all three.
    both = np.array([m[:, :3].dot(np.ones(3))[0] for m in maps])
    colour = np.cross(grey, [1.0, 2.0, 3.0])
    saturation = np.array([m[:, :3].dot(colour).dot(colour) / colour.dot(colour) for m in maps]) / both
    for factors, low, high in ((saturation, 0.6, 1.4), (both, 0.36, 1.96)):
        assert low - 1e-9 <= factors.min() < low * 1.05 and high * 0.95 < factors.max() <= high + 1e-9
        assert abs(factors.mean() - 1) < 0.01
    assert abs(saturation.var() - 0.8 ** 2 / 12) < 0.002    # uniform
    assert abs(both.var() - ((0.8 ** 2 / 12 + 1) ** 2 - 1)) < 0.005    # a product of two such
    # In which order, tells the offset: contrast pulls to the mean grey before or after it was made brighter; three, evenly.
    after = np.array([m[:, 3].dot(grey) for m in maps])
    assert abs(after.mean()) < 0.7 and after.std() > 20


def test_half_of_the_samples_are_flipped():
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, 112:] = 200    # dark on the left
    rng, flipped = np.random.RandomState(4), 0
    for _ in range(10000):
        sample = imagenet_utils.augment(image, rng, 0.9)[112, :, 0].astype(int)
        flipped += sample[:20].sum() > sample[-20:].sum()
    assert abs(flipped - 5000) < 5 * 50


def test_shuffled_images_are_each_seen_once_an_epoch_and_go_on_where_they_were_left(tmp_path):
    images = [[str(i), i] for i in range(10)]

    def seen(count, *args):
        stream = iter(imagenet_utils.ShuffledImages(images, *args))
        return [(path, rng.randint(10 ** 9)) for path, _, rng in itertools.islice(stream, count)]

    whole = seen(40, 7, 4)
    orders = [[path for path, _ in whole[start:start + 10]] for start in range(0, 40, 10)]
    assert all(sorted(order) == [str(i) for i in range(10)] for order in orders) and len(set(map(tuple, orders))) == 4
    assert len(set(rng for _, rng in whole)) == 40    # no two samples are augmented alike
    assert seen(16, 7, 4, 6) == whole[24:]    # from step 6
    assert seen(40, 8, 4) != whole
    workers = [seen(20, 7, 4, 0, worker, 2) for worker in (0, 1)]
    both = [sample for step in range(10) for worker in workers for sample in worker[2 * step:2 * step + 2]]
    assert both == whole    # together, what one worker would see


def test_training_dataflow_repeats_with_a_seed(tmp_path):
    images = imagenet_utils.read_images(make_tree(tmp_path), 'val') * 8

    def batches(seed):
        ds = imagenet_utils.train_dataflow(imagenet_utils.ShuffledImages(images, seed, 5), 0.08, 2)
        ds.reset_state()
        iterator = iter(ds)
        return [next(iterator) for _ in range(8)]

    first, again, other = batches(1), batches(1), batches(2)
    assert first[0][0].shape == (5, 224, 224, 3) and first[0][0].dtype == np.uint8
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(first, again))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(first, other))


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
        values = imagenet_utils.CheckpointRestore(small_checkpoint + suffix).values
        assert sorted(values) == ['a/W', 'a/bn/gamma', 'a/bn/mean/EMA']


@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
def test_missing_or_truncated_checkpoint_is_refused(small_checkpoint, tmp_path, suffix):
    prefix = copy_checkpoint(small_checkpoint, tmp_path)
    size = os.path.getsize(prefix + suffix)
    for length in (size - 1, size // 2, 10, 0):
        with open(prefix + suffix, 'r+b') as f:
            f.truncate(length)
        with pytest.raises(InputError, match='small'):
            imagenet_utils.CheckpointRestore(prefix)
    os.remove(prefix + suffix)
    with pytest.raises(InputError, match='small%s.* is missing' % suffix[:6]):
        imagenet_utils.CheckpointRestore(prefix)


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
            imagenet_utils.CheckpointRestore(prefix)


def test_flipped_bits_in_the_index_never_change_a_value(small_checkpoint, tmp_path):
    prefix = copy_checkpoint(small_checkpoint, tmp_path)
    whole = imagenet_utils.CheckpointRestore(prefix).values
    data = open(prefix + '.index', 'rb').read()
    refused = 0
    for position in range(0, len(data), 3):
        with open(prefix + '.index', 'wb') as f:
            f.write(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1:])
        try:
            values = imagenet_utils.CheckpointRestore(prefix).values
            assert all(np.array_equal(values[name], whole[name]) for name in whole)    # a bit that nobody reads
        except InputError:
            refused += 1
    assert refused > len(data) / 3 * 0.8


def test_another_model_is_refused_with_both_shapes(small_checkpoint):
    restore = imagenet_utils.CheckpointRestore(small_checkpoint)
    with tf.Graph().as_default():
        tf.get_variable('a/W', [3, 3, 8, 32])
        tf.get_variable('a/bn/gamma', [16])
        tf.get_variable('b/W', [1])
        tf.get_variable('learning_rate', [])
        with pytest.raises(imagenet_utils.CheckpointMismatch) as error:
            restore._setup_graph()
    message = str(error.value)
    assert '3 of 4 variables' in message and 'a/W is (3, 3, 8, 16) in the checkpoint, (3, 3, 8, 32) in the model' in message
    assert 'b/W is absent in the checkpoint, (1,) in the model' in message and 'a/bn/mean/EMA is (16,) in the checkpoint' in message
