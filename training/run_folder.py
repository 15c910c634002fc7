"""The folder of a run: what is in it, who may write to it, and from where an interrupted run continues.

``run.json`` (what the run was started with), ``model-<step>`` (all that training needs, after each epoch), ``best-<step>`` (the
model variables of the lowest validation error), ``ghostnet_checkpoint`` (those at the end), ``stats.json``, TensorBoard's events,
Tensorpack's log, ``curves.png``. Steps count from 1, as Tensorpack's global_step.
"""
import collections
import contextlib
import glob
import json
import math
import os
import re

from tf_compat import tf  # noqa: F401  (before Tensorpack)

import filelock
from tensorpack.callbacks import JSONWriter
from tensorpack.utils import logger

from checkpoints import PUBLISHED, CheckpointRestore, save_values
from command_line import InputError, remove_abandoned, write_json
from recipe import IMAGE_SIZE, Schedule

# What a kill has left, of this project's first versions too: they had no folders for it.
UNFINISHED = re.compile(r'unfinished-(model-\d+|best-\d+|ghostnet_checkpoint)\.|(stats\.json|run\.json|curves\.png).*\.tmp$')

BATCHES = 'batches'    # in run.json: [[the step from which on the run has a batch, the epochs done by then, that batch], ...]

# What a run continues with: all but moving averages of what is reported, which Tensorpack 0.9.7 saves and 0.11 does not.
STATE = re.compile('^(?!EMA/)')


def saved_steps(folder, kind):
    """The steps of the checkpoints ``<kind>-<step>`` in a folder, in increasing order. One without an index is none."""
    found = [re.match(r'%s-(\d+)\.index$' % kind, name) for name in os.listdir(folder)]
    return sorted(int(match.group(1)) for match in found if match)


def remove_checkpoints(folder, kind, steps):
    """Removes some, each index first: what is left of an interrupted removal is no checkpoint."""
    for step in steps:
        for file in sorted(glob.glob(os.path.join(glob.escape(folder), '%s-%d.*' % (kind, step))), reverse=True):
            os.remove(file)


def save_again(source, path):
    """Saves the model variables of checkpoint `source` as checkpoint `path`."""
    restore = CheckpointRestore(source)
    save_values(restore.values, path, restore.record)


def read_stats(folder):
    """Tensorpack's stats.json: a list of {name: value}, one for each epoch."""
    path = os.path.join(folder, JSONWriter.FILENAME)
    if not os.path.exists(path):
        return []
    try:
        with open(path) as f:
            return [entry for entry in json.load(f) if 'val-error-top1' in entry]
    except (ValueError, TypeError) as error:
        raise InputError("cannot read %s (%s): name another --log_dir" % (path, error))


def lowest_error(folder):
    """The validation error of the checkpoint ``best-<step>`` in a folder, infinite if there is none."""
    best = saved_steps(folder, 'best')
    return min([entry['val-error-top1'] for entry in read_stats(folder) if entry['global_step'] in best] + [math.inf])


def patience_is_over(folder, patience):
    """Whether the validation error has not become lower in the last `patience` epochs; never if that is None."""
    errors = [entry['val-error-top1'] for entry in read_stats(folder)]
    return patience is not None and len(errors) > patience and len(errors) - errors.index(min(errors)) > patience


@contextlib.contextmanager
def locked(folder):
    """Makes the folder, and keeps other processes from training in it.

    Raises:
        InputError: another process is.
    """
    os.makedirs(folder, exist_ok=True)
    lock = filelock.FileLock(os.path.join(folder, '.lock'))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError("another process is training in --log_dir %s: wait for its end, or name another folder" % folder)
    try:
        yield
    finally:
        lock.release()


# Where a run continues: the steps done; the CheckpointRestore to continue from, or None; its seed; `began` of its recipe.Schedule;
# which options are not as before, {name: former value}.
Opened = collections.namedtuple('Opened', 'step restore seed began changed')


def check_options(folder, options, seed, changeable):
    """Compares `options` and `seed` with those of the run in a folder. Returns the latter's, and its seed."""
    path = os.path.join(folder, 'run.json')
    try:
        with open(path) as f:
            before = json.load(f)
        before.setdefault('--variant', PUBLISHED)    # there were no others
        before.setdefault('--image_size', IMAGE_SIZE)
        started_with = before.get('--seed')
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("cannot read %s, which records what the run was started with (%s): name another --log_dir" % (path, error))
    for name, value in sorted(options.items()) + [('--seed', started_with if seed is None else seed)]:
        if before.get(name) != value and name not in changeable:
            raise InputError("%s was %s when the run in --log_dir %s was started, and is %s now: give it as then"
                             % (name, before.get(name), folder, value))
    return before, started_with


