"""GhostNet as a Keras 3 model in programs that run eagerly, and the example that trains a detector with it."""
import os
import re

from tf_compat import TENSORFLOW_VERSION

import cv2
import numpy as np
import pytest

from augmentation import eval_images
from checkpoints import MODEL_VARIABLE, describe, read_checkpoint
from conftest import DIGITS_CHECKPOINT, ROOT, random_checkpoint, rare, refused, run_main
from dataset import read_images

TF1 = TENSORFLOW_VERSION.startswith('1.')
today = pytest.mark.skipif(TF1, reason="Keras 3 needs TensorFlow 2")
IMPORT = {'script': ['-m', 'tools.import_weights']}
EXAMPLE = os.path.join(ROOT, 'examples', 'detection.py')
UNTOUCHED = """
import sys
import tensorflow as tf
if sys.argv[1:] == ['used']:
    assert tf.keras.__version__.startswith('3.')
import ghostnet
from tf_compat import tf as tf1
assert tf.executing_eagerly() and tf.keras.__version__.startswith('3.')
x = tf.constant([1, 2])
assert (x == x).numpy().tolist() == [True, True]
with tf.Graph().as_default():
    ghostnet.GhostNet(10, width=0.25)
    with tf1.variable_scope('x'):
        assert tf1.layers.Dense(1).dtype in (None, 'float32')
assert (x == x).numpy().tolist() == [True, True] and tf.keras.layers.Dense(1)(tf.ones([2, 3])).shape == (2, 1)
"""
CLASSIFY = """
import sys
import keras
import numpy as np
keras.config.set_image_data_format(sys.argv[1])
from keras_model import GhostNet
images = np.load(sys.argv[3])[..., ::-1]    # RGB
narrow = images[:1, :, :150]
if sys.argv[1] == 'channels_first':
    images, narrow = images.transpose(0, 3, 1, 2), narrow.transpose(0, 3, 1, 2)
model = GhostNet(sys.argv[2])
maps = GhostNet(sys.argv[2], include_top=False)(narrow)
shapes = [tuple(maps[name].shape)[1:] for name in ('Conv2d_3', 'Conv2d_5', 'Conv2d_11', 'Conv2d_16')]
assert shapes == ([(56, 38, 24), (28, 19, 40), (14, 10, 112), (7, 5, 160)] if sys.argv[1] == 'channels_last' else
                  [(24, 56, 38), (40, 28, 19), (112, 14, 10), (160, 7, 5)]), shapes
np.save(sys.argv[4], model.predict(images, verbose=0))
"""
TRAIN = """
import sys
import keras
import numpy as np
from keras_model import GhostNet

def trained(out, load, **options):
    backbone = GhostNet(load, include_top=False, output_stride=8, **options)
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [[value.numpy() for value in layer.weights] for layer in norms]
    stem = backbone.get_layer('Conv2d_0').kernel.numpy()
    image = keras.Input((None, None, 3), dtype='uint8')
    x = keras.layers.GlobalAveragePooling2D()(backbone(image)['Conv2d_16'])
    model = keras.Model(image, keras.layers.Dense(2)(x))
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.RandomState(0).randint(0, 256, (8, 64, 96, 3)).astype('uint8')
    model.fit(images, np.arange(8) % 2, batch_size=4, verbose=0)
    model.save(out)
    assert not np.array_equal(stem, backbone.get_layer('Conv2d_0').kernel.numpy())
    return stem, all(np.array_equal(a, b) for layer, old in zip(norms, before) for a, b in zip(layer.weights, old))

keras.utils.set_random_seed(5)
stem, same = trained(sys.argv[2], None, width=0.25)
assert not same
keras.utils.set_random_seed(5)
again, same = trained(sys.argv[3], None, width=0.25, freeze_bn=True)
assert same and np.array_equal(stem, again)
trained(sys.argv[4], sys.argv[1])
"""
FEW_STEPS = """
import argparse, sys
sys.path.insert(0, sys.argv[1])
import detection
from command_line import run
detection.STEPS = 60
run(detection.main, argparse.Namespace(load=sys.argv[3], picture=sys.argv[5]), 'detection')
"""
WRONG = """
import sys
from command_line import InputError
from keras_model import GhostNet
for options in sys.argv[1:]:
    try:
        GhostNet(**eval(options))
    except InputError as error:
        print(error)
"""


@pytest.fixture
def program(tmp_path):
    """Runs the text of a program, on this stack, as a user's own: program(text, *args, **environment), (status, stdout, stderr)."""
    def call(text, *args, **environment):
        (tmp_path / 'program.py').write_text(text)
        unset = ('KERAS_BACKEND', 'KERAS_HOME', 'TF_USE_LEGACY_KERAS')
        env = {name: value for name, value in os.environ.items() if name not in unset}
        return run_main(*args, script=[str(tmp_path / 'program.py')], cwd=str(tmp_path),
                        env=dict(env, PYTHONPATH=ROOT, **environment))
    return call


