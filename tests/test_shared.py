"""What needs inputs that cannot be published: real images of ILSVRC12 and a 1000-class checkpoint in the published format."""
import os

from tf_compat import TENSORFLOW_VERSION, tf

import numpy as np
import pytest

from augmentation import eval_crop
from checkpoints import MODEL_VARIABLE
from conftest import SHARED, evaluated
from dataset import read_images
from pictures import read_image

REFERENCE, MINI = os.path.join(SHARED, 'reference'), os.path.join(SHARED, 'data', 'ilsvrc12-mini')
CALIBRATED = os.path.join(REFERENCE, 'calibrated', 'ghostnet_checkpoint')
if not os.path.isdir(SHARED):
    pytest.skip("needs the recorded outputs in %s" % SHARED, allow_module_level=True)


@pytest.mark.parametrize('engine', ['tensorpack', 'frozen', 'tflite', 'openvino', 'onnx'])
def test_300_validation_images_count_as_recorded(tmp_path, engine):
    if engine not in ('tensorpack', 'frozen') and TENSORFLOW_VERSION.startswith('1.'):
        pytest.skip("the engine %s needs TensorFlow 2, this is %s" % (engine, TENSORFLOW_VERSION))
    pytest.importorskip({'openvino': 'openvino', 'onnx': 'tf2onnx'}.get(engine, 'tensorflow'))
    out, result = evaluated(MINI, CALIBRATED, tmp_path / 'json', '--engine', engine, '--save_logits', tmp_path / 'logits.npz')
    assert 'Top1 Error: 0.726667\n' in out and 'Top5 Error: 0.436667\n' in out
    assert (result['images'], result['wrong_top1'], result['wrong_top5']) == (300, 218, 131)
    assert (result['top1_error'], result['top5_error']) == (218 / 300, 131 / 300)
    recorded = np.load(os.path.join(os.path.dirname(CALIBRATED), 'logits_val.npz'))['logits']
    saved = np.load(str(tmp_path / 'logits.npz'))
    error = np.linalg.norm(saved['logits'] - recorded) / np.linalg.norm(recorded)
    assert error < (1e-5 if engine == 'tensorpack' else 1e-4)
    with open(os.path.join(MINI, 'caffe_ilsvrc12', 'val.txt')) as f:
        assert [[name, str(label)] for name, label in zip(saved['files'], saved['labels'])] == [line.split() for line in f]


def test_preprocessing_of_real_images_bit_for_bit():
    recorded = np.load(os.path.join(REFERENCE, 'preprocessed.npz'))
    equal = [np.array_equal(eval_crop(read_image(os.path.join(MINI, str(name)))), image)
             for name, image in zip(recorded['files'], recorded['images'])]
    assert sum(equal) == len(equal) == 24


def test_every_real_image_is_read():
    paths = [path for name in ('train', 'val') for path, _ in read_images(MINI, name)]
    assert len(paths) == 460 and all(read_image(path).shape[2] == 3 for path in paths)


def test_names_and_shapes_of_the_published_index(recorded):
    """Those in recorded.json, which tests/test_ghostnet.py compares with the graph, are those of the published checkpoint."""
    reader = tf.train.NewCheckpointReader(os.path.join(REFERENCE, 'published', 'ghostnet_checkpoint'))
    published = {name: shape for name, shape in reader.get_variable_to_shape_map().items() if MODEL_VARIABLE.search(name)}
    assert len(published) == 435 and published == dict(recorded[0]['default']['variables'])
