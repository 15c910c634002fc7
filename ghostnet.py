"""GhostNet (Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020, table 1) as it was released for TensorFlow.

The variables and their scope ``MobileNetV2`` are those of the published checkpoint.
"""
import collections
import re

from tensorpack.models import BatchNorm, Conv2D, Dropout
from tensorpack.tfutils.argscope import argscope
from tensorpack.tfutils.tower import PredictTowerContext

from imagenet_utils import IMAGE_SIZE, ImageNetModel
from myconv2d import ConvBN, DepthConv, GhostModule, SELayer, global_average, kernel_initializer, space_axes
from tf_compat import tf

Conv = collections.namedtuple('Conv', 'kernel stride depth')
Bottleneck = collections.namedtuple('Bottleneck', 'kernel stride depth factor se')    # factor: expanded width / input width

ROWS = [
    Conv(3, 2, 16),
    Bottleneck(3, 1, 16, 1, False),
    Bottleneck(3, 2, 24, 48 / 16, False),
    Bottleneck(3, 1, 24, 72 / 24, False),
    Bottleneck(5, 2, 40, 72 / 24, True),
    Bottleneck(5, 1, 40, 120 / 40, True),
    Bottleneck(3, 2, 80, 240 / 40, False),
    Bottleneck(3, 1, 80, 200 / 80, False),
    Bottleneck(3, 1, 80, 184 / 80, False),
    Bottleneck(3, 1, 80, 184 / 80, False),
    Bottleneck(3, 1, 112, 480 / 80, True),
    Bottleneck(3, 1, 112, 672 / 112, True),
    Bottleneck(5, 2, 160, 672 / 112, True),
    Bottleneck(5, 1, 160, 960 / 160, False),
    Bottleneck(5, 1, 160, 960 / 160, True),
    Bottleneck(5, 1, 160, 960 / 160, False),
    Bottleneck(5, 1, 160, 960 / 160, True),
    Conv(1, 1, 960),
]
HEAD_DEPTH = 1280                # row 18, behind the average pool: the width multiplier does not reach it
CODE_LENGTH = len(ROWS) + 1      # the published code had an entry for every row, though only the bottlenecks use theirs


def bottleneck_code(code, default):
    """`code` as given, or `default` for every bottleneck where it is None or shorter than CODE_LENGTH, as published."""
    if code is None or len(code) < CODE_LENGTH:
        return [default] * CODE_LENGTH
    return list(code)


def layer_costs(model):
    """What a model costs: a list of (layer group, multiply-adds, trainable parameters), in the order of the network.

    Multiply-adds are those of convolutions, depthwise ones and biases included, for one image of 224x224 pixels.
    """
    def group(name):
        return re.match(r'MobileNetV2/(Conv2d_\d+|[^/]+)', name).group(1)

    costs = collections.OrderedDict()
    with tf.Graph().as_default() as graph, PredictTowerContext(''):
        size = [1, IMAGE_SIZE, IMAGE_SIZE, 3]
        model.get_logits(tf.placeholder(tf.uint8, size))
        for variable in tf.trainable_variables():
            cost = costs.setdefault(group(variable.op.name), [0, 0])
            cost[1] += variable.shape.num_elements()
        for op in graph.get_operations():
            if op.type in ('Conv2D', 'DepthwiseConv2dNative', 'BiasAdd'):    # each uses its weights once a pixel
                shape = op.outputs[0].shape.as_list()
                pixels = shape[1] * shape[2] if model.data_format == 'NHWC' else shape[2] * shape[3]
                costs[group(op.name)][0] += pixels * op.inputs[1].shape.num_elements()
    return [(name, multiply_adds, parameters) for name, (multiply_adds, parameters) in costs.items()]


def architecture(shapes):
    """The arguments of GhostNet that show in a checkpoint: `shapes` is {variable name: shape}, None if it is no GhostNet."""
    def shape(name):
        return shapes.get('MobileNetV2/' + name)

    last, head = shape('Conv2d_%d/W' % (len(ROWS) - 1)), shape('Logits/Conv2d_1c_1x1/W')
    if last is None or head is None:
        return None
    cheap = [shape('Conv2d_%d_up_pointwise/dw1/DW' % i) for i, row in enumerate(ROWS) if isinstance(row, Bottleneck)]
    cheap += [cheap[-1]] * (CODE_LENGTH - len(cheap))
    return {
        'num_classes': head[-1], 'width': last[-1] / ROWS[-1].depth, 'se': 3 if any('_se/' in n for n in shapes) else 0,
        'dw_code': [kernel[0] if kernel else 3 for kernel in cheap],
        'ratio_code': [kernel[-1] + 1 if kernel else 1 for kernel in cheap]}


