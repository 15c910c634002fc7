"""data/ilsvrc12/prepare.py on what is broken, foreign or hostile: one line, nothing outside the tree, bounded memory."""
import gzip
import os
import subprocess
import sys
import tarfile

import pytest
from archives import (
    DEVKIT_DATA,
    PREPARE,
    call_prepare,
    contents,
    flags,
    photograph,
    read_list,
    refused,
    run_prepare,
    tar_of,
    write,
    write_devkit,
)

from conftest import ROOT, without

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------------------------------------ broken, foreign, hostile

def special(name, kind, target=''):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def hostile(kind, good, outside):
    """A member that is refused: `good` is a name that would be accepted, `outside` a path outside the tree."""
    return {
        'parent': ('../' + good, b'x'), 'parents': ('./../../../' + good, b'x'), 'absolute': (outside, b'x'),
        'root': ('/' + good, b'x'), 'folder': ('val/' + good, b'x'), 'backslash': ('..\\' + good, b'x'),
        'newline': (good + '\n', b'x'), 'no image': ('readme.txt', b'x'), 'long': ('a/' * 150 + good, b'x'),
        'symbolic link': special(good, tarfile.SYMTYPE, outside), 'hard link': special(good, tarfile.LNKTYPE, outside),
        'device': special(good, tarfile.CHRTYPE), 'pipe': special(good, tarfile.FIFOTYPE),
        'directory': special(good, tarfile.DIRTYPE), 'parent directory': special('..', tarfile.DIRTYPE)}[kind]


@pytest.mark.parametrize('where, kinds', [
    ('val', ['parent', 'parents', 'absolute', 'root', 'folder', 'backslash', 'newline', 'no image', 'long']),
    ('val', ['symbolic link', 'hard link', 'device', 'pipe', 'directory', 'parent directory']),
    ('train', ['parent', 'absolute', 'symbolic link', 'hard link']),
    ('class', ['parent', 'absolute', 'symbolic link', 'hard link'])],
    ids=['val names', 'val types', 'train', 'class'])
def test_members_that_would_leave_the_tree(small, tmp_path, where, kinds):
    archives, tree = small
    outside = tmp_path / 'outside'
    outside.mkdir()
    write(outside / 'precious', b'precious')
    synset = read_list(tree, 'synsets.txt').decode().split()[0]
    first = {'val': 'ILSVRC2012_val_00000001.JPEG', 'train': synset + '.tar', 'class': synset + '_1.JPEG'}[where]
    for kind in kinds:
        member = hostile(kind, first, str(outside / 'precious'))
        data = tar_of([member, (first, b'written through a link')])
        if where == 'class':
            data = tar_of([(synset + '.tar', data)])
        bad = write(tmp_path / 'bad.tar', data)
        archives_now = archives._replace(**{'val' if where == 'val' else 'train': bad})
        before = contents(tmp_path)
        error = refused(*flags(archives_now, tmp_path / 'a' / 'tree'), runner=run_prepare if kind == kinds[0] else call_prepare)
        name = member.name if isinstance(member, tarfile.TarInfo) else member[0]
        assert 'is refused because of its member %s' % repr(name)[:200] in error and bad in error
        after = contents(tmp_path)
        assert {path: digest for path, digest in after.items() if path != 'a' and not path.startswith('a/')} == {
            path: digest for path, digest in before.items() if path != 'a' and not path.startswith('a/')}
        assert not any(path.endswith(('.tmp', 'val.txt')) for path in after)


def cut(data, kind):
    """A part of a tar, and what is said of it."""
    boundary = [i for i in range(512, len(data), 512) if data[i + 257:i + 262] == b'ustar'][5]
    return {'empty': b'', 'within the first header': data[:100], 'within a header': data[:boundary + 100],
            'before a header': data[:boundary], 'within an image': data[:boundary + 900], 'no tar': b'\xff\xd8\xff\xe0' * 9000,
            'web page': b'<html>' + b'sign in' * 200, 'cut compressed': gzip.compress(data)[:-9],
            'damaged header': data[:boundary + 50] + b'\x01' + data[boundary + 51:]}[kind]


