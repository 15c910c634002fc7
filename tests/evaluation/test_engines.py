"""The engines give the same counts, with any workers."""
import collections
import json
import os
import threading

from tf_compat import TENSORFLOW_VERSION, tf

import numpy as np
import pytest

from checkpoints import CheckpointRestore
from command_line import InputError, required
from conftest import DIGITS_CHECKPOINT, evaluated, random_checkpoint, rare, refused, run_main
from evaluation import engines, throughput
from evaluation.engines import Engine, make_engine
from evaluation.evaluate import evaluate, wrong
from evaluation.report import hint_at_chance
from ghostnet import from_checkpoint
from imagenet_utils import in_order
from trees import link_tree, shorten

TF1 = TENSORFLOW_VERSION.startswith('1.')


PACKAGES = {'openvino': ['openvino'], 'onnx': ['onnxruntime', 'onnx', 'tf2onnx']}


def reason_against(engine):
    """Why an engine cannot work here, None if it can."""
    if TF1 and engine not in ('tensorpack', 'frozen'):
        return "the engine %s needs TensorFlow 2, this is %s" % (engine, TENSORFLOW_VERSION)
    try:
        for package in PACKAGES.get(engine, []):
            required(package)
    except InputError as error:
        return str(error)


def needs(engine):
    reason = reason_against(engine)
    if reason is not None:
        pytest.skip(reason)


def working():
    """The names of the engines that work here."""
    return [name for name in engines.ENGINES if reason_against(name) is None]


@pytest.mark.parametrize('k', [1, 5])
def test_wrong_is_in_top_k(k):
    rng = np.random.RandomState(k)
    logits = rng.randint(0, 6, (500, 12)).astype(np.float32)    # with many ties
    logits[::17, 3], logits[5::29, 4], logits[7::31, 5] = np.nan, np.inf, -np.inf
    labels = rng.randint(0, 12, 500)
    with tf.Graph().as_default(), tf.Session() as session:
        right = session.run(tf.nn.in_top_k(logits, labels, k))
    assert 0 < right.sum() < 500
    assert (wrong(logits, labels, k) == ~right).all()


@pytest.mark.parametrize('engine, flags', [
    rare('frozen', []), rare('tflite', []), ('tensorpack', ['--jobs', 5, '--eval_batch', 7]),
    ('frozen', ['--jobs', 5, '--eval_batch', 7]),
    ('tflite', ['--jobs', 5, '--eval_batch', 7]), ('openvino', ['--jobs', 5, '--eval_batch', 7]),
    ('onnx', ['--jobs', 5, '--eval_batch', 7])])
