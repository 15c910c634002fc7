"""The networks that `tools.compare` measures: what is published of each, and how it is made, in a process of its own:

    python -m tools.compare.networks NAME RUNTIME BATCH,BATCH FOLDER [CHECKPOINT]

writes the network as a model of RUNTIME for each of these numbers of pictures into FOLDER (see `model_file`), and prints its
multiply-adds. All take float32 pictures (N, 224, 224, 3) that are preprocessed and return logits. The weights are random, but for
those of a GhostNet's CHECKPOINT, whose pictures are of the size that it was trained at; NAME is then any.
"""
import collections
import os
import sys

from command_line import quiet_stderr, required, run
from tools.export.child import end_with_parent

CLASSES = 1000


# Builders: functions of a placeholder in the default graph that return logits, (N, CLASSES).

def ghostnet(width):
    def build(image):
        from tensorpack.tfutils.tower import PredictTowerContext

        from command_line import quiet_tensorpack
        from ghostnet import GhostNet
        quiet_tensorpack()
        with PredictTowerContext(''):
            return GhostNet(width=width).get_logits(image)
    return build


def application(name, alpha, **options):
    """One of keras.applications."""
    def build(image):
        from tensorflow.keras import applications
        model = getattr(applications, name)(image.shape[1:], alpha, weights=None, classifier_activation=None, **options)
        return model(image, training=False)
    return build


def tf2cv(module, function, *args):
    """What a function, or class, of a module of tf2cv.models gives."""
    def build(image):
        model = getattr(required('tf2cv.models.' + module), function)(*args, classes=CLASSES)
        return model(image, training=False)
    return build


def shufflenet(*channels):
    """With the paper's channels: tf2cv's own function for 1.5 widens the last convolution too, which costs 19 M more."""
    return tf2cv('shufflenetv2b', 'ShuffleNetV2b', [[n] * units for n, units in zip(channels, (4, 8, 4))], 24, 1024)


# Where top-1 and multiply-adds were published, and where they were read.
Source = collections.namedtuple('Source', 'published read')
# `family` and `size` are its name. `top1` is a percentage on ImageNet, `millions` of multiply-adds is None where the source has
# none. `build` is one of the builders, None for a checkpoint.
Network = collections.namedtuple('Network', 'family size top1 millions source build')
THERE = 'there'
GHOSTNET = Source('Han et al., "GhostNet", CVPR 2020, table 7', 'a list of its results, Papers with Code; the paper was not opened')
SLIM = Source("the authors' readme, tensorflow/models on GitHub, research/slim/nets/mobilenet", THERE)
SHUFFLENET = Source("the authors' readme, megvii-model/ShuffleNet-Series on GitHub, ShuffleNetV2; errors", THERE)
FBNET = Source("the authors' readme, facebookresearch/mobile-vision on GitHub, commit 4826a08; float32", THERE)
MNASNET = Source("the authors' readme, mingxingtan/mnasnet on GitHub", THERE)
PROXYLESS = Source("the authors' readme, mit-han-lab/proxylessnas on GitHub", THERE)
PROXYLESS_2018 = Source("the authors' readme of 2018, mit-han-lab/proxylessnas on GitHub", 'copies of it in forks')
EFFICIENTNET = Source('Tan and Le, "EfficientNet", arXiv 1905.11946v1, table 2', 'a transcript; the paper was not opened')
_RAW = {'include_preprocessing': False}
NETWORKS = [
    Network('GhostNet', '0.5', 66.2, 42, GHOSTNET, ghostnet(0.5)),
    Network('GhostNet', '1.0', 73.9, 141, GHOSTNET, ghostnet(1.0)),
    Network('GhostNet', '1.3', 75.7, 226, GHOSTNET, ghostnet(1.3)),
    Network('MobileNetV2', '1.0', 71.8, 300, SLIM, application('MobileNetV2', 1.0)),
    Network('MobileNetV2', '1.4', 75.0, 582, SLIM, application('MobileNetV2', 1.4)),
    Network('MobileNetV3-Small', '0.75', 65.4, 44, SLIM, application('MobileNetV3Small', 0.75, **_RAW)),
    Network('MobileNetV3-Small', '1.0', 67.5, 66, SLIM, application('MobileNetV3Small', 1.0, **_RAW)),
    Network('MobileNetV3-Large', '0.75', 73.3, 155, SLIM, application('MobileNetV3Large', 0.75, **_RAW)),
    Network('MobileNetV3-Large', '1.0', 75.2, 217, SLIM, application('MobileNetV3Large', 1.0, **_RAW)),
    Network('ShuffleNetV2', '0.5', 61.1, 41, SHUFFLENET, shufflenet(48, 96, 192)),
    Network('ShuffleNetV2', '1.0', 69.4, 146, SHUFFLENET, shufflenet(116, 232, 464)),
    Network('ShuffleNetV2', '1.5', 72.6, 299, SHUFFLENET, shufflenet(176, 352, 704)),
    Network('FBNet', 'C', 74.9, 383, FBNET, tf2cv('fbnet', 'fbnet_cb')),    # "Cb": with another epsilon in BN
    Network('MnasNet', 'A1', 75.2, 312, MNASNET, tf2cv('mnasnet', 'mnasnet_a1')),
    Network('ProxylessNAS', 'mobile', 74.6, 320, PROXYLESS_2018, tf2cv('proxylessnas', 'proxylessnas_mobile')),
    Network('ProxylessNAS', 'GPU', 75.1, None, PROXYLESS, tf2cv('proxylessnas', 'proxylessnas_gpu')),
    Network('EfficientNet', 'B0', 76.3, 390, EFFICIENTNET, tf2cv('efficientnet', 'efficientnet_b0'))]


