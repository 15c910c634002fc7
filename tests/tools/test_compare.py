"""tools/compare: the counts beside the published ones, equal logits in both runtimes, the figure's labels, the command."""
import itertools
import json

import numpy as np
import pytest

from command_line import InputError
from conftest import DIGITS_CHECKPOINT, refused, run_main
from tools.compare import figure, networks
from tools.compare.__main__ import front, own_network

COMPARE = {'script': ['-m', 'tools.compare']}


def need_interop():
    import tf_compat  # noqa: F401  (before the others import TensorFlow)
    for package in ('tf2cv', 'ai_edge_litert', 'onnxruntime', 'tf2onnx'):
        pytest.importorskip(package, reason="needs the packages of requirements-interop.txt: make test-interop")


def results(points):
    """What tools.compare makes of {name: (multiply-adds in M, top-1, ms)}."""
    return {'runtime': 'LiteRT 2.3.0', 'processor': 'AMD EPYC', 'networks': [
        {'name': name, 'family': name.split(' ')[0], 'top1': top1, 'multiply_adds': 1e6 * millions,
         'latencies': [{'ms': ms, 'quartiles': [0.9 * ms, 1.2 * ms]}]} for name, (millions, top1, ms) in points.items()]}


def published(seed):
    """The points of the real figure, with latencies by chance around 4 ms for 100 M."""
    rng = np.random.RandomState(seed)
    points = {networks.name_of(network): (network.millions or 465, network.top1) for network in networks.NETWORKS}
    points['yours'] = (141, 73.6)
    return {name: point + (point[0] / 25 * rng.uniform(0.6, 1.6),) for name, point in points.items()}


@pytest.mark.parametrize('seed', range(2))
def test_each_point_has_a_label_over_no_other_and_inside(seed):
    points = published(seed)
    drawn, panels = figure.draw(results(dict(points, unknown=(100, None, 5))))    # not drawn: its top-1 is not known
    drawn.canvas.draw()
    for axes, labels in zip(drawn.axes, panels):
        assert sorted(label.get_text() for label in labels) == sorted(points)
        boxes = [label.get_window_extent() for label in labels]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        panel = axes.get_window_extent()
        for box in boxes:
            assert panel.x0 < box.x0 and box.x1 < panel.x1 and panel.y0 < box.y0 and box.y1 < panel.y1
        markers = [axes.transData.transform(label.xy) for label in labels]
        assert not any(box.contains(*marker) for box, marker in itertools.product(boxes, markers))
        shapes = {line.get_marker() for line in axes.lines if line.get_marker() in figure.MARKERS}
        assert len(shapes) == len({name.split(' ')[0] for name in points})    # a shape for each family


def test_front():
    rows = [dict(zip(('name', 'top1', 'ms'), row)) for row in [
        ('fast', 60, 1), ('beaten', 60, 2), ('slower and worse', 59, 3), ('good', 70, 3), ('as good', 70, 3), ('unknown', None, 0)]]
    assert front(rows, lambda row: row['ms']) == ['fast', 'good', 'as good']


def built(name):
    return {networks.name_of(network): network for network in networks.NETWORKS}[name].build


@pytest.mark.slow
@pytest.mark.parametrize('name, millions', [('GhostNet 1.0', 141.2), ('MobileNetV2 1.0', 300.8)])
def test_multiply_adds(name, millions):
    """As `main.py --flops` counts them, and as the paper of MobileNetV2 does, 300 M. Others are in the tests below."""
    need_interop()
    from tf_compat import tf

    from ghostnet import multiply_adds
    with tf.Graph().as_default() as graph:
        logits = built(name)(tf.placeholder(tf.float32, [None, 224, 224, 3]))
    with tf.Graph().as_default() as alone:    # Keras builds each of its models twice
        tf.import_graph_def(tf.graph_util.extract_sub_graph(graph.as_graph_def(), [logits.op.name]))
    assert round(sum(map(multiply_adds, alone.get_operations())) / 1e6, 1) == millions


