"""Evaluation's crop in the graph against OpenCV's."""
from tf_compat import tf

import numpy as np
import pytest

from augmentation import eval_crop
from evaluation.resize import evaluation_crop


@pytest.mark.parametrize('image_size', [224, 128, 225, 384])
def test_pictures_of_any_size_are_cropped_as_opencv_does(image_size):
    """Noise has the sharpest edges; sizes are tall and wide, odd and even, enlarged and reduced, and those that are kept."""
    rng = np.random.RandomState(0)
    differing = 0
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.uint8, [None, None, None, 3])
        crop = evaluation_crop(images, image_size)
        for height, width in (1, 1), (7, 300), (256, 256), (224, 224), (255, 257), (256, 999), (500, 333), (1031, 770), (40, 41):
            pictures = rng.randint(0, 256, (2, height, width, 3)).astype(np.uint8)
            found = session.run(crop, {images: pictures})
            expected = np.stack([eval_crop(picture, image_size) for picture in pictures])
            difference = np.abs(found - expected.astype(int))
            assert found.dtype == np.uint8 and found.shape == expected.shape and difference.max() <= 1, (height, width)
            differing += (difference > 0).mean() / 9
    assert differing < 1e-4
