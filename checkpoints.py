"""TensorFlow checkpoints: reading them whole or not at all, saving them so, and what they say of their network."""
import collections
import glob
import os
import re

from tf_compat import save_tensors, tf

import numpy as np
from tensorpack.tfutils import DictRestore

from checkpoint_index import check_checkpoint, is_name
from command_line import InputError, sync, work_folder
from recipe import IMAGE_SIZE, IMAGE_SIZES

# The last part of the name of every variable that belongs to a model; what training adds (slots, counters) ends otherwise.
MODEL_VARIABLE = re.compile('(^|/)(W|DW|b|beta|gamma|EMA)$')
PUBLISHED = 'published'
# What a checkpoint records of its network besides the weights, as tensors of these names. `variant` is a string, absent for the
# published one. `classes`, where they are known, are strings (N, 2) in the order of the labels: a name, which is a WordNet id or
# that of a folder, and what it means, or ''. `val_share` is the part of a tree that it was not trained on, where that was split.
# `image_size`, in pixels, is an int32 (), absent for the published 224.
Record = collections.namedtuple('Record', 'variant classes val_share image_size')
Record.__new__.__defaults__ = (IMAGE_SIZE,)
RECORD = re.compile('^(%s)$' % '|'.join(Record._fields))
UNRECORDED = Record(PUBLISHED, None, None)
Description = collections.namedtuple('Description', 'path shapes record')    # `shapes`: {name: shape} of the model variables


class CheckpointMismatch(InputError):
    """A checkpoint, `restore`, is sound, but of another model."""

    def __init__(self, message, restore):
        super(CheckpointMismatch, self).__init__(message)
        self.restore = restore


def read_checkpoint(path, names=re.compile('')):
    """The tensors of a checkpoint whose names match the compiled pattern `names`. TensorFlow checks the CRC of each.

    Args:
        path (str): the checkpoint's prefix, or one of its files.
    Returns:
        (str, dict): the prefix, and {name: np.ndarray}. Strings are objects of type bytes in it.
    Raises:
        InputError: a file is missing, or a tensor cannot be read.
    """
    prefix = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
    shapes = check_checkpoint(prefix)
    if re.search(r'[\[\\]', prefix) and os.name != 'nt':
        raise InputError("the checkpoint %s cannot be read: TensorFlow takes [ and \\ in a path for a pattern; rename it" % prefix)
    name, values = None, {}
    try:
        reader = tf.train.NewCheckpointReader(os.fsencode(prefix))
        if reader.get_variable_to_shape_map() != shapes:    # TensorFlow passes over what has a wrong CRC
            raise ValueError("its index is damaged")
        for name in sorted(filter(names.search, shapes)):
            value = reader.get_tensor(name)
            values[name] = np.array(value, object) if isinstance(value, bytes) else np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:    # tf.errors, but in TensorFlow 2 also IndexError, RuntimeError and others
        raise InputError("the checkpoint %s cannot be read%s: get it again (%s)" % (
            prefix, '' if name is None else ' at ' + name, (str(error).splitlines() or [repr(error)])[0][:200]))
    return prefix, values


def first_differences(names, found, expected, where):
    """Of `names`, the first three with their shapes in `found`, which are those `where`, and in a model, `expected`: one line."""
    first = ['%s is %s %s, %s in the model' % (name, found.get(name, 'absent'), where, expected.get(name, 'absent'))
             for name in names[:3]]
    return '; '.join(first + ['...'] if len(names) > 3 else first)


def describe(path):
    """The Description of a checkpoint, without its weights. Raises InputError: see `read_checkpoint`, `record_in`."""
    path, values = read_checkpoint(path, RECORD)
    shapes = {name: tuple(shape) for name, shape in check_checkpoint(path).items() if MODEL_VARIABLE.search(name)}
    return Description(path, shapes, record_in(values, path))


def record_in(values, path):
    """The Record that the tensors of a checkpoint, {name: array}, make: of text as str; as UNRECORDED where they are absent.

    Raises:
        InputError: one of them is not what it should be.
    """
    found = {}
    for name, read in (('variant', name_of_variant), ('classes', pairs_of_text), ('val_share', float),
                       ('image_size', size_of_images)):
        try:
            if name in values:
                found[name] = read(values[name])
        except (AttributeError, TypeError, ValueError):    # of another type or shape, or bytes that are not UTF-8
            raise InputError("the checkpoint %s cannot be read at %s, which is no record of that: get it again" % (path, name))
    return UNRECORDED._replace(**found)


def name_of_variant(value):
    variant = value.item().decode()
    if not is_name(variant):
        raise ValueError
    return variant


def pairs_of_text(value):
    classes = [tuple(text.decode('utf-8', 'surrogateescape') for text in (name, words)) for name, words in value]
    if not len({name for name, _ in classes}) == len(classes) > 0:
        raise ValueError
    return classes


def size_of_images(value):
    if value.dtype.kind not in 'iu' or value.shape != () or not IMAGE_SIZES[0] <= value <= IMAGE_SIZES[1]:
        raise ValueError
    return int(value)


def finite_weights(values, source):
    """`values`, {name: array}, as float32.

    Raises:
        InputError: one of them, which are those of `source`, is not of real numbers, or has NaN or infinities in it.
    """
    weights, wrong = {}, []
    for name, value in sorted(values.items()):
        if value.dtype.kind not in 'fV':    # V: bfloat16
            raise InputError("%s has in %s not floating-point numbers, but %s: save it in float32" % (source, name, value.dtype))
        with np.errstate(over='ignore'):
            weights[name] = value.astype('float32')
        if not np.isfinite(weights[name]).all():
            wrong.append(name)
    if wrong:
        raise InputError("%s has NaN or infinity in %d of %d variables, such as %s: the training behind it has diverged; take what "
                         "was saved before that, or get it again" % (source, len(wrong), len(values), wrong[0]))
    return weights


