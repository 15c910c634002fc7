"""Trees with a folder for each class: what is read, how they are split, and what is wrong with one."""
import os
import shutil

import pytest
from test_pictures import encode, picture

from command_line import InputError
from conftest import refused
from dataset import VAL_SHARE, ClassFolders, ListedTree, open_tree, position, warn_of_duplicates
from trees import make_tree

JPEG = encode(picture(), '.jpg')


def write(root, *files):
    """Pictures, or the bytes of a pair (file, bytes)."""
    for file in files:
        file, content = file if isinstance(file, tuple) else (file, JPEG)
        path = os.path.join(str(root), file)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as f:
            f.write(content)
    return str(root)


def numbered(name, count):
    return ['%s/%d.jpg' % (name, i) for i in range(count)]


def test_train_and_val(tmp_path, capsys):
    root = write(tmp_path, 'train/b/2.jpg', 'train/b/deep/er/1.x', 'train/a c/1.png', 'val/b/9', 'val/a c/8.jpg', 'test/7.jpg')
    tree = open_tree(root)
    assert tree.classes == [('a c', ''), ('b', '')] and tree.val_share is None
    assert tree.files('train') == ['a c/1.png', 'b/2.jpg', 'b/deep/er/1.x'] and tree.files('val') == ['a c/8.jpg', 'b/9']
    assert tree.images('val') == [[os.path.join(root, 'val', 'a c', '8.jpg'), 0], [os.path.join(root, 'val', 'b', '9'), 1]]
    assert capsys.readouterr().err == ''


def test_lists_win(tmp_path):
    root = make_tree(tmp_path)
    write(root, 'train/a/1.jpg', 'val/a/1.jpg')
    assert isinstance(open_tree(root), ListedTree) and open_tree(root).classes == [('n00000001', ''), ('n00000002', '')]


def test_old_pictures_stay_in_their_part_when_new_ones_come(tmp_path):
    root = write(tmp_path, *numbered('a', 200) + numbered('b', 50))
    before = open_tree(root)
    for name, count in (('a', 200), ('b', 50)):
        share = sum(file.startswith(name) for file in before.files('val')) / count
        assert abs(share - VAL_SHARE) < 0.15, name
    write(root, *['a/new %d.jpg' % i for i in range(100)] + numbered('c', 5))
    after = open_tree(root)
    assert set(before.files('train')) <= set(after.files('train')) and set(before.files('val')) <= set(after.files('val'))
    assert not set(after.files('train')) & set(after.files('val')) and len(after.files('train')) + len(after.files('val')) == 355
    larger = open_tree(root, 0.5)
    assert set(after.files('val')) < set(larger.files('val')) and larger.val_share == 0.5
    moved = shutil.move(root, root + ' elsewhere')
    assert open_tree(moved).files('val') == after.files('val')


@pytest.mark.parametrize('share', [0.001, 0.2, 0.999])
def test_each_class_is_in_both_parts(tmp_path, share):
    tree = open_tree(write(tmp_path, *[file for i in range(30) for file in numbered('class %d' % i, 2)]), share)
    for part in ('train', 'val'):
        assert [label for _, label in tree.images(part)] == list(range(30))


def test_positions_are_even():
    positions = [position('a/%d.jpg' % i) for i in range(10000)]
    for share in (0.1, 0.2, 0.5):
        assert abs(sum(p < share for p in positions) / 10000 - share) < 0.02


def test_what_is_no_picture_is_counted_and_named(tmp_path, capsys):
    root = write(tmp_path, *numbered('a', 3) + numbered('b', 3) + [
        'a/.hidden.jpg', '.git/c.jpg', '__MACOSX/a/._1.jpg', 'loose.jpg', ('a/._1.jpg', b'\0\5\x16\7'),
        ('a/Thumbs.db', b'\xd0\xcf'), ('b/notes.txt', b'BMW'), ('b/empty.jpg', b'')])
    if hasattr(os, 'mkfifo'):
        os.mkfifo(os.path.join(root, 'b', 'pipe.jpg'))
    os.symlink('nowhere', os.path.join(root, 'b', 'link.jpg'))
    tree = open_tree(root)
    assert sorted(tree.files('train') + tree.files('val')) == numbered('a', 3) + numbered('b', 3)
    said = capsys.readouterr().err
    assert said.startswith('warning: left out: 10 files that are hidden, ') and said.count('\n') == 1 and '.git' in said


