"""The processes that train together: one alone, or those that horovodrun started.

A set of workers has `rank` (of this process), `size`, `local_size` (on this machine), `has_towers` (whether one of them may compute
on several devices), and the methods of `OneWorker`.
"""
from tf_compat import tf

from tensorpack.train import HorovodTrainer, SimpleTrainer, SyncMultiGPUTrainerReplicated

from command_line import InputError


class OneWorker:
    """A process that trains alone."""

    rank, size, local_size, has_towers = 0, 1, 1, True

    def broadcast(self, value):
        """What worker 0 passes as `value`, in all workers. Returns when all have called it."""
        return value

    def sum(self, tensor, name):
        """The sum of `tensor` over all workers, in the graph."""
        return tensor

    def trainer(self, gpus, towers):
        """Tensorpack's trainer for this process: on `gpus` GPUs, or for 0 on the device that TensorFlow picks, or on `towers`."""
        if max(gpus, towers) == 1:
            return SimpleTrainer()
        # On GPUs Tensorpack chooses: with TensorFlow 1.13.1, NCCL.
        return SyncMultiGPUTrainerReplicated(max(gpus, towers), mode=None if gpus else 'cpu')


class HorovodWorkers:
    """The workers that horovodrun started, one for each GPU, on one machine or more.

    Raises:
        InputError: Horovod is not installed.
    """

    has_towers = False

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
