"""The network against what the published program computed, recorded from it."""
import json
import os

from tf_compat import TENSORFLOW_VERSION, tf

import numpy as np
import pytest
from tensorpack.tfutils.tower import PredictTowerContext

from checkpoints import CheckpointRestore
from conftest import SHARED, random_checkpoint
from ghostnet import ROWS, VARIANTS, Bottleneck, GhostNet, from_checkpoint, infer_architecture, infer_width, layer_costs
from imagenet_utils import session_creator
from recorded.record import compute_logits, load_recorded_weights, relative_error, step_differences, training_step

TF1 = TENSORFLOW_VERSION.startswith('1.')
CONFIGS = ['default', 'width_0.5', 'width_1.3', 'se_0', 'dw5_ratio3', 'classes_10']


def recordings(recorded):
    """The public recording and, where it is, the one of ImageNet images in ../shared: [(json, npz), ...]."""
    folder = os.path.join(SHARED, 'reference')
    if not os.path.isdir(folder):
        return [recorded]
    with open(os.path.join(folder, 'expected.json')) as f:
        return [recorded, (json.load(f), np.load(os.path.join(folder, 'expected_logits.npz')))]


@pytest.mark.parametrize('config', CONFIGS)
def test_recorded_logits(config, recorded):
    """Names and shapes of all variables, the number of parameters, and the logits."""
    both = recordings(recorded)
    outputs, variables, parameters = compute_logits(both[0][0][config]['args'], *[arrays['images'] for _, arrays in both])
    for logits, (record, arrays) in zip(outputs, both):
        assert dict(variables) == dict(record[config]['variables']) and parameters == record[config]['params']
        error = relative_error(logits, arrays['logits_' + config])
        print('%s: relative error of the logits %.2g' % (config, error))
        assert error <= (1e-6 if TF1 else 1e-5)


def test_recorded_training_step(recorded):
    names = ('cost', 'xentropy', 'logits', 'worst norm', 'global norm', 'ema')
    bounds = dict(zip(names, [1e-4, 1e-4, 1e-5, 1e-3, 1e-3, 1e-4] if TF1 else [1e-4, 1e-4, 2e-3, 0.1, 0.01, 1e-3]))
    for record, arrays in recordings(recorded):
        step, logits = training_step(arrays['images'], arrays['labels'])
        errors = dict(step_differences(step, record['train']), logits=relative_error(logits, arrays['logits_train']))
        print('training step:', {name: '%.2g' % error for name, error in errors.items()})
        assert len(step['grad_l2']) == 273 and {name: error for name, error in errors.items() if error > bounds[name]} == {}


def test_width_multiplier_rounds_as_published():
    cases = [(1.0, 16, 16), (0.5, 16, 8), (0.1, 16, 8), (0.5, 184, 92), (1.3, 72, 92), (1.3, 40, 52), (0.35, 40, 16)]
    assert [GhostNet(width=width).scaled(depth) for width, depth, _ in cases] == [channels for _, _, channels in cases]


# The paper's table 1: kernel, stride, expanded and output channels of each bottleneck, and whether it has SE.
TABLE = [(3, 1, 16, 16, 0), (3, 2, 48, 24, 0), (3, 1, 72, 24, 0), (5, 2, 72, 40, 1), (5, 1, 120, 40, 1), (3, 2, 240, 80, 0),
         (3, 1, 200, 80, 0), (3, 1, 184, 80, 0), (3, 1, 184, 80, 0), (3, 1, 480, 112, 1), (3, 1, 672, 112, 1), (5, 2, 672, 160, 1),
         (5, 1, 960, 160, 0), (5, 1, 960, 160, 1), (5, 1, 960, 160, 0), (5, 1, 960, 160, 1)]