@today
@pytest.mark.parametrize('use, environment', [('used', {}), ('unused', {}), ('unused', {'KERAS_BACKEND': 'numpy'})])
def test_a_program_stays_as_it_is_when_it_imports_ghostnet(use, environment, program):
    """Eager execution, equality of tensors, and the Keras behind tf.keras, whether that was used before or not."""
    text = UNTOUCHED if not environment else 'import os, ghostnet\nassert os.environ["KERAS_BACKEND"] == "numpy"\n'
    status, _, err = program(text, use, **environment)
    assert status == 0, err


@today
@pytest.mark.slow
@pytest.mark.parametrize('layout', ['channels_last', 'channels_first'])
def test_the_logits_of_main(layout, digits, evaluated_digits, program, tmp_path):
    np.save(str(tmp_path / 'images.npy'), eval_images([file for file, _ in read_images(digits, 'val')[:20]]))
    status, _, err = program(CLASSIFY, layout, DIGITS_CHECKPOINT, tmp_path / 'images.npy', tmp_path / 'logits.npy')
    assert status == 0, err
    logits, expected = np.load(str(tmp_path / 'logits.npy')), evaluated_digits[2]['logits'][:20]
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-5


@today
@pytest.mark.slow
def test_a_backbone_is_trained_eagerly_and_becomes_a_checkpoint(program, tmp_path):
    """From random weights that a seed fixes, with BN frozen or not; from a checkpoint, whose variant comes back too."""
    load = random_checkpoint(tmp_path / 'load', num_classes=5, width=0.25, variant='pytorch')
    names = [tmp_path / name for name in ('one.keras', 'two.keras', 'three.keras')]
    status, _, err = program(TRAIN, load, *names)
    assert status == 0, err
    for path, variant in zip(names[1:], ('published', 'pytorch')):
        status, out, err = run_main('--from', 'keras', path, tmp_path / 'back', **IMPORT)
        assert status == 0 and "width 0.25, no classifier, variant '%s'" % variant in out, err
    stem = 'MobileNetV2/Conv2d_0/W'
    back, before = (read_checkpoint(str(path), MODEL_VARIABLE)[1] for path in (tmp_path / 'back', load))
    assert set(before) - set(back) == {name for name in before if re.search('Conv2d_17/|Conv2d_18/|Logits/', name)}
    assert 0 < np.abs(back[stem] - before[stem]).max() < 0.1 and describe(str(tmp_path / 'back')).record.variant == 'pytorch'


@today
@pytest.mark.slow
def test_wrong_arguments_are_one_line(program, tmp_path):
    def said(*wrong, **environment):
        status, out, err = program(WRONG, *map(repr, wrong), **environment)
        assert status == 0 and out.count('\n') == len(wrong), err
        return out.splitlines()

    stride, classes, width, none = said({'output_stride': 4}, {'weights': DIGITS_CHECKPOINT, 'classes': 7},
                                        {'weights': DIGITS_CHECKPOINT, 'width': 0.5}, {'weights': str(tmp_path / 'none')})
    assert 'output_stride is 4: choose 8, 16 or 32' in stride and 'has classes=10, not 7' in classes
    assert 'has width=1, not 0.5' in width and 'none' in none
    for backend in ('torch', 'numpy'):    # one that is not installed everywhere, and one that is
        assert 'set KERAS_BACKEND=tensorflow' in said({}, KERAS_BACKEND=backend)[0]


@pytest.mark.skipif(not TF1, reason="says why not on TensorFlow 1")
def test_it_needs_todays_stack(tmp_path):
    assert 'keras_model needs TensorFlow 2' in refused('--picture', tmp_path / 'found.png', script=[EXAMPLE])


@today
@pytest.mark.slow
@pytest.mark.parametrize('script', [['-c', FEW_STEPS, os.path.dirname(EXAMPLE)], rare([EXAMPLE])], ids=['few steps', 'whole'])
def test_the_detector_finds_shapes(script, tmp_path):
    status, out, err = run_main('--load', DIGITS_CHECKPOINT, '--picture', tmp_path / 'found.png', script=script)
    assert status == 0, err
    found, shapes, boxes = map(int, re.search(r'(\d+) of (\d+) shapes found, with (\d+) boxes', out).groups())
    assert shapes > 64 and float(re.search(r'loss: ([\d.]+)', out).group(1)) < 5
    if script == [EXAMPLE]:
        assert found >= 0.7 * shapes and boxes <= 1.3 * shapes
    assert cv2.imread(str(tmp_path / 'found.png')).shape == (576, 1152, 3)


def test_the_example_is_short():
    with open(EXAMPLE, encoding='utf-8') as f:
        assert len(f.readlines()) < 120
