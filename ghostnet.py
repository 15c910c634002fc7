"""GhostNet (Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020, table 1) as it was released for TensorFlow.

The variables and their scope ``MobileNetV2`` are those of the published checkpoint. VARIANTS has the GhostNets of other
libraries, whose weights tools/import_weights.py brings in.
"""
import collections
import contextlib
import itertools
import math
import re

from tf_compat import tensors_by_identity, tf

from tensorpack.models import BatchNorm, Conv2D, Dropout
from tensorpack.tfutils.argscope import argscope
from tensorpack.tfutils.tower import PredictTowerContext

from checkpoints import MODEL_VARIABLE, PUBLISHED
from command_line import InputError
from imagenet_utils import ImageNetModel
from myconv2d import (
    ConvBN,
    DepthConv,
    GhostModule,
    SELayer,
    channel_axis,
    global_average,
    kernel_initializer,
    space_axes,
    symmetric_padding,
)
from recipe import IMAGE_SIZE, RECIPE

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
LAST_WIDER = 12                  # the last bottleneck with a 1x1 convolution in its shortcut
HEAD_DEPTH = 1280                # row 18, behind the average pool: the width multiplier does not reach it
LARGEST_WIDTH = 10               # of the width multiplier
CODE_LENGTH = len(ROWS) + 1      # the published code had an entry for every row, though only the bottlenecks use theirs
TOP = ['Logits', 'Conv2d_%d' % len(ROWS), 'Conv2d_%d' % (len(ROWS) - 1)]    # the scopes that a backbone can lack, from the last one


def nearest(depth):
    """A multiple of 4, at least 8, for a depth times the width multiplier."""
    return int(round(max(int(depth), 8) / 4.0) * 4)