def test_neither_engine_nor_jobs_nor_batch_change_the_result(digits, evaluated_digits, tmp_path, engine, flags):
    """The counts are those published of the digits, and the logits those of the default engine."""
    needs(engine)
    said, result = evaluated(digits, DIGITS_CHECKPOINT, tmp_path / 'json', '--engine', engine, '--save_logits',
                             tmp_path / 'logits.npz', *flags)
    assert (result['images'], result['wrong_top1'], result['wrong_top5']) == (360, 4, 0)
    assert result['engine'] == engine and said.endswith('engine %s\n' % engine)
    saved, expected = np.load(str(tmp_path / 'logits.npz'))['logits'], evaluated_digits[2]['logits']
    assert np.linalg.norm(saved - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.once
@pytest.mark.slow
def test_auto_takes_the_fastest_and_says_which(digits, evaluated_digits, tmp_path):
    tree = link_tree(digits, tmp_path / 'tree')
    shorten(tree, 40)
    logits = tmp_path / 'logits.npz'
    said, result = evaluated(tree, DIGITS_CHECKPOINT, tmp_path / 'json', '--engine', 'auto', '--save_logits', logits)
    first = said.splitlines()[0].split()
    rates = dict(zip(first[3:-4:2], map(float, (rate.rstrip(',') for rate in first[4:-3:2]))))
    assert list(rates) == working()
    assert first[:2] == ['engine', result['engine'] + ','] and rates[result['engine']] == max(rates.values())
    saved, expected = np.load(str(logits))['logits'], evaluated_digits[2]['logits'][:40]
    assert np.linalg.norm(saved - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize('engine', ['frozen', rare('tflite'), rare('openvino'), 'onnx'])
def test_predict_with_another_engine(digits, evaluated_digits, tmp_path, engine):
    needs(engine)
    status, _, err = run_main('--predict', os.path.join(digits, 'val'), '--load', DIGITS_CHECKPOINT, '--engine', engine, '--topk',
                              10, '--json', tmp_path / 'json')
    assert status == 0, err
    logits = dict(zip(evaluated_digits[2]['files'].tolist(), evaluated_digits[2]['logits'].astype(np.float64)))
    predictions = json.loads((tmp_path / 'json').read_text())
    assert len(predictions) == len(logits) == 360
    for entry in predictions:
        expected = np.exp(logits[os.path.basename(entry['file'])])
        found = dict((c['label'], c['probability']) for c in entry['classes'])
        assert entry['classes'][0]['label'] == expected.argmax()
        assert np.allclose([found[label] for label in range(10)], expected / expected.sum(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    {'variant': 'imgclsmob', 'width': 0.5}, rare({'variant': 'pytorch', 'se': 0, 'image_size': 161})])
def test_variants_and_layouts_in_every_engine(options, digits, tmp_path):
    """A network with other widths, codes and sizes, of another library, in each: the logits of the default engine."""
    tree = link_tree(digits, tmp_path / 'tree')
    shorten(tree, 40)
    load = random_checkpoint(tmp_path / 'checkpoint', num_classes=10, **options)
    logits = []
    for engine in working():
        flags = ['--width_ratio', options.get('width', 1), '--se', options.get('se', 3), '--engine', engine]
        flags += ['--data-format', 'NCHW'] if engine == 'frozen' and not TF1 else []
        evaluated(tree, load, tmp_path / 'json', '--save_logits', tmp_path / 'logits.npz', *flags)
        logits.append(np.load(str(tmp_path / 'logits.npz'))['logits'])
    for other in logits[1:]:
        assert np.median(np.linalg.norm(other - logits[0], axis=1) / np.linalg.norm(logits[0], axis=1)) < 1e-5


@pytest.mark.parametrize('engine', ['openvino', 'onnx'])
def test_channels_first_in_other_runtimes(engine, tmp_path):
    """They compute it on any processor. One image more than a batch, in threads that call at once."""
    needs(engine)
    load = random_checkpoint(tmp_path / 'random', num_classes=10, width=0.5, image_size=161)
    images = np.random.RandomState(0).randint(0, 256, (5, 161, 161, 3)).astype(np.uint8)
    restore = CheckpointRestore(load)
    nhwc, nchw = [from_checkpoint(restore, data_format=layout) for layout in ('NHWC', 'NCHW')]
    expected = make_engine('frozen', nhwc, restore, 1).call(images)
    for logits in in_order(make_engine(engine, nchw, restore, 2).call, [images] * 4, 2):
        assert logits.shape == (5, 10) and np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-5


def test_latency_of_what_is_slow_takes_a_second_and_not_minutes(monkeypatch):
    """By a clock that stands still but for the calls."""
    clock = [0.0]
    monkeypatch.setattr(throughput.time, 'perf_counter', lambda: clock[0])

    def measured(first, later):
        calls = []

        def call():
            clock[0] += later if calls else first
            calls.append(1)
        return throughput.latency(call), len(calls)
    assert measured(1, 0.01) == (pytest.approx(0.01), 60)
    assert measured(1, 0.24) == (pytest.approx(0.24), 6)
    assert measured(20, 10) == (pytest.approx(10), 4)


def fake_engines(**fakes):
    """For engines.ENGINES: functions like those, of `call`s."""
    return collections.OrderedDict((name, lambda model, restore, jobs, name=name, call=call: Engine(name, call, 2))
                                   for name, call in fakes.items())


def test_auto_passes_by_what_fails_and_calls_first_in_one_thread(monkeypatch, capsys):
    """Workers whose first calls of OpenVINO meet wait for each other for ever. A package may be broken in any way."""
    model, threads = type('Model', (), {'data_format': 'NHWC', 'image_size': 4}), []

    def good(images):
        threads.append(threading.current_thread())
        return np.zeros([len(images), 10], np.float32)

    def bad(images):
        raise AttributeError("it does not go with\nthat NumPy")
    monkeypatch.setattr(engines, 'ENGINES', fake_engines(frozen=good, openvino=bad, onnx=good))
    assert make_engine('auto', model, None, 2, lambda: np.zeros([4, 4, 4, 3], np.uint8)).name in ('frozen', 'onnx')
    assert threads[0] == threading.current_thread()
    assert 'openvino' not in capsys.readouterr().out
    with pytest.raises(InputError, match='^--engine openvino does not work with the packages installed [(]it does not go with'):
        make_engine('openvino', model, None, 2)
    monkeypatch.setattr(engines, 'ENGINES', fake_engines(frozen=bad, onnx=good))
    with pytest.raises(AttributeError):    # what the program needs is not passed by
        make_engine('auto', model, None, 2, lambda: np.zeros([4, 4, 4, 3], np.uint8))


def test_auto_measures_close_engines_in_turns(monkeypatch):
    """The second rate is nearly the first, so both are measured twice more, and the best of each counts."""
    rates = {'frozen': [100, 100, 100], 'onnx': [90, 120, 90], 'tensorpack': [50]}

    def measured(engine, images, jobs, seconds):
        return rates[engine.name].pop(0)
    monkeypatch.setattr(engines, 'measure', measured)
    monkeypatch.setattr(engines, 'ENGINES', fake_engines(**{name: lambda images: images for name in ('frozen', 'onnx')}))
    monkeypatch.setitem(engines.ENGINES, 'tensorpack', lambda model, restore, jobs: Engine('tensorpack', lambda images: images, 2))
    model = type('Model', (), {'data_format': 'NHWC', 'image_size': 4})
    assert make_engine('auto', model, None, 2, lambda: None).name == 'onnx'
    assert not any(rates.values())


def test_engines_refuse(digits, tmp_path):
    (tmp_path / 'openvino.py').write_text("raise AttributeError('it does not go with this NumPy')")
    message = refused('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--engine', 'openvino',
                      env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    assert ('--engine openvino needs TensorFlow 2' if TF1 else "the package 'openvino' cannot be imported (it does not") in message
    flags = ['--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--engine', 'tflite']
    for engine in ('tflite', 'openvino', 'onnx'):
        assert '--engine %s computes on the CPU: leave out --gpu' % engine in refused('--eval', '--engine', engine, '--gpu', '0')
    if TF1:
        assert '--engine tflite needs TensorFlow 2' in refused(*flags)
    else:
        assert 'leave out --data-format' in refused('--data-format', 'NCHW', *flags)
    assert 'does not fit the model' in refused('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--engine', 'frozen',
                                               '--width_ratio', 0.5)


def test_what_cannot_be_read_ends_the_evaluation_at_once(tmp_path):
    """With workers that are busy for ever otherwise."""
    computed = []

    def call(images):
        computed.append(len(images))
        return np.zeros([len(images), 10], np.float32)

    def read(start, end):
        if start >= 40:
            raise InputError("the image is broken")
        return np.zeros([end - start, 4], np.uint8), np.ones(end - start, bool)
    model = type('Model', (), {'data_format': 'NHWC'})
    with pytest.raises(InputError):
        evaluate(Engine('none', call, 4), model, [['x', 0]] * 100000, None, 2, read)
    assert sum(computed) == 40


def test_workers_overlap(tmp_path):
    """Each of the two waits until the other one computes too."""
    together = threading.Barrier(2)

    def call(images):
        together.wait(timeout=60)
        return np.zeros([len(images), 10], np.float32)
    model = type('Model', (), {'data_format': 'NHWC'})
    result = evaluate(Engine('none', call, 4), model, [['x', 0]] * 16, None, 2,
                      lambda start, end: (np.zeros([end - start, 4], np.uint8), np.ones(end - start, bool)))
    assert result['logits'].shape == (16, 10) and result['wrong_top1'] == 0


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    def call(images):
        logits = np.zeros([len(images), 10], np.float32)
        logits[images[:, 0] == 5, 3] = value
        return logits

    def read(start, end):
        return np.arange(start, end)[:, np.newaxis], np.ones(end - start, bool)
    model = type('Model', (), {'data_format': 'NHWC'})
    with pytest.raises(InputError, match='^the logits of picture 5 are not finite: '):
        evaluate(Engine('none', call, 4), model, [['picture %d' % i, 0] for i in range(9)], None, 2, read)


@pytest.mark.parametrize('wrong_top1, count, classes, hinted', [
    (300, 300, 1000, True), (299, 300, 1000, True), (298, 300, 1000, False), (324, 360, 10, True), (300, 360, 10, False),
    (0, 2, 2, False), (1, 2, 2, True), (10, 100, 2, False)])
def test_results_like_guesses_are_pointed_out(wrong_top1, count, classes, hinted, capsys):
    hint_at_chance(wrong_top1, count, classes)
    assert ('not clearly better than chance' in capsys.readouterr().err) == hinted
