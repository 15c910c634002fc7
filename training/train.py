"""`train`: one run of the published recipe, from the flags' values to the checkpoint at the end."""
import collections
import contextlib
import logging
import os
import signal

from tf_compat import need_memory, only_cpus, tf

from tensorpack.callbacks import EstimatedTimeLeft, MergeAllSummaries, RunUpdateOps
from tensorpack.input_source import StagingInput
from tensorpack.train import DEFAULT_MONITORS, SyncMultiGPUTrainerReplicated, TrainConfig, launch_train_with_config
from tensorpack.utils import logger

from checkpoints import MODEL_VARIABLE, UNRECORDED, CheckpointRestore, describe
from command_line import InputError, Stopped, cores, quiet_tensorpack, write_json
from ghostnet import TOP, absent_top, all_but
from imagenet_utils import ShuffledImages, layout_explained, measured, session_creator, train_dataflow
from pictures import listed
from recipe import Schedule, steps_per_epoch
from training.callbacks import Checkpoints, EpochMeans, Guard, LearningRate, Progress, Validation, not_finite
from training.curves import draw_curves
from training.inputs import KeepError, SplitInput
from training.run_folder import locked, open_run, patience_is_over, save_again, saved_steps
from training.workers import OneWorker

# Images to train on and to validate on, both [[path, label], ...], the smallest share of an image that a crop may have, and the
# PictureReader.
Data = collections.namedtuple('Data', 'train val smallest_area reader')
Start = collections.namedtuple('Start', 'step restore seed began enough')           # where a run begins, if patience is not over
# How its training ended; `together`: after the same step in all workers. `asker`: the worker that was asked to stop.
Outcome = collections.namedtuple('Outcome', 'step diverged signum errors enough together asker')


class Run:
    """What one run is: where it writes, how long it takes, from what it starts, and on what it computes.

    Args:
        folder (str): the run's folder, see training/run_folder.py.
        batch (int): images a step, of all towers and workers together.
        epochs (int): how many.
        seed (int): fixes initial weights, order and augmentation for a given number of towers and workers; None for a random one.
        record (Record): what its checkpoints record.
        options (dict): what else the run depends on, {name: value}: it can be resumed only with the same.
        load (str): checkpoint to start from; with `finetune`, all but its last layer.
        patience (int): end after so many epochs without a lower validation error, with the weights of that; None for never.
        resume (bool): continue after the last checkpoint in the folder, if there is one.
        changeable (list of str): those of '--batch', '--epochs' and '--lr' that may then be others than before.
        gpus (int): GPUs to train on; 0 for the device that TensorFlow picks, or for
        towers (int): as many replicas on the CPU.
        workers: the processes that train together, see training/workers.py. Worker 0 alone writes.
        xla (bool): XLA compiles what it can of a step.
    """

    def __init__(self, folder, batch, epochs, seed=None, record=UNRECORDED, options=(), load=None,
                 finetune=False, patience=None, resume=False, changeable=(), gpus=0, towers=1, workers=None, xla=False):
        self.folder, self.batch, self.epochs, self.seed = folder, batch, epochs, seed
        self.options, self.changeable = dict(options, **{'--batch': batch, '--epochs': epochs}), changeable
        self.record, self.patience = record, patience
        self.load, self.finetune, self.resume = load, finetune, resume
        self.workers, self.xla = workers or OneWorker(), xla
        self.gpus, self.towers = gpus, max(gpus, towers) if self.workers.has_towers else 1
        self.chief = self.workers.rank == 0


