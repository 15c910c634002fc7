"""The GhostNets of gluoncv2, chainercv2 and tf2cv, for test_foreign_files.py. A process of its own, with CPython 3.7.

    python tests/tools/their_files.py make ENDING WIDTH STATE IMAGES.npy LOGITS.npy
    python tests/tools/their_files.py load ENDING WIDTH STATE IMAGES.npy LOGITS.npy

`make` saves a network with random weights and BN statistics, `load` takes one that is there, both as their library does. Then the
logits for RGB images (N, H, W, 3) are saved.
"""
import re
import sys

import numpy as np


def random_like(name, value, rng):
    """Small weights, BN statistics and factors as training leaves them, and gates that are partly open.

    Gates that are a step from 0 to 1 amplify rounding by a hundred times.
    """
    if re.search('se[./]conv2[./](conv/)?(b$|bias)', name):
        return rng.uniform(0.3, 0.7, value.shape).astype('float32')
    if name.endswith(('gamma', 'var', 'variance:0')):
        return rng.uniform(0.5, 1.5, value.shape).astype('float32')
    fan_in = value[0].size if value.ndim == 4 else 100.0
    if name.endswith('kernel:0'):
        fan_in = value[..., 0].size if 'depthwise' not in name else value[:, :, 0, 0].size
    return (rng.standard_normal(value.shape) * (0.5 / fan_in if value.ndim == 4 else 0.01) ** 0.5).astype('float32')


def gluon(job, width, path, images):
    import mxnet as mx
    from gluoncv2.models.ghostnet import get_ghostnet
    net = get_ghostnet(width_scale=width)
    net.initialize()
    net(mx.nd.zeros((1, 3, 224, 224)))
    if job == 'make':
        for name, parameter in sorted(net._collect_params_with_prefix().items()):
            parameter.set_data(mx.nd.array(random_like(name, parameter.data().asnumpy(), RNG)))
        net.save_parameters(path)
    else:
        net.load_parameters(path)
    return net(mx.nd.array(images.transpose(0, 3, 1, 2))).asnumpy()


def chainer(job, width, path, images):
    import chainer
    from chainercv2.models.ghostnet import get_ghostnet
    net = get_ghostnet(width_scale=width)
    if job == 'make':
        for name, parameter in sorted(net.namedparams()):
            parameter.array[...] = random_like(name, parameter.array, RNG)
        for _, link in sorted(net.namedlinks()):
            if isinstance(link, chainer.links.BatchNormalization):
                link.avg_mean[...] = random_like('mean', link.avg_mean, RNG)
                link.avg_var[...] = random_like('var', link.avg_var, RNG)
        chainer.serializers.save_npz(path, net)
    else:
        chainer.serializers.load_npz(path, net)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return net(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).array


def tf2cv(job, width, path, images):
    import tensorflow as tf
    from tf2cv.models.ghostnet import get_ghostnet
    net = get_ghostnet(width_scale=width)
    net(tf.zeros((1, 224, 224, 3)))
    if job == 'make':
        for variable in net.weights:
            variable.assign(random_like(variable.name, variable.numpy(), RNG))
        net.save_weights(path)
    else:
        net.load_weights(path)
    return net(images).numpy()


if __name__ == '__main__':
    RNG = np.random.RandomState(7)
    job, ending, width, path, images, logits = sys.argv[1:]
    np.save(logits, {'.params': gluon, '.npz': chainer, '.h5': tf2cv}[ending](job, float(width), path, np.load(images)))
