"""data/ilsvrc12/prepare.py as a user runs it: archives and their MD5, --check, interruptions."""
import gzip
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from unittest import mock

import pytest
from archives import (
    PREPARE,
    call_prepare,
    contents,
    flags,
    made,
    md5_lines,
    photograph,
    read_list,
    refused,
    run_prepare,
    small_archives,
    tar_of,
    without_md5s,
    write,
    write_archives,
    write_devkit,
)

from conftest import SHARED, small_disk
from data.ilsvrc12 import check
from data.ilsvrc12.archives import PUBLISHED_MD5
from data.ilsvrc12.classes import read_devkit

MINI = os.path.join(SHARED, 'data', 'ilsvrc12-mini')    # real images, which a lone clone does not have

pytestmark = pytest.mark.slow


# --------------------------------------------------------------------------------------------------------- the whole path

def test_the_tree_is_that_of_the_devkit(tmp_path):
    """1,000 classes, whose ILSVRC2012_IDs are not in the order of the WordNet ids; run as a user runs it."""
    rng = random.Random(5)
    synsets = ['n%08d' % number for number in sorted(rng.sample(range(10 ** 8), 1000))]
    words = {synset: "class %d, it's a-class (sort of)" % label for label, synset in enumerate(synsets)}
    order = rng.sample(synsets, 1000)
    labels = [rng.randrange(1000) for _ in range(300)]
    val = [photograph(number) for number in range(300)]
    train = {synset: [('%s_%d.JPEG' % (synset, 9 + i), val[(label + i) % 300]) for i in range(1 + label % 2)]
             for label, synset in enumerate(synsets)}
    archives = write_archives(tmp_path, [(synset, words[synset], len(train[synset])) for synset in order],
                              [1 + order.index(synsets[label]) for label in labels], val, train)
    tree = tmp_path / 'made' / 'tree'
    assert made(*flags(archives, tree), runner=run_prepare) == md5_lines(archives) + (
        '%s: 1000 classes, 300 validation images, 1500 training images\n' % tree)
    assert read_list(tree, 'synsets.txt').decode() == ''.join('%s\n' % synset for synset in synsets)
    assert read_list(tree, 'synset_words.txt').decode() == ''.join('%s %s\n' % (synset, words[synset]) for synset in synsets)
    assert read_list(tree, 'val.txt').decode() == ''.join(
        'ILSVRC2012_val_%08d.JPEG %d\n' % (number, label) for number, label in enumerate(labels, 1))
    for number, (label, image) in enumerate(zip(labels, val), 1):
        assert (tree / 'val' / synsets[label] / ('ILSVRC2012_val_%08d.JPEG' % number)).read_bytes() == image
    listed = [line.split() for line in read_list(tree, 'train.txt').decode().splitlines()]
    assert listed == [['%s/%s' % (synset, name), str(label)] for label, synset in enumerate(synsets)
                      for name in sorted(name for name, _ in train[synset])]
    for synset in synsets:
        for name, image in train[synset]:
            assert (tree / 'train' / synset / name).read_bytes() == image
    assert made('--check', tree, runner=run_prepare) == (
        "synsets.txt: differs from the published list\nval.txt: differs from the published list\n"
        "%s%s is sound: 1000 classes, 300 validation images, 1500 training images\n" % (md5_lines(archives), tree))


def test_the_published_lists(small, tmp_path):
    tree = small[1]
    published = {name: hashlib.sha256(read_list(tree, name)).hexdigest() for name in ('synsets.txt', 'val.txt')}
    with mock.patch.object(check, 'PUBLISHED', published):
        assert made('--check', tree).startswith("synsets.txt: equal to the published list\nval.txt: equal to the published list\n")
    if os.path.isdir(MINI):    # the real synsets and their words
        with open(os.path.join(MINI, 'caffe_ilsvrc12', 'synset_words.txt'), encoding='utf-8') as f:
            classes = [tuple(line.rstrip('\n').split(' ', 1)) + (1,) for line in f]
        write_devkit(tmp_path / 'devkit.tar.gz', random.Random(5).sample(classes, 1000), [1])
        assert read_devkit(str(tmp_path / 'devkit.tar.gz'))[0] == classes
        synsets = ''.join('%s\n' % synset for synset, _, _ in classes).encode()
        assert hashlib.sha256(synsets).hexdigest() == check.PUBLISHED['synsets.txt']


