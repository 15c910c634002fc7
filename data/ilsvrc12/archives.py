"""Reads the archives of image-net.org: the devkit, and tars of images from front to back, truncated and hostile ones included."""
import contextlib
import gzip
import io
import os
import re
import sys
import tarfile
import zlib

from command_line import InputError, progress_options

SYNSETS_FILE = 'ILSVRC2012_devkit_t12/data/meta.mat'
TRUTH_FILE = 'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt'
WORDNET_ID = re.compile('n[0-9]{8}')
LARGEST = 1 << 30    # bytes of an image, or of the tar of a class: far above those of ILSVRC12. Images are held in memory


class Header(tarfile.TarInfo):
    """A member's header. A missing or damaged one is an error; tarfile itself takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super(Header, cls).fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except (tarfile.HeaderError, ValueError) as error:    # the latter from damaged extended headers
            raise tarfile.ReadError(str(error))


# ---------------------------------------------------------------------------------------------------------------- devkit

def read_devkit(path):
    """The classes and the answers in the devkit.

    Returns:
        tuple: the classes in the order of the labels, [(WordNet id, words, number of training images), ...], and the labels of
        validation images 1, 2, ..., a list of int.
    Raises:
        InputError: the archive cannot be read, lacks a file, or its files are malformed.
    """
    import numpy as np  # here, so that --check and a mistake in the flags need no SciPy
    from scipy.io import loadmat

    files = {}
    try:
        with gzip.open(path) as f:
            data = f.read()    # to the end, where gzip has its CRC
        with tarfile.open(fileobj=io.BytesIO(data), mode='r:', tarinfo=Header) as tar:
            for member in tar:
                name = re.sub('^[.]/', '', member.name)
                if member.isfile() and name in (SYNSETS_FILE, TRUTH_FILE):
                    files[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError("cannot read the devkit %s (%s): get it again" % (
            path, getattr(error, 'strerror', None) or "truncated, damaged or not a tar.gz"))
    for name in (SYNSETS_FILE, TRUTH_FILE):
        if name not in files:
            raise InputError("%s is not the devkit: there is no %s in it" % (path, name))

    def text(value):    # an empty one is read as an array
        return ''.join(np.ravel(value))

    try:
        rows = np.ravel(loadmat(io.BytesIO(files[SYNSETS_FILE]), squeeze_me=True)['synsets'])
        leaves = sorted((text(row['WNID']), text(row['words']), int(row['num_train_images']), int(row['ILSVRC2012_ID']))
                        for row in rows if int(row['num_children']) == 0)
    except Exception as error:    # loadmat raises whatever it stumbles over
        raise InputError("cannot read %s in %s (%s): get the devkit again" % (SYNSETS_FILE, path, type(error).__name__))
    label_of = {leaf[3]: label for label, leaf in enumerate(leaves)}
    if not leaves or len(label_of) < len(leaves) or len({leaf[0] for leaf in leaves}) < len(leaves):
        raise InputError("%s in %s has no leaf synsets, or one of them twice: get the devkit again" % (SYNSETS_FILE, path))
    for synset, words, _, _ in leaves:
        if not WORDNET_ID.fullmatch(synset) or re.search('[\r\n]', words):
            raise InputError("%s in %s: the synset %.80r, %.80r is malformed" % (SYNSETS_FILE, path, synset, words))
    labels = []
    for number, line in enumerate(files[TRUTH_FILE].decode('ascii', 'replace').rstrip().split('\n'), 1):
        try:
            labels.append(label_of[int(line)])
        except (KeyError, ValueError):
            raise InputError("%s in %s, line %d: %.80r is not the ILSVRC2012_ID of a leaf synset"
                             % (TRUTH_FILE, path, number, line))
    return [leaf[:3] for leaf in leaves], labels


# -------------------------------------------------------------------------------------------------------------- archives

@contextlib.contextmanager
def archive_errors_named(name):
    """Turns what reading the archive `name` raises into an InputError that names it."""
    try:
        yield
    except tarfile.TarError as error:
        raise InputError("%s is truncated, damaged or not a tar archive (%s): get it again" % (name, error))
    except OSError as error:
        if error.filename is not None:    # that of a folder in the tree
            raise
        raise InputError("cannot read %s: %s" % (name, error.strerror))


@contextlib.contextmanager
def archive_opened(path):
    """The archive at `path` as a file to be read from front to back, which moves a progress bar."""
    from tqdm import tqdm
    size = os.path.getsize(path) or None    # a pipe has none
    with archive_errors_named(path), open(path, 'rb', buffering=1 << 18) as f:
        with tqdm.wrapattr(f, 'read', total=size, desc=os.path.basename(path), **progress_options()) as counted:
            yield counted


class Forward:
    """The next `size` bytes of a file, as a file that tarfile can read and never rewinds: a pipe, or a tar inside a tar.

    tarfile's own streams (mode 'r|') copy everything twice more, and never finish a member of an absurd size.
    """

    def __init__(self, file, size=sys.maxsize):
        self.file, self.size, self.position = file, size, 0

    def tell(self):
        return self.position

    def read(self, size):
        data = self.file.read(max(0, min(size, self.size - self.position, LARGEST)))    # a damaged header asks for anything
        self.position += len(data)
        return data

    def seek(self, position):
        while self.position < position and self.read(min(position - self.position, 1 << 20)):
            pass


def members(archive, name, form, example):
    """Reads the tar in file `archive` from front to back.

    Args:
        name (str): what to call it in a message.
        form (re.Pattern): which names its members may have, such as `example`.
    Yields:
        tuple: match of a member's name with `form`, its size, and a file to read it from before the next one is asked for.
    Raises:
        InputError: a member is not a plain file, has a name of another form (such as a path) or an absurd size, or comes twice.
        tarfile.TarError: the archive is truncated or damaged.
    """
    seen = set()
    archive = Forward(archive)
    with tarfile.open(fileobj=archive, mode='r:', tarinfo=Header) as tar:
        for member in tar:
            if member.isdir() and member.name == '.':    # tar -C folder -cf archive .
                continue
            match = form.fullmatch(re.sub('^[.]/', '', member.name))
            if match is None or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise InputError("%s is refused because of its member %.200r: it must have plain files like %s and nothing else"
                              % (name, member.name, example))
            if match.group() in seen:
                raise InputError("%s is refused because it has %s twice" % (name, match.group()))
            if not 0 <= member.size <= LARGEST:
                raise InputError("%s is refused because %s has %d bytes in it" % (name, match.group(), member.size))
            seen.add(match.group())
            yield match, member.size, Forward(archive, member.size)
