"""The fuzzer finds what it is for, and says what it needs."""
import importlib.util

from conftest import refused, run_main

FUZZ = {'script': ['-m', 'tools.fuzz']}
HYPOTHESIS = importlib.util.find_spec('hypothesis') is not None


def test_a_run_counts_what_is_read_and_refused(tmp_path):
    flags = ['--minutes', '0.05', '--targets', 'metadata', '--keep', tmp_path / 'keep']
    if not HYPOTHESIS:
        assert "needs the package 'hypothesis' of today's stack" in refused(*flags, **FUZZ)
        return
    status, out, err = run_main(*flags, **FUZZ)
    assert status == 0 and not (tmp_path / 'keep').exists(), err
    name, inputs, read, was_refused = out.splitlines()[-1].split()[:4]
    assert name == 'metadata' and int(inputs) == int(read) + int(was_refused) and int(was_refused) > 0
    assert '--minutes' in refused('--minutes', '0', **FUZZ)


def test_what_fails_is_noticed(tmp_path, monkeypatch):
    """A reader that crashes, hangs, raises, takes memory or prints: each is an outcome of its own, and the next file is read."""
    from tools.fuzz import child
    reader = """
import os, time, ctypes
import tools.fuzz.targets as targets
def read(path):
    what = open(path, 'rb').read()
    if what == b'crash': ctypes.string_at(0)
    if what == b'hang': time.sleep(60)
    if what == b'raise': raise ValueError(what)
    if what == b'memory': bytearray(1 << 32)
    if what == b'print': os.write(2, b'libx: warning\\n')
targets.TARGETS['metadata'] = targets.TARGETS['metadata']._replace(read=read)
from tools.fuzz.child import serve
serve('metadata')
"""
    (tmp_path / 'reader.py').write_text(reader)
    monkeypatch.setattr(child, 'COMMAND', [str(tmp_path / 'reader.py')])
    monkeypatch.setattr(child, 'SECONDS', 3)
    monkeypatch.setenv('PYTHONPATH', child.ROOT)
    process = child.Child('metadata', str(tmp_path / 'work'))
    found = [process.attempt('val.txt', what)[0] for what in (b'fine', b'crash', b'hang', b'raise', b'memory', b'print', b'fine')]
    process.stop()
    assert found == ['read', 'crash', 'hang', 'traceback', 'memory', 'stray lines', 'read']
