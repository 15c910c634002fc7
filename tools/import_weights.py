"""Turns the weights of other libraries' GhostNets into a checkpoint, and a checkpoint back into theirs.

    python -m tools.import_weights model.safetensors ghostnet_timm      # which library it is of shows in names and shapes
    python -m tools.import_weights --to pytorch ghostnet_timm state_dict.pth
    python -m tools.import_weights --to imgclsmob ghostnet_imgclsmob ghostnet.params     # of Gluon; .npz of Chainer; .h5 of tf2cv
    python -m tools.import_weights --from keras trained.keras ghostnet_trained       # of tools.export --format keras --trainable
    python -m tools.import_weights --from darknet darknet/ghostnet.cfg               # of tools.export --format darknet

A file is a state dict, as torch.save or safetensors write it, also within what a training script saves, or one of Keras 3, or a
cfg. Code in it is not executed. The checkpoint records the variant of the network that it belongs to (ghostnet.VARIANTS); its width
multiplier, classes and the rest are taken from the shapes. A network without a classifier stays one: --finetune and --features
start from it.
"""
import argparse
import collections
import contextlib
import functools
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # python tools/import_weights.py works too

from command_line import InputError, Parser, atomic_write, check_writable, quiet_tensorpack, required, run
from tools.foreign_files import FORMATS, format_of
from tools.keras_weights import HARD_SIGMOID, MARKS, SIZE, SYMMETRIC
from tools.state_dict import KERAS, OTHERS, WRAPPER, read_state
from tools.weight_names import LEAVES, LIBRARIES, SISTERS, STEPS, find_network, in_order, their_name, to_ours, to_theirs

CLASSIFIER = 'MobileNetV2/Logits/Conv2d_1c_1x1/W'
OVER_BACKBONE = re.compile('MobileNetV2/(Conv2d_17|Conv2d_18|Logits)/')    # what a backbone lacks


@functools.lru_cache()
def variable_shapes(**options):
    """{variable: shape} of the GhostNet with these options, the steps of its BNs among them."""
    from tf_compat import tf

    from tensorpack.tfutils.tower import PredictTowerContext

    from checkpoints import MODEL_VARIABLE
    from ghostnet import GhostNet
    from recipe import IMAGE_SIZE
    with tf.Graph().as_default(), PredictTowerContext(''):
        GhostNet(**options).get_logits(tf.placeholder(tf.uint8, [1, IMAGE_SIZE, IMAGE_SIZE, 3]))
        shapes = {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables() if MODEL_VARIABLE.search(v.op.name)}
    shapes.update({name.replace('mean/EMA', STEPS): () for name in shapes if name.endswith('mean/EMA')})
    return shapes


def expected_shapes(found, variant, free=('num_classes', 'width')):
    """The options of the one GhostNet of a variant that `found`, {variable: shape}, may be of, and its `variable_shapes`.

    Without the classifier, if there is none in `found`, and the rows 18 and 17 below it, if there are none of those either. `free`:
    the options that may differ from the published ones.
    """
    from ghostnet import absent_top, infer_architecture
    made_with = infer_architecture(found, variant) or {}
    made_with = {key: tuple(value) if isinstance(value, list) else value for key, value in made_with.items()}
    options = {key: made_with[key] for key in free if made_with.get(key) is not None}
    shapes = variable_shapes(variant=variant, **options)
    absent = absent_top(found)
    return options, {name: shape for name, shape in shapes.items() if name.split('/')[1] not in absent}


def compare(found, expected, source, model, optional=()):
    """Raises InputError, with the first differences, if {name: shape} of a source is not that of a model; `optional` may lack."""
    wrong = [name for name in list(expected) + sorted(set(found) - set(expected))
             if found.get(name) != expected.get(name) and not (name in optional and name not in found)]
    if wrong:
        from checkpoints import first_differences
        raise InputError("%s is not %s, which differs in %d tensors: %s"
                         % (source, model, len(wrong), first_differences(wrong, found, expected, 'there')))


