"""Archives in the format of image-net.org for tests, small ones, and runs of data/ilsvrc12/prepare.py on them."""
import collections
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import warnings
from unittest import mock

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from command_line import run
from conftest import ROOT
from data.ilsvrc12 import prepare

PREPARE = os.path.join(ROOT, 'data', 'ilsvrc12', 'prepare.py')
DEVKIT_DATA = 'ILSVRC2012_devkit_t12/data/'
FIELDS = ['ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children', 'children', 'wordnet_height', 'num_train_images']
Archives = collections.namedtuple('Archives', 'devkit val train')

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
        run(prepare.main, prepare.parse_args(), 'prepare.py')
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


def md5_lines(archives):
    """What is printed of the archives, which are not the published ones."""
    lines = []
    for name, path in (('devkit_t12.tar.gz', archives.devkit), ('img_train.tar', archives.train), ('img_val.tar', archives.val)):
        with open(path, 'rb') as f:
            lines.append('ILSVRC2012_%s: MD5 %s: differs from the published archive\n' % (name, hashlib.md5(f.read()).hexdigest()))
    return ''.join(lines)


def without_md5s(root):
    """`contents` of a tree, without what is recorded of its archives."""
    return {path: digest for path, digest in contents(root).items() if path != 'caffe_ilsvrc12/archives.md5'}


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
