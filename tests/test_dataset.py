"""Which files and labels a tree has, and what is wrong with one."""
import os
import shutil

import pytest

from command_line import InputError
from dataset import read_images
from trees import make_tree


def test_a_tree_may_be_flat_or_in_synset_folders(tmp_path):
    tree = make_tree(tmp_path)
    assert read_images(tree, 'val') == [
        [os.path.join(tree, 'val', 'a.JPEG'), 0], [os.path.join(tree, 'val', 'n00000002', 'b.JPEG'), 1]]


@pytest.mark.parametrize('change, message', [
    (dict(listing=''), 'val.txt is empty'),
    (dict(listing='a.JPEG 0\n\nb.JPEG 1\n'), 'line 2'),
    (dict(listing='a.JPEG\n'), 'line 1.*<file> <label>'),
    (dict(listing='a.JPEG zero\n'), 'line 1.*<file> <label>'),
    (dict(listing='a.JPEG 0 0\n'), 'line 1.*<file> <label>'),
    (dict(listing='a\0.JPEG 0\n'), 'line 1.*<file> <label>'),
    (dict(listing='a.JPEG 0\nb.JPEG 2\n'), 'line 2: label 2'),
    (dict(listing='a.JPEG -1\n'), 'line 1: label -1'),
    (dict(listing='a.JPEG 0\nc.JPEG 1\n'), 'the image c.JPEG is missing.*line 2'),
    (dict(listing=None), 'val.txt'),
    (dict(synsets=None), 'synsets.txt'),
    (dict(synsets=''), 'synsets.txt'),
    (dict(synsets='n00000001\n\nn00000002\n'), 'synsets.txt'),
])
def test_malformed_trees_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_images(make_tree(tmp_path, **change), 'val')


@pytest.mark.parametrize('folder', ['', 'val', 'caffe_ilsvrc12'])
def test_missing_folders_are_named(tmp_path, folder):
    tree = make_tree(tmp_path / 'tree')
    shutil.rmtree(os.path.join(tree, folder))
    with pytest.raises(InputError, match='no folder %s' % os.path.join(tree, folder).rstrip('/')):
        read_images(tree, 'val')


def test_binary_list_is_refused(tmp_path):
    tree = make_tree(tmp_path)
    (tmp_path / 'caffe_ilsvrc12' / 'val.txt').write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(InputError, match='val.txt'):
        read_images(tree, 'val')
