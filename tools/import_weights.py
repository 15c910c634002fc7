"""Turns the weights of other libraries' GhostNets into a checkpoint, and a checkpoint back into theirs.

    python -m tools.import_weights --from timm model.safetensors ghostnet_timm      # pytorch: the authors' PyTorch release
    python -m tools.import_weights --to pytorch ghostnet_timm state_dict.pth
    python -m tools.import_weights --from keras trained.keras ghostnet_trained       # of tools.export --format keras --trainable
    python -m tools.import_weights --from darknet darknet/ghostnet.cfg               # of tools.export --format darknet

A file is a state dict, as torch.save or safetensors write it, one of Keras 3, or a cfg. Code in it is not executed. The checkpoint
records the variant of the network that it belongs to (ghostnet.VARIANTS); its width multiplier, classes and the rest are taken from
the shapes.
"""
import argparse
import collections
import functools
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # python tools/import_weights.py works too

from command_line import InputError, Parser, atomic_write, check_writable, quiet_tensorpack, required, run
from tools.state_dict import KERAS, read_state

# For each library: the variant of the network, how many bottlenecks its stages have, and the names of its modules, a convolution
# and its BN for each of ours. {} is the place of a bottleneck.
Library = collections.namedtuple('Library', 'variant stages block modules')


def pairs(*names):
    """Names of a module that holds a convolution and its BN."""
    return {ours: (theirs + '.conv', theirs + '.bn') for ours, theirs in names}


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
})
LIBRARIES = {
    'pytorch': PYTORCH,
    'timm': PYTORCH,    # has its names from there
    'imgclsmob': Library(
        'imgclsmob', [1, 2, 2, 6, 5], lambda stage, unit: 'features.stage%d.unit%d.' % (stage + 1, unit + 1), dict(pairs(
            ('0', 'features.init_block'),
            ('up_pointwise/conv1', '{}body.exp_conv.main_conv'),
            ('up_pointwise/dw1', '{}body.exp_conv.cheap_conv'),
            ('depthwise', '{}body.dw_conv'),
            ('down_pointwise/conv1', '{}body.pw_conv.main_conv'),
            ('down_pointwise/dw1', '{}body.pw_conv.cheap_conv'),
            ('shortcut_dw', '{}identity_conv.dw_conv'),
            ('shortcut_1x1', '{}identity_conv.pw_conv'),
            ('17', 'features.final_block'),
            ('18', 'output.conv1'),
        ), **{
            'se/fc1': ('{}body.se.conv1', None),
            'se/fc2': ('{}body.se.conv2', None),
            'Logits': ('output.conv2', None)})),
}
# PyTorch's BN counts the steps that it was trained for. A checkpoint keeps that too, for the way back.
STEPS = 'num_batches_tracked'
LEAVES = {'W': 'weight', 'DW': 'weight', 'b': 'bias', 'gamma': 'weight', 'beta': 'bias', 'mean/EMA': 'running_mean',
          'variance/EMA': 'running_var', STEPS: STEPS}
VARIABLE = re.compile(r'MobileNetV2/(?:Conv2d_(\d+)_?|(Logits)/Conv2d_1c_1x1)(.*?)/((?:bn|output)/)?(%s)$' % '|'.join(LEAVES))
STEM, CLASSIFIER = 'MobileNetV2/Conv2d_0/W', 'MobileNetV2/Logits/Conv2d_1c_1x1/W'
OVER_BACKBONE = re.compile('MobileNetV2/(Conv2d_17|Conv2d_18|Logits)/')    # what a backbone lacks


def their_name(variable, library):
    """The name in a state dict of `library` that goes with a variable of ours."""
    row, logits, layer, bn, leaf = VARIABLE.match(variable).groups()
    block, position = '', int(row or 0) - 1    # of the bottlenecks, which begin in row 1
    for stage, length in enumerate(library.stages):
        if 0 <= position < length:
            block = library.block(stage, position)
        position -= length
    module = library.modules[logits or layer or row][1 if bn else 0]
    return module.format(block) + '.' + LEAVES[leaf]


def axes(variable):
    """The order of the axes of PyTorch's kernel in ours: OIHW as HWIO, but a depthwise one, (C, 1, H, W), as (H, W, C, 1)."""
    return [2, 3, 0, 1] if re.search('(/DW|_depthwise/W|_shortcut_dw/W)$', variable) else [2, 3, 1, 0]


