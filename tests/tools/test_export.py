"""Exports as a user makes them, loaded again by the runtimes that they are for."""
import hashlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

from tf_compat import TENSORFLOW_VERSION, tf

import cv2
import numpy as np
import pytest
from tensorpack.tfutils.tower import PredictTowerContext

from augmentation import eval_crop, eval_images
from checkpoints import CheckpointRestore
from conftest import DIGITS_CHECKPOINT, ROOT, random_checkpoint, rare, refused, run_main, small_disk
from dataset import read_images
from evaluation import frozen
from ghostnet import BACKBONE, GhostNet, from_checkpoint
from pictures import read_image
from trees import link_tree, shorten

EXPORT = {'script': ['-m', 'tools.export']}
TF1 = TENSORFLOW_VERSION.startswith('1.')


def needs(form):
    if TF1 and form not in ('frozen', 'savedmodel'):
        pytest.skip("%s needs TensorFlow 2" % form)
    if form == 'onnx' and importlib.util.find_spec('tf2onnx') is None:
        pytest.skip("needs tf2onnx: make test-interop")


def run_export(*args, **kwargs):
    """Runs the tool; returns the rows of its table, {(export, runtime): line}, and all of stdout."""
    status, out, err = run_main(*args, **dict(kwargs, **EXPORT))
    assert status == 0, (out, err)
    return [re.split('  +', line.strip()) for line in out.splitlines()[2:]], out


def hashes(folder):
    """{path: MD5} of the files in a folder, and in those below it."""
    found = {}
    for parent, _, names in os.walk(str(folder)):
        for name in names:
            with open(os.path.join(parent, name), 'rb') as f:
                found[os.path.relpath(os.path.join(parent, name), str(folder))] = hashlib.md5(f.read()).hexdigest()
    return found


def other_environment(folder):
    """What must make no difference: how Python orders sets, what Keras, TensorFlow and XLA are told, and where."""
    (folder / '.keras').mkdir(parents=True)
    (folder / '.keras' / 'keras.json').write_text(json.dumps(
        {'image_data_format': 'channels_first', 'floatx': 'float16', 'epsilon': 0.1, 'backend': 'jax'}))
    return dict(os.environ, HOME=str(folder), KERAS_HOME=str(folder / '.keras'), KERAS_BACKEND='torch', TF_USE_LEGACY_KERAS='0',
                PYTHONHASHSEED='7', TF_XLA_FLAGS='--tf_xla_auto_jit=2', XLA_FLAGS='--no-such-flag', TF_ENABLE_ONEDNN_OPTS='0',
                TZ='Asia/Tokyo')


def reload(form, path, images, outputs, tmp_path):
    """What an export makes of images, in its runtime."""
    np.savez(str(tmp_path / 'images.npz'), images)
    status, _, err = run_main(form, path, tmp_path / 'images.npz', tmp_path / 'outputs.npz', ','.join(outputs),
                              script=['-m', 'tools.export.runtimes'])
    assert status == 0, err
    with np.load(str(tmp_path / 'outputs.npz')) as result:
        return [result[name] for name in outputs]


@pytest.fixture(scope='module')
def forty(digits, evaluated_digits):
    """40 of the digits as evaluation preprocesses them, and their logits by main.py."""
    return eval_images([file for file, _ in read_images(digits, 'val')[:40]]), evaluated_digits[2]['logits'][:40]


@pytest.mark.slow
@pytest.mark.parametrize('form, name, flags', [
    rare('frozen', 'ghostnet.pb', []), ('savedmodel', 'model', ['--rgb']), ('tflite', 'ghostnet.tflite', ['--softmax']),
    ('onnx', 'ghostnet.onnx', ['--raw', '--rgb']), rare('keras', 'ghostnet.keras', ['--raw', '--softmax'])])
