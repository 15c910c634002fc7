"""GhostNet in Darknet: a cfg, which lists the layers, and a file with their weights.

``Layout`` has the sections of the cfg, and which variables belong to each. ``write`` goes by it, and so does tools/read_darknet.py.
What Darknet lacks is built from what it has, so that the network computes the same, and every variable can be had back as it was:

- Pictures are RGB / 255 there. A first convolution takes the mean away and divides by the deviation.
- Padding is the same on all sides. TensorFlow's SAME with stride 2, which on even sizes has one less in front than behind, is a
  kernel that is one larger, its first row and column zero; on odd sizes, with one more on all sides.
- Of activations, OpenCV has only ReLU and its like: clip(x, 0, 1) = relu(1 - relu(1 - x)).
- The epsilon of BN is 1e-5 in AlexeyAB's Darknet, 1e-6 in OpenCV, and outside of the root in the first Darknet. So the variance has
  ours added and is multiplied by SCALE ** 2, besides which those are nothing, and gamma by SCALE.
"""
import collections
import os
import struct

import numpy as np

from command_line import InputError
from ghostnet import HEAD_DEPTH, ROWS, Conv
from imagenet_utils import MEAN, STD
from tools.export import labels

CFG, WEIGHTS, LABELS = 'ghostnet.cfg', 'ghostnet.weights', 'labels.list'
SCOPE = 'MobileNetV2/'
EPSILON, SCALE = 1e-5, 2.0 ** 13    # of BN, as Tensorpack has it
BN = ('beta', 'gamma', 'mean/EMA', 'variance/EMA')    # in the order of Darknet
HEADER = struct.pack('<iiiQ', 0, 2, 5, 0)    # a version, and how many pictures it has seen
CLASS, VARIANCE = '# class ', '# variance '    # comments, with what no section can hold: `write` has more

Section = collections.namedtuple('Section', 'kind keys weights')    # `weights`, a Weights or None, are those of a convolution
# `kernel` is the name of a variable or an array; `norm` the scope of a BN, the name of a bias or an array. `shape` is that of
# Darknet's kernel, (filters, channels of a group, size, size), and `padded` whether its first row and column are zero.
Weights = collections.namedtuple('Weights', 'kernel norm shape groups padded')


def is_bn(norm):
    return isinstance(norm, str) and not norm.endswith('/b')