def test_small_archives_and_words_of_any_script(tmp_path):
    archives, synsets, truth = small_archives(tmp_path, 30, 3, photograph)
    tree = tmp_path / 'tree'
    assert made(*flags(archives, tree)) == md5_lines(archives) + '%s: 20 classes, 30 validation images, 60 training images\n' % tree
    order = sorted(synsets)
    labels = {number: order.index(synset) for number, synset in enumerate(synsets, 1)}
    assert read_list(tree, 'synsets.txt').decode() == ''.join(synset + '\n' for synset in order)
    assert read_list(tree, 'synset_words.txt').decode('utf-8') == ''.join(
        '%s cr\xe8me br\xfbl\xe9e %d, \u6f22\u5b57\n' % (synset, synsets.index(synset)) for synset in order)
    assert read_list(tree, 'val.txt').decode() == ''.join(
        'ILSVRC2012_val_%08d.JPEG %d\n' % (number, labels[i]) for number, i in enumerate(truth, 1))
    assert read_list(tree, 'train.txt').decode() == ''.join(
        '%s/%s_%s.JPEG %d\n' % (synset, synset, i, label) for label, synset in enumerate(order) for i in ('0', '14', '7'))
    files = {path: digest for path, digest in contents(tree).items() if digest is not None}
    assert len(files) == 5 + 30 + 60
    assert files['val/%s/ILSVRC2012_val_00000030.JPEG' % order[labels[truth[-1]]]] == hashlib.sha256(photograph(29)).hexdigest()


def test_validation_images_alone_from_a_pipe_with_leading_dots(small, tmp_path):
    """What cannot be rewound is read as well; ``tar -C folder .`` names its members ./ and ./<file>."""
    archives, tree = small
    here = tarfile.TarInfo('.')
    here.type = tarfile.DIRTYPE
    with tarfile.open(archives.val) as tar:
        members = [here] + [('./' + member.name, tar.extractfile(member).read()) for member in tar]
    status, _, err = run_prepare('--val', '/dev/stdin', '--devkit', archives.devkit, '--out', tmp_path / 'tree',
                                 stdin=subprocess.Popen(['cat', write(tmp_path / 'dots.tar', tar_of(members))],
                                                        stdout=subprocess.PIPE).stdout)
    assert status == 0 and err == ''
    expected = {path: digest for path, digest in without_md5s(tree).items() if not path.split(os.sep)[-1].startswith('train')
                and not path.startswith('train')}
    assert without_md5s(tmp_path / 'tree') == expected


def test_training_images_of_another_number_are_noted(small, tmp_path):
    archives, _ = small
    classes = [(member.name[:-4], 'words', 2) for member in tarfile.open(archives.train)]
    classes[3] = (classes[3][0], 'words', 1300)
    write_devkit(tmp_path / 'devkit.tar.gz', classes, [1] * 30)
    out = made('--val', archives.val, '--devkit', tmp_path / 'devkit.tar.gz', '--train', archives.train, '--out', tmp_path / 'tree')
    assert "note: of 1 classes" in out and classes[3][0] in out


def test_lists_of_another_devkit_do_not_stay(small, tmp_path):
    archives, tree = small
    shutil.copytree(tree, str(tmp_path / 'tree'))
    write_devkit(tmp_path / 'devkit.tar.gz', [('n00000001', 'other', 1)], [1] * 31)
    refused('--val', archives.val, '--devkit', tmp_path / 'devkit.tar.gz', '--out', tmp_path / 'tree')
    assert os.listdir(str(tmp_path / 'tree' / 'caffe_ilsvrc12')) == []