def multiply_adds(size):
    """Of GhostNet 1.0 for an image of `size` x `size` pixels, counted by hand."""
    side = (size + 1) // 2
    total, before = side ** 2 * 27 * 16, 16
    for kernel, stride, expanded, after, se in TABLE:
        total += side ** 2 * (before * expanded // 2 + 9 * expanded // 2)
        small = (side + stride - 1) // stride
        if stride > 1:
            total += small ** 2 * kernel ** 2 * expanded
        if stride > 1 or before != after:
            total += small ** 2 * (kernel ** 2 * before + before * after)
        total += se * (expanded * (expanded // 4) * 2 + expanded // 4 + expanded)
        total += small ** 2 * (expanded * after // 2 + 9 * after // 2)
        side, before = small, after
    return total + side ** 2 * 160 * 960 + 960 * 1280 + 1280 * 1000 + 1000


@pytest.mark.parametrize('size', [224, 160, 192, 225, 320])
def test_multiply_adds_are_those_counted_by_hand(size):
    costs = layer_costs(GhostNet(image_size=size))
    assert sum(cost for _, cost, _ in costs) == multiply_adds(size)


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
    ('published', 0.125, 435), ('published', 2.0, 435), ('pytorch', 1.3, 432), ('imgclsmob', 0.5, 435),
    ('iamhankai', 0.5, 435), ('d-li14', 1.3, 435)])
def test_variant_width_and_classes_are_found_in_a_checkpoint(variant, width, tensors, tmp_path):
    restore = CheckpointRestore(random_checkpoint(tmp_path / 'checkpoint', variant=variant, width=width, num_classes=7))
    assert restore.variant == variant and len(restore.values) == tensors
    model = from_checkpoint(restore)
    assert (model.variant, model.width, model.num_classes) == (variant, width, 7)


@pytest.mark.parametrize('variant', sorted(VARIANTS))
def test_the_roundest_width_with_these_channels_is_found(variant):
    """From the numbers of channels alone, for every width of the paper's kind and some odd ones."""
    for width in [k / 20 for k in range(2, 41)] + [0.33, 0.77, 1.234, 2.5, 5]:
        model = GhostNet(width=width, variant=variant)
        channels = {i: model.channels(row) for i, row in enumerate(ROWS)}
        expanded = {i: model.expanded(row, ROWS[i - 1].depth) for i, row in enumerate(ROWS) if isinstance(row, Bottleneck)}
        found = infer_width(channels, expanded, variant)
        same = GhostNet(width=found, variant=variant)
        assert {i: same.channels(row) for i, row in enumerate(ROWS)} == channels
        assert len('%g' % found) <= len('%g' % width) and abs(found - width) < 0.1


@pytest.mark.parametrize('variant', sorted(VARIANTS))
def test_a_fragment_has_a_width_with_its_last_row(variant):
    """Of shapes that are not a whole GhostNet, which is what importing compares them with next."""
    shapes = {'MobileNetV2/Conv2d_17/W': (1, 1, 160, 960), 'MobileNetV2/Logits/Conv2d_1c_1x1/W': (1, 1, 1280, 10)}
    found = infer_architecture(shapes, variant)
    assert GhostNet(variant=variant, **found).channels(ROWS[-1]) == 960 and found['num_classes'] == 10
    shapes['MobileNetV2/Conv2d_0/W'] = (3, 3, 3, 10 ** 9)    # no width has both
    assert infer_architecture(shapes, variant)['width'] == 1.0


# ---------------------------------------------------------------------------------------------------------------- backbone

def feature_maps(image, **options):
    """{name: map} for uint8 images, of a network with recorded weights."""
    with tf.Graph().as_default(), session_creator().create_session() as session, PredictTowerContext(''):
        placeholder = tf.placeholder(tf.uint8, [None, None, None, 3])
        maps = GhostNet(**options).feature_maps(placeholder)
        load_recorded_weights(session)
        return session.run(maps, {placeholder: image})


@pytest.fixture(scope='module')
def noise():
    return np.random.RandomState(0).randint(0, 256, (2, 160, 224, 3)).astype(np.uint8)


def test_feature_maps_are_at_four_strides(noise):
    maps = feature_maps(noise)
    assert [(name, maps[name].shape) for name in maps] == [
        ('Conv2d_3', (2, 40, 56, 24)), ('Conv2d_5', (2, 20, 28, 40)), ('Conv2d_11', (2, 10, 14, 112)),
        ('Conv2d_16', (2, 5, 7, 160))]
    odd = feature_maps(noise[:, :101, :77], width=0.5)    # sizes are rounded up
    assert [m.shape for m in odd.values()] == [(2, 26, 20, 12), (2, 13, 10, 20), (2, 7, 5, 56), (2, 4, 3, 80)]


def test_the_last_feature_map_is_what_the_head_gets():
    with tf.Graph().as_default(), session_creator().create_session() as session, PredictTowerContext(''):
        model = GhostNet()
        image = tf.placeholder(tf.uint8, [None, 224, 224, 3])
        with model.arg_scope():
            rows = model.row_outputs(image)
        load_recorded_weights(session)
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