def to_ours(variable, value):
    """A tensor of theirs as the value of our variable: the classifier may be a matrix, and the stem takes BGR in place of RGB."""
    if value.ndim == 2:
        value = value[:, :, None, None]
    if value.ndim == 4:
        value = value.transpose(axes(variable))
        if variable == STEM:
            value = value[:, :, ::-1]
    return value


def to_theirs(variable, value):
    """The inverse of `to_ours`, for those whose classifier is a matrix."""
    if variable == STEM:
        value = value[:, :, ::-1]
    if value.ndim == 4:
        order = axes(variable)
        value = value.transpose([order.index(axis) for axis in range(4)])
    return value[:, :, 0, 0] if variable == CLASSIFIER else value


@functools.lru_cache()
def variable_shapes(**options):
    """{variable: shape} of the GhostNet with these options, the steps of its BNs among them."""
    from tf_compat import tf

    from tensorpack.tfutils.tower import PredictTowerContext

    from augmentation import IMAGE_SIZE
    from checkpoints import MODEL_VARIABLE
    from ghostnet import GhostNet
    with tf.Graph().as_default(), PredictTowerContext(''):
        GhostNet(**options).get_logits(tf.placeholder(tf.uint8, [1, IMAGE_SIZE, IMAGE_SIZE, 3]))
        shapes = {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables() if MODEL_VARIABLE.search(v.op.name)}
    shapes.update({name.replace('mean/EMA', STEPS): () for name in shapes if name.endswith('mean/EMA')})
    return shapes


def library_shapes(values, library):
    """The options of the one GhostNet of a library that `values`, {variable: array}, may be of, and its `variable_shapes`."""
    from ghostnet import infer_architecture
    made_with = infer_architecture({name: value.shape for name, value in values.items()}, library.variant) or {}
    options = {key: made_with[key] for key in ('num_classes', 'width') if key in made_with}
    return options, variable_shapes(variant=library.variant, **options)


def compare(found, expected, source, model):
    """Raises InputError, with the first differences, if {name: shape} of a source is not that of a model; steps may lack."""
    wrong = [name for name in list(expected) + sorted(set(found) - set(expected))
             if found.get(name) != expected.get(name) and not (name.endswith(STEPS) and name not in found)]
    if wrong:
        from checkpoints import first_differences
        raise InputError("%s is not %s, which differs in %d tensors: %s"
                         % (source, model, len(wrong), first_differences(wrong, found, expected, 'there')))


def import_weights(library, path, out):
    state = read_state(path)    # before TensorFlow is there: together, they would take more memory
    from checkpoints import finite_weights
    quiet_tensorpack()
    theirs = {name: their_name(name, LIBRARIES[library]) for name in variable_shapes(variant=LIBRARIES[library].variant)}
    values = {name: to_ours(name, state[theirs[name]]) for name in theirs if theirs[name] in state}
    options, shapes = library_shapes(values, LIBRARIES[library])
    found = {theirs[name]: value.shape for name, value in values.items()}
    found.update({name: value.shape for name, value in state.items() if name not in found})
    compare(found, {theirs[name]: shape for name, shape in shapes.items()}, path, 'a GhostNet of ' + library)
    weights = finite_weights({theirs[name]: value for name, value in values.items()
                              if not (name.endswith(STEPS) and value.dtype.kind in 'iu')}, path)
    values.update({name: weights[theirs[name]] for name in values if theirs[name] in weights})
    save(values, out, options, LIBRARIES[library].variant)


def save(values, out, options, variant, record=None):
    """Saves {variable: array} as a checkpoint, and prints what it is: of a GhostNet with these options.

    `record`: that of the checkpoint from which it comes. Its classes are kept if they are as many.
    """
    from checkpoints import UNRECORDED, save_values
    record = (record or UNRECORDED)._replace(variant=variant)
    if record.classes is not None and len(record.classes) != options['num_classes']:
        record = record._replace(classes=None)
    save_values(values, out, record)
    print("%s: %d tensors, width %g, %d classes, variant '%s'; for example"
          % (out, len(values), options['width'], options['num_classes'], variant))
    print("python main.py --eval --data_dir DIR --load " + out)


def variant_of(names):
    """The variant that has variables of these names: only 'pytorch' has a bias in row 18, only 'imgclsmob' such a BN."""
    if 'MobileNetV2/Conv2d_18/b' in names:
        return 'pytorch'
    return 'imgclsmob' if 'MobileNetV2/Conv2d_2_shortcut_dw/bn/gamma' in names else 'published'


