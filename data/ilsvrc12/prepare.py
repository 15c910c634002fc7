"""Makes the ILSVRC12 tree that main.py reads from the archives of image-net.org, and its lists from the devkit.

    python data/ilsvrc12/prepare.py --val ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz \\
        [--train ILSVRC2012_img_train.tar] --out DIR
    python data/ilsvrc12/prepare.py --links EXTRACTED --devkit ILSVRC2012_devkit_t12.tar.gz --out DIR
    python data/ilsvrc12/prepare.py --links KAGGLE --out DIR
    python data/ilsvrc12/prepare.py --check DIR

After a kill or a full disk, the same command continues where it stopped: every file appears under its name when it is whole, and
the lists come last. A label is the position of the class among the leaf synsets of the devkit, sorted by WordNet id.
"""
import hashlib
import os
import sys

# So that this script runs from any folder.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from command_line import InputError, Parser, run
from data.ilsvrc12 import tree
from data.ilsvrc12.archives import PUBLISHED_MD5, archive_errors_named, archive_opened, members
from data.ilsvrc12.check import MD5_LIST, PUBLISHED, check, md5_line, read_md5s
from data.ilsvrc12.classes import KAGGLE_IMAGES, KAGGLE_SYNSETS, KAGGLE_TRUTH, is_kaggle, read_devkit, read_kaggle
from data.ilsvrc12.folders import link_train, link_val
from dataset import META

VAL_ARCHIVE, TRAIN_ARCHIVE, DEVKIT = 'ILSVRC2012_img_val.tar', 'ILSVRC2012_img_train.tar', 'ILSVRC2012_devkit_t12.tar.gz'


# -------------------------------------------------------------------------------------------------------------- archives

def extract_val(path, out, synsets, labels):
    """Extracts the validation images into ``val/<synset>/``. Returns the archive's MD5s, as `Source.md5s` has them.

    Raises:
        InputError: they are not those of the devkit, or cannot be written.
    """
    for label in sorted(set(labels)):
        tree.make_folder(out, 'val', synsets[label])
    found = set()
    with archive_opened(path) as archive:
        for match, size, source in members(archive, path, tree.VAL_IMAGE, tree.val_name(1)):
            number = int(match.group(1))
            if not 1 <= number <= len(labels):
                raise InputError("%s has %s, and the devkit has images 1 to %d" % (path, match.group(), len(labels)))
            synset = synsets[labels[number - 1]]
            tree.check_synset(match, path, synset, "the devkit")
            tree.write_image(os.path.join(out, 'val', synset, tree.val_name(number)), size, source, path)
            found.add(tree.val_name(number))
        tree.check_complete("validation images", path, found, [tree.val_name(number) for number in range(1, len(labels) + 1)])
    return archive.md5s()


def extract_train(path, out, synsets):
    """Extracts the training images into ``train/<synset>/``: straight from the tars inside the tar.

    Returns:
        tuple: the names of the images of each synset, {str: list of str}, and the archive's MD5s, as `Source.md5s` has them.
    Raises:
        InputError: the tars are not those of the devkit's classes, or an image cannot be written.
    """
    names = {}
    with archive_opened(path) as archive:
        for match, _, class_tar in members(archive, path, tree.TRAIN_TAR, 'n01440764.tar'):
            synset = match.group(1)
            if synset not in synsets:
                raise InputError("%s has %s, and the devkit has no such class" % (path, match.group()))
            folder = tree.make_folder(out, 'train', synset)
            names[synset] = []
            class_name = '%s in %s' % (match.group(), path)
            with archive_errors_named(class_name):
                for image, size, source in members(class_tar, class_name, tree.TRAIN_IMAGE, 'n01440764_18.JPEG'):
                    tree.check_synset(image, class_name, synset, "the archive's name")
                    tree.write_image(os.path.join(folder, image.group(1) + '.JPEG'), size, source, class_name)
                    names[synset].append(image.group(1) + '.JPEG')
            if not names[synset]:
                raise InputError("%s is empty: get it again" % class_name)
        tree.check_complete("classes", path, names, synsets)
    return names, archive.md5s()


# ------------------------------------------------------------------------------------------------------------------ tree

def text_of(lines):
    return ''.join('%s\n' % line for line in lines).encode('utf-8')


def remove_outdated(meta, lists, again):
    """Removes lists that an earlier run has left in folder `meta` and that may say wrongly what is there, before an image comes.

    Args:
        lists (dict): the right ones, {name: bytes}; a name in `again` is always outdated.
    """
    present = set(os.listdir(meta))
    outdated = set(again)
    for name in present & set(lists):
        path = os.path.join(meta, name)
        if os.path.isfile(path) and os.path.getsize(path) == len(lists[name]):    # a pipe would be waited for
            with open(path, 'rb') as f:
                if f.read() == lists[name]:
                    continue
        outdated |= set(lists) | {'train.txt'}
    for name in present & outdated:
        os.remove(os.path.join(meta, name))


def published_or_own(name, md5s):
    """Which of `md5s` of an archive to keep: the published one, or that of the form in which `name` is published."""
    return PUBLISHED_MD5[name] if PUBLISHED_MD5[name] in md5s else md5s[0 if name == DEVKIT else -1]


def report_md5s(md5s, lists):
    """Prints how archives, {published name: MD5}, compare with the published ones; if `lists` are ILSVRC12's, they should be."""
    for name, md5 in sorted(md5s.items()):
        print(md5_line(name, md5))
    complete = all(hashlib.sha256(lists[name]).hexdigest() == PUBLISHED[name] for name in PUBLISHED)
    differing = [name for name, md5 in sorted(md5s.items()) if md5 != PUBLISHED_MD5[name] and name != DEVKIT]    # lists are enough
    if complete and differing:
        sys.stderr.write("prepare.py: warning: %s is not the published archive: images may be damaged, unless it was only packed "
                         "again\n" % ' and '.join(differing))


