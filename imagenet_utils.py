"""What every ImageNet model here shares: the ILSVRC12 data and its preprocessing, loss and errors, checkpoints.
(Evaluation and training have their own rooms, engines.py and training.py.)

Images are uint8 (H, W, 3) in BGR, as OpenCV reads them.
"""
import collections
import concurrent.futures
import contextlib
import functools
import glob
import itertools
import logging
import math
import os
import re
import zlib

from tf_compat import tf    # before all else that imports TensorFlow or OpenCV

import cv2
import numpy as np
from tensorpack import ModelDesc
from tensorpack.dataflow import BatchData, DataFlow, DataFromList, ProxyDataFlow, imgaug
from tensorpack.models import regularize_cost
from tensorpack.tfutils import DictRestore
from tensorpack.tfutils.gradproc import ScaleGradient
from tensorpack.tfutils.optimizer import apply_grad_processors
from tensorpack.tfutils.sesscreate import NewSessionCreator
from tensorpack.tfutils.summary import add_moving_summary
from tensorpack.tfutils.tower import get_current_tower_context

from command_line import InputError, cores

IMAGE_SIZE = 224
MEAN, STD = np.float32([0.406, 0.456, 0.485]), np.float32([0.225, 0.224, 0.229])    # of ImageNet, BGR, images in [0, 1]
META = 'caffe_ilsvrc12'
PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
# The last part of the name of every variable that belongs to a model; what training adds (slots, counters) ends otherwise.
MODEL_VARIABLE = re.compile('(^|/)(W|DW|b|beta|gamma|EMA)$')
# The variant of a network is recorded in its checkpoints as a string of this name, unless it is the published one.
VARIANT, PUBLISHED = 'variant', 'published'
ALL_BUT_LAST_LAYER = re.compile('^(?!.*/Logits/).*' + MODEL_VARIABLE.pattern)


def quiet_logger():
    """Keeps what Tensorpack logs (every layer, every variable) off a command whose output is its result."""
    logging.getLogger('tensorpack').setLevel(logging.ERROR)


# ---------------------------------------------------------------------------------------------------------------- images

JPEG_MARKER = re.compile(b'\xff([\x01-\xcf\xd8-\xfe])')    # in compressed data, ff00 and ffd0 to ffd7 are no end


def jpeg_is_whole(data):
    """Whether the JPEG in bytes `data` has its end-of-image marker: not in a thumbnail, but behind its own scans (T.81, B.1)."""
    position = 2
    while True:
        marker = JPEG_MARKER.search(data, position)
        if marker is None:
            return False
        position = marker.end()
        code = ord(marker.group(1))
        if code == 0xd9:
            return True
        if 0xc0 <= code <= 0xcf or 0xda <= code <= 0xef or code == 0xfe:    # a segment with its length
            end = position + int.from_bytes(data[position:position + 2], 'big')
            position = end if end < len(data) else position    # else stray bytes in the compressed data


def png_is_whole(data):
    """Whether the PNG in bytes `data` goes on to its IEND chunk, and all its chunks have the right CRC."""
    position = 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position:position + 4], 'big')
        if zlib.crc32(data[position + 4:end]) != int.from_bytes(data[end:end + 4], 'big'):
            return False
        if data[position + 4:position + 8] == b'IEND':
            return True
        position = end + 4
    return False


