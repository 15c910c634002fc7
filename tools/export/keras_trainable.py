"""A graph of constants with its BN as a Keras 3 model that can be trained. `tools.export` runs it, in a process of its own:

    python -m tools.export.keras_trainable GRAPH.pb OUT.keras OUTPUTS DETAILS.json    # those of tools.export.formats

A layer with weights has the name of its variables in a checkpoint without ``MobileNetV2/`` and the last part, and with dots for the
slashes, which Keras does not allow: ``Conv2d_1_up_pointwise.conv1.bn`` has ``MobileNetV2/Conv2d_1_up_pointwise/conv1/bn/gamma`` and
others. tools/keras_weights.py brings them back.
"""
import json
import re
import sys

import tensorflow as tf
from keras import layers

from recipe import RECIPE
from tools.export.child import end_with_parent
from tools.export.formats import INPUT, forget_circumstances
from tools.export.keras_layers import LAST, LAYERS, build, with_names

BN_MOMENTUM = 0.9                            # as in the release; the epsilon is that of the graph
CLASSIFIER = 'Logits.Conv2d_1c_1x1'          # dropout comes before it


def layer_name(variable):
    """The name of the layer that has a variable of the graph."""
    return re.sub('^MobileNetV2[.]', '', variable.rsplit('/', 1)[0].replace('/', '.'))


def convolution(graph, node, name):
    """Of a Conv2D or a DepthwiseConv2dNative; a bias comes with it, if a BiasAdd follows."""
    kernel, name = graph.constant(node.input[1]), layer_name(node.input[1])
    bias = [other.input[1] for other in graph.nodes.values() if other.op == 'BiasAdd' and other.input[0] == node.name]
    options = {'strides': node.attr['strides'].list.i[1], 'padding': node.attr['padding'].s.decode().lower(), 'data_format': LAST,
               'dilation_rate': (list(node.attr['dilations'].list.i) or [1, 1])[1], 'use_bias': bool(bias), 'name': name}
    if node.op == 'Conv2D':
        layer = layers.Conv2D(kernel.shape[3], kernel.shape[:2], **options)
    else:
        layer = layers.DepthwiseConv2D(kernel.shape[:2], depth_multiplier=kernel.shape[3], **options)
    x = graph.x(node)
    if name == CLASSIFIER:
        x = layers.Dropout(1 - RECIPE.dropout_keep_prob, name='dropout')(x)
    output = layer(x)
    layer.set_weights([kernel] + [graph.constant(constant) for constant in bias])
    return output


def batch_norm(graph, node, name):
    layer = layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=float('%.6g' % node.attr['epsilon'].f),
                                      name=layer_name(node.input[1]))
    output = layer(graph.x(node))
    layer.set_weights([graph.constant(constant) for constant in node.input[1:]])    # gamma, beta, mean, variance
    return output


TRAINABLE = dict(LAYERS, Conv2D=convolution, DepthwiseConv2dNative=convolution, BiasAdd=LAYERS['Identity'],
                 FusedBatchNorm=batch_norm, FusedBatchNormV2=batch_norm, FusedBatchNormV3=batch_norm)


def main(graph, out, outputs, details):
    end_with_parent()
    with open(graph, 'rb') as f:
        graph_def = tf.compat.v1.GraphDef.FromString(f.read())
    with open(details) as f:
        texts = json.load(f)['labels']
    with_names(build(graph_def, outputs.split(','), INPUT, TRAINABLE), texts).save(out)
    forget_circumstances(out)


if __name__ == '__main__':
    main(*sys.argv[1:])