def candidate_libraries(library, path):
    """{name: Library} of those that a file may be of. `library`: one of them, or 'auto'. Raises InputError if it cannot be."""
    form = format_of(path, OTHERS)
    if form and library not in ('auto', 'imgclsmob'):
        raise InputError("%s is a file of imgclsmob, as %s writes it, and not of %s: leave --from out"
                         % (path, FORMATS[form].writer, library))
    if form:
        return {'imgclsmob': SISTERS[form]}
    if path.endswith(KERAS):
        raise InputError("%s has the name of a file of Keras 3: leave --from out, or call one of tf2cv .h5 alone" % path)
    return LIBRARIES if library == 'auto' else {library: LIBRARIES[library]}


def import_weights(library, path, out, weights=None):
    """Saves the network in a file as the checkpoint `out`, and prints what it is.

    Args:
        library (str): one of LIBRARIES, or 'auto'.
        weights (str): 'plain' or 'ema', where the file has both; None where it has not.
    Raises:
        InputError: see `read_state`, `find_network`, `compare`, `finite_weights`, `save_values`.
    """
    import numpy as np
    candidates = candidate_libraries(library, path)
    state = read_state(path)    # before TensorFlow is there: together, they would take more memory
    library, prefix, names = find_network({name: value.shape for name, value in state.values.items()}, path, candidates, weights)
    from checkpoints import finite_weights
    quiet_tensorpack()
    layout, there = candidates[library], set(names)
    theirs = {name: prefix + their_name(name, layout) for name in variable_shapes(variant=layout.variant)}
    values = {name: to_ours(name, state.values[theirs[name]], layout) for name in theirs if theirs[name] in there}
    options, shapes = expected_shapes({name: value.shape for name, value in values.items()}, layout.variant)

    def own(name):
        return name.split(WRAPPER)[-1]
    expected = {}
    for name, shape in shapes.items():    # as their file has it, if it is right, or else their library
        fits = name in values and values[name].shape == shape
        expected[own(theirs[name])] = state.values[theirs[name]].shape if fits else to_theirs(
            name, np.broadcast_to(np.float32(0), shape), layout).shape
    compare({own(name): state.values[name].shape for name in names}, expected, path, 'a GhostNet of ' + library,
            [own(theirs[name]) for name in shapes if name.endswith(STEPS)])
    weights = finite_weights({own(theirs[name]): value for name, value in values.items()
                              if not (name.endswith(STEPS) and value.dtype.kind in 'iu')}, path)
    values.update({name: weights[own(theirs[name])] for name in values if own(theirs[name]) in weights})
    save(values, out, options, layout.variant, described(library, path, prefix, [state.dtypes[theirs[name]] for name in values]))


def described(library, path, prefix, dtypes):
    """What was read: lines to print."""
    found = "%s: a GhostNet of %s" % (path, library)
    if prefix:
        wrapper, _, names = prefix.rpartition(WRAPPER)
        found += ''.join([", in '%s'" % wrapper if wrapper else '', ", names without '%s'" % names if names else ''])
    counts = collections.Counter(dtype for dtype in dtypes if re.match('b?float', dtype) and dtype != 'float32')
    return [found] + ["%d tensors were converted from %s to float32" % (count, dtype) for dtype, count in sorted(counts.items())]


def save(values, out, options, variant, said=(), record=None):
    """Saves {variable: array} as a checkpoint, and prints what it is: of a GhostNet with these options, besides the lines `said`.

    `record`: that of the checkpoint from which it comes. Its classes are kept if they are as many.
    """
    from checkpoints import UNRECORDED, save_values
    record = (record or UNRECORDED)._replace(variant=variant)
    classes = options.get('num_classes')
    if record.classes is not None and len(record.classes) != classes:
        record = record._replace(classes=None)
    save_values(values, out, record)
    for line in said:
        print(line)
    size = "" if record.image_size == UNRECORDED.image_size else ", images of %d x %d pixels" % ((record.image_size,) * 2)
    print("%s: %d tensors, width %g, %s, variant '%s'%s; for example"
          % (out, len(values), options.get('width', 1), "%d classes" % classes if classes else "no classifier", variant, size))
    print("python main.py %s --data_dir DIR --load %s" % ('--eval' if classes else '--train --finetune', out))


