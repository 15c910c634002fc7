"""Files that appear whole, child processes, and how a command ends."""
import json
import os
import signal

import pytest

from command_line import InputError, Stopped, atomic_write, check_writable, run, run_module, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / 'file')
    with atomic_write(path) as f:
        f.write(b'first')
        assert not os.path.exists(path)
    with pytest.raises(RuntimeError):
        with atomic_write(path) as f:
            f.write(b'second')
            raise RuntimeError
    with atomic_write(str(tmp_path / 'json'), temporary=str(tmp_path / 'other'), durable=False) as f:
        assert os.path.exists(str(tmp_path / 'other'))
        f.write(b'{}')
    write_json(str(tmp_path / 'json'), {'b': 1, 'a': [2]})
    assert sorted(os.listdir(str(tmp_path))) == ['file', 'json'] and open(path).read() == 'first'
    assert list(json.loads((tmp_path / 'json').read_text()).items()) == [('b', 1), ('a', [2])]
    with pytest.raises(InputError):
        check_writable(str(tmp_path / 'no' / 'file'))


def test_a_child_process_returns_its_output_or_the_last_line_of_its_error():
    assert run_module('json.tool', '--help').startswith('usage')
    with pytest.raises(InputError, match='^timeit --no-such-flag ended with status 2: '):
        run_module('timeit', '--no-such-flag')


@pytest.mark.parametrize('error, status, message', [
    (None, 3, ''), (InputError("name another"), 2, 'prog: name another\n'), (OSError("no room"), 2, 'prog: no room\n'),
    (ImportError("missing"), 2, 'prog: missing\n'), (Stopped("stopped", signal.SIGTERM), 143, 'prog: stopped\n'),
    (KeyboardInterrupt(), 130, 'prog: stopped by SIGINT\n'),
    (MemoryError(), 2, 'prog: memory is short: close other programs, raise the limit (ulimit -v), or use fewer --jobs\n')])
def test_how_a_command_ends(error, status, message, capsys):
    def command(args):
        if error is not None:
            raise error
        return args
    with pytest.raises(SystemExit) as ended:
        run(command, 3, 'prog')
    assert ended.value.code == status and capsys.readouterr().err == message
