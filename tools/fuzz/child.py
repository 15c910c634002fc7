"""A process that reads files for the fuzzer, in bounds: ``python -m tools.fuzz.child TARGET``, and the parent's side of it."""
import json
import os
import select
import subprocess
import sys
import traceback

from command_line import ROOT, InputError
from tools.fuzz.targets import TARGETS

COMMAND = ['-m', 'tools.fuzz.child']
MEMORY, SECONDS = 1 << 30, 20    # of a process beyond what it takes when it is ready; for one file
OUTCOMES = ('read', 'refused', 'crash', 'hang', 'traceback', 'memory', 'stray lines')
FAILURES = OUTCOMES[2:]


def serve(name):
    """Reads paths from stdin, and answers each with a line of JSON on stdout: [outcome, what was said]."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    target = TARGETS[name]
    bound = False
    for line in sys.stdin:
        outcome, said = 'read', ''
        try:
            target.read(json.loads(line))
        except InputError as error:
            outcome, said = 'refused', str(error)
        except MemoryError:
            outcome = 'memory'
        except Exception:
            outcome, said = 'traceback', traceback.format_exc()
        answers.write(json.dumps([outcome, said]) + '\n')
        answers.flush()
        if not bound:
            limit_memory()    # the first file was sound: what it takes to be ready is there
            bound = True


def limit_memory():
    import resource
    with open('/proc/self/statm') as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


class Child:
    """A process that reads files for a target, started again after it has failed."""

    def __init__(self, name, folder):
        self.name, self.folder, self.process = name, folder, None
        self.places = TARGETS[name].plant(folder) if TARGETS[name].plant else {}
        self.seeds = TARGETS[name].seeds()

    def start(self):
        self.log = open(os.path.join(self.folder, 'stderr'), 'w+b')
        self.process = subprocess.Popen([sys.executable] + COMMAND + [self.name], cwd=ROOT,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)
        for name in self.seeds:    # sound, besides: the others of a tree must be there
            self.write(name, self.seeds[name][0])
        outcome, said = self.answer(name, 120)
        if outcome not in ('read', 'refused'):
            raise InputError("the target %s does not read a sound file: %s: %s" % (self.name, outcome, said))

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout, self.log):
                stream.close()
            self.process = None

    def path(self, name):
        return self.places.get(name, os.path.join(self.folder, name))

    def write(self, name, data):
        with open(self.path(name), 'wb') as f:
            f.write(data)

    def answer(self, name, seconds):
        printed = self.log.seek(0, os.SEEK_END)
        try:
            self.process.stdin.write(json.dumps(self.path(name)).encode() + b'\n')
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                return 'hang', 'no answer within %d seconds' % seconds
            line = self.process.stdout.readline()
        except OSError:
            line = b''
        self.log.seek(printed)
        stray = [said for said in self.log.read().decode(errors='replace').splitlines() if not said.startswith('warning: ')]
        if not line:
            return 'crash', 'status %s: %s' % (self.process.wait(), ' '.join(stray)[:1000])
        outcome, said = json.loads(line.decode())
        if outcome in ('read', 'refused') and (stray or '\n' in said):
            return 'stray lines', '\n'.join(stray) or said
        return outcome, said

    def attempt(self, name, data):
        """Lets the child read `data` under that name. Returns (outcome, what was said)."""
        if self.process is None:
            self.start()
        self.write(name, data)
        result = self.answer(name, SECONDS)
        if result[0] in FAILURES:
            self.stop()
        self.write(name, self.seeds[name][0])
        return result


if __name__ == '__main__':
    serve(sys.argv[1])
