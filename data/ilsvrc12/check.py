"""Verifies a finished ILSVRC12 tree: its lists, every image by decoding it, and what is known of its archives."""
import concurrent.futures
import hashlib
import os
import re

from command_line import InputError, cores, progress_options
from data.ilsvrc12.archives import JUNK, PUBLISHED_MD5
from dataset import META, read_lines, read_list, read_synsets

PUBLISHED = {'synsets.txt': '70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15',
             'val.txt': '4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257'}
MD5_LIST = 'archives.md5'    # in META: `<md5>  <published name>` for each archive that the tree was made from, as md5sum writes it
MOST_NAMED = 1000    # broken images


# ------------------------------------------------------------------------------------------------------------------- MD5

def md5_line(name, md5):
    """What to print of the MD5 of the archive that is published as `name`."""
    return "%s: MD5 %s: %s the published archive" % (name, md5, "equal to" if md5 == PUBLISHED_MD5[name] else "differs from")


def read_md5s(meta):
    """{published name: MD5} of the archives that the tree with folder `meta` was made from, as far as that is recorded."""
    path = os.path.join(meta, MD5_LIST)
    if not os.path.isfile(path):
        return {}
    with open(path, 'rb') as f:
        found = re.findall('^([0-9a-f]{32})  ([!-~]+)$', f.read(1 << 12).decode('ascii', 'replace'), re.MULTILINE)
    return {name: md5 for md5, name in found if name in PUBLISHED_MD5}


# ---------------------------------------------------------------------------------------------------------------- images

def files_below(folder):
    """The files in a folder, through links, without those of macOS and Windows. A folder that links lead to again is left out."""
    found, seen = set(), {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        places = [(name, os.path.realpath(os.path.join(parent, name))) for name in folders]
        folders[:] = [name for name, place in places if place not in seen]
        seen.update(place for _, place in places)
        found.update(os.path.join(parent, name)[len(folder) + 1:] for name in files if not JUNK.fullmatch(name))
    return found


def listed_images(tree, name, synsets):
    """The images that ``<name>.txt`` of a tree lists, sorted: paths below folder `name`.

    Raises:
        InputError: the first that is missing, in a folder of another class, or listed twice; or one that is not listed.
    """
    folder = os.path.join(tree, name)
    on_disk = files_below(folder)
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
    return sorted(listed)


def fault(path):
    """What is wrong with the image at `path`, or None."""
    from pictures import read_image
    if not os.path.isfile(path):    # a pipe would be waited for
        return "%s is not a file" % path
    try:
        read_image(path)
    except InputError as error:
        return str(error)


def check_images(tree, name, synsets):
    """Verifies that the images in folder `name` of a tree are those that ``<name>.txt`` lists, and decodes all of them.

    Returns:
        tuple: how many there are, and what is wrong with those that are broken, a list of str.
    Raises:
        InputError: as `listed_images` does.
    """
    from tqdm import tqdm

    import pictures  # noqa: F401  here, so that its absence is reported once, and not by a thread
    paths = [os.path.join(tree, name, file) for file in listed_images(tree, name, synsets)]
    faults = []
    with tqdm(total=len(paths), desc=name, unit=' images', **progress_options()) as progress, \
            concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(paths), 1024):    # not a million tasks at once, which take much memory
            for found in pool.map(fault, paths[start:start + 1024]):
                faults += [found] if found else []
                progress.update()
    return len(paths), faults


def check(tree):
    """Verifies a finished tree, and prints how its lists and archives compare with the published ones.

    Raises:
        InputError: the tree is not sound. The message has the first thing; broken images are printed, if there are several.
    """
    meta = os.path.join(tree, META)
    if not os.path.isfile(os.path.join(meta, 'val.txt')):
        raise InputError("there is no %s/val.txt: the tree is not finished, run the command that makes it again" % meta)
    synsets = read_synsets(tree)
    if len(set(synsets)) < len(synsets):
        raise InputError("%s/synsets.txt has a synset twice" % meta)
    if [line.split(' ')[0] for line in read_lines(os.path.join(meta, 'synset_words.txt'))] != synsets:
        raise InputError("%s/synset_words.txt does not have the synsets of synsets.txt" % meta)
    images, faults = check_images(tree, 'val', synsets)
    counts = ["%d classes" % len(synsets), "%d validation images" % images]
    if os.path.exists(os.path.join(tree, 'train')) or os.path.exists(os.path.join(meta, 'train.txt')):
        train, more = check_images(tree, 'train', synsets)
        counts.append("%d training images" % train)
        images, faults = images + train, faults + more
    if len(faults) > 1:
        print('\n'.join(faults[:MOST_NAMED] + ["... and %d more" % (len(faults) - MOST_NAMED)] * (len(faults) > MOST_NAMED)))
    if faults:
        raise InputError("%s: %d of %d images are broken, the first: %s" % (tree, len(faults), images, faults[0]))
    for name in sorted(PUBLISHED):
        with open(os.path.join(meta, name), 'rb') as f:
            same = hashlib.sha256(f.read()).hexdigest() == PUBLISHED[name]
        print("%s: %s the published list" % (name, "equal to" if same else "differs from"))
    for name, md5 in sorted(read_md5s(meta).items()):
        print(md5_line(name, md5))
    print("%s is sound: %s" % (tree, ', '.join(counts)))
