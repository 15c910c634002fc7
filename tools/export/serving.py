"""Pictures in the graph, as servers get them: from the bytes of a file to the pixels that evaluation takes.

What OpenCV does to a picture, step by step in its integers, in operations that TensorFlow 1.13.1 has too.
"""
import tensorflow

SHORTEST, SIZE = 256, 224    # pixels: the shorter side after resizing, and the crop; as augmentation.eval_crop
BITS = 11                    # OpenCV's coefficients, as integers, are multiples of 2**-11
tf = tensorflow.compat.v1


def cubic_taps(size, resized, first):
    """Of SIZE pixels from `first` on, of a side that is resized from `size` to `resized` pixels: where they come from.

    Returns:
        list: four pairs of tensors (SIZE,): the position of a pixel, int32, and its coefficient, int32 in units of 2**-11. The
        kernel is cubic with a = -0.75, between pixel centres, and repeats the pixels at the edge (cv2.resize with INTER_CUBIC).
    """
    ratio = tf.cast(size, tf.float64) / tf.cast(resized, tf.float64)
    centre = tf.cast((tf.cast(first + tf.range(SIZE), tf.float64) + 0.5) * ratio - 0.5, tf.float32)
    start = tf.floor(centre)
    x, a = centre - start, -0.75
    weights = [((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a, ((a + 2) * x - (a + 3)) * x * x + 1,
               ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1]
    weights.append(1 - weights[0] - weights[1] - weights[2])
    return [(tf.clip_by_value(tf.cast(start, tf.int32) + offset, 0, size - 1), tf.cast(tf.round(weight * 2 ** BITS), tf.int32))
            for offset, weight in zip((-1, 0, 1, 2), weights)]


def evaluation_crop(image):
    """`image`, uint8 (H, W, 3), with the shorter side resized to 256 pixels, and cropped to the central 224x224: uint8.

    As augmentation.eval_crop, but for values whose exact result lies between two levels: OpenCV rounds some of these down.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    scale = float(SHORTEST) / tf.cast(tf.minimum(height, width), tf.float64)
    new = [tf.cast(scale * tf.cast(side, tf.float64) + 0.5, tf.int32) for side in (height, width)]
    new_height = tf.where(height < width, SHORTEST, new[0])
    new_width = tf.where(height < width, new[1], SHORTEST)
    rows = cubic_taps(height, new_height, (new_height - SIZE) // 2)
    columns = cubic_taps(width, new_width, (new_width - SIZE) // 2)
    across = tf.add_n([tf.cast(tf.gather(image, position), tf.int32) * tf.reshape(weight, [-1, 1, 1]) for position, weight in rows])
    pixels = tf.add_n([tf.gather(across, position, axis=1) * tf.reshape(weight, [1, -1, 1]) for position, weight in columns])
    rounded = tf.floordiv(pixels + 2 ** (2 * BITS - 1), 2 ** (2 * BITS))
    return tf.cast(tf.clip_by_value(rounded, 0, 255), tf.uint8)


def decode(content, rgb):
    """The bytes of a JPEG or PNG file, a string (), as evaluation takes it: uint8 (224, 224, 3), BGR unless `rgb`.

    JPEGs are decoded as OpenCV does it. EXIF is ignored, and an alpha channel dropped.
    """
    image = tf.image.decode_jpeg(content, channels=3, dct_method='INTEGER_ACCURATE', fancy_upscaling=True)    # and PNG
    image = evaluation_crop(image)
    return image if rgb else image[..., ::-1]


def decode_all(contents, rgb):
    """``decode`` of each string in `contents`, (N,): uint8 (N, 224, 224, 3)."""
    images = tf.map_fn(lambda content: decode(content, rgb), contents, dtype=tf.uint8)
    return tf.reshape(images, [-1, SIZE, SIZE, 3])


def most_probable(output, is_logits, texts):
    """The five most probable classes (all, if there are fewer), the most probable first.

    Args:
        output (tf.Tensor): float32 (N, classes), logits or probabilities.
        texts (list of bytes): names of the classes, or None: then they are called by their labels, '0' and so on.
    Returns:
        dict: 'classes', string (N, 5), and 'probabilities', float32 (N, 5).
    """
    count = output.shape.as_list()[-1]
    probabilities = tf.nn.softmax(output) if is_logits else output
    probabilities, indices = tf.nn.top_k(probabilities, min(5, count))
    names = tf.constant(texts if texts is not None else [b'%d' % i for i in range(count)], name='classes')
    return {'classes': tf.gather(names, indices), 'probabilities': probabilities}
