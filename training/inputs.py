"""Tensorpack inputs: what feeds batches to the graph, evenly among towers, and keeps what went wrong on the way."""
from tf_compat import tf

from tensorpack.callbacks import Callback
from tensorpack.dataflow import DataFlowTerminated, ProxyDataFlow
from tensorpack.input_source import QueueInput


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
        self.towers = towers
        self.shares = None

    def _get_input_tensors(self):
        if self.shares is None:
            with tf.device('/cpu:0'):
                whole = super(SplitInput, self)._get_input_tensors()
                self.shares = zip(*[tf.split(tensor, self.towers) for tensor in whole])
        return list(next(self.shares))


class RoundInput(QueueInput):
    """A QueueInput that is not emptied before it is used again: whoever takes its size() datapoints has taken one round of them."""

    def _reset_state(self):
        pass

    def _create_ema_callback(self):    # its variables would be in worker 0 alone, and Horovod wait for those of the others
        return Callback()