class GhostNet(ImageNetModel):
    """GhostNet for images of 224x224 pixels.

    Args:
        num_classes (int): length of the logits.
        dw_code, ratio_code (list of int): kernel size of the cheap operations, and ratio of all to primary channels, of
            each bottleneck in order. A list shorter than 19 means 3 and 2 everywhere.
        se (int): squeeze-and-excitation in the rows that have it, if greater than 0.
        data_format (str): 'NHWC' or 'NCHW', inside the network; images come in NHWC always.
        width (float): width multiplier.
        lr (float): initial value of the variable ``learning_rate``.
        weight_decay (float): factor of half the sum of the squared kernels.
        dropout_keep_prob (float): probability of keeping an input of the last layer in training.
        label_smoothing (float): share of the target that is spread over all classes.
        freeze_bn (bool): in training too, BN uses its stored statistics, and none of its variables change.
    """

    def __init__(self, num_classes=1000, dw_code=None, ratio_code=None, se=3, data_format='NHWC', width=1.0, lr=0.1,
                 weight_decay=4e-5, dropout_keep_prob=0.8, label_smoothing=0.1, freeze_bn=False):
        super(GhostNet, self).__init__(data_format, lr, weight_decay, label_smoothing, freeze_bn)
        self.num_classes = num_classes
        self.dw_code = bottleneck_code(dw_code, 3)
        self.ratio_code = bottleneck_code(ratio_code, 2)
        self.se = se
        self.width = width
        self.dropout_keep_prob = dropout_keep_prob

    def scaled(self, depth):
        """Number of channels of a layer of `depth` channels at width 1.0: a multiple of 4, at least 8."""
        return int(round(max(int(depth * self.width), 8) / 4.0) * 4)

    def bottleneck(self, x, name, row, in_depth, dw_size, ratio):
        """Ghost bottleneck (paper, section 3.2, figure 3). `in_depth` is the previous row's depth, at width 1.0."""
        shortcut = x
        if row.stride > 1 or row.depth != in_depth:
            shortcut = DepthConv(name + '_shortcut_dw', shortcut, row.kernel, row.stride)
            shortcut = ConvBN(name + '_shortcut_1x1', shortcut, self.scaled(row.depth), 1, relu=False)
        x = GhostModule(name + '_up_pointwise', x, self.scaled(in_depth * row.factor), dw_size, ratio, relu=True)
        if row.stride > 1:
            x = DepthConv(name + '_depthwise', x, row.kernel, row.stride)
        if row.se and self.se > 0:
            x = SELayer(name + '_se', x)
        x = GhostModule(name + '_down_pointwise', x, self.scaled(row.depth), dw_size, ratio, relu=False)
        return x + shortcut

    def get_logits(self, image):
        """Logits, float32 (N, num_classes), of images: uint8 (N, 224, 224, 3) BGR, or float32 as ``image_preprocess`` returns.

        To be called in a Tensorpack tower context, which says whether BN and dropout are in training.
        """
        if image.dtype == tf.uint8:
            image = self.image_preprocess(image)
        with argscope([Conv2D, DepthConv, GhostModule, SELayer, BatchNorm], data_format=self.data_format), \
                argscope(Conv2D, kernel_initializer=kernel_initializer), \
                argscope(BatchNorm, training=False if self.freeze_bn else None), tf.variable_scope('MobileNetV2'):
            x, in_depth = image, None
            codes = iter(zip(self.dw_code, self.ratio_code))
            for i, row in enumerate(ROWS):
                name = 'Conv2d_%d' % i
                if isinstance(row, Conv):
                    x = ConvBN(name, x, self.scaled(row.depth), row.kernel, row.stride)
                else:
                    dw_size, ratio = next(codes)
                    x = self.bottleneck(x, name, row, in_depth, dw_size, ratio)
                in_depth = row.depth
            x = global_average(x, self.data_format)
            x = ConvBN('Conv2d_%d' % len(ROWS), x, HEAD_DEPTH, 1)
            x = Dropout(x, rate=1.0 - self.dropout_keep_prob)
            with tf.variable_scope('Logits'):
                x = Conv2D('Conv2d_1c_1x1', x, self.num_classes, 1)
            return tf.squeeze(x, space_axes(self.data_format))