def test_an_export_gives_what_main_gives(form, name, flags, forty, tmp_path):
    needs(form)
    images, expected = forty
    (tmp_path / 'out').mkdir()
    command = ['--load', DIGITS_CHECKPOINT, '--format', form] + flags
    rows, _ = run_export(*(command + [tmp_path / 'out' / name]), env=other_environment(tmp_path / 'home'))
    assert os.listdir(str(tmp_path / 'out')) == [name]    # and nothing unfinished
    compared = [row for row in rows if row[0] == form]
    assert compared and all(float(row[5]) <= 1e-4 and row[6] == '26 of 26' for row in compared)

    if '--raw' in flags:
        images = (images / 255.0 - [0.406, 0.456, 0.485]) / [0.225, 0.224, 0.229]
        images = images.astype(np.float32)
    output = 'probabilities' if '--softmax' in flags else 'logits'
    if output == 'probabilities':
        expected = np.exp(expected - expected.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
    result, = reload(form, tmp_path / 'out' / name, images[..., ::-1] if '--rgb' in flags else images, [output], tmp_path)
    assert result.dtype == np.float32 and result.shape == (40, 10)
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.array_equal(result.argmax(1), expected.argmax(1))


def test_a_frozen_graph_has_the_same_bytes_anywhere_with_bn_folded_and_constants_for_variables(tmp_path):
    load = random_checkpoint(tmp_path / 'checkpoint', width=0.25, num_classes=5, ratio_code=[3] * 19, dw_code=[5] * 19)
    command = ['--load', load, '--format', 'frozen', '--tf1_python', 'none']
    run_export(*(command + [tmp_path / 'ghostnet.pb']))
    frozen = (tmp_path / 'ghostnet.pb').read_bytes()
    if TF1:    # test_all_formats_and_int8 does so on today's
        run_export(*(command + [tmp_path / 'again.pb']), env=other_environment(tmp_path / 'home'))
        assert frozen == (tmp_path / 'again.pb').read_bytes()
    graph = tf.GraphDef.FromString(frozen)
    operations = [node.op for node in graph.node]
    assert not [op for op in operations if 'BatchNorm' in op or 'Var' in op or op == 'Identity'][1:]    # but the output's Identity
    assert operations.count('BiasAdd') == operations.count('Conv2D') + operations.count('DepthwiseConv2dNative')


@pytest.mark.slow
@pytest.mark.parametrize('form', ['frozen', 'tflite', rare('onnx'), rare('keras')])
def test_feature_maps_are_exported_for_any_size(form, tmp_path):
    """With atrous convolution, which some runtimes compute by an attribute, and others by moving pixels. From a backbone alone."""
    needs(form)
    load = random_checkpoint(tmp_path / 'checkpoint', lacking='Conv2d_1[78]/|Logits/', variant='pytorch', width=0.25)
    if form == 'frozen':
        assert 'has no classifier' in refused('--load', load, '--format', form, tmp_path / 'logits', **EXPORT)
    path = tmp_path / ('features.keras' if form == 'keras' else 'features')
    run_export('--load', load, '--format', form, path, '--features', '--output_stride', 8)
    images = np.random.RandomState(0).randint(0, 256, (2, 96, 160, 3)).astype(np.uint8)
    with tf.Graph().as_default(), tf.Session() as session, PredictTowerContext(''):
        image = tf.placeholder(tf.uint8, [None, None, None, 3])
        maps = GhostNet(variant='pytorch', width=0.25, output_stride=8).feature_maps(image)
        CheckpointRestore(load, BACKBONE).init(session)
        expected = session.run(maps, {image: images})
    assert expected['Conv2d_16'].shape[1:3] == (12, 20)
    for (name, value), result in zip(expected.items(), reload(form, path, images, list(expected), tmp_path)):
        assert result.shape == value.shape and np.linalg.norm(result - value) <= 1e-4 * np.linalg.norm(value), name


@pytest.mark.slow
@pytest.mark.parametrize('form, size', [rare('frozen', 224), ('savedmodel', 224), ('onnx', 225), rare('keras', 160)])
def test_images_of_any_size_are_cropped_in_the_export(form, size, digits, tmp_path):
    needs(form)
    path = tmp_path / ('model.keras' if form == 'keras' else 'model')
    flags = ['--rgb'] if form == 'savedmodel' else ['--trainable'] if form == 'keras' else []
    rows, _ = run_export('--load', DIGITS_CHECKPOINT, '--format', form, path, '--any_size', '--image_size', size, *flags)
    assert [row[6] for row in rows if row[0] == form][0] == '26 of 26'    # photographs of their own sizes
    pictures = np.stack([cv2.resize(read_image(file), (310, 275)) for file, _ in read_images(digits, 'val')[:5]])
    result, = reload(form, path, pictures[..., ::-1] if '--rgb' in flags else pictures, ['logits'], tmp_path)
    with tf.Graph().as_default(), tf.Session() as session:
        restore = CheckpointRestore(DIGITS_CHECKPOINT)
        frozen.build_and_restore(session, from_checkpoint(restore, image_size=size), restore)
        expected = session.run('logits:0', {'input:0': np.stack([eval_crop(picture, size) for picture in pictures])})
    assert np.linalg.norm(result - expected) <= 1e-3 * np.linalg.norm(expected)
    if form == 'savedmodel':    # the other signature is there as well
        contents = [cv2.imencode('.png', picture)[1].tobytes() for picture in (pictures[0], pictures[1, :200])]
        with tf.Graph().as_default() as graph, tf.Session() as session:
            signature = tf.saved_model.loader.load(session, ['serve'], str(path)).signature_def['serving_bytes']
            best = session.run(graph.get_tensor_by_name(signature.outputs['classes'].name),
                               {signature.inputs['image_bytes'].name: contents})
        assert best.shape == (2, 5) and int(best[0, 0]) == expected[0].argmax()


def with_twenty(digits, tree):
    """The digits with the same images to calibrate on, and the first twenty to compare on."""
    link_tree(digits, tree)
    os.symlink(os.path.join(digits, 'train'), str(tree / 'train'))
    shorten(str(tree), 20)
    return tree


@pytest.mark.slow
def test_all_formats_and_int8(digits, tmp_path):
    needs('onnx')
    rows, out = run_export('--load', DIGITS_CHECKPOINT, '--format', 'all', tmp_path / 'all', '--int8', '--data_dir', digits)
    assert sorted(os.listdir(str(tmp_path / 'all'))) == [
        'ghostnet.keras', 'ghostnet.onnx', 'ghostnet.pb', 'ghostnet.tflite', 'ghostnet_int8.tflite', 'saved_model']
    table = {(row[0], row[1].split()[0]): row for row in rows if len(row) > 4}
    assert {'frozen', 'savedmodel', 'tflite', 'onnx', 'keras', 'tflite int8'} <= set(row[0] for row in table.values())
    assert [row[1] for row in rows if row[0] == 'frozen'][-1] == 'TensorFlow 1.13.1'
    megabytes = {name: float(row[2]) for (name, _), row in table.items()}
    assert megabytes['tflite int8'] < 0.35 * megabytes['tflite']
    same, count = re.search(r'(\d+) of (\d+)', [row for row in rows if row[0] == 'tflite int8'][0][6]).groups()
    assert count == '360' and int(same) > 340    # of what it was not calibrated on
    float_error = 4 / 360
    assert 'calibrated with 50 images, compared on 360 ' in out and 'that of the graph %.4f' % float_error in out
    from ai_edge_litert.interpreter import Interpreter
    int8 = Interpreter(str(tmp_path / 'all' / 'ghostnet_int8.tflite'))
    ends = int8.get_input_details() + int8.get_output_details()
    assert [end['dtype'] for end in ends] == [np.uint8, np.uint8] and all(end['quantization'][0] > 0 for end in ends)
    assert {str(np.dtype(tensor['dtype'])) for tensor in int8.get_tensor_details()} == {'uint8', 'int8', 'int32'}

    run_export('--load', DIGITS_CHECKPOINT, '--format', 'all', tmp_path / 'again', '--int8', '--data_dir',
               with_twenty(digits, tmp_path / 'tree'), '--tf1_python', 'none', env=other_environment(tmp_path / 'home'))
    assert hashes(tmp_path / 'again') == hashes(tmp_path / 'all')


# --------------------------------------------------------------------------------------------------------------- mistakes

def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch, capsys):
    from tools.export import __main__ as command, exporter
    load = random_checkpoint(tmp_path / 'checkpoint', width=0.25, num_classes=5)
    run_module = exporter.run_module

    def broken(module, *args, **kwargs):
        """As if the runtime computed something else."""
        run_module(module, *args, **kwargs)
        if module == 'tools.export.runtimes':
            with np.load(args[3]) as result:
                arrays = dict(result)
            arrays['logits'] = arrays['logits'] * 1.001
            np.savez(args[3], **arrays)
    monkeypatch.setattr(exporter, 'run_module', broken)
    monkeypatch.setattr(sys, 'argv', ['export', '--load', load, '--format', 'frozen', str(tmp_path / 'ghostnet.pb')])
    assert command.main(command.parse_args()) == 1
    assert "'frozen' does not give what the graph does, and was not written" in capsys.readouterr().err
    assert not (tmp_path / 'ghostnet.pb').exists() and not list(tmp_path.glob('unfinished*'))


