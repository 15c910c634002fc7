"""Training by the published recipe: learning rate, towers and workers, checkpoints to resume from, curves.

A run lives in one folder: ``run.json`` (what it was started with), ``model-<step>`` (all that training needs, after each epoch),
``best-<step>`` (the model variables of the lowest validation error), ``ghostnet_checkpoint`` (those at the end), ``stats.json``,
TensorBoard's events, Tensorpack's log, ``curves.png``. Steps count from 1 where they are printed, as Tensorpack's global_step.
"""
import fcntl
import glob
import json
import logging
import math
import os
import re
import signal
import sys
import time

from tf_compat import gpu_count, tf    # before all else that imports TensorFlow or OpenCV

import numpy as np
from tensorpack.callbacks import (
    Callback, ClassificationError, DataParallelInferenceRunner, EstimatedTimeLeft, HyperParamSetter, JSONWriter, MergeAllSummaries,
    MovingAverageSummary, RunUpdateOps)
from tensorpack.callbacks.monitor import MonitorBase
from tensorpack.dataflow import DataFlowTerminated, ProxyDataFlow
from tensorpack.input_source import QueueInput, StagingInput
from tensorpack.train import (
    DEFAULT_MONITORS, HorovodTrainer, SimpleTrainer, StopTraining, SyncMultiGPUTrainerReplicated, TrainConfig,
    launch_train_with_config)
from tensorpack.utils import logger
from tensorpack.utils.utils import get_tqdm

from command_line import InputError, cores, whole_file
from imagenet_utils import (
    ALL_BUT_LAST_LAYER, MODEL_VARIABLE, PUBLISHED, CheckpointRestore, ShuffledImages, eval_dataflow, layout_explained,
    quiet_logger, save_checkpoint, save_values, session_creator, train_dataflow, variant_variables)

KEPT = 10    # checkpoints to resume from, as Tensorpack's ModelSaver keeps


class Stopped(Exception):
    """A signal, `signum`, stopped the training. The message says how to go on."""

    def __init__(self, message, signum):
        super(Stopped, self).__init__(message)
        self.signum = signum


def not_finite(step, epoch):
    return InputError("the loss is not finite at step %d, in epoch %d: look at the data, or start anew in another --log_dir with a "
                      "lower --lr, from the best-... of this one, if there is one" % (step, epoch))


def steps_in_epoch(images, batch):
    """Steps of `batch` images in an epoch of `images`. Raises InputError if there is none."""
    if batch > images:
        raise InputError("--batch %d is more than the %d training images" % (batch, images))
    return images // batch


def learning_rate(step, steps_per_epoch, epochs, lr, batch):
    """The published recipe: `lr` per 256 images, linear warm-up from a quarter of it, cosine to zero, stepped every iteration.

    At batch 1024 that is 0.1 to 0.4 over five epochs. Runs of under 25 epochs warm up for a fifth of them.

    Args:
        step (int): from 0; the last is ``epochs * steps_per_epoch - 1``.
    """
    peak = lr * batch / 256.0
    warmup = min(5, epochs // 5) * steps_per_epoch
    if step < warmup:
        return peak * (0.25 + 0.75 * step / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (epochs * steps_per_epoch - warmup)))


# ------------------------------------------------------------------------------------------------------------- callbacks

class LearningRate(HyperParamSetter):
    """Sets the variable ``learning_rate`` before every step, to `schedule(step)`."""

    def __init__(self, schedule):
        super(LearningRate, self).__init__('learning_rate')
        self.schedule = schedule

    def _get_value_to_set(self):
        return self.schedule(self.global_step)

    def _trigger_epoch(self):
        pass

    def _before_run(self, _):
        self.trigger()


class Progress(Callback):
    """Shows images, images/s and the time that an epoch still takes, and reports its images/s."""

    def __init__(self, batch):
        self.batch = batch
        self.bar = None

    def _before_epoch(self):
        self.start = time.time()
        self.bar = get_tqdm(total=self.trainer.steps_per_epoch * self.batch, unit=' images')

    def _trigger_step(self):
        self.bar.update(self.batch)

    def _after_epoch(self):
        self.bar.close()
        self.speed = self.trainer.steps_per_epoch * self.batch / (time.time() - self.start)

    def _trigger_epoch(self):
        self.trainer.monitors.put_scalar('images-per-second', self.speed)

    def _after_train(self):
        if self.bar is not None:
            self.bar.close()


