"""A frozen graph as a Keras 3 model of Keras' own layers: one function for each kind of operation that GhostNet has.

Inside, channels are always last. Where Keras' setting is that they come first, so do those of the model's images and maps.
"""
import re

import keras
import tensorflow as tf
from keras import layers

from evaluation.resize import CROP, PIXELS
from tools.export.labels import CLASSES

LAST = 'channels_last'


class Graph:
    """A GraphDef on its way to Keras. `tensors` has what is built already: {name of the node: Keras tensor}."""

    def __init__(self, graph_def):
        self.nodes = {node.name: node for node in graph_def.node}
        self.tensors = {}

    def constant(self, name):
        return tf.make_ndarray(self.nodes[name].attr['value'].tensor)

    def x(self, node):
        """The first input of a node."""
        return self.tensors[node.input[0]]


def concatenate(graph, node, name):
    return layers.Concatenate(name=name)([graph.tensors[other] for other in node.input[:-1]])


def add_or_multiply(graph, node, name):
    """Of two tensors, or of one and a constant."""
    multiply, x, other = node.op == 'Mul', graph.x(node), node.input[1]
    if other in graph.tensors:
        return (layers.Multiply if multiply else layers.Add)(name=name)([x, graph.tensors[other]])
    value = per_channel(graph.constant(other))
    return layers.Rescaling(value, name=name)(x) if multiply else layers.Rescaling(1.0, value, name=name)(x)


def per_channel(value):
    """A constant for Rescaling, which would turn one of a single dimension where Keras has channels first."""
    return value.reshape([1, 1, -1] if value.ndim else []).tolist()


def subtract(graph, node, name):
    return layers.Rescaling(1.0, per_channel(-graph.constant(node.input[1])), name=name)(graph.x(node))


def divide(graph, node, name):
    return layers.Rescaling(per_channel(1 / graph.constant(node.input[1])), name=name)(graph.x(node))


def convolution(graph, node, name):
    """Of a BiasAdd, with the convolution before it."""
    conv = graph.nodes[node.input[0]]
    kernel = graph.constant(conv.input[1])
    options = {'strides': conv.attr['strides'].list.i[1], 'padding': conv.attr['padding'].s.decode().lower(),
               'dilation_rate': (list(conv.attr['dilations'].list.i) or [1, 1])[1], 'data_format': LAST, 'name': name}
    if conv.op == 'Conv2D':
        layer = layers.Conv2D(kernel.shape[3], kernel.shape[:2], **options)
    else:
        layer = layers.DepthwiseConv2D(kernel.shape[:2], depth_multiplier=kernel.shape[3], **options)
    output = layer(graph.x(conv))
    layer.set_weights([kernel, graph.constant(node.input[1])])
    return output


def relu(graph, node, name):
    return layers.ReLU(6.0 if node.op == 'Relu6' else None, name=name)(graph.x(node))


def bound(graph, node, name):
    return getattr(keras.ops, node.op.lower())(graph.x(node), graph.constant(node.input[1]).item())    # minimum or maximum


def gather_channels(graph, node, name):
    return keras.ops.take(graph.x(node), graph.constant(node.input[1]).tolist(), axis=-1)


def first_channels(graph, node, name):
    return graph.x(node)[..., :graph.constant(node.input[2]).tolist()[-1]]


def pad(graph, node, name):
    return layers.ZeroPadding2D(graph.constant(node.input[1])[1:3].tolist(), LAST, name=name)(graph.x(node))


def average(graph, node, name):
    if node.op == 'Mean':
        return layers.GlobalAveragePooling2D(LAST, keepdims=True, name=name)(graph.x(node))
    return layers.AveragePooling2D(node.attr['ksize'].list.i[1:3], data_format=LAST, name=name)(graph.x(node))


# ---------------------------------------------------------------------------------- evaluation's crop, evaluation/resize.py

def operand(graph, name):
    """An input of a node: what is built already, or the numbers of a constant."""
    if name in graph.tensors:
        return graph.tensors[name]
    value = graph.constant(name)
    return value if value.ndim else value.item()


def of_two(function):
    return lambda graph, node, name: function(operand(graph, node.input[0]), operand(graph, node.input[1]))


def of_one(function):
    return lambda graph, node, name: function(graph.x(node))