def test_adding_training_images_keeps_the_validation_list(small, tmp_path):
    archives, tree = small
    made('--val', archives.val, '--devkit', archives.devkit, '--out', tmp_path / 'tree')
    bad = write(tmp_path / 'bad.tar', open(archives.train, 'rb').read()[:20000])
    refused('--val', archives.val, '--devkit', archives.devkit, '--train', bad, '--out', tmp_path / 'tree')
    assert read_list(tmp_path / 'tree', 'val.txt') == read_list(tree, 'val.txt')
    made(*flags(archives, tmp_path / 'tree'))
    assert contents(tmp_path / 'tree') == contents(tree)


# ------------------------------------------------------------------------------------- what a browser makes of archives, MD5

def test_archives_that_a_browser_has_gzipped_or_gunzipped(small, tmp_path):
    """The content decides, not the name; the MD5 is that of the form in which the archive is published."""
    archives, tree = small
    read = {name: open(path, 'rb').read() for name, path in archives._asdict().items()}
    packed = archives._replace(devkit=write(tmp_path / 'devkit.tar', gzip.decompress(read['devkit'])),
                               **{name: write(tmp_path / name, gzip.compress(read[name])) for name in ('val', 'train')})
    assert made(*flags(packed, tmp_path / 'a')).startswith(''.join(md5_lines(archives).splitlines(True)[1:]))
    assert without_md5s(tmp_path / 'a') == without_md5s(tree)
    published = {name: line.split()[2].rstrip(':') for name, line in zip(sorted(PUBLISHED_MD5), md5_lines(archives).splitlines())}
    packed = packed._replace(devkit=write(tmp_path / 'devkit', gzip.compress(read['devkit'])))    # of a tar.gz
    with mock.patch.dict(PUBLISHED_MD5, published):
        out = made(*flags(packed, tmp_path / 'b'))
        assert out.startswith(md5_lines(archives).replace('differs from', 'equal to'))
        assert md5_lines(archives).replace('differs from', 'equal to') in made('--check', tmp_path / 'b')
    assert contents(tmp_path / 'b') == contents(tree)
    folder = tmp_path / 'extracted'
    shutil.unpack_archive(archives.devkit, str(folder), 'gztar')
    for devkit in (folder, folder / 'ILSVRC2012_devkit_t12'):
        made('--val', archives.val, '--devkit', devkit, '--out', tmp_path / 'c')
        assert read_list(tmp_path / 'c', 'val.txt') == read_list(tree, 'val.txt')


def test_a_flipped_bit_is_found_by_the_md5_and_mended_from_the_right_archive(small, tmp_path):
    """If it is the data set, which the lists tell; the warning is on stderr. The right archive replaces images of the same size."""
    archives, tree = small
    with open(archives.val, 'rb') as f:
        data = bytearray(f.read())
    published = {name: line.split()[2].rstrip(':') for name, line in zip(sorted(PUBLISHED_MD5), md5_lines(archives).splitlines())}
    lists = {name: hashlib.sha256(read_list(tree, name)).hexdigest() for name in check.PUBLISHED}
    data[512 + 1500] ^= 4    # in the scan of the first image
    bad = archives._replace(val=write(tmp_path / 'val.tar', data))
    with mock.patch.dict(PUBLISHED_MD5, published), mock.patch.dict(check.PUBLISHED, lists):
        status, out, err = call_prepare(*flags(bad, tmp_path / 'tree'))
        assert status == 0 and 'img_val.tar: MD5 %s: differs' % hashlib.md5(data).hexdigest() in out and 'train.tar: MD5' in out
        assert err.startswith('prepare.py: warning: ILSVRC2012_img_val.tar is not the published archive') and err.count('\n') == 1
        assert 'img_val.tar: MD5 %s: differs' % hashlib.md5(data).hexdigest() in made('--check', tmp_path / 'tree')
        assert contents(tmp_path / 'tree') != contents(tree)
        out = made('--val', archives.val, '--devkit', archives.devkit, '--out', tmp_path / 'tree')
        assert 'img_val.tar: MD5 %s: equal to' % published['ILSVRC2012_img_val.tar'] in out
    assert contents(tmp_path / 'tree') == contents(tree)


# ----------------------------------------------------------------------------------------------------------------- check

