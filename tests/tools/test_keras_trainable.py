"""Trainable Keras models: the graph's logits, training in a user's own program, and the way back into a checkpoint."""
import json
import os
import re
import shutil

from tf_compat import TENSORFLOW_VERSION

import numpy as np
import pytest

from augmentation import eval_images
from checkpoints import MODEL_VARIABLE, Record, describe, read_checkpoint, save_values
from conftest import DIGITS_CHECKPOINT, evaluated, random_checkpoint, rare, refused, run_main
from dataset import read_images
from ghostnet import BACKBONE, VARIANTS
from tools.import_weights import variable_shapes, variant_of
from tools.keras_weights import HARD_SIGMOID, SYMMETRIC, image_size
from tools.weight_names import STEPS
from trees import link_tree, shorten

EXPORT, IMPORT = {'script': ['-m', 'tools.export']}, {'script': ['-m', 'tools.import_weights']}
today = pytest.mark.skipif(TENSORFLOW_VERSION.startswith('1.'), reason="Keras 3 needs TensorFlow 2")

# A user's program, which knows nothing of this project. Its arguments: what was exported, what to save, and a file for numbers.
PROGRAM = """
import sys
import keras
import numpy as np

model = keras.saving.load_model(sys.argv[1])
norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.9, 1e-5)}
assert model.get_layer('classes').seed == list('abcdefghij')
before = [layer.moving_mean.numpy() for layer in norms]
data = np.load(sys.argv[3])
images, labels = data['images'], data['labels']
model.compile(keras.optimizers.SGD(0.01, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
losses = model.fit(images, labels, batch_size=8, epochs=4, verbose=0, shuffle=False).history['loss']
moved = [not np.array_equal(old, layer.moving_mean.numpy()) for old, layer in zip(before, norms)]
model.save(sys.argv[2])
np.savez(sys.argv[3], losses=losses, moved=moved, predicted=model.predict(images, verbose=0))
"""
BACKBONE_PROGRAM = """
import sys
import keras
import numpy as np

backbone = keras.saving.load_model(sys.argv[1])
image = keras.Input((64, 96, 3), dtype='uint8')
maps = backbone(image)
assert {name: tuple(x.shape[1:]) for name, x in maps.items()} == {
    'Conv2d_3': (16, 24, 8), 'Conv2d_5': (8, 12, 12), 'Conv2d_11': (4, 6, 28), 'Conv2d_16': (4, 6, 40)}
x = keras.layers.GlobalAveragePooling2D()(maps['Conv2d_16'])
model = keras.Model(image, keras.layers.Dense(2)(x))
model.compile('sgd', keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images = np.random.RandomState(0).randint(0, 256, (8, 64, 96, 3)).astype('uint8')
model.fit(images, np.arange(8) % 2, batch_size=4, verbose=0)
model.save(sys.argv[2])
np.savez(sys.argv[3], stem=backbone.get_layer('Conv2d_0').kernel.numpy())
"""


def export(load, out, *flags):
    status, said, err = run_main('--load', load, '--format', 'keras', '--trainable', out, *flags, **EXPORT)
    assert status == 0, err
    error = re.split('  +', said.splitlines()[3].strip())[5]
    assert float(error) <= 1e-5
    return out


def program(text, folder, *args):
    (folder / 'program.py').write_text(text)
    status, _, err = run_main(*args, script=[str(folder / 'program.py')], cwd=str(folder))
    assert status == 0, err


def brought_back(path, out, *flags):
    status, said, err = run_main('--from', 'keras', path, out, *flags, **IMPORT)
    assert status == 0 and 'tensors, width ' in said, err
    return read_checkpoint(str(out))[1]


def assert_same_weights(found, checkpoint):
    expected = read_checkpoint(str(checkpoint), MODEL_VARIABLE)[1]
    assert {name: value.tobytes() for name, value in found.items() if MODEL_VARIABLE.search(name)} == \
        {name: value.tobytes() for name, value in expected.items()}


@today
@pytest.mark.slow
@pytest.mark.parametrize('options, flags', [
    ({'width': 0.3, 'ratio_code': [3] * 19, 'dw_code': [5] * 19, 'se': 0, 'image_size': 161}, ['--raw']),
    rare({'width': 0.25, 'variant': 'pytorch'}, ['--softmax']),
    rare({'width': 0.25, 'variant': 'iamhankai', 'seed': 2}, ['--raw', '--rgb'])])
def test_every_kind_of_variant_goes_there_and_back_exactly(options, flags, tmp_path):
    """With random weights that do not amplify rounding: with others, no runtime gives the graph's logits."""
    load = random_checkpoint(tmp_path / 'checkpoint', num_classes=5, **options)
    path = export(load, tmp_path / 'model.keras', *flags)
    assert_same_weights(brought_back(path, tmp_path / 'back'), load)
    record = describe(str(tmp_path / 'back')).record
    assert (record.variant, record.image_size) == (options.get('variant', 'published'), options.get('image_size', 224))
    if 'seed' in options:
        assert path.read_bytes() == export(load, tmp_path / 'again.keras', *flags).read_bytes()