def read_image(path):
    """The picture at `path`, uint8 (H, W, 3) BGR, turned as its EXIF header says: the same on every stack.

    OpenCV fills what is missing of a truncated file with grey or black, so that is looked for here.

    Raises:
        InputError: the file is missing, truncated or no image.
    """
    # Cubic resizing with IPP differs between OpenCV builds and processors. OpenCV keeps this flag for each thread.
    cv2.ipp.setUseIPP(False)
    cv2.setNumThreads(0)
    try:
        with open(path, 'rb') as f:
            data = f.read()
    except (IOError, OSError) as error:
        raise InputError("cannot read the image %s: %s" % (path, error.strerror))
    if (data[:2] == b'\xff\xd8' and not jpeg_is_whole(data)) or (data[:4] == b'\x89PNG' and not png_is_whole(data)) \
            or (data[:2] == b'BM' and int.from_bytes(data[2:6], 'little') > len(data)):
        raise InputError("the image %s is truncated or broken: get it anew" % path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise InputError("the file %s is not an image, or a broken one: get it anew" % path)
    return image


@functools.lru_cache(maxsize=1)    # each augmentor makes a random generator, which takes as long as to decode an image
def eval_augmentors():
    """Tensorpack augmentors of the evaluation: shortest edge to 256 pixels, cubic, then the central 224x224."""
    return imgaug.AugmentorList([imgaug.ResizeShortestEdge(256, cv2.INTER_CUBIC), imgaug.CenterCrop((IMAGE_SIZE, IMAGE_SIZE))])


def eval_images(paths):
    """Pictures preprocessed for evaluation, uint8 (N, 224, 224, 3) BGR. Raises InputError: see ``read_image``."""
    augmentors = eval_augmentors()
    return np.stack([augmentors.augment(read_image(path)) for path in paths])


# ------------------------------------------------------------------------------------------------------------------ data

def read_lines(path):
    try:
        with open(path, encoding='utf-8-sig') as f:
            return [line.strip() for line in f]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read %s (%s): an ILSVRC12 tree has %s/ with synsets.txt, val.txt and train.txt"
                         % (path, getattr(error, 'strerror', 'no text'), META))


def read_synsets(data_dir):
    """The WordNet ids of an ILSVRC12 tree's classes in the order of the labels, a list of str.

    Raises:
        InputError: the tree or its ``caffe_ilsvrc12/synsets.txt`` is missing or malformed.
    """
    for folder in (data_dir, os.path.join(data_dir, META)):
        if not os.path.isdir(folder):
            raise InputError("there is no folder %s: --data_dir must name an ILSVRC12 tree, with train/, val/ and %s/"
                             % (folder, META))
    path = os.path.join(data_dir, META, 'synsets.txt')
    synsets = read_lines(path)
    if not synsets or not all(synsets):
        raise InputError("%s must have one WordNet id a line, and no empty line" % path)
    return synsets


def read_words(data_dir):
    """The classes of an ILSVRC12 tree, [(WordNet id, words), ...]: words from ``synset_words.txt``, or '' where that is missing."""
    synsets, path = read_synsets(data_dir), os.path.join(data_dir, META, 'synset_words.txt')
    words = dict((line.split(None, 1) + [''])[:2] for line in read_lines(path) if line) if os.path.exists(path) else {}
    return [(synset, words.get(synset, '')) for synset in synsets]


def find_images(paths):
    """The files that `paths` name, and the pictures in folders and in what is below them, in alphabetical order.

    Raises:
        InputError: a file is missing, or a folder has no picture.
    """
    files = []
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.isfile(path):
                raise InputError("there is no picture and no folder %s" % path)
            files.append(path)
            continue
        found = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
                       if name.lower().endswith(PICTURES))
        if not found:
            raise InputError("the folder %s has no picture: none of its files ends with %s" % (path, ', '.join(PICTURES)))
        files += found
    return files


def read_list(data_dir, name):
    """What ``caffe_ilsvrc12/<name>.txt`` of an ILSVRC12 tree lists: [(file, label), ...], in its order.

    Raises:
        InputError: the tree lacks something, the list is empty or malformed, or a label is not one of the classes.
    """
    synsets = read_synsets(data_dir)
    listing = os.path.join(data_dir, META, name + '.txt')
    listed = []
    for number, line in enumerate(read_lines(listing), 1):
        fields = re.match(r'([^\s\0]+)\s+(-?\d+)$', line)
        if fields is None:
            raise InputError("%s, line %d: '%s' is not of the form '<file> <label>'" % (listing, number, line[:80]))
        label = int(fields.group(2))
        if not 0 <= label < len(synsets):
            raise InputError("%s, line %d: label %d is not one of the %d classes of synsets.txt (0 to %d)"
                             % (listing, number, label, len(synsets), len(synsets) - 1))
        listed.append((fields.group(1), label))
    if not listed:
        raise InputError("%s is empty: it must have a line '<file> <label>' for each image" % listing)
    return listed


