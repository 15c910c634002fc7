"""The layers that GhostNet is made of: depthwise convolution, ghost module (paper, section 3.1), squeeze-and-excitation.

All take and return (N, H, W, C) float32 tensors, (N, C, H, W) with ``data_format='NCHW'``. The names of their variables are
those of the published checkpoint.
"""
import math

from tensorpack.models import BatchNorm, BNReLU, Conv2D, layer_register

from tf_compat import tf


def channel_axis(data_format):
    return 3 if data_format == 'NHWC' else 1


def space_axes(data_format):
    return [1, 2] if data_format == 'NHWC' else [2, 3]


def global_average(x, data_format):
    """Mean over space, 1x1 pixel in the shape of `x`, which must be known.

    By average pooling: it adds up in the same order in all versions of TensorFlow. ``tf.reduce_mean`` does not, and SE gates
    can amplify the difference a hundred times.
    """
    window = [size if axis in space_axes(data_format) else 1 for axis, size in enumerate(x.shape.as_list())]
    return tf.nn.avg_pool(x, window, [1, 1, 1, 1], 'VALID', data_format=data_format)


def kernel_initializer(shape, dtype=tf.float32, partition_info=None):
    """Truncated normal of stddev sqrt(1.3 * 2 / fan_in), fan_in being the product of all dimensions but the last.

    This is TF 1's ``tf.contrib.layers.variance_scaling_initializer(2.0)``. Keras' namesake is another distribution.
    """
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= int(size)
    return tf.truncated_normal(shape, stddev=math.sqrt(1.3 * 2.0 / fan_in), dtype=dtype)


def ConvBN(name, x, filters, kernel_size, stride=1, relu=True):
    """Convolution without bias, BN, and ReLU if asked. Variables: ``W``, ``bn/*``."""
    return Conv2D(name, x, filters, kernel_size, strides=stride, use_bias=False,
                  activation=BNReLU if relu else lambda x: BatchNorm('bn', x))


@layer_register(log_shape=True)
def DepthConv(x, kernel_size, stride=1, multiplier=1, kernel_name='W', relu=False, data_format='NHWC'):
    """Depthwise convolution of each channel to `multiplier` channels, BN, and ReLU if asked.

    Variables: `kernel_name` of shape (kernel_size, kernel_size, C, multiplier); ``bn/*`` with ReLU, ``output/*`` without.
    """
    channels = x.shape.as_list()[channel_axis(data_format)]
    kernel = tf.get_variable(kernel_name, [kernel_size, kernel_size, channels, multiplier], initializer=kernel_initializer)
    strides = [1, stride, stride, 1] if data_format == 'NHWC' else [1, 1, stride, stride]
    x = tf.nn.depthwise_conv2d(x, kernel, strides, 'SAME', data_format=data_format)
    return BNReLU(x) if relu else BatchNorm('output', x)


@layer_register(log_shape=True)
def GhostModule(x, filters, dw_size, ratio, relu, data_format='NHWC'):
    """`filters` channels: ceil(filters / ratio) by a 1x1 convolution, the rest from those by a depthwise one of `dw_size`."""
    primary_filters = int(math.ceil(filters / float(ratio)))
    primary = ConvBN('conv1', x, primary_filters, 1, relu=relu)
    if ratio == 1:
        return primary
    cheap = DepthConv('dw1', primary, dw_size, multiplier=ratio - 1, kernel_name='DW', relu=relu)
    kept = [-1, -1, -1, -1]
    kept[channel_axis(data_format)] = filters - primary_filters
    return tf.concat([primary, tf.slice(cheap, [0, 0, 0, 0], kept)], channel_axis(data_format))


@layer_register(log_shape=True)
def SELayer(x, data_format='NHWC'):
    """Squeeze-and-excitation to a quarter of the channels, with the gate clipped to [0, 1] (paper, section 4.1)."""
    channels = x.shape.as_list()[channel_axis(data_format)]
    gate = Conv2D('fc1', global_average(x, data_format), channels // 4, 1, activation=tf.nn.relu)
    gate = Conv2D('fc2', gate, channels, 1)
    return x * tf.clip_by_value(gate, 0.0, 1.0)