@pytest.mark.parametrize('variant', sorted(VARIANTS))
def test_the_variant_shows_in_a_file(variant):
    """Of a backbone too. At width 1.0, 'd-li14' and 'imgclsmob' are one network."""
    shapes = {name: shape for name, shape in variable_shapes(variant=variant, width=1.3, num_classes=7).items()
              if not name.endswith(STEPS)}
    rules = VARIANTS[variant]
    marks = {mark for mark, there in ((SYMMETRIC, rules.symmetric), (HARD_SIGMOID, rules.hard_sigmoid)) if there}
    assert variant_of(shapes, marks) == variant
    assert variant_of({name: shape for name, shape in shapes.items() if BACKBONE.match(name)}, marks) == variant


@today
@pytest.mark.slow
def test_what_keras_trains_is_what_main_evaluates(digits, tmp_path):
    tree = link_tree(digits, tmp_path / 'tree')
    shorten(tree, 16)
    images = read_images(tree, 'val')
    numbers = tmp_path / 'numbers.npz'
    np.savez(str(numbers), images=eval_images([path for path, _ in images]), labels=[(label + 1) % 10 for _, label in images])
    load = tmp_path / 'named'    # whose digits get other labels
    classes = [(name, '') for name in 'abcdefghij']
    save_values(read_checkpoint(DIGITS_CHECKPOINT, MODEL_VARIABLE)[1], str(load), Record('published', classes, None))
    program(PROGRAM, tmp_path, export(load, tmp_path / 'model.keras'), tmp_path / 'trained.keras', numbers)
    numbers = np.load(str(numbers))
    assert numbers['losses'][-1] < 0.7 * numbers['losses'][0] and numbers['moved'].all()
    brought_back(tmp_path / 'trained.keras', tmp_path / 'trained')
    evaluated(tree, tmp_path / 'trained', tmp_path / 'result.json', '--save_logits', tmp_path / 'logits.npz')
    logits = np.load(str(tmp_path / 'logits.npz'))['logits']
    assert np.linalg.norm(logits - numbers['predicted']) <= 1e-5 * np.linalg.norm(logits)


@pytest.mark.rare
@today
@pytest.mark.slow
def test_a_backbone_in_a_model_of_the_user_comes_back_too(tmp_path):
    load = random_checkpoint(tmp_path / 'checkpoint', num_classes=3, classes=['a', 'b', 'c'], variant='pytorch', width=0.25)
    path = export(load, tmp_path / 'backbone.keras', '--features', '--output_stride', 16)
    assert_same_weights(brought_back(path, tmp_path / 'back', '--base', load), load)
    program(BACKBONE_PROGRAM, tmp_path, path, tmp_path / 'trained.keras', tmp_path / 'stem.npz')
    values = brought_back(tmp_path / 'trained.keras', tmp_path / 'trained', '--base', load)
    assert np.array_equal(values['MobileNetV2/Conv2d_0/W'], np.load(str(tmp_path / 'stem.npz'))['stem'])
    before = read_checkpoint(load)[1]
    assert not np.array_equal(values['MobileNetV2/Conv2d_0/W'], before['MobileNetV2/Conv2d_0/W'])
    assert np.array_equal(values['MobileNetV2/Conv2d_18/W'], before['MobileNetV2/Conv2d_18/W'])
    assert describe(str(tmp_path / 'trained')).record == describe(load).record


def h5(path, layers):
    """A file of Keras' layout: `layers` is [(name, [array, ...]), ...]."""
    import h5py
    with h5py.File(str(path), 'w') as f:
        for number, (name, arrays) in enumerate(layers):
            group = f.create_group('layers/layer_%d/vars' % number)
            group.attrs['name'] = name
            for index, array in enumerate(arrays):
                group[str(index)] = array
    return path


def layers_of(checkpoint):
    """A checkpoint's variables as the layers of a trainable export: [(name, [array, ...]), ...]."""
    layers = {}
    for name, value in read_checkpoint(checkpoint, MODEL_VARIABLE)[1].items():
        layer, leaf = re.match('MobileNetV2/(.*)/(W|DW|b|gamma|beta|mean/EMA|variance/EMA)$', name).groups()
        layers.setdefault(layer.replace('/', '.'), []).append(
            (('W', 'DW', 'b', 'gamma', 'beta', 'mean/EMA', 'variance/EMA').index(leaf), value))
    return [(name, [value for _, value in sorted(arrays, key=lambda pair: pair[0])]) for name, arrays in layers.items()]


