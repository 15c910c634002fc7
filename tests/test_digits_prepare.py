"""data/digits/prepare.py: every file whole or not at all, through kills and full disks, and never through a link."""
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from command_line import InputError
from conftest import ROOT, small_disk
from data.digits import prepare

SCRIPT = os.path.join(ROOT, 'data', 'digits', 'prepare.py')
LISTS = ['caffe_ilsvrc12/%s.txt' % name for name in ('synset_words', 'synsets', 'train', 'val')]


CONTENTS = prepare.contents()


@pytest.fixture(autouse=True)
def contents():
    """The right files, which are computed once for the calls in this process."""
    with mock.patch.object(prepare, 'contents', lambda: dict(CONTENTS)):
        yield CONTENTS


def on_disk(root):
    return {os.path.relpath(os.path.join(folder, name), str(root)): os.path.join(folder, name)
            for folder, _, names in os.walk(str(root)) for name in names}


def check_whole(root, contents):
    """All that is there under a final name is right. Returns how many files that is."""
    found = {name: path for name, path in on_disk(root).items() if not name.startswith('unfinished-')}
    for name, path in found.items():
        assert prepare.holds(path, contents[name]), name
    assert LISTS[-1] not in found or len(found) == len(contents)
    return len(found)


def run_prepare(root):
    run = subprocess.run([sys.executable, SCRIPT, '--out', str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         universal_newlines=True, timeout=60)
    return run.returncode, run.stdout, run.stderr


@pytest.fixture
def copy(digits, tmp_path):
    shutil.copytree(digits, str(tmp_path / 'tree'))
    return tmp_path / 'tree'


def test_what_is_right_is_not_written_again(copy, contents):
    before = {path: (os.stat(path).st_mtime_ns, os.stat(path).st_ino) for path in on_disk(copy).values()}
    assert check_whole(copy, contents) == 1801
    prepare.prepare(str(copy))
    assert {path: (os.stat(path).st_mtime_ns, os.stat(path).st_ino) for path in on_disk(copy).values()} == before


def test_what_is_wrong_is_made_again(copy, contents, tmp_path):
    """Empty, cut, other bytes of the same length, missing, a pipe, links to a file of somebody else's; lists alike."""
    images = sorted(copy.glob('val/*.png'))
    (tmp_path / 'somebody').write_text('precious')
    kept = images[9].stat().st_mtime_ns
    images[0].write_bytes(b'')
    images[1].write_bytes(images[1].read_bytes()[:-20])
    images[2].write_bytes(b'\0' * images[2].stat().st_size)
    for path in images[3:6] + [copy / LISTS[0]]:
        path.unlink()
    os.mkfifo(str(images[4]))
    images[5].symlink_to(tmp_path / 'somebody')
    (copy / LISTS[0]).symlink_to(tmp_path / 'somebody')
    (copy / LISTS[1]).write_text('n00000001\n')
    shutil.rmtree(str(copy / 'train' / 'n00000003'))
    prepare.prepare(str(copy))
    assert check_whole(copy, contents) == 1801 and not images[5].is_symlink() and images[9].stat().st_mtime_ns == kept
    assert (tmp_path / 'somebody').read_text() == 'precious'
    (copy / LISTS[3]).write_text('digits_val_00000004.png 4\n')
    prepare.prepare(str(copy))
    assert check_whole(copy, contents) == 1801


@pytest.mark.parametrize('folder', ['val', 'train', 'train/n00000003', 'caffe_ilsvrc12'])
def test_nothing_is_written_through_a_link_to_a_folder(tmp_path, folder):
    outside = tmp_path / 'outside'
    outside.mkdir()
    (tmp_path / 'tree' / folder).parent.mkdir(parents=True)
    (tmp_path / 'tree' / folder).symlink_to(outside, target_is_directory=True)
    with pytest.raises(InputError, match='%s is a link' % folder):
        prepare.prepare(str(tmp_path / 'tree'))
    assert os.listdir(str(outside)) == []


def test_a_tree_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / 'caffe_ilsvrc12').mkdir()
    (tmp_path / LISTS[1]).write_text('n00000001\nn01440764\n')
    (tmp_path / LISTS[3]).write_text('precious')
    with pytest.raises(InputError, match='has other classes than the digits'):
        prepare.prepare(str(tmp_path))
    assert len(on_disk(tmp_path)) == 2 and (tmp_path / LISTS[3]).read_text() == 'precious'


def test_full_disk(contents, tmp_path):
    with small_disk(tmp_path / 'disk', '3m') as disk:
        for _ in range(2):
            status, out, err = run_prepare(disk)
            assert (status, out, err.count('\n')) == (2, '', 1) and 'No space left on device' in err and '.png' in err, err
            assert 100 < check_whole(disk, contents) < 1000 and not list(disk.glob('unfinished-*'))
        subprocess.check_call(['mount', '-o', 'remount,size=20m', str(disk)])
        prepare.prepare(str(disk))
        assert check_whole(disk, contents) == 1801


@pytest.mark.once
@pytest.mark.slow
def test_kills(contents, tmp_path):
    """SIGKILL and SIGTERM while pictures are written; the next run finds nothing broken, and removes what was left behind."""
    zeros = tmp_path / 'train' / 'n00000000'    # 142 of them in the end
    for kill, sent in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]):
        process = subprocess.Popen([sys.executable, SCRIPT, '--out', str(tmp_path)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        while process.poll() is None and not (zeros.is_dir() and len(os.listdir(str(zeros))) > 10 + 30 * kill):
            time.sleep(0.0005)
        process.send_signal(sent)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM)
        assert check_whole(tmp_path, contents) < 1801
        assert len(list(tmp_path.glob('unfinished-*'))) == (sent == signal.SIGKILL)
    prepare.prepare(str(tmp_path))
    assert check_whole(tmp_path, contents) == 1801 and not list(tmp_path.glob('unfinished-*'))
