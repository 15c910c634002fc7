"""The classes and the answers of ILSVRC12: in the devkit of image-net.org, or in the lists that Kaggle has in its place."""
import csv
import io
import os
import re

from command_line import InputError
from data.ilsvrc12.archives import archive_opened, headers, is_plain
from data.ilsvrc12.matfile import check_variable

DEVKIT = 'ILSVRC2012_devkit_t12'
SYNSETS_FILE, TRUTH_FILE = DEVKIT + '/data/meta.mat', DEVKIT + '/data/ILSVRC2012_validation_ground_truth.txt'
KAGGLE_SYNSETS, KAGGLE_TRUTH = 'LOC_synset_mapping.txt', 'LOC_val_solution.csv'
KAGGLE_IMAGES = os.path.join('ILSVRC', 'Data', 'CLS-LOC')
WORDNET_ID = re.compile('n[0-9]{8}')
LONGEST_WORDS = 1000
LARGEST_FILE = 1 << 24     # bytes of one of the files; those of ILSVRC12 have at most three million
LARGEST_TRUTH = 1 << 20    # that of ILSVRC12 has 200,000
LARGEST_DEVKIT = 1 << 26    # bytes of the devkit's tar


def check_leaves(leaves, where):
    """Raises InputError unless (WordNet id, words, ...) of all classes are different, not empty, and can be lines of a list."""
    for synset, words in [leaf[:2] for leaf in leaves]:
        if not WORDNET_ID.fullmatch(synset) or re.search('[\r\n\0]', words) or len(words) > LONGEST_WORDS:
            raise InputError("%s: the synset %.80r, %.80r is malformed" % (where, synset[:80], words[:80]))
    if not leaves or len({leaf[0] for leaf in leaves}) < len(leaves):
        raise InputError("%s has no leaf synsets, or one of them twice: get it again" % where)


# ---------------------------------------------------------------------------------------------------------------- devkit

def devkit_files(path):
    """The two files of the devkit, {name: bytes}, and the MD5s of what is gzipped of it: of a tar, or a folder, none is known."""
    found = {}
    if os.path.isdir(path):
        for name in (SYNSETS_FILE, TRUTH_FILE):
            for place in (os.path.join(path, name), os.path.join(path, name[len(DEVKIT) + 1:])):
                if os.path.isfile(place):
                    with open(place, 'rb') as f:
                        found[name] = f.read(LARGEST_FILE + 1)
        return found, []
    with archive_opened(path) as archive:
        for member, file in headers(archive):
            name = re.sub('^[.]/', '', member.name)
            if archive.size > LARGEST_DEVKIT or member.size > LARGEST_DEVKIT:
                raise InputError("%s is not the devkit: it has more than %d bytes in it" % (path, LARGEST_DEVKIT))
            if is_plain(member) and name in (SYNSETS_FILE, TRUTH_FILE):
                if name in found:
                    raise InputError("%s is refused because it has %s twice" % (path, name))
                found[name] = file.read(LARGEST_FILE + 1)
                if len(found[name]) < min(member.size, LARGEST_FILE + 1):
                    raise EOFError("unexpected end of data")
    return found, archive.md5s()[:-1]


def read_devkit(path):
    """The classes and the answers in the devkit: in the archive, gzipped or not, or in the folder that it was extracted to.

    Returns:
        tuple: the classes in the order of the labels, [(WordNet id, words, number of training images), ...], the labels of
        validation images 1, 2, ..., a list of int, and the MD5s of the archive, a list, empty for a folder or a tar without gzip.
    Raises:
        InputError: the archive cannot be read, lacks a file, or its files are malformed.
    """
    try:
        files, md5s = devkit_files(path)
    except InputError as error:
        raise InputError("cannot read the devkit, %s.tar.gz of image-net.org: %s" % (DEVKIT, error))
    for name in (SYNSETS_FILE, TRUTH_FILE):
        if name not in files:
            raise InputError("%s is not the devkit: there is no %s in it" % (path, name))
        largest = LARGEST_TRUTH if name == TRUTH_FILE else LARGEST_FILE
        if len(files[name]) > largest:
            raise InputError("%s is not the devkit: %s has more than %d bytes" % (path, name, largest))
    leaves = read_leaves(files[SYNSETS_FILE], path)
    check_leaves(leaves, '%s in %s' % (SYNSETS_FILE, path))
    label_of = {leaf[3]: label for label, leaf in enumerate(leaves)}
    if len(label_of) < len(leaves):
        raise InputError("%s in %s has an ILSVRC2012_ID twice: get the devkit again" % (SYNSETS_FILE, path))
    labels = []
    for number, line in enumerate(files[TRUTH_FILE].decode('ascii', 'replace').rstrip().split('\n'), 1):
        label = label_of.get(int(line)) if re.fullmatch(r'\s*[0-9]{1,9}\s*', line) else None
        if label is None:
            raise InputError("%s in %s, line %d: %r is not the ILSVRC2012_ID of a leaf synset"
                             % (TRUTH_FILE, path, number, line[:80]))
        labels.append(label)
    return [leaf[:3] for leaf in leaves], labels, md5s


