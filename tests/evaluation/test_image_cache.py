"""Preprocessed images that are kept are never stale, and never in part."""
import os
import shutil

import numpy as np
import pytest

from augmentation import eval_images
from command_line import InputError
from conftest import DIGITS_CHECKPOINT, evaluated, refused, small_disk
from dataset import read_images
from evaluation import image_cache
from pictures import PictureReader


@pytest.fixture
def tree(digits, tmp_path):
    """24 digits whose files may be changed, in a flat val/."""
    tree = tmp_path / 'tree'
    shutil.copytree(os.path.join(digits, 'caffe_ilsvrc12'), str(tree / 'caffe_ilsvrc12'))
    (tree / 'val').mkdir()
    listing = tree / 'caffe_ilsvrc12' / 'val.txt'
    listing.write_text(''.join(listing.read_text().splitlines(True)[:24]))
    found = {name: os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(digits, 'val')) for name in names}
    for line in listing.read_text().splitlines():
        shutil.copy(found[line.split()[0]], str(tree / 'val'))
    return tree


def listed(tree):
    return read_images(str(tree), 'val')


def cache(tree, capsys):
    """What comes through the cache in tree/../cache, and what was said of it."""
    images = listed(tree)
    with image_cache.cached(str(tree.parent / 'cache'), str(tree), images, PictureReader()) as read:
        result = np.concatenate([read(0, 10)[0], read(10, 24)[0]])
    assert (result == eval_images([path for path, _ in images])).all()
    return capsys.readouterr().out


def test_the_cache_is_read_while_nothing_has_changed(tree, capsys):
    assert cache(tree, capsys) == ''
    file, = (tree.parent / 'cache').glob('*.npy')
    for _ in range(2):
        assert cache(tree, capsys) == '24 images from the cache %s\n' % file
    rows = np.load(str(file), mmap_mode='r')
    assert rows['image'].shape == (24, 224, 224, 3)


def test_the_cache_notices_what_changes(tree, capsys, monkeypatch):
    cache(tree, capsys)
    path, other = listed(tree)[5][0], listed(tree)[6][0]
    # Other content of the same length at the same time as before: nobody can set the time of the last change.
    times = os.stat(path)
    with open(path, 'rb') as f:
        content = f.read()
    with open(path, 'wb') as f:
        f.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert '1 of its images have changed' in cache(tree, capsys)
    shutil.copy(other, path)
    assert '1 of its images have changed' in cache(tree, capsys)
    shutil.copy(path, path + '.new')
    os.replace(path + '.new', path)
    assert '1 of its images have changed' in cache(tree, capsys)
    assert 'from the cache' in cache(tree, capsys)
    listing = tree / 'caffe_ilsvrc12' / 'val.txt'
    lines = listing.read_text().splitlines(True)
    listing.write_text(''.join(lines[::-1]))
    assert cache(tree, capsys) == ''
    monkeypatch.setattr(image_cache, 'PREPROCESSING_VERSION', image_cache.PREPROCESSING_VERSION + 1)
    names = {image_cache.cache_file('x', str(tree), images, PictureReader(rule, image_size=size))
             for images in (listed(tree), listed(tree)[::-1]) for rule in ('stop', 'accept') for size in (224, 160)}
    assert len(names) == 8 and cache(tree, capsys) == ''
    assert len(list((tree.parent / 'cache').glob('*.npy'))) == 3


def test_a_damaged_cache_is_noticed(tree, capsys):
    cache(tree, capsys)
    file, = (tree.parent / 'cache').glob('*.npy')
    whole = file.read_bytes()
    for damaged in (b'', b'no array', whole[:len(whole) // 2], whole[:-1], whole[:8] + b'\xff' + whole[9:],
                    whole[:40] + b'(' + whole[41:]):
        file.write_bytes(damaged)
        assert 'is made again: it is damaged' in cache(tree, capsys)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match='is damaged: it has been removed, run the same command again'):
        cache(tree, capsys)
    capsys.readouterr()
    assert cache(tree, capsys) == '' and 'from the cache' in cache(tree, capsys)


