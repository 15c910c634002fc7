"""Worker processes that fill arrays: a function of many items, in the order of these, without Python's lock. Without TensorFlow.

Orders and answers, of several items each, go through pipes; the arrays are in shared memory. A worker ends as soon as its pipe
does, so that none outlives its parent, however that ends. (Tensorpack's own either mix the order up or wait for ever when a worker
is killed; those of `multiprocessing` send arrays through pipes, or leave shared memory behind when they are killed.)
"""
import collections
import itertools
import mmap
import os
import pickle
import queue
import select
import struct
import subprocess
import sys
import tempfile
import threading

import numpy as np

from command_line import InputError, warn

CHUNK = 16    # items of an order: one alone costs as much time in the parent
# glibc would give the memory of each picture back to the system, and take it again: a third of the time of a small picture.
KEEP_MEMORY = {'MALLOC_TRIM_THRESHOLD_': str(1 << 28), 'MALLOC_MMAP_THRESHOLD_': str(1 << 25)}


def send(pipe, what):
    """Writes an object to a pipe, which has no buffer. Raises BrokenPipeError where the other side has ended."""
    data = pickle.dumps(what, 2)
    data = struct.pack('<I', len(data)) + data
    while data:
        data = data[pipe.write(data):]


def receive(pipe):
    """The next object from a pipe. Raises EOFError where the other side has ended."""
    size, = struct.unpack('<I', read(pipe, 4))
    return pickle.loads(read(pipe, size))


