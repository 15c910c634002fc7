"""Computes with this project what was recorded from the published program, compares the two, and writes it with --out.

    .venv-tf1/bin/python tests/recorded/record.py [--out DIR]
"""
import argparse
import hashlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(sys.path[0]))

from tf_compat import tf

import numpy as np
from sklearn.datasets import load_sample_images
from tensorpack.tfutils import DictRestore
from tensorpack.tfutils.tower import PredictTowerContext, TrainTowerContext

from augmentation import eval_crop
from checkpoints import MODEL_VARIABLE
from conftest import recorded_weight
from ghostnet import GhostNet
from imagenet_utils import session_creator
from pictures import read_image

HERE = os.path.dirname(os.path.abspath(__file__))
NOISE_BLOCKS = ((0, 4), (1, 8), (2, 16), (3, 32), (4, 7), (5, 56))    # seed, pixels of a block


def model_of(arguments, **options):
    """The GhostNet of a recorded configuration."""
    return GhostNet(num_classes=arguments.get('nc', 1000), dw_code=arguments.get('dw'), ratio_code=arguments.get('ratio'),
                    se=arguments.get('se', 3), width=arguments.get('width', 1.0), **options)


def model_variables():
    """{name: variable} of the model in the default graph."""
    return {v.op.name: v for v in tf.global_variables() if MODEL_VARIABLE.search(v.op.name)}


def load_recorded_weights(session):
    DictRestore({name: recorded_weight(name, v.shape.as_list()) for name, v in model_variables().items()}).init(session)


def photographs():
    """scikit-learn's photographs preprocessed, {name: uint8 (224, 224, 3) BGR}."""
    return {os.path.basename(path): eval_crop(read_image(path)) for path in load_sample_images().filenames}


def block_noise(seed, block):
    """uint8 (224, 224, 3): noise of `block` x `block` pixels."""
    blocks = np.random.RandomState(seed).randint(0, 256, (224 // block, 224 // block, 3)).astype(np.uint8)
    return blocks.repeat(block, 0).repeat(block, 1)


def noise_digest(seed, height, width):
    """SHA-256 of the evaluation preprocessing of noise."""
    noise = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return hashlib.sha256(np.ascontiguousarray(eval_crop(noise)).tobytes()).hexdigest()


def compute_logits(arguments, *batches):
    """A configuration with the recorded weights: the logits of each batch of images, variables [(name, shape), ...], parameters.

    A batch must be the recorded one: on TensorFlow 1.13.1, its size changes the last bits.
    """
    with tf.Graph().as_default(), session_creator().create_session() as session, PredictTowerContext(''):
        image = tf.placeholder(tf.uint8, [None, 224, 224, 3])
        logits = model_of(arguments).get_logits(image)
        variables = sorted((name, v.shape.as_list()) for name, v in model_variables().items())
        parameters = sum(v.shape.num_elements() for v in tf.trainable_variables())
        load_recorded_weights(session)
        return [session.run(logits, {image: images}) for images in batches], variables, parameters


def training_step(images, labels):
    """What `train` in recorded.json has of a training step, and its logits."""
    with tf.Graph().as_default(), session_creator().create_session() as session:
        model = GhostNet(dropout_keep_prob=1.0)
        image, label = [tf.placeholder(spec.dtype, spec.shape) for spec in model.inputs()]
        with TrainTowerContext(''):
            cost = model.build_graph(image, label)
        variables = tf.trainable_variables()
        gradients = tf.gradients(cost, variables)
        load_recorded_weights(session)
        feed = {image: images, label: labels}
        names = ('xentropy-loss:0', 'logits:0')
        cost, tensors, gradients = session.run([cost, [session.graph.get_tensor_by_name(name) for name in names], gradients], feed)
        session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), feed)
        ema = {v.op.name: float(np.abs(session.run(v)).sum()) for v in tf.global_variables() if v.op.name.endswith('/EMA')}
    norms = {v.op.name: float(np.linalg.norm(gradient)) for v, gradient in zip(variables, gradients)}
    return {'cost': float(cost), 'xentropy': float(tensors[0]), 'grad_l2': norms, 'ema': ema}, tensors[1]


def relative_error(value, reference):
    return float(np.linalg.norm(np.subtract(value, reference)) / np.linalg.norm(reference))


def step_differences(step, reference):
    """How two training steps differ, relatively: cost, cross-entropy, gradients, moving averages.

    Gradients of next to nothing, which are rounding alone, must be so in both.
    """
    norms, expected = step['grad_l2'], reference['grad_l2']
    assert set(norms) == set(expected) and set(step['ema']) == set(reference['ema'])
    floor = 1e-5 * max(expected.values())
    assert max(norms[name] for name, norm in expected.items() if norm <= floor) < 10 * floor
    whole = [np.linalg.norm([values[name] for name in sorted(values)]) for values in (norms, expected)]
    return {
        'cost': abs(step['cost'] / reference['cost'] - 1), 'xentropy': abs(step['xentropy'] / reference['xentropy'] - 1),
        'worst norm': max(abs(norms[name] / norm - 1) for name, norm in expected.items() if norm > floor),
        'global norm': abs(whole[0] / whole[1] - 1),
        'ema': max(abs(step['ema'][name] / value - 1) for name, value in reference['ema'].items())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', metavar='DIR', help="folder to write recorded.json and recorded.npz to")
    out = parser.parse_args().out
    with open(os.path.join(HERE, 'recorded.json')) as f:
        before = json.load(f)
    arrays_before = np.load(os.path.join(HERE, 'recorded.npz'))
    photos = photographs()
    arrays = {'photos': np.stack([photos[name] for name in before['photos']]), 'labels': arrays_before['labels']}
    arrays['images'] = np.concatenate([arrays['photos'], [block_noise(*noise) for noise in NOISE_BLOCKS]])
    record = {'photos': before['photos'], 'noise': [dict(entry, sha256=noise_digest(entry['seed'], entry['height'], entry['width']))
                                                    for entry in before['noise']]}
    print("preprocessing: noise equal in %d of %d, photographs %s" % (
        sum(a == b for a, b in zip(record['noise'], before['noise'])), len(before['noise']),
        np.array_equal(arrays['photos'], arrays_before['photos'])))
    for config in sorted(name[len('logits_'):] for name in arrays_before.files if name.startswith('logits_')):
        if config == 'train':
            record['train'], logits = training_step(arrays['images'], arrays['labels'])
            differences = step_differences(record['train'], before['train'])
            print("training step:", ', '.join('%s %.2g' % item for item in differences.items()))
        else:
            arguments = before[config]['args']
            (logits,), variables, parameters = compute_logits(arguments, arrays['images'])
            record[config] = {'args': arguments, 'params': parameters, 'variables': variables}
            print("%s: variables equal: %s" % (config, [list(v) for v in variables] == sorted(before[config]['variables'])))
        arrays['logits_' + config] = logits
        print("%s: relative error of the logits %.2g" % (config, relative_error(logits, arrays_before['logits_' + config])))
    if out is not None:
        os.makedirs(out, exist_ok=True)
        np.savez_compressed(os.path.join(out, 'recorded.npz'), **arrays)
        with open(os.path.join(out, 'recorded.json'), 'w') as f:
            json.dump(record, f, indent=0, sort_keys=True)


if __name__ == '__main__':
    main()
