"""Preprocessing bit for bit as recorded, and augmentation distributed as the recipe says."""
import concurrent.futures
import hashlib
import math

import cv2
import numpy as np
import pytest
from test_pictures import picture

import augmentation
from recorded.record import noise_digest, photographs


def test_recorded_preprocessing_bit_for_bit(recorded):
    record, arrays = recorded
    assert [noise_digest(entry['seed'], entry['height'], entry['width']) for entry in record['noise']] == [
        entry['sha256'] for entry in record['noise']]
    photos = photographs()
    assert np.array_equal([photos[name] for name in record['photos']], arrays['photos'])


def test_the_version_of_the_preprocessing_stands_for_its_pixels(recorded):
    """Whoever changes the pixels that ``eval_images`` returns increases PREPROCESSING_VERSION, and records the new digest here."""
    digests = {1: 'e4155c6de3df57a977f6305bc1b3e5ea59500df4db047e81c85b1130152972bd'}
    photos = photographs()
    pixels = np.stack([photos[name] for name in recorded[0]['photos']])
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digests[augmentation.PREPROCESSING_VERSION]


@pytest.mark.parametrize('size, shorter', [(224, 256), (128, 146), (160, 183), (192, 219), (225, 257), (384, 439)])
def test_preprocessing_is_that_of_tensorpack(size, shorter):
    """Of any size and shape, also where an edge is half a pixel."""
    from tensorpack.dataflow import imgaug
    theirs = imgaug.AugmentorList([imgaug.ResizeShortestEdge(shorter, cv2.INTER_CUBIC), imgaug.CenterCrop((size, size))])
    rng = np.random.RandomState(0)
    for height, width in [(224, 224), (256, 256), (257, 256), (375, 500), (500, 333), (1, 1), (30, 301), (301, 30), (511, 767)]:
        image = rng.randint(0, 256, (height, width, 3)).astype(np.uint8)
        assert np.array_equal(augmentation.eval_crop(image, size), theirs.augment(image))


def test_samples_have_the_size_that_is_asked_for(monkeypatch):
    """The crop is resized to it and, where no crop fits, the shorter side, as in Tensorpack."""
    from tensorpack.dataflow import imgaug
    image = picture(150, 200)
    monkeypatch.setattr(augmentation, 'random_colours', lambda mean, rng: np.eye(3, 4))
    whole = imgaug.AugmentorList([imgaug.ResizeShortestEdge(193, cv2.INTER_CUBIC), imgaug.CenterCrop(193)]).augment(image)
    for crop, expected in [((20, 10, 90, 80), cv2.resize(image[10:90, 20:110], (193, 193), interpolation=cv2.INTER_CUBIC)),
                           (None, whole)]:
        monkeypatch.setattr(augmentation, 'random_crop', lambda *args, crop=crop: crop)
        sample = augmentation.augment(image, np.random.RandomState(0), 0.3, 193)
        assert np.array_equal(sample, expected) or np.array_equal(sample, expected[:, ::-1])


def test_colours_are_augmented_as_the_three_steps_one_by_one():
    image = picture(224, 224) // 4 + 96    # away from 0 and 255, where only one of the two would clip
    for seed in range(12):
        rng = np.random.RandomState(seed)
        result = augmentation.augment(image, rng, 1.0)
        rng, ready = np.random.RandomState(seed), None
        for _ in range(10):
            aspect = [rng.uniform(1.0, 1), rng.uniform(0.75, 1.333)][1]
            w, h = int(np.sqrt(224 * 224 * aspect) + 0.5), int(np.sqrt(224 * 224 / aspect) + 0.5)
            if rng.uniform() < 0.5:
                w, h = h, w
            if w <= 224 and h <= 224:
                ready = (rng.randint(224 - w + 1), rng.randint(224 - h + 1))
                break
        colours = image.astype(np.float64)
        grey = np.array([0.114, 0.587, 0.299])
        for change in rng.permutation(3):
            factor = rng.uniform(0.6, 1.4)
            if change == 0:
                colours = colours * factor
            elif change == 1:
                colours = factor * colours + (1 - factor) * colours.dot(grey).mean()
            else:
                colours = factor * colours + (1 - factor) * colours.dot(grey)[:, :, None]
        if rng.uniform() < 0.5:
            colours = colours[:, ::-1]
        assert ready in (None, (0, 0))    # the whole image, so that there is no resizing
        assert np.abs(np.clip(colours, 0, 255) - result).max() <= 1.5


