"""The network against what the published program computed, recorded from it."""
import os

import numpy as np
import pytest

from conftest import random_checkpoint, recorded_weight
from ghostnet import GhostNet, of_checkpoint
from imagenet_utils import MODEL_VARIABLE, CheckpointRestore, session_creator
from tensorpack.tfutils import DictRestore
from tensorpack.tfutils.tower import PredictTowerContext, TrainTowerContext
from tf_compat import TENSORFLOW_VERSION, tf

TF1 = TENSORFLOW_VERSION.startswith('1.')
CONFIGS = ['default', 'width_0.5', 'width_1.3', 'se_0', 'dw5_ratio3', 'classes_10']


def relative_error(value, reference):
    return np.linalg.norm(np.subtract(value, reference)) / np.linalg.norm(reference)


def model_of(args, **kwargs):
    return GhostNet(num_classes=args.get('nc', 1000), dw_code=args.get('dw'), ratio_code=args.get('ratio'), se=args.get('se', 3),
                    width=args.get('width', 1.0), **kwargs)


def model_variables():
    return {v.op.name: v for v in tf.global_variables() if MODEL_VARIABLE.search(v.op.name)}


def load_recorded(session):
    DictRestore({name: recorded_weight(name, v.shape.as_list()) for name, v in model_variables().items()}).init(session)


@pytest.fixture
def recorded(shared):
    return np.load(os.path.join(shared, 'reference', 'expected_logits.npz'))


@pytest.mark.parametrize('config', CONFIGS)
def test_recorded_logits(config, expected, recorded):
    with tf.Graph().as_default(), session_creator().create_session() as session, PredictTowerContext(''):
        model = model_of(expected[config]['args'])
        image = tf.placeholder(tf.uint8, [None, 224, 224, 3])
        logits = model.get_logits(image)
        shapes = {name: v.shape.as_list() for name, v in model_variables().items()}
        assert shapes == dict(expected[config]['variables'])
        assert sum(int(np.prod(v.shape.as_list())) for v in tf.trainable_variables()) == expected[config]['params']
        load_recorded(session)
        output = session.run(logits, {image: recorded['images']})
    error = relative_error(output, recorded['logits_' + config])
    print('%s: relative error of the logits %.2g' % (config, error))
    assert error <= (1e-6 if TF1 else 1e-5)


def test_recorded_training_step(expected, recorded):
    with tf.Graph().as_default(), session_creator().create_session() as session:
        model = GhostNet(dropout_keep_prob=1.0)
        image, label = [tf.placeholder(spec.dtype, spec.shape) for spec in model.inputs()]
        with TrainTowerContext(''):
            cost = model.build_graph(image, label)
        variables = tf.trainable_variables()
        gradients = tf.gradients(cost, variables)
        graph = session.graph
        load_recorded(session)
        feed = {image: recorded['images'], label: recorded['labels']}
        cost, xentropy, logits, gradients = session.run(
            [cost, graph.get_tensor_by_name('xentropy-loss:0'), graph.get_tensor_by_name('logits:0'), gradients], feed)
        session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), feed)
        ema = {v.op.name: np.abs(session.run(v)).sum() for v in tf.global_variables() if v.op.name.endswith('/EMA')}

    train = expected['train']
    norms = {v.op.name: np.linalg.norm(g) for v, g in zip(variables, gradients)}
    assert set(norms) == set(train['grad_l2']) and len(norms) == 273
    floor = 1e-5 * max(train['grad_l2'].values())
    worst = max(abs(norms[n] / r - 1) for n, r in train['grad_l2'].items() if r > floor)
    assert max(norms[n] for n, r in train['grad_l2'].items() if r <= floor) < 10 * floor    # zero but for rounding
    overall = np.linalg.norm(list(norms.values())) / np.linalg.norm(list(train['grad_l2'].values())) - 1
    assert set(ema) == set(train['ema'])
    errors = {
        'cost': abs(cost / train['cost'] - 1), 'xentropy': abs(xentropy / train['xentropy'] - 1),
        'logits': relative_error(logits, recorded['logits_train']), 'worst norm': worst, 'global norm': abs(overall),
        'ema': max(abs(ema[n] / r - 1) for n, r in train['ema'].items())}
    print('training step:', {k: '%.2g' % v for k, v in errors.items()})
    bounds = (dict(zip(errors, [1e-4, 1e-4, 1e-5, 1e-3, 1e-3, 1e-4])) if TF1 else
              dict(zip(errors, [1e-4, 1e-4, 2e-3, 0.1, 0.01, 1e-3])))
    assert {k: v for k, v in errors.items() if v > bounds[k]} == {}


def test_names_and_shapes_of_the_published_index(shared):
    reader = tf.train.NewCheckpointReader(os.path.join(shared, 'reference', 'published', 'ghostnet_checkpoint'))
    published = {name: shape for name, shape in reader.get_variable_to_shape_map().items() if MODEL_VARIABLE.search(name)}
    with tf.Graph().as_default(), PredictTowerContext(''):
        model = GhostNet()
        model.get_logits(tf.placeholder(tf.float32, [None, 224, 224, 3]))
        shapes = {name: v.shape.as_list() for name, v in model_variables().items()}
    assert len(published) == 435 and shapes == published


