"""The connections between worker 0 and the others: values for all, and an end for all when one is lost. Without TensorFlow.

TensorFlow's collective operations may wait for ever for a worker that has ended or been stopped. Each worker therefore keeps a
connection to worker 0, with a sign of life every second; who loses one ends at once, and names the worker. Messages are JSON.
"""
import json
import os
import queue
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection, wait

from command_line import InputError, Stopped, warn
from training.cluster import LAUNCHER, WATCH, split

PATIENCE = 300      # seconds for all workers to start
BEAT = 1            # seconds between signs of life
SILENCE = 15        # seconds without one: the worker is lost
LIMIT = 1 << 20     # bytes of a message
RESUME = "the same command with --resume continues after the last whole epoch"


class Watch:
    """All workers of a Cluster, connected. Worker 0 waits for the others, and they for it.

    Raises:
        InputError: not all are there within PATIENCE seconds; or worker 0 has another list of hosts.
    """

    def __init__(self, cluster, patience=PATIENCE):
        self.cluster, self.chief = cluster, cluster.worker == 0
        self.peers = {}                     # {worker: Connection}
        self.silent = {}                    # {worker: beats since it was heard}
        self.inbox = queue.Queue() if not self.chief else {worker: queue.Queue() for worker in range(1, cluster.size)}
        self.sending = threading.Lock()
        self.together = self.over = False   # all have ended their last step; this worker's part is done
        self.complete = threading.Event()
        self.launcher = os.environ.get(LAUNCHER)
        end = time.monotonic() + patience
        self.listener = None
        if self.chief:
            self.listener = self.listen()
        else:
            self.connect(end)
        threading.Thread(target=self.run, daemon=True).start()
        self.wait_for_all(end, patience)

    # ------------------------------------------------------------------------------------------------- getting together

    def listen(self):
        host, port = split(self.cluster.hosts[0])
        listener, reason = None, None
        for address in (host, ''):    # '': the name may lead to this machine from elsewhere only
            try:
                family = socket.AF_INET6 if ':' in address else socket.AF_INET
                listener = socket.socket(family)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port + WATCH))
                listener.listen(self.cluster.size)
                return listener
            except OSError as error:
                listener.close()
                reason = reason or error
        raise InputError("worker 0 cannot listen at %s, port %d (%s): name another port in --hosts or TF_CONFIG"
                         % (host, port + WATCH, reason.strerror or reason))

    def connect(self, end):
        host, port = split(self.cluster.hosts[0])
        told = time.monotonic() + 10
        while True:
            try:
                peer = connection(socket.create_connection((host, port + WATCH), 5))
                write(peer, ['ghostnet', self.cluster.worker, self.cluster.hosts])
                answer = read(peer)
                break
            except (OSError, EOFError, ValueError) as error:
                reason = getattr(error, 'strerror', None) or str(error) or "it answers no worker"
                if time.monotonic() > end:
                    raise InputError("%s does not answer at port %d (%s): start it, with the same --hosts or TF_CONFIG"
                                     % (self.cluster.name(0), port + WATCH, reason))
                if told is not None and time.monotonic() > told:
                    warn("waiting for %s (%s)" % (self.cluster.name(0), reason))
                    told = None
                time.sleep(0.5)
        if answer != 'welcome':
            raise InputError("%s refuses this worker %d: %s" % (self.cluster.name(0), self.cluster.worker, answer))
        self.add(0, peer)

    def admit(self):
        """Worker 0 takes in who connects, if it is one of the workers."""
        peer = connection(self.listener.accept()[0])
        try:
            if not peer.poll(5):
                raise EOFError
            name, worker, hosts = read(peer)
            refusal = None
            if name != 'ghostnet' or not isinstance(worker, int):
                raise ValueError
            if hosts != list(self.cluster.hosts):
                refusal = "its list of hosts is %s, and that of worker 0 is %s" % (','.join(hosts), ','.join(self.cluster.hosts))
            elif worker in self.peers or not 0 < worker < self.cluster.size:
                refusal = "there is another one of that number"
            write(peer, refusal or 'welcome')
        except (OSError, EOFError, ValueError, TypeError):    # no worker
            peer.close()
            return
        if refusal:
            warn("worker %d is refused: %s" % (worker, refusal))
            peer.close()
        else:
            self.add(worker, peer)

    def add(self, worker, peer):
        self.silent[worker] = 0
        self.peers[worker] = peer
        if len(self.peers) == (self.cluster.size - 1 if self.chief else 1):
            if self.listener is not None:
                self.listener.close()
                self.listener = None
            self.complete.set()

    def wait_for_all(self, end, patience):
        told = False
        while not self.complete.wait(10):
            missing = ', '.join(self.cluster.name(worker) for worker in range(1, self.cluster.size) if worker not in self.peers)
            if time.monotonic() > end:
                raise InputError("%s: not there after %d s: start them, with the same --hosts or TF_CONFIG" % (missing, patience))
            if not told:
                warn("waiting for " + missing)
                told = True

    # ----------------------------------------------------------------------------------------------------- the thread

    def run(self):
        beat = time.monotonic()
        while not self.over:
            ready = wait(list(self.peers.values()) + [self.listener] * (self.listener is not None), max(0, beat - time.monotonic()))
            if self.listener is not None and self.listener in ready:
                self.admit()
            for worker, peer in list(self.peers.items()):
                if peer in ready:
                    self.receive(worker, peer)
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT
                self.count_beat()

    def receive(self, worker, peer):
        try:
            kind, value = read(peer)
        except (EOFError, OSError, ValueError):
            del self.peers[worker]
            self.lose(worker, "%s is lost, its connection is closed: %s" % (self.cluster.name(worker), RESUME))
            return
        self.silent[worker] = 0
        if kind == 'value':
            (self.inbox[worker] if self.chief else self.inbox).put(value)
        elif kind == 'gone':
            self.lose(worker, "%s has ended: %s" % (self.cluster.name(worker), value))
        elif kind == 'lost':
            self.end(value)
        elif kind == 'finished':
            self.over = True
            self.inbox.put(None)

    def count_beat(self):
        """A sign of life for the others, and a count of theirs, by beats of this thread: a stop of this process is no silence."""
        for worker, peer in list(self.peers.items()):
            self.send(peer, 'alive')
            self.silent[worker] += 1
            if self.silent[worker] > SILENCE / BEAT:
                self.lose(worker, "%s is lost, it has been silent for %d s: %s" % (self.cluster.name(worker), SILENCE, RESUME))
        if self.launcher and os.getppid() != int(self.launcher):
            self.end("the process that started the workers is gone: " + RESUME)

    def send(self, peer, kind, value=None):
        try:
            with self.sending:
                write(peer, [kind, value])
        except OSError:    # whoever reads from it learns of it too
            pass

    def lose(self, worker, line):
        """Ends this process, and through worker 0 all, unless all have trained to their end, and only worker 0 matters."""
        if self.over or (self.together and worker != 0):
            return
        for other, peer in list(self.peers.items()):
            if other != worker:
                self.send(peer, 'lost', line)
        self.end(line)

    def end(self, line):
        """From a thread, whatever TensorFlow waits for. What is half written has no name yet."""
        time.sleep(BEAT)    # where this worker ends for the same reason, its own line is the better one
        if not self.over:
            sys.stderr.write("\nmain.py: %s\n" % line)    # a progress bar may be there
            sys.stderr.flush()
            os._exit(2)

    # ------------------------------------------------------------------------------------------------- the main thread

    def gather(self, value):
        """In worker 0, the list of what each worker passes, in their order; None in the others."""
        if not self.chief:
            self.send(self.peers[0], 'value', value)
            return None
        return [value] + [self.inbox[worker].get() for worker in range(1, self.cluster.size)]

    def broadcast(self, value):
        """What worker 0 passes, in all."""
        if not self.chief:
            return self.inbox.get()
        for peer in list(self.peers.values()):
            self.send(peer, 'value', value)
        return value

    def finish(self):
        """Worker 0 lets the others end; they wait for it."""
        if self.chief:
            self.over = True
            for peer in list(self.peers.values()):
                self.send(peer, 'finished')
        else:
            self.inbox.get()

    def wait_to_be_ended(self):
        """Returns when nothing has been found out of a loss that somebody else has noticed."""
        time.sleep(SILENCE + 5 * BEAT)

    def leave(self, reason):
        """Tells the others why this worker ends before them. They end too."""
        if not self.over:
            self.over = True
            for peer in list(self.peers.values()):
                self.send(peer, 'gone', reason)

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if isinstance(error, (Stopped, KeyboardInterrupt)):
            text = str(error) or "stopped by SIGINT"
            self.leave(text if '--resume' in text else "%s: %s" % (text, RESUME))
        elif error is not None:
            self.leave(str(error) if isinstance(error, InputError) else repr(error))


def connection(peer):
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(peer.detach())


def write(peer, value):
    peer.send_bytes(json.dumps(value).encode())


def read(peer):
    """Raises EOFError, OSError or ValueError where nothing comes, or no message."""
    return json.loads(peer.recv_bytes(LIMIT).decode())