def train(model, data, run):
    """Trains by the published recipe (recipe.py), validates and saves every epoch, and draws the curves at the end.

    Args:
        model (ImageNetModel): what to train.
        data (Data): images.
        run (Run): the rest.
    Raises:
        InputError: the batch does not fit images, towers or workers; an image cannot be read; there are fewer GPUs; the loss
            is not finite; a checkpoint cannot be written; or see `open_run`.
        Stopped: SIGINT or SIGTERM came.
    """
    steps_per_epoch(len(data.train), run.batch)    # now, rather than when the folder is made
    run.options.update({'--lr': model.lr, 'number of training images': len(data.train)})
    need_memory(1)    # what a small batch takes besides; a larger one takes more
    check_shares(run, data)
    run.workers.check(dict(run.options, **{'--seed': run.seed}), data.train)
    with contextlib.ExitStack() as stack:
        start = agree_on_start(run, stack)
        schedule = Schedule(len(data.train), run.batch, model.lr, run.epochs, start.began)
        if start.step:
            logger.info("Continuing after epoch %d, step %d, with the learning rate %g",
                        schedule.epochs_done(start.step), start.step, schedule.learning_rate(start.step))
        outcome = Outcome(start.step, None, None, [], start.enough, True, None)
        if start.step < schedule.last and not start.enough:
            stack.enter_context(logging_errors_hidden())
            outcome = fit(model, data, run, start, schedule)
        try:
            conclude_run(run, outcome, schedule)
        finally:
            if run.chief:
                try_to_draw_curves(run.folder)
            if outcome.together and not outcome.errors:
                run.workers.finish()


def check_shares(run, data):
    """Raises InputError where the batch, or the validation images, cannot be split."""
    shares, kind = (run.towers, 'towers') if run.workers.has_towers else (run.workers.size, 'workers')
    if run.batch % shares:
        raise InputError("--batch %d cannot be split evenly among %d %s" % (run.batch, shares, kind))
    if run.workers.splits_validation and len(data.val) < run.workers.size:
        raise InputError("%d validation images are too few for %d workers" % (len(data.val), run.workers.size))


def agree_on_start(run, stack):
    """Where the run begins, a Start: worker 0 opens the folder, until `stack` is closed, and the others learn of it."""
    start, refusal = Start(0, None, None, None, False), None
    if run.chief:
        try:
            stack.enter_context(locked(run.folder))
            opened = open_run(run.folder, run.options, run.seed, run.resume, run.changeable)
            start = Start(opened.step, opened.restore, opened.seed, opened.began, patience_is_over(run.folder, run.patience))
            stack.enter_context(logging_to(run.folder))
            for name, before in sorted(opened.changed.items()):
                logger.warning("%s was %g, and is %g from here on: the learning rate is that of a run which has always had it",
                               name, before, run.options[name])
            if start.step == 0 and run.load is not None:
                start = start._replace(restore=restore_for_start(run))
        except InputError as error:
            refusal = error
    else:
        quiet_tensorpack()
    step, seed, began, enough, refused = run.workers.broadcast(
        (start.step, start.seed, start.began, start.enough, refusal is not None))
    if refusal is not None:
        raise refusal
    if refused:
        wait_for_chief_to_end(run.workers)
    return start._replace(step=step, seed=seed, began=began, enough=enough)


def restore_for_start(run):
    """What a new run restores from ``run.load``."""
    absent = absent_top(describe(run.load).shapes) if run.finetune else []
    restore = CheckpointRestore(run.load, all_but(absent or TOP[:1]) if run.finetune else MODEL_VARIABLE)
    for scope in absent:
        logger.info("Not in %s, and trained from the start: %s", restore.path, scope)
    for name in sorted(set(restore.shapes) - set(restore.values)):
        logger.info("Not taken from %s: %s", restore.path, name)
    return restore


def wait_for_chief_to_end(workers):
    """Lets worker 0 report why it refuses, which this worker's end would prevent: horovodrun then ends all."""
    with contextlib.suppress(Exception):    # Horovod raises several kinds when worker 0 ends
        workers.broadcast(None)    # worker 0 does not take part
    raise InputError("worker 0 has ended: see what it prints")