def read_images(data_dir, name):
    """The images that an ILSVRC12 tree lists, as Tensorpack's ILSVRC12Files finds them: [[path, label], ...].

    Args:
        data_dir (str): the tree; its images may lie in ``val/`` itself or in one folder a synset.
        name (str): 'train' or 'val'.
    Raises:
        InputError: see `read_list`; or an image of the list is missing.
    """
    synsets = read_synsets(data_dir)
    folder = os.path.join(data_dir, name)
    if not os.path.isdir(folder):
        raise InputError("there is no folder %s, where the images of %s/%s.txt should be" % (folder, META, name))
    images = []
    for number, (file, label) in enumerate(read_list(data_dir, name), 1):
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            path = os.path.join(folder, synsets[label], file)
            if not os.path.isfile(path):
                raise InputError("the image %s is missing from %s: line %d of %s/%s.txt lists it"
                                 % (file, folder, number, META, name))
        images.append([path, label])
    return images


class OrderedThreadMap(ProxyDataFlow):
    """MapData in threads, which keeps the order and hands an exception of the function to whoever iterates.

    (Tensorpack's MultiThreadMapData mixes the order up, and waits for ever when the function raises.) `window` is how many
    datapoints are worked on or kept ready.
    """

    def __init__(self, ds, num_threads, func, window):
        super(OrderedThreadMap, self).__init__(ds)
        self.num_threads, self.func, self.window = num_threads, func, window

    def __iter__(self):
        pending = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(self.num_threads)
        try:
            for datapoint in self.ds:
                pending.append(pool.submit(self.func, datapoint))
                if len(pending) >= self.window:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            pool.shutdown()


def random_crop(height, width, rng, smallest_area):
    """A crop of an image of `height` x `width` pixels, (x, y, width, height), or None if none of ten tries fits."""
    for _ in range(10):
        area = rng.uniform(smallest_area, 1) * height * width
        aspect = rng.uniform(0.75, 1.333)
        w, h = int(math.sqrt(area * aspect) + 0.5), int(math.sqrt(area / aspect) + 0.5)
        if rng.uniform() < 0.5:
            w, h = h, w
        if 0 < h <= height and 0 < w <= width:
            return rng.randint(width - w + 1), rng.randint(height - h + 1), w, h
    return None


def random_colours(mean, rng):
    """Brightness, contrast and saturation in random order, each by a factor from 0.6 to 1.4, as one affine map.

    All three are linear in the colours of a pixel, so that they can be applied at once: nothing is clipped in between, and no
    copy in float is made.

    Args:
        mean (np.ndarray): mean colour of the image, (3,), BGR.
    Returns:
        np.ndarray: (3, 4), for ``cv2.transform``: a matrix and, in the last column, an offset.
    """
    grey = np.array([0.114, 0.587, 0.299])
    matrix, offset = np.eye(3), np.zeros(3)    # colour -> matrix . colour + offset
    for change in rng.permutation(3):
        factor = rng.uniform(0.6, 1.4)
        if change == 0:      # brightness
            matrix, offset = factor * matrix, factor * offset
        elif change == 1:    # contrast, about the mean grey
            middle = grey.dot(matrix.dot(mean) + offset)
            matrix, offset = factor * matrix, factor * offset + (1 - factor) * middle
        else:                # saturation, about the pixel's grey
            saturate = factor * np.eye(3) + (1 - factor) * np.tile(grey, (3, 1))
            matrix, offset = saturate.dot(matrix), saturate.dot(offset)
    return np.column_stack([matrix, offset])


