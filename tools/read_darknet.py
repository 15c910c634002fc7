"""Reads back what tools.export has written for Darknet: a cfg, whose sections must be those of a GhostNet, and then the weights.

The files are read by this code alone, and how much it takes follows from their sizes: they need not be trusted.
"""
import collections
import itertools
import os
import re

import numpy as np

from checkpoints import PUBLISHED, finite_weights
from command_line import InputError
from ghostnet import LARGEST_WIDTH, ROWS, GhostNet, infer_architecture
from recipe import IMAGE_SIZE, IMAGE_SIZES
from tools.darknet import (
    BN,
    CLASS,
    HEADER,
    LABELS,
    SCALE,
    SCOPE,
    VARIANCE,
    Layout,
    is_bn,
    stated_variance,
    stored_variance,
    to_ours,
)
from tools.export import labels

LARGEST_FILE, MOST_SECTIONS, MOST_KEYS = 1 << 23, 500, 50    # bytes of a text; a GhostNet's cfg has 180 sections, in 12 kB
INPUT_KEYS = ('width', 'height', 'channels')    # what matters of [net]; programs add to it how to train
Found = collections.namedtuple('Found', 'kind keys line')    # a section of a cfg, and where it begins


def read_text(path, what):
    """The bytes of a file. Raises InputError if it is larger than LARGEST_FILE; `what` is the largest that it may be."""
    if os.path.getsize(path) > LARGEST_FILE:
        raise InputError("%s is larger than any %s: name another" % (path, what))
    with open(path, 'rb') as f:
        return f.read(LARGEST_FILE)


def parse(path):
    """The sections of a cfg, a list of Found, and its comments.

    Returns:
        list, list, dict: the sections; the names of the classes; {number of a section: {channel: its variance}}.
    Raises:
        InputError: it is no cfg, or one without end.
    """
    if not os.path.isfile(path):
        raise InputError("there is no file %s" % path)
    content = read_text(path, 'cfg of a GhostNet')
    found, classes, variances = [], [], {}
    try:
        for number, line in enumerate(content.split(b'\n'), 1):
            line = line.decode()
            if line.startswith(CLASS):
                classes.append(line[len(CLASS):])
                continue
            line = line.strip()
            if not line.replace('\t', ' ').isprintable():
                raise ValueError
            if line.startswith('['):
                found.append(Found(line[1:line.index(']')].strip(), {}, number))
            elif line.startswith(VARIANCE):
                channel, value = line[len(VARIANCE):].split()
                variances.setdefault(len(found) - 1, {})[int(channel[:9])] = float.fromhex(value)
            elif line and line[0] not in '#;':
                key, value = line.split('=', 1)
                found[-1].keys[key.strip()] = value.strip()
            if len(found) > MOST_SECTIONS or found and len(found[-1].keys) > MOST_KEYS:
                raise ValueError
    except (ValueError, IndexError, OverflowError):
        raise InputError("%s is no cfg of Darknet, or damaged, in line %d: get it again" % (path, number))
    return found, classes, variances


def integer(section, key):
    """The value of a key, 999,999,999 if it is larger. Raises KeyError, ValueError."""
    value = section.keys[key]
    if not re.match('[0-9]+$', value):
        raise ValueError
    return int(value) if len(value) < 10 else 10 ** 9 - 1