def damage_missing(tree):
    path = next(tree.glob('val/*/ILSVRC2012_val_00000011.JPEG'))
    path.unlink()
    return 'val.txt, line 11: the image ILSVRC2012_val_00000011.JPEG is missing'


def damage_truncated(tree):
    path = next(tree.glob('train/*/*_7.JPEG'))
    write(path, path.read_bytes()[:-40])
    return '%s is broken: ' % path


def damage_no_image(tree):
    path = next(tree.glob('val/*/ILSVRC2012_val_00000029.JPEG'))
    write(path, b'<html>not found</html>')
    return '%s is broken: it is no picture' % path


def edit(tree, name, old, new):
    data = read_list(tree, name)
    assert data.count(old) == 1
    write(tree / 'caffe_ilsvrc12' / name, data.replace(old, new))


def damage_other_label(tree):
    line = read_list(tree, 'val.txt').split(b'\n')[4]
    name, label = line.split()
    edit(tree, 'val.txt', line, name + (b' 0' if label != b'0' else b' 1'))
    return 'val.txt, line 5: label '


def damage_no_label(tree):
    line = read_list(tree, 'train.txt').split(b'\n')[-2]
    edit(tree, 'train.txt', line, line.split()[0] + b' 20')
    return 'train.txt, line 40: label 20 is not one of the 20 classes'


def damage_unlisted(tree):
    line = read_list(tree, 'val.txt').split(b'\n')[29]
    edit(tree, 'val.txt', line + b'\n', b'')
    return '1 images that val.txt does not list'


def damage_twice(tree):
    line = read_list(tree, 'val.txt').split(b'\n')[0]
    edit(tree, 'val.txt', line, line + b'\n' + line)
    return 'val.txt, line 2: ILSVRC2012_val_00000001.JPEG is listed twice'


def damage_words(tree):
    edit(tree, 'synset_words.txt', read_list(tree, 'synset_words.txt').split(b'\n')[9] + b'\n', b'')
    return 'synset_words.txt does not have the synsets'


def damage_unfinished(tree):
    (tree / 'caffe_ilsvrc12' / 'val.txt').unlink()
    return 'the tree is not finished'


@pytest.mark.parametrize('damage', [damage_missing, damage_truncated, damage_other_label, damage_no_image, damage_no_label,
                                    damage_unlisted, damage_twice, damage_words, damage_unfinished])
def test_check_names_what_is_wrong(small, tmp_path, damage):
    shutil.copytree(small[1], str(tmp_path / 'tree'))
    said = damage(tmp_path / 'tree')
    runner = run_prepare if damage in (damage_missing, damage_truncated) else call_prepare
    assert said in refused('--check', tmp_path / 'tree', runner=runner)


def test_check_names_all_broken_images(small, tmp_path):
    """Of both folders, each by a line; nothing that is no picture is opened, and what macOS and Windows leave is passed over."""
    tree = tmp_path / 'tree'
    shutil.copytree(small[1], str(tree))
    for folder in (tree, tree / 'val', next(tree.glob('val/*')), next(tree.glob('train/*'))):
        for name in ('._ILSVRC2012_val_00000001.JPEG', '.DS_Store', 'Thumbs.db'):
            write(folder / name, b'\0\5\26\7')
    (tree / 'val' / 'loop').symlink_to(tree / 'val', target_is_directory=True)
    (tree / 'val' / 'again').symlink_to('.', target_is_directory=True)
    assert ' is sound: ' in made('--check', tree)
    broken = [next(tree.glob(name)) for name in ('val/*/*_00000003.JPEG', 'val/*/*_00000007.JPEG', 'train/*/*_7.JPEG')]
    write(broken[0], b'')
    broken[1].unlink()
    os.mkfifo(str(broken[1]))
    write(broken[2], broken[2].read_bytes()[:-300])
    status, out, err = call_prepare('--check', tree)
    assert status == 2 and err.count('\n') == 1 and err.startswith('prepare.py: %s: 3 of 70 images are broken, the first: ' % tree)
    assert all(sum(str(path) in line for line in out.splitlines()) == 1 for path in broken) and out.count('\n') == 3
    with mock.patch.object(check, 'MOST_NAMED', 2):
        assert call_prepare('--check', tree)[1].splitlines()[2:] == ['... and 1 more']


