"""A tree of pictures: which classes, files and labels it has. Without TensorFlow. `open_tree` is the way in.

An ILSVRC12 tree has ``train/``, ``val/`` and ``caffe_ilsvrc12/``: ``synsets.txt`` with a class a line, in the order of the labels,
and ``train.txt`` and ``val.txt`` with a line ``<file> <label>`` for each image. Other trees have a folder for each class: in
``train/`` and in ``val/``, or in the tree itself, which is then split.
"""
import collections
import hashlib
import os
import re

from command_line import InputError, warn

META = 'caffe_ilsvrc12'
LONGEST_LINE = 4096    # characters, as long as a path can be
VAL_SHARE = 0.2        # of the pictures of each class, where a tree is split


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


def tops(num_classes):
    """The k for which top-k errors say something."""
    return (1, 5) if num_classes > 5 else (1,)


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
    warn_of_others(others, "that this OpenCV does not read as pictures")
    return files


def warn_of_others(others, kind):
    """Warns of the files `others`, if there are any, that are left out. `kind` says which they are."""
    if others:
        warn("left out: %d files %s: %s" % (len(others), kind, ', '.join(others[:5] + ['...'] * (len(others) > 5))))


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


# --------------------------------------------------------------------------------------------------------- the kinds of trees

class ListedTree:
    """An ILSVRC12 tree.

    A tree has `classes`, [(name, words), ...] in the order of the labels, `val_share`, None where it was not split, and the methods
    of this class. They raise InputError where the tree is not as it should be.
    """

    val_share = None

    def __init__(self, data_dir):
        self.data_dir, self.classes = data_dir, read_words(data_dir)

    def has(self, part):
        """Whether there is a part, 'train' or 'val'."""
        return os.path.isdir(os.path.join(self.data_dir, part))

    def files(self, part):
        """The pictures of a part as the tree calls them: [str, ...]."""
        return [file for file, _ in read_list(self.data_dir, part)]

    def images(self, part):
        """The pictures of a part in the same order: [[path, label], ...]."""
        return read_images(self.data_dir, part)


class ClassFolders:
    """A tree with a folder for each class, as torchvision's ImageFolder and Keras' image_dataset_from_directory read them.

    Args:
        data_dir (str): ``train/<class>/`` and ``val/<class>/``, or ``<class>/``.
        val_share (float): of the latter, the share of each class that is the validation part.
    Raises:
        InputError: a class has no picture, or a single one to split; or ``val/`` has a class that ``train/`` lacks.
    """

    def __init__(self, data_dir, val_share):
        self.data_dir, self.val_share = data_dir, None
        parts = [part for part in ('train', 'val') if os.path.isdir(os.path.join(data_dir, part))]
        if len(parts) == 1 and not has_folders_alone(os.path.join(data_dir, parts[0])):
            parts = []    # it is a class of that name
        if parts == ['train']:
            raise InputError("%s has train/ and no val/: call the folder of the validation pictures val/, or name %s, of which "
                             "--val_share becomes the validation part" % (data_dir, os.path.join(data_dir, 'train')))
        others = []
        if parts:
            self.parts = {part: pictures_by_class(os.path.join(data_dir, part), others) for part in parts}
        else:
            found = pictures_by_class(data_dir, others)
            self.val_share = val_share
            self.parts = split(found, data_dir, val_share)
        warn_of_others(sorted(others),
                       "that are hidden, in no folder of a class, or that this OpenCV does not read as pictures")
        names = sorted(self.parts[parts[0] if parts else 'train'])
        if len(names) < 2:
            raise InputError("%s has %s: there must be a folder for each class, at least two" % (
                data_dir, "the folder of one class alone, '%s'" % names[0] if names else "no folders with pictures"))
        self.check_val(names)
        self.classes = [(name, '') for name in names]

    def check_val(self, names):
        """Compares the classes of the validation part with those of the training part, `names`."""
        unknown = sorted(set(self.parts['val']) - set(names))
        if unknown:
            raise InputError("the class '%s' is in %s alone: train/ must have all classes"
                             % (unknown[0], os.path.join(self.data_dir, 'val')))
        missing = [name for name in names if name not in self.parts['val']]
        if missing:
            warn("%s has no pictures of %d classes, such as '%s'" % (os.path.join(self.data_dir, 'val'), len(missing), missing[0]))

    def has(self, part):
        return part in self.parts

    def files(self, part):
        return [file for file, _ in self.listed(part)]

    def images(self, part):
        home = self.data_dir if self.val_share is not None else os.path.join(self.data_dir, part)
        return [[os.path.join(home, *file.split('/')), label] for file, label in self.listed(part)]

    def listed(self, part):
        """[(file, label), ...], each file with / between its folders."""
        if not self.has(part):
            raise InputError("there is no folder %s, where the images should be" % os.path.join(self.data_dir, part))
        return [(file, label) for label, (name, _) in enumerate(self.classes) for file in self.parts[part].get(name, ())]


def open_tree(data_dir, val_share=VAL_SHARE):
    """The tree in a folder, a ListedTree if it has ``caffe_ilsvrc12/``, else ClassFolders. Raises InputError: see these."""
    if not os.path.isdir(data_dir):
        raise InputError("there is no folder %s: --data_dir must name a tree of pictures" % data_dir)
    if os.path.isdir(os.path.join(data_dir, META)):
        return ListedTree(data_dir)
    return ClassFolders(data_dir, val_share)


