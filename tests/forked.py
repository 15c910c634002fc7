"""Runs main.py in forks of a process that has imported TensorFlow, which takes five seconds of each command.

A fork does what a new Python would: the script as __main__, its arguments, folder and environment. `conftest.run_main` takes this
way for main.py alone, which imports TensorFlow before all else; PyTorch, for example, cannot be imported after it.
"""
import atexit
import contextlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SERVER = {}    # of this process: its socket, and the environment that it knows


def environment():
    return {name: value for name, value in os.environ.items() if name != 'PYTEST_CURRENT_TEST'}


def known_environment():
    """Whether a fork would find the environment in which TensorFlow was imported."""
    return SERVER.get('environment', environment()) == environment()


def run(arguments, cwd, timeout):
    """(exit status, stdout, stderr) of ``python arguments``, a script of this project. Raises TimeoutExpired."""
    if not SERVER:
        start()
    folder = tempfile.mkdtemp()
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(SERVER['path'])
            answers = server.makefile('rw')
            print(json.dumps([arguments, cwd, folder]), file=answers, flush=True)
            pid = int(answers.readline())
            server.settimeout(timeout)
            try:
                status = int(server.recv(100))    # what readline has not taken
            except socket.timeout:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, timeout)
        out, err = (open(os.path.join(folder, name), encoding='utf-8', errors='replace') for name in ('out', 'err'))
        with out, err:
            return status, out.read(), err.read()
    finally:
        shutil.rmtree(folder)


def start():
    """Starts the process that forks, for this one alone. It ends with the pipe."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, 'socket')
    server = subprocess.Popen([sys.executable, os.path.abspath(__file__), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.readline() == b'ready\n'
    SERVER.update(path=path, environment=environment(), process=server)


# ----------------------------------------------------------------------------------------------------- in the other process

def serve(path):
    """Forks for each connection, until the pipe on stdin ends. Returns (arguments, folder) in a process that is to run them."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        print('ready', flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            if sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
                os._exit(0)
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                return attend(connection)
            connection.close()


def attend(connection):
    """Forks again: the child returns what it is to run, and this process reports its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.closing(connection):
        arguments, cwd, folder = json.loads(connection.makefile().readline())
        pid = os.fork()
        if pid == 0:
            for name, descriptor in (('out', 1), ('err', 2)):
                os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if not hasattr(sys.stdout, 'reconfigure'):    # see below
                sys.stderr = open(os.dup(2), 'w', 1, sys.stderr.encoding, 'backslashreplace')
            os.chdir(cwd)
            return arguments
        connection.sendall(b'%d\n' % pid)
        status = os.waitpid(pid, 0)[1]
        connection.sendall(b'%d' % (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)))
    os._exit(0)


def execute(arguments):
    """What Python does with a command line."""
    sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name='__main__')


if __name__ == '__main__':
    sys.path.insert(0, ROOT)
    if not hasattr(sys.stdout, 'reconfigure'):    # CPython 3.6: Tensorpack's log keeps the stdout that it finds
        from command_line import make_streams_printable
        make_streams_printable()
    import tf_compat  # noqa: F401  (before what imports TensorFlow in another way)

    import evaluation.engines  # noqa: F401
    import evaluation.evaluate  # noqa: F401
    import training.train  # noqa: F401
    sys.path.pop(0)
    execute(serve(sys.argv[1]))
