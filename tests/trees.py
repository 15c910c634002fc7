"""Small trees of pictures for tests."""
import os
import shutil

from test_pictures import encode, picture


def make_tree(root, listing='a.JPEG 0\nb.JPEG 1\n', synsets='n00000001\nn00000002\n', images=('a.JPEG', 'n00000002/b.JPEG')):
    """An ILSVRC12 tree of two classes, with one image in val/ itself and one in its synset's folder."""
    for folder in ('val', 'train', 'caffe_ilsvrc12', 'val/n00000002'):
        os.makedirs(str(root / folder), exist_ok=True)
    for name in images:
        (root / 'val' / name).write_bytes(encode(picture(), '.jpg'))
    if synsets is not None:
        (root / 'caffe_ilsvrc12' / 'synsets.txt').write_text(synsets)
    if listing is not None:
        (root / 'caffe_ilsvrc12' / 'val.txt').write_text(listing)
    return str(root)


def link_tree(tree, root, by_synset=False):
    """A tree like `tree`, an ILSVRC12 one, whose lists may be changed and whose images are links; returns its path."""
    meta = root / 'caffe_ilsvrc12'
    shutil.copytree(os.path.join(str(tree), 'caffe_ilsvrc12'), str(meta))
    for name in os.listdir(str(meta)):
        os.chmod(str(meta / name), 0o644)
    os.makedirs(str(root / 'val'))
    synsets = (meta / 'synsets.txt').read_text().split()
    label_of = dict(line.split() for line in (meta / 'val.txt').read_text().splitlines())
    for folder, _, files in os.walk(os.path.join(str(tree), 'val')):
        for name in files:
            place = root / 'val' / synsets[int(label_of[name])] if by_synset else root / 'val'
            place.mkdir(exist_ok=True)
            os.symlink(os.path.join(folder, name), str(place / name))
    return str(root)


def shorten(tree, lines):
    """Keeps the first `lines` lines of a tree's val.txt; returns them."""
    path = os.path.join(tree, 'caffe_ilsvrc12', 'val.txt')
    with open(path) as f:
        kept = f.read().splitlines()[:lines]
    with open(path, 'w') as f:
        f.write('\n'.join(kept) + '\n')
    return kept
