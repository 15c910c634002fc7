"""What all commands share, without TensorFlow: flags, mistakes reported in one line, files that appear whole, child processes."""
import argparse
import contextlib
import importlib
import io
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.abspath(__file__))
# OpenCV reads this when it is imported. What fails is raised as well; its log lines would bury ours.
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
# What is larger takes gigabytes, and no photograph is: Pillow's limit for what it calls a decompression bomb.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', '178956970')

# TensorFlow 2 has oneDNN on x86, and uses it by default only on processors with some kinds of AVX-512. On the others too, it is
# faster, computes channels first, and rounds as it does there.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')

# For Keras 2, of which TensorFlow 2.16 and later keep `tf.compat.v1.layers` only in tf-keras, if this is set before it is loaded.
# And no Keras reads ~/.keras/keras.json, where another layout, type or backend may be chosen, or writes one.
KERAS_DEFAULTS = {'KERAS_HOME': os.devnull, 'KERAS_BACKEND': 'tensorflow', 'TF_USE_LEGACY_KERAS': '1'}


class InputError(Exception):
    """What the user gave cannot be used. The message is one line that says what to do."""


class Stopped(BaseException):
    """Signal `signum` stopped the command. The message may say how to continue. Like KeyboardInterrupt, it is no Exception."""

    def __init__(self, message, signum):
        super(Stopped, self).__init__(message)
        self.signum = signum


# ----------------------------------------------------------------------------------------------------------------- flags

class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, and exits with status 2.

    A leading ~ is the home folder in --flag=~/x too, where shells leave it as it is.
    """

    def __init__(self, *args, **kwargs):
        super(Parser, self).__init__(*args, **kwargs)
        self.register('type', None, os.path.expanduser)

    def parse_args(self, *args, **kwargs):
        make_streams_printable()
        return super(Parser, self).parse_args(*args, **kwargs)

    def error(self, message):
        self.exit(2, "%s: %s (see --help)\n" % (self.prog, one_line(message)))


def number(kind, accept, what):
    """An argparse type: a number of type `kind`, below 2**31, that `accept` accepts; `what` names those numbers for the user."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value < 2 ** 31 and accept(value)):
            raise argparse.ArgumentTypeError("'%s' is not %s" % (text, what))
        return value
    return parse


def positive():
    """An argparse type: a positive integer."""
    return number(int, lambda n: n > 0, "a positive integer")


def up_to(largest, smallest=1):
    """An argparse type: an integer from `smallest` to `largest`."""
    return number(int, lambda n: smallest <= n <= largest, "an integer from %d to %d" % (smallest, largest))


# ---------------------------------------------------------------------------------------------------------------- the end

LONGEST_MESSAGE = 2000    # characters: what a user reads of a name of ten million