def open_tree_of(source, data_dir, val_share=None):
    """The tree in a folder, for the checkpoint that `source`, a Description or CheckpointRestore, is of.

    Args:
        val_share (float): None for the one that the checkpoint records.
    Raises:
        InputError: see `open_tree`; or the classes are not those that the checkpoint records.
    """
    tree = open_tree(data_dir, val_share or source.record.val_share or VAL_SHARE)
    if source.record.classes is not None:
        check_classes(source.record.classes, tree, source.path)
    return tree


def check_classes(recorded, tree, path):
    """Raises InputError if the classes that a checkpoint records, [(name, words), ...], have other names than a tree's."""
    for label, ((theirs, _), (ours, _)) in enumerate(zip(recorded, tree.classes)):
        if theirs != ours:
            raise InputError("the checkpoint %s is of other classes than %s: label %d is '%s' in the checkpoint and '%s' in the "
                             "tree" % (path, tree.data_dir, label, theirs, ours))
    count, found = len(recorded), len(tree.classes)
    if count != found:
        raise InputError("the checkpoint %s is of %d classes, and %s has %d: '%s' is only in the %s" % (
            path, count, tree.data_dir, found, max(recorded, tree.classes, key=len)[min(count, found)][0],
            'checkpoint' if count > found else 'tree'))


def hidden(name):
    """Whether a file or folder is one that systems leave among pictures."""
    return name.startswith('.') or name == '__MACOSX'


def has_folders_alone(folder):
    """Whether a folder has folders, and no pictures beside them."""
    from pictures import is_picture
    paths = [os.path.join(folder, name) for name in sorted(list_folder(folder)) if not hidden(name)]
    return any(map(os.path.isdir, paths)) and not any(os.path.isfile(path) and is_picture(path) for path in paths)


def list_folder(folder):
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError("cannot read the folder %s: %s" % (folder, error.strerror))


def pictures_by_class(root, others):
    """The pictures in the folders of `root` and below them, by folder: {class: [file, ...]}, sorted, with / between folders.

    Args:
        others (list): gets what is hidden, no picture, or in none of the folders.
    Raises:
        InputError: a folder has no picture, or is in itself by a link.
    """
    from pictures import is_picture
    found, pending = collections.OrderedDict(), [('', ())]
    while pending:
        folder, outer = pending.pop()
        path = os.path.join(root, *folder.split('/'))
        real = os.path.realpath(path)
        if real in outer:
            raise InputError("the folder %s is in itself, by a link: remove the link" % path)
        for name in sorted(list_folder(path), reverse=True):
            file = '%s/%s' % (folder, name) if folder else name
            full = os.path.join(path, name)
            if os.path.isdir(full) and not hidden(name):
                pending.append((file, outer + (real,)))
                if not folder:
                    found[name] = []
            elif folder and not hidden(name) and os.path.isfile(full) and is_picture(full):    # no pipe, and no link to nothing
                found[file.split('/')[0]].append(file)
            else:
                others.append(full)
    for name, files in found.items():
        if not files:
            raise InputError("the class '%s' has no picture in %s: put some there, or remove the folder"
                             % (name, os.path.join(root, name)))
        files.sort()
    return found


def split(found, data_dir, val_share):
    """{'train': {class: files}, 'val': {class: files}} of {class: files}: a picture's name decides where it goes, and nothing else.

    Where a class would lack one of the parts, its picture of the lowest number is for validation, that of the highest for training.
    """
    parts = {'train': collections.OrderedDict(), 'val': collections.OrderedDict()}
    for name, files in found.items():
        if len(files) == 1:
            raise InputError("the class '%s' cannot be split, it has one picture, %s: add others"
                             % (name, os.path.join(data_dir, files[0])))
        numbers = {file: position(file) for file in files}
        lowest, highest = min(files, key=numbers.get), max(files, key=numbers.get)
        val = {file for file in files if numbers[file] < val_share} - {highest} | {lowest}
        parts['val'][name] = [file for file in files if file in val]
        parts['train'][name] = [file for file in files if file not in val]
    return parts


def position(file):
    """A number from 0 up to, but not, 1 that looks random and follows from a name."""
    digest = hashlib.sha256(file.encode('utf-8', 'surrogateescape')).digest()
    return int.from_bytes(digest[:8], 'big') / 2 ** 64


def warn_of_duplicates(train, val):
    """Warns of pictures of `val` that are in `train` too, byte for byte, both [[path, label], ...]."""
    sizes, digests, found = collections.defaultdict(list), {}, []

    def digest(path):
        if path not in digests:
            with open(path, 'rb') as f:
                digests[path] = hashlib.sha256(f.read()).digest()
        return digests[path]
    try:
        for path, _ in train:
            sizes[os.path.getsize(path)].append(path)
        for path, _ in val:
            same = [other for other in sizes.get(os.path.getsize(path), ()) if digest(other) == digest(path)]
            found += [(path, same[0])] if same else []
    except OSError as error:
        raise InputError("cannot read the image %s: %s" % (error.filename, error.strerror))
    if found:
        warn("%d of the %d validation pictures are training pictures too, such as %s, which is %s: the validation error is too low"
             % ((len(found), len(val)) + found[0]))
