"""Reads evaluation's pictures in worker processes: beside a GPU, or many cores, Python's lock would hold up its threads."""
import threading

from tf_compat import computes_on_gpu

import numpy as np

from imagenet_utils import eval_dataflow

MANY = 32    # threads: together they read about 3,000 pictures a second, and no core more


def pool_is_faster(jobs):
    """Whether worker processes read faster than the `jobs` threads that compute."""
    return computes_on_gpu() or jobs > MANY


class PoolReader:
    """A `read` of ``evaluate`` for [path, label] `images`: whoever calls it, the spans follow each other, all of one length.

    Args:
        images (list of [path, label]): those of the evaluation.
        reader (PictureReader): says what becomes of broken ones.
        processes (int): how many workers, by default one for each core.
    Raises:
        InputError: as the reader; or a worker was killed.
    """

    def __init__(self, images, reader, processes=None):
        self.images, self.reader, self.processes = images, reader, processes
        self.turn, self.position, self.batches, self.error = threading.Condition(), 0, None, None

    def __call__(self, start, end):
        with self.turn:
            self.turn.wait_for(lambda: self.error is not None or self.position == start)
            if self.error is not None:
                raise self.error
            try:
                if self.batches is None:
                    self.batches = eval_dataflow(self.images, end - start, self.reader, self.processes).with_results()
                pictures, results = next(self.batches)
            except BaseException as error:
                self.error = error
                raise
            finally:
                self.position = end
                self.turn.notify_all()
        kept = np.array([result is not None for result in results])
        return (pictures if kept.all() else pictures[kept]), kept
