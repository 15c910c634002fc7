"""Makes the ILSVRC12 tree that main.py reads from the archives of image-net.org, and its lists from the devkit.

    python data/ilsvrc12/prepare.py --val ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz \\
        [--train ILSVRC2012_img_train.tar] --out DIR
    python data/ilsvrc12/prepare.py --links EXTRACTED --devkit ILSVRC2012_devkit_t12.tar.gz --out DIR
    python data/ilsvrc12/prepare.py --check DIR

After a kill or a full disk, the same command continues where it stopped: every file appears under its name when it is whole, and
the lists come last. A label is the position of the class among the leaf synsets of the devkit, sorted by WordNet id.
"""
import concurrent.futures
import hashlib
import os
import re
import sys
import tarfile

# So that this script runs from any folder.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from command_line import InputError, Parser, atomic_write, cores, progress_options, run
from data.ilsvrc12.archives import WORDNET_ID, archive_errors_named, archive_opened, members, read_devkit
from dataset import META, read_lines, read_list, read_synsets

VAL_IMAGE = re.compile(r'ILSVRC2012_val_([0-9]{8})\.JPEG')
TRAIN_TAR = re.compile(r'(n[0-9]{8})\.tar')
TRAIN_IMAGE = re.compile(r'n[0-9]{8}_[0-9]+\.JPEG')
EXTRACTED_IMAGE = re.compile(r'n[0-9]{8}_[!-~]+\.JPEG')    # others give their images names instead of numbers
PUBLISHED = {'synsets.txt': '70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15',
             'val.txt': '4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257'}


# --------------------------------------------------------------------------------------------------------------- images

def write(path, data, durable=False):
    """Writes bytes `data` to a file that appears at `path` when it is whole, or not at all. A link there is replaced.

    There is one temporary name for each file: what a kill leaves behind, the next run overwrites. It is in the folder above,
    because a file system puts a file near the folder where it is made, and a thousand folders far apart, which takes longer.

    Raises:
        InputError: it cannot be written, for example because the disk is full.
    """
    try:
        if os.path.islink(path):    # to a picture of the user's, which stays as it is
            os.remove(path)
        with atomic_write(path, '%s.%s.tmp' % os.path.split(path), durable) as f:
            f.write(data)
    except OSError as error:
        raise InputError("cannot write %s: %s; the same command continues from there" % (path, error.strerror))


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
    """Makes a folder for images. Raises InputError if it is a link, through which images would be written somewhere else."""
    if os.path.islink(path):
        raise InputError("%s is a link: remove it, or name another --out" % path)
    os.makedirs(path, exist_ok=True)


