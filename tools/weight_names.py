"""The names and layouts that libraries give the variables of a GhostNet, both ways, and which library a file's names are of.

timm, pytorchcv and the authors' PyTorch release show theirs in model.state_dict(); iamhankai/ghostnet.pytorch (ghost_net.py) and
d-li14/ghostnet.pytorch (ghostnet.py) in their only source file.
"""
import collections
import re

from command_line import InputError
from tools.state_dict import WRAPPER

# For each library: the variant of the network, how many bottlenecks its stages have, and the names of its modules, a convolution
# and its BN for each of ours, in the order of the network. {} is the place of a bottleneck. `matrices` are the modules whose 1x1
# kernels it keeps as (O, I). `renamed` makes its own name of one in PyTorch's style. `tensorflow`: whether its kernels have
# TensorFlow's axes. `steps`: whether its BN counts them.
Library = collections.namedtuple('Library', 'variant stages block modules matrices renamed tensorflow steps')
Library.__new__.__defaults__ = (str, False, True)


def both(module):
    """The names of the convolution and the BN in a module."""
    return module + '.conv', module + '.bn'


PYTORCH = Library('pytorch', [1, 1, 1, 1, 1, 1, 5, 1, 4], lambda stage, unit: 'blocks.%d.%d.' % (stage, unit), {
    '0': ('conv_stem', 'bn1'),
    'up_pointwise/conv1': ('{}ghost1.primary_conv.0', '{}ghost1.primary_conv.1'),
    'up_pointwise/dw1': ('{}ghost1.cheap_operation.0', '{}ghost1.cheap_operation.1'),
    'depthwise': ('{}conv_dw', '{}bn_dw'),
    'se/fc1': ('{}se.conv_reduce', None),
    'se/fc2': ('{}se.conv_expand', None),
    'down_pointwise/conv1': ('{}ghost2.primary_conv.0', '{}ghost2.primary_conv.1'),
    'down_pointwise/dw1': ('{}ghost2.cheap_operation.0', '{}ghost2.cheap_operation.1'),
    'shortcut_dw': ('{}shortcut.0', '{}shortcut.1'),
    'shortcut_1x1': ('{}shortcut.2', '{}shortcut.3'),
    '17': ('blocks.9.0.conv', 'blocks.9.0.bn1'),
    '18': ('conv_head', None),
    'Logits': ('classifier', None),
}, {'Logits'})
IAMHANKAI = Library('iamhankai', [16], lambda stage, unit: 'features.%d.' % (unit + 1), {
    '0': ('features.0.0', 'features.0.1'),
    'up_pointwise/conv1': ('{}conv.0.primary_conv.0', '{}conv.0.primary_conv.1'),
    'up_pointwise/dw1': ('{}conv.0.cheap_operation.0', '{}conv.0.cheap_operation.1'),
    'depthwise': ('{}conv.1.0', '{}conv.1.1'),
    'se/fc1': ('{}conv.2.fc.0', None),
    'se/fc2': ('{}conv.2.fc.2', None),
    'down_pointwise/conv1': ('{}conv.3.primary_conv.0', '{}conv.3.primary_conv.1'),
    'down_pointwise/dw1': ('{}conv.3.cheap_operation.0', '{}conv.3.cheap_operation.1'),
    'shortcut_dw': ('{}shortcut.0.0', '{}shortcut.0.1'),
    'shortcut_1x1': ('{}shortcut.1', '{}shortcut.2'),
    '17': ('squeeze.0', 'squeeze.1'),
    '18': ('classifier.0', 'classifier.1'),
    'Logits': ('classifier.4', None),
}, {'se/fc1', 'se/fc2', '18', 'Logits'})
PYTORCHCV = Library('imgclsmob', [1, 2, 2, 6, 5], lambda stage, unit: 'features.stage%d.unit%d.' % (stage + 1, unit + 1), {
    '0': both('features.init_block'),
    'up_pointwise/conv1': both('{}body.exp_conv.main_conv'),
    'up_pointwise/dw1': both('{}body.exp_conv.cheap_conv'),
    'depthwise': both('{}body.dw_conv'),
    'se/fc1': ('{}body.se.conv1', None),
    'se/fc2': ('{}body.se.conv2', None),
    'down_pointwise/conv1': both('{}body.pw_conv.main_conv'),
    'down_pointwise/dw1': both('{}body.pw_conv.cheap_conv'),
    'shortcut_dw': both('{}identity_conv.dw_conv'),
    'shortcut_1x1': both('{}identity_conv.pw_conv'),
    '17': both('features.final_block'),
    '18': both('output.conv1'),
    'Logits': ('output.conv2', None),
}, set())


def leaf_renamed(name, conv, bn):
    """A name with another last part: `conv` and `bn` are the leaves of PyTorch and those of a library."""
    module, leaf = name.rsplit('.', 1)
    return module, (bn if module.endswith('.bn') else conv)[leaf]


