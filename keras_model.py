"""GhostNet as a Keras 3 model, for programs that run eagerly: a classifier, or a backbone for detection, segmentation or pose.

    from keras_model import GhostNet
    backbone = GhostNet('models/ghostnet_checkpoint', include_top=False, output_stride=8)

It is built from the graph of ghostnet.py, whose table it shares. ``python -m tools.import_weights --from keras`` turns its weights
into a checkpoint.
"""
import random

from tf_compat import need_version_2, tf

from tensorpack.tfutils.tower import PredictTowerContext

import ghostnet
from checkpoints import MODEL_VARIABLE, CheckpointRestore
from command_line import InputError, quiet_tensorpack
from evaluation import frozen


def keras_on_tensorflow():
    """Keras 3, imported. Raises InputError where it is missing, or computes with something else than TensorFlow."""
    need_version_2("keras_model")
    try:
        import keras
        chosen = keras.config.backend()
    except ImportError as error:
        raise InputError("Keras 3 cannot be imported (%s): set KERAS_BACKEND=tensorflow, or leave it out" % error)
    if chosen != 'tensorflow':
        raise InputError("Keras computes with %s here: set KERAS_BACKEND=tensorflow, or leave it out" % chosen)
    return keras


def network_of(weights, include_top, classes, width, output_stride):
    """The network, a ghostnet.GhostNet, and the CheckpointRestore of its weights, or None."""
    if weights is None:
        return ghostnet.GhostNet(classes or 1000, width=width or 1.0, output_stride=output_stride), None
    restore = CheckpointRestore(weights, MODEL_VARIABLE if include_top else ghostnet.BACKBONE)
    model = ghostnet.from_checkpoint(restore, features=not include_top, output_stride=output_stride)
    for name, asked, there in ('classes', include_top and classes, model.num_classes), ('width', width, model.width):
        if asked and asked != there:
            raise InputError("the checkpoint %s has %s=%g, not %g: leave the argument out" % (restore.path, name, there, asked))
    return model, restore


def graph_of(model, restore, include_top, rgb, seed):
    """The network as a GraphDef with constants for variables, and the names of its outputs."""
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session, PredictTowerContext(''):
        tf.set_random_seed(seed)
        image = tf.placeholder(tf.float32, [None, None, None, 3], name=frozen.INPUT)
        image = model.image_preprocess(tf.gather(image, [2, 1, 0], axis=3) if rgb else image)
        outputs = frozen.named_outputs(model, image, features=not include_top)
        session.run(tf.global_variables_initializer())
        if restore is not None:
            restore.init(session)
        return frozen.with_dilations(frozen.freeze(session, outputs, fold=False), outputs), outputs


def GhostNet(weights=None, include_top=True, classes=None, width=None, output_stride=32, freeze_bn=False, rgb=True):
    """GhostNet for images of any size, as those of keras.applications.

    It takes the values of pixels, from 0 to 255, uint8 or float32 (N, H, W, 3), and preprocesses them itself; with
    ``keras.config.image_data_format()`` 'channels_first', (N, 3, H, W), and its maps are likewise.

    Args:
        weights (str): checkpoint, or None for the published initial values (``keras.utils.set_random_seed`` fixes them).
        include_top (bool): whether it returns logits, float32 (N, classes). If not, {name of the row: float32 (N, H / stride,
            W / stride, C)}, the maps of ``ghostnet.GhostNet.feature_maps`` at strides 4, 8, 16 and 32, sizes rounded up.
        classes (int), width (float): number of classes and width multiplier; by default those of `weights`, else 1000 and 1.0.
        output_stride (int): 8, 16 or 32, the stride of the last maps: under 32, by atrous convolution.
        freeze_bn (bool): whether BN keeps its statistics, scale and offset in training.
        rgb (bool): whether the channels are RGB, as in Keras' own pipelines, or BGR, as OpenCV reads them.
    Returns:
        keras.Model: its layers have the names of the checkpoint's variables, as those of ``tools.export --trainable``.
    Raises:
        InputError: there is no Keras 3 on TensorFlow; the checkpoint cannot be read, or is not of that network.
    """
    keras = keras_on_tensorflow()
    if output_stride not in (8, 16, 32):
        raise InputError("output_stride is %s: choose 8, 16 or 32" % output_stride)
    quiet_tensorpack()
    from tools.export.keras_layers import build
    from tools.export.keras_trainable import TRAINABLE
    model, restore = network_of(weights, include_top, classes, width, output_stride)
    seed = random.randrange(1 << 31)    # as Keras takes its own
    graph_def, outputs = graph_of(model, restore, include_top, rgb, seed)
    built = build(graph_def, outputs, frozen.INPUT, TRAINABLE)
    for layer in built.layers:
        if freeze_bn and isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return built