def test_an_unfinished_cache_does_not_count(tree, capsys):
    folder = tree.parent / 'cache'
    images = listed(tree)
    with pytest.raises(InputError):
        with image_cache.cached(str(folder), str(tree), images, PictureReader()) as read:
            read(0, 10)
            raise InputError("an image is broken")
    assert [path.suffix for path in folder.iterdir()] == ['.lock']
    with image_cache.cached(str(folder), str(tree), images, PictureReader()) as read:    # two at once
        read(0, 24)
        with image_cache.cached(str(folder), str(tree), images, PictureReader()) as second:
            second(0, 24)
        assert 'another process makes the cache' in capsys.readouterr().out
    assert 'from the cache' in cache(tree, capsys)
    file, = folder.glob('*.npy')
    os.rename(str(file), str(file) + '.unfinished')
    assert cache(tree, capsys) == '' and file.exists() and not (folder / (file.name + '.unfinished')).exists()


def test_a_cache_that_is_made_at_the_same_time_is_left_alone(tmp_path, monkeypatch, capsys):
    """A second process begins one just when the first gives its own the name."""
    path, states, replace = str(tmp_path / 'x.npy'), np.zeros([3, 4], np.int64), os.replace
    row = image_cache.row_type(224)

    def fill(state):
        with image_cache.filling(path, states, row, PictureReader()) as rows:
            if rows is not None:
                filled = np.zeros(3, row)
                filled['state'] = state
                rows.write(0, filled)
            return rows

    def another_first(*paths):
        assert fill(5) is None
        replace(*paths)
    monkeypatch.setattr(os, 'replace', another_first)
    assert fill(1) is not None
    assert 'another process makes the cache' in capsys.readouterr().out
    monkeypatch.undo()
    assert (np.load(path)['state'] == 1).all()
    fill(2)
    assert (np.load(path)['state'] == 2).all()


def test_a_cache_that_is_truncated_while_it_is_read(tree, capsys):
    """Memory-mapped, it would end the process with SIGBUS."""
    cache(tree, capsys)
    file, = (tree.parent / 'cache').glob('*.npy')
    with pytest.raises(InputError, match='is damaged: it has been removed'):
        with image_cache.cached(str(tree.parent / 'cache'), str(tree), listed(tree), PictureReader()) as read:
            read(0, 10)
            os.truncate(str(file), 5000)
            read(10, 24)


def test_without_all_pictures_there_is_no_cache(tree, capsys):
    images = listed(tree)
    with open(images[3][0], 'wb'):
        pass
    folder, reader = tree.parent / 'cache', PictureReader('skip')
    with image_cache.cached(str(folder), str(tree), images, reader) as read:
        pictures, kept = read(0, 24)
    assert len(pictures) == 23 and kept.tolist() == [i != 3 for i in range(24)]
    assert 'is not kept' in capsys.readouterr().out and [path.suffix for path in folder.iterdir()] == ['.lock']


def test_an_inode_may_have_64_bits(tree, monkeypatch):
    found = os.stat(listed(tree)[0][0])
    fields = {name: getattr(found, name) for name in dir(found) if name.startswith('st_')}
    large = type('Stat', (), dict(fields, st_ino=2 ** 63 + 5))
    monkeypatch.setattr(os, 'stat', lambda path: large)
    assert np.array(image_cache.file_state('x'), np.int64).tolist() == [found.st_size, found.st_mtime_ns, found.st_ctime_ns, 5]


def test_cache_by_the_command_line(tree, tmp_path):
    results = []
    for k in range(2):
        said, result = evaluated(str(tree), DIGITS_CHECKPOINT, tmp_path / 'json', '--cache', tmp_path / 'kept')
        results.append((result['wrong_top1'], result['wrong_top5']))
        assert ('24 images from the cache' in said) == (k == 1)
    assert results[0] == results[1]
    for k in range(2):    # another size has a cache of its own
        said, result = evaluated(str(tree), DIGITS_CHECKPOINT, tmp_path / 'json', '--cache', tmp_path / 'kept', '--image_size', 192)
        assert ('24 images from the cache' in said) == (k == 1) and 'images of 192 x 192 pixels\n' in said
        results.append((result['wrong_top1'], result['wrong_top5']))
    assert results[2] == results[3] and result['image_size'] == 192
    flags = ['--eval', '--data_dir', tree, '--load', DIGITS_CHECKPOINT, '--cache']
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'cache'):
        assert 'cannot use the cache folder' in refused(*(flags + [folder]))
    assert '--cache goes with --eval' in refused('--predict', 'x.png', '--cache', 'x')


def test_a_cache_that_does_not_fit_on_the_disk(tree, tmp_path):
    with small_disk(tmp_path / 'small', '1m') as small:
        err = refused('--eval', '--data_dir', tree, '--load', DIGITS_CHECKPOINT, '--cache', small)
        assert 'cannot write the cache' in err and 'No space left' in err
        assert [path.suffix for path in small.iterdir()] == ['.lock']