def test_check_takes_every_sound_tree(digits):
    """Validation images without folders, training images with names of another form, other kinds of images."""
    for tree in [digits] + [MINI] * os.path.isdir(MINI):
        before = contents(tree)
        assert '%s is sound: ' % tree in made('--check', tree)
        assert contents(tree) == before


# ----------------------------------------------------------------------------------------------- interrupted, or disk full

def files_in(tree):
    return sum(len(files) for _, _, files in os.walk(str(tree)))


@pytest.mark.once
def test_twenty_kills_leave_no_trace(tmp_path):
    def image(seed):
        return random.Random(seed).getrandbits(8 * 6000).to_bytes(6000, 'big')

    archives, _, _ = small_archives(tmp_path, 1600, 60, image)
    total = 1600 + 20 * 60
    made(*flags(archives, tmp_path / 'whole'))
    expected = contents(tmp_path / 'whole')
    tree = tmp_path / 'killed'
    rng, landed = random.Random(0), 0
    for kill in range(20):
        done = files_in(tree)
        wanted = done + rng.randint(1, max(1, (total - done) // (21 - kill)))
        process = subprocess.Popen([sys.executable, PREPARE] + [str(flag) for flag in flags(archives, tree)],
                                   stdout=subprocess.DEVNULL)
        while process.poll() is None and files_in(tree) < wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.002))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            landed += done < files_in(tree) < total and not (tree / 'caffe_ilsvrc12' / 'val.txt').exists()
    assert landed >= 10, landed
    made(*flags(archives, tree))
    assert contents(tree) == expected


def test_what_a_kill_left_is_replaced(small, tmp_path):
    """Part of an image under the temporary name; part of one under its own name, as after a crash of the machine; old lists."""
    archives, tree = small
    copy = tmp_path / 'tree'
    shutil.copytree(tree, str(copy))
    image = next(copy.glob('train/*/*_7.JPEG'))
    write('%s.%s.tmp' % (image.parent, image.name), image.read_bytes()[:100])
    image.unlink()
    image = next(copy.glob('val/*/*_00000003.JPEG'))
    write(image, image.read_bytes()[:100])
    write(copy / 'caffe_ilsvrc12.val.txt.tmp', b'ILSV')
    kept = next(copy.glob('val/*/*_00000004.JPEG')).stat()
    made(*flags(archives, copy))
    assert contents(copy) == contents(tree)
    after = next(copy.glob('val/*/*_00000004.JPEG')).stat()
    assert (after.st_ino, after.st_mtime) == (kept.st_ino, kept.st_mtime)    # what was whole has not been written again


def test_full_disk(small, tmp_path):
    archives, tree = small
    with small_disk(tmp_path / 'disk', '200k') as disk:
        before = contents(tmp_path)
        for _ in range(2):
            error = refused(*flags(archives, disk / 'tree'), runner=run_prepare)
            assert 'cannot write ' in error and 'the same command continues from there' in error
            assert 'No space left on device' in error
            found = contents(disk / 'tree')
            assert not any(path.endswith('.tmp') for path in found) and 'caffe_ilsvrc12/val.txt' not in found
        assert {path: digest for path, digest in contents(tmp_path).items() if not path.startswith('disk')} == {
            path: digest for path, digest in before.items() if not path.startswith('disk')}
        subprocess.check_call(['mount', '-o', 'remount,size=20m', str(disk)])
        made(*flags(archives, disk / 'tree'))
        assert contents(disk / 'tree') == contents(tree)


def test_a_file_that_cannot_be_written_whole(small, tmp_path):
    archives, _ = small
    error = refused(*flags(archives, tmp_path / 'tree'), runner=run_prepare,
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    assert 'cannot write ' in error and 'File too large' in error
    assert [path for path, digest in contents(tmp_path / 'tree').items() if digest is not None] == []