def test_links_are_followed_and_circles_refused(tmp_path):
    root = write(tmp_path / 'root', *numbered('a', 2))
    write(tmp_path / 'elsewhere', '1.jpg', '2.jpg')
    os.symlink(str(tmp_path / 'elsewhere'), os.path.join(root, 'b'))
    os.symlink(str(tmp_path / 'elsewhere'), os.path.join(root, 'a', 'more'))
    tree = open_tree(root)
    assert len(tree.files('train') + tree.files('val')) == 6
    os.symlink(root, os.path.join(root, 'a', 'circle'))
    with pytest.raises(InputError, match='the folder .*a/circle.* is in itself, by a link'):
        open_tree(root)


@pytest.mark.parametrize('name', [b'caf\xe9', b'new\nline', '日本'.encode(), b'<img src=x onerror=alert(1)>', b'%s \\', b'-a'])
def test_any_name(tmp_path, name):
    name = os.fsdecode(name)
    tree = open_tree(write(tmp_path, *numbered(name, 2) + numbered('z' + name, 2)))
    assert {name for name, _ in tree.classes} == {name, 'z' + name}
    assert all(os.path.isfile(path) for part in ('train', 'val') for path, _ in tree.images(part))


def test_a_class_may_be_called_train(tmp_path):
    tree = open_tree(write(tmp_path, *numbered('bus', 2) + numbered('train', 2)))
    assert [name for name, _ in tree.classes] == ['bus', 'train'] and isinstance(tree, ClassFolders)


def test_a_validation_part_alone_can_be_evaluated(tmp_path):
    tree = open_tree(write(tmp_path, *numbered('val/a', 2) + numbered('val/b', 2)))
    assert len(tree.images('val')) == 4
    with pytest.raises(InputError, match='there is no folder .*train'):
        tree.images('train')


TREES = {
    'empty class': (numbered('a', 3) + numbered('b', 3) + [('c/notes.txt', b'text')], "the class 'c' has no picture in .*c: put"),
    'one picture': (numbered('a', 3) + ['b/only.jpg'],
                    "the class 'b' cannot be split, it has one picture, .*b/only.jpg: add others"),
    'class in val alone': (['train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg', 'val/b/1.jpg', 'val/c/1.jpg'],
                           "the class 'c' is in .*val alone: train/ must have all classes"),
    'one class': (numbered('a', 3), "has the folder of one class alone, 'a'"),
    'no class': (['1.jpg', '2.jpg'], 'has no folders with pictures: there must be a folder for each class'),
    'train without val': (['train/a/1.jpg', 'train/b/1.jpg', 'validation/a/1.jpg', 'validation/b/1.jpg'],
                          'has train/ and no val/: call the folder of the validation pictures val/, or name .*train, of which'),
    'nothing': ([], 'there is no folder .*tree: --data_dir must name a tree of pictures')}


@pytest.mark.parametrize('name', sorted(TREES))
def test_malformed_trees_are_refused_in_one_line(tmp_path, name):
    files, message = TREES[name]
    with pytest.raises(InputError, match=message) as error:
        open_tree(write(tmp_path / 'tree', *files))
    assert '\n' not in str(error.value)


def test_a_refusal_on_the_command_line(tmp_path):
    said = refused('--train', '--data_dir', write(tmp_path, *TREES['empty class'][0]), '--log_dir', tmp_path / 'log')
    assert said.startswith("main.py: the class 'c' has no picture")


def test_a_class_without_validation_pictures_is_named(tmp_path, capsys):
    open_tree(write(tmp_path, 'train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg'))
    assert "val has no pictures of 1 classes, such as 'b'" in capsys.readouterr().err


def test_duplicates_across_the_split_are_reported(tmp_path, capsys):
    other = encode(picture()[::-1], '.jpg')
    root = write(tmp_path, 'train/a/1.jpg', ('train/b/1.jpg', other), ('val/a/1.jpg', other), ('val/b/2.jpg', other + b'\0'))
    tree = open_tree(root)
    warn_of_duplicates(tree.images('train'), tree.images('val'))
    said = capsys.readouterr().err
    assert said.startswith('warning: 1 of the 2 validation pictures are training pictures too, such as ') and said.count('\n') == 1