@pytest.mark.slow
def test_int8_that_costs_more_than_int8_loss_is_not_written(digits, tmp_path):
    """All logits are near 1000, which makes no difference in float. In 8 bits, steps of 4 are left."""
    needs('tflite')
    from checkpoints import save_values
    values = CheckpointRestore(DIGITS_CHECKPOINT).values
    values['MobileNetV2/Logits/Conv2d_1c_1x1/b'] += 1000
    save_values(values, str(tmp_path / 'checkpoint'))
    status, out, err = run_main('--load', tmp_path / 'checkpoint', '--format', 'tflite', '--int8', '--data_dir', digits,
                                tmp_path / 'x.tflite', **EXPORT)
    lost, graph, allowed = re.match(r"export: the export 'tflite int8' has a top-1 error of ([\d.]+), the graph of ([\d.]+): more "
                                    r"than --int8_loss ([\d.]+) is lost, and was not written\n$", err).groups()
    assert status == 1 and float(lost) > float(graph) + 0.05 and abs(float(graph) - 4 / 360) < 0.01 and allowed == '0.05'
    assert "int8: calibrated with 50 images" in out and os.listdir(str(tmp_path)).count('x.tflite') == 0


def test_what_is_not_finite_or_of_another_shape_is_no_match():
    from tools.export.compare import difference
    value = np.float32([[1, 2], [3, 5]])
    for wrong in (np.nan, np.inf):
        broken = value.copy()
        broken[1, 0] = wrong
        for results, expected in ((broken, value), (value, broken), (broken, broken)):
            for order in (('a', 'b'), ('b', 'a')):    # in whichever output
                both = {name: {'a': expected, 'b': value}[name] for name in order}
                assert difference({'a': results, 'b': value}, both)[0] == math.inf
    assert difference({'a': value[:1]}, {'a': value})[0] == math.inf
    assert difference({'a': 0 * value}, {'a': 0 * value}) == (0, 2)
    assert difference({'a': value}, {'a': 0 * value})[0] == math.inf
    assert difference({'a': value + np.float32([[0, 0], [0, 1]])}, {'a': value}) == (1 / math.sqrt(39), 2)