@pytest.mark.slow
def test_both_runtimes_compute_the_same(tmp_path):
    """A network with what is rewritten for tf2onnx: means that drop their axes."""
    need_interop()
    from tf_compat import tf

    from evaluation import frozen
    from ghostnet import multiply_adds
    from tools.compare import measure
    graph_def, output, size = networks.frozen_graph(built('MnasNet A1'), None)
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [2, size, size, 3], name=frozen.INPUT)
        logits, = tf.import_graph_def(graph_def, {frozen.INPUT: image}, [output + ':0'], name='')
    assert sum(map(multiply_adds, graph.get_operations())) == pytest.approx(312e6, rel=0.002)    # as published
    found = []
    for runtime, convert in networks.CONVERTERS.items():
        convert(tf, graph, image, logits, str(tmp_path / runtime))
        found.append(measure.RUNTIMES[runtime][0](str(tmp_path / runtime), 1)())
    assert found[0].shape == (2, 1000) and found[0].std() > 0
    np.testing.assert_allclose(found[1], found[0], atol=1e-4 * np.abs(found[0]).max())


@pytest.mark.slow
def test_compare(tmp_path):
    """Two networks, and a checkpoint with its error."""
    need_interop()
    (tmp_path / 'result.json').write_text(json.dumps({'images': 360, 'wrong_top1': 90, 'image_size': 224}))
    status, out, err = run_main(
        '--networks', 'GhostNet 0.5', 'ShuffleNetV2 0.5', '--rounds', 1, '--load', DIGITS_CHECKPOINT,
        '--result', tmp_path / 'result.json', '--plot', tmp_path / 'figure.png', '--json', tmp_path / 'compare.json', **COMPARE)
    assert status == 0, err
    assert 'has 10 classes' in err
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in out.splitlines() if line.startswith('|')]
    measured = {row[0]: row[1:] for row in rows[2:5]}
    assert {name: row[:3] for name, row in measured.items()} == {
        'GhostNet 0.5': ['42.3 M', '42 M', '66.2'], 'ShuffleNetV2 0.5': ['40.5 M', '41 M', '61.1'],
        'yours': ['139.9 M', '–', '75.0']}
    assert rows[-1][0] == 'yours' and rows[-1][2] == 'result.json: 90 of 360 images wrong'
    assert 'No network here has a higher top-1 with as few multiply-adds as: GhostNet 0.5, ShuffleNetV2 0.5, yours.' in out
    record = json.loads((tmp_path / 'compare.json').read_text())
    assert record['runtime'].startswith('LiteRT ')
    assert record['front_by_multiply_adds'] == ['GhostNet 0.5', 'ShuffleNetV2 0.5', 'yours']
    for row in record['networks']:
        settings = [(entry['pictures'], entry['threads']) for entry in row['latencies']]
        assert settings[0] == (1, 1) and {pictures for pictures, _ in settings} == {1, 8}
        for entry in row['latencies']:
            assert 0 < entry['quartiles'][0] <= entry['ms'] <= entry['quartiles'][1]
    assert (tmp_path / 'figure.png').read_bytes()[:4] == b'\x89PNG'


def test_mistakes(tmp_path):
    for flags, message in [(['--result', 'x'], '--result goes with --load'), (['--rounds', '0'], '--rounds'),
                           (['--networks', 'VGG'], "none is called 'VGG'"), (['--plot', tmp_path], 'cannot write')]:
        assert message in refused(*flags, **COMPARE)
    try:
        need_interop()
    except pytest.skip.Exception:
        said = refused(**COMPARE)
        assert 'needs TensorFlow 2' in said or "the package '" in said


def test_mistakes_in_what_is_added(tmp_path):
    for record, message in [('{"images": 10}', 'cannot read'), ('{"images": 0, "wrong_top1": 0}', 'cannot read'),
                            ('[]', 'cannot read'), ('{"images": 10, "wrong_top1": 11}', '11 of 10 images'),
                            ('{"images": 10, "wrong_top1": 1, "image_size": 192}', 'of pictures of 192 pixels')]:
        (tmp_path / 'result.json').write_text(record)
        with pytest.raises(InputError, match=message):
            own_network(DIGITS_CHECKPOINT, str(tmp_path / 'result.json'))
    with pytest.raises(InputError, match='there is no checkpoint'):
        own_network('no', None)
    assert own_network(DIGITS_CHECKPOINT, None).top1 is None
