"""Links a tree to images that are extracted already, in the folders and with the names that people have them in."""
import os
import re

from command_line import InputError
from data.ilsvrc12.classes import WORDNET_ID
from data.ilsvrc12.tree import VAL_IMAGE, check_complete, check_synset, link, make_folder, val_name

# Others give their images names instead of numbers.
EXTRACTED_IMAGE = re.compile(r'(n[0-9]{8}_[!-~]+?)(?:_(n[0-9]{8}))?[.][Jj][Pp][Ee]?[Gg]')


def class_folders(folder, synsets):
    """The classes that have a folder in `folder`. Raises InputError if there is a folder of another class."""
    found = [name for name in sorted(os.listdir(folder))
             if WORDNET_ID.fullmatch(name) and os.path.isdir(os.path.join(folder, name))]
    for name in found:
        if name not in synsets:
            raise InputError("%s is not the folder of a class of the devkit" % os.path.join(folder, name))
    return found


def add(images, name, place):
    """Adds an image, {published name: file}. Raises InputError if it is there already."""
    if name in images:
        raise InputError("%s and %s are the same image: remove one" % (images[name], place))
    images[name] = place


def link_images(images, folder, out, *names):
    """Links `images` of one class, {published name: file}, into a folder in `out`: the whole folder if it has these names, or each.

    Args:
        folder (str): the class's folder where the images are, or None.
    """
    if folder is not None and all(os.path.join(folder, name) == place for name, place in images.items()):
        make_folder(out, *names[:-1])
        link(folder, os.path.join(out, *names))
        return
    target = make_folder(out, *names)
    for name in sorted(images):
        link(images[name], os.path.join(target, name))


def link_val(source, out, synsets, labels):
    """Links the validation images in folder `source`, flat or in one folder a synset.

    Raises:
        InputError: they are not those of the devkit, or something else is where a link should be.
    """
    images = {synset: {} for synset in synsets}
    in_folder = set()
    for folder in [''] + class_folders(source, synsets):
        for name in sorted(os.listdir(os.path.join(source, folder))):
            match = VAL_IMAGE.fullmatch(name)
            if match is None:    # the script that made the folders, for example
                continue
            number = int(match.group(1))
            if not 1 <= number <= len(labels) or folder not in ('', synsets[labels[number - 1]]):
                raise InputError("%s is not where the devkit has it" % os.path.join(source, folder, name))
            synset = synsets[labels[number - 1]]
            check_synset(match, os.path.join(source, folder), synset, "the devkit")
            add(images[synset], val_name(number), os.path.join(source, folder, name))
            if folder:
                in_folder.add(synset)
    check_complete("validation images", source, {name for synset in synsets for name in images[synset]},
                   [val_name(number) for number in range(1, len(labels) + 1)])
    for synset in synsets:
        if images[synset]:
            link_images(images[synset], os.path.join(source, synset) if synset in in_folder else None, out, 'val', synset)


def link_train(source, out, synsets):
    """Links the training images in folder `source`, flat or in one folder a synset. Raises InputError as `link_val` does.

    Returns:
        dict: the names of the images of each synset, {str: list of str}.
    """
    images = {}
    folders = class_folders(source, synsets)
    for folder in folders or ['']:
        if folder:
            images[folder] = {}
        for name in sorted(os.listdir(os.path.join(source, folder))):
            match = EXTRACTED_IMAGE.fullmatch(name)
            if match is None:
                continue
            synset = folder or name[:9]
            if synset not in synsets:
                raise InputError("%s is not the image of a class of the devkit" % os.path.join(source, name))
            check_synset(match, os.path.join(source, folder), synset, "its folder" if folder else "its beginning")
            add(images.setdefault(synset, {}), match.group(1) + '.JPEG', os.path.join(source, folder, name))
        if folder and not images[folder]:
            raise InputError("%s has no image like n01440764_18.JPEG" % os.path.join(source, folder))
    check_complete("classes", source, images, synsets)
    for synset in synsets:
        link_images(images[synset], os.path.join(source, synset) if folders else None, out, 'train', synset)
    return {synset: list(images[synset]) for synset in synsets}
