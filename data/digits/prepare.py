"""Writes scikit-learn's handwritten digits (``load_digits``: 1,797 pictures of 8x8 pixels) as an ILSVRC12 tree.

    python data/digits/prepare.py              # into data/digits, where main.py finds them

A fifth of them, drawn by scikit-learn's ``train_test_split`` with random state 0, is for validation.
Pictures are stored as PNG, which every OpenCV decodes to the same pixels.
"""
import contextlib
import os
import sys

# So that this script runs from any folder.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from command_line import InputError, Parser, atomic_write, run, work_folder
from dataset import META, read_lines

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
SYNSETS = ['n%08d' % digit for digit in range(10)]    # not WordNet ids, only of their form
SIDE = 80


def enlarge(digit):
    """uint8 (80, 80) of a digit, float (8, 8) from 0 to 16, with a margin of one of its pixels, linearly interpolated.

    Weights are sixteenths, so that the arithmetic is exact and the pixels the same on every machine.
    """
    import numpy as np
    digit = np.pad(digit, 1, mode='constant')
    position = np.clip((np.arange(SIDE) + 0.5) * len(digit) / SIDE - 0.5, 0, len(digit) - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(len(digit))))
    return np.rint(weights.dot(digit).dot(weights.T) * 255 / 16).astype(np.uint8)


def contents():
    """The files of the tree, {path below it: bytes}, the lists last."""
    import cv2
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    data = load_digits()
    train, _ = train_test_split(range(len(data.images)), test_size=0.2, random_state=0)
    training = set(train)
    files = {}
    lines = {'train': [], 'val': [], 'synsets': SYNSETS, 'synset_words': ['%s %s' % pair for pair in zip(SYNSETS, NAMES)]}
    for number, (image, label) in enumerate(zip(data.images, data.target)):
        if number in training:
            folder, name = 'train', '%s/%s_%d.png' % (SYNSETS[label], SYNSETS[label], number)
        else:
            folder, name = 'val', 'digits_val_%08d.png' % number
        files['%s/%s' % (folder, name)] = cv2.imencode('.png', enlarge(image))[1].tobytes()
        lines[folder].append('%s %d' % (name, label))
    for name in sorted(lines):
        files['%s/%s.txt' % (META, name)] = ('\n'.join(lines[name]) + '\n').encode('ascii')
    return files


def holds(path, data):
    """Whether `path` is a file with bytes `data`."""
    if not os.path.isfile(path) or os.path.getsize(path) != len(data):    # a pipe would be waited for
        return False
    with open(path, 'rb') as f:
        return f.read() == data


def make_folders(out, files):
    """Makes the folders of `files` in `out`. Raises InputError if the tree is another one, or leads through a link to one."""
    synsets = os.path.join(out, META, 'synsets.txt')
    if os.path.isfile(synsets) and set(read_lines(synsets)) - set(SYNSETS + ['']):
        raise InputError("%s has other classes than the digits: name another --out" % synsets)
    for folder in sorted({parent for name in files for parent in (os.path.dirname(name), name.split('/')[0])}):
        if os.path.islink(os.path.join(out, folder)):
            raise InputError("%s is a link: remove it, or name another --out" % os.path.join(out, folder))
        os.makedirs(os.path.join(out, folder), exist_ok=True)


def prepare(out):
    """Writes what is missing or wrong in train/, val/ and caffe_ilsvrc12/ of folder `out`; every file appears when it is whole.

    Raises:
        InputError: `out` is a tree of something else.
        OSError: a file cannot be written. The lists are missing then, and the same call continues from there.
    """
    files = contents()
    make_folders(out, files)
    wrong = [name for name in files if not holds(os.path.join(out, name), files[name])]
    if any(not name.startswith(META) for name in wrong):    # a list says that its pictures are there
        wrong = [name for name in wrong if not name.startswith(META)] + [name for name in files if name.startswith(META)]
    for name in wrong:
        if name.startswith(META) or os.path.islink(os.path.join(out, name)):    # what a link leads to stays as it is
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(out, name))
    if wrong:
        with work_folder(out) as work:
            for name in wrong:
                with atomic_write(os.path.join(out, name), os.path.join(work, 'file'), durable=name.startswith(META)) as f:
                    f.write(files[name])
    print("%s: %d training and %d validation images of handwritten digits"
          % (out, files[META + '/train.txt'].count(b'\n'), files[META + '/val.txt'].count(b'\n')))


def parse_args():
    parser = Parser(prog='prepare.py', description="Prepare scikit-learn's handwritten digits as an ILSVRC12 tree.")
    parser.add_argument('--out', default=HERE, help="folder to write into (default: %(default)s)")
    return parser.parse_args()


if __name__ == '__main__':
    run(lambda args: prepare(args.out), parse_args(), 'prepare.py', target='eval')