class CheckpointRestore(DictRestore):
    """Restores a whole checkpoint or nothing: reads and verifies it all first, then compares it with the graph.

    Args:
        path (str): the checkpoint's prefix, or one of its files.
        names (re.Pattern): which variables to restore. All of them must be there, and no other such ones.

    Attributes: `path` is the prefix, `shapes` {name: shape} of all model variables in the checkpoint, `values` {name: array} of
    what is restored, `record` its Record, and `variant` that of it. Weights of the model are finite numbers, in float32.
    Raises:
        InputError: see `read_checkpoint`, `record_in`, `finite_weights`.
        CheckpointMismatch: when the session is made, if these variables are not exactly those of the graph.
    """

    def __init__(self, path, names=MODEL_VARIABLE):
        self.path, values = read_checkpoint(path)
        self.names = names
        self.record = record_in(values, self.path)
        self.variant = self.record.variant
        values = {name: value for name, value in values.items() if not RECORD.search(name)}
        self.shapes = {name: value.shape for name, value in values.items() if MODEL_VARIABLE.search(name)}
        self.values = {name: value for name, value in values.items() if names.search(name)}
        # What else a training continues from, such as a moving average that is only printed, may be infinite.
        self.values.update(finite_weights({name: value for name, value in self.values.items() if MODEL_VARIABLE.search(name)},
                                          'the checkpoint ' + self.path))
        super(CheckpointRestore, self).__init__(self.values)

    def _setup_graph(self):
        self.compare_with_graph()

    def compare_with_graph(self):
        """Raises CheckpointMismatch if what is restored is not exactly what the current graph has of such variables.

        InputError if it is that, but of another dtype.
        """
        variables = {v.op.name: v for v in tf.global_variables() if self.names.search(v.op.name)}
        graph = {name: tuple(variable.shape.as_list()) for name, variable in variables.items()}
        found = {name: value.shape for name, value in self.values.items()}
        wrong = sorted(name for name in set(graph) | set(found) if graph.get(name) != found.get(name))
        if wrong:
            raise CheckpointMismatch("the checkpoint %s does not fit the model in %d of %d variables: %s" % (
                self.path, len(wrong), len(set(graph) | set(found)),
                first_differences(wrong, found, graph, 'in the checkpoint')), self)
        for name, variable in sorted(variables.items()):    # of a training: the weights have been converted
            if self.values[name].dtype != variable.dtype.base_dtype.as_numpy_dtype:
                raise InputError("the checkpoint %s does not fit the model: %s is %s there, not %s; get it again" % (
                    self.path, name, self.values[name].dtype, variable.dtype.base_dtype.name))


def save_checkpoint(session, saver, path):
    """Saves what `saver` knows as checkpoint `path`; see write_checkpoint."""
    write_checkpoint(path, lambda unfinished: saver.save(session, unfinished, write_meta_graph=False, write_state=False))


def write_checkpoint(path, write):
    """Has ``write(path)`` write a checkpoint elsewhere, and gives it the name `path`: the index last, when all is on the disk.

    Raises:
        InputError: it cannot be written.
    """
    folder = os.path.dirname(path) or '.'
    try:
        path.encode()    # for TensorFlow
        with work_folder(folder) as work:
            unfinished = os.path.join(work, 'saved')
            write(unfinished)
            files = sorted(glob.glob(glob.escape(unfinished) + '.*'))    # .data-00000-of-00001, .index
            for file in files:
                sync(file)
            for file in files:
                os.replace(file, path + file[len(unfinished):])
            sync(folder)
    except UnicodeError:
        raise InputError("cannot write the checkpoint %s: TensorFlow writes only to folders whose names are in UTF-8" % path)
    except (OSError, tf.errors.OpError) as error:
        reasons = [line for line in str(error).splitlines() if folder in line and 'rror' not in line] or [type(error).__name__]
        raise InputError("cannot write the checkpoint %s (%s): make room" % (path, reasons[0].strip()[:200]))


def record_values(record):
    """What is saved with a checkpoint so that it has this Record: {name: array}."""
    values = {} if record.variant == PUBLISHED else {'variant': np.array(record.variant.encode(), object)}
    if record.classes is not None:
        values['classes'] = np.array([[text.encode('utf-8', 'surrogateescape') for text in pair] for pair in record.classes],
                                     object)
    if record.val_share is not None:
        values['val_share'] = np.float64(record.val_share)
    if record.image_size != IMAGE_SIZE:
        values['image_size'] = np.int32(record.image_size)
    return values


def record_variables(record):
    """Variables of the current graph with the ``record_values``."""
    with tf.device('/cpu:0'):    # local: Horovod has no broadcast for strings
        return [tf.get_variable(name, initializer=tf.constant(value), trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES])
                for name, value in sorted(record_values(record).items())]


def save_values(values, path, record=UNRECORDED):
    """Saves `values`, {variable name: array}, as checkpoint `path` with this Record: by the operation behind tf.train.Saver, since
    variables that only carry values there would take seconds."""
    values = sorted((name, np.asarray(value)) for name, value in dict(values, **record_values(record)).items())
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session:
        prefix = tf.placeholder(tf.string, [])
        tensors = [tf.placeholder(tf.string if value.dtype == object else value.dtype, value.shape) for _, value in values]
        save = save_tensors(prefix, [name for name, _ in values], tensors)
        write = session.make_callable(save, [prefix] + tensors)
        write_checkpoint(path, lambda unfinished: write(unfinished, *(value for _, value in values)))
