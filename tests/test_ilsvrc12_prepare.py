"""data/ilsvrc12/prepare.py as a user runs it, on archives in the official format: good ones, broken ones and hostile ones."""
import collections
import contextlib
import gzip
import hashlib
import importlib.util
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from unittest import mock

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from conftest import ROOT, SHARED, small_disk, without

PREPARE = os.path.join(ROOT, 'data', 'ilsvrc12', 'prepare.py')
DEVKIT_DATA = 'ILSVRC2012_devkit_t12/data/'
FIELDS = ['ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children', 'children', 'wordnet_height', 'num_train_images']
MINI = os.path.join(SHARED, 'data', 'ilsvrc12-mini')    # real images, which a lone clone does not have
Archives = collections.namedtuple('Archives', 'devkit val train')

pytestmark = pytest.mark.slow

spec = importlib.util.spec_from_file_location('ilsvrc12_prepare', PREPARE)
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)


def run_prepare(*args, **kwargs):
    """Runs prepare.py as a user does, and returns (exit status, stdout, stderr)."""
    run = subprocess.run([sys.executable, PREPARE] + [str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         universal_newlines=True, timeout=300, **kwargs)
    return run.returncode, run.stdout, run.stderr


def call_prepare(*args):
    """The same in this process, which has SciPy already: a tenth of the time."""
    with mock.patch.object(sys, 'argv', [PREPARE] + [str(a) for a in args]), contextlib.redirect_stdout(io.StringIO()) as out, \
            contextlib.redirect_stderr(io.StringIO()) as err, warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.showwarning = lambda *warning, **_: err.write('%s\n' % warning[0])    # pytest would keep it for itself
        prepare.run(prepare.main, prepare.parse_args(), 'prepare.py')
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def flags(archives, out):
    return ['--val', archives.val, '--devkit', archives.devkit, '--train', archives.train, '--out', out]


def made(*args, **kwargs):
    """Runs prepare.py on good input, in this process unless `runner` is given; returns stdout."""
    status, out, err = kwargs.pop('runner', call_prepare)(*args, **kwargs)
    assert status == 0 and err == '', (status, out, err)
    return out


def refused(*args, **kwargs):
    """Runs it on bad input: exit status 2, nothing on stdout, one line on stderr, which is returned."""
    status, out, err = kwargs.pop('runner', call_prepare)(*args, **kwargs)
    assert status == 2 and out == '' and err.count('\n') == 1 and err.startswith('prepare.py: '), (status, out, err)
    return err


def contents(root):
    """{path below `root`: SHA-256 of a file, target of a link, or None for a folder}."""
    found = {}
    for parent, folders, files in os.walk(str(root)):
        for name in folders + files:
            path = os.path.join(parent, name)
            key = os.path.relpath(path, str(root))
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif name in folders:
                found[key] = None
            else:
                with open(path, 'rb') as f:
                    found[key] = hashlib.sha256(f.read()).hexdigest()
    return found


def read_list(tree, name):
    with open(os.path.join(str(tree), 'caffe_ilsvrc12', name), 'rb') as f:
        return f.read()


def write(path, data):
    with open(str(path), 'wb') as f:
        f.write(data)
    return str(path)


# -------------------------------------------------------------------------------------------------------------- archives

def tar_of(members, mode='w'):
    """Bytes of a tar with members (name, bytes), or TarInfo."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for member in members:
            if not isinstance(member, tarfile.TarInfo):
                name, content = member
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                tar.addfile(member)
    return data.getvalue()


def write_devkit(path, classes, truth):
    """A devkit with leaf synsets [(WordNet id, words, number of training images), ...] as IDs 1, 2, ... and 860 inner ones."""
    rows = np.empty(len(classes) + 860, [(field, object) for field in FIELDS])
    for number, (synset, words, count) in enumerate(classes, 1):
        rows[number - 1] = (number, synset, words, 'a gloss', 0, np.zeros(0), 0, count)
    for number in range(len(classes) + 1, len(rows) + 1):
        rows[number - 1] = (number, 'n%08d' % (99000000 + number), 'inner', 'a gloss', 2, np.array([1, 2]), 1, 0)
    meta = io.BytesIO()
    savemat(meta, {'synsets': rows})
    with open(str(path), 'wb') as f:
        f.write(tar_of([(DEVKIT_DATA + 'meta.mat', meta.getvalue()), ('ILSVRC2012_devkit_t12/readme.txt', b'not read\n'), (
            DEVKIT_DATA + 'ILSVRC2012_validation_ground_truth.txt', ''.join('%d\n' % i for i in truth).encode())], 'w:gz'))


def write_archives(folder, classes, truth, val, train):
    """Archives of the official form: `val` is a list of bytes, `train` {synset: [(name, bytes), ...]}."""
    archives = Archives(*(str(folder / name) for name in ('devkit.tar.gz', 'val.tar', 'train.tar')))
    write_devkit(archives.devkit, classes, truth)
    with open(archives.val, 'wb') as f:
        f.write(tar_of([('ILSVRC2012_val_%08d.JPEG' % number, image) for number, image in enumerate(val, 1)]))
    with open(archives.train, 'wb') as f:
        f.write(tar_of([(synset + '.tar', tar_of(train[synset])) for synset in sorted(train)]))
    return archives


def photograph(seed):
    noise = np.random.RandomState(seed).randint(0, 256, (12, 16, 3)).astype(np.uint8)
    return cv2.imencode('.jpg', cv2.resize(noise, (64, 48)))[1].tobytes()


def small_archives(folder, val_images, train_images, image):
    """20 classes in no order, with non-ASCII words; returns the archives, and the synsets in the order of the labels."""
    synsets = ['n%08d' % (10000000 + 7919 * i % 20 * 1000) for i in range(20)]
    classes = [(synset, 'cr\xe8me br\xfbl\xe9e %d, \u6f22\u5b57' % i, train_images) for i, synset in enumerate(synsets)]
    truth = [1 + i * 7 % 20 for i in range(val_images)]
    train = {synset: [('%s_%d.JPEG' % (synset, 7 * i), image(1000 + 100 * c + i)) for i in range(train_images)]
             for c, synset in enumerate(synsets)}
    archives = write_archives(folder, classes, truth, [image(i) for i in range(val_images)], train)
    return archives, synsets, truth


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Archives of 20 classes, 30 validation and 40 training images, and the tree that comes from them."""
    folder = tmp_path_factory.mktemp('small')
    archives, _, _ = small_archives(folder, 30, 2, photograph)
    made(*flags(archives, folder / 'tree'))
    return archives, str(folder / 'tree')


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
    assert made(*flags(archives, tree), runner=run_prepare) == (
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
        "%s is sound: 1000 classes, 300 validation images, 1500 training images\n" % tree)


def test_the_published_lists(small, tmp_path):
    tree = small[1]
    published = {name: hashlib.sha256(read_list(tree, name)).hexdigest() for name in ('synsets.txt', 'val.txt')}
    with mock.patch.object(prepare, 'PUBLISHED', published):
        assert made('--check', tree).startswith("synsets.txt: equal to the published list\nval.txt: equal to the published list\n")
    if os.path.isdir(MINI):    # the real synsets and their words
        with open(os.path.join(MINI, 'caffe_ilsvrc12', 'synset_words.txt'), encoding='utf-8') as f:
            classes = [tuple(line.rstrip('\n').split(' ', 1)) + (1,) for line in f]
        write_devkit(tmp_path / 'devkit.tar.gz', random.Random(5).sample(classes, 1000), [1])
        assert prepare.read_devkit(str(tmp_path / 'devkit.tar.gz'))[0] == classes
        synsets = ''.join('%s\n' % synset for synset, _, _ in classes).encode()
        assert hashlib.sha256(synsets).hexdigest() == prepare.PUBLISHED['synsets.txt']


def test_small_archives_and_words_of_any_script(tmp_path):
    archives, synsets, truth = small_archives(tmp_path, 30, 3, photograph)
    tree = tmp_path / 'tree'
    assert made(*flags(archives, tree)) == '%s: 20 classes, 30 validation images, 60 training images\n' % tree
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
    assert len(files) == 4 + 30 + 60
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
    expected = {path: digest for path, digest in contents(tree).items() if not path.split(os.sep)[-1].startswith('train')
                and not path.startswith('train')}
    assert contents(tmp_path / 'tree') == expected


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


# ----------------------------------------------------------------------------------------------------------------- links

@pytest.mark.parametrize('flat', [True, False], ids=['flat', 'folders'])
def test_links_to_an_extracted_folder(small, tmp_path, flat):
    archives, tree = small
    source = tmp_path / 'source'
    shutil.copytree(os.path.join(tree, 'train'), str(source / 'train'))
    shutil.copytree(os.path.join(tree, 'val'), str(source / 'val'))
    write(source / 'val' / 'valprep.sh', b'#!/bin/bash\n')
    if flat:
        for folder in [path for path in (source / 'val').iterdir() if path.is_dir()]:
            for path in folder.iterdir():
                path.rename(source / 'val' / path.name)
            folder.rmdir()
    before = contents(source)
    linked = tmp_path / 'linked'
    for _ in range(2):    # the second time, all links are there
        made('--links', 'source', '--devkit', archives.devkit, '--out', 'linked', runner=run_prepare, cwd=str(tmp_path))
    for name in ('synsets.txt', 'synset_words.txt', 'val.txt', 'train.txt'):
        assert read_list(linked, name) == read_list(tree, name)
    for path, digest in contents(tree).items():
        if digest is not None:
            with open(str(linked / path), 'rb') as f:
                assert hashlib.sha256(f.read()).hexdigest() == digest
    assert ' is sound: 20 classes, 30 validation images, 40 training images' in made('--check', linked)

    # Archives are never extracted through a link, and a folder of images is never replaced by one.
    assert ' is a link' in refused(*flags(archives, linked))
    shutil.copytree(tree, str(tmp_path / 'copy'))
    assert ' exists and is not a link' in refused('--links', source, '--devkit', archives.devkit, '--out', tmp_path / 'copy')
    assert contents(tmp_path / 'copy/val') == contents(os.path.join(tree, 'val'))
    assert contents(source) == before


def test_an_image_from_the_archive_replaces_a_link_to_a_damaged_one(small, tmp_path):
    """What the link names is the user's, and stays as it is."""
    archives, tree = small
    image = next(path for path in contents(os.path.join(tree, 'val')) if path.endswith('00000007.JPEG'))
    source = tmp_path / 'source' / 'val'
    source.mkdir(parents=True)
    for path, digest in contents(os.path.join(tree, 'val')).items():
        if digest is not None:
            shutil.copy(os.path.join(tree, 'val', path), str(source))
    damaged = write(source / os.path.basename(image), b'damaged')
    made('--links', tmp_path / 'source', '--devkit', archives.devkit, '--out', tmp_path / 'linked')
    before = contents(source)
    assert os.path.realpath(str(tmp_path / 'linked' / 'val' / image)) == damaged
    made('--val', archives.val, '--devkit', archives.devkit, '--out', tmp_path / 'linked')
    assert contents(source) == before
    assert contents(tmp_path / 'linked')['val/' + image] == contents(tree)['val/' + image]


def test_links_to_a_folder_that_lacks_something(small, tmp_path):
    archives, tree = small
    source = tmp_path / 'source'
    shutil.copytree(tree, str(source))
    synsets = read_list(tree, 'synsets.txt').decode().split()
    image = next(path for path in contents(source / 'val') if path.endswith('00000007.JPEG'))
    command = ['--links', source, '--devkit', archives.devkit, '--out', tmp_path / 'linked']

    os.rename(str(source / 'val' / image), str(tmp_path / 'image'))
    assert 'lacks 1 of 30 validation images, the first is ILSVRC2012_val_00000007.JPEG' in refused(*command)
    other = next(synset for synset in synsets if not image.startswith(synset) and (source / 'val' / synset).is_dir())
    shutil.copy(str(tmp_path / 'image'), str(source / 'val' / other / os.path.basename(image)))
    assert 'is not where the devkit has it' in refused(*command)
    os.rename(str(source / 'val' / other / os.path.basename(image)), str(source / 'val' / image))
    os.rename(str(source / 'train' / synsets[4]), str(tmp_path / 'class'))
    assert 'lacks 1 of 20 classes, the first is %s' % synsets[4] in refused(*command)
    shutil.copytree(str(tmp_path / 'class'), str(source / 'train' / 'n99999999'))
    assert 'n99999999 is not the folder of a class' in refused(*command)


# ----------------------------------------------------------------------------------------------------------------- check

def damage_missing(tree):
    path = next(tree.glob('val/*/ILSVRC2012_val_00000011.JPEG'))
    path.unlink()
    return 'val.txt, line 11: the image ILSVRC2012_val_00000011.JPEG is missing'


def damage_truncated(tree):
    path = next(tree.glob('train/*/*_7.JPEG'))
    write(path, path.read_bytes()[:-40])
    return '%s is truncated' % path


def damage_no_image(tree):
    path = next(tree.glob('val/*/ILSVRC2012_val_00000029.JPEG'))
    write(path, b'<html>not found</html>')
    return '%s is not an image' % path


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


def test_check_takes_every_sound_tree(digits):
    """Validation images without folders, training images with names of another form, other kinds of images."""
    for tree in [digits] + [MINI] * os.path.isdir(MINI):
        before = contents(tree)
        assert '%s is sound: ' % tree in made('--check', tree)
        assert contents(tree) == before


# ----------------------------------------------------------------------------------------------- interrupted, or disk full

def files_in(tree):
    return sum(len(files) for _, _, files in os.walk(str(tree)))


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
            'web page': b'<html>' + b'sign in' * 200, 'compressed': gzip.compress(data),
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
                 'compressed', 'damaged header'):
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
        assert run(bare, *flags(archives, 'tree')) == (2, '', missing % ('numpy', target))
    assert os.listdir(str(tmp_path)) == ['packages']
