"""What the commands share, without TensorFlow: flags, mistakes told in one line, files that appear whole or not at all."""
import argparse
import contextlib
import importlib
import math
import os
import sys


class InputError(Exception):
    """What the user gave cannot be used. The message is one line that says what to do."""


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, and exits with 2."""

    def error(self, message):
        self.exit(2, "%s: %s (see --help)\n" % (self.prog, message))


def number(kind, accept, what):
    """An argparse type: a number of `kind`, below 2**31, that `accept` accepts; `what` says which those are."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value < 2 ** 31 and accept(value)):
            raise argparse.ArgumentTypeError("'%s' is not %s" % (text, what))
        return value
    return parse


def run(command, args, prog):
    """Runs `command(args)` and exits: with what it returns, or with 2 and one line on stderr if that was not to be."""
    try:
        import tf_compat    # noqa: F401  (before all else that imports TensorFlow)
        status = command(args)
        sys.stdout.flush()
    except BrokenPipeError:    # nobody reads on: head, or a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (InputError, OSError, ImportError) as error:
        sys.stderr.write("%s: %s\n" % (prog, error))
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def cores():
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def required(module):
    """An optional module, imported. Raises InputError if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError("the package '%s' is missing: pip install -r requirements-interop.txt, besides requirements.txt"
                         % (error.name or module).split('.')[0])


def check_writable(path):
    """Raises InputError if `whole_file` cannot write there: better now than after an hour."""
    folder = os.path.dirname(os.path.realpath(path))
    if not path or (os.path.exists(path) and not os.path.isfile(path)) or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("cannot write '%s': name a file in a folder that exists and can be written to" % path)


@contextlib.contextmanager
def whole_file(path):
    """A binary file that appears at `path` when it is whole, or not at all."""
    path = os.path.realpath(path)    # a link stays, and its target is replaced
    temporary = '%s.%d.tmp' % (path, os.getpid())
    try:
        with open(temporary, 'wb') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