def fit(model, data, run, start, schedule):
    """Trains from `start` to the end of a Schedule, or to where it is stopped. Returns an Outcome."""
    workers = run.workers
    with tf.Graph().as_default():
        # Dropout continues differently in a run that is resumed, and is different in each worker.
        tf.set_random_seed((start.seed + start.step + workers.rank) % 2 ** 31)
        threads = max(1, cores() // workers.local_size)
        guard, dtypes = Guard(workers), [spec.dtype for spec in model.inputs()]
        images = ShuffledImages(data.train, start.seed, run.batch, schedule.position(start.step), workers.rank, workers.size)
        dataflow = KeepError(train_dataflow(images, data.smallest_area, threads, data.reader))
        callbacks = [LearningRate(schedule.learning_rate), guard]
        monitors, watched = [], []
        if run.chief or workers.splits_validation:
            validation = Validation(data, model.num_classes, run.towers, dtypes, guard, threads)
            callbacks.append(validation)
            watched.append(validation.data)
        if run.chief:
            checkpoints = Checkpoints(run.folder, run.record, run.patience, guard)
            monitors = DEFAULT_MONITORS() + [checkpoints]
            watched.append(checkpoints)
        trainer = workers.trainer(run.gpus, run.towers)
        source = SplitInput(dataflow, tf.FIFOQueue(4, dtypes), run.towers)
        # With TensorFlow 1's variables, a kernel would be updated while its layer's other gradient is still computed from it.
        trainer.GATE_GRADIENTS = True
        with layout_explained(model), training_errors_explained(run):
            launch_train_with_config(TrainConfig(
                model=model, data=StagingInput(source) if isinstance(trainer, SyncMultiGPUTrainerReplicated) else source,
                callbacks=callbacks, monitors=monitors,
                extra_callbacks=[
                    EpochMeans(measured(model.num_classes)), Progress(run.batch), EstimatedTimeLeft(), MergeAllSummaries(),
                    RunUpdateOps()],
                # On CPUs, rewriting the graphs takes ten seconds and makes no step faster.
                session_init=start.restore,
                session_creator=session_creator(threads, not only_cpus(), model.mixed_precision, run.xla),
                steps_per_epoch=schedule.steps, starting_epoch=schedule.epochs_done(start.step) + 1, max_epoch=run.epochs), trainer)
    if trainer.global_step < schedule.last:    # else what was read ahead of the end does not matter
        watched.append(dataflow)
    if data.reader.left_out:
        logger.warning("%d broken pictures were left out, see left_out.json; others took their places in training",
                       len(data.reader.left_out))
        if run.chief:
            write_json(os.path.join(run.folder, 'left_out.json'), listed(data.reader.left_out))
    together = guard.together or trainer.global_step == schedule.last
    if together:
        workers.agree()
    errors = [part.error for part in watched if part.error is not None]
    return Outcome(trainer.global_step, guard.diverged, guard.signum, errors, guard.enough, together, guard.asker)


@contextlib.contextmanager
def training_errors_explained(run):
    """Turns what TensorFlow raises for a lack of memory, or of a worker, into an InputError."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise InputError("--batch %d does not fit into memory: make it smaller, or use more GPUs" % run.batch)
    except tf.errors.OpError as error:
        run.workers.explain(error)
        raise


@contextlib.contextmanager
def logging_errors_hidden():
    """Tensorpack logs that a training failed with a wrong format, and logging would print a traceback about that."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


@contextlib.contextmanager
def logging_to(folder):
    """Tensorpack's log goes to a file in the folder too."""
    log = logging.getLogger('tensorpack')
    before = log.handlers[:]
    logger.set_logger_dir(folder, action='k')
    try:
        yield
    finally:
        for handler in [handler for handler in log.handlers if handler not in before]:
            log.removeHandler(handler)
            handler.close()


def conclude_run(run, outcome, schedule):
    """Writes the result into the folder, if this is worker 0; raises what ended the training early."""
    if outcome.diverged is not None:
        raise not_finite(outcome.diverged, schedule.epochs_done(outcome.diverged - 1) + 1)
    if outcome.errors:
        raise outcome.errors[0]
    finished = outcome.enough or outcome.step == schedule.last
    if run.chief:
        last = os.path.join(run.folder, 'model-%d' % schedule.last)
        finished = outcome.enough or os.path.exists(last + '.index')
        if run.patience is not None:
            last = os.path.join(run.folder, 'best-%d' % max(saved_steps(run.folder, 'best'), default=0))
        if finished:
            save_again(last, os.path.join(run.folder, 'ghostnet_checkpoint'))
    if not finished:
        asked = "" if outcome.asker in (None, run.workers.rank) else "worker %d was asked to stop: " % outcome.asker
        raise Stopped("%sstopped after step %d of %d: the same command with --resume continues after the last whole epoch"
                      % (asked, outcome.step, schedule.last), outcome.signum or signal.SIGTERM)


def try_to_draw_curves(folder):
    """Draws the curves. That matplotlib is missing or fails, or that the disk is full, says nothing of the training."""
    try:
        draw_curves(folder)
    except Exception as error:
        logger.warning("curves.png is not drawn: %s", error)