def prepare(out, devkit=None, val=None, train=None, links=None):
    """Makes the tree `out` from archives `val` and perhaps `train`, or from folder `links`; only Kaggle's needs no `devkit`.

    Raises:
        InputError or OSError: something given cannot be used, or written; the same call continues from there.
    """
    classes, labels, devkit_md5s = read_kaggle(links) if devkit is None else read_devkit(devkit)
    synsets = [synset for synset, _, _ in classes]
    lists = {'synsets.txt': text_of(synsets),
             'synset_words.txt': text_of('%s %s' % (synset, words) for synset, words, _ in classes),
             'val.txt': text_of('%s %d' % (tree.val_name(number), label) for number, label in enumerate(labels, 1))}
    if links is not None:
        links = os.path.abspath(images_of(links))
        train = os.path.join(links, 'train') if os.path.isdir(os.path.join(links, 'train')) else None

    meta = tree.make_folder(out, META)
    before = read_md5s(meta)
    remove_outdated(meta, lists, {MD5_LIST} | ({'train.txt'} if train is not None else set()))
    md5s, names = {DEVKIT: devkit_md5s} if devkit_md5s else {}, None
    if links is not None:
        link_val(os.path.join(links, 'val'), out, synsets, labels)
        names = link_train(train, out, synsets) if train is not None else None
    else:
        md5s[VAL_ARCHIVE] = extract_val(val, out, synsets, labels)
        if train is not None:
            names, md5s[TRAIN_ARCHIVE] = extract_train(train, out, synsets)
    md5s = {name: published_or_own(name, md5s[name]) for name in md5s}
    if names is not None:
        listed = text_of('%s/%s %d' % (synset, name, label)
                         for label, synset in enumerate(synsets) for name in sorted(names[synset]))
        tree.write(os.path.join(meta, 'train.txt'), listed, durable=True)
    elif TRAIN_ARCHIVE in before and os.path.exists(os.path.join(meta, 'train.txt')):    # of an earlier run
        md5s[TRAIN_ARCHIVE] = before[TRAIN_ARCHIVE]
    if md5s:
        tree.write(os.path.join(meta, MD5_LIST), text_of('%s  %s' % (md5s[name], name) for name in sorted(md5s)), durable=True)
    for name in lists:    # val.txt is the last
        tree.write(os.path.join(meta, name), lists[name], durable=True)
    report_md5s(md5s, lists)
    report(out, classes, labels, names)


def report(out, classes, labels, names):
    """Prints how many classes and images there are now; `names` are those of the training images, or None."""
    print("%s: %d classes, %d validation images" % (out, len(classes), len(labels)), end='')
    if names is None:
        print()
        return
    print(", %d training images" % sum(map(len, names.values())))
    other = [synset for synset, _, count in classes if count not in (None, len(names[synset]))]
    if other:
        print("note: of %d classes there are other numbers of training images than in the devkit, the first is %s"
              % (len(other), other[0]))


# ---------------------------------------------------------------------------------------------------------- command line

def parse_args():
    parser = Parser(prog='prepare.py', description="Make the ILSVRC12 tree that main.py reads from the official archives.")
    parser.add_argument('--val', metavar='TAR', help="ILSVRC2012_img_val.tar")
    parser.add_argument('--train', metavar='TAR', help="ILSVRC2012_img_train.tar, if training images are wanted")
    parser.add_argument('--devkit', metavar='TAR.GZ', help="ILSVRC2012_devkit_t12.tar.gz, or the folder that it was extracted to")
    parser.add_argument('--links', metavar='DIR', help="instead of archives: a folder with val/, flat or with one folder a synset, "
                                                       "and perhaps train/, to which the tree is linked; or, without --devkit, "
                                                       "Kaggle's folder with ILSVRC/, %s and %s" % (KAGGLE_SYNSETS, KAGGLE_TRUTH))
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
    if 'out' not in given:
        parser.error("name --out, or --check DIR")
    if ('val' in given) == ('links' in given):
        parser.error("name either --val, the archive, or --links, an extracted folder")
    if 'train' in given and 'links' in given:
        parser.error("--train does not go with --links, which takes train/ from its folder")
    for name in ('devkit', 'val', 'train'):
        if name in given and not os.path.exists(given[name]):
            parser.error("--%s: there is no file %s" % (name, given[name]))
        if name != 'devkit' and name in given and os.path.isdir(given[name]):
            parser.error("--%s: %s is a folder: name the archive, or a folder with %s/ by --links" % (name, given[name], name))
    if 'links' in given:
        if not os.path.isdir(os.path.join(images_of(args.links), 'val')):
            parser.error("--links: there is no folder %s, with the images flat or in one folder a synset"
                         % os.path.join(images_of(args.links), 'val'))
        if os.path.realpath(args.links) == os.path.realpath(args.out):
            parser.error("--links and --out must be different folders")
    if 'devkit' not in given and not ('links' in given and is_kaggle(args.links)):
        parser.error("name --devkit, %s; only Kaggle's folder for --links, with %s and %s, goes without"
                     % (DEVKIT, KAGGLE_SYNSETS, KAGGLE_TRUTH))
    return args


def images_of(folder):
    """Where an extracted folder has its val/ and train/: Kaggle's has them further down."""
    inside = os.path.join(folder, KAGGLE_IMAGES)
    return inside if os.path.isdir(inside) else folder


def main(args):
    if args.check is not None:
        check(args.check)
    else:
        prepare(args.out, args.devkit, args.val, args.train, args.links)


if __name__ == '__main__':
    run(main, parse_args(), 'prepare.py', target='data')
