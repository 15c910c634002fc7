"""Where the workers of a training run: from the flags, from TF_CONFIG, or started here. Without TensorFlow."""
import collections
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from command_line import InputError

ADDRESS = re.compile(r'(\[[0-9a-fA-F:.]+\]|[^\s:/]+):(\d{1,5})$')
WATCH = 1000              # the watch of worker 0 has its port and this
LAUNCHER = 'GHOSTNET_LAUNCHER'    # the process that started a worker, which ends with it
GRACE = 30                # seconds for the others to end after one has
BY_USER = 2, 128 + signal.SIGINT, 128 + signal.SIGTERM    # exit statuses of those who have said why


class Cluster(collections.namedtuple('Cluster', 'hosts worker')):
    """`hosts`: 'host:port' of each worker, the same list in all of them. `worker`: the number of this one, from 0."""

    def name(self, worker):
        return "worker %d (%s)" % (worker, self.hosts[worker])

    @property
    def size(self):
        return len(self.hosts)

    @property
    def local(self):
        """The workers on this one's host, in order."""
        host = split(self.hosts[self.worker])[0]
        return [worker for worker, address in enumerate(self.hosts) if split(address)[0] == host]


def split(address):
    """(host, port) of 'host:port'."""
    host, port = ADDRESS.match(address).groups()
    return host.strip('[]'), int(port)


def checked(hosts, worker, source):
    """The Cluster of these. Raises InputError, which names their `source`, if it is none."""
    for address in hosts:
        if not isinstance(address, str) or not ADDRESS.match(address) or not 0 < split(address)[1] < 65536 - WATCH:
            raise InputError("%s: '%s' is not host:port, with a port below %d" % (source, address, 65536 - WATCH))
    if len(set(hosts)) < len(hosts):
        raise InputError("%s names a worker twice: each needs a port of its own" % source)
    if not hosts or isinstance(worker, bool) or not isinstance(worker, int) or not 0 <= worker < len(hosts):
        raise InputError("%s has %d workers, numbered from 0, and this is number %s" % (source, len(hosts), worker))
    return Cluster(tuple(hosts), worker)


def from_environment():
    """The Cluster in TF_CONFIG, as TensorFlow's users and Kubeflow's TFJob set it; None if there is none.

    A 'chief' is worker 0. Raises InputError for what is not JSON, and for parameter servers and evaluators.
    Source: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    text = os.environ.get('TF_CONFIG')
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs, kind, index = config['cluster'], config['task']['type'], config['task']['index']
        chiefs = list(jobs.get('chief', ()))
        hosts = chiefs + list(jobs.get('worker', ()))
        index = int(index)    # Kubeflow's older versions write it as a string
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("""TF_CONFIG is not {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}""")
    if kind not in ('chief', 'worker') or set(jobs) - {'chief', 'worker'}:
        raise InputError("TF_CONFIG has the jobs %s, and this is a %s: --trainer collective has workers alone, of which one may be "
                         "the chief" % (', '.join(sorted(jobs)), kind))
    return checked(hosts, index + (len(chiefs) if kind == 'worker' else 0), 'TF_CONFIG')


def find_cluster(hosts, worker):
    """The Cluster of --hosts and --worker, else of TF_CONFIG, else None: the workers are started here."""
    if hosts is not None:
        return checked(hosts.split(','), worker, '--hosts')
    return from_environment()


# ------------------------------------------------------------------------------------------------- workers of one machine

def free_addresses(count):
    """Addresses of this machine alone, the first with a free port for the watch too."""
    with contextlib.ExitStack() as stack:
        def bound(port=0):
            found = stack.enter_context(contextlib.closing(socket.socket()))
            found.bind(('127.0.0.1', port))
            return found.getsockname()[1]

        def first():
            for _ in range(100):
                with contextlib.suppress(OSError, OverflowError):    # taken, or above 65535
                    port = bound()
                    return port, bound(port + WATCH)
            raise InputError("no port is free on this machine: end what takes them")
        port, _ = first()
        return ['127.0.0.1:%d' % port] + ['127.0.0.1:%d' % bound() for _ in range(count - 1)]


def run_workers(arguments, shares):
    """Runs this program once for each of `shares`, the flags of each, as workers of one machine. Returns their exit status.

    Worker 0 prints as the program alone does; what the others print is shown if one of them fails without a reason.
    """
    hosts, workers = ','.join(free_addresses(len(shares))), []
    with contextlib.ExitStack() as stack:
        for signum in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, signum, signal.signal(signum, lambda signum, _: ask(workers, signum)))
        for number, share in enumerate(shares):
            output = None if number == 0 else stack.enter_context(tempfile.TemporaryFile())
            workers.append((subprocess.Popen(
                [sys.executable] + arguments + share + ['--hosts', hosts, '--worker', str(number)], stdout=output, stderr=output,
                env=dict(os.environ, **{LAUNCHER: str(os.getpid())}), start_new_session=True), output))
        statuses = wait_for([process for process, _ in workers])
        for (_, output), status in zip(workers, statuses):
            if output is not None and status not in (0,) + BY_USER:
                output.seek(0)
                sys.stderr.write(output.read().decode(errors='replace')[-10000:])
    killed = [(number, -status) for number, status in enumerate(statuses) if status < 0]
    if killed:
        raise InputError("worker %d was ended by signal %d: the same command with --resume continues after the last whole epoch"
                         % killed[0])
    return statuses[0] or max(statuses)


def wait_for(processes):
    """The exit statuses of processes. Those that have not ended GRACE seconds after one has failed are killed."""
    end = None
    while any(process.poll() is None for process in processes):
        if end is None and any(process.returncode for process in processes):
            end = time.monotonic() + GRACE
        if end is not None and time.monotonic() > end:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return [process.returncode for process in processes]


def ask(workers, signum):
    """Hands a signal on to the workers. They do not share the terminal, so that each gets it once."""
    for process, _ in workers:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)