def gluon_name(name):
    """The name in gluoncv2 for one in pytorchcv: 'features.2.0...' for 'features.stage2.unit1...'."""
    module, leaf = leaf_renamed(name, {'weight': 'weight', 'bias': 'bias'}, {
        'weight': 'gamma', 'bias': 'beta', 'running_mean': 'running_mean', 'running_var': 'running_var', STEPS: STEPS})
    module = module.replace('features.init_block', 'features.0').replace('features.final_block', 'features.6')
    module = re.sub(r'stage(\d)[.]unit(\d)', lambda match: '%s.%d' % (match.group(1), int(match.group(2)) - 1), module)
    return re.sub('^output[.]', 'output.0.', module) + '.' + leaf


def chainer_name(name):
    """The name in chainercv2 for one in pytorchcv: 'features/stage2/unit1...'. N is the counter of Chainer's BN."""
    module, leaf = leaf_renamed(name, {'weight': 'W', 'bias': 'b'}, {
        'weight': 'gamma', 'bias': 'beta', 'running_mean': 'avg_mean', 'running_var': 'avg_var', STEPS: 'N'})
    return re.sub('^output[.]', 'output.final_conv.', module).replace('.', '/') + '/' + leaf


def tf2cv_name(name):
    """The name in tf2cv for one in pytorchcv: 'features/ghost_net/features/features/stage2/stage2/unit1...'."""
    depthwise = re.search('(cheap_conv|dw_conv)[.]conv[.]weight$', name)
    module, leaf = leaf_renamed(name, {'weight': 'dw_conv/depthwise_kernel' if depthwise else 'conv/kernel', 'bias': 'conv/bias'}, {
        'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean', 'running_var': 'moving_variance', STEPS: STEPS})
    module = re.sub(r'^features[.](stage\d[.])?',
                    lambda match: 'features/ghost_net/features/features.' + 2 * (match.group(1) or ''), module)
    return re.sub('^output[.]', 'output1/ghost_net/output1/', module).replace('.', '/') + '/' + leaf + ':0'


LIBRARIES = {
    'pytorch': PYTORCH,
    'timm': PYTORCH,    # has its names from there
    'iamhankai': IAMHANKAI,
    'd-li14': IAMHANKAI._replace(variant='d-li14'),
    'imgclsmob': PYTORCHCV,
}
# Of imgclsmob, the libraries besides pytorchcv, by the ending of their files' names.
SISTERS = {
    '.params': PYTORCHCV._replace(renamed=gluon_name, steps=False),
    '.npz': PYTORCHCV._replace(renamed=chainer_name),
    '.h5': PYTORCHCV._replace(renamed=tf2cv_name, tensorflow=True, steps=False),
}
# PyTorch's BN counts the steps that it was trained for. A checkpoint keeps that too, for the way back.
STEPS = 'num_batches_tracked'
CONV_LEAVES = {'W': 'weight', 'DW': 'weight', 'b': 'bias'}
BN_LEAVES = {'gamma': 'weight', 'beta': 'bias', 'mean/EMA': 'running_mean', 'variance/EMA': 'running_var', STEPS: STEPS}
LEAVES = dict(CONV_LEAVES, **BN_LEAVES)
VARIABLE = re.compile(r'MobileNetV2/(?:Conv2d_(\d+)_?|(Logits)/Conv2d_1c_1x1)(.*?)/((?:bn|output)/)?(%s)$' % '|'.join(LEAVES))
STEM = 'MobileNetV2/Conv2d_0/W'
MOVING_AVERAGE = re.compile(r'(^|[._\t])ema([._\t]|$)', re.IGNORECASE)
FEWEST_NAMES = 40     # of a library, behind one prefix: those of a network. A backbone without its BN's steps has over 300.
BOOKKEEPING = ('n_averaged',)    # of torch.optim.swa_utils.AveragedModel: no weights


def blocks(library):
    """The places of the bottlenecks, of rows 1 to 16."""
    return [library.block(stage, unit) for stage, length in enumerate(library.stages) for unit in range(length)]


def module_of(variable):
    """For a variable of ours: the key of its module in a Library, its row or None, whether it is of BN, and its last part."""
    row, logits, layer, bn, leaf = VARIABLE.match(variable).groups()
    return logits or layer or row, row, bool(bn), leaf


def their_name(variable, library):
    """The name in a state dict of `library` that goes with a variable of ours."""
    module, row, bn, leaf = module_of(variable)
    name = library.modules[module][bn] + '.' + LEAVES[leaf]
    return library.renamed(name.format(blocks(library)[int(row) - 1]) if '{}' in name else name)


def in_order(variable):
    """A key that sorts variables of ours as the network has them."""
    module, row, _, leaf = module_of(variable)
    return int(row or 19), list(PYTORCHCV.modules).index(module), list(LEAVES).index(leaf)


def possible_names(library):
    """The names that tensors of a library can have, a set: those of any GhostNet, and a few more."""
    names = set()
    for conv, bn in library.modules.values():
        for module, leaves in (conv, CONV_LEAVES), (bn, BN_LEAVES):
            for block in blocks(library) if module and '{}' in module else ['']:
                names.update(library.renamed('%s.%s' % (module.format(block), leaf)) for leaf in leaves.values() if module)
    return names