@pytest.mark.slow
def test_a_network_without_finite_logits_is_refused(tmp_path):
    from checkpoints import save_values
    values = CheckpointRestore(DIGITS_CHECKPOINT).values
    values['MobileNetV2/Logits/Conv2d_1c_1x1/W'] = 3e38 * np.ones_like(values['MobileNetV2/Logits/Conv2d_1c_1x1/W'])
    save_values(values, str(tmp_path / 'huge'))
    assert 'logits that are not finite' in refused('--load', tmp_path / 'huge', '--format', 'frozen', tmp_path / 'x.pb', **EXPORT)
    assert not list(tmp_path.glob('x*')) and not list(tmp_path.glob('unfinished*'))


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('form, size', [
    ('savedmodel', '2m'), rare('frozen', '23m'), rare('keras', '38m'), rare('tflite', '38m')])
def test_a_full_disk_is_named_and_nothing_is_left(form, size, tmp_path):
    needs(form)
    with small_disk(tmp_path / 'disk', size) as folder:
        status, _, err = run_main('--load', DIGITS_CHECKPOINT, '--format', form, folder / 'x.keras', '--tf1_python', 'none',
                                  **EXPORT)
        assert status == 2 and err.startswith('export: cannot write %s: the disk is full' % (folder / 'x.keras'))
        assert err.count('\n') == 1 and os.listdir(str(folder)) == []


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('signum, status', [(signal.SIGTERM, 143), rare(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_ends_the_command_and_its_children(signum, status, tmp_path):
    """While a child converts."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'tools.export', '--load', DIGITS_CHECKPOINT, '--format', 'savedmodel', str(tmp_path / 'x')],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True, start_new_session=True)
    try:
        end = time.time() + 120
        while not list(tmp_path.glob('unfinished-*/dilations')):
            assert process.poll() is None and time.time() < end
            time.sleep(0.05)
        time.sleep(0.7)    # less than a conversion takes, TensorFlow's import included
        process.send_signal(signum)
        err = process.communicate(timeout=60)[1]    # which ends when the children, too, have closed it
        assert process.returncode == status
        assert signum == signal.SIGKILL or re.match('export: stopped by SIG(TERM|INT)\n$', err), err
    finally:
        process.kill()
    if signum == signal.SIGKILL:    # the next run removes what that one has left
        assert list(tmp_path.glob('unfinished-*'))
        assert 'there is no checkpoint' in refused('--load', 'no', '--format', 'frozen', tmp_path / 'y', **EXPORT)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('flags, message', [
    (['--format', 'frozen', 'out'], '--load'),
    (['--load', 'x', '--format', 'coreml', 'out'], '--format'),
    (['--load', 'x', '--format', 'tflite', 'out', '--int8'], '--data_dir of the ILSVRC12 tree'),
    (['--load', 'x', '--format', 'onnx', 'out', '--int8', '--data_dir', '.'], '--int8 goes with --format tflite'),
    (['--load', 'x', '--format', 'tflite', 'out', '--raw', '--int8', '--data_dir', '.'], '--int8 takes pixels'),
    (['--load', 'x', '--format', 'tflite', 'out', '--int8', '--data_dir', '.', '--int8_loss', '-1'], '--int8_loss'),
    (['--load', 'x', '--format', 'tflite', 'out', '--features', '--int8', '--data_dir', '.'], '--int8 does not go with --features'),
    (['--load', 'x', '--format', 'frozen', 'out', '--features', '--softmax'], 'leave out --softmax'),
    (['--load', 'x', '--format', 'frozen', 'out', '--output_stride', '8'], '--output_stride goes with --features'),
    (['--load', 'x', '--format', 'frozen', 'out', '--features', '--output_stride', '7'], '--output_stride'),
    (['--load', 'x', '--format', 'tflite', 'out', '--any_size'], '--any_size goes with --format frozen, savedmodel, onnx, keras'),
    (['--load', 'x', '--format', 'onnx', 'out', '--any_size', '--raw'], '--any_size takes pictures and crops them'),
    (['--load', 'x', '--format', 'onnx', 'out', '--features', '--image_size', '160'], '--features take images of any size: leave'),
    (['--load', 'x', '--format', 'onnx', 'out', '--image_size', '400'], "--image_size: '400' is not an integer from 128 to 384"),
    (['--load', 'x', '--format', 'frozen', 'no/folder/out'], 'cannot write'),
    (['--load', 'x', '--format', 'savedmodel', 'models'], 'models is there already'),
    (['--load', 'no', '--format', 'frozen', 'out'], 'there is no checkpoint no'),
])
def test_what_cannot_be_exported_is_refused(flags, message, tmp_path):
    flags = [tmp_path / 'out' if flag == 'out' else flag for flag in flags]
    assert message in refused(*flags, **EXPORT)
    assert not list(tmp_path.iterdir())


def test_a_tree_of_other_classes_is_refused(tmp_path, digits):
    needs('tflite')
    load = random_checkpoint(tmp_path / 'checkpoint', width=0.25, num_classes=5)
    flags = ['--load', load, '--format', 'tflite', tmp_path / 'x', '--int8', '--data_dir', digits]
    assert 'the network has 5 classes' in refused(*flags, **EXPORT)
    assert not [name for name in os.listdir(str(tmp_path)) if not name.startswith('checkpoint')]
