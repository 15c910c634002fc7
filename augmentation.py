"""What becomes of one picture before the network: evaluation's crop; training's random crop, colours and flip. Without TensorFlow.

Pictures are uint8 (H, W, 3) in BGR, as OpenCV reads them.
"""
import math
from itertools import compress

import cv2
import numpy as np

from command_line import InputError
from pictures import PictureReader, fix_opencv
from recipe import IMAGE_SIZE, shorter_side

# The version of ``eval_images``: to be increased with any change of the pixels it returns, so that no cache keeps the old ones.
# tests/test_augmentation.py ties it to recorded pixels.
PREPROCESSING_VERSION = 1
GREY = np.array([0.114, 0.587, 0.299])    # share of blue, green and red in the brightness of a pixel


def resize_shortest_edge(image, size):
    """`image` with its shorter side resized to `size` pixels, cubic (as Tensorpack's ``imgaug.ResizeShortestEdge``)."""
    fix_opencv()
    height, width = image.shape[:2]
    scale = size * 1.0 / min(height, width)
    new = (size, int(scale * width + 0.5)) if height < width else (int(scale * height + 0.5), size)
    return cv2.resize(image, new[::-1], interpolation=cv2.INTER_CUBIC)


def center_crop(image, size):
    """The central `size` x `size` pixels of `image` (as Tensorpack's ``imgaug.CenterCrop``)."""
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def eval_crop(image, size=IMAGE_SIZE):
    """A picture preprocessed for evaluation, uint8 (size, size, 3): shortest edge to 256/224 of that, then the centre."""
    return center_crop(resize_shortest_edge(image, shorter_side(size)), size)


def eval_images(paths, size=IMAGE_SIZE):
    """Pictures from files, preprocessed for evaluation: uint8 (N, size, size, 3) BGR. Raises InputError: see PictureReader."""
    return kept_images(paths, PictureReader(image_size=size))[0]


def kept_images(paths, reader):
    """As `eval_images`, of those that a PictureReader does not leave out, in its `image_size`.

    Returns:
        (np.ndarray, np.ndarray): those that are not left out, uint8 (N, size, size, 3) BGR, and which they are, bool (paths,).
    """
    def crop(path):    # before the next picture is read: several large ones take much memory, and new memory takes time
        picture = reader(path)
        return None if picture is None else eval_crop(picture, size)

    size = reader.image_size
    crops = [crop(path) for path in paths]
    kept = np.array([crop is not None for crop in crops])
    return np.stack(list(compress(crops, kept))) if kept.any() else np.empty((0, size, size, 3), np.uint8), kept


# -------------------------------------------------------------------------------------------------------------- training

def random_crop(height, width, rng, smallest_area):
    """A crop of an image of `height` x `width` pixels, (x, y, width, height), or None if none of ten tries fits."""
    for _ in range(10):
        area = rng.uniform(smallest_area, 1) * height * width
        aspect = rng.uniform(0.75, 1.333)
        w, h = int(math.sqrt(area * aspect) + 0.5), int(math.sqrt(area / aspect) + 0.5)
        if rng.uniform() < 0.5:
            w, h = h, w
        if 0 < h <= height and 0 < w <= width:
            return rng.randint(width - w + 1), rng.randint(height - h + 1), w, h
    return None


def random_colours(mean, rng):
    """Brightness, contrast and saturation in random order, each by a factor from 0.6 to 1.4, as one affine map.

    All three are linear in the colours of a pixel, so that they can be applied at once: nothing is clipped in between, and no
    copy in float is made.

    Args:
        mean (np.ndarray): mean colour of the image, (3,), BGR.
    Returns:
        np.ndarray: (3, 4), for ``cv2.transform``: a matrix and, in the last column, an offset.
    """
    matrix, offset = np.eye(3), np.zeros(3)    # colour -> matrix . colour + offset
    for change in rng.permutation(3):
        factor = rng.uniform(0.6, 1.4)
        if change == 0:      # brightness
            matrix, offset = factor * matrix, factor * offset
        elif change == 1:    # contrast, about the mean grey
            middle = GREY.dot(matrix.dot(mean) + offset)
            matrix, offset = factor * matrix, factor * offset + (1 - factor) * middle
        else:                # saturation, about the pixel's grey
            saturate = factor * np.eye(3) + (1 - factor) * np.tile(GREY, (3, 1))
            matrix, offset = saturate.dot(matrix), saturate.dot(offset)
    return np.column_stack([matrix, offset])


def augment(image, rng, smallest_area, size=IMAGE_SIZE):
    """A training sample, uint8 (size, size, 3) BGR: random area crop, colours in random order, horizontal flip.

    Args:
        image (np.ndarray): uint8 (H, W, 3) BGR.
        rng (np.random.RandomState): the only source of chance.
        smallest_area (float): the smallest share of the image's area that a crop may have.
    """
    fix_opencv()
    crop = random_crop(image.shape[0], image.shape[1], rng, smallest_area)
    if crop is not None:
        x, y, w, h = crop
        image = cv2.resize(image[y:y + h, x:x + w], (size, size), interpolation=cv2.INTER_CUBIC)
    else:
        image = center_crop(resize_shortest_edge(image, size), size)
    image = cv2.transform(image, random_colours(np.array(cv2.mean(image)[:3]), rng))
    return cv2.flip(image, 1) if rng.uniform() < 0.5 else image


# ----------------------------------------------------------------------------------------------------- in worker processes

class EvalSample:
    """Fills an array with a picture as evaluation sees it: a function for processes.ProcessMap.

    Args:
        reader (PictureReader): what reads it; in a worker process, a ReaderInWorker.
    """

    def __init__(self, reader):
        self.reader = reader

    def __call__(self, item, out):
        """The label of an `item`, and what the reader notes for another; None where it leaves the picture out."""
        self.reader.notes = []
        label = self.fill(item, out)
        return None if label is None else (label, self.reader.notes)

    def fill(self, item, out):
        """Fills uint8 (size, size, 3) with the picture of an `item`, (path, label); returns the label, or None."""
        path, label = item
        picture = self.reader(path)
        if picture is None:
            return None
        out[:] = eval_crop(picture, self.reader.image_size)
        return label


class TrainSample(EvalSample):
    """As EvalSample, as training sees a picture. An item is (path, label, seed).

    Args:
        smallest_area (float): see `augment`.
        replace: function of a RandomState to the (path, label) that comes in place of a picture that the reader leaves out.
    """

    def __init__(self, reader, smallest_area, replace=None):
        super(TrainSample, self).__init__(reader)
        self.smallest_area, self.replace = smallest_area, replace
        self.rng = np.random.RandomState(0)    # making one for each picture takes ten times as long as seeding this one

    def fill(self, item, out):
        path, label, seed = item
        self.rng.seed(seed)
        for _ in range(100):
            picture = self.reader(path)
            if picture is not None:
                out[:] = augment(picture, self.rng, self.smallest_area, self.reader.image_size)
                return label
            if self.replace is None:
                return None
            path, label = self.replace(self.rng)
        raise InputError("100 training images in a row are broken: look at the data")
