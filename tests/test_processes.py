"""Worker processes: their order, and that nothing hangs or stays, however they or their parent end."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from picture_tasks import SHAPE, squares

import processes
from command_line import InputError
from conftest import ROOT, ended, worker_processes


def wait_for(condition, seconds):
    """Whether a condition comes to hold within so many seconds."""
    end = time.time() + seconds
    while time.time() < end and not condition():
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize('workers, largest', [(1, 1), (3, 7), (4, 40)])
def test_batches_come_in_order_whatever_the_timing(workers, largest):
    numbers = list(range(100))
    batches = [[('slow', n) for n in numbers[start:start + largest]] for start in range(0, len(numbers), largest)]
    made = list(squares(batches, largest, workers))
    assert [len(arrays) for arrays, _ in made] == [len(batch) for batch in batches]
    assert [n for _, results in made for n in results] == numbers
    arrays = np.concatenate([arrays for arrays, _ in made])
    assert arrays.dtype == np.uint8 and arrays.shape == (100,) + SHAPE
    assert np.array_equal(arrays[:, 1, 2], np.uint8(np.square(numbers) % 256))
    assert not worker_processes()


def test_what_fails_in_a_worker_is_done_again_here():
    (arrays, results), = squares([[('fails there', 3), ('noisy', 4), ('imports', 5)]], 3, 2)
    assert results == [3, 4, 5] and arrays[:, 0, 0].tolist() == [9, 16, 25]
    with pytest.raises(ValueError, match='2 is wrong'):
        list(squares([[('slow', 1), ('fails', 2)]], 2, 2))
    assert not worker_processes()


def test_a_worker_that_is_killed_ends_the_iteration():
    start = time.time()
    with pytest.raises(InputError, match='killed by signal 9, at (slow|killed) or one of the'):
        list(squares([[('slow', n) for n in range(39)] + [('killed', 39)]] * 5, 40, 3))
    assert not worker_processes() and time.time() - start < 10
    iterator = iter(squares([[('slow', n) for n in range(8)]] * 50, 8, 3))    # while nothing is asked of it
    next(iterator)
    worker_processes()[0].kill()
    with pytest.raises(InputError, match='killed by signal 9'):
        list(iterator)
    assert not worker_processes()


def test_an_iteration_that_is_left_leaves_nothing():
    """In the middle of the workers' work."""
    iterator = iter(squares([[('slow', 1)] * 8] + [[('asleep', 1)] * 8] * 8, 8, 3))
    next(iterator)
    assert len(worker_processes()) == 3
    iterator.close()
    assert not worker_processes()


@pytest.mark.parametrize('signum', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_parent_that_ends_takes_its_workers_along(signum):
    """In the middle of their work, within a second; and no file stays, since that of the memory has no name."""
    before = set(os.listdir('/dev/shm'))
    parent = subprocess.Popen([sys.executable, os.path.join(ROOT, 'tests', 'picture_tasks.py'), 'asleep'], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, env=dict(os.environ, PYTHONPATH=ROOT))
    try:
        assert parent.stdout.readline() == b'started\n'
        assert wait_for(lambda: len(worker_processes(parent.pid)) == 3, 20)
        time.sleep(1)    # until they sleep
        workers = worker_processes(parent.pid)
        parent.send_signal(signum)
        parent.wait(5)
        assert wait_for(lambda: all(map(ended, workers)), 1)
        assert set(os.listdir('/dev/shm')) <= before
    finally:
        parent.kill()
        parent.stdout.close()


def test_memory_without_room_is_noticed(monkeypatch, capsys):
    def full(descriptor, offset, size):
        if os.readlink('/proc/self/fd/%d' % descriptor).startswith(folder):
            raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    folder = '/dev/shm'
    processes.shared_memory(3 * 10 ** 8).close()
    assert '/dev/shm has no room for 300 MB' in capsys.readouterr().err
    folder = '/'
    with pytest.raises(InputError, match='no room for the 300 MB .* --batch smaller'):
        processes.shared_memory(3 * 10 ** 8)
