"""What every ImageNet model here shares, as in Tensorpack's file of this name: dataflows, preprocessing, loss, errors, sessions."""
import collections
import concurrent.futures
import contextlib
import itertools

from tf_compat import loss_scaled, tf

import numpy as np
from tensorpack import ModelDesc
from tensorpack.dataflow import DataFlow
from tensorpack.models import regularize_cost
from tensorpack.tfutils.gradproc import ScaleGradient
from tensorpack.tfutils.optimizer import apply_grad_processors
from tensorpack.tfutils.sesscreate import NewSessionCreator
from tensorpack.tfutils.tower import get_current_tower_context

from augmentation import EvalSample, TrainSample
from checkpoints import PUBLISHED
from command_line import InputError, cores
from dataset import tops
from pictures import PictureReader, ReaderInWorker
from processes import ProcessMap
from recipe import IMAGE_SIZE, MOMENTUM

ON = 1    # of RewriterConfig.Toggle and of OptimizerOptions.GlobalJitLevel
MEAN, STD = np.float32([0.406, 0.456, 0.485]), np.float32([0.225, 0.224, 0.229])    # of ImageNet, BGR, images in [0, 1]


# ------------------------------------------------------------------------------------------------------------- dataflows

def in_order(function, items, jobs):
    """What `function` returns for each of `items`, in their order: `jobs` threads at a time, and few results kept ready.

    Whoever iterates gets what the function raises. (Tensorpack's MultiThreadMapData mixes the order up, and waits for ever then.)
    """
    pending = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        pool.shutdown()


class ShuffledImages(DataFlow):
    """Endless [path, label, seed]: all images in one order, then all in another; `seed` fixes the orders, and those of the images.

    Step s takes the s-th `batch` of this stream, wherever an epoch of the images ends, and each of `workers` an equal, own
    part of it. So a run that is resumed at `step` sees what it would have seen, and N workers together see what one would.
    """

    def __init__(self, images, seed, batch, step=0, worker=0, workers=1):
        self.images, self.seed, self.batch, self.step, self.worker, self.workers = images, seed, batch, step, worker, workers
        self.share = batch // workers

    def __iter__(self):
        shuffled = None
        for step in itertools.count(self.step):
            start = step * self.batch + self.worker * self.share
            for position in range(start, start + self.share):
                epoch, index = divmod(position, len(self.images))
                if epoch != shuffled:
                    shuffled, order = epoch, np.random.RandomState([self.seed, epoch]).permutation(len(self.images))
                path, label = self.images[order[index]]
                yield [path, label, (self.seed, epoch, index)]