def name_of(network):
    """Such as 'GhostNet 1.0'."""
    return ('%s %s' % (network.family, network.size)).strip()


def model_file(folder, name, batch):
    """Where a network's model for `batch` pictures at once is."""
    return os.path.join(folder, '%s, batch %d' % (name, batch))


# --------------------------------------------------------------------------------------- in a process for each network

def frozen_graph(build, load):
    """A network with random weights, or that of the checkpoint `load`, as constants, whose BN is left for the converters to fold.

    Returns:
        GraphDef, and str: from ``input``, for any number of pictures, to the logits, and the name of those.
        int: height and width of its pictures.
    """
    from tf_compat import tf

    from checkpoints import CheckpointRestore
    from evaluation import frozen
    from ghostnet import from_checkpoint
    from recipe import IMAGE_SIZE
    size = IMAGE_SIZE
    with tf.Session(graph=tf.Graph()) as session:
        if load is not None:
            restore = CheckpointRestore(load)
            model = from_checkpoint(restore)
            size = model.image_size
            output, = frozen.build_and_restore(session, model, restore, raw=True)
        else:
            tf.set_random_seed(0)
            logits = build(tf.placeholder(tf.float32, [None, size, size, 3], name=frozen.INPUT))
            output = tf.identity(logits).op.name
            session.run(tf.global_variables_initializer())
        return frozen.freeze(session, [output], fold=False), output, size


def to_tflite(tf, graph, image, logits, out):
    """Writes a TFLite model."""
    with tf.Session(graph=graph) as session, quiet_stderr:
        model = tf.lite.TFLiteConverter.from_session(session, [image], [logits]).convert()
    with open(out, 'wb') as f:
        f.write(model)


def for_tf2onnx(tf, graph):
    """The GraphDef of what tf2onnx can convert to NCHW as a whole.

    It would leave transpositions at the addition of a scalar and at a mean that drops its axes, and so slow some of the networks.
    """
    graph_def = graph.as_graph_def()
    for node in list(graph_def.node):
        if node.op == 'Const' and node.attr['dtype'].type == tf.float32.as_datatype_enum:
            shape = node.attr['value'].tensor.tensor_shape
            if not shape.dim:
                shape.dim.add(size=1)
        elif node.op == 'Mean' and not node.attr['keep_dims'].b:    # over the height and width
            mean = graph_def.node.add()
            mean.CopyFrom(node)
            mean.name += '/kept'
            mean.attr['keep_dims'].b = True
            del node.input[:], node.attr['Tidx'], node.attr['keep_dims']
            node.op, node.input[:] = 'Squeeze', [mean.name]
            node.attr['squeeze_dims'].list.i[:] = [1, 2]
    return graph_def


def to_onnx(tf, graph, image, logits, out):
    """Writes an ONNX model."""
    from tools.export import formats
    formats.to_onnx(for_tf2onnx(tf, graph), [logits.op.name], out, {'rgb': False, 'labels': None})


CONVERTERS = collections.OrderedDict([('tflite', to_tflite), ('onnx', to_onnx)])


def write_models(args):
    """Writes the models, and prints the multiply-adds."""
    end_with_parent()
    name, runtime, batches, folder = args[:4]
    from tf_compat import tf

    from evaluation import frozen
    from ghostnet import multiply_adds
    load = args[4] if len(args) > 4 else None
    build = None if load else {name_of(network): network for network in NETWORKS}[name].build
    graph_def, output, size = frozen_graph(build, load)
    for batch in map(int, batches.split(',')):
        with tf.Graph().as_default() as graph:    # with a size that is known, TFLite leaves all operators to XNNPACK
            image = tf.placeholder(tf.float32, [batch, size, size, 3], name=frozen.INPUT)
            logits, = tf.import_graph_def(graph_def, {frozen.INPUT: image}, [output + ':0'], name='')
        CONVERTERS[runtime](tf, graph, image, logits, model_file(folder, name, batch))
    print(sum(map(multiply_adds, graph.get_operations())))


if __name__ == '__main__':
    run(write_models, sys.argv[1:], 'tools.compare.networks')