def side(graph, node, name):
    """Height or width of images, int32 (): the pixels of a line, counted, since Keras' shape is None where it is any."""
    axis = graph.constant(node.input[1]).item()
    images = graph.x(node)
    line = images[0, :, 0, 0] if axis == 1 else images[0, 0, :, 0]
    return keras.ops.sum(keras.ops.ones_like(line, dtype='int32'))


def cast(graph, node, name):
    return keras.ops.cast(graph.x(node), tf.as_dtype(node.attr['DstT'].type).name)


def reshape(graph, node, name):
    return keras.ops.reshape(graph.x(node), graph.constant(node.input[1]).tolist())


def gather(graph, node, name):
    return keras.ops.take(graph.x(node), graph.tensors[node.input[1]], axis=graph.constant(node.input[2]).item())


RESIZE = {
    'Add': of_two(keras.ops.add), 'AddV2': of_two(keras.ops.add), 'Sub': of_two(keras.ops.subtract),
    'Mul': of_two(keras.ops.multiply), 'RealDiv': of_two(keras.ops.divide), 'FloorDiv': of_two(keras.ops.floor_divide),
    'Minimum': of_two(keras.ops.minimum), 'Maximum': of_two(keras.ops.maximum), 'Floor': of_one(keras.ops.floor),
    'Round': of_one(keras.ops.round), 'Shape': of_one(lambda images: images), 'StridedSlice': side, 'Cast': cast,
    'Reshape': reshape, 'GatherV2': gather}

# --------------------------------------------------------------------------------------------------------------- the network

LAYERS = {
    'ConcatV2': concatenate, 'Add': add_or_multiply, 'AddV2': add_or_multiply, 'Mul': add_or_multiply, 'Sub': subtract,
    'RealDiv': divide, 'BiasAdd': convolution, 'Relu': relu, 'Relu6': relu, 'Minimum': bound, 'Maximum': bound,
    'GatherV2': gather_channels, 'Slice': first_channels, 'Pad': pad, 'AvgPool': average, 'Mean': average,
    'Identity': lambda graph, node, name: graph.x(node), 'Cast': lambda graph, node, name: graph.x(node),
    'Squeeze': lambda graph, node, name: layers.Flatten(LAST, name=name)(graph.x(node)),
    'Softmax': lambda graph, node, name: layers.Softmax(name=name)(graph.x(node))}


def with_names(model, texts):
    """`model` with the names of its classes, a list of str or None, as the seed of a last layer ``classes``, a Dropout of rate 0,
    which does nothing: of what Keras keeps when it loads and saves a model, nothing else can hold texts."""
    if texts is None:
        return model
    return keras.Model(model.input, layers.Dropout(0, seed=texts, name=CLASSES)(model.output), name=model.name)


def build(graph_def, outputs, input_name, functions=None):
    """A Keras model of a GraphDef that has one Placeholder. With one output it returns that, else {name: output}.

    `functions`: one for each kind of operation, by default LAYERS.

    Raises:
        NotImplementedError: the graph has an operation that is not among them.
    """
    network = functions or LAYERS
    graph, last = Graph(graph_def), keras.config.image_data_format() == LAST
    for node in graph_def.node:
        functions = RESIZE if node.name.startswith(CROP) else network
        if node.op == 'Placeholder':
            height, width, channels = [size.size if size.size > 0 else None for size in node.attr['shape'].shape.dim[1:]]
            dtype = tf.as_dtype(node.attr['dtype'].type).name
            image = layers.Input((height, width, channels) if last else (channels, height, width), dtype=dtype, name=input_name)
            graph.tensors[node.name] = image if last else layers.Permute((2, 3, 1), name='channels_last')(image)
        elif node.op in functions:
            name = re.sub('^MobileNetV2_', '', node.name.replace('/', '_'))
            graph.tensors[node.name] = functions[node.op](graph, node, name)
            if node.name == PIXELS:    # a model of its own, for names that Keras gives are those of layers of the network
                graph.tensors[PIXELS] = keras.Model(image, graph.tensors[PIXELS], name='crop')(image)
        elif node.op not in ('Const', 'Conv2D', 'DepthwiseConv2dNative'):    # convolutions come with their BiasAdd
            raise NotImplementedError("no Keras layer for the operation %s" % node.op)
    results = {name: graph.tensors[name] for name in outputs}
    if not last:
        results = {name: layers.Permute((3, 1, 2), name=name + '_first')(x) if len(x.shape) == 4 else x
                   for name, x in results.items()}
    return keras.Model(image, results if len(results) > 1 else results[outputs[0]], name='ghostnet')