def read_leaves(data, path):
    """The leaf synsets in the bytes of meta.mat, sorted: [(WordNet id, words, number of training images, ILSVRC2012_ID), ...]."""
    import numpy as np  # here, so that --check and a mistake in the flags need no SciPy
    from scipy.io import loadmat

    def text(value):    # an empty one is read as an array
        return ''.join(np.ravel(value))

    def whole(value):
        number, = np.ravel(value).tolist()
        if not isinstance(number, (int, float)):    # a text of a million digits, whose conversion takes hours
            raise TypeError
        return int(number)

    try:
        check_variable(data, 'synsets')
        rows = np.ravel(loadmat(io.BytesIO(data), squeeze_me=True, variable_names=['synsets'])['synsets'])
        return sorted((text(row['WNID']), text(row['words']), whole(row['num_train_images']), whole(row['ILSVRC2012_ID']))
                      for row in rows if whole(row['num_children']) == 0)
    except Exception as error:    # loadmat raises whatever it stumbles over
        raise InputError("cannot read %s in %s (%s): get the devkit again" % (SYNSETS_FILE, path, type(error).__name__))


# ---------------------------------------------------------------------------------------------------------------- Kaggle

def is_kaggle(folder):
    return any(os.path.exists(os.path.join(folder, name)) for name in (KAGGLE_SYNSETS, KAGGLE_TRUTH))


def read_text(path):
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > LARGEST_FILE:
            raise InputError("%s is not a file, or has more than %d bytes" % (path, LARGEST_FILE))
        with open(path, encoding='utf-8-sig', newline='') as f:
            return f.read()
    except UnicodeDecodeError:
        raise InputError("%s is not a text in UTF-8" % path)


def read_kaggle(folder):
    """The classes and the answers in the folder of Kaggle's "ImageNet Object Localization Challenge".

    Returns:
        tuple: as `read_devkit`; numbers of training images are None, and there is no MD5.
    Raises:
        InputError: a list is missing or malformed.
    """
    classes = read_kaggle_synsets(os.path.join(folder, KAGGLE_SYNSETS))
    path = os.path.join(folder, KAGGLE_TRUTH)
    label_of = {synset: label for label, (synset, _, _) in enumerate(classes)}
    label_of_image = {}
    try:
        for number, row in enumerate(csv.reader(io.StringIO(read_text(path), newline='')), 1):
            if not row or row == ['ImageId', 'PredictionString']:
                continue
            image = re.fullmatch('ILSVRC2012_val_([0-9]{8})', row[0]) if len(row) == 2 else None
            synsets = set(row[1].split()[::5]) if image else set()    # <synset> x1 y1 x2 y2 <synset> ...
            if len(synsets) != 1 or int(image.group(1)) in label_of_image or not synsets <= set(label_of):
                raise InputError("%s, line %d: %r is not 'ILSVRC2012_val_<number>,<synset> <box> ...' with one class of %s, or "
                                 "comes twice" % (path, number, ','.join(row)[:80], KAGGLE_SYNSETS))
            label_of_image[int(image.group(1))] = label_of[synsets.pop()]
    except csv.Error as error:
        raise InputError("%s is not a CSV file: %s" % (path, error))
    if not label_of_image or sorted(label_of_image) != list(range(1, len(label_of_image) + 1)):
        raise InputError("%s has %d images, but not those with the numbers 1, 2, ...: get it again" % (path, len(label_of_image)))
    return classes, [label for _, label in sorted(label_of_image.items())], []


def read_kaggle_synsets(path):
    """The classes in Kaggle's list, as `read_kaggle` returns them. Raises InputError if it is malformed."""
    classes = []
    for number, line in enumerate(read_text(path).rstrip().split('\n'), 1):
        match = re.fullmatch('(%s) (.*)' % WORDNET_ID.pattern, line.rstrip())
        if match is None:
            raise InputError("%s, line %d: %r is not of the form '<synset> <words>'" % (path, number, line[:80]))
        classes.append(match.groups() + (None,))
    check_leaves(classes, path)
    if classes != sorted(classes):    # labels are positions
        raise InputError("%s is not sorted by WordNet id, as Kaggle has it: get it again" % path)
    return classes
