"""Dataflows: their order, their batches, and that they repeat with a seed."""
import itertools
import time

import numpy as np
import pytest

import augmentation
import imagenet_utils
from command_line import InputError
from dataset import read_images
from pictures import BrokenPicture, PictureReader, read_image
from trees import make_tree


def test_threads_keep_the_order_and_raise():
    def slow(datapoint):
        time.sleep(0.01 * (5 - datapoint[0] % 5))
        if datapoint[0] == 37:
            raise InputError('thirty-seven')
        return [datapoint[0] * 2]

    assert [dp[0] for dp in imagenet_utils.in_order(slow, [[i] for i in range(30)], 3)] == [2 * i for i in range(30)]
    with pytest.raises(InputError, match='thirty-seven'):
        list(imagenet_utils.in_order(slow, [[i] for i in range(60)], 3))


def test_evaluation_dataflow_ends_with_a_smaller_batch(tmp_path):
    images = read_images(make_tree(tmp_path), 'val') * 4
    ds = imagenet_utils.eval_dataflow(images, 3)
    ds.reset_state()
    batches = list(ds)
    assert [len(image) for image, _ in batches] == [3, 3, 2]
    assert batches[0][0].dtype == np.uint8 and batches[0][0].shape[1:] == (224, 224, 3)
    assert np.concatenate([label for _, label in batches]).tolist() == [0, 1] * 4
    ds = imagenet_utils.eval_dataflow(images, 3, endless=True)    # a round after the other
    assert len(ds) == 3 and [len(image) for image, _ in itertools.islice(iter(ds), 7)] == [3, 3, 2, 3, 3, 2, 3]


def test_shuffled_images_are_each_seen_once_an_epoch_and_go_on_where_they_were_left(tmp_path):
    images = [[str(i), i] for i in range(10)]

    def seen(count, *args):
        stream = iter(imagenet_utils.ShuffledImages(images, *args))
        return [(path, seed) for path, _, seed in itertools.islice(stream, count)]

    whole = seen(40, 7, 4)
    orders = [[path for path, _ in whole[start:start + 10]] for start in range(0, 40, 10)]
    assert all(sorted(order) == [str(i) for i in range(10)] for order in orders) and len(set(map(tuple, orders))) == 4
    assert len(set(seed for _, seed in whole)) == 40    # no two samples are augmented alike
    assert seen(16, 7, 4, 6) == whole[24:]    # from step 6
    assert seen(40, 8, 4) != whole
    workers = [seen(20, 7, 4, 0, worker, 2) for worker in (0, 1)]
    both = [sample for step in range(10) for worker in workers for sample in worker[2 * step:2 * step + 2]]
    assert both == whole    # together, what one worker would see


def test_training_dataflow_is_the_seeds_whatever_the_number_of_workers(tmp_path):
    """30 batches, each sample with a RandomState of its own, made one after the other."""
    images = read_images(make_tree(tmp_path), 'val') * 8

    def batches(seed, processes):
        ds = imagenet_utils.train_dataflow(imagenet_utils.ShuffledImages(images, seed, 5), 0.08, processes)
        ds.reset_state()
        return list(itertools.islice(iter(ds), 30))

    def one_by_one(seed):
        for path, label, seeds in imagenet_utils.ShuffledImages(images, seed, 5):
            yield augmentation.augment(read_image(path), np.random.RandomState(seeds), 0.08), label

    expected = list(itertools.islice(one_by_one(1), 150))
    for processes in (1, 3):
        made = batches(1, processes)
        assert made[0][0].shape == (5, 224, 224, 3) and made[0][0].dtype == np.uint8
        assert np.array_equal(np.concatenate([pictures for pictures, _ in made]), np.stack([picture for picture, _ in expected]))
        assert np.concatenate([labels for _, labels in made]).tolist() == [label for _, label in expected]
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(made, batches(2, 2)))


def test_notes_of_the_workers_are_printed_once(tmp_path, capsys):
    images = read_images(make_tree(tmp_path), 'val')
    padded = str(tmp_path / 'padded.JPEG')
    with open(images[0][0], 'rb') as whole, open(padded, 'wb') as f:
        f.write(whole.read()[:-2])    # without its end
    ds = imagenet_utils.eval_dataflow([[padded, 0]] * 20, 5, PictureReader('accept'))
    ds.reset_state()
    assert len(ds) == 4 and sum(len(labels) for _, labels in ds) == 20
    assert capsys.readouterr().err.count('padded.JPEG') == 1


def test_broken_pictures_are_left_out_of_training_and_validation(tmp_path):
    """In training another takes the place, the same one in each run with a seed."""
    images = read_images(make_tree(tmp_path), 'val') * 8
    broken = str(tmp_path / 'cut.JPEG')
    with open(images[0][0], 'rb') as whole, open(broken, 'wb') as f:
        f.write(whole.read()[:-40])
    images[3] = images[8] = [broken, 7]

    def batches(rule):
        ds = imagenet_utils.train_dataflow(imagenet_utils.ShuffledImages(images, 1, 5), 0.08, 2, PictureReader(rule))
        ds.reset_state()
        return list(itertools.islice(iter(ds), 8))
    first, again = batches('skip'), batches('skip')
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(first, again))
    assert set(np.concatenate([labels for _, labels in first])) == {0, 1}
    assert 7 in np.concatenate([labels for _, labels in batches('accept')])
    with pytest.raises(BrokenPicture, match='cut.JPEG'):
        batches('stop')
    ds = imagenet_utils.eval_dataflow(images, 5, PictureReader('skip'))
    ds.reset_state()
    assert np.concatenate([labels for _, labels in ds]).tolist() == [label for _, label in images if label != 7]
    images[:] = [[broken, 7]]
    with pytest.raises(InputError, match='100 training images in a row'):
        batches('skip')
