"""A tree of pictures: which classes, files and labels it has. Without TensorFlow.

An ILSVRC12 tree has ``train/``, ``val/`` and ``caffe_ilsvrc12/``: ``synsets.txt`` with a class a line, in the order of the labels,
and ``train.txt`` and ``val.txt`` with a line ``<file> <label>`` for each image.
"""
import os
import re

from command_line import InputError

META = 'caffe_ilsvrc12'
PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


def read_lines(path):
    try:
        with open(path, encoding='utf-8-sig') as f:
            return [line.strip() for line in f]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read %s (%s): an ILSVRC12 tree has %s/ with synsets.txt, val.txt and train.txt"
                         % (path, getattr(error, 'strerror', 'no text'), META))


def read_synsets(data_dir):
    """The WordNet ids of an ILSVRC12 tree's classes in the order of the labels, a list of str.

    Raises:
        InputError: the tree or its ``caffe_ilsvrc12/synsets.txt`` is missing or malformed.
    """
    for folder in (data_dir, os.path.join(data_dir, META)):
        if not os.path.isdir(folder):
            raise InputError("there is no folder %s: --data_dir must name an ILSVRC12 tree, with train/, val/ and %s/"
                             % (folder, META))
    path = os.path.join(data_dir, META, 'synsets.txt')
    synsets = read_lines(path)
    if not synsets or not all(synsets):
        raise InputError("%s must have one WordNet id a line, and no empty line" % path)
    return synsets


def read_words(data_dir):
    """The classes of an ILSVRC12 tree, [(WordNet id, words), ...]: words from ``synset_words.txt``, or '' where that is missing."""
    synsets, path = read_synsets(data_dir), os.path.join(data_dir, META, 'synset_words.txt')
    words = dict((line.split(None, 1) + [''])[:2] for line in read_lines(path) if line) if os.path.exists(path) else {}
    return [(synset, words.get(synset, '')) for synset in synsets]


def find_images(paths):
    """The files that `paths` name, and the pictures in folders and in what is below them, in alphabetical order.

    Raises:
        InputError: a file is missing, or a folder has no picture.
    """
    files = []
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.isfile(path):
                raise InputError("there is no picture and no folder %s" % path)
            files.append(path)
            continue
        found = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
                       if name.lower().endswith(PICTURES))
        if not found:
            raise InputError("the folder %s has no picture: none of its files ends with %s" % (path, ', '.join(PICTURES)))
        files += found
    return files


def read_list(data_dir, name):
    """What ``caffe_ilsvrc12/<name>.txt`` of an ILSVRC12 tree lists: [(file, label), ...], in its order.

    Raises:
        InputError: the tree lacks something, the list is empty or malformed, or a label is not one of the classes.
    """
    synsets = read_synsets(data_dir)
    listing = os.path.join(data_dir, META, name + '.txt')
    listed = []
    for number, line in enumerate(read_lines(listing), 1):
        fields = re.match(r'([^\s\0]+)\s+(-?\d+)$', line)
        if fields is None:
            raise InputError("%s, line %d: '%s' is not of the form '<file> <label>'" % (listing, number, line[:80]))
        label = int(fields.group(2))
        if not 0 <= label < len(synsets):
            raise InputError("%s, line %d: label %d is not one of the %d classes of synsets.txt (0 to %d)"
                             % (listing, number, label, len(synsets), len(synsets) - 1))
        listed.append((fields.group(1), label))
    if not listed:
        raise InputError("%s is empty: it must have a line '<file> <label>' for each image" % listing)
    return listed


def read_images(data_dir, name):
    """The images that an ILSVRC12 tree lists, as Tensorpack's ILSVRC12Files finds them: [[path, label], ...].

    Args:
        data_dir (str): the tree; its images may lie in ``val/`` itself or in one folder a synset.
        name (str): 'train' or 'val'.
    Raises:
        InputError: see `read_list`; or an image of the list is missing.
    """
    synsets = read_synsets(data_dir)
    folder = os.path.join(data_dir, name)
    if not os.path.isdir(folder):
        raise InputError("there is no folder %s, where the images of %s/%s.txt should be" % (folder, META, name))
    images = []
    for number, (file, label) in enumerate(read_list(data_dir, name), 1):
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            path = os.path.join(folder, synsets[label], file)
            if not os.path.isfile(path):
                raise InputError("the image %s is missing from %s: line %d of %s/%s.txt lists it"
                                 % (file, folder, number, META, name))
        images.append([path, label])
    return images