@pytest.mark.parametrize('where', ['val', 'train', 'class'])
def test_broken_archives(small, tmp_path, where):
    archives, _ = small
    with open(archives.val if where == 'val' else archives.train, 'rb') as f:
        data = f.read()
    with tarfile.open(archives.train) as tar:
        synset, first = tar.getnames()[0], tar.extractfile(tar.getmembers()[0]).read()
    if where == 'class':
        first = tar_of([('%s_%d.JPEG' % (synset[:-4], i), photograph(i)) for i in range(9)])
    for kind in ('empty', 'within the first header', 'within a header', 'before a header', 'within an image', 'no tar', 'web page',
                 'cut compressed', 'damaged header'):
        broken = cut(data, kind) if where != 'class' else tar_of([(synset, cut(first, kind))])
        bad = write(tmp_path / 'bad.tar', broken)
        error = refused(*flags(archives._replace(**{'val' if where == 'val' else 'train': bad}), tmp_path / 'tree'),
                        runner=run_prepare if kind == 'within an image' else call_prepare)
        assert 'truncated, damaged or not a tar archive' in error and bad in error, kind
        assert (synset in error) == (where == 'class') or where == 'train', kind
        assert not (tmp_path / 'tree' / 'caffe_ilsvrc12' / 'val.txt').exists()


def test_archives_that_are_not_those_of_the_devkit(small, tmp_path):
    archives, tree = small
    synsets = read_list(tree, 'synsets.txt').decode().split()
    with tarfile.open(archives.val) as tar:
        val = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(archives.train) as tar:
        train = [(member.name, tar.extractfile(member).read()) for member in tar]

    def error(**members):
        changed = {name: write(tmp_path / (name + '.tar'), tar_of(value)) for name, value in members.items()}
        return refused(*flags(archives._replace(**changed), tmp_path / 'tree'))

    assert 'lacks 3 of 30 validation images, the first is ILSVRC2012_val_00000005.JPEG' in error(val=val[:4] + val[5:-2])
    assert 'has ILSVRC2012_val_00000031.JPEG, and the devkit has images 1 to 30' in error(
        val=val + [('ILSVRC2012_val_00000031.JPEG', b'x')])
    assert 'has ILSVRC2012_val_00000000.JPEG' in error(val=[('ILSVRC2012_val_00000000.JPEG', b'x')])
    assert 'has ILSVRC2012_val_00000002.JPEG twice' in error(val=val + val[1:2])
    assert 'lacks 2 of 20 classes, the first is %s' % synsets[0] in error(train=train[1:-1])
    assert 'has n99999999.tar, and the devkit has no such class' in error(train=[('n99999999.tar', b'')] + train)
    assert 'has %s.tar twice' % synsets[2] in error(train=train + train[2:3])
    assert '%s.tar in ' % synsets[0] in error(train=[(train[0][0], tar_of([]))] + train[1:])
    assert 'must have plain files like ILSVRC2012_val_00000001.JPEG' in error(val=train)    # one for the other
    assert 'must have plain files like n01440764.tar' in error(train=val)
    huge = tarfile.TarInfo(val[0][0])
    for huge.size in (1 << 60, -512):
        bad = write(tmp_path / 'huge.tar', huge.tobuf(tarfile.GNU_FORMAT))
        assert 'has %d bytes in it' % huge.size in refused(*flags(archives._replace(val=bad), tmp_path / 'tree'))
    assert 'cannot read /proc/self/mem: ' in refused(*flags(archives._replace(val='/proc/self/mem'), tmp_path / 'tree'))


