"""Exports that carry the names of their classes, read in the runtimes that they are for as their users do."""
import glob
import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest

from checkpoints import CheckpointRestore, Record, save_values
from conftest import DIGITS_CHECKPOINT, ROOT, run_main
from tools.export.labels import as_lines, labels

pytestmark = pytest.mark.xdist_group('export names')    # so that `exported`, of three minutes, is made once

# Any text that a folder's name can be; the fourth has a line feed, the seventh a byte that is not UTF-8.
NAMES = ['zero', 'one two', 'drei', 'vi\ner', 'f\\ünf', '<b>six', '\udcff7', '8\r', '9"', '10,']
LINES = b'zero\none two\ndrei\nvi\\ner\nf\\\\\xc3\xbcnf\n<b>six\n\\xff7\n8\\r\n9"\n10,\n'
MEDIAPIPE = 'mediapipe==1.2.3'    # which wants another OpenCV beside ours: it is installed without what it depends on
CLASSIFY = """
import json, sys
import cv2, mediapipe
from mediapipe.tasks import python as tasks
options = tasks.vision.ImageClassifierOptions(base_options=tasks.BaseOptions(model_asset_path=sys.argv[1]), max_results=1)
with tasks.vision.ImageClassifier.create_from_options(options) as classifier:
    for path in sys.argv[2:]:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=cv2.imread(path)[..., ::-1].copy())
        best, = classifier.classify(image).classifications[0].categories
        print(json.dumps([best.category_name, best.index]))
"""
SERVE = """
import json, sys
import tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
for n in (1, 3):
    found = signatures['serving_default'](input=tf.zeros([n, 192, 192, 3], tf.uint8))
    assert list(found) == ['probabilities'] and found['probabilities'].shape == (n, 10)
contents = [open(path, 'rb').read() for path in sys.argv[2:]]
results = signatures['serving_bytes'](image_bytes=tf.constant(contents))
names = [[name.decode('utf-8', 'surrogateescape') for name in row] for row in results['classes'].numpy()]
print(json.dumps([names, results['probabilities'].numpy().tolist()]))
"""
READ = """
import json, sys
import keras
model = keras.models.load_model(sys.argv[1])
model.save(sys.argv[2])
print(json.dumps(keras.models.load_model(sys.argv[2]).get_layer('classes').seed))
"""


def test_a_label_is_the_words_or_the_name_and_of_one_class():
    assert labels(None) is None
    assert labels([('n1', 'crane'), ('n2', ''), ('n3', 'crane')]) == ['crane (n1)', 'n2', 'crane (n3)']
    assert as_lines(NAMES) == LINES


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A folder with an export in each format of the digits' network with NAMES, which takes RGB of 192 x 192 pixels and gives
    probabilities."""
    if importlib.util.find_spec('tf2onnx') is None:
        pytest.skip("needs tf2onnx: make test-interop")
    folder = tmp_path_factory.mktemp('exported')
    save_values(CheckpointRestore(DIGITS_CHECKPOINT).values, str(folder / 'checkpoint'),
                Record('published', [(name, '') for name in NAMES], None, 192))
    status, _, err = run_main('--load', folder / 'checkpoint', '--format', 'all', folder / 'all', '--rgb', '--softmax',
                              '--tf1_python', 'none', script=['-m', 'tools.export'])
    assert status == 0, err
    return folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory, digits):
    """Digits, photographs, tall and small ones, with alpha: as files; and what --predict says of them, [(label, probability)]."""
    folder = tmp_path_factory.mktemp('pictures')
    paths = sorted(glob.glob(os.path.join(digits, 'val', '*.png')))[:4]
    images = os.path.join(os.path.dirname(importlib.util.find_spec('sklearn').origin), 'datasets', 'images')
    paths += [os.path.join(images, name) for name in ('china.jpg', 'flower.jpg')]
    photograph = cv2.imread(paths[-1])
    for name, picture in [('tall.jpg', photograph[:, :150]), ('small.png', photograph[:90, :101]),
                          ('alpha.png', np.dstack([photograph, photograph[..., 0]]))]:
        cv2.imwrite(str(folder / name), picture)
        paths.append(str(folder / name))
    status, _, err = run_main('--predict', *(paths + ['--load', DIGITS_CHECKPOINT, '--image_size', '192', '--topk', '1', '--json',
                                                      folder / 'said.json']))
    assert status == 0, err
    with open(str(folder / 'said.json')) as f:
        said = [entry['classes'][0] for entry in json.load(f)]
    return paths, [(entry['label'], entry['probability']) for entry in said]


@pytest.mark.slow
def test_onnx_keras_frozen_graph_and_label_file_have_the_names(exported):
    from tf_compat import tf

    import onnxruntime
    folder = exported / 'all'
    found = onnxruntime.InferenceSession(str(folder / 'ghostnet.onnx')).get_modelmeta().custom_metadata_map
    assert json.loads(found['classes']) == NAMES and found['channels'] == 'RGB'
    status, out, err = run_main(folder / 'ghostnet.keras', exported / 'again.keras', script=['-c', READ])
    assert status == 0 and json.loads(out) == NAMES, err
    constants = [node for node in tf.GraphDef.FromString((folder / 'ghostnet.pb').read_bytes()).node if node.name == 'classes']
    assert tf.make_ndarray(constants[0].attr['value'].tensor).tolist() == [os.fsencode(name) for name in NAMES]
    with zipfile.ZipFile(io.BytesIO((folder / 'ghostnet.tflite').read_bytes())) as archive:
        assert archive.read('labels.txt') == LINES


@pytest.mark.slow
def test_savedmodel_classifies_the_bytes_of_files(exported, pictures):
    paths, said = pictures
    status, out, err = run_main(exported / 'all' / 'saved_model', *paths, script=['-c', SERVE])
    assert status == 0, err
    names, probabilities = json.loads(out.splitlines()[-1])
    assert [row[0] for row in names] == [NAMES[label] for label, _ in said] and len(names[0]) == 5
    assert np.abs(np.array(probabilities)[:, 0] - [probability for _, probability in said]).max() < 2e-3
    assert all(row == sorted(row, reverse=True) for row in probabilities)


@pytest.mark.slow
def test_mediapipe_names_the_class(exported, pictures, tmp_path):
    install = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps', '--target',
               str(tmp_path / 'mediapipe'), MEDIAPIPE]
    if subprocess.run(install, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs pip to get %s" % MEDIAPIPE)
    paths, said = pictures
    squares = 4    # digits: MediaPipe stretches what is not square
    status, out, err = run_main(exported / 'all' / 'ghostnet.tflite', *paths[:squares], script=['-c', CLASSIFY],
                                env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path / 'mediapipe'), ROOT])))
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines() if line.startswith('[')]
    lines = LINES.decode().split('\n')
    assert found == [[lines[label], label] for label, _ in said[:squares]]
