"""Writes scikit-learn's handwritten digits (``load_digits``: 1,797 pictures of 8x8 pixels) as an ILSVRC12 tree.

    python data/digits/prepare.py              # into data/digits, where main.py finds them

A fifth of them, drawn by scikit-learn's ``train_test_split`` with random state 0, is for validation.
Pictures are stored as PNG, which every OpenCV decodes to the same pixels.
"""
import os
import sys

# So that this script runs from any folder.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from command_line import Parser, atomic_write, run

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


def prepare(out):
    """Writes train/, val/ and caffe_ilsvrc12/ into folder `out`; the lists come last. Every file appears when it is whole."""
    import cv2
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    data = load_digits()
    train, val = train_test_split(range(len(data.images)), test_size=0.2, random_state=0)
    training = set(train)
    lines = {'train.txt': [], 'val.txt': [], 'synsets.txt': SYNSETS,
             'synset_words.txt': ['%s %s' % pair for pair in zip(SYNSETS, NAMES)]}
    for folder in [os.path.join('train', synset) for synset in SYNSETS] + ['val', 'caffe_ilsvrc12']:
        os.makedirs(os.path.join(out, folder), exist_ok=True)
    for number, (image, label) in enumerate(zip(data.images, data.target)):
        if number in training:
            listed, name = 'train.txt', '%s/%s_%d.png' % (SYNSETS[label], SYNSETS[label], number)
        else:
            listed, name = 'val.txt', 'digits_val_%08d.png' % number
        with atomic_write(os.path.join(out, listed[:-4], name), durable=False) as f:
            f.write(cv2.imencode('.png', enlarge(image))[1].tobytes())
        lines[listed].append('%s %d' % (name, label))
    for listed in sorted(lines):
        with atomic_write(os.path.join(out, 'caffe_ilsvrc12', listed)) as f:
            f.write(('\n'.join(lines[listed]) + '\n').encode('ascii'))
    print("%s: %d training and %d validation images of handwritten digits" % (out, len(train), len(val)))


def parse_args():
    parser = Parser(prog='prepare.py', description="Prepare scikit-learn's handwritten digits as an ILSVRC12 tree.")
    parser.add_argument('--out', default=HERE, help="folder to write into (default: %(default)s)")
    return parser.parse_args()


if __name__ == '__main__':
    run(lambda args: prepare(args.out), parse_args(), 'prepare.py', target='eval')
