"""TensorFlow checkpoints: reading them whole or not at all, saving them so, and what they say of their network."""
import glob
import os
import re

from tf_compat import tf

from tensorpack.tfutils import DictRestore

from command_line import InputError, sync

# The last part of the name of every variable that belongs to a model; what training adds (slots, counters) ends otherwise.
MODEL_VARIABLE = re.compile('(^|/)(W|DW|b|beta|gamma|EMA)$')
ALL_BUT_LAST_LAYER = re.compile('^(?!.*/Logits/).*' + MODEL_VARIABLE.pattern)
# The variant of a network is recorded in its checkpoints as a string of this name, unless it is the published one.
VARIANT, PUBLISHED = 'variant', 'published'


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
        (str, dict): the prefix, and {name: np.ndarray, or bytes for a string}.
    Raises:
        InputError: a file is missing, or a tensor cannot be read.
    """
    prefix = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
    for suffix in ('.index', '.data-00000-of-*'):
        if not glob.glob(glob.escape(prefix) + suffix):
            raise InputError("there is no checkpoint %s: its file %s is missing" % (prefix, prefix + suffix))
    name, values = None, {}
    try:
        reader = tf.train.NewCheckpointReader(prefix)
        for name in sorted(filter(names.search, reader.get_variable_to_shape_map())):
            values[name] = reader.get_tensor(name)
    except Exception as error:    # tf.errors, but in TensorFlow 2 also IndexError, RuntimeError and others
        raise InputError("the checkpoint %s cannot be read%s: get it again (%s)" % (
            prefix, '' if name is None else ' at ' + name, (str(error).splitlines() or [repr(error)])[0][:200]))
    return prefix, values


def first_differences(names, found, expected, where):
    """Of `names`, the first three with their shapes in `found`, which are those `where`, and in a model, `expected`: one line."""
    first = ['%s is %s %s, %s in the model' % (name, found.get(name, 'absent'), where, expected.get(name, 'absent'))
             for name in names[:3]]
    return '; '.join(first + ['...'] if len(names) > 3 else first)


def recorded_variant(path):
    """The variant of the network that a checkpoint is of. Raises InputError: see `read_checkpoint`."""
    return read_checkpoint(path, re.compile('^%s$' % VARIANT))[1].get(VARIANT, PUBLISHED.encode()).decode()


class CheckpointRestore(DictRestore):
    """Restores a whole checkpoint or nothing: reads and verifies it all first, then compares it with the graph.

    Args:
        path (str): the checkpoint's prefix, or one of its files.
        names (re.Pattern): which variables to restore. All of them must be there, and no other such ones.

    Attributes: `path` is the prefix, `shapes` {name: shape} of all model variables in the checkpoint, `values` {name: array} of
    what is restored, `variant` the network's.
    Raises:
        InputError: see `read_checkpoint`.
        CheckpointMismatch: when the session is made, if these variables are not exactly those of the graph.
    """

    def __init__(self, path, names=MODEL_VARIABLE):
        self.path, values = read_checkpoint(path)
        self.names = names
        self.variant = values.pop(VARIANT, PUBLISHED.encode()).decode()
        self.shapes = {name: value.shape for name, value in values.items() if MODEL_VARIABLE.search(name)}
        self.values = {name: value for name, value in values.items() if names.search(name)}
        super(CheckpointRestore, self).__init__(self.values)

    def _setup_graph(self):
        self.compare_with_graph()

    def compare_with_graph(self):
        """Raises CheckpointMismatch if what is restored is not exactly what the current graph has of such variables."""
        graph = {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables() if self.names.search(v.op.name)}
        found = {name: value.shape for name, value in self.values.items()}
        wrong = sorted(name for name in set(graph) | set(found) if graph.get(name) != found.get(name))
        if wrong:
            raise CheckpointMismatch("the checkpoint %s does not fit the model in %d of %d variables: %s" % (
                self.path, len(wrong), len(set(graph) | set(found)),
                first_differences(wrong, found, graph, 'in the checkpoint')), self)


def save_checkpoint(session, saver, path):
    """Saves what `saver` knows as checkpoint `path`. Its index appears last, when all is on the disk.

    Raises:
        InputError: it cannot be written.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, 'unfinished-' + name)
    try:
        saver.save(session, temporary, write_meta_graph=False, write_state=False)
        files = sorted(glob.glob(glob.escape(temporary) + '.*'))    # .data-00000-of-00001, .index
        for file in files:
            sync(file)
        for file in files:
            os.replace(file, path + file[len(temporary):])
        sync(folder or '.')
    except (OSError, tf.errors.OpError) as error:
        reasons = [line for line in str(error).splitlines() if name in line and 'rror' not in line] or [type(error).__name__]
        raise InputError("cannot write the checkpoint %s (%s): make room" % (path, reasons[0].strip()[:200]))


def variant_variables(variant):
    """The variables to save with a checkpoint so that it records its variant: none for the published one, else a string."""
    if variant == PUBLISHED:
        return []
    with tf.device('/cpu:0'):    # local: Horovod has no broadcast for strings
        return [tf.get_variable(VARIANT, initializer=tf.constant(variant), trainable=False,
                                collections=[tf.GraphKeys.LOCAL_VARIABLES])]


def save_values(values, path, variant):
    """Saves `values`, {variable name: array}, as checkpoint `path` of a network of this variant."""
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session:
        variables = [tf.get_variable(name, initializer=value) for name, value in sorted(values.items())]
        saver = tf.train.Saver(variables + variant_variables(variant))
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        save_checkpoint(session, saver, path)