def batches_of(before, options, done):
    """The list BATCHES of a run that did `done` steps with the options `before`, and continues with `options`.

    Raises InputError if it has done more epochs than it should take in all.
    """
    batches = [entry for entry in before.get(BATCHES, [[0, 0, before['--batch']]]) if entry[0] <= done]
    step, epoch, batch = batches[-1]
    images = options['number of training images']
    epoch = Schedule(images, batch, options['--lr'], options['--epochs'], (step, epoch)).epochs_done(done)
    if epoch > options['--epochs']:
        raise InputError("the run has done %d epochs, more than --epochs %d" % (epoch, options['--epochs']))
    return batches if batch == options['--batch'] else [b for b in batches if b[0] < done] + [[done, epoch, options['--batch']]]


def open_run(folder, options, seed, resume, changeable=()):
    """Prepares the folder for a new run, or finds where an interrupted one continues.

    Args:
        options (dict): what the run depends on besides the seed: {name: value}; '--batch', '--epochs', '--lr' and 'number
            of training images' are among them.
        seed (int): None for that of the run that is resumed, or for a new one.
        changeable (list of str): those of '--batch', '--epochs' and '--lr' that may be others than before.
    Returns:
        Opened
    Raises:
        InputError: the folder has another run's files, or its checkpoints cannot be read.
    """
    steps, record, before = saved_steps(folder, 'model'), os.path.join(folder, 'run.json'), options
    results = steps + saved_steps(folder, 'best') + glob.glob(os.path.join(glob.escape(folder), 'ghostnet_checkpoint.*'))
    if results and not resume:
        raise InputError("--log_dir %s has the checkpoints of another run: add --resume to continue it, or name another folder"
                         % folder)
    if (results and not steps) or (os.path.exists(os.path.join(folder, JSONWriter.FILENAME)) and not os.path.exists(record)):
        raise InputError("--log_dir %s has results, but not all that it takes to continue from there: name another folder" % folder)
    if steps:
        before, seed = check_options(folder, options, seed, changeable)
    elif seed is None:
        seed = int.from_bytes(os.urandom(4), 'little') >> 1
    done, restore = 0, None
    for step in reversed(steps):
        try:
            done, restore = step, CheckpointRestore(os.path.join(folder, 'model-%d' % step), STATE)
            break
        except InputError as error:
            logger.warning("%s; taking the one before", error)
    if steps and restore is None:
        raise InputError("none of the checkpoints in --log_dir %s can be read: name another folder, and start again" % folder)
    batches = batches_of(before, options, done)
    if os.path.exists(record):
        clean_up(folder, done)
    write_json(record, collections.OrderedDict(sorted(dict(options, **{'--seed': seed, BATCHES: batches}).items())))
    changed = {name: before[name] for name in changeable if before[name] != options[name]}
    return Opened(done, restore, seed, tuple(batches[-1][:2]), changed)


def clean_up(folder, done):
    """Brings a run's folder to the state after step `done`: without what was unfinished, or belongs to later epochs."""
    remove_abandoned(folder)
    for name in os.listdir(folder):
        path, checkpoint = os.path.join(folder, name), re.match(r'(model|best)-(\d+)\.', name)
        if checkpoint and int(checkpoint.group(2)) > done:    # these cannot be read, or are better than what can
            os.rename(path, os.path.join(folder, 'damaged-' + name))
        elif (checkpoint and not os.path.exists(os.path.join(folder, checkpoint.group(0) + 'index'))) or UNFINISHED.match(name):
            os.remove(path)
    stats = [entry for entry in read_stats(folder) if entry['global_step'] <= done]
    if stats:
        write_json(os.path.join(folder, JSONWriter.FILENAME), stats)
    elif os.path.exists(os.path.join(folder, JSONWriter.FILENAME)):
        os.remove(os.path.join(folder, JSONWriter.FILENAME))
    # A kill between a checkpoint and its being the best, or damage, may have left no best, or a former one.
    saved = saved_steps(folder, 'model') + saved_steps(folder, 'best')
    known = [entry for entry in stats if entry['global_step'] in saved]
    best = min(known, key=lambda entry: entry['val-error-top1'])['global_step'] if known else None
    if best is not None and best not in saved_steps(folder, 'best'):
        save_again(os.path.join(folder, 'model-%d' % best), os.path.join(folder, 'best-%d' % best))
        remove_checkpoints(folder, 'best', [step for step in saved_steps(folder, 'best') if step != best])