def variant_of(shapes, marks):
    """The variant of a trainable export with variables of these {name: shape}, and these of tools/keras_weights.py's MARKS.

    Without a top and SE, 'pytorch' and 'iamhankai' are one network.
    """
    symmetric = SYMMETRIC in marks
    if 'MobileNetV2/Conv2d_18/b' in shapes or HARD_SIGMOID in marks:    # no other has either
        return 'pytorch'
    if 'MobileNetV2/Conv2d_2_shortcut_dw/bn/gamma' not in shapes:    # ReLU comes behind that
        return 'iamhankai' if symmetric else 'published'
    from ghostnet import infer_architecture

    # The other two differ in nothing at width 1.0, and elsewhere in numbers of channels.
    width = (infer_architecture(shapes, 'imgclsmob') or {'width': 1.0})['width']
    expected = variable_shapes(variant='imgclsmob', width=width)
    return 'imgclsmob' if all(shapes[name] == shape for name, shape in expected.items()
                              if name in shapes and not name.startswith('MobileNetV2/Logits/')) else 'd-li14'


def import_keras(path, out, base):
    """Saves what Keras trained of a trainable export as a checkpoint, without a change of any number.

    `base`: the checkpoint that was exported, or None. It has what a backbone lacks, and what is recorded besides weights; the image
    size is that of the file, where it has one.
    """
    if not path.endswith(KERAS):
        raise InputError("%s is no file of Keras 3, whose names end with %s: save the model as one" % (path, ' or '.join(KERAS)))
    values = read_state(path).values
    size, marks = values.pop(SIZE, None), {mark for mark in MARKS if values.pop(mark, None) is not None}
    from checkpoints import UNRECORDED, CheckpointRestore, finite_weights, size_of_images
    from ghostnet import known_variant
    quiet_tensorpack()
    restore = base and CheckpointRestore(base)
    if base and CLASSIFIER not in values:
        values = dict({name: value for name, value in restore.values.items() if OVER_BACKBONE.match(name)}, **values)
    found = {name: value.shape for name, value in values.items()}
    variant = known_variant(restore.variant) if base else variant_of(found, marks)
    options, shapes = expected_shapes(found, variant, ('num_classes', 'width', 'se', 'dw_code', 'ratio_code'))
    compare(found, shapes, path, "a GhostNet of the variant '%s'" % variant, [name for name in shapes if name.endswith(STEPS)])
    record = restore.record if base else UNRECORDED
    if size is not None:
        with contextlib.suppress(ValueError):    # it is of no size that --image_size offers
            record = record._replace(image_size=size_of_images(size))
    save(finite_weights(values, path), out, options, variant, record=record)


def import_darknet(path, out):
    """Saves what tools.export wrote for Darknet as a checkpoint, without a change of any number."""
    from checkpoints import UNRECORDED
    from tools.read_darknet import read
    quiet_tensorpack()
    values, model, classes = read(path)
    options = {'width': model.width, 'num_classes': model.num_classes}
    save(values, out, options, model.variant, record=UNRECORDED._replace(classes=classes, image_size=model.image_size))


def checked_checkpoint(out):
    """`out` as the prefix of a checkpoint. Raises InputError if it cannot be written."""
    out = re.sub('[.]index$', '', out)
    if not os.path.basename(out):
        raise InputError("OUT is '%s': name a checkpoint, such as models/timm_checkpoint" % out)
    check_writable(out + '.index')
    return out