def test_devkits_that_cannot_be_used(small, tmp_path):
    archives, _ = small
    with open(archives.devkit, 'rb') as f:
        data = f.read()
    with tarfile.open(archives.devkit) as tar:
        meta = tar.extractfile(DEVKIT_DATA + 'meta.mat').read()
    truth = (DEVKIT_DATA + 'ILSVRC2012_validation_ground_truth.txt', b'1\n' * 30)

    def error(content):
        return refused(*flags(archives._replace(devkit=write(tmp_path / 'devkit.tar.gz', content)), tmp_path / 'tree'))

    for content in (b'', b'no archive' * 99, data[:len(data) // 2], data[:-20], data[:2000] + bytes(9) + data[2009:]):
        assert 'cannot read the devkit' in error(content)
    assert 'there is no ILSVRC2012_devkit_t12/data/meta.mat in it' in error(tar_of([truth], 'w:gz'))
    for broken in (b'', b'no matrix' * 99, meta[:len(meta) // 2]):
        assert 'cannot read ILSVRC2012_devkit_t12/data/meta.mat' in error(
            tar_of([(DEVKIT_DATA + 'meta.mat', broken), truth], 'w:gz'))
    for line in (b'21', b'0', b'', b'cat', b'1 2', b'\xff'):
        assert 'ground_truth.txt in %s, line 2: ' % (tmp_path / 'devkit.tar.gz') in error(tar_of(
            [(DEVKIT_DATA + 'meta.mat', meta), (truth[0], b'1\n' + line + b'\n1\n')], 'w:gz'))
    for synset in ('../../../x', '/n0000000', 'n0000001', 'n00000001\n'):
        write_devkit(tmp_path / 'hostile.tar.gz', [(synset, 'words', 1)], [1] * 30)
        assert 'malformed' in refused('--val', archives.val, '--devkit', tmp_path / 'hostile.tar.gz', '--out', tmp_path / 'tree')
    assert not (tmp_path / 'tree').exists()


def test_usage(small, tmp_path):
    archives, tree = small
    val, devkit, train, out = (['--val', archives.val], ['--devkit', archives.devkit], ['--train', archives.train],
                               ['--out', tmp_path / 'tree'])
    for args in ([], val + out, val + devkit, devkit + out, val + devkit + ['--out', ''], val + devkit + out + ['--links', tree],
                 devkit + out + train, devkit + out + train + ['--links', tree], ['--check', tree] + out, ['--check'],
                 ['--val', tmp_path / 'none'] + devkit + out, val + ['--devkit', tmp_path / 'none'] + out,
                 val + devkit + out + ['x'], val + devkit + out + ['--train', tmp_path], devkit + out + ['--links', tmp_path],
                 devkit + ['--links', tree, '--out', tree], ['--check', tmp_path / 'none'],
                 val + devkit + ['--out', archives.val], val + devkit + ['--out', '/proc/none']):
        refused(*args)
    refused(runner=run_prepare)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('script, target', [(PREPARE, 'data'), (os.path.join(ROOT, 'data', 'digits', 'prepare.py'), 'eval')],
                         ids=['ilsvrc12', 'digits'])
def test_python_without_packages(small, tmp_path, script, target):
    """One line that says what to run. Help and mistakes in the flags need no package."""
    def run(python, *args):
        run = subprocess.run(python + [script] + [str(arg) for arg in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             universal_newlines=True, cwd=str(tmp_path), env=env)
        return run.returncode, run.stdout, run.stderr

    archives, tree = small
    bare = [sys.executable, '-I', '-S']
    (tmp_path / 'packages').mkdir()
    env = without('cv2', tmp_path / 'packages')
    missing = "prepare.py: the package '%s' is missing: run 'make %s', which installs it\n"
    for python, package in ((bare, 'tqdm' if script == PREPARE else 'cv2'), ([sys.executable], 'cv2')):
        assert run(python, *(['--check', tree] if script == PREPARE else ['--out', 'tree'])) == (2, '', missing % (package, target))
        assert run(python, '--help')[0] == 0
        assert run(python, '--out') == (2, '', "prepare.py: argument --out: expected one argument (see --help)\n")
    if script == PREPARE:
        assert run(bare, *flags(archives, 'tree')) == (2, '', missing % ('tqdm', target))
    assert os.listdir(str(tmp_path)) == ['packages']