def axes(variable):
    """The order of the axes of PyTorch's kernel in ours: OIHW as HWIO, but a depthwise one, (C, 1, H, W), as (H, W, C, 1)."""
    return [2, 3, 0, 1] if re.search('(/DW|_depthwise/W|_shortcut_dw/W)$', variable) else [2, 3, 1, 0]


def to_ours(variable, value, library):
    """A tensor of theirs as the value of our variable: a 1x1 kernel may be a matrix, and the stem takes BGR in place of RGB."""
    if value.ndim == 2 and not library.tensorflow:
        value = value[:, :, None, None]
    if value.ndim == 4:
        if not library.tensorflow:
            value = value.transpose(axes(variable))
        if variable == STEM:
            value = value[:, :, ::-1]
    return value


def to_theirs(variable, value, library):
    """The inverse of `to_ours`."""
    if variable == STEM:
        value = value[:, :, ::-1]
    if value.ndim == 4 and not library.tensorflow:
        order = axes(variable)
        value = value.transpose([order.index(axis) for axis in range(4)])
        if module_of(variable)[0] in library.matrices:
            value = value[:, :, 0, 0]
    return value


# ------------------------------------------------------------------------------------------------------- which network it is

def find_network(shapes, path, libraries, weights):
    """The one network in a file: of which library it is, and what it is called.

    Args:
        shapes (dict): {name: shape} of all tensors in the file `path`, with WRAPPER.
        libraries (dict): {name: Library} of those that it may be of.
        weights (str): 'plain' or 'ema' if that was asked for, or None.
    Returns:
        (str, str, list): one of `libraries`; what comes before its names, which ends with WRAPPER, a separator or nothing; and the
            names of all tensors in the dict that the network is in, but for those of other networks there.
    Raises:
        InputError: there is none (unless there is only one library), or more than one.
    """
    known = {name: possible_names(library) for name, library in libraries.items()}
    counts = collections.Counter()
    for name in shapes:
        for cut in [0] + [match.end() for match in re.finditer('[./%s]' % WRAPPER, name)]:
            counts.update((other, name[:cut]) for other in known if name[cut:] in known[other])
    best = max(sorted(known), key=lambda other: max([count for (name, _), count in counts.items() if name == other] or [0]))
    prefixes = sorted(prefix for (name, prefix), count in counts.items() if name == best and count >= FEWEST_NAMES)
    if not prefixes and len(libraries) > 1:
        raise InputError("%s is no GhostNet of %s: its tensors are called %s" % (
            path, ', '.join(sorted(libraries)), ', '.join(name.split(WRAPPER)[-1] for name in list(shapes)[:3]) or 'nothing'))
    if not prefixes:    # which the comparison says
        prefixes = [name for name, _ in collections.Counter(map(dict_of, shapes)).most_common(1)] or ['']
    prefix = choose(prefixes, path, weights)
    names = [name for name in shapes if dict_of(name) == dict_of(prefix) and name.split(WRAPPER)[-1] not in BOOKKEEPING
             and max([other for other in prefixes if name.startswith(other)] or [prefix], key=len) == prefix]
    return same_names(best, prefix, shapes) if len(libraries) > 1 else best, prefix, names


def dict_of(name):
    """The names of the dicts that a tensor is in, with WRAPPER behind them, or ''."""
    return name[:name.rfind(WRAPPER) + 1]


def same_names(library, prefix, shapes):
    """`library`, or another one of the same names, if the shapes are of that: (C, 1, K, K) of the shortcut in row 4."""
    if LIBRARIES[library].modules is IAMHANKAI.modules:
        shortcut = shapes.get(prefix + their_name('MobileNetV2/Conv2d_4_shortcut_dw/W', IAMHANKAI), ())
        return 'd-li14' if shortcut[2:] == (3, 3) else 'iamhankai'
    return 'pytorch' if LIBRARIES[library] is PYTORCH else library


def choose(prefixes, path, weights):
    """The one of the prefixes of networks in a file that is to be taken. Raises InputError if that is not clear."""
    kinds = {'plain': [prefix for prefix in prefixes if not MOVING_AVERAGE.search(prefix)],
             'ema': [prefix for prefix in prefixes if MOVING_AVERAGE.search(prefix)]}
    if weights is None and all(kinds.values()):
        raise InputError("%s has two sets of weights, plain ones in %s and their moving average in %s: say which by "
                         "--weights plain or --weights ema" % (path, described(kinds['plain'][0]), described(kinds['ema'][0])))
    found = prefixes if weights is None else kinds[weights]
    if not found:
        raise InputError("%s has no %s weights, only those in %s: leave --weights out" % (path, weights, described(prefixes[0])))
    if len(found) > 1:
        raise InputError("%s has %d networks, in %s: save the state dict of one" % (
            path, len(found), ' and '.join(described(prefix) for prefix in found[:3])))
    return found[0]


def described(prefix):
    """A prefix as the user knows it."""
    return "'%s'" % prefix.replace(WRAPPER, '.').strip('.') if prefix else 'the file itself'