def read(pipe, size):
    data = b''
    while len(data) < size:
        part = pipe.read(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def arrays(memory, offset, count, shape):
    """`count` arrays of a shape, uint8, that are in a memory map from `offset` on."""
    return np.frombuffer(memory, np.uint8, count * int(np.prod(shape)), offset).reshape((count,) + shape)


# ------------------------------------------------------------------------------------------------------------- the worker

def listen(pipe, orders):
    """Puts what comes through a pipe into a queue. Ends the process with the pipe, whatever the main thread is doing."""
    try:
        while True:
            orders.put(receive(pipe))
    finally:
        os._exit(0)


def work(descriptor):
    """What a worker process does: for each order, it fills arrays and answers what goes with each, or None for a failure."""
    pipe, answers = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb', 0)
    os.dup2(2, 1)    # what a library prints is no answer
    sys.path[:], function, shape = receive(pipe)
    function, memory, orders = pickle.loads(function), mmap.mmap(descriptor, 0), queue.Queue()
    threading.Thread(target=listen, args=(pipe, orders), daemon=True).start()
    while True:
        offset, items = orders.get()
        results = []
        for item, out in zip(items, arrays(memory, offset, len(items), shape)):
            try:
                results.append(function(item, out))
            except Exception:    # the parent will meet it too, and report it
                results.append(None)
        try:
            send(answers, results)
        except BrokenPipeError:
            os._exit(0)


# ------------------------------------------------------------------------------------------------------------- the parent

def shared_memory(size):
    """A file of `size` bytes in memory that has no name, so that nothing of it stays, and that child processes can map.

    Raises InputError where there is no such room.
    """
    folders = [folder for folder in ('/dev/shm', tempfile.gettempdir()) if os.path.isdir(folder)]
    for folder in folders:
        f = tempfile.TemporaryFile(dir=folder)
        try:
            os.posix_fallocate(f.fileno(), 0, size)    # where memory is short, this says so; later, it would be a bus error
            return f
        except OSError:
            f.close()
            if folder != folders[-1]:
                warn("%s has no room for %d MB: the batches go through %s, which may be slower (docker run --shm-size gives a "
                     "container more)" % (folder, -(-size // 10 ** 6), folders[-1]))
    raise InputError("%s has no room for the %d MB that a batch takes on its way: make some, or make --batch smaller"
                     % (' or '.join(folders), -(-size // 10 ** 6)))


class Worker:
    """A worker process as its parent sees it.

    Args:
        memory: from `shared_memory`.
        task: what it is sent first, see `work`.
    """

    def __init__(self, memory, task):
        # In a session of its own, where Ctrl-C does not reach it: the parent decides when it ends.
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), str(memory.fileno())], 0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=[memory.fileno()], start_new_session=True, env=dict(os.environ, **KEEP_MEMORY))
        self.orders = collections.deque()
        self.send(task)

    def send(self, what):
        try:
            send(self.process.stdin, what)
        except BrokenPipeError:
            self.raise_ended()

    def receive(self):
        try:
            return receive(self.process.stdout)
        except EOFError:
            self.raise_ended()

    def raise_ended(self):
        status = self.process.wait()
        how = "was killed by signal %d" % -status if status < 0 else "ended with status %d" % status
        for _, _, items in itertools.islice(self.orders, 1):
            how += ", at %s or one of the %d after it" % (items[0][0], len(items) - 1)
        raise InputError("a worker process %s: memory may be short, or a picture may break its decoder" % how)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


Order = collections.namedtuple('Order', 'batch start items')


class ProcessMap:
    """Iterates over [arrays, results] of batches of items, in order: a worker process fills an array for each item.

    Args:
        batches: iterable of lists of items, which are tuples that can be pickled; a message names the first of a tuple.
        function: function of an item and of an array to fill; it returns what goes with it. It can be pickled, and should not
            import TensorFlow.
        again: as `function`; called in this process where that returned None, or raised anything.
        shape (tuple): of the array for an item, uint8.
        largest (int): how many items a batch has at most.
        processes (int): how many workers.

    Raises:
        InputError: a worker has ended, or there is no room in shared memory.
    """

    def __init__(self, batches, function, again, shape, largest, processes):
        self.batches, self.function, self.again = batches, function, again
        self.shape, self.largest, self.processes = shape, largest, processes
        self.chunk = max(1, min(CHUNK, largest // processes))
        self.slots = 2 + -(-2 * processes * self.chunk // largest)    # so that each worker has two orders

    def __iter__(self):
        size = self.slots * self.largest * int(np.prod(self.shape))
        workers = []
        with shared_memory(size) as memory:
            try:
                task = sys.path, pickle.dumps(self.function, 2), self.shape
                for _ in range(self.processes):
                    workers.append(Worker(memory, task))
                for batch in Round(self, mmap.mmap(memory.fileno(), size), workers).batches():
                    yield batch
            finally:
                for worker in workers:
                    worker.end()


class Round:
    """One iteration of a ProcessMap: batches that are begun are numbered, and take the slots of the memory in turns."""

    def __init__(self, process_map, memory, workers):
        self.map, self.memory, self.workers = process_map, memory, workers
        self.waiting = collections.deque()    # orders that no worker has yet
        self.results, self.missing = {}, {}    # of a batch that is begun: what goes with its items, how many are missing
        self.poll = select.poll()
        self.by_descriptor = {worker.process.stdout.fileno(): worker for worker in workers}
        for descriptor in self.by_descriptor:
            self.poll.register(descriptor, select.POLLIN)

    def offset(self, batch, start=0):
        """Where in the memory the array of an item of a batch is."""
        return (batch % self.map.slots * self.map.largest + start) * int(np.prod(self.map.shape))

    def begin(self, batch, items):
        self.results[batch], self.missing[batch] = [None] * len(items), len(items)
        for start in range(0, len(items), self.map.chunk):
            self.waiting.append(Order(batch, start, items[start:start + self.map.chunk]))

    def give(self):
        """Hands waiting orders to the workers, two each: one to work on and one for the time of its answer."""
        for most in (1, 2):
            for worker in self.workers:
                if self.waiting and len(worker.orders) < most:
                    order = self.waiting.popleft()
                    worker.send((self.offset(order.batch, order.start), order.items))
                    worker.orders.append(order)

    def take(self, timeout):
        """Receives the answers that are there, and does again here what has failed. `timeout`: None waits for one."""
        for descriptor, _ in self.poll.poll(timeout):
            worker = self.by_descriptor[descriptor]
            results, order = worker.receive(), worker.orders.popleft()
            for index, result in enumerate(results, order.start):
                if result is None:
                    out, = arrays(self.memory, self.offset(order.batch, index), 1, self.map.shape)
                    result = self.map.again(order.items[index - order.start], out)
                self.results[order.batch][index] = result
            self.missing[order.batch] -= len(results)

    def batches(self):
        coming, begun = enumerate(self.map.batches), 0
        for batch in itertools.count():
            for number, items in itertools.islice(coming, max(0, batch + self.map.slots - begun)):
                self.begin(number, items)
                begun = number + 1
            if batch == begun:
                return
            self.give()
            self.take(0)
            while self.missing[batch]:
                self.take(None)
                self.give()
            del self.missing[batch]
            results = self.results.pop(batch)
            yield [arrays(self.memory, self.offset(batch), len(results), self.map.shape).copy(), results]


if __name__ == '__main__':
    work(int(sys.argv[1]))