def check_complete(what, where, found, expected):
    """Raises InputError if something of `expected` is not in `found`."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError("%s lacks %d of %d %s, the first is %s: it is truncated, or not the one of this devkit"
                      % (where, len(missing), len(expected), what, missing[0]))


def val_name(number):
    return 'ILSVRC2012_val_%08d.JPEG' % number


def extract_val(path, out, synsets, labels):
    """Extracts the validation images into ``val/<synset>/``. Raises InputError if they are not those of the devkit."""
    for label in sorted(set(labels)):
        make_folder(os.path.join(out, 'val', synsets[label]))
    found = set()
    with archive_opened(path) as archive:
        for match, size, source in members(archive, path, VAL_IMAGE, val_name(1)):
            number = int(match.group(1))
            if not 1 <= number <= len(labels):
                raise InputError("%s has %s, and the devkit has images 1 to %d" % (path, match.group(), len(labels)))
            write_image(os.path.join(out, 'val', synsets[labels[number - 1]], match.group()), size, source)
            found.add(match.group())
    check_complete("validation images", path, found, [val_name(number) for number in range(1, len(labels) + 1)])


def extract_train(path, out, synsets):
    """Extracts the training images into ``train/<synset>/``: straight from the tars inside the tar.

    Returns:
        dict: the names of the images of each synset, {str: list of str}.
    Raises:
        InputError: the tars are not those of the devkit's classes.
    """
    names = {}
    with archive_opened(path) as archive:
        for match, _, class_tar in members(archive, path, TRAIN_TAR, 'n01440764.tar'):
            synset = match.group(1)
            if synset not in synsets:
                raise InputError("%s has %s, and the devkit has no such class" % (path, match.group()))
            folder = os.path.join(out, 'train', synset)
            make_folder(folder)
            names[synset] = []
            class_name = '%s in %s' % (match.group(), path)
            with archive_errors_named(class_name):
                for image, size, source in members(class_tar, class_name, TRAIN_IMAGE, 'n01440764_18.JPEG'):
                    write_image(os.path.join(folder, image.group()), size, source)
                    names[synset].append(image.group())
            if not names[synset]:
                raise InputError("%s is empty: get it again" % class_name)
    check_complete("classes", path, names, synsets)
    return names


# ----------------------------------------------------------------------------------------------------------------- links

def link(target, path):
    """Makes `path` a symbolic link to `target`. Raises InputError if something else is there."""
    try:
        os.symlink(target, path)
    except FileExistsError:
        if not os.path.islink(path) or os.readlink(path) != target:
            raise InputError("%s exists and is not a link to %s: remove it, or name another --out" % (path, target))


def class_folders(folder, synsets):
    """The classes that have a folder in `folder`. Raises InputError if there is a folder of another class."""
    found = [name for name in sorted(os.listdir(folder))
             if WORDNET_ID.fullmatch(name) and os.path.isdir(os.path.join(folder, name))]
    for name in found:
        if name not in synsets:
            raise InputError("%s is not the folder of a class of the devkit" % os.path.join(folder, name))
    return found


def link_val(source, out, synsets, labels):
    """Links the validation images in folder `source`, flat or in one folder a synset. Raises InputError as `extract_val` does."""
    folders = class_folders(source, synsets)
    found = {}
    for folder in [''] + folders:
        for name in os.listdir(os.path.join(source, folder)):
            match = VAL_IMAGE.fullmatch(name)
            if match is None:    # the script that made the folders, for example
                continue
            number = int(match.group(1))
            if not 1 <= number <= len(labels) or folder not in ('', synsets[labels[number - 1]]):
                raise InputError("%s is not where the devkit has it" % os.path.join(source, folder, name))
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
            raise InputError("%s has no image" % os.path.join(source, synset))
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
        InputError or OSError: something given cannot be used, or written; the same call continues from there.
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
                                                       for name in sorted(names[synset])), durable=True)
    for name in lists:    # val.txt is the last
        write(os.path.join(meta, name), lists[name], durable=True)
    print("%s: %d classes, %d validation images" % (out, len(classes), len(labels)), end='')
    if train is None:
        print()
    else:
        print(", %d training images" % sum(map(len, names.values())))
        other = [synset for synset, _, count in classes if len(names[synset]) != count]
        if other:
            print("note: of %d classes there are other numbers of training images than in the devkit, the first is %s"
                  % (len(other), other[0]))


def check_images(tree, name, synsets):
    """Verifies that the images in folder `name` of a tree are those that ``<name>.txt`` lists, and that all can be decoded.

    Returns:
        int: how many there are.
    Raises:
        InputError: the first that is wrong.
    """
    from tqdm import tqdm

    from pictures import read_image

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
            raise InputError("%s: the image %s is missing from %s" % (line, file, folder))
        home = os.path.dirname(places[0])
        if home in classes and home != synsets[label]:
            raise InputError("%s: label %d is the class %s, but %s is in folder %s" % (line, label, synsets[label], file, home))
        if places[0] in listed:
            raise InputError("%s: %s is listed twice" % (line, file))
        listed.add(places[0])
    kinds = {os.path.splitext(file)[1] for file in listed}
    unlisted = sorted(file for file in on_disk - listed if os.path.splitext(file)[1] in kinds)
    if unlisted:
        raise InputError("%s has %d images that %s.txt does not list, the first is %s" % (folder, len(unlisted), name, unlisted[0]))

    paths = [os.path.join(folder, file) for file in sorted(listed)]
    with tqdm(total=len(paths), desc=name, unit=' images', **progress_options()) as progress, \
            concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(paths), 1024):    # not a million tasks at once, which take much memory
            for _ in pool.map(lambda path: read_image(path).shape, paths[start:start + 1024]):
                progress.update()
    return len(listed)


def check(tree):
    """Verifies a finished tree, and prints how its lists compare with the published ones.

    Raises:
        InputError: the tree is not sound. The message has the first thing that is wrong.
    """
    meta = os.path.join(tree, META)
    if not os.path.isfile(os.path.join(meta, 'val.txt')):
        raise InputError("there is no %s/val.txt: the tree is not finished, run the command that makes it again" % meta)
    synsets = read_synsets(tree)
    if len(set(synsets)) < len(synsets):
        raise InputError("%s/synsets.txt has a synset twice" % meta)
    if [line.split(' ')[0] for line in read_lines(os.path.join(meta, 'synset_words.txt'))] != synsets:
        raise InputError("%s/synset_words.txt does not have the synsets of synsets.txt" % meta)
    counts = ["%d classes" % len(synsets), "%d validation images" % check_images(tree, 'val', synsets)]
    if os.path.exists(os.path.join(tree, 'train')) or os.path.exists(os.path.join(meta, 'train.txt')):
        counts.append("%d training images" % check_images(tree, 'train', synsets))
    for name in sorted(PUBLISHED):
        with open(os.path.join(meta, name), 'rb') as f:
            same = hashlib.sha256(f.read()).hexdigest() == PUBLISHED[name]
        print("%s: %s the published list" % (name, "equal to" if same else "differs from"))
    print("%s is sound: %s" % (tree, ', '.join(counts)))


# ---------------------------------------------------------------------------------------------------------- command line

def parse_args():
    parser = Parser(prog='prepare.py', description="Make the ILSVRC12 tree that main.py reads from the official archives.")
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


def main(args):
    if args.check is not None:
        check(args.check)
    else:
        prepare(args.out, args.devkit, args.val, args.train, args.links)


if __name__ == '__main__':
    run(main, parse_args(), 'prepare.py', target='data')
