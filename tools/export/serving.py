"""Pictures in the graph, as servers get them: from the bytes of a file to the pixels that evaluation takes, and to class names.

In operations that TensorFlow 1.13.1 has too.
"""
import tensorflow

from evaluation.resize import CROP, PIXELS, evaluation_crop

tf = tensorflow.compat.v1


def decode(content, rgb, size):
    """The bytes of a JPEG or PNG file, a string (), as evaluation takes it: uint8 (size, size, 3), BGR unless `rgb`.

    JPEGs are decoded as OpenCV does it. EXIF is ignored, and an alpha channel dropped.
    """
    image = tf.image.decode_jpeg(content, channels=3, dct_method='INTEGER_ACCURATE', fancy_upscaling=True)    # and PNG
    image = evaluation_crop(image[tf.newaxis], size)[0]
    return image if rgb else image[..., ::-1]


def decode_all(contents, rgb, size):
    """``decode`` of each string in `contents`, (N,): uint8 (N, size, size, 3)."""
    images = tf.map_fn(lambda content: decode(content, rgb, size), contents, dtype=tf.uint8)
    return tf.reshape(images, [-1, size, size, 3])


def entrance(rgb, any_size, size, name):
    """Where pictures come into a network, as the bytes of files or as images: the one or the other is fed.

    Args:
        rgb, any_size (bool): flags of tools.export.
        size (int): the network's, in pixels.
        name (str): of the placeholder for images.
    Returns:
        (tf.Tensor, tf.Tensor, dict): the strings (N,), the images, and what takes the place of which tensor of the frozen graph.
    """
    if not any_size:
        contents = tf.placeholder(tf.string, [None], name='image_bytes')
        images = tf.placeholder_with_default(decode_all(contents, rgb, size), [None, size, size, 3], name=name)
        return contents, images, {name + ':0': images}
    contents = tf.placeholder_with_default(tf.constant([], tf.string), [None], name='image_bytes')
    images = tf.placeholder_with_default(tf.zeros([0, 1, 1, 3], tf.uint8), [None, None, None, 3], name=name)
    return contents, images, {PIXELS + ':0': tf.concat([evaluation_crop(images, size), decode_all(contents, rgb, size)], 0)}


def without_entrance(graph_def, name):
    """A copy of a GraphDef that lacks the placeholder `name` and the crop behind it, for others take their place."""
    result = type(graph_def)()
    result.CopyFrom(graph_def)
    del result.node[:]
    result.node.extend(node for node in graph_def.node if node.name != name and not node.name.startswith(CROP))
    return result


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