class Guard(Callback):
    """Ends the training after the step in which the loss was not finite, or SIGINT or SIGTERM came; the second one kills.

    With Horovod all workers end after the same step, whichever of them it concerns.
    """

    _chief_only = False
    signum = diverged = None
    before = ()

    def __init__(self, hvd):
        self.hvd = hvd

    def handle(self, signum, _):
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)

    def _setup_graph(self):
        cost = tf.add_n([tf.reduce_sum(tower['cost']) for tower in self.trainer.tower_func.towers.training()])
        self.told = tf.placeholder(tf.float32, [], 'told-to-stop')
        self.sums = tf.stack([cost, self.told])
        if self.hvd is not None:
            self.sums = self.hvd.allreduce(self.sums, op=self.hvd.Sum, name='guard')

    def _before_train(self):
        self.before = [(signum, signal.signal(signum, self.handle)) for signum in (signal.SIGINT, signal.SIGTERM)]

    def _after_train(self):
        for signum, handler in self.before:
            signal.signal(signum, handler)

    def _before_run(self, _):
        return tf.train.SessionRunArgs(self.sums, {self.told: float(self.signum is not None)})

    def _after_run(self, _, values):
        self.cost, self.stopping = values.results

    def _trigger_step(self):
        if not np.isfinite(self.cost):
            self.diverged = self.global_step
        if self.diverged is not None or self.stopping:
            raise StopTraining("step %d" % self.global_step)


class RoundInput(QueueInput):
    """A QueueInput that is not emptied before it is used anew: whoever takes its size() datapoints has taken one round of them."""

    def _reset_state(self):
        pass

    def _create_ema_callback(self):    # its variables would be in worker 0 alone, and Horovod wait for those of the others
        return Callback()


class StopHook(tf.train.SessionRunHook):
    """Ends a validation, between two of its batches, when a signal has come."""

    def __init__(self, guard):
        self.guard = guard

    def before_run(self, _):
        if self.guard.signum is not None:
            raise StopTraining("validation")


class Validation(DataParallelInferenceRunner):
    """Top-1 and top-5 error of the validation images, on all towers."""

    def __init__(self, images, towers, dtypes, guard):
        self.data, self.guard = KeepError(eval_dataflow(images, 32)), guard
        super(Validation, self).__init__(
            RoundInput(self.data, queue=tf.FIFOQueue(4, dtypes)),
            [ClassificationError('wrong-top1', 'val-error-top1'), ClassificationError('wrong-top5', 'val-error-top5')], towers)

    def _before_train(self):
        if self.guard.hvd is None:    # else the others would wait for this worker
            self.register_hook(StopHook(self.guard))
        super(Validation, self)._before_train()

    def _trigger(self):
        super(Validation, self)._trigger()
        if self.data.error is not None:
            raise StopTraining("validation")


class Checkpoints(MonitorBase):
    """Saves a checkpoint to resume from after each epoch, and the weights of the lowest validation error.

    A monitor because these come last: when a checkpoint appears, stats.json knows its epoch.
    """

    _chief_only = True
    error = None

    def __init__(self, folder, lowest, variant):
        self.folder, self.lowest, self.variant = folder, lowest, variant

    def _setup_graph(self):
        variables, record = tf.global_variables(), variant_variables(self.variant)
        self.all = tf.train.Saver(variables + record, max_to_keep=0)
        self.weights = tf.train.Saver([v for v in variables if MODEL_VARIABLE.search(v.op.name)] + record, max_to_keep=0)
        self.sum = tf.add_n([tf.reduce_sum(v) for v in tf.trainable_variables()])

    def _trigger_epoch(self):
        session, wrong = tf.get_default_session(), self.trainer.monitors.get_latest('val-error-top1')
        if not np.isfinite(session.run(self.sum)):    # the loss of the last step was that of the weights before
            self.error = not_finite(self.global_step, self.epoch_num)
            raise StopTraining("step %d" % self.global_step)
        try:
            save_checkpoint(session, self.all, os.path.join(self.folder, 'model-%d' % self.global_step))
            remove_checkpoints(self.folder, 'model', saved_steps(self.folder, 'model')[:-KEPT])
            if wrong < self.lowest:
                self.lowest = wrong
                save_checkpoint(session, self.weights, os.path.join(self.folder, 'best-%d' % self.global_step))
                remove_checkpoints(self.folder, 'best', saved_steps(self.folder, 'best')[:-1])
        except InputError as error:
            self.error = error
            raise StopTraining("checkpoint")