def one_line(message):
    """`message` as one line of a bounded length."""
    line = ' '.join(str(message).split())
    return line if len(line) <= LONGEST_MESSAGE else '%s ... %s' % (line[:LONGEST_MESSAGE // 2], line[-LONGEST_MESSAGE // 2:])


def make_streams_printable():
    """Lets stdout and stderr print every file name, with escapes where their encoding lacks a character, and be closed.

    A file that is opened later must not become stdout or stderr, where libraries in C++ write.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:    # closed
            os.open(os.devnull, os.O_RDWR)    # takes the lowest number that is free
    for descriptor, name in enumerate(('stdin', 'stdout', 'stderr')):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, 'w' if descriptor else 'r', closefd=False))
    stdout = sys.stdout
    if sys.__stdout__ is not None and stdout is not sys.__stdout__:    # somebody has replaced it: pytest, for example
        return
    if hasattr(stdout, 'reconfigure'):
        stdout.reconfigure(errors='backslashreplace')
    else:    # CPython 3.6
        lines = stdout.line_buffering
        sys.stdout = io.TextIOWrapper(stdout.detach(), stdout.encoding, 'backslashreplace', line_buffering=lines)
    sys.stderr = open(os.dup(2), 'w', 1, sys.stderr.encoding, 'backslashreplace')    # its own, for `quiet_stderr`


def explained(error, target):
    """What to print of an exception that is a mistake of the user's, or of the machine."""
    if isinstance(error, ModuleNotFoundError) and target is not None:
        return "the package '%s' is missing: run 'make %s', which installs it" % (error.name, target)
    if isinstance(error, MemoryError):
        return "memory is short: close other programs, raise the limit (ulimit -v), or use fewer --jobs"
    if isinstance(error, OSError) and error.strerror:
        return "%s: %s" % ("cannot write the output" if error.filename is None else error.filename, error.strerror)
    return error


def run(command, args, prog, target=None):
    """Runs `command(args)` and exits: with the status that it returns, or with one line on stderr and status 2 after a mistake.

    `target` is the make target that runs this command and first installs its packages. SIGTERM and SIGINT end the command with
    one line, and status 143 and 130, when it has removed what is unfinished.
    """
    os.environ.update(KERAS_DEFAULTS)    # for child processes too
    came, message = [], None

    def stop(signum, _):
        came.append(signum)
        raise Stopped("stopped by SIGTERM", signum)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    try:
        status = command(args)
        sys.stdout.flush()
    except BrokenPipeError:    # nobody reads on: head, or a pager that was closed
        status = 141
    except Stopped as error:
        status, message = 128 + error.signum, error
    except KeyboardInterrupt:
        status, message = 130, "stopped by SIGINT"
    except (InputError, OSError, ImportError, MemoryError) as error:
        status, message = 2, explained(error, target)
    except Exception:
        if not came:
            raise
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if came:    # libraries make other exceptions of one that comes in the middle of their work
        status, message = 128 + came[0], message if isinstance(message, Stopped) else "stopped by SIGTERM"
    try:
        sys.stdout.flush()
    except OSError:    # a closed pipe or a full disk: the interpreter would try again, and fail with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write("%s: %s\n" % (prog, one_line(message)))
            sys.stderr.flush()
    sys.exit(status)


def warn(message):
    """Prints a warning on stderr, in one line that a progress bar leaves whole."""
    line = 'warning: ' + one_line(message)
    if sys.stderr.isatty():
        from tqdm import tqdm
        tqdm.write(line, file=sys.stderr)
    else:    # tqdm would draw a bar that is not due yet
        sys.stderr.write(line + '\n')


class _QuietStderr:
    """A context in which nothing comes out of file descriptor 2. Threads may enter it at once, and again. Python's stderr is
    another descriptor in a command (see `make_streams_printable`), so what this project says does come out."""

    def __init__(self):
        self.lock, self.inside = threading.Lock(), 0

    def __enter__(self):
        with self.lock:
            if self.inside == 0:
                self.saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 2)
                os.close(null)
            self.inside += 1

    def __exit__(self, *_):
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                os.dup2(self.saved, 2)
                os.close(self.saved)


# For C and C++ code that writes to stderr whatever it is told: TensorFlow 2's import, TFLite, OpenCV's decoders.
quiet_stderr = _QuietStderr()


def quiet_tensorpack():
    """Keeps Tensorpack's log of every layer and variable out of a command whose output is its result."""
    logging.getLogger('tensorpack').setLevel(logging.ERROR)


def progress_options():
    """Keyword arguments that all tqdm progress bars share. Off a terminal, a bar appears only in long runs."""
    terminal = sys.stderr.isatty()
    return {'leave': False, 'delay': 0 if terminal else 10, 'mininterval': 0.5 if terminal else 10}


# ------------------------------------------------------------------------------------------------------------- resources

def cores():
    """Number of processor cores that this process may use: by its affinity, and by its CPU quota, rounded up."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return min([available] + [math.ceil(quota) for quota in map(cpu_quota, control_groups()) if quota])


def control_groups(root='/'):
    """Folders of the control groups, of version 1 or 2, that may limit the CPUs of this process: its own and those around it.

    Source: cgroups(7) and cgroup_namespaces(7).
    """
    try:
        with open(os.path.join(root, 'proc/self/cgroup')) as groups, open(os.path.join(root, 'proc/self/mountinfo')) as mounts:
            groups, mounts = groups.read().splitlines(), [line.split() for line in mounts]
    except OSError:    # this is not Linux
        return
    for controllers, group in (line.split(':', 2)[1:] for line in groups):
        for mount in mounts:
            top, folder, (kind, _, options) = mount[3], mount[4], mount[mount.index('-') + 1:][:3]
            version_1 = kind == 'cgroup' and 'cpu' in controllers.split(',') and 'cpu' in options.split(',')
            if version_1 or kind == 'cgroup2' and not controllers:
                # In a container, the mount may begin at the process's own group, and `group` still be its name on the host.
                inside = os.path.relpath(group, top).split('/') if (group + '/').startswith(top.rstrip('/') + '/') else []
                for depth in range(len(inside) + 1):
                    yield os.path.join(root, folder.lstrip('/'), *inside[:depth])


def cpu_quota(group):
    """The quota of a control group, in cores, as ``docker run --cpus 1.5`` sets it, or None.

    Source: "CFS Bandwidth Control" (version 1) and "Control Group v2" in the Linux kernel's documentation.
    """
    text = ''
    for name in ('cpu.max', 'cpu.cfs_quota_us', 'cpu.cfs_period_us'):
        with contextlib.suppress(OSError), open(os.path.join(group, name)) as f:
            text += f.read()
    limited = re.match(r'([1-9]\d*)\s(\d+)$', text.strip())    # else "max" or -1
    return int(limited.group(1)) / int(limited.group(2)) if limited else None


def required(module, remedy="pip install -r requirements-interop.txt, besides requirements.txt"):
    """An optional module, imported. Raises InputError, with what to do, if it is missing or broken."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError("the package '%s' is missing: %s" % ((error.name or module).split('.')[0], remedy))
    except Exception as error:    # it is broken, or does not go with others
        raise InputError("the package '%s' cannot be imported (%s): %s" % (module, error, remedy))


def run_module(module, *args, **kwargs):
    """Runs ``python -m module args`` of this project in a child process, and returns its stdout.

    Args:
        python (str): the interpreter, by default this one.
    Raises:
        InputError: it failed; the message ends with the last line of its stderr.
    """
    command = [kwargs.get('python', sys.executable), '-m', module] + [str(arg) for arg in args]
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["nothing on stderr"])[-1][:300]
        raise InputError("%s %s ended with status %d: %s" % (module, command[3] if args else '', child.returncode, last))
    return child.stdout