def architecture(found):
    """The GhostNet, and whether softmax follows, that sections of a cfg look like: by the numbers that differ between GhostNets."""
    softmax, size = bool(found) and found[-1].kind == 'softmax', IMAGE_SIZE
    try:
        if IMAGE_SIZES[0] <= integer(found[0], 'width') <= IMAGE_SIZES[1]:
            size = integer(found[0], 'width')
        convolutions = [section for section in found if section.kind == 'convolutional']
        ends = [i for i, section in enumerate(found) if section.kind == 'shortcut'][:len(ROWS) - 2]
        ends_of_net = {'Conv2d_0': convolutions[1], 'Conv2d_17': found[ends[-1] + 1], 'Logits/Conv2d_1c_1x1': convolutions[-1]}
        kernel = {name: (1, 1, 1, integer(section, 'filters')) for name, section in ends_of_net.items()}
        variant = PUBLISHED
        if integer(convolutions[1], 'size') % 2:    # its padding is symmetric
            variant = 'imgclsmob' if 'batch_normalize' in convolutions[-2].keys else 'pytorch'
        for i, (start, end) in enumerate(zip([3] + [end + 1 for end in ends], ends), 1):
            block, name = found[start:end], 'Conv2d_%d_' % i
            for at, section in enumerate(block):
                if section.kind == 'route' and ',' not in section.keys['layers']:    # behind the layers of the shortcut
                    kernel[name + 'shortcut_1x1'] = (1, 1, 1, integer(block[at - 1], 'filters'))
                    block = block[at + 1:]
                    break
            primary, cheap = integer(block[0], 'filters'), 0
            if 'groups' in block[1].keys and block[2].kind == 'route':
                cheap = integer(block[1], 'filters')
                kernel[name + 'up_pointwise/dw1'] = (integer(block[1], 'size'),) * 2 + (primary, cheap // primary)
            kernel[name + 'down_pointwise/conv1'] = (1, 1, primary + cheap, 1)
            if any(section.kind == 'scale_channels' for section in block):
                kernel[name + 'se/fc1'] = (1, 1, 1, 1)
        shapes = {SCOPE + name + ('/DW' if name.endswith('/dw1') else '/W'): shape for name, shape in kernel.items()}
        options = infer_architecture(shapes, variant)
        if options is not None and 0 < options['width'] <= LARGEST_WIDTH:
            return GhostNet(variant=variant, image_size=size, **options), softmax
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        pass
    return GhostNet(image_size=size), softmax


def compare(found, layout, path):
    """Raises InputError, with the first section that differs, if the sections of a cfg are not those of a layout."""
    model = layout.model
    for ours, theirs in itertools.zip_longest(layout.sections, found):
        if ours is None or theirs is None:
            difference = "[%s] is %s" % ((ours or theirs).kind[:50], 'missing at the end' if ours else 'one too many')
        elif ours.kind != theirs.kind:
            difference = "[%s], where [%s] is in the GhostNet" % (theirs.kind[:50], ours.kind)
        else:
            keys, expected = [{key: value for key, value in section.keys.items() if ours.kind != 'net' or key in INPUT_KEYS}
                              for section in (theirs, ours)]
            if keys == expected:
                continue
            key = [key for key in sorted(set(keys) | set(expected)) if keys.get(key) != expected.get(key)][0]
            difference = "[%s] with %s %s, %s in the GhostNet" % (
                ours.kind, key[:50], keys.get(key, 'absent')[:50], expected.get(key, 'absent'))
        where = ' in line %d' % theirs.line if theirs else ''
        raise InputError("%s is not what tools.export writes of a GhostNet, such as one of width %g and the variant '%s': the "
                         "first section that differs is%s: %s" % (path, model.width, model.variant, where, difference))


class Reader(object):
    """The arrays of a weights file, one after the other. Raises InputError if it is not exactly as long as `layout` asks for."""

    def __init__(self, path, layout):
        if not os.path.isfile(path):
            raise InputError("there is no file %s: it belongs beside the cfg" % path)
        count = 0
        for weights in filter(None, [section.weights for section in layout.sections]):
            filters, channels, height, width = weights.shape
            count += filters * (channels * height * width + (len(BN) if is_bn(weights.norm) else 1))
        expected, size = len(HEADER) + 4 * count, os.path.getsize(path)
        if size != expected:
            raise InputError("%s has %d bytes, and its cfg asks for %d: it is %s, or of another network" % (
                path, size, expected, 'truncated' if size < expected else 'too long'))
        with open(path, 'rb') as f:
            header = f.read(len(HEADER))
            self.rest = np.frombuffer(f.read(4 * count), '<f4')
        if header[:8] != HEADER[:8] or len(self.rest) != count:
            raise InputError("%s does not begin as weights of Darknet 0.2 do: get it again" % path)

    def take(self, *shape):
        count = int(np.prod(shape))
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken.reshape(shape)


def read_weights(path, layout, found, variances):
    """{variable: float32 array} of a weights file. Raises InputError: it is not one of that layout.

    `found` and `variances` are what its cfg has, as of `parse`.
    """
    reader, values = Reader(path, layout), {}

    def demand_equal(expected, array):
        if not np.array_equal(np.ravel(expected), np.ravel(array)):
            raise ValueError

    for number, section in enumerate(layout.sections):
        weights = section.weights
        if weights is None:
            continue
        try:
            if is_bn(weights.norm):
                values.update(read_bn(reader, weights, variances.get(number, {})))
            elif isinstance(weights.norm, np.ndarray):
                demand_equal(weights.norm, reader.take(weights.shape[0]))
            else:
                values[weights.norm] = reader.take(weights.shape[0])
            kernel = reader.take(*weights.shape)
            if isinstance(weights.kernel, np.ndarray):
                demand_equal(weights.kernel, kernel)
            else:
                values[weights.kernel] = to_ours(kernel, weights)
        except (ValueError, IndexError):
            raise InputError("%s does not go with its cfg: the convolution in line %d there has values that tools.export does not "
                             "write" % (path, found[number].line))
    return finite_weights(values, path)


def read_bn(reader, weights, variances):
    """The variables of a BN, {name: float32 array}. Raises ValueError, IndexError: it has not the `variances`, {channel: value}."""
    arrays = {leaf: reader.take(weights.shape[0]) for leaf in BN}
    stored = arrays['variance/EMA']
    with np.errstate(all='ignore'):    # of what is refused
        variance = stated_variance(stored)
        for channel, value in variances.items():
            variance[channel] = value
        again = stored_variance(variance)
        arrays.update({'gamma': arrays['gamma'] / np.float32(SCALE), 'variance/EMA': variance})
    finite = np.isfinite(stored)
    if (stored <= 0).any() or any(again[channel] != stored[channel] for channel in variances if finite[channel]):
        raise ValueError
    return {weights.norm + '/' + leaf: array for leaf, array in arrays.items()}


def read_classes(path, names, count):
    """The classes to record, [(name, words), ...], from LABELS and the names in the cfg; None if they are not known.

    Raises:
        InputError: they are not as many as the network has, or two are the same.
    """
    texts = names
    if os.path.isfile(path):
        try:
            texts = labels.from_lines(read_text(path, 'list of classes'))
        except UnicodeError:
            raise InputError("%s is not in UTF-8: save it so" % path)
    if not texts or texts == labels.numbered(count):
        return None
    if len(names) != len(texts):    # of another program, or none were needed
        names = texts
    if not len(texts) == len(set(names)) == count:
        raise InputError("%s has %d names of classes, %d of them different, and the network %d classes: give each a line of its own"
                         % (path, len(texts), len(set(names)), count))
    return labels.classes_of(names, texts)


def read(path):
    """What tools.export wrote: a cfg, with the weights under its own name and LABELS beside it.

    Returns:
        dict, GhostNet, list: {variable: float32 array}, the network, its classes as a checkpoint records them or None.
    Raises:
        InputError: one of the files cannot be read, or is another network's.
    """
    found, names, variances = parse(path)
    model, softmax = architecture(found)
    layout = Layout(model, softmax)
    compare(found, layout, path)
    values = read_weights(re.sub('[.]cfg$', '', path) + '.weights', layout, found, variances)
    return values, model, read_classes(os.path.join(os.path.dirname(path), LABELS), labels.unescaped(names), model.num_classes)
