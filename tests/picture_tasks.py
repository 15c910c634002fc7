"""What the worker processes of tests/test_processes.py do, and a parent of some. Without TensorFlow."""
import os
import signal
import sys
import time

from processes import ProcessMap

SHAPE = (2, 3)


class Squares:
    """Fills an array with the square of an item's number, and returns the number; for some it does something else."""

    def __init__(self, here=False):
        self.here = here

    def __call__(self, item, out):
        name, number = item
        if name == 'slow':
            time.sleep(0.001 * (number % 7))
        elif name == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        elif name == 'asleep':
            time.sleep(60)
        elif name == 'noisy':
            print('noise')
        elif name == 'imports' and 'tensorflow' in sys.modules:
            raise AssertionError("TensorFlow is imported")
        elif name == 'fails' or name == 'fails there' and not self.here:
            raise ValueError('%d is wrong' % number)
        out[:] = number * number % 256
        return number


def squares(batches, largest, processes):
    """A ProcessMap over batches of items."""
    return ProcessMap(batches, Squares(), Squares(here=True), SHAPE, largest, processes)


if __name__ == '__main__':    # a parent that waits for its workers; its parameter is what they do
    from picture_tasks import squares
    iterator = iter(squares([[(sys.argv[1], 1)] * 8] * 8, 8, 3))
    sys.stdout.write('started\n')
    sys.stdout.flush()
    list(iterator)