class PictureBatches(DataFlow):
    """DataFlow of [uint8 (batch, size, size, 3), int (batch,)] that worker processes make. What is left out is not in a batch.

    Args:
        items: iterable of what `here` takes.
        batch (int): how many items a batch has, unless fewer are left.
        in_worker, here (EvalSample): for the workers, and for this process, which does again what fails there.
        processes (int): how many workers.
        endless (bool): begin again after the last item, with the same workers.
    """

    def __init__(self, items, batch, in_worker, here, processes, endless=False):
        self.items, self.batch, self.processes, self.endless = items, batch, processes, endless
        self.in_worker, self.here = in_worker, here

    def __len__(self):
        return -(-len(self.items) // self.batch)

    def in_batches(self):
        for _ in itertools.repeat(0) if self.endless else [0]:
            batch = []
            for item in self.items:
                batch.append(tuple(item))
                if len(batch) == self.batch:
                    yield batch
                    batch = []
            if batch:
                yield batch

    def with_results(self):
        """Iterates over (pictures, results): the label of each and the reader's notes, or None where it is left out."""
        reader = self.here.reader
        shape = (reader.image_size, reader.image_size, 3)
        for pictures, results in ProcessMap(self.in_batches(), self.in_worker, self.here, shape, self.batch, self.processes):
            for path, note in itertools.chain.from_iterable(notes for _, notes in filter(None, results)):
                reader.note(path, note)
            yield pictures, results

    def __iter__(self):
        for pictures, results in self.with_results():
            if None in results:
                pictures = pictures[[result is not None for result in results]]
            yield [pictures, np.array([label for label, _ in filter(None, results)], np.int32)]


def train_dataflow(images, smallest_area, processes, reader=None):
    """Endless PictureBatches of a worker's share of a batch.

    Args:
        images (ShuffledImages): what to read.
        smallest_area (float): the smallest share of an image's area that a crop may have.
        reader (PictureReader): has the size. In place of a picture that it leaves out comes one that the random state of the
            datapoint draws. By default one that leaves out none.
    """
    def replace(rng):
        return images.images[rng.randint(len(images.images))]
    reader = reader or PictureReader()
    return PictureBatches(images, images.share, TrainSample(ReaderInWorker(reader), smallest_area),
                          TrainSample(reader, smallest_area, replace), processes)


def eval_dataflow(images, batch, reader=None, processes=None, endless=False):
    """PictureBatches, the last one as small as it must be: validation in training, and evaluation.pool.

    Args:
        images (list of [path, label]): what to read, in this order.
        reader (PictureReader): has the size. By default one that leaves out none.
        processes (int): how many workers, by default one for each core.
    """
    reader = reader or PictureReader()
    return PictureBatches(images, batch, EvalSample(ReaderInWorker(reader)), EvalSample(reader), processes or cores(), endless)


# ----------------------------------------------------------------------------------------------------------------- model

def measured(num_classes):
    """Names of the scalars of ``build_graph`` in training."""
    return ['xentropy-loss', 'weight-decay', 'cost'] + ['train-error-top%d' % k for k in tops(num_classes)]


def balanced_weights(labels, num_classes):
    """A weight for each class, float32 (classes,), by scikit-learn's rule: the number of images by that of an average class."""
    counts = np.bincount(labels, minlength=num_classes)
    return np.float32(len(labels) / (num_classes * np.maximum(counts, 1)))


class ImageNetModel(ModelDesc):
    """Classifier of ImageNet-like images: preprocessing, loss, errors and optimiser. Subclasses give ``get_logits``.

    Args: see ghostnet.GhostNet.
    Attributes: `class_weights`, float32 (classes,), or None, by which the loss of an image is multiplied in training;
    `mixed_precision`, whether the loss is scaled for a graph that `session_creator` has rewritten to float16.
    """

    class_weights, mixed_precision = None, False

    def __init__(self, data_format, lr, weight_decay, label_smoothing, freeze_bn, variant=PUBLISHED, image_size=IMAGE_SIZE):
        super(ImageNetModel, self).__init__()
        self.data_format = data_format
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.freeze_bn = freeze_bn
        self.variant = variant
        self.image_size = image_size

    def get_logits(self, image):
        """Logits, float32 (N, classes), of images as ``image_preprocess`` takes them, or as it returns them."""
        raise NotImplementedError

    def inputs(self):
        size = self.image_size
        return [tf.TensorSpec([None, size, size, 3], tf.uint8, 'input'), tf.TensorSpec([None], tf.int32, 'label')]

    def image_preprocess(self, image):
        """float32 images of mean 0 and deviation 1 over ImageNet, in `data_format`, from uint8 (N, H, W, 3) BGR."""
        image = tf.divide(tf.cast(image, tf.float32) * (1.0 / 255) - tf.constant(MEAN), tf.constant(STD), name='preprocessed')
        return image if self.data_format == 'NHWC' else tf.transpose(image, [0, 3, 1, 2])

    def build_graph(self, image, label):
        """Tensors ``logits``, ``wrong-top1``, ``wrong-top5`` (float32 (N,), 1 where wrong; see `tops`) and ``xentropy-loss``.

        Args:
            image (tf.Tensor): uint8 (N, size, size, 3) BGR.
            label (tf.Tensor): int32 (N,).
        Returns:
            tf.Tensor: the cost, a scalar: ``xentropy-loss`` and, in training, weight decay. What training reports: `measured`.
        """
        logits = tf.identity(self.get_logits(image), name='logits')
        wrong = {k: tf.cast(tf.logical_not(tf.nn.in_top_k(logits, label, k)), tf.float32, name='wrong-top%d' % k)
                 for k in tops(logits.shape.as_list()[-1])}
        xentropy = tf.nn.sparse_softmax_cross_entropy_with_logits(logits=logits, labels=label)
        uniform = -tf.nn.log_softmax(logits)
        training = get_current_tower_context().is_training
        if training and self.class_weights is not None:
            weights = tf.gather(tf.constant(self.class_weights), label)
            xentropy, uniform = weights * xentropy, weights[:, tf.newaxis] * uniform
        smoothing = self.label_smoothing
        loss = tf.add((1 - smoothing) * tf.reduce_mean(xentropy), smoothing * tf.reduce_mean(uniform), name='xentropy-loss')
        if not training:
            return loss
        decay = tf.multiply(regularize_cost('.*/W$', tf.nn.l2_loss, name='l2_loss'), self.weight_decay, name='weight-decay')
        for k, w in wrong.items():
            tf.reduce_mean(w, name='train-error-top%d' % k)
        return tf.add(loss, decay, name='cost')

    def optimizer(self):
        lr = tf.get_variable('learning_rate', initializer=float(self.lr), trainable=False)
        tf.summary.scalar('learning_rate-summary', lr)
        optimizer = tf.train.MomentumOptimizer(lr, MOMENTUM, use_nesterov=True)
        if self.mixed_precision:
            optimizer = loss_scaled(optimizer)
        if self.freeze_bn:
            optimizer = apply_grad_processors(optimizer, [ScaleGradient(('.*/(gamma|beta)', 0), verbose=False)])
        return optimizer


# -------------------------------------------------------------------------------------------------------------- sessions

def session_creator(threads=None, rewrite=True, mixed_precision=False, xla=False):
    """Tensorpack's, which takes a GPU's memory as it is needed, with `threads` (all cores) within an operation, not one.

    Args:
        rewrite (bool): TensorFlow rewrites graphs before they run (Grappler).
        mixed_precision (bool): then also to float16, where that is safe, on GPUs.
        xla (bool): XLA compiles clusters of operations.
    """
    creator = NewSessionCreator()
    creator.config.intra_op_parallelism_threads = threads or cores()
    options = creator.config.graph_options
    options.rewrite_options.disable_meta_optimizer = not rewrite
    if mixed_precision:
        options.rewrite_options.auto_mixed_precision = ON
    if xla:
        options.optimizer_options.global_jit_level = ON
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