def test_the_size_shows_in_the_configuration_of_the_model():
    """Also of one within another's; not where it is any, or unknown, or one of two."""
    def ghostnet(*sizes, **options):
        layers = [{'class_name': 'InputLayer', 'config': {'batch_shape': [None] + list(size) + [3]}, 'name': 'x'} for size in sizes]
        return {'name': 'ghostnet', 'layers': layers + [{'name': options.get('first', 'Conv2d_0')}]}
    outer = {'config': {'layers': ghostnet((99, 99), first='resize')['layers'] + [{'config': ghostnet((160, 160))}]}}
    for config, size in [(ghostnet((193, 193)), 193), (outer, 160), (ghostnet((None, None)), None), (ghostnet((160, 192)), None),
                         (ghostnet((160, 160), (192, 192)), None), (ghostnet((99, 99), first='dense'), None), ([], None),
                         ({'layers': ['Conv2d_0', None]}, None), (ghostnet((-1, -1)), None), (ghostnet((10 ** 9, 10 ** 9)), None)]:
        assert image_size(json.dumps(config)) == size


def test_weights_are_read_without_keras_and_the_classifier_may_be_dense(tmp_path):
    """On both stacks."""
    layers = layers_of(DIGITS_CHECKPOINT)
    assert_same_weights(brought_back(h5(tmp_path / 'model.weights.h5', layers), tmp_path / 'back'), DIGITS_CHECKPOINT)
    dense = [(name, [arrays[0][0, 0], arrays[1]] if name.startswith('Logits') else arrays) for name, arrays in layers]
    base = tmp_path / 'base'
    values = read_checkpoint(DIGITS_CHECKPOINT, MODEL_VARIABLE)[1]
    classes = [('n%d' % k, 'word %d' % k) for k in range(10)]
    save_values(values, str(base), describe(DIGITS_CHECKPOINT).record._replace(classes=classes))
    path = h5(tmp_path / 'dense.weights.h5', dense)
    assert_same_weights(brought_back(path, tmp_path / 'dense', '--base', base), DIGITS_CHECKPOINT)
    assert describe(str(tmp_path / 'dense')).record.classes[9] == ('n9', 'word 9')


def test_what_is_refused(tmp_path):
    import h5py

    def said(path, *flags):
        assert not list(tmp_path.glob('out*'))
        return refused('--from', 'keras', path, tmp_path / 'out', *flags, **IMPORT)

    layers = layers_of(DIGITS_CHECKPOINT)
    assert 'is no file of Keras 3' in said(tmp_path / 'model.h5')
    assert 'there is no file' in said(tmp_path / 'none.keras')
    (tmp_path / 'damaged.keras').write_bytes(b'PK damaged')
    assert 'is truncated, or not what Keras 3 saves of a trainable export' in said(tmp_path / 'damaged.keras')
    assert 'no layer of it is called' in said(h5(tmp_path / 'other.weights.h5', [('dense', [np.ones(3)])]))
    assert 'two layers of it are called Conv2d_0:' in said(h5(tmp_path / 'twice.weights.h5', layers + layers[:1]))
    assert 'is not a GhostNet' in said(h5(tmp_path / 'part.weights.h5', layers[5:]))
    broken = [(name, [np.full_like(array, np.nan) for array in arrays]) for name, arrays in layers]
    assert 'has NaN or infinity' in said(h5(tmp_path / 'nan.weights.h5', broken))
    base = tmp_path / 'base'
    other = describe(DIGITS_CHECKPOINT).record._replace(variant='other')
    save_values({'MobileNetV2/x/W': np.ones(3, np.float32)}, str(base), other)
    assert "the variant 'other' is not one of" in said(h5(tmp_path / 'whole.weights.h5', layers), '--base', base)
    # Numbers that are not in the file: in another one, or nowhere.
    shutil.copy(str(h5(tmp_path / 'secret.h5', [])), str(tmp_path / 'linked.weights.h5'))
    with h5py.File(str(tmp_path / 'linked.weights.h5'), 'w') as f:
        f['layers'] = h5py.ExternalLink('part.weights.h5', '/layers')
    assert 'no layer of it is called' in said(tmp_path / 'linked.weights.h5')
    with h5py.File(str(tmp_path / 'empty.weights.h5'), 'w') as f:
        group = f.create_group('layers/conv2d/vars')
        group.attrs['name'] = 'Conv2d_0'
        group.create_dataset('0', (1 << 40,), 'float32', chunks=(1024,))
    assert os.path.getsize(str(tmp_path / 'empty.weights.h5')) < 1e5
    assert 'is not in it' in said(tmp_path / 'empty.weights.h5')
    assert '--base goes with --from keras' in refused('--from', 'timm', 'x', 'y', '--base', 'z', **IMPORT)
    for flags in (['--format', 'tflite'], ['--format', 'all'], ['--format', 'onnx']):
        assert '--trainable goes with --format keras' in refused(
            '--load', DIGITS_CHECKPOINT, tmp_path / 'x', '--trainable', *flags, **EXPORT)
