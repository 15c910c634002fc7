"""Files that appear whole, child processes, and how a command ends."""
import json
import os
import signal
import subprocess
import sys

import pytest

from command_line import (
    InputError,
    Parser,
    Stopped,
    atomic_write,
    check_writable,
    control_groups,
    cpu_quota,
    required,
    run,
    run_module,
    work_folder,
    write_json,
)
from conftest import ROOT, small_disk


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
    with pytest.raises(ValueError):
        write_json(str(tmp_path / 'json'), [float('nan')])
    with pytest.raises(InputError):
        check_writable(str(tmp_path / 'no' / 'file'))


def test_a_child_process_returns_its_output_or_the_last_line_of_its_error():
    assert run_module('json.tool', '--help').startswith('usage')
    with pytest.raises(InputError, match='^timeit --no-such-flag ended with status 2: '):
        run_module('timeit', '--no-such-flag')


V1_MOUNTS = "30 25 0:26 {top} /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNTS = "29 25 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize('groups, mounts, files, quotas', [
    ('0::/\n', V2_MOUNTS, {'cpu.max': '150000 100000\n'}, [1.5]),
    ('0::/a/b\n', V2_MOUNTS, {'a/b/cpu.max': 'max 100000\n', 'a/cpu.max': '50000 100000\n'}, [.5]),
    ('0::/../other\n', V2_MOUNTS, {'cpu.max': '300000 100000\n'}, [3]),
    ('4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n', V1_MOUNTS.format(top='/') + V2_MOUNTS.replace('/cgroup ', '/unified '), {
        'cpu,cpuacct/a/cpu.cfs_quota_us': '-1\n', 'cpu,cpuacct/a/cpu.cfs_period_us': '100000\n',
        'cpu,cpuacct/cpu.cfs_quota_us': '250000\n', 'cpu,cpuacct/cpu.cfs_period_us': '100000\n'}, [2.5]),
    ('3:cpu,cpuacct:/docker/1f/inner\n', V1_MOUNTS.format(top='/docker/1f'), {
        'cpu,cpuacct/inner/cpu.cfs_quota_us': '20000\n', 'cpu,cpuacct/inner/cpu.cfs_period_us': '10000\n'}, [2]),
    ('3:cpu,cpuacct:/docker/1f\n', V1_MOUNTS.format(top='/docker/2e'), {
        'cpu,cpuacct/cpu.cfs_quota_us': '150000\n', 'cpu,cpuacct/cpu.cfs_period_us': '100000\n'}, [1.5]),
    ('3:cpuset:/\n', V1_MOUNTS.format(top='/'), {
        'cpu,cpuacct/cpu.cfs_quota_us': '150000\n', 'cpu,cpuacct/cpu.cfs_period_us': '100000\n'}, []),
    (None, None, {}, []),
], ids=['version 2', 'group around', 'outside', 'hybrid', 'nested', 'another mount', 'other controller', 'no Linux'])
def test_cpu_quotas_are_those_of_the_control_groups(groups, mounts, files, quotas, tmp_path):
    files = {os.path.join('sys/fs/cgroup', name): text for name, text in files.items()}
    if groups:
        files.update({'proc/self/cgroup': groups, 'proc/self/mountinfo': mounts})
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = {cpu_quota(group) for group in control_groups(str(tmp_path))} - {None}
    assert sorted(found) == quotas


def test_a_home_folder_is_found_where_no_shell_looks(monkeypatch):
    monkeypatch.setenv('HOME', '/home/user')
    parser = Parser()
    parser.add_argument('--data_dir')
    parser.add_argument('--files', nargs='+')
    args = parser.parse_args(['--data_dir=~/x', '--files', 'a~', '~/b'])
    assert args.data_dir == '/home/user/x' and args.files == ['a~', '/home/user/b']


def test_a_full_disk_is_named_by_its_file(tmp_path):
    """In the exception, and nothing on stderr beside it."""
    code = "import sys\nimport numpy as np\nfrom command_line import write_npz\n" \
           "try:\n    write_npz(sys.argv[1], logits=np.zeros([1000, 1000], np.float32))\n" \
           "except OSError as error:\n    print(error.filename)"
    with small_disk(tmp_path / 'small', '1m') as small:
        path = str(small / 'logits.npz')
        process = subprocess.run([sys.executable, '-c', code, path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.decode() == path + '\n' and process.stderr == b'' and os.listdir(str(small)) == []


def test_what_is_unfinished_goes_at_the_end_or_with_the_next_run(tmp_path):
    """A folder that a process holds stays; one that a killed process left is removed."""
    code = "from command_line import work_folder\nimport os, sys, time\nwith work_folder(sys.argv[1]) as folder:\n" \
           "    open(folder + '/half', 'w').close()\n    print(folder, flush=True)\n    time.sleep(60)"
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                               universal_newlines=True)
    held = process.stdout.readline().strip()
    (tmp_path / 'unfinished-notes').mkdir()    # somebody else's
    with work_folder(str(tmp_path)) as folder:
        assert os.path.exists(held) and folder != held
    assert sorted(os.listdir(str(tmp_path))) == sorted([os.path.basename(held), 'unfinished-notes'])
    process.kill()
    process.communicate()
    with work_folder(str(tmp_path)):
        assert not os.path.exists(held)
    assert os.listdir(str(tmp_path)) == ['unfinished-notes']


def test_a_library_may_make_another_exception_of_sigterm():
    code = "import os, signal\nfrom command_line import run\ndef command(args):\n    try:\n" \
           "        os.kill(os.getpid(), signal.SIGTERM)\n        for _ in range(10 ** 9): pass\n" \
           "    except BaseException: raise AttributeError('__exit__')\nrun(command, None, 'prog')"
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.PIPE)
    assert (process.returncode, process.stderr) == (143, b'prog: stopped by SIGTERM\n')


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


@pytest.mark.parametrize('name, content, said', [
    ('lacking', "import no_such_package.of_it", "the package 'no_such_package' is missing: pip install"),
    ('unlinked', "raise ImportError('lib.so: undefined symbol')", "the package 'unlinked' cannot be imported (lib.so: undefined"),
    ('unfit', "raise AttributeError('np.bool')", "the package 'unfit' cannot be imported (np.bool)")])
def test_an_optional_package_that_is_missing_or_broken_is_named(tmp_path, monkeypatch, name, content, said):
    (tmp_path / (name + '.py')).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError) as caught:
        required(name)
    assert str(caught.value).startswith(said)
