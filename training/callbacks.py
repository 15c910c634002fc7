"""What Tensorpack calls while it trains: the learning rate, progress, the watch over loss and signals, validation, checkpoints."""
import os
import signal
import time

from tf_compat import tf

import numpy as np
from tensorpack.callbacks import Callback, ClassificationError, DataParallelInferenceRunner, HyperParamSetter
from tensorpack.callbacks.monitor import MonitorBase
from tensorpack.train import StopTraining
from tensorpack.utils.utils import get_tqdm

from checkpoints import MODEL_VARIABLE, record_variables, save_checkpoint
from command_line import InputError
from dataset import tops
from imagenet_utils import eval_dataflow
from training.inputs import KeepError, RoundInput
from training.run_folder import lowest_error, patience_is_over, remove_checkpoints, saved_steps

KEPT = 10    # checkpoints to resume from, as many as Tensorpack's ModelSaver keeps


def not_finite(step, epoch):
    """The InputError for a loss, or weights, that are not finite."""
    return InputError("the loss is not finite at step %d, in epoch %d: look at the data, or start again in another --log_dir with "
                      "a lower --lr, from the best-... of this one, if there is one" % (step, epoch))


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


class EpochMeans(Callback):
    """Reports what scalars of the model, by name, are on average over an epoch and all towers.

    A moving average would begin anew in a run that is resumed.
    """

    def __init__(self, names):
        self.names = names

    def _setup_graph(self):
        self.values = tf.stack([tf.add_n([tower[name] for tower in self.towers()]) for name in self.names])

    def towers(self):
        return self.trainer.tower_func.towers.training()

    def _before_epoch(self):
        self.sums = np.zeros(len(self.names))

    def _before_run(self, _):
        return tf.train.SessionRunArgs(self.values)

    def _after_run(self, _, values):
        self.sums += values.results

    def _trigger_epoch(self):
        for name, value in zip(self.names, self.sums / (self.trainer.steps_per_epoch * len(self.towers()))):
            self.trainer.monitors.put_scalar(name, value)


class Guard(Callback):
    """Ends the training after the step in which the loss was not finite, or SIGINT or SIGTERM came; the second one kills. Or where
    worker 0 has set `enough`.

    All workers end after the same step, whichever of them it concerns.
    """

    _chief_only = False
    signum = diverged = None
    enough = together = False    # `together`: all workers have ended after the same step
    asker = None                 # the worker that was asked to stop
    before = ()

    def __init__(self, workers):
        self.workers = workers

    def handle(self, signum, _):
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)

    def _setup_graph(self):
        cost = tf.add_n([tf.reduce_sum(tower['cost']) for tower in self.trainer.tower_func.towers.training()])
        self.asked = tf.placeholder(tf.float32, [1 + self.workers.size], 'stop-asked')
        self.sums = self.workers.sum(tf.concat([[cost], self.asked], 0), 'guard')

    def _before_train(self):
        self.before = [(signum, signal.signal(signum, self.handle)) for signum in (signal.SIGINT, signal.SIGTERM)]

    def _after_train(self):
        for signum, handler in self.before:
            signal.signal(signum, handler)

    def _before_run(self, _):
        asked = [self.signum is not None and worker == self.workers.rank for worker in range(self.workers.size)]
        return tf.train.SessionRunArgs(self.sums, {self.asked: [self.enough] + asked})

    def _after_run(self, _, values):
        self.cost, enough = values.results[:2]
        self.enough = enough > 0
        self.asker = next(iter(np.flatnonzero(values.results[2:])), None)

    def _trigger_step(self):
        if not np.isfinite(self.cost):
            self.diverged = self.global_step
        if self.diverged is not None or self.asker is not None or self.enough:
            self.together = True
            raise StopTraining("step %d" % self.global_step)


class StopHook(tf.train.SessionRunHook):
    """Ends a validation, between two of its batches, when a signal has come."""

    def __init__(self, guard):
        self.guard = guard

    def before_run(self, _):
        if self.guard.signum is not None:
            raise StopTraining("validation")


class ErrorOfAll(ClassificationError):
    """The error of the images of all workers together."""

    def __init__(self, k, add):
        super(ErrorOfAll, self).__init__('wrong-top%d' % k, 'val-error-top%d' % k)
        self.add = add

    def _after_inference(self):
        wrong, count = self.add([int(self.err_stat.count), int(self.err_stat.total)])
        return {self.summary_name: wrong / max(count, 1)}


class Validation(DataParallelInferenceRunner):
    """Top-1 and top-5 error of the validation images, on all towers, and on all workers that split them."""

    def __init__(self, data, num_classes, towers, dtypes, guard, processes):
        self.guard, workers = guard, guard.workers
        self._chief_only = not workers.splits_validation
        images = data.val[workers.rank::workers.size] if workers.splits_validation else data.val
        self.data = KeepError(eval_dataflow(images, 32, data.reader, processes, endless=True))
        super(Validation, self).__init__(RoundInput(self.data, queue=tf.FIFOQueue(4, dtypes)),
                                         [ErrorOfAll(k, workers.add) for k in tops(num_classes)], towers)

    def _before_train(self):
        if self.guard.workers.splits_validation:    # else the others would wait for this worker
            self.register_hook(StopHook(self.guard))
        super(Validation, self)._before_train()

    def _trigger(self):
        super(Validation, self)._trigger()
        if self.data.error is not None:
            raise StopTraining("validation")


class Checkpoints(MonitorBase):
    """Saves a checkpoint to resume from after each epoch, and the weights of the lowest validation error. Ends the
    training, by `guard`, after `patience` epochs without a lower one, unless that is None.

    A monitor because these come last: when a checkpoint appears, stats.json knows its epoch.
    """

    _chief_only = True
    error = None

    def __init__(self, folder, record, patience, guard):
        self.folder, self.record, self.patience, self.guard = folder, record, patience, guard
        self.lowest = lowest_error(folder)

    def _setup_graph(self):
        variables, record = tf.global_variables(), record_variables(self.record)
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
            self.guard.enough = patience_is_over(self.folder, self.patience)
        except InputError as error:
            self.error = error
            raise StopTraining("checkpoint")
