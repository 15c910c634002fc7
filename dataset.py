"""A tree of pictures: which classes, files and labels it has. Without TensorFlow.

An ILSVRC12 tree has ``train/``, ``val/`` and ``caffe_ilsvrc12/``: ``synsets.txt`` with a class a line, in the order of the labels,
and ``train.txt`` and ``val.txt`` with a line ``<file> <label>`` for each image.
"""
import os
import re

from command_line import InputError, warn

META = 'caffe_ilsvrc12'
LONGEST_LINE = 4096    # characters, as long as a path can be


def read_lines(path):
    """The lines of a text file, without white space around them and empty lines at the end. Raises InputError."""
    try:
        with open(path, encoding='utf-8-sig') as f:
            lines = f.read().rstrip().split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read %s (%s): an ILSVRC12 tree has %s/ with synsets.txt, val.txt and train.txt"
                         % (path, getattr(error, 'strerror', 'no text'), META))
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE or '\0' in line:
            raise InputError("%s, line %d: %s" % (path, number, "it has a NUL character" if '\0' in line else
                                                  "it has %d characters, more than %d" % (len(line), LONGEST_LINE)))
    return [line.strip() for line in lines] if lines != [''] else []


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
    """The files that `paths` name, and the pictures in folders and below them, linked folders too, in alphabetical order.

    What is a picture is decided by its content. A warning counts the files in folders that are left out.

    Raises:
        InputError: a file is missing, or a folder has no picture.
    """
    from pictures import is_picture  # here, for the lists of a tree are read without OpenCV too
    files, others = [], []
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.isfile(path):
                raise InputError("there is no picture and no folder %s" % path)
            files.append(path)
            continue
        below = sorted(files_below(path))
        found = [file for file in below if is_picture(file)]
        if not found:
            raise InputError("the folder %s has no picture: it has %d other files" % (path, len(below)))
        files += found
        others += sorted(set(below) - set(found))
    if others:
        warn("left out: %d files that this OpenCV does not read as pictures: %s"
             % (len(others), ', '.join(others[:5] + ['...'] * (len(others) > 5))))
    return files


def files_below(folder):
    """The files in a folder and in what is below it, each folder once where links make circles."""
    def stop(error):
        raise InputError("cannot read the folder %s: %s" % (error.filename, error.strerror))

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        seen.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen]
        for path in (os.path.join(parent, name) for name in names):
            if os.path.isfile(path):    # no pipe, and no link to nothing
                yield path


def read_list(data_dir, name):
    """What ``caffe_ilsvrc12/<name>.txt`` of an ILSVRC12 tree lists: [(file, label), ...], in its order.

    Raises:
        InputError: the tree lacks something, the list is empty or malformed, or a label is not one of the classes.
    """
    synsets = read_synsets(data_dir)
    listing = os.path.join(data_dir, META, name + '.txt')
    listed = []
    for number, line in enumerate(read_lines(listing), 1):
        fields = re.match(r'(\S+)\s+(-?\d{1,9})$', line)
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
    images, classes = [], set(synsets)
    for number, (file, label) in enumerate(read_list(data_dir, name), 1):
        home, line = file.split('/')[0], "%s/%s.txt, line %d" % (META, name, number)
        if home in classes and home != synsets[label]:
            raise InputError(contradiction(line, file, label, synsets, home))
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            path = os.path.join(folder, synsets[label], file)
            if not os.path.isfile(path):
                for synset in synsets:
                    if os.path.isfile(os.path.join(folder, synset, file)):
                        raise InputError(contradiction(line, file, label, synsets, synset))
                raise InputError("the image %s is missing from %s: %s lists it" % (file, folder, line))
        images.append([path, label])
    return images


def contradiction(line, file, label, synsets, home):
    """What to say of a file that lies in the folder of another class than the one that its label means."""
    shift = synsets.index(home) - label
    return "%s: label %d is the class %s, but %s is in the folder of %s, the class of label %d: %s" % (
        line, label, synsets[label], file, home, label + shift,
        "are labels counted from 1? They count from 0" if shift == -1 else "labels and synsets.txt do not belong together")