# ----------------------------------------------------------------------------------------------------------------- files

def check_writable(path):
    """Raises InputError if `atomic_write` cannot write there: better now than after an hour."""
    folder = os.path.dirname(os.path.realpath(path))
    if not path or (os.path.exists(path) and not os.path.isfile(path)) or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("cannot write '%s': name a file in a folder that exists and can be written to" % path)


def sync(path):
    """Returns when what was written to a file, or renamed in a folder, is on the disk."""
    if os.name == 'nt' and os.path.isdir(path):    # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == 'nt' else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path, temporary=None, durable=True):
    """A binary file to write that appears at `path` when it is whole, or not at all.

    Args:
        temporary (str): its name until then, in the same file system; by default `path` with the process id.
        durable (bool): whether it must be on the disk before it appears, which takes time.
    """
    path = os.path.realpath(path)    # a link stays, and its target is replaced
    temporary = temporary or '%s.%d.tmp' % (path, os.getpid())
    try:
        with open(temporary, 'wb') as f:
            yield f
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.filename is None:    # a full disk: which file is it?
            error.filename = path
        raise


def write_json(path, value):
    """Writes `value` as indented JSON, whole or not at all. Raises ValueError for NaN and infinities, which JSON has not."""
    with atomic_write(path) as f:
        f.write(json.dumps(value, indent=2, allow_nan=False).encode() + b'\n')


def write_npz(path, *arrays, **named):
    """Writes what numpy.savez writes, whole or not at all. It is put together in memory: on a full disk, a ZIP archive
    fails a second time when it is discarded, which Python prints."""
    import numpy as np
    content = io.BytesIO()
    np.savez(content, *arrays, **named)
    with atomic_write(path) as f:
        f.write(content.getbuffer())


def remove_abandoned(parent):
    """Removes the folders ``unfinished-...`` in `parent` of processes that were killed: nobody holds the lock in them."""
    import filelock
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name.startswith('unfinished-') and os.path.isfile(os.path.join(path, '.lock')) and not os.path.islink(path):
            with contextlib.suppress(filelock.Timeout, OSError), filelock.FileLock(os.path.join(path, '.lock'), timeout=0):
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def work_folder(parent):
    """A folder ``unfinished-...`` in `parent` for what is not whole yet. It is removed in the end, with what is left in it."""
    import filelock  # here, so that its absence is reported
    remove_abandoned(parent)
    path = tempfile.mkdtemp(prefix='unfinished-', dir=parent)
    try:
        with filelock.FileLock(os.path.join(path, '.lock')):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