def writer_for(library, out):
    """The Library whose names and layouts a file called `out` gets, and the function that writes {name: array} to an open file.

    Raises:
        InputError: a package is missing, or the library has no such files.
    """
    ending = os.path.splitext(out)[1]
    if ending in FORMATS:
        if library != 'imgclsmob':
            raise InputError("%s is a name for files of imgclsmob: for %s, name one .pth or .safetensors" % (out, library))
        if ending == '.h5':
            required('h5py', "pip install -r requirements.txt")
        return SISTERS[ending], FORMATS[ending].write
    if ending == '.safetensors':
        save = required('safetensors.numpy').save
        return LIBRARIES[library], lambda f, state: f.write(save(state))
    torch = required('torch')
    return LIBRARIES[library], lambda f, state: torch.save({name: torch.from_numpy(value) for name, value in state.items()}, f)


def export_weights(library, path, out):
    import numpy as np

    from checkpoints import CheckpointRestore
    quiet_tensorpack()
    check_writable(out)
    layout, write = writer_for(library, out)
    restore = CheckpointRestore(path, re.compile('(%s)$' % '|'.join(LEAVES)))
    if restore.variant != layout.variant:
        raise InputError("%s is a checkpoint of the variant '%s', and %s has no such network: only '%s' can go there"
                         % (path, restore.variant, library, layout.variant))
    found = {name: value.shape for name, value in restore.values.items()}
    _, shapes = expected_shapes(found, restore.variant)
    compare(found, shapes, path, 'a GhostNet of ' + library,
            [name for name in shapes if name.endswith(STEPS)])
    state = {their_name(name, layout): np.array(to_theirs(name, restore.values[name], layout), order='C')
             for name in sorted(restore.values, key=in_order) if layout.steps or not name.endswith(STEPS)}
    with atomic_write(out) as f:
        write(f, state)
    print("%s: %d tensors" % (out, len(state)))


def main(args):
    if args.to:
        export_weights(args.to, args.source, args.out)
    elif args.library == 'keras':
        import_keras(args.source, checked_checkpoint(args.out), args.base)
    elif args.library == 'darknet':
        import_darknet(args.source, checked_checkpoint(args.out))
    else:
        import_weights(args.library, args.source, checked_checkpoint(args.out), args.weights)


def parse_args():
    parser = Parser(prog='import_weights', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument('--from', dest='library', choices=['auto'] + sorted(LIBRARIES) + ['darknet', 'keras'], default='auto',
                           help="the library that FILE is of (default: auto, which finds it)")
    direction.add_argument('--to', choices=sorted(LIBRARIES), help="the library to write a state dict for")
    parser.add_argument('source', metavar='FILE', help="state dict (.safetensors, torch.save), .keras, .cfg, or .params, .npz or "
                        ".h5 of imgclsmob; for --to, a checkpoint")
    parser.add_argument('out', metavar='OUT', nargs='?', help="checkpoint to write (for darknet, beside the cfg by default); for "
                        "--to, .safetensors, for imgclsmob .params, .npz or .h5, or any other name for torch.save")
    parser.add_argument('--weights', choices=['plain', 'ema'], help="which to take of a file with the weights of the last step and "
                        "their moving average")
    parser.add_argument('--base', metavar='CKPT', help="--from keras: the checkpoint that was exported, from which come the names "
                        "of the classes and what a backbone lacks")
    args = parser.parse_args()
    if args.to:
        args.library = None
    elif args.library == 'auto' and args.source.endswith(KERAS + ('.cfg',)):
        args.library = 'darknet' if args.source.endswith('.cfg') else 'keras'
    if args.base is not None and args.library != 'keras':
        parser.error("--base goes with --from keras")
    if args.weights is not None and args.library in (None, 'darknet', 'keras'):
        parser.error("--weights goes with the state dict of a PyTorch library")
    if args.out is None:
        if args.library != 'darknet':
            parser.error("name OUT, the file to write")
        args.out = re.sub('[.]cfg$', '', args.source) + '_checkpoint'
    return args


if __name__ == '__main__':
    run(main, parse_args(), 'import_weights')