def test_crops_have_the_published_distribution():
    """10,000 crops against 10,000 of Tensorpack's augmentor, which the recipe names: Kolmogorov-Smirnov on their measures."""
    from scipy.stats import ks_2samp
    from tensorpack.dataflow import imgaug
    height, width, count = 375, 500, 10000
    for smallest_area in (0.08, 0.49):
        rng = np.random.RandomState(1)
        ours = [augmentation.random_crop(height, width, rng, smallest_area) for _ in range(count)]
        theirs, augmentor = [], imgaug.GoogleNetRandomCropAndResize((smallest_area, 1.0), (0.75, 1.333), 224)
        augmentor.rng = np.random.RandomState(2)
        blank = np.zeros((height, width, 3), np.uint8)
        for _ in range(count):
            crop = augmentor.get_transform(blank).tfms[0]
            theirs.append((crop.x0, crop.y0, crop.w, crop.h) if hasattr(crop, 'x0') else None)
        missing = [sum(crop is None for crop in crops) for crops in (ours, theirs)]
        assert abs(missing[0] - missing[1]) < 5 * math.sqrt(max(missing) + 1)
        for measure in (lambda x, y, w, h: w * h, lambda x, y, w, h: w / h, lambda x, y, w, h: x / (width - w + 1.0),
                        lambda x, y, w, h: y / (height - h + 1.0)):
            samples = [[measure(*crop) for crop in crops if crop is not None] for crops in (ours, theirs)]
            assert ks_2samp(*samples).pvalue > 1e-3
        areas = [crop[2] * crop[3] / (height * width) for crop in ours if crop is not None]
        assert min(areas) > smallest_area * 0.99 and max(areas) <= 1


def test_colours_have_the_published_distribution():
    """The factors are found in 10,000 maps: on greys, saturation does nothing; between two colours, contrast has no offset."""
    rng = np.random.RandomState(3)
    mean, grey = np.array([100.0, 110.0, 120.0]), np.array([0.114, 0.587, 0.299])
    maps = [augmentation.random_colours(mean, rng) for _ in range(10000)]
    # (1, 1, 1) is scaled by brightness and contrast, a colour without grey by all three.
    both = np.array([m[:, :3].dot(np.ones(3))[0] for m in maps])
    colour = np.cross(grey, [1.0, 2.0, 3.0])
    saturation = np.array([m[:, :3].dot(colour).dot(colour) / colour.dot(colour) for m in maps]) / both
    for factors, low, high in ((saturation, 0.6, 1.4), (both, 0.36, 1.96)):
        assert low - 1e-9 <= factors.min() < low * 1.05 and high * 0.95 < factors.max() <= high + 1e-9
        assert abs(factors.mean() - 1) < 0.01
    assert abs(saturation.var() - 0.8 ** 2 / 12) < 0.002    # uniform
    assert abs(both.var() - ((0.8 ** 2 / 12 + 1) ** 2 - 1)) < 0.005    # a product of two such
    # In which order, tells the offset: contrast pulls to the mean grey before or after it was made brighter; three, evenly.
    after = np.array([m[:, 3].dot(grey) for m in maps])
    assert abs(after.mean()) < 0.7 and after.std() > 20


def test_half_of_the_samples_are_flipped():
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, 112:] = 200    # dark on the left
    rng, flipped = np.random.RandomState(4), 0
    for _ in range(10000):
        sample = augmentation.augment(image, rng, 0.9)[112, :, 0].astype(int)
        flipped += sample[:20].sum() > sample[-20:].sum()
    assert abs(flipped - 5000) < 5 * 50


def test_a_fresh_thread_computes_the_same(recorded):
    """OpenCV keeps its settings for each thread: none may depend on what was read in it before."""
    entry = recorded[0]['noise'][0]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(noise_digest, entry['seed'], entry['height'], entry['width']).result() == entry['sha256']
        noise = np.random.RandomState(0).randint(0, 256, (300, 400, 3)).astype(np.uint8)
        here = augmentation.augment(noise, np.random.RandomState(1), 0.3)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert np.array_equal(pool.submit(augmentation.augment, noise, np.random.RandomState(1), 0.3).result(), here)
