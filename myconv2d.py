"""The layers that GhostNet is made of: depthwise convolution, ghost module (paper, section 3.1), squeeze-and-excitation.

All take and return (N, H, W, C) float32 tensors, (N, C, H, W) with ``data_format='NCHW'``. The names of their variables are
those of the published checkpoint.
"""
import math

from tf_compat import tf

from tensorpack.models import BatchNorm, BNReLU, Conv2D, layer_register


def channel_axis(data_format):
    return 3 if data_format == 'NHWC' else 1


def space_axes(data_format):
    return [1, 2] if data_format == 'NHWC' else [2, 3]


def global_average(x, data_format):
    """Mean over space, 1x1 pixel.

    By average pooling: it adds up in the same order in all versions of TensorFlow. ``tf.reduce_mean``, for images of a size that
    the graph does not know, does not, and SE gates can amplify the difference a hundred times.
    """
    window = [size if axis in space_axes(data_format) else 1 for axis, size in enumerate(x.shape.as_list())]
    if None in window:
        return tf.reduce_mean(x, space_axes(data_format), keepdims=True)
    return tf.nn.avg_pool(x, window, [1, 1, 1, 1], 'VALID', data_format=data_format)


def kernel_initializer(shape, dtype=tf.float32, partition_info=None):
    """Truncated normal of stddev sqrt(1.3 * 2 / fan_in), fan_in being the product of all dimensions but the last.

    This is TF 1's ``tf.contrib.layers.variance_scaling_initializer(2.0)``. Keras' namesake is another distribution.
    """
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= int(size)
    return tf.truncated_normal(shape, stddev=math.sqrt(1.3 * 2.0 / fan_in), dtype=dtype)


def symmetric_padding(x, kernel_size, data_format):
    """`x` with kernel_size // 2 zeros on each side: with a stride, TensorFlow's SAME would have fewer in front than behind."""
    sides = [[kernel_size // 2] * 2 if axis in space_axes(data_format) else [0, 0] for axis in range(4)]
    return tf.pad(x, sides)


def ConvBN(name, x, filters, kernel_size, stride=1, relu=True, padding='SAME'):
    """Convolution without bias, BN, and ReLU if asked. Variables: ``W``, ``bn/*``."""
    return Conv2D(name, x, filters, kernel_size, strides=stride, use_bias=False, padding=padding,
                  activation=BNReLU if relu else lambda x: BatchNorm('bn', x))


@layer_register(log_shape=True)
def DepthConv(x, kernel_size, stride=1, rate=1, multiplier=1, kernel_name='W', relu=False, symmetric=False, data_format='NHWC'):
    """Depthwise convolution of each channel to `multiplier` channels, BN, and ReLU if asked.

    With a `rate` over 1 it is atrous, and its stride must be 1. `symmetric`: padding as PyTorch's.
    Variables: `kernel_name` of shape (kernel_size, kernel_size, C, multiplier); ``bn/*`` with ReLU, ``output/*`` without.
    """
    channels = x.shape.as_list()[channel_axis(data_format)]
    kernel = tf.get_variable(kernel_name, [kernel_size, kernel_size, channels, multiplier], initializer=kernel_initializer)
    strides = [1, stride, stride, 1] if data_format == 'NHWC' else [1, 1, stride, stride]
    padding = 'SAME'
    if symmetric and stride > 1:
        x, padding = symmetric_padding(x, kernel_size, data_format), 'VALID'
    x = tf.nn.depthwise_conv2d(x, kernel, strides, padding, rate=[rate, rate] if rate > 1 else None, data_format=data_format)
    return BNReLU(x) if relu else BatchNorm('output', x)


@layer_register(log_shape=True)
def GhostModule(x, filters, dw_size, ratio, relu, rate=1, data_format='NHWC'):
    """`filters` channels: ceil(filters / ratio) by a 1x1 convolution, the rest from those by a depthwise one of `dw_size`."""
    primary_filters = int(math.ceil(filters / float(ratio)))
    primary = ConvBN('conv1', x, primary_filters, 1, relu=relu)
    if ratio == 1:
        return primary
    cheap = DepthConv('dw1', primary, dw_size, rate=rate, multiplier=ratio - 1, kernel_name='DW', relu=relu)
    if filters % ratio:
        kept = [-1, -1, -1, -1]
        kept[channel_axis(data_format)] = filters - primary_filters
        cheap = tf.slice(cheap, [0, 0, 0, 0], kept)
    return tf.concat([primary, cheap], channel_axis(data_format))


@layer_register(log_shape=True)
def SELayer(x, squeezed, hard_sigmoid=False, data_format='NHWC'):
    """Squeeze-and-excitation by `squeezed` channels, with the gate clipped to [0, 1] (paper, section 4.1), or relu6(x + 3) / 6."""
    gate = Conv2D('fc1', global_average(x, data_format), squeezed, 1, activation=tf.nn.relu)
    gate = Conv2D('fc2', gate, x.shape.as_list()[channel_axis(data_format)], 1)
    return x * (tf.nn.relu6(gate + 3.0) / 6.0 if hard_sigmoid else tf.clip_by_value(gate, 0.0, 1.0))
