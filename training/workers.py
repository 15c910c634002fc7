"""The processes that train together: one alone, or those that horovodrun started; training/collective.py has the others.

A set of workers has `rank` (of this process), `size`, `local_size` (on this machine), `has_towers` (whether one of them may compute
on several devices), `splits_validation` (else worker 0 validates), and the methods of `OneWorker`.
"""
from tf_compat import gradient_mode, tf

from tensorpack.train import HorovodTrainer, SimpleTrainer, SyncMultiGPUTrainerReplicated

from command_line import InputError


class OneWorker:
    """A process that trains alone."""

    rank, size, local_size, has_towers, splits_validation = 0, 1, 1, True, True

    def check(self, options, images):
        """Raises InputError, which names the worker, if a worker has other `options`, {name: value}, or other [path, label]."""

    def broadcast(self, value):
        """What worker 0 passes as `value`, in all workers. Returns when all have called it."""
        return value

    def add(self, values):
        """The sums of a list of numbers over all workers, in each of them."""
        return values

    def sum(self, tensor, name):
        """The sum of `tensor` over all workers, in the graph."""
        return tensor

    def trainer(self, gpus, towers):
        """Tensorpack's trainer for this process: on `gpus` GPUs, or for 0 on the device that TensorFlow picks, or on `towers`."""
        if max(gpus, towers) == 1:
            return SimpleTrainer()
        return SyncMultiGPUTrainerReplicated(max(gpus, towers), mode=gradient_mode(gpus))

    def explain(self, error):
        """Raises InputError if another worker is the reason of an `error` that TensorFlow raised."""

    def agree(self):
        """Says that all workers have ended after the same step."""

    def finish(self):
        """Waits until worker 0 is done, and lets the others end."""


class HorovodWorkers(OneWorker):
    """The workers that horovodrun started, one for each GPU, on one machine or more.

    Raises:
        InputError: Horovod is not installed.
    """

    has_towers = splits_validation = False

    def __init__(self):
        try:
            import horovod.tensorflow as hvd
        except ImportError as error:
            raise InputError("Horovod cannot be imported (%s): requirements-horovod.txt says how to install it"
                             % str(error).splitlines()[0])
        hvd.init()
        self.hvd = hvd
        self.rank, self.size, self.local_size = hvd.rank(), hvd.size(), hvd.local_size()

    def broadcast(self, value):
        with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})).as_default():
            return self.hvd.broadcast_object(value, 0)

    def sum(self, tensor, name):
        return self.hvd.allreduce(tensor, op=self.hvd.Sum, name=name)

    def trainer(self, gpus, towers):
        return HorovodTrainer()

    def explain(self, error):
        if isinstance(error, tf.errors.UnknownError) and 'Horovod' in error.message:
            raise InputError("another worker has ended: see what it prints")

    def finish(self):    # horovodrun ends all workers as soon as one has ended badly: let worker 0 finish
        self.broadcast(None)
