"""Which files and labels a tree has, and what is wrong with one."""
import os
import shutil

import pytest

from command_line import InputError
from dataset import find_images, read_images
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
    (dict(listing='a\0.JPEG 0\n'), 'line 1: it has a NUL character'),
    (dict(listing='a.JPEG %s\n' % ('1' * 4000)), 'line 1.*<file> <label>'),
    (dict(listing='%s.JPEG 1\n' % ('a' * 10 ** 7)), 'line 1: it has 10000007 characters'),
    (dict(synsets='n00000001\nn0\0\n'), 'line 2: it has a NUL character'),
    (dict(listing='a.JPEG 1\nb.JPEG 2\n'), 'line 2: label 2'),
    (dict(listing='a.JPEG 0\nb.JPEG 2\n'), 'line 2: label 2'),
    (dict(listing='a.JPEG -1\n'), 'line 1: label -1'),
    (dict(listing='a.JPEG 0\nc.JPEG 1\n'), 'the image c.JPEG is missing.*line 2'),
    (dict(listing=None), 'val.txt'),
    (dict(synsets=None), 'synsets.txt'),
    (dict(synsets=''), 'synsets.txt'),
    (dict(synsets='\n\n'), 'synsets.txt'),
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


def test_empty_lines_at_the_end_are_what_editors_write(tmp_path):
    tree = make_tree(tmp_path, listing='a.JPEG 0\r\nb.JPEG 1\n\n \n', synsets='n00000001\nn00000002\n\n')
    assert [label for _, label in read_images(tree, 'val')] == [0, 1]


@pytest.mark.parametrize('listing, message', [
    ('b.JPEG 0\n', 'label 0 is the class n00000001, but b.JPEG is in the folder of n00000002, the class of label 1: labels'),
    ('n00000002/b.JPEG 0\n', 'line 1: label 0 is the class n00000001, but n00000002/b.JPEG is in the folder of n00000002'),
    ('n00000001/c.JPEG 1\n', 'the class of label 0: are labels counted from 1')])
def test_labels_that_contradict_the_folder_are_noticed(tmp_path, listing, message):
    with pytest.raises(InputError, match=message):
        read_images(make_tree(tmp_path, listing=listing), 'val')


def test_pictures_in_folders_are_found_by_their_content(tmp_path, capsys):
    tree = make_tree(tmp_path / 'tree')
    shutil.move(os.path.join(tree, 'val'), str(tmp_path / 'folder'))
    jpeg, folder = (tmp_path / 'folder' / 'a.JPEG').read_bytes(), tmp_path / 'folder'
    for name in ('no extension', 'x.jfif', '.hidden.gif'):
        (folder / name).write_bytes(jpeg)
    for name, content in (('._a.jpg', b'\0\5\x16\7\0\2\0\0Mac OS X'), ('.DS_Store', b'\0\0\0\1Bud1'), ('empty.jpg', b''),
                          ('Thumbs.db', b'\xd0\xcf\x11\xe0'), ('BMW.txt', b'BMW is no bitmap'), ('P5.txt', b'P5 is none either')):
        (folder / name).write_bytes(content)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'l.jpg').write_bytes(jpeg)
    for target, name in (('elsewhere', 'link'), ('folder', 'circle'), ('nowhere', 'broken link.jpg')):
        os.symlink(str(tmp_path / target), str(folder / name))
    if hasattr(os, 'mkfifo'):
        os.mkfifo(str(folder / 'pipe.jpg'))
    found = find_images([str(folder)])
    assert [os.path.relpath(path, str(folder)) for path in found] == [
        '.hidden.gif', 'a.JPEG', 'link/l.jpg', 'n00000002/b.JPEG', 'no extension', 'x.jfif']
    said = capsys.readouterr().err
    with open(str(folder / 'heic.heic'), 'wb') as f:
        f.write(b'\0\0\0\x18ftypheic' + bytes(100))
    assert len(find_images([str(folder)])) == 6 and 'left out: 7 files' in capsys.readouterr().err
    assert said.startswith('warning: left out: 6 files that this OpenCV does not read as pictures: ')
    assert '._a.jpg' in said and said.count('\n') == 1
    with pytest.raises(InputError, match='has no picture: it has 0 other files'):
        (tmp_path / 'empty').mkdir()
        find_images([str(tmp_path / 'empty')])