class Layout(object):
    """The sections of a GhostNet's cfg, ``sections``. Raises InputError where Darknet cannot express it.

    Args:
        model (GhostNet): the network.
        softmax (bool): whether it ends with probabilities.
    """

    def __init__(self, model, softmax=False):
        self.model, self.sections = model, []
        self.channels, self.side = 3, model.image_size    # of what the next section gets
        self.add('net', batch=1, subdivisions=1, width=self.side, height=self.side, channels=3)
        mean, std = np.array(MEAN, 'f8')[::-1], np.array(STD, 'f8')[::-1]    # BGR as RGB
        self.constant(1 / std, -mean / std)
        codes = iter(zip(model.dw_code, model.ratio_code))
        in_depth = None
        for i, row in enumerate(ROWS):
            name = '%sConv2d_%d' % (SCOPE, i)
            if isinstance(row, Conv):
                self.convolution(name + '/W', name + '/bn', model.channels(row), row.kernel, row.stride, relu=True)
            else:
                self.bottleneck(name, row, in_depth, *next(codes))
            in_depth = row.depth
        self.add('avgpool')
        head, logits = '%sConv2d_%d' % (SCOPE, len(ROWS)), SCOPE + 'Logits/Conv2d_1c_1x1'
        self.convolution(head + '/W', head + ('/bn' if model.rules.head_bn else '/b'), HEAD_DEPTH, relu=True)
        self.convolution(logits + '/W', logits + '/b', model.num_classes)
        if softmax:
            self.add('softmax', groups=1)

    def add(self, kind, weights=None, **keys):
        """Appends a section. Returns its number, as other sections refer to it: the one behind [net] has 0."""
        self.sections.append(Section(kind, {key: str(value) for key, value in keys.items()}, weights))
        return len(self.sections) - 2

    def convolution(self, kernel, norm, filters, size=1, stride=1, depthwise=False, relu=False):
        """A convolution with a BN or a bias, as Weights has them, and a ReLU if asked."""
        groups = self.channels if depthwise else 1
        padded = stride > 1 and not self.model.rules.symmetric
        keys = collections.OrderedDict([('batch_normalize', 1)] if is_bn(norm) else [])
        keys.update([('filters', filters), ('size', size + padded), ('stride', stride),
                     ('padding', size // 2 + (padded and self.side % 2))])
        if depthwise:
            keys['groups'] = groups
        keys['activation'] = 'relu' if relu else 'linear'
        shape = (filters, self.channels // groups, size + padded, size + padded)
        self.channels, self.side = filters, -(-self.side // stride)
        return self.add('convolutional', Weights(kernel, norm, shape, groups, padded), **keys)

    def constant(self, slope, offset, relu=False):
        """slope * x + offset, of each channel."""
        self.convolution(np.array(slope, np.float32), np.array(offset, np.float32), self.channels, depthwise=True, relu=relu)

    def ghost(self, name, filters, dw_size, ratio, relu):
        """A ghost module (paper, section 3.1)."""
        what = "%s, where its %d channels have a ratio of %d and a kernel of %d" % (name[len(SCOPE):], filters, ratio, dw_size)
        if filters % ratio:
            raise InputError("Darknet has no such network: the ratio must divide the channels, unlike in " + what)
        if ratio > 1 and dw_size % 2 == 0:
            raise InputError("Darknet has no such network: the kernel must be odd, unlike in " + what)
        primary = filters // ratio
        self.convolution(name + '/conv1/W', name + '/conv1/bn', primary, relu=relu)
        if ratio > 1:
            self.convolution(name + '/dw1/DW', name + ('/dw1/bn' if relu else '/dw1/output'), filters - primary, dw_size,
                             depthwise=True, relu=relu)
            self.add('route', layers='-2,-1')
            self.channels = filters

    def gate(self, name, squeezed):
        """Squeeze-and-excitation by `squeezed` channels."""
        before, channels = len(self.sections) - 2, self.channels
        self.add('avgpool')
        self.convolution(name + '/fc1/W', name + '/fc1/b', squeezed, relu=True)
        self.convolution(name + '/fc2/W', name + '/fc2/b', channels)
        # relu6(x + 3) / 6 = clip(x / 6 + 0.5, 0, 1)
        slope, offset = (1 / 6.0, 0.5) if self.model.rules.hard_sigmoid else (1.0, 0.0)
        self.constant([-slope] * channels, [1 - offset] * channels, relu=True)
        self.constant([-1] * channels, [1] * channels, relu=True)
        self.add('scale_channels', **{'from': before})

    def bottleneck(self, name, row, in_depth, dw_size, ratio):
        """A ghost bottleneck, as ``GhostNet.bottleneck``."""
        model, shortcut, entered = self.model, len(self.sections) - 2, (self.channels, self.side)
        if row.stride > 1 or row.depth != in_depth:
            plain = model.rules.shortcut_3x3
            self.convolution(name + '_shortcut_dw/W', name + '_shortcut_dw/' + ('bn' if plain else 'output'), self.channels,
                             3 if plain else row.kernel, row.stride, depthwise=True, relu=plain)
            entry, shortcut = shortcut, self.convolution(name + '_shortcut_1x1/W', name + '_shortcut_1x1/bn', model.channels(row))
            self.add('route', layers=entry)
            self.channels, self.side = entered
        self.ghost(name + '_up_pointwise', model.expanded(row, in_depth), dw_size, ratio, relu=True)
        if row.stride > 1:
            self.convolution(name + '_depthwise/W', name + '_depthwise/output', self.channels, row.kernel, row.stride,
                             depthwise=True)
        if row.se and model.se > 0:
            self.gate(name + '_se', model.rules.squeezed(self.channels))
        self.ghost(name + '_down_pointwise', model.channels(row), dw_size, ratio, relu=False)
        self.add('shortcut', **{'from': shortcut, 'activation': 'linear'})


# ----------------------------------------------------------------------------------------------------------------- kernels

STEM = SCOPE + 'Conv2d_0/W'


def to_darknet(value, weights):
    """A kernel of ours, (H, W, C, filters) or depthwise (H, W, C, multiplier), in Darknet's shape, (filters, C / groups, H, W)."""
    height, width = value.shape[:2]
    value = value.transpose(2, 3, 0, 1).reshape(-1, 1, height, width) if weights.groups > 1 else value.transpose(3, 2, 0, 1)
    if weights.kernel == STEM:
        value = value[:, ::-1]    # it takes BGR
    return np.pad(value, [(0, 0), (0, 0), (1, 0), (1, 0)], 'constant') if weights.padded else value


def to_ours(value, weights):
    """The inverse of `to_darknet`. Raises ValueError if what must be zero is not."""
    if weights.padded:
        if value[:, :, 0].any() or value[:, :, :, 0].any():
            raise ValueError
        value = value[:, :, 1:, 1:]
    if weights.kernel == STEM:
        value = value[:, ::-1]
    if weights.groups > 1:
        return value.reshape((weights.groups, -1) + value.shape[2:]).transpose(2, 3, 0, 1)
    return value.transpose(2, 3, 1, 0)


def stored_variance(variance):
    """A variance, float32, as a weights file has it."""
    with np.errstate(over='ignore'):    # `write` sees it
        return ((variance.astype('f8') + EPSILON) * SCALE ** 2).astype('f4')


def stated_variance(stored):
    """The inverse of `stored_variance`, but for rounding, which a small variance may not survive."""
    return (stored.astype('f8') / SCALE ** 2 - EPSILON).astype('f4')


def differing(one, other):
    """Where two arrays of float32 have other bits."""
    return np.flatnonzero(np.ascontiguousarray(one).view(np.uint32) != np.ascontiguousarray(other).view(np.uint32))


# ------------------------------------------------------------------------------------------------------------------- write

def write(folder, layout, values, classes):
    """Writes CFG, WEIGHTS and LABELS into a folder.

    Args:
        values (dict): {variable: float32 array}.
        classes (list): [(name, words), ...] as a checkpoint records them, or None.

    Comments in the cfg keep what has no other place: names of classes where LABELS has what they mean, and variances that are not
    the same after `stored_variance` and back.
    """
    lines = labels.as_lines(labels.labels(classes) or labels.numbered(layout.model.num_classes))
    names = [name for name, _ in classes] if any(words for _, words in classes or []) else []
    text, arrays = [], []
    for section in layout.sections:
        text.append('[%s]' % section.kind)
        text.extend('%s=%s' % pair for pair in section.keys.items())
        if section.kind == 'net':
            text.extend(CLASS + line for line in labels.as_lines(names).decode().split('\n')[:-1])
        weights = section.weights
        if weights is not None:
            if is_bn(weights.norm):
                beta, gamma, mean, variance = [values[weights.norm + '/' + leaf] for leaf in BN]
                stored = stored_variance(variance)
                text.extend('%s%d %s' % (VARIANCE, i, float(variance[i]).hex())
                            for i in differing(stated_variance(stored), variance))
                arrays += [beta, gamma.astype('f8') * SCALE, mean, stored]
            else:
                arrays.append(weights.norm if isinstance(weights.norm, np.ndarray) else values[weights.norm])
            kernel = weights.kernel
            arrays.append(kernel if isinstance(kernel, np.ndarray) else to_darknet(values[kernel], weights))
            if not all((np.abs(array) <= np.finfo('f4').max).all() for array in arrays[-5:]):
                raise InputError("Darknet has no such network: gamma or variance is too large at %s" % weights.norm)
        text.append('')
    for name, content in (CFG, '\n'.join(text).encode()), (LABELS, lines):
        with open(os.path.join(folder, name), 'wb') as f:
            f.write(content)
    with open(os.path.join(folder, WEIGHTS), 'wb') as f:
        f.write(HEADER)
        for array in arrays:
            f.write(np.ascontiguousarray(array, '<f4').tobytes())
