"""A checkpoint's network as one graph of constants, with BN folded into the convolutions: what is exported and deployed."""
from tf_compat import tf

import numpy as np
from tensorpack.tfutils.tower import PredictTowerContext

from evaluation.resize import evaluation_crop

INPUT, LOGITS, PROBABILITIES = 'input', 'logits', 'probabilities'


def named_outputs(model, image, softmax=False, features=False):
    """Builds a network on images, and names its outputs. Returns the names, a list of str; see build_and_restore."""
    if features:
        outputs = model.feature_maps(image)
    elif softmax:
        outputs = {PROBABILITIES: tf.nn.softmax(model.get_logits(image))}
    else:
        outputs = {LOGITS: model.get_logits(image)}
    for name, tensor in outputs.items():
        tf.identity(tensor, name=name)
    return list(outputs)


def build_and_restore(session, model, restore, raw=False, rgb=False, softmax=False, features=False,
                      any_size=False):
    """Builds a network in the session's graph, and restores its variables.

    Args:
        model (GhostNet): the network.
        restore (CheckpointRestore): its checkpoint; for `features`, with the pattern ghostnet.BACKBONE.
        raw (bool): the placeholder ``input`` takes float32 images as ``image_preprocess`` returns them, not uint8 ones.
        rgb (bool): its channels are RGB, not BGR.
        softmax (bool): output ``probabilities``, not ``logits``; both are (N, classes).
        features (bool): output ``GhostNet.feature_maps``, for images (N, H, W, 3) of any size, not of the model's.
        any_size (bool): images (N, H, W, 3) of any size are resized and cropped as evaluation does; not for `raw` and `features`.
    Returns:
        list of str: names of the outputs.
    Raises:
        CheckpointMismatch: see CheckpointRestore.
    """
    size = None if features or any_size else model.image_size
    with session.graph.as_default(), PredictTowerContext(''):
        image = tf.placeholder(tf.float32 if raw else tf.uint8, [None, size, size, 3], name=INPUT)
        if any_size:
            image = evaluation_crop(image, model.image_size)
        if rgb:
            image = tf.gather(image, [2, 1, 0], axis=3)
        outputs = named_outputs(model, image, softmax, features)
        restore.init(session)
    return outputs


def freeze(session, outputs, fold=True):
    """The GraphDef from ``input`` to `outputs`, with constants for variables, BN folded or, without `fold`, as it is, and no
    attribute that an older TensorFlow does not know (if it has its default)."""
    graph_def = tf.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), outputs)
    graph_def = tf.graph_util.extract_sub_graph(fold_batch_norm(graph_def) if fold else graph_def, outputs)
    graph_def = tf.graph_util.remove_training_nodes(graph_def, outputs)    # Identity
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name='')
        return tf.train.export_meta_graph(strip_default_attrs=True, clear_devices=True).graph_def


def fold_batch_norm(graph_def):
    """`graph_def` with the scale of every BN in the kernel of the convolution before it, and a BiasAdd in its place."""
    nodes = {node.name: node for node in graph_def.node}
    folded = tf.GraphDef()
    folded.CopyFrom(graph_def)
    result = {node.name: node for node in folded.node}

    def value(name):
        node = nodes[name]
        while node.op == 'Identity':    # the reading of a variable
            node = nodes[node.input[0]]
        return tf.make_ndarray(node.attr['value'].tensor).astype(np.float64)

    def constant(name, array):
        node = folded.node.add(name=name, op='Const')
        node.attr['dtype'].type = tf.float32.as_datatype_enum
        node.attr['value'].tensor.CopyFrom(tf.make_tensor_proto(array.astype(np.float32)))
        return name

    for norm in graph_def.node:
        if not norm.op.startswith('FusedBatchNorm'):
            continue
        gamma, beta, mean, variance = [value(name) for name in norm.input[1:]]
        scale = gamma / np.sqrt(variance + norm.attr['epsilon'].f)
        convolution = nodes[norm.input[0]]
        if convolution.op == 'BatchToSpaceND':    # of an atrous one
            convolution = nodes[convolution.input[0]]
        kernel = value(convolution.input[1])
        depthwise = convolution.op == 'DepthwiseConv2dNative'
        result[convolution.name].input[1] = constant(
            convolution.name + '/kernel', kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale))
        bias = result[norm.name]
        bias.Clear()
        bias.name, bias.op = norm.name, 'BiasAdd'
        bias.input.extend([norm.input[0], constant(norm.name + '/bias', beta - mean * scale)])
        bias.attr['T'].type = tf.float32.as_datatype_enum
        bias.attr['data_format'].CopyFrom(norm.attr['data_format'])
    return folded


def with_dilations(graph_def, outputs):
    """`graph_def` with the attribute ``dilations`` in place of SpaceToBatchND and BatchToSpaceND around depthwise convolutions.

    Other runtimes compute this faster. TensorFlow 1.13.1 must not have it: on CPUs, it ignores the attribute.
    """
    nodes = {node.name: node for node in graph_def.node}
    rewritten = tf.GraphDef()
    for node in graph_def.node:
        convolution = rewritten.node.add()
        convolution.CopyFrom(node)
        if node.op == 'BatchToSpaceND':
            inner = nodes[node.input[0]]
            outer = nodes[inner.input[0]]    # SpaceToBatchND
            convolution.CopyFrom(inner)
            convolution.name, convolution.input[0] = node.name, outer.input[0]
            rate = tf.make_ndarray(nodes[outer.input[1]].attr['value'].tensor)
            convolution.attr['dilations'].list.i[:] = [1] + rate.tolist() + [1]
            convolution.attr['padding'].s = b'SAME'
    return tf.graph_util.extract_sub_graph(rewritten, outputs)