class KeepError(ProxyDataFlow):
    """Keeps in `error` what ended a dataflow: Tensorpack's enqueueing thread drops it, and training would seem to end well."""

    error = None

    def __iter__(self):
        try:
            for datapoint in self.ds:
                yield datapoint
        except Exception as error:
            self.error = error
            raise DataFlowTerminated()


class SplitInput(QueueInput):
    """A QueueInput that splits each datapoint evenly, in order, among the towers: which gets what does not depend on timing."""

    def __init__(self, ds, queue, towers):
        super(SplitInput, self).__init__(ds, queue)
        self.towers, self.shares = towers, None

    def _get_input_tensors(self):
        if self.shares is None:
            with tf.device('/cpu:0'):
                whole = super(SplitInput, self)._get_input_tensors()
                self.shares = zip(*[tf.split(tensor, self.towers) for tensor in whole])
        return list(next(self.shares))


# ------------------------------------------------------------------------------------------------------ the run's folder

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
    save_values(restore.values, path, restore.variant)


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


def lock(folder):
    """Makes the folder, and keeps other processes from training in it while this one lives."""
    os.makedirs(folder, exist_ok=True)
    try:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError("another process is training in --log_dir %s: wait for its end, or name another folder" % folder)


def check_options(folder, options):
    """Compares `options` with those of the run in a folder, from which a seed is taken that is not given now."""
    path = os.path.join(folder, 'run.json')
    try:
        with open(path) as f:
            before = json.load(f)
        before.setdefault('--variant', PUBLISHED)    # there were no others
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("cannot read %s, which tells what the run was started with (%s): name another --log_dir" % (path, error))
    if options['--seed'] is None:
        options['--seed'] = before.get('--seed')
    for name, value in options.items():
        if before.get(name) != value:
            raise InputError("%s was %s when the run in --log_dir %s was started, and is %s now: give it as then"
                             % (name, before.get(name), folder, value))


def open_run(folder, options, resume):
    """Prepares the folder for a new run, or finds where an interrupted one goes on.

    Args:
        options (dict): what the run depends on: {name: value}. A ``--seed`` of None becomes that of the run, or a new one.
    Returns:
        (int, CheckpointRestore): the steps done, and from what to go on, or None.
    Raises:
        InputError: the folder has another run's files, or its checkpoints cannot be read.
    """
    steps, record = saved_steps(folder, 'model'), os.path.join(folder, 'run.json')
    results = steps + saved_steps(folder, 'best') + glob.glob(os.path.join(glob.escape(folder), 'ghostnet_checkpoint.*'))
    if results and not resume:
        raise InputError("--log_dir %s has the checkpoints of another run: add --resume to go on with it, or name another folder"
                         % folder)
    if (results and not steps) or (os.path.exists(os.path.join(folder, JSONWriter.FILENAME)) and not os.path.exists(record)):
        raise InputError("--log_dir %s has results, but not all that it takes to go on from there: name another folder" % folder)
    if steps:
        check_options(folder, options)
    elif options['--seed'] is None:
        options['--seed'] = int.from_bytes(os.urandom(4), 'little') >> 1
    done, restore = 0, None
    for step in reversed(steps):
        try:
            done, restore = step, CheckpointRestore(os.path.join(folder, 'model-%d' % step), re.compile(''))
            break
        except InputError as error:
            logger.warning("%s; taking the one before", error)
    if steps and restore is None:
        raise InputError("none of the checkpoints in --log_dir %s can be read: name another folder, and start anew" % folder)
    if os.path.exists(record):
        clean_up(folder, done)
    with whole_file(record) as f:
        f.write(json.dumps(options, indent=2, sort_keys=True).encode() + b'\n')
    return done, restore


def clean_up(folder, done):
    """Brings a run's folder to the state after step `done`: without what was unfinished, or belongs to later epochs."""
    for name in os.listdir(folder):
        path, checkpoint = os.path.join(folder, name), re.match(r'(model|best)-(\d+)\.', name)
        if checkpoint and int(checkpoint.group(2)) > done:    # these cannot be read, or are better than what can
            os.rename(path, os.path.join(folder, 'damaged-' + name))
        elif (checkpoint and not os.path.exists(os.path.join(folder, checkpoint.group(0) + 'index'))) \
                or re.match(r'unfinished-(model|best|ghostnet_checkpoint)|(stats\.json|run\.json|curves\.png).*\.tmp$', name):
            os.remove(path)
    stats = [entry for entry in read_stats(folder) if entry['global_step'] <= done]
    if stats:
        with whole_file(os.path.join(folder, JSONWriter.FILENAME)) as f:
            f.write(json.dumps(stats).encode())
    elif os.path.exists(os.path.join(folder, JSONWriter.FILENAME)):
        os.remove(os.path.join(folder, JSONWriter.FILENAME))
    # A kill between a checkpoint and its being the best, or damage, may have left no best, or a former one.
    saved = saved_steps(folder, 'model') + saved_steps(folder, 'best')
    known = [entry for entry in stats if entry['global_step'] in saved]
    best = min(known, key=lambda entry: entry['val-error-top1'])['global_step'] if known else None
    if best is not None and best not in saved_steps(folder, 'best'):
        save_again(os.path.join(folder, 'model-%d' % best), os.path.join(folder, 'best-%d' % best))
        remove_checkpoints(folder, 'best', [step for step in saved_steps(folder, 'best') if step != best])


