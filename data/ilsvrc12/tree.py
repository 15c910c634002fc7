"""An ILSVRC12 tree on the disk: the names in it, and how files and links get there, whole and never through a link."""
import contextlib
import os
import re
import tarfile

from command_line import InputError, atomic_write

# The published names, and those with which Hugging Face and others have them: with the synset behind, .jpeg in lower case.
VAL_IMAGE = re.compile(r'ILSVRC2012_val_([0-9]{8})(?:_(n[0-9]{8}))?[.][Jj][Pp][Ee]?[Gg]')
TRAIN_IMAGE = re.compile(r'(n[0-9]{8}_[0-9]{1,9})(?:_(n[0-9]{8}))?[.][Jj][Pp][Ee]?[Gg]')
TRAIN_TAR = re.compile(r'(n[0-9]{8})[.]tar')
LARGEST_IMAGE = 1 << 26    # bytes, which are held in memory; the largest of ILSVRC12 has 16 million


def val_name(number):
    return 'ILSVRC2012_val_%08d.JPEG' % number


def check_synset(match, where, synset, source):
    """Raises InputError if the synset in the name of an image contradicts the class `synset` that `source` gives it."""
    if match.group(2) not in (None, synset):
        raise InputError("%s has %s, whose name says class %s, but %s says %s: they are not of the same data set, or it was renamed"
                         % (where, match.group(), match.group(2), source, synset))


def check_complete(what, where, found, expected):
    """Raises InputError if something of `expected` is not in `found`."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError("%s lacks %d of %d %s, the first is %s: it is truncated, or not the one of this devkit"
                         % (where, len(missing), len(expected), what, missing[0]))


def write(path, data, durable=False):
    """Writes bytes `data` to a file that appears at `path` when it is whole, or not at all. A link there is replaced.

    There is one temporary name for each file: what a kill leaves behind, the next run overwrites. It is in the folder above,
    because a file system puts a file near the folder where it is made, and a thousand folders far apart, which takes longer.

    Raises:
        InputError: it cannot be written, for example because the disk is full.
    """
    temporary = '%s.%s.tmp' % os.path.split(path)
    try:
        if os.path.islink(path):    # what it leads to stays as it is
            os.remove(path)
        with contextlib.suppress(FileNotFoundError):    # of an earlier run, or a link that would be written through
            os.remove(temporary)
        with atomic_write(path, temporary, durable) as f:
            f.write(data)
    except OSError as error:
        raise InputError("cannot write %s: %s; the same command continues from there" % (path, error.strerror))


def write_image(path, size, source, where):
    """Writes `size` bytes of file `source` to `path`, unless an earlier run has written these bytes.

    Raises:
        InputError: it cannot be written, or the image in `where` has an absurd size.
        tarfile.ReadError: `source` is shorter.
    """
    if not 0 < size <= LARGEST_IMAGE:
        raise InputError("%s is refused because the image %s has %d bytes in it" % (where, os.path.basename(path), size))
    data = source.read(size)
    if len(data) < size:
        raise tarfile.ReadError("unexpected end of data")
    if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) == size:
        with open(path, 'rb') as f:
            if f.read() == data:
                return
    write(path, data)


def make_folder(out, *names):
    """Makes a folder in the tree `out`. Raises InputError if a part of its name is a link, through which would be written."""
    path = out
    for name in names:
        path = os.path.join(path, name)
        if os.path.islink(path):
            raise InputError("%s is a link: remove it, or name another --out" % path)
    os.makedirs(path, exist_ok=True)
    return path


def link(target, path):
    """Makes `path` a symbolic link to `target`. Raises InputError if something else is there."""
    try:
        os.symlink(target, path)
    except FileExistsError:
        if not os.path.islink(path) or os.readlink(path) != target:
            raise InputError("%s exists and is not a link to %s: remove it, or name another --out" % (path, target))
