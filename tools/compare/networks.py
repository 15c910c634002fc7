"""The networks that `tools.compare` measures: what is published of each, and how it is made, in a process of its own:

    python -m tools.compare.networks NAME RUNTIME BATCH,BATCH FOLDER [CHECKPOINT]

writes the network as a model of RUNTIME for each of these numbers of pictures into FOLDER (see `model_file`), and prints its
multiply-adds. All take float32 pictures (N, 224, 224, 3) that are preprocessed and return logits. The weights are random, but for
those of a GhostNet's CHECKPOINT; NAME is then any.
"""
import collections
import os
import sys

from command_line import required, run
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
    build.needs_tf2cv = True
    return build


def shufflenet(*channels):
    """With the paper's channels: tf2cv's own function for 1.5 widens the last convolution too, which costs 19 M more."""
    return tf2cv('shufflenetv2b', 'ShuffleNetV2b', [[n] * units for n, units in zip(channels, (4, 8, 4))], 24, 1024)


# `family` and `size` are its name. Published are `top1`, a percentage on ImageNet, and `millions` of multiply-adds, None where the
# source has none; `source` says where they were read. `build` is one of the builders, None for a checkpoint.
Network = collections.namedtuple('Network', 'family size top1 millions source build')
GHOSTNET = 'Han et al., "GhostNet", CVPR 2020, table 7; read as Papers with Code lists it'
SLIM = 'tensorflow/models on GitHub, research/slim/nets/mobilenet/README.md'
SHUFFLENET = 'megvii-model/ShuffleNet-Series on GitHub, ShuffleNetV2/README.md'
FBNET = 'facebookresearch/mobile-vision on GitHub, README.md of commit 4826a08, float32; tf2cv\'s "FBNet-Cb", another epsilon in BN'
MNASNET = 'mingxingtan/mnasnet on GitHub, README.md'
PROXYLESS = 'mit-han-lab/proxylessnas on GitHub, README.md'
EFFICIENTNET = 'Tan and Le, "EfficientNet", arXiv 1905.11946v1, table 2; read in a transcript, Mycenae/PaperWeekly on GitHub'
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
    Network('FBNet', 'C', 74.9, 383, FBNET, tf2cv('fbnet', 'fbnet_cb')),
    Network('MnasNet', 'A1', 75.2, 312, MNASNET, tf2cv('mnasnet', 'mnasnet_a1')),
    Network('ProxylessNAS', 'mobile', 74.6, 320, PROXYLESS + ' of 2018, read in a fork, CFAndy/ProxylessNAS',
            tf2cv('proxylessnas', 'proxylessnas_mobile')),
    Network('ProxylessNAS', 'GPU', 75.1, None, PROXYLESS, tf2cv('proxylessnas', 'proxylessnas_gpu')),
    Network('EfficientNet', 'B0', 76.3, 390, EFFICIENTNET, tf2cv('efficientnet', 'efficientnet_b0'))]


def name_of(network):
    """Such as 'GhostNet 1.0'."""
    return '%s %s' % (network.family, network.size)


def model_file(folder, name, batch):
    """Where a network's model for `batch` pictures at once is."""
    return os.path.join(folder, '%s, batch %d' % (name, batch))


# --------------------------------------------------------------------------------------- in a process for each network

def frozen_graph(build, load):
    """The GraphDef of constants from ``input``, for any number of pictures, to the logits, and the name of those. BN is not folded:
    converters do that."""
    from tf_compat import tf

    from augmentation import IMAGE_SIZE
    from checkpoints import CheckpointRestore
    from evaluation import frozen
    from ghostnet import from_checkpoint
    with tf.Session(graph=tf.Graph()) as session:
        if load is not None:
            restore = CheckpointRestore(load)
            output, = frozen.build_and_restore(session, from_checkpoint(restore), restore, raw=True)
        else:
            tf.set_random_seed(0)
            logits = build(tf.placeholder(tf.float32, [None, IMAGE_SIZE, IMAGE_SIZE, 3], name=frozen.INPUT))
            output = tf.identity(logits).op.name
            session.run(tf.global_variables_initializer())
        return frozen.freeze(session, [output], fold=False), output


def to_tflite(tf, graph, image, logits):
    from command_line import quiet_stderr
    with tf.Session(graph=graph) as session, quiet_stderr:
        return tf.lite.TFLiteConverter.from_session(session, [image], [logits]).convert()


def to_onnx(tf, graph, image, logits):
    convert, graph_def = required('tf2onnx').convert, graph.as_graph_def()
    for node in graph_def.node:    # tf2onnx fails to move transpositions past the addition of a scalar, and then leaves all of them
        shape = node.attr['value'].tensor.tensor_shape
        if node.op == 'Const' and node.attr['dtype'].type == tf.float32.as_datatype_enum and not shape.dim:
            shape.dim.add(size=1)
    model, _ = convert.from_graph_def(graph_def, input_names=[image.name], output_names=[logits.name], opset=18)
    return model.SerializeToString()


CONVERTERS = collections.OrderedDict([('tflite', to_tflite), ('onnx', to_onnx)])


def write_models(args):
    """Writes the models, and prints the multiply-adds."""
    end_with_parent()
    name, runtime, batches, folder = args[:4]
    from tf_compat import tf

    from augmentation import IMAGE_SIZE
    from evaluation import frozen
    from ghostnet import multiply_adds
    load = args[4] if len(args) > 4 else None
    build = None if load else {name_of(network): network for network in NETWORKS}[name].build
    graph_def, output = frozen_graph(build, load)
    for batch in map(int, batches.split(',')):
        with tf.Graph().as_default() as graph:    # with a size that is known, TFLite leaves all operators to XNNPACK
            image = tf.placeholder(tf.float32, [batch, IMAGE_SIZE, IMAGE_SIZE, 3])
            logits, = tf.import_graph_def(graph_def, {frozen.INPUT: image}, [output + ':0'], name='')
        with open(model_file(folder, name, batch), 'wb') as f:
            f.write(CONVERTERS[runtime](tf, graph, image, logits))
    print(sum(map(multiply_adds, graph.get_operations())))


if __name__ == '__main__':
    run(write_models, sys.argv[1:], 'tools.compare.networks')