def draw_curves(folder):
    """Draws ``curves.png`` from ``stats.json``: loss, learning rate and errors by epoch."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    stats = read_stats(folder)
    figure, panels = plt.subplots(3, 1, sharex=True, figsize=(8, 10))
    for panel, title, names in zip(panels, ('loss', 'learning rate', 'error'), (
            ('cost', 'xentropy-loss'), ('learning_rate',),
            ('train-error-top1', 'val-error-top1', 'train-error-top5', 'val-error-top5'))):
        for name in names:
            points = [(entry['epoch_num'], entry[name]) for entry in stats if name in entry]
            if points:
                panel.plot(*zip(*points), label=name, marker='.' if len(points) < 50 else None)
                panel.legend()
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
        panel.grid(True, alpha=0.3)
    panels[-1].set_xlabel('epoch')
    figure.tight_layout()
    with whole_file(os.path.join(folder, 'curves.png')) as f:
        figure.savefig(f, format='png', dpi=100)
    plt.close(figure)


# -------------------------------------------------------------------------------------------------------------- training

def start_horovod():
    """Horovod, initialised.

    Raises:
        InputError: it is not installed.
    """
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise InputError("Horovod cannot be imported (%s): requirements-horovod.txt says how to install it"
                         % str(error).splitlines()[0])
    hvd.init()
    return hvd


def train(model, train_images, val_images, batch, epochs, smallest_area, log_dir, options, load=None, finetune=False, gpus=0,
          towers=1, horovod=False, resume=False):
    """Trains by the published recipe (`learning_rate`), validates and saves every epoch, and draws the curves at the end.

    Args:
        model (ImageNetModel): what to train.
        train_images, val_images (list of [path, label]): from ``read_images``.
        batch (int): images a step, of all towers and workers together.
        smallest_area (float): that of ``augment``.
        log_dir (str): the run's folder.
        options (dict): what the run depends on, see `open_run`. Its ``--seed`` fixes initial weights, order and augmentation
            for a given number of towers and workers.
        load (str): checkpoint to start from, where the run does not go on from one of its own; `finetune`: but for the last layer.
        gpus (int): GPUs to train on; 0 for the device that TensorFlow picks, or for
        towers (int): so many replicas on the CPU.
        horovod (bool): be one of the workers that horovodrun started. Worker 0 alone validates and writes.
    Raises:
        InputError: the batch does not fit images, towers or workers; an image cannot be read; there are fewer GPUs; the loss
            is not finite; a checkpoint cannot be written; or see `open_run`.
        Stopped: SIGINT or SIGTERM came.
    """
    if gpus and not horovod and gpu_count() < gpus:
        raise InputError("--gpu names %d GPUs, and TensorFlow can use %d: name those that 'nvidia-smi' shows, or leave --gpu out"
                         % (gpus, gpu_count()))
    hvd = start_horovod() if horovod else None
    worker, workers = (hvd.rank(), hvd.size()) if horovod else (0, 1)
    towers = 1 if horovod else max(gpus, towers)
    steps = steps_in_epoch(len(train_images), batch)
    if batch % (workers * towers):
        raise InputError("--batch %d cannot be split evenly among %d %s"
                         % (batch, workers * towers, 'workers' if horovod else 'towers'))

    done, session_init, refusal = 0, None, None
    if worker == 0:
        try:
            lock(log_dir)
            done, session_init = open_run(log_dir, options, resume)
            logger.set_logger_dir(log_dir, action='k')
            if done:
                logger.info("Going on after epoch %d, step %d", done // steps, done)
            elif load is not None:
                session_init = CheckpointRestore(load, ALL_BUT_LAST_LAYER if finetune else MODEL_VARIABLE)
                for name in sorted(set(session_init.shapes) - set(session_init.values)):
                    logger.info("Not taken from %s: %s", session_init.path, name)
        except InputError as error:
            refusal = error
    else:
        quiet_logger()
    if horovod:
        options['--seed'], done, refused = tell(hvd, (options['--seed'], done, refusal is not None))
        if refused and worker:    # worker 0 says why, if horovodrun lets it live until then
            time.sleep(1)
            sys.exit(2)
    if refusal is not None:
        raise refusal
    # Dropout goes on differently in a run that is resumed, and is different in each worker.
    tf.set_random_seed((options['--seed'] + done + worker) % 2 ** 31)

    guard, dtypes = Guard(hvd), [spec.dtype for spec in model.inputs()]
    threads = max(1, cores() // (hvd.local_size() if horovod else 1))
    shuffled = ShuffledImages(train_images, options['--seed'], batch, done, worker, workers)
    data = KeepError(train_dataflow(shuffled, smallest_area, threads))
    source = SplitInput(data, tf.FIFOQueue(4, dtypes), towers)
    callbacks = [LearningRate(lambda step: learning_rate(step, steps, epochs, model.lr, batch)), guard]
    monitors, kept = [], []
    if worker == 0:
        validation = Validation(val_images, towers, dtypes, guard)
        best = saved_steps(log_dir, 'best')
        checkpoints = Checkpoints(log_dir, min([entry['val-error-top1'] for entry in read_stats(log_dir)
                                                if entry['global_step'] in best] + [math.inf]), model.variant)
        callbacks.append(validation)
        monitors, kept = DEFAULT_MONITORS() + [checkpoints], [validation.data, checkpoints]
    if horovod:
        trainer = HorovodTrainer()
    elif towers > 1:
        # On GPUs Tensorpack chooses: with TensorFlow 1.13.1, NCCL.
        trainer = SyncMultiGPUTrainerReplicated(towers, mode=None if gpus else 'cpu')
        source = StagingInput(source)
    else:
        trainer = SimpleTrainer()
    # Tensorpack logs that a training failed with a wrong format, and logging would print a traceback about that.
    logging.raiseExceptions = False
    # With TensorFlow 1's variables, a kernel would be updated while its layer's other gradient is still computed from it.
    trainer.GATE_GRADIENTS = True
    if done < steps * epochs:
        try:
            with layout_explained(model):
                launch_train_with_config(TrainConfig(
                    model=model, data=source, callbacks=callbacks, monitors=monitors,
                    extra_callbacks=[MovingAverageSummary(), Progress(batch), EstimatedTimeLeft(), MergeAllSummaries(), RunUpdateOps()],
                    session_init=session_init, session_creator=session_creator(threads),
                    steps_per_epoch=steps, starting_epoch=done // steps + 1, max_epoch=epochs), trainer)
        except tf.errors.ResourceExhaustedError:
            raise InputError("--batch %d does not fit into memory: make it smaller, or use more GPUs" % batch)
        except tf.errors.UnknownError as error:
            if 'Horovod' not in error.message:
                raise
            raise InputError("another worker has ended: see what it says")
        done = trainer.global_step
    errors = [part.error for part in kept + [data] * (done < steps * epochs)    # what was read ahead of the end does not matter
              if part.error is not None]
    try:
        conclude(log_dir if worker == 0 else None, guard, errors, done, steps, epochs)
    finally:
        if worker == 0:
            try:
                draw_curves(log_dir)
            except Exception as error:    # matplotlib is missing or fails, the disk is full: it says nothing of the training
                logger.warning("curves.png is not drawn: %s", error)
        if horovod and not errors:    # horovodrun ends all workers as soon as one has ended badly: let worker 0 finish
            tell(hvd, None)


def tell(hvd, value):
    """What worker 0 passes as `value`, in all workers."""
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})).as_default():
        return hvd.broadcast_object(value, 0)


def conclude(folder, guard, errors, done, steps, epochs):
    """Says why the training ended early, after step `done`, or writes its result into the folder, if this is worker 0."""
    if guard.diverged is not None:
        raise not_finite(guard.diverged, (guard.diverged - 1) // steps + 1)
    if errors:
        raise errors[0]
    finished = done == steps * epochs
    if folder is not None:
        model = os.path.join(folder, 'model-%d' % (steps * epochs))
        finished = os.path.exists(model + '.index')
        if finished:
            save_again(model, os.path.join(folder, 'ghostnet_checkpoint'))
    if not finished:
        raise Stopped("stopped after step %d of %d: the same command with --resume goes on after the last whole epoch"
                      % (done, steps * epochs), guard.signum or signal.SIGTERM)