def divisible(depth):
    """A multiple of 4 that is at least 90 % of a depth times the width multiplier."""
    channels = max(4, int(depth + 2) // 4 * 4)
    return channels + 4 if channels < 0.9 * depth else channels


# What differs between the GhostNets: padding like PyTorch's where there is a stride; the SE gate; BN in row 18, in place of a
# bias; how numbers of channels are rounded; SE's own ones; whether the factor multiplies what is rounded; whether row 17 is kept
# from being narrower than at width 1.0; whether a shortcut's depthwise convolution is always 3x3, with ReLU.
Variant = collections.namedtuple('Variant', 'symmetric hard_sigmoid head_bn rounded squeezed expand_rounded wide_last shortcut_3x3')
VARIANTS = {
    PUBLISHED: Variant(False, False, True, nearest, lambda channels: channels // 4, False, False, False),
    # the authors' PyTorch release, and timm
    'pytorch': Variant(True, True, False, divisible, lambda channels: divisible(channels / 4), False, False, False),
    # pytorchcv, by osmr
    'imgclsmob': Variant(True, False, True, divisible, lambda channels: channels // 4, True, True, True),
    # iamhankai/ghostnet.pytorch and d-li14/ghostnet.pytorch
    'iamhankai': Variant(True, False, True, divisible, lambda channels: channels // 4, False, False, False),
    'd-li14': Variant(True, False, True, divisible, lambda channels: channels // 4, False, False, True),
}


def bottleneck_code(code, default):
    """`code` as given, or `default` for every bottleneck where it is None or shorter than CODE_LENGTH, as published."""
    if code is None or len(code) < CODE_LENGTH:
        return [default] * CODE_LENGTH
    return list(code)


def multiply_adds(op):
    """Multiply-adds of a tf.Operation for one image, an int: those of a convolution, depthwise or not, of a dense layer, and of
    adding the biases of either; 0 for all else, such as BN and pooling."""
    if op.type not in ('Conv2D', 'DepthwiseConv2dNative', 'MatMul', 'BiasAdd'):
        return 0
    shape, pixels = op.outputs[0].shape.as_list(), 1
    if len(shape) == 4:
        pixels = shape[2] * (shape[1] if op.get_attr('data_format') == b'NHWC' else shape[3])
    return pixels * op.inputs[1].shape.num_elements()    # each weight is used once a pixel


def layer_costs(model):
    """What a model costs: a list of (layer group, multiply-adds, trainable parameters), in the order of the network.

    Multiply-adds are those of convolutions, depthwise ones and biases included, for one image of its size.
    """
    def group(name):
        return re.match(r'MobileNetV2/(Conv2d_\d+|[^/]+)', name).group(1)

    costs = collections.OrderedDict()
    with tf.Graph().as_default() as graph, PredictTowerContext(''):
        model.get_logits(tf.placeholder(tf.uint8, [1, model.image_size, model.image_size, 3]))
        for variable in tf.trainable_variables():
            cost = costs.setdefault(group(variable.op.name), [0, 0])
            cost[1] += variable.shape.num_elements()
        for op in graph.get_operations():
            count = multiply_adds(op)
            if count:
                costs[group(op.name)][0] += count
    return [(name, cost, parameters) for name, (cost, parameters) in costs.items()]


def infer_architecture(shapes, variant=PUBLISHED):
    """The arguments of GhostNet that show in a checkpoint.

    Args:
        shapes (dict): {variable name: shape}.
    Returns:
        dict: num_classes (None without a classifier), width, se, dw_code and ratio_code; None if it is not a GhostNet.
    """
    def shape(name):
        found = shapes.get('MobileNetV2/' + name, ())
        return found if len(found) == 4 and all(found) else None

    head = shape('Logits/Conv2d_1c_1x1/W')
    outputs = {i: shape('Conv2d_%d%s/W' % (i, '' if isinstance(row, Conv) else '_shortcut_1x1')) for i, row in enumerate(ROWS)}
    if not (outputs[len(ROWS) - 1] or outputs[LAST_WIDER]):
        return None
    inner = {i: shape('Conv2d_%d_down_pointwise/conv1/W' % i) for i, row in enumerate(ROWS) if isinstance(row, Bottleneck)}
    cheap = [shape('Conv2d_%d_up_pointwise/dw1/DW' % i) for i, row in enumerate(ROWS) if isinstance(row, Bottleneck)]
    cheap += [cheap[-1]] * (CODE_LENGTH - len(cheap))
    return {
        'num_classes': head and head[-1],
        'width': infer_width({i: kernel[-1] for i, kernel in outputs.items() if kernel},
                             {i: kernel[-2] for i, kernel in inner.items() if kernel}, variant),
        'se': 3 if any('_se/' in n for n in shapes) else 0,
        'dw_code': [kernel[0] if kernel else 3 for kernel in cheap],
        'ratio_code': [kernel[-1] + 1 if kernel else 1 for kernel in cheap]}


def infer_width(channels, expanded, variant):
    """The width multiplier that gives these numbers of channels, {row: int}, or nearly, where none does.

    Several widths round to the same channels: of those, the roundest one.
    """
    # Rounding moves a number of channels by less than 6 (upwards by more, but not above 8), which leaves a narrow range of widths.
    counted = {ROWS[i].depth: count for i, count in channels.items() if not (VARIANTS[variant].wide_last and ROWS[i] is ROWS[-1])}
    low = max([0] + [(count - 6) / depth for depth, count in counted.items() if count > 8])
    high = min([LARGEST_WIDTH] + [(count + 6) / depth for depth, count in counted.items()])
    for parts in (20, 100, 1000):
        for k in range(max(1, int(low * parts)), int(high * parts) + 2):
            model = GhostNet(width=k / parts, variant=variant)
            if all(model.channels(ROWS[i]) == count for i, count in channels.items()) and \
                    all(model.expanded(ROWS[i], ROWS[i - 1].depth) == count for i, count in expanded.items()):
                return k / parts
    return channels[max(channels)] / ROWS[max(channels)].depth


def from_checkpoint(restore, features=False, **options):
    """The GhostNet that `restore`, a CheckpointRestore, has the weights of. `options` are further, or other, arguments of it.

    Raises:
        InputError: it is not a GhostNet, or of a variant that is not among VARIANTS, or, unless only its feature maps will be
            taken, without a classifier.
    """
    known_variant(restore.variant)
    made_with = infer_architecture(restore.shapes, restore.variant)
    if made_with is None:
        raise InputError("the checkpoint %s is not one of a GhostNet" % restore.path)
    if not features:
        need_classifier(restore)
    recorded = {'variant': restore.variant, 'image_size': restore.record.image_size}
    return GhostNet(**dict(dict(made_with, **recorded), **options))


def need_classifier(source):
    """Raises InputError if `source`, a CheckpointRestore or Description, is of a GhostNet without its last layers."""
    made_with = infer_architecture(source.shapes, known_variant(source.record.variant))
    if made_with is not None and made_with['num_classes'] is None:
        raise InputError("the checkpoint %s has no classifier, and so no classes: train one by --train --finetune, or export its "
                         "feature maps by tools.export --features" % source.path)


def absent_top(shapes):
    """Those of TOP that the GhostNet with these variables, {name: shape}, lacks: a list, from the last one on."""
    there = {name.split('/')[1] for name in shapes if name.startswith('MobileNetV2/')}
    return list(itertools.takewhile(lambda scope: scope not in there, TOP))


def all_but(scopes):
    """A pattern for CheckpointRestore: all variables but those in these scopes, a list."""
    return re.compile('^(?!MobileNetV2/(%s)/).*%s' % ('|'.join(scopes), MODEL_VARIABLE.pattern))


BACKBONE = all_but(TOP)    # what `feature_maps` takes


def known_variant(variant):
    """`variant`, if it is one of VARIANTS. Raises InputError if not."""
    if variant not in VARIANTS:
        raise InputError("the variant '%s' is not one of %s" % (variant, ', '.join(sorted(VARIANTS))))
    return variant


class GhostNet(ImageNetModel):
    """GhostNet for images of one size.

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
        variant (str): one of VARIANTS.
        image_size (int): height and width of images, pixels; the weights fit any.
        output_stride (int): 8, 16 or 32. Under 32, the last strides are 1, and what comes behind them is atrous at that rate.
    """

    def __init__(self, num_classes=1000, dw_code=None, ratio_code=None, se=3, data_format='NHWC', width=1.0, lr=RECIPE.lr,
                 weight_decay=RECIPE.weight_decay, dropout_keep_prob=RECIPE.dropout_keep_prob,
                 label_smoothing=RECIPE.label_smoothing, freeze_bn=False, variant=PUBLISHED, output_stride=32,
                 image_size=IMAGE_SIZE):
        super(GhostNet, self).__init__(data_format, lr, weight_decay, label_smoothing, freeze_bn, variant, image_size)
        self.num_classes = num_classes
        self.dw_code = bottleneck_code(dw_code, 3)
        self.ratio_code = bottleneck_code(ratio_code, 2)
        self.se = se
        self.width = width
        self.dropout_keep_prob = dropout_keep_prob
        self.output_stride = output_stride
        self.rules = VARIANTS[variant]

    def scaled(self, depth):
        """Number of channels of a layer of `depth` channels at width 1.0."""
        return self.rules.rounded(depth * self.width)

    def channels(self, row):
        """Number of output channels of one of ROWS."""
        if row is ROWS[-1] and self.rules.wide_last:
            return self.rules.rounded(row.depth * max(self.width, 1))
        return self.scaled(row.depth)

    def expanded(self, row, in_depth):
        """Number of channels within a bottleneck."""
        if self.rules.expand_rounded:
            return int(math.ceil(self.scaled(in_depth) * row.factor))
        return self.scaled(in_depth * row.factor)

    def bottleneck(self, x, name, row, in_depth, dw_size, ratio, stride, rate):
        """Ghost bottleneck (paper, section 3.2, figure 3).

        `in_depth` is the previous row's depth, at width 1.0. `stride` is the row's or 1, `rate` that of its first convolutions.
        """
        shortcut = x
        if row.stride > 1 or row.depth != in_depth:
            plain = self.rules.shortcut_3x3
            shortcut = DepthConv(name + '_shortcut_dw', shortcut, 3 if plain else row.kernel, stride, rate, relu=plain)
            shortcut = ConvBN(name + '_shortcut_1x1', shortcut, self.channels(row), 1, relu=False)
        x = GhostModule(name + '_up_pointwise', x, self.expanded(row, in_depth), dw_size, ratio, relu=True, rate=rate)
        if row.stride > 1:
            x = DepthConv(name + '_depthwise', x, row.kernel, stride, rate)
        if row.se and self.se > 0:
            x = SELayer(name + '_se', x, self.rules.squeezed(x.shape.as_list()[channel_axis(self.data_format)]))
        x = GhostModule(name + '_down_pointwise', x, self.channels(row), dw_size, ratio, relu=False,
                        rate=rate * row.stride // stride)
        return x + shortcut

    @contextlib.contextmanager
    def arg_scope(self):
        """What all layers have in common, and their scope."""
        with argscope([Conv2D, DepthConv, GhostModule, SELayer, BatchNorm], data_format=self.data_format), \
                argscope(Conv2D, kernel_initializer=kernel_initializer), \
                argscope(DepthConv, symmetric=self.rules.symmetric), argscope(SELayer, hard_sigmoid=self.rules.hard_sigmoid), \
                argscope(BatchNorm, training=False if self.freeze_bn else None), tf.variable_scope('MobileNetV2'), \
                tensors_by_identity():
            yield

    def row_outputs(self, image, rows=ROWS):
        """What comes out of each of the first ROWS: a list of tensors. `image` as ``get_logits`` takes it, but of any size."""
        x, in_depth, outputs = self.image_preprocess(image) if image.dtype == tf.uint8 else image, None, []
        codes = iter(zip(self.dw_code, self.ratio_code))
        reached, rate = 1, 1
        for i, row in enumerate(rows):
            name, stride = 'Conv2d_%d' % i, row.stride if reached < self.output_stride else 1
            if isinstance(row, Conv):
                padding = 'SAME'
                if self.rules.symmetric and stride > 1:
                    x, padding = symmetric_padding(x, row.kernel, self.data_format), 'VALID'
                x = ConvBN(name, x, self.channels(row), row.kernel, stride, padding=padding)
            else:
                dw_size, ratio = next(codes)
                x = self.bottleneck(x, name, row, in_depth, dw_size, ratio, stride, rate)
            reached, rate = reached * stride, rate * row.stride // stride
            in_depth = row.depth
            outputs.append(x)
        return outputs

    def get_logits(self, image):
        """Logits, float32 (N, num_classes), of images: uint8 (N, size, size, 3) BGR, or float32 as ``image_preprocess`` returns.

        To be called in a Tensorpack tower context, which says whether BN and dropout are in training.
        """
        with self.arg_scope():
            x = global_average(self.row_outputs(image)[-1], self.data_format)
            head = 'Conv2d_%d' % len(ROWS)
            x = ConvBN(head, x, HEAD_DEPTH, 1) if self.rules.head_bn else Conv2D(head, x, HEAD_DEPTH, 1, activation=tf.nn.relu)
            x = Dropout(x, rate=1.0 - self.dropout_keep_prob)
            with tf.variable_scope('Logits'):
                x = Conv2D('Conv2d_1c_1x1', x, self.num_classes, 1)
            return tf.squeeze(x, space_axes(self.data_format))

    def feature_maps(self, image):
        """The last bottleneck's output at each of the strides 4, 8, 16 and 32, for detection, segmentation or pose.

        Args:
            image (tf.Tensor): as ``get_logits`` takes it, but of any height and width, known to the graph or not.
        Returns:
            OrderedDict: {name of the row: float32 (N, H / stride, W / stride, C)}, sizes rounded up; (N, C, ...) with NCHW.
            With an `output_stride` of 8 or 16, that is the stride of the last ones.

        Like ``get_logits``, to be called in a tower context. ``CheckpointRestore(path, BACKBONE)`` restores what it takes.
        """
        with self.arg_scope():
            outputs = self.row_outputs(image, ROWS[:-1])
        maps, stride = collections.OrderedDict(), 1
        for i, row in enumerate(ROWS[:-1]):
            stride *= row.stride
            following = ROWS[i + 1]
            if stride >= 4 and (following.stride > 1 or isinstance(following, Conv)):
                maps['Conv2d_%d' % i] = outputs[i]
        return maps
