"""data/ilsvrc12/prepare.py on what is broken, foreign or hostile: one line, nothing outside the tree, bounded memory."""
import functools
import gzip
import io
import os
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zlib

import pytest
from archives import (
    DEVKIT_DATA,
    PREPARE,
    call_prepare,
    contents,
    flags,
    made,
    photograph,
    read_list,
    refused,
    run_prepare,
    tar_of,
    without_md5s,
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


def planted(tree, kind, outside):
    """Puts a link to a file or folder of somebody else's where something of the tree belongs; returns where."""
    synset, name = 'n10000000', 'ILSVRC2012_val_00000001.JPEG'
    place = tree / {'image': 'val/%s/%s' % (synset, name), 'unfinished image': 'val/%s.%s.tmp' % (synset, name),
                    'hard link': 'val/%s.%s.tmp' % (synset, name), 'list': 'caffe_ilsvrc12/val.txt',
                    'md5': 'caffe_ilsvrc12/archives.md5', 'unfinished list': 'caffe_ilsvrc12.val.txt.tmp'}.get(kind, kind)
    place.parent.mkdir(parents=True)
    if kind == 'hard link':
        os.link(str(outside / 'precious'), str(place))
    else:
        place.symlink_to(outside if kind == place.relative_to(tree).as_posix() else outside / 'precious')
    return place


@pytest.mark.parametrize('kind', ['val', 'train', 'caffe_ilsvrc12', 'val/n10000000', 'train/n10000000'])
def test_nothing_is_written_through_a_link_to_a_folder(small, tmp_path, kind):
    archives, good = small
    for name, source in (('a', flags(archives, tmp_path / 'a')),
                         ('b', ['--links', good, '--devkit', archives.devkit, '--out', tmp_path / 'b'])):
        outside = tmp_path / 'outside'
        outside.mkdir(exist_ok=True)
        place = planted(tmp_path / name, kind, outside)
        error = refused(*source)
        assert '%s is a link' % place in error or '%s exists and is not a link' % place in error
        assert list(outside.iterdir()) == []


@pytest.mark.parametrize('kind', ['image', 'unfinished image', 'hard link', 'list', 'md5', 'unfinished list'])
def test_a_link_to_a_file_is_replaced_and_its_target_stays(small, tmp_path, kind):
    archives, good = small
    outside = tmp_path / 'outside'
    outside.mkdir()
    write(outside / 'precious', b'precious')
    planted(tmp_path / 'tree', kind, outside)
    made(*flags(archives, tmp_path / 'tree'))
    assert contents(tmp_path / 'tree') == contents(good)
    assert (outside / 'precious').read_bytes() == b'precious' and len(list(outside.iterdir())) == 1


@pytest.mark.parametrize('place', ['caffe_ilsvrc12/val.txt', 'val/n10000000/ILSVRC2012_val_00000001.JPEG'])
def test_a_pipe_in_the_tree_is_not_waited_for(small, tmp_path, place):
    archives, good = small
    (tmp_path / 'tree' / place).parent.mkdir(parents=True)
    os.mkfifo(str(tmp_path / 'tree' / place))
    made(*flags(archives, tmp_path / 'tree'))
    assert contents(tmp_path / 'tree') == contents(good)


# ----------------------------------------------------------------------------------------------------------------- bombs

def header(name, kind=tarfile.REGTYPE, size=0, **changes):
    """The block of a tar that announces a member; `changes` are bytes at offsets, as in at_482=b'1'."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for place, data in changes.items():
        block[int(place[3:]):int(place[3:]) + len(data)] = data
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


def block(data):
    return data + bytes(-len(data) % 512)


def pax(record, size=None):
    return header('x', tarfile.XHDTYPE, size or len(record)) + block(record)


def zeros(count, head=b'', tail=b''):
    """gzip of so many megabytes, in little memory."""
    data = io.BytesIO()
    with gzip.GzipFile(fileobj=data, mode='wb', compresslevel=9) as f:
        f.write(head)
        for _ in range(count):
            f.write(bytes(1 << 20))
        f.write(tail)
    return data.getvalue()


def element(kind, data):
    return struct.pack('<II', kind, len(data)) + data + bytes(-len(data) % 8)


def mat(shape, array, *content, **options):
    """A MAT-file whose variable `synsets` has a shape and what is announced to be in it; compressed to nothing if so wanted."""
    inside = element(6, struct.pack('<II', array, 0)) + element(5, struct.pack('<%di' % len(shape), *shape)) + element(
        1, b'synsets') + b''.join(content)
    data = element(14, inside)
    if options.get('packed'):
        data = zlib.compress(data, 9)
        data = struct.pack('<II', 15, len(data)) + data
    return b'MATLAB 5.0 MAT-file'.ljust(124) + struct.pack('<H', 0x100) + b'IM' + data


VAL_1, META_MAT = 'ILSVRC2012_val_00000001.JPEG', DEVKIT_DATA + 'meta.mat'
FIELDS_8 = element(5, struct.pack('<i', 8)) + element(1, b'WNID'.ljust(8, b'\0'))
LONG_NAME = header('././@LongLink', tarfile.GNUTYPE_LONGNAME, 20) + block(b'x' * 20)
SPARSE = dict(at_386=b'%011o\0' % 0, at_398=b'%011o\0' % 512, at_483=b'%011o\0' % (5 << 30))
VAL_BOMBS = {    # {kind: the bytes before a good archive, or all of it}
    'long names': lambda good: LONG_NAME * 3000 + good,
    'pax headers': lambda good: pax(b'20 comment=abcdefgh\n') * 3000 + good,
    'large pax header': lambda good: pax(b'104857619 comment=' + b'a' * (100 << 20)) + good,
    'announced pax header': lambda good: header('x', tarfile.XHDTYPE, 900 << 20) + good,
    'global headers': lambda good: (header('x', tarfile.XGLTYPE, 20) + block(b'20 comment=abcdefgh\n')) * 3000 + good,
    'slow expression': lambda good: pax(b'1' * 60000) + good,
    'negative pax size': lambda good: pax(b'14 size=-1024\n') + good,
    'large pax size': lambda good: pax(b'22 size=99999999999999\n') + good,
    'negative size': lambda good: header(VAL_1, size=-512) + good,
    'large size': lambda good: header(VAL_1, size=1 << 62) + good,
    'large image': lambda good: header(VAL_1, size=100 << 20) + bytes(100 << 20) + good,
    'no bytes': lambda good: header(VAL_1) + good,
    'sparse image': lambda good: header(VAL_1, tarfile.GNUTYPE_SPARSE, 512, **SPARSE) + bytes(512) + good,
    'sparse headers': lambda good: header(VAL_1, tarfile.GNUTYPE_SPARSE, at_482=b'\1') + bytes(504) + b'\1' + bytes(7) + (
        bytes(504) + b'\1' + bytes(7)) * 3000 + good,
    'folders': lambda good: tar_of([special('.', tarfile.DIRTYPE)])[:512] * 100000 + good,
    'gzipped zeros': lambda good: zeros(200, header(VAL_1, size=200 << 20), good),
    'zeros behind': lambda good: zeros(200, good),
    'gzipped thrice': lambda good: gzip.compress(gzip.compress(gzip.compress(good)))}
DEVKIT_BOMBS = {    # {kind: bytes of the devkit from those of meta.mat and of the answers}
    'large meta.mat': lambda meta, truth: zeros(900, header(META_MAT, size=900 << 20)),
    'zeros behind': lambda meta, truth: zeros(200, tar_of([(META_MAT, meta), truth])),
    'members': lambda meta, truth: gzip.compress(header('a') * 1000000, 1),
    'sparse': lambda meta, truth: gzip.compress(
        header(META_MAT, tarfile.GNUTYPE_SPARSE, 512, **SPARSE) + bytes(512) + tar_of([truth])),
    'digits': lambda meta, truth: tar_of([(META_MAT, meta), (truth[0], b'1' * 1000000 + b'\n')], 'w:gz'),
    'lines': lambda meta, truth: tar_of([(META_MAT, meta), (truth[0], b'1\n' * 4000000)], 'w:gz'),
    'cells': lambda meta, truth: mat((1, 1 << 28), 1),
    'structures': lambda meta, truth: mat((1 << 15, 1 << 15), 2, FIELDS_8),
    'without fields': lambda meta, truth: mat((1, 1 << 28), 2, element(5, struct.pack('<i', 8)), element(1, b'')),
    'text': lambda meta, truth: mat((1, 1 << 29), 4, element(16, b'')),
    'negative': lambda meta, truth: mat((-1, 5), 2, FIELDS_8),
    'deep': lambda meta, truth: mat((1, 1), 1, functools.reduce(lambda inside, _: mat((1, 1), 1, inside)[128:], range(300), b'')),
    'compressed': lambda meta, truth: mat((1, 1 << 28), 6, element(9, bytes(1 << 28)), packed=True),
    'large text': lambda meta, truth: mat((1, 15 << 20), 4, element(16, b'a' * (15 << 20)), packed=True)}
TRUTH = 'ILSVRC2012_validation_ground_truth.txt'
LIMIT = 1 << 30


def limited(archives, tree):
    """Runs prepare.py with at most a gigabyte of addresses, half of which Python with its libraries takes."""
    return refused(*flags(archives, tree), runner=run_prepare, env=dict(os.environ, OPENBLAS_NUM_THREADS='1'),
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)))


@pytest.mark.parametrize('kind', sorted(VAL_BOMBS))
def test_archives_that_would_take_endless_memory_or_time(small, tmp_path, kind):
    archives, _ = small
    with open(archives.val, 'rb') as f:
        bad = write(tmp_path / 'bad.tar', VAL_BOMBS[kind](f.read()))
    start = time.time()
    error = limited(archives._replace(val=bad), tmp_path / 'tree')
    assert bad in error and len(error) < 1000 and 'memory is short' not in error and time.time() - start < 30, error
    assert not (tmp_path / 'tree' / 'caffe_ilsvrc12' / 'val.txt').exists()


@pytest.mark.once
@pytest.mark.parametrize('kind', sorted(DEVKIT_BOMBS))
def test_devkits_that_would_take_endless_memory_or_time(small, tmp_path, kind):
    archives, _ = small
    with tarfile.open(archives.devkit) as tar:
        meta, truth = [(name, tar.extractfile(name).read()) for name in (META_MAT, DEVKIT_DATA + TRUTH)]
    data = DEVKIT_BOMBS[kind](meta[1], truth)
    if data.startswith(b'MATLAB'):
        data = tar_of([(META_MAT, data), truth], 'w:gz')
    bad = write(tmp_path / 'bad.tar.gz', data)
    start = time.time()
    error = limited(archives._replace(devkit=bad), tmp_path / 'tree')
    assert bad in error and len(error) < 1000 and 'memory is short' not in error and time.time() - start < 30, error
    assert not (tmp_path / 'tree').exists()


def test_what_macos_leaves_in_an_archive_is_passed_over(small, tmp_path):
    """Headers of a sensible size are read: bsdtar writes them for every file."""
    archives, good = small
    with tarfile.open(archives.val) as tar:
        val = [(member.name, tar.extractfile(member).read()) for member in tar]
    data = b''
    for name, image in val:
        record = b'30 mtime=1322000000.123456789\n' + b'3013 SCHILY.xattr.com.apple=' + b'\xff' * 2984 + b'\n'
        data += header('./._' + name, size=4) + block(b'\0\5\26\7')
        data += pax(record) + header('./' + name, size=len(image)) + block(image)
    made(*flags(archives._replace(val=write(tmp_path / 'val.tar', data + bytes(1024))), tmp_path / 'tree'))
    assert without_md5s(tmp_path / 'tree') == without_md5s(good)


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
