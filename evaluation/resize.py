"""Evaluation's crop in the graph: what OpenCV does to a picture, step by step in its integers.

Operations of TensorFlow 1.13.1, without tf_compat: the processes of tools.export that convert graphs use it too.
"""
import tensorflow

from recipe import shorter_side

BITS = 11                    # OpenCV's coefficients, as integers, are multiples of 2**-11
CROP = 'crop/'               # what the names of all these operations start with
PIXELS = CROP + 'pixels'     # what comes out
tf = tensorflow.compat.v1


def cubic_taps(size, shorter, kept):
    """Where the central `kept` pixels of a side come from, once the picture's `shorter` side is resized for evaluation.

    Args:
        size, shorter (tf.Tensor): pixels of the sides, int32 ().
        kept (int): the image size of the network.

    Returns:
        list: four pairs of tensors (kept,): the position of a pixel, int32, and its coefficient, int32 in units of 2**-11. The
        kernel is cubic with a = -0.75, between pixel centres, and repeats the pixels at the edge (cv2.resize with INTER_CUBIC).
    """
    size64 = tf.cast(size, tf.float64)
    resized = tf.cast(float(shorter_side(kept)) / tf.cast(shorter, tf.float64) * size64 + 0.5, tf.int32)
    pixels = tf.floordiv(resized - kept, 2) + tf.constant(list(range(kept)))
    ratio = size64 / tf.cast(resized, tf.float64)
    centre = tf.cast((tf.cast(pixels, tf.float64) + 0.5) * ratio - 0.5, tf.float32)
    start = tf.floor(centre)
    x, a = centre - start, -0.75
    weights = [((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a, ((a + 2) * x - (a + 3)) * x * x + 1,
               ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1]
    weights.append(1 - weights[0] - weights[1] - weights[2])
    return [(tf.maximum(tf.minimum(tf.cast(start, tf.int32) + offset, size - 1), 0),
             tf.cast(tf.round(weight * 2 ** BITS), tf.int32)) for offset, weight in zip((-1, 0, 1, 2), weights)]


def resized(images, size, shorter, kept, axis):
    """The central pixels of one axis of int32 (N, ..., 3), times 2**11; `size`, `shorter` and `kept` as of ``cubic_taps``."""
    shape = [kept] + [1] * (3 - axis)
    before, start, end, after = [tf.cast(tf.gather(images, position, axis=axis), tf.int32) * tf.reshape(weight, shape)
                                 for position, weight in cubic_taps(size, shorter, kept)]
    return before + start + end + after


def evaluation_crop(images, image_size):
    """Pictures of one size, uint8 (N, H, W, 3), resized and cropped for evaluation: uint8 (N, image_size, image_size, 3).

    As augmentation.eval_crop, but for values whose exact result lies between two levels: OpenCV rounds some of these down.
    """
    with tf.name_scope(CROP):
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        shorter = tf.minimum(height, width)
        pixels = resized(resized(images, height, shorter, image_size, axis=1), width, shorter, image_size, axis=2)
        rounded = tf.floordiv(pixels + 2 ** (2 * BITS - 1), 2 ** (2 * BITS))
        return tf.cast(tf.maximum(tf.minimum(rounded, 255), 0), tf.uint8, name='pixels')
