"""Makes the ILSVRC12 tree that main.py reads from the archives of image-net.org, and its lists from the devkit.

    python data/ilsvrc12/prepare.py --val ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz \\
        [--train ILSVRC2012_img_train.tar] --out DIR
    python data/ilsvrc12/prepare.py --links EXTRACTED --devkit ILSVRC2012_devkit_t12.tar.gz --out DIR
    python data/ilsvrc12/prepare.py --check DIR

After a kill or a full disk, the same command goes on where it stopped: every file appears under its name when it is whole, and
the lists come last. A label is the position of the class among the leaf synsets of the devkit, sorted by WordNet id.
"""
import argparse
import contextlib
import gzip
import hashlib
import io
import os
import re
import sys
import tarfile
import zlib

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
META = 'caffe_ilsvrc12'
SYNSETS_FILE = 'ILSVRC2012_devkit_t12/data/meta.mat'
TRUTH_FILE = 'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt'
WORDNET_ID = re.compile('n[0-9]{8}')
VAL_IMAGE = re.compile(r'ILSVRC2012_val_([0-9]{8})\.JPEG')
TRAIN_TAR = re.compile(r'(n[0-9]{8})\.tar')
TRAIN_IMAGE = re.compile(r'n[0-9]{8}_[0-9]+\.JPEG')
EXTRACTED_IMAGE = re.compile(r'n[0-9]{8}_[!-~]+\.JPEG')    # others give their images names instead of numbers
PUBLISHED = {'synsets.txt': '70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15',
             'val.txt': '4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257'}
LARGEST = 1 << 30    # bytes of an image, or of the tar of a class: far above those of ILSVRC12. Images are held in memory


class Refused(Exception):
    """What was given cannot be used, or the tree is not sound. The message is one line that says what to do."""


def bar_options():
    """What all progress bars share. Off a terminal, they are for long runs."""
    terminal = sys.stderr.isatty()
    return {'leave': False, 'delay': 0 if terminal else 10, 'mininterval': 0.5 if terminal else 10}


class Header(tarfile.TarInfo):
    """A member's header. A missing or damaged one is an error, which tarfile by itself takes for the end of the archive."""

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
        Refused: the archive cannot be read, lacks a file, or its files are malformed.
    """
    import numpy as np    # here, so that --check and a mistake in the flags do not wait for SciPy
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
        raise Refused("cannot read the devkit %s (%s): get it anew" % (
            path, getattr(error, 'strerror', None) or "truncated, damaged or no tar.gz"))
    for name in (SYNSETS_FILE, TRUTH_FILE):
        if name not in files:
            raise Refused("%s is not the devkit: there is no %s in it" % (path, name))

    def text(value):    # an empty one is read as an array
        return ''.join(np.ravel(value))

    try:
        rows = np.ravel(loadmat(io.BytesIO(files[SYNSETS_FILE]), squeeze_me=True)['synsets'])
        leaves = sorted((text(row['WNID']), text(row['words']), int(row['num_train_images']), int(row['ILSVRC2012_ID']))
                        for row in rows if int(row['num_children']) == 0)
    except Exception as error:    # loadmat raises whatever it stumbles over
        raise Refused("cannot read %s in %s (%s): get the devkit anew" % (SYNSETS_FILE, path, type(error).__name__))
    label_of = {leaf[3]: label for label, leaf in enumerate(leaves)}
    if not leaves or len(label_of) < len(leaves) or len({leaf[0] for leaf in leaves}) < len(leaves):
        raise Refused("%s in %s has no leaf synsets, or one of them twice: get the devkit anew" % (SYNSETS_FILE, path))
    for synset, words, _, _ in leaves:
        if not WORDNET_ID.fullmatch(synset) or re.search('[\r\n]', words):
            raise Refused("%s in %s: the synset %.80r, %.80r is malformed" % (SYNSETS_FILE, path, synset, words))
    labels = []
    for number, line in enumerate(files[TRUTH_FILE].decode('ascii', 'replace').rstrip().split('\n'), 1):
        try:
            labels.append(label_of[int(line)])
        except (KeyError, ValueError):
            raise Refused("%s in %s, line %d: %.80r is no ILSVRC2012_ID of a leaf synset" % (TRUTH_FILE, path, number, line))
    return [leaf[:3] for leaf in leaves], labels


# -------------------------------------------------------------------------------------------------------------- archives

@contextlib.contextmanager
def archive_errors_named(name):
    """Turns what reading the archive `name` raises into a Refused that names it."""
    try:
        yield
    except tarfile.TarError as error:
        raise Refused("%s is truncated, damaged or no tar archive (%s): get it anew" % (name, error))
    except OSError as error:
        if error.filename is not None:    # that of a folder in the tree
            raise
        raise Refused("cannot read %s: %s" % (name, error.strerror))


@contextlib.contextmanager
def archive_opened(path):
    """The archive at `path` as a file to be read from front to back, which moves a progress bar."""
    size = os.path.getsize(path) or None    # a pipe has none
    with archive_errors_named(path), open(path, 'rb', buffering=1 << 18) as f:
        with tqdm.wrapattr(f, 'read', total=size, desc=os.path.basename(path), **bar_options()) as counted:
            yield counted


class Forward:
    """The next `size` bytes of a file, as a file that tarfile can read and never rewinds: a pipe, or a tar inside a tar.

    tarfile's own streams (mode 'r|') copy everything twice more, and take for ever over a member of an absurd size.
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
        Refused: a member is no plain file, its name has another form (a path, for example) or comes twice, or its size is absurd.
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
                raise Refused("%s is refused because of its member %.200r: it must have plain files like %s and nothing else"
                              % (name, member.name, example))
            if match.group() in seen:
                raise Refused("%s is refused because it has %s twice" % (name, match.group()))
            if not 0 <= member.size <= LARGEST:
                raise Refused("%s is refused because %s has %d bytes in it" % (name, match.group(), member.size))
            seen.add(match.group())
            yield match, member.size, Forward(archive, member.size)