def import_keras(path, out, base):
    """Saves what Keras trained of a trainable export as a checkpoint, without a change of any number.

    `base`: the checkpoint that was exported, or None. It has what a backbone lacks, and what is recorded besides weights.
    """
    if not path.endswith(KERAS):
        raise InputError("%s is no file of Keras 3, whose names end with %s: save the model as one" % (path, ' or '.join(KERAS)))
    values = read_state(path)
    from checkpoints import CheckpointRestore, finite_weights
    from ghostnet import infer_architecture, known_variant
    quiet_tensorpack()
    restore = base and CheckpointRestore(base)
    if CLASSIFIER not in values:
        if base is None:
            raise InputError("%s has no layer Logits.Conv2d_1c_1x1, the classifier: name by --base the checkpoint that was exported"
                             % path)
        values = dict({name: value for name, value in restore.values.items() if OVER_BACKBONE.match(name)}, **values)
    variant = known_variant(restore.variant) if base else variant_of(values)
    options = infer_architecture({name: value.shape for name, value in values.items()}, variant) or {}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    compare({name: value.shape for name, value in values.items()}, variable_shapes(variant=variant, **options), path,
            "a GhostNet of the variant '%s'" % variant)
    save(finite_weights(values, path), out, options, variant, restore.record if base else None)


def import_darknet(path, out):
    """Saves what tools.export wrote for Darknet as a checkpoint, without a change of any number."""
    from checkpoints import UNRECORDED
    from tools.read_darknet import read
    quiet_tensorpack()
    values, model, classes = read(path)
    options = {'width': model.width, 'num_classes': model.num_classes}
    save(values, out, options, model.variant, UNRECORDED._replace(classes=classes))


def checked_checkpoint(out):
    """`out` as the prefix of a checkpoint. Raises InputError if it cannot be written."""
    out = re.sub('[.]index$', '', out)
    if not os.path.basename(out):
        raise InputError("OUT is '%s': name a checkpoint, such as models/timm_checkpoint" % out)
    check_writable(out + '.index')
    return out


def export_weights(library, path, out):
    import numpy as np

    from checkpoints import CheckpointRestore
    quiet_tensorpack()
    check_writable(out)
    save = required('safetensors.numpy').save if out.endswith('.safetensors') else None
    torch = None if save else required('torch')
    restore = CheckpointRestore(path, re.compile('(%s)$' % '|'.join(LEAVES)))
    if restore.variant != LIBRARIES[library].variant:
        raise InputError("%s is a checkpoint of the variant '%s', and %s has no such network: only '%s' can go there"
                         % (path, restore.variant, library, LIBRARIES[library].variant))
    _, shapes = library_shapes(restore.values, LIBRARIES[library])
    compare({name: value.shape for name, value in restore.values.items()}, shapes, path, 'a GhostNet of ' + library)
    state = {their_name(name, LIBRARIES[library]): np.array(to_theirs(name, value), order='C')
             for name, value in restore.values.items()}
    with atomic_write(out) as f:
        if save:
            f.write(save(state))
        else:
            torch.save({name: torch.from_numpy(value) for name, value in state.items()}, f)
    print("%s: %d tensors" % (out, len(state)))


def main(args):
    if args.library == 'keras':
        import_keras(args.source, checked_checkpoint(args.out), args.base)
    elif args.library == 'darknet':
        import_darknet(args.source, checked_checkpoint(args.out))
    elif args.library:
        import_weights(args.library, args.source, checked_checkpoint(args.out))
    else:
        export_weights(args.to, args.source, args.out)


def parse_args():
    parser = Parser(prog='import_weights', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument('--from', dest='library', choices=sorted(LIBRARIES) + ['darknet', 'keras'],
                           help="the library that FILE is of")
    direction.add_argument('--to', choices=['pytorch', 'timm'], help="the library to write a state dict for")
    parser.add_argument('source', metavar='FILE',
                        help="state dict (.safetensors, torch.save), .keras or .cfg; for --to, a checkpoint")
    parser.add_argument('out', metavar='OUT', nargs='?', help="checkpoint to write (for darknet, beside the cfg by default); for "
                        "--to, .safetensors or any other name for torch.save")
    parser.add_argument('--base', metavar='CKPT', help="--from keras: the checkpoint that was exported, from which come the names "
                        "of the classes and what a backbone lacks")
    args = parser.parse_args()
    if args.base is not None and args.library != 'keras':
        parser.error("--base goes with --from keras")
    if args.out is None:
        if args.library != 'darknet':
            parser.error("name OUT, the file to write")
        args.out = re.sub('[.]cfg$', '', args.source) + '_checkpoint'
    return args


if __name__ == '__main__':
    run(main, parse_args(), 'import_weights')