def test_width_multiplier_rounds_as_published():
    assert [GhostNet(width=w).scaled(d) for w, d in [(1.0, 16), (0.5, 16), (0.1, 16), (0.5, 184), (1.3, 72), (1.3, 40), (0.35, 40)]] \
        == [16, 8, 8, 92, 92, 52, 16]


def test_a_short_code_is_not_used():
    assert GhostNet(dw_code=[5] * 18, ratio_code=[3] * 18).dw_code == [3] * 19
    assert GhostNet(dw_code=[5] * 19).dw_code == [5] * 19 and GhostNet(ratio_code=[3] * 18).ratio_code == [2] * 19


def test_kernel_initializer_is_the_published_truncated_normal():
    from myconv2d import kernel_initializer
    with tf.Graph().as_default(), tf.Session() as session:
        values = session.run(kernel_initializer([3, 3, 64, 256]))
    sigma = np.sqrt(1.3 * 2 / (3 * 3 * 64))
    assert abs(values).max() <= 2 * sigma and abs(values.std() / (0.87962566 * sigma) - 1) < 0.01


@pytest.mark.parametrize('variant, width, tensors', [
    ('published', 0.125, 435), ('published', 2.0, 435), ('pytorch', 1.3, 432), ('imgclsmob', 0.5, 435)])
def test_variant_width_and_classes_are_found_in_a_checkpoint(variant, width, tensors, tmp_path):
    restore = CheckpointRestore(random_checkpoint(tmp_path / 'checkpoint', variant=variant, width=width, num_classes=7))
    assert restore.variant == variant and len(restore.values) == tensors
    model = of_checkpoint(restore)
    assert (model.variant, model.width, model.num_classes) == (variant, width, 7)


# ---------------------------------------------------------------------------------------------------------------- backbone

def feature_maps(image, **options):
    """{name: map} for uint8 images, of a network with recorded weights."""
    with tf.Graph().as_default(), session_creator().create_session() as session, PredictTowerContext(''):
        placeholder = tf.placeholder(tf.uint8, [None, None, None, 3])
        maps = GhostNet(**options).feature_maps(placeholder)
        load_recorded(session)
        return session.run(maps, {placeholder: image})


@pytest.fixture(scope='module')
def noise():
    return np.random.RandomState(0).randint(0, 256, (2, 160, 224, 3)).astype(np.uint8)


def test_feature_maps_are_at_four_strides(noise):
    maps = feature_maps(noise)
    assert [(name, maps[name].shape) for name in maps] == [
        ('Conv2d_3', (2, 40, 56, 24)), ('Conv2d_5', (2, 20, 28, 40)), ('Conv2d_11', (2, 10, 14, 112)), ('Conv2d_16', (2, 5, 7, 160))]
    odd = feature_maps(noise[:, :101, :77], width=0.5)    # sizes are rounded up
    assert [m.shape for m in odd.values()] == [(2, 26, 20, 12), (2, 13, 10, 20), (2, 7, 5, 56), (2, 4, 3, 80)]


def test_the_last_feature_map_is_what_the_head_gets():
    with tf.Graph().as_default(), session_creator().create_session() as session, PredictTowerContext(''):
        model = GhostNet()
        image = tf.placeholder(tf.uint8, [None, 224, 224, 3])
        with model.layers():
            rows = model.rows(image)
        load_recorded(session)
        picture = np.random.RandomState(1).randint(0, 256, (1, 224, 224, 3)).astype(np.uint8)
        before_head = session.run(rows[16], {image: picture})
    assert relative_error(feature_maps(picture)['Conv2d_16'], before_head) < 1e-4


@pytest.mark.parametrize('variant, output_stride, first', [
    ('published', 16, 1), ('published', 8, 3), ('pytorch', 8, 0), ('imgclsmob', 16, 0)])
def test_atrous_network_equals_the_strided_one_where_that_has_outputs(noise, variant, output_stride, first):
    """SAME padding of a convolution with stride 2 has it look from odd positions, PyTorch's padding from even ones.

    Without squeeze-and-excitation, which averages over all positions.
    """
    images = noise if output_stride == 16 else noise[:, :96, :128]
    strided = feature_maps(images, se=0, variant=variant)
    atrous = feature_maps(images, se=0, variant=variant, output_stride=output_stride)
    step = 32 // output_stride
    assert atrous['Conv2d_16'].shape[1] == images.shape[1] // output_stride
    assert relative_error(atrous['Conv2d_16'][:, first::step, first::step], strided['Conv2d_16']) < 1e-5
    for name in ('Conv2d_3', 'Conv2d_5'):
        assert np.array_equal(atrous[name], strided[name])