def augment(image, rng, smallest_area):
    """A training sample, uint8 (224, 224, 3) BGR: random area crop, colours in random order, horizontal flip.

    Args:
        image (np.ndarray): uint8 (H, W, 3) BGR.
        rng (np.random.RandomState): the only source of chance.
        smallest_area (float): the smallest share of the image's area that a crop may have.
    """
    crop = random_crop(image.shape[0], image.shape[1], rng, smallest_area)
    if crop is not None:
        x, y, w, h = crop
        image = cv2.resize(image[y:y + h, x:x + w], (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)
    else:
        image = imgaug.AugmentorList([imgaug.ResizeShortestEdge(IMAGE_SIZE, cv2.INTER_CUBIC),
                                      imgaug.CenterCrop((IMAGE_SIZE, IMAGE_SIZE))]).augment(image)
    image = cv2.transform(image, random_colours(np.array(cv2.mean(image)[:3]), rng))
    return cv2.flip(image, 1) if rng.uniform() < 0.5 else image


class ShuffledImages(DataFlow):
    """Endless [path, label, random state]: all images in one order, then all in another; `seed` fixes orders and random states.

    Step s takes the s-th `batch` of this stream, wherever an epoch of the images ends, and each of `workers` an equal, own
    part of it. So a run that is resumed at `step` sees what it would have seen, and N workers together see what one would.
    """

    def __init__(self, images, seed, batch, step=0, worker=0, workers=1):
        self.images, self.seed, self.batch, self.step, self.worker, self.workers = images, seed, batch, step, worker, workers

    def __iter__(self):
        share, shuffled = self.batch // self.workers, None
        for step in itertools.count(self.step):
            start = step * self.batch + self.worker * share
            for position in range(start, start + share):
                epoch, index = divmod(position, len(self.images))
                if epoch != shuffled:
                    shuffled, order = epoch, np.random.RandomState([self.seed, epoch]).permutation(len(self.images))
                path, label = self.images[order[index]]
                yield [path, label, np.random.RandomState([self.seed, epoch, index])]


def train_dataflow(images, smallest_area, threads):
    """Endless DataFlow of [uint8 (share of a batch, 224, 224, 3), int (share,)], from `images`, a ShuffledImages."""
    ds = OrderedThreadMap(
        images, threads, lambda datapoint: [augment(read_image(datapoint[0]), datapoint[2], smallest_area), datapoint[1]],
        4 * threads)
    return BatchData(ds, images.batch // images.workers)


def eval_dataflow(images, batch):
    """DataFlow of [uint8 (batch, 224, 224, 3), int (batch,)], the last one as small as it must be: validation in training.

    Args:
        images (list of [path, label]): what to read, in this order.
    """
    augmentors = eval_augmentors()
    ds = OrderedThreadMap(DataFromList(images, shuffle=False), cores(),
                          lambda datapoint: [augmentors.augment(read_image(datapoint[0])), datapoint[1]], 2 * batch)
    return BatchData(ds, batch, remainder=True)


# ----------------------------------------------------------------------------------------------------------------- model

class ImageNetModel(ModelDesc):
    """Classifier of ImageNet-like images: preprocessing, loss, errors and optimiser. Subclasses give ``get_logits``.

    Args: see ghostnet.GhostNet.
    """

    def __init__(self, data_format, lr, weight_decay, label_smoothing, freeze_bn, variant=PUBLISHED):
        super(ImageNetModel, self).__init__()
        self.data_format = data_format
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.freeze_bn = freeze_bn
        self.variant = variant

    def get_logits(self, image):
        """Logits, float32 (N, classes), of images as ``image_preprocess`` takes them, or as it returns them."""
        raise NotImplementedError

    def inputs(self):
        return [tf.TensorSpec([None, IMAGE_SIZE, IMAGE_SIZE, 3], tf.uint8, 'input'), tf.TensorSpec([None], tf.int32, 'label')]

    def image_preprocess(self, image):
        """float32 images of mean 0 and deviation 1 over ImageNet, in `data_format`, from uint8 (N, H, W, 3) BGR."""
        image = tf.divide(tf.cast(image, tf.float32) * (1.0 / 255) - tf.constant(MEAN), tf.constant(STD), name='preprocessed')
        return image if self.data_format == 'NHWC' else tf.transpose(image, [0, 3, 1, 2])

    def build_graph(self, image, label):
        """Tensors ``logits``, ``wrong-top1``, ``wrong-top5`` (float32 (N,), 1 where wrong) and ``xentropy-loss``.

        Args:
            image (tf.Tensor): uint8 (N, 224, 224, 3) BGR.
            label (tf.Tensor): int32 (N,).
        Returns:
            tf.Tensor: the cost, a scalar: ``xentropy-loss`` and, in training, weight decay.
        """
        logits = tf.identity(self.get_logits(image), name='logits')
        wrong = [tf.cast(tf.logical_not(tf.nn.in_top_k(logits, label, k)), tf.float32, name='wrong-top%d' % k) for k in (1, 5)]
        xentropy = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(logits=logits, labels=label))
        uniform = tf.reduce_mean(-tf.nn.log_softmax(logits))
        smoothing = self.label_smoothing
        loss = tf.add((1 - smoothing) * xentropy, smoothing * uniform, name='xentropy-loss')
        if not get_current_tower_context().is_training:
            return loss
        decay = tf.multiply(regularize_cost('.*/W$', tf.nn.l2_loss, name='l2_loss'), self.weight_decay, name='weight-decay')
        cost = tf.add(loss, decay, name='cost')
        add_moving_summary(loss, decay, cost, *[tf.reduce_mean(w, name='train-error-top%d' % k) for w, k in zip(wrong, (1, 5))])
        return cost

    def optimizer(self):
        lr = tf.get_variable('learning_rate', initializer=float(self.lr), trainable=False)
        tf.summary.scalar('learning_rate-summary', lr)
        optimizer = tf.train.MomentumOptimizer(lr, 0.9, use_nesterov=True)
        if self.freeze_bn:
            optimizer = apply_grad_processors(optimizer, [ScaleGradient(('.*/(gamma|beta)', 0), verbose=False)])
        return optimizer


# ----------------------------------------------------------------------------------------------------------- checkpoints

class CheckpointMismatch(InputError):
    """A checkpoint, `restore`, is sound, but of another model."""

    def __init__(self, message, restore):
        super(CheckpointMismatch, self).__init__(message)
        self.restore = restore


def recorded_variant(path):
    """The variant of the network that a checkpoint is of. Raises InputError if it is missing or cannot be read."""
    return CheckpointRestore(path, re.compile('(?!)')).variant


class CheckpointRestore(DictRestore):
    """Restores a whole checkpoint or nothing: reads and verifies it all first, then compares it with the graph.

    Args:
        path (str): the checkpoint's prefix, or one of its files.
        names: compiled pattern of the variables to restore. All of them must be there, and no other such ones.

    `shapes` is {name: shape} of all model variables in the checkpoint, `values` {name: array} of what is restored, `variant` the
    network's.
    Raises:
        InputError: a file is missing, or a tensor unreadable (TensorFlow checks the CRC of each).
        CheckpointMismatch: when the session is made, if these variables are not exactly those of the graph.
    """

    def __init__(self, path, names=MODEL_VARIABLE):
        path = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
        for name in (path + '.index', path + '.data-00000-of-*'):
            if not glob.glob(glob.escape(path) + name[len(path):]):
                raise InputError("there is no checkpoint %s: its file %s is missing" % (path, name))
        self.path, self.names = path, names
        name = None
        try:
            reader = tf.train.NewCheckpointReader(path)
            values = {}
            for name in sorted(reader.get_variable_to_shape_map()):
                values[name] = reader.get_tensor(name)
        except Exception as error:    # tf.errors, but in TensorFlow 2 also IndexError, RuntimeError and others
            raise InputError("the checkpoint %s cannot be read%s: get it anew (%s)" % (
                path, '' if name is None else ' at ' + name, (str(error).splitlines() or [repr(error)])[0][:200]))
        self.variant = values.pop(VARIANT, PUBLISHED.encode()).decode()
        self.shapes = {name: value.shape for name, value in values.items() if MODEL_VARIABLE.search(name)}
        self.values = {name: value for name, value in values.items() if names.search(name)}
        super(CheckpointRestore, self).__init__(self.values)

    def _setup_graph(self):
        graph = {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables() if self.names.search(v.op.name)}
        found = {name: value.shape for name, value in self.values.items()}
        wrong = sorted(name for name in set(graph) | set(found) if graph.get(name) != found.get(name))
        if wrong:
            raise CheckpointMismatch("the checkpoint %s does not fit the model in %d of %d variables: %s%s" % (
                self.path, len(wrong), len(set(graph) | set(found)),
                '; '.join('%s is %s in the checkpoint, %s in the model' % (name, found.get(name, 'absent'), graph.get(name, 'absent'))
                          for name in wrong[:3]), '; ...' if len(wrong) > 3 else ''), self)


def save_checkpoint(session, saver, path):
    """Saves what `saver` knows as checkpoint `path`. Its index appears last, when all is on the disk: without, it is none.

    Raises:
        InputError: it cannot be written.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, 'unfinished-' + name)
    try:
        saver.save(session, temporary, write_meta_graph=False, write_state=False)
        files = sorted(glob.glob(glob.escape(temporary) + '.*'))    # .data-00000-of-00001, .index
        for file in files:
            with open(file, 'rb+') as f:
                os.fsync(f.fileno())
        for file in files:
            os.replace(file, path + file[len(temporary):])
        descriptor = os.open(folder or '.', os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    except (OSError, tf.errors.OpError) as error:
        reasons = [line for line in str(error).splitlines() if name in line and 'rror' not in line] or [type(error).__name__]
        raise InputError("cannot write the checkpoint %s (%s): make room" % (path, reasons[0].strip()[:200]))


def variant_variables(variant):
    """The variables to save with a checkpoint so that it tells its variant: none for the published one, else a string."""
    if variant == PUBLISHED:
        return []
    with tf.device('/cpu:0'):    # local: Horovod has no broadcast for strings
        return [tf.get_variable(VARIANT, initializer=tf.constant(variant), trainable=False,
                                collections=[tf.GraphKeys.LOCAL_VARIABLES])]


def save_values(values, path, variant):
    """Saves `values`, {variable name: array}, as checkpoint `path` of a network of this variant."""
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session:
        variables = [tf.get_variable(name, initializer=value) for name, value in sorted(values.items())]
        saver = tf.train.Saver(variables + variant_variables(variant))
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        save_checkpoint(session, saver, path)


# -------------------------------------------------------------------------------------------------------------- sessions

def session_creator(threads=None):
    """Tensorpack's, with `threads` (all cores) within an operation: its own default, one, is for GPUs."""
    creator = NewSessionCreator()
    creator.config.intra_op_parallelism_threads = threads or cores()
    return creator


@contextlib.contextmanager
def layout_explained(model):
    """Turns what TensorFlow raises where it has no kernels for channels first into an InputError."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        if model.data_format == 'NHWC':
            raise
        raise InputError("this TensorFlow cannot compute --data-format NCHW on this machine (%s): use --data-format NHWC"
                         % error.message.splitlines()[0])
