"""Dataflows: their order, their batches, and that they repeat with a seed."""
import itertools
import time

import numpy as np
import pytest
from tensorpack.dataflow import DataFromList

import imagenet_utils
from command_line import InputError
from dataset import read_images
from pictures import BrokenPicture, PictureReader
from trees import make_tree


def test_ordered_map_keeps_the_order_and_raises():
    def slow(datapoint):
        time.sleep(0.01 * (5 - datapoint[0] % 5))
        if datapoint[0] == 37:
            raise InputError('thirty-seven')
        return [datapoint[0] * 2]

    ds = imagenet_utils.OrderedThreadMap(DataFromList([[i] for i in range(30)], shuffle=False), 3, slow, 7)
    ds.reset_state()
    assert [dp[0] for dp in ds] == [2 * i for i in range(30)]
    ds = imagenet_utils.OrderedThreadMap(DataFromList([[i] for i in range(60)], shuffle=False), 3, slow, 7)
    ds.reset_state()
    with pytest.raises(InputError, match='thirty-seven'):
        list(ds)


def test_evaluation_dataflow_ends_with_a_smaller_batch(tmp_path):
    images = read_images(make_tree(tmp_path), 'val') * 4
    ds = imagenet_utils.eval_dataflow(images, 3)
    ds.reset_state()
    batches = list(ds)
    assert [len(image) for image, _ in batches] == [3, 3, 2]
    assert batches[0][0].dtype == np.uint8 and batches[0][0].shape[1:] == (224, 224, 3)
    assert np.concatenate([label for _, label in batches]).tolist() == [0, 1] * 4


def test_shuffled_images_are_each_seen_once_an_epoch_and_go_on_where_they_were_left(tmp_path):
    images = [[str(i), i] for i in range(10)]

    def seen(count, *args):
        stream = iter(imagenet_utils.ShuffledImages(images, *args))
        return [(path, rng.randint(10 ** 9)) for path, _, rng in itertools.islice(stream, count)]

    whole = seen(40, 7, 4)
    orders = [[path for path, _ in whole[start:start + 10]] for start in range(0, 40, 10)]
    assert all(sorted(order) == [str(i) for i in range(10)] for order in orders) and len(set(map(tuple, orders))) == 4
    assert len(set(rng for _, rng in whole)) == 40    # no two samples are augmented alike
    assert seen(16, 7, 4, 6) == whole[24:]    # from step 6
    assert seen(40, 8, 4) != whole
    workers = [seen(20, 7, 4, 0, worker, 2) for worker in (0, 1)]
    both = [sample for step in range(10) for worker in workers for sample in worker[2 * step:2 * step + 2]]
    assert both == whole    # together, what one worker would see


def test_training_dataflow_repeats_with_a_seed(tmp_path):
    images = read_images(make_tree(tmp_path), 'val') * 8

    def batches(seed):
        ds = imagenet_utils.train_dataflow(imagenet_utils.ShuffledImages(images, seed, 5), 0.08, 2)
        ds.reset_state()
        iterator = iter(ds)
        return [next(iterator) for _ in range(8)]

    first, again, other = batches(1), batches(1), batches(2)
    assert first[0][0].shape == (5, 224, 224, 3) and first[0][0].dtype == np.uint8
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(first, again))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(first, other))


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
