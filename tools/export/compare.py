"""What exports are compared with: the graph of main.py, and what it gives for pictures."""
import glob
import math
import os

from tf_compat import tf

import numpy as np

from augmentation import eval_crop, eval_images
from checkpoints import MODEL_VARIABLE, CheckpointRestore
from command_line import InputError, required
from dataset import find_images, open_tree_of
from evaluation import frozen
from evaluation.throughput import latency
from ghostnet import BACKBONE, from_checkpoint
from imagenet_utils import session_creator
from pictures import read_image
from tools.export.runtimes import batches, results

CALIBRATION, VALIDATION = 50, 1000    # images at most, for int8; docs/export.md has what more of the former cost


def photographs(paths):
    """Pictures, uint8 (H, W, 3) BGR, of files and folders; by default, two that come with scikit-learn, whole and in tiles."""
    if paths:
        return [read_image(path) for path in find_images(paths)]
    folder = os.path.join(os.path.dirname(required('sklearn.datasets').__file__), 'images')
    pictures = [read_image(path) for path in sorted(glob.glob(os.path.join(folder, '*.jpg')))]
    tiles = [tile for picture in pictures for row in np.array_split(picture, 3) for tile in np.array_split(row, 4, axis=1)]
    return pictures + tiles


def tree_images(data_dir, model, restore):
    """Of a tree: images to calibrate with, others of the validation set to compare on, and the labels of those.

    The tree must have as many classes as `model`; they must be those that `restore` records. The former images are of the training
    set; without one, the validation set is shared out.
    """
    tree = open_tree_of(restore, data_dir)
    if len(tree.classes) != model.num_classes:
        raise InputError("the network has %d classes, and %s has %d: name the tree that it is for"
                         % (model.num_classes, data_dir, len(tree.classes)))
    val = tree.images('val')
    if tree.has('train'):
        calibration = tree.images('train')
    else:
        calibration, val = val[::2], val[1::2]
        if not val:
            raise InputError("%s has a single image, and none to compare on: name a tree with more" % data_dir)
    calibration, val = [images[::-(-len(images) // most)] for images, most in ((calibration, CALIBRATION), (val, VALIDATION))]
    both = [eval_images([path for path, _ in images], model.image_size) for images in (calibration, val)]
    return both + [[label for _, label in val]]


def relative_error(result, expected):
    """Of an array to another, in the L2 norm; infinite if one of them is not finite, or the shapes differ."""
    if result.shape != expected.shape or not (np.isfinite(result).all() and np.isfinite(expected).all()):
        return math.inf
    distance, norm = (float(np.linalg.norm(array.ravel())) for array in (result - np.float64(expected), np.float64(expected)))
    return distance / norm if norm else math.inf if distance else 0.0


def difference(results, expected):
    """Compares outputs, both {name: (N, ...)}.

    Returns:
        float, int: the largest relative error of an output, in the L2 norm over all images; for how many of them the top-1 class is
        the same, None if the outputs are no classes.
    """
    error = max(relative_error(results[name], value) for name, value in expected.items())
    name, value = list(expected.items())[0]
    return error, None if value.ndim > 2 else int((results[name].argmax(1) == value.argmax(1)).sum())


class Reference:
    """The network to export, with what it gives for pictures.

    Args:
        args: the flags of tools.export.
    Raises:
        InputError: the checkpoint cannot be read, or gives what is not finite; or see ``tree_images``.
    Attributes:
        photographs (list): what to compare on, as it is in the files: uint8 (H, W, 3) BGR.
        images (dict): {'pictures' and, for int8, 'calibration' and 'tree': uint8 (N, size, size, 3) BGR}.
        expected (dict): for 'pictures' and 'tree', {output: array}.
        labels (list of int): of 'tree'.
        outputs (list of str): the names of the outputs.
        unfolded (bool): whether the export has BN as it is.
        latency (float): of the graph for one image, in seconds.
        session (tf.Session): with the graph of main.py, which takes uint8 BGR images.
    """

    def __init__(self, args):
        self.args, self.unfolded = args, args.trainable or args.format == 'darknet'
        self.restore = CheckpointRestore(args.load, BACKBONE if args.features else MODEL_VARIABLE)
        chosen = {} if args.image_size is None else {'image_size': args.image_size}
        self.model = from_checkpoint(self.restore, args.features, output_stride=args.output_stride, **chosen)
        self.session, self.outputs = self.build()
        graph = self.session.make_callable([name + ':0' for name in self.outputs], [frozen.INPUT + ':0'])
        self.photographs = photographs(args.images)
        crops, self.labels = [eval_crop(picture, self.model.image_size) for picture in self.photographs], None
        self.images = {'pictures': np.stack(crops)}
        if args.int8:
            self.images['calibration'], self.images['tree'], self.labels = tree_images(args.data_dir, self.model, self.restore)
        self.expected = {name: results(graph, self.outputs, batches(pictures)) for name, pictures in self.images.items()
                         if name != 'calibration'}
        for arrays in self.expected.values():
            for name, array in arrays.items():
                if not np.isfinite(array).all():
                    raise InputError("the network of %s gives %s that are not finite: take another checkpoint" % (args.load, name))
        self.latency = latency(lambda: graph(self.images['pictures'][:1]))

    def build(self, **options):
        """A session with the network in its graph, and the names of its outputs. `options`: of ``frozen.build_and_restore``."""
        session = tf.Session(graph=tf.Graph(), config=session_creator().config)
        return session, frozen.build_and_restore(session, self.model, self.restore, softmax=self.args.softmax,
                                                 features=self.args.features, **options)

    def frozen_graph(self):
        """The GraphDef to export."""
        options = {name: getattr(self.args, name) for name in ('raw', 'rgb', 'any_size')}
        session = self.build(**options)[0] if any(options.values()) else self.session
        return frozen.freeze(session, self.outputs, fold=not self.unfolded)

    def inputs(self, name):
        """Of `images`, those called `name` as an export takes them: a list of batches. With --any_size, each is a photograph."""
        if self.args.any_size:
            pictures = [picture[np.newaxis] for picture in self.photographs]
        else:
            pictures = batches(self.images[name])
        if self.args.raw:
            with tf.Graph().as_default(), tf.Session() as session:
                pictures = [session.run(self.model.image_preprocess(tf.constant(batch))) for batch in pictures]
        return [batch[..., ::-1] for batch in pictures] if self.args.rgb else pictures