def write(path, data, sync=False):
    """Writes bytes `data` to a file that appears at `path` when it is whole, or not at all.

    There is one temporary name for each file: what a kill leaves behind, the next run overwrites. It is in the folder above,
    because a file system puts a file near the folder where it is made, and a thousand folders far apart, which takes longer.

    Raises:
        Refused: it cannot be written, for example because the disk is full.
    """
    temporary = '%s.%s.tmp' % os.path.split(path)
    try:
        with open(temporary, 'wb', buffering=0) as f:
            while data:
                data = data[f.write(data):]
            if sync:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise Refused("cannot write %s: %s; the same command goes on from there" % (path, error.strerror))
        raise


def write_image(path, size, source):
    """Writes `size` bytes of file `source` to `path`, unless an earlier run has."""
    try:
        if os.stat(path).st_size == size:
            return
    except OSError:
        pass
    data = source.read(size)
    if len(data) < size:
        raise tarfile.ReadError("unexpected end of data")
    write(path, data)


def make_folder(path):
    """Makes a folder for images. Raises Refused if it is a link, through which images would be written somewhere else."""
    if os.path.islink(path):
        raise Refused("%s is a link: remove it, or name another --out" % path)
    os.makedirs(path, exist_ok=True)


def check_complete(what, where, found, expected):
    """Raises Refused if something of `expected` is not in `found`."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise Refused("%s lacks %d of %d %s, the first is %s: it is truncated, or not the one of this devkit"
                      % (where, len(missing), len(expected), what, missing[0]))


def val_name(number):
    return 'ILSVRC2012_val_%08d.JPEG' % number


def extract_val(path, out, synsets, labels):
    """Extracts the validation images into ``val/<synset>/``. Raises Refused if they are not those of the devkit."""
    for label in sorted(set(labels)):
        make_folder(os.path.join(out, 'val', synsets[label]))
    found = set()
    with archive_opened(path) as archive:
        for match, size, source in members(archive, path, VAL_IMAGE, val_name(1)):
            number = int(match.group(1))
            if not 1 <= number <= len(labels):
                raise Refused("%s has %s, and the devkit has images 1 to %d" % (path, match.group(), len(labels)))
            write_image(os.path.join(out, 'val', synsets[labels[number - 1]], match.group()), size, source)
            found.add(match.group())
    check_complete("validation images", path, found, [val_name(number) for number in range(1, len(labels) + 1)])


def extract_train(path, out, synsets):
    """Extracts the training images into ``train/<synset>/``: straight from the tars inside the tar.

    Returns:
        dict: the names of the images of each synset, {str: list of str}.
    Raises:
        Refused: the tars are not those of the devkit's classes.
    """
    names = {}
    with archive_opened(path) as archive:
        for match, _, class_tar in members(archive, path, TRAIN_TAR, 'n01440764.tar'):
            synset = match.group(1)
            if synset not in synsets:
                raise Refused("%s has %s, and the devkit has no such class" % (path, match.group()))
            folder = os.path.join(out, 'train', synset)
            make_folder(folder)
            names[synset] = []
            class_name = '%s in %s' % (match.group(), path)
            with archive_errors_named(class_name):
                for image, size, source in members(class_tar, class_name, TRAIN_IMAGE, 'n01440764_18.JPEG'):
                    write_image(os.path.join(folder, image.group()), size, source)
                    names[synset].append(image.group())
            if not names[synset]:
                raise Refused("%s is empty: get it anew" % class_name)
    check_complete("classes", path, names, synsets)
    return names


# ----------------------------------------------------------------------------------------------------------------- links

def link(target, path):
    """Makes `path` a symbolic link to `target`. Raises Refused if something else is there."""
    try:
        os.symlink(target, path)
    except FileExistsError:
        if not os.path.islink(path) or os.readlink(path) != target:
            raise Refused("%s exists and is no link to %s: remove it, or name another --out" % (path, target))


def class_folders(folder, synsets):
    """The classes that have a folder in `folder`. Raises Refused if there is a folder of another class."""
    found = [name for name in sorted(os.listdir(folder))
             if WORDNET_ID.fullmatch(name) and os.path.isdir(os.path.join(folder, name))]
    for name in found:
        if name not in synsets:
            raise Refused("%s is a folder of no class of the devkit" % os.path.join(folder, name))
    return found


def link_val(source, out, synsets, labels):
    """Links the validation images in folder `source`, flat or in one folder a synset. Raises Refused as `extract_val` does."""
    folders = class_folders(source, synsets)
    found = {}
    for folder in [''] + folders:
        for name in os.listdir(os.path.join(source, folder)):
            match = VAL_IMAGE.fullmatch(name)
            if match is None:    # the script that made the folders, for example
                continue
            number = int(match.group(1))
            if not 1 <= number <= len(labels) or folder not in ('', synsets[labels[number - 1]]):
                raise Refused("%s is not where the devkit has it" % os.path.join(source, folder, name))
            found[name] = folder
    check_complete("validation images", source, found, [val_name(number) for number in range(1, len(labels) + 1)])
    os.makedirs(os.path.join(out, 'val'), exist_ok=True)
    for name in sorted(found):
        synset = synsets[labels[int(VAL_IMAGE.fullmatch(name).group(1)) - 1]]
        if not found[name]:
            make_folder(os.path.join(out, 'val', synset))
            link(os.path.join(source, name), os.path.join(out, 'val', synset, name))
    for synset in sorted(set(found.values()) - {''}):
        link(os.path.join(source, synset), os.path.join(out, 'val', synset))


def link_train(source, out, synsets):
    """Links the class folders in folder `source`. Returns and raises as `extract_train` does."""
    names = {}
    for synset in class_folders(source, synsets):
        names[synset] = [name for name in os.listdir(os.path.join(source, synset)) if EXTRACTED_IMAGE.fullmatch(name)]
        if not names[synset]:
            raise Refused("%s has no image" % os.path.join(source, synset))
    check_complete("classes", source, names, synsets)
    os.makedirs(os.path.join(out, 'train'), exist_ok=True)
    for synset in synsets:
        link(os.path.join(source, synset), os.path.join(out, 'train', synset))
    return names


# ------------------------------------------------------------------------------------------------------------------ tree

def text_of(lines):
    return ''.join('%s\n' % line for line in lines).encode('utf-8')


def prepare(out, devkit, val=None, train=None, links=None):
    """Makes the tree `out` from archives `val` and perhaps `train`, or from the extracted folder `links`.

    Raises:
        Refused or OSError: something given cannot be used, or written; the same call goes on from there.
    """
    classes, labels = read_devkit(devkit)
    synsets = [synset for synset, _, _ in classes]
    lists = {'synsets.txt': text_of(synsets),
             'synset_words.txt': text_of('%s %s' % (synset, words) for synset, words, _ in classes),
             'val.txt': text_of('%s %d' % (val_name(number), label) for number, label in enumerate(labels, 1))}
    if links is not None:
        links = os.path.abspath(links)
        train = os.path.join(links, 'train') if os.path.isdir(os.path.join(links, 'train')) else None

    # A list says that its images are there: one of an earlier run that may say so wrongly goes before the first image comes.
    meta = os.path.join(out, META)
    os.makedirs(meta, exist_ok=True)
    present = set(os.listdir(meta))
    outdated = {'train.txt'} if train is not None else set()
    for name in present & set(lists):
        with open(os.path.join(meta, name), 'rb') as f:
            if f.read() != lists[name]:
                outdated = set(lists) | {'train.txt'}
    for name in present & outdated:
        os.remove(os.path.join(meta, name))

    if links is not None:
        link_val(os.path.join(links, 'val'), out, synsets, labels)
    else:
        extract_val(val, out, synsets, labels)
    if train is not None:
        names = link_train(train, out, synsets) if links is not None else extract_train(train, out, synsets)
        write(os.path.join(meta, 'train.txt'), text_of('%s/%s %d' % (synset, name, label) for label, synset in enumerate(synsets)
                                                       for name in sorted(names[synset])), sync=True)
    for name in lists:    # val.txt is the last
        write(os.path.join(meta, name), lists[name], sync=True)
    print("%s: %d classes, %d validation images" % (out, len(classes), len(labels)), end='')
    if train is None:
        print()
    else:
        print(", %d training images" % sum(map(len, names.values())))
        other = [synset for synset, _, count in classes if len(names[synset]) != count]
        if other:
            print("note: of %d classes there are other numbers of training images than the devkit says, the first is %s"
                  % (len(other), other[0]))


def check_images(tree, name, synsets):
    """Verifies that the images in folder `name` of a tree are those that ``<name>.txt`` lists, and that all can be decoded.

    Returns:
        int: how many there are.
    Raises:
        Refused or InputError: the first that is wrong.
    """
    from imagenet_utils import OrderedThreadMap, cores, read_image, read_list
    from tensorpack.dataflow import DataFromList

    folder = os.path.join(tree, name)
    on_disk = {os.path.join(parent, file)[len(folder) + 1:] for parent, _, files in os.walk(folder, followlinks=True)
               for file in files}
    classes = set(synsets)
    listed = set()
    for number, (file, label) in enumerate(read_list(tree, name), 1):
        line = '%s, line %d' % (os.path.join(tree, META, name + '.txt'), number)
        places = [place for place in (file, synsets[label] + '/' + file) if place in on_disk]
        places = places or [place for place in (synset + '/' + file for synset in synsets) if place in on_disk]
        if not places:
            raise Refused("%s: the image %s is missing from %s" % (line, file, folder))
        home = os.path.dirname(places[0])
        if home in classes and home != synsets[label]:
            raise Refused("%s: label %d is the class %s, but %s is in folder %s" % (line, label, synsets[label], file, home))
        if places[0] in listed:
            raise Refused("%s: %s is listed twice" % (line, file))
        listed.add(places[0])
    kinds = {os.path.splitext(file)[1] for file in listed}
    unlisted = sorted(file for file in on_disk - listed if os.path.splitext(file)[1] in kinds)
    if unlisted:
        raise Refused("%s has %d images that %s.txt does not list, the first is %s" % (folder, len(unlisted), name, unlisted[0]))

    ds = OrderedThreadMap(DataFromList([os.path.join(folder, file) for file in sorted(listed)], shuffle=False), cores(),
                          lambda path: read_image(path).shape, 64)
    ds.reset_state()
    with tqdm(total=len(listed), desc=name, unit=' images', **bar_options()) as progress:
        for _ in ds:
            progress.update()
    return len(listed)


def check(tree):
    """Verifies a finished tree, and prints how its lists compare with the published ones.

    Raises:
        Refused: the tree is not sound. The message has the first thing that is wrong.
    """
    meta = os.path.join(tree, META)
    if not os.path.isfile(os.path.join(meta, 'val.txt')):
        raise Refused("there is no %s/val.txt: the tree is not finished, run the command that makes it again" % meta)
    sys.path.insert(0, ROOT)
    import tf_compat    # noqa: F401  (before all else that imports TensorFlow)
    from imagenet_utils import InputError, read_lines, read_synsets
    try:
        synsets = read_synsets(tree)
        if len(set(synsets)) < len(synsets):
            raise Refused("%s/synsets.txt has a synset twice" % meta)
        if [line.split(' ')[0] for line in read_lines(os.path.join(meta, 'synset_words.txt'))] != synsets:
            raise Refused("%s/synset_words.txt does not have the synsets of synsets.txt" % meta)
        counts = ["%d classes" % len(synsets), "%d validation images" % check_images(tree, 'val', synsets)]
        if os.path.exists(os.path.join(tree, 'train')) or os.path.exists(os.path.join(meta, 'train.txt')):
            counts.append("%d training images" % check_images(tree, 'train', synsets))
    except InputError as error:
        raise Refused(str(error))
    for name in sorted(PUBLISHED):
        with open(os.path.join(meta, name), 'rb') as f:
            same = hashlib.sha256(f.read()).hexdigest() == PUBLISHED[name]
        print("%s: %s the published list" % (name, "equal to" if same else "differs from"))
    print("%s is sound: %s" % (tree, ', '.join(counts)))


# ---------------------------------------------------------------------------------------------------------- command line

class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, "prepare.py: %s (see --help)\n" % message)


def parse_args():
    parser = Parser(description="Make the ILSVRC12 tree that main.py reads from the official archives.")
    parser.add_argument('--val', metavar='TAR', help="ILSVRC2012_img_val.tar")
    parser.add_argument('--train', metavar='TAR', help="ILSVRC2012_img_train.tar, if training images are wanted")
    parser.add_argument('--devkit', metavar='TAR.GZ', help="ILSVRC2012_devkit_t12.tar.gz")
    parser.add_argument('--links', metavar='DIR', help="instead of archives: a folder with val/, flat or with one folder a synset, "
                                                       "and perhaps train/, to which the tree is linked")
    parser.add_argument('--out', metavar='DIR', help="the tree to make")
    parser.add_argument('--check', metavar='DIR', help="verify this finished tree instead")
    args = parser.parse_args()

    if '' in vars(args).values():
        parser.error("a flag is empty: give it a value")
    given = {name: value for name, value in vars(args).items() if value is not None}
    if 'check' in given:
        if len(given) > 1:
            parser.error("--check goes with no other flag")
        return args
    if 'devkit' not in given or 'out' not in given:
        parser.error("name --devkit and --out, or --check DIR")
    if ('val' in given) == ('links' in given):
        parser.error("name either --val, the archive, or --links, an extracted folder")
    if 'train' in given and 'links' in given:
        parser.error("--train does not go with --links, which takes train/ from its folder")
    for name in ('devkit', 'val', 'train'):
        if name in given and (not os.path.exists(given[name]) or os.path.isdir(given[name])):
            parser.error("--%s: there is no file %s" % (name, given[name]))
    if 'links' in given:
        if not os.path.isdir(os.path.join(args.links, 'val')):
            parser.error("--links: there is no folder %s" % os.path.join(args.links, 'val'))
        if os.path.realpath(args.links) == os.path.realpath(args.out):
            parser.error("--links and --out must be different folders")
    return args


def main():
    args = parse_args()
    try:
        if args.check is not None:
            check(args.check)
        else:
            prepare(args.out, args.devkit, args.val, args.train, args.links)
    except (Refused, OSError, ImportError) as error:
        return "prepare.py: %s" % error
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == '__main__':
    message = main()
    if message is not None:
        sys.stderr.write(message + "\n")
        sys.exit(2)
