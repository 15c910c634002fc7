"""What training asks of GPUs, looked up in graphs that are built on the CPU: all-reduce operations, float16, layouts, XLA."""
import collections
import os

import tf_compat
from tf_compat import tf

import pytest
from tensorpack.input_source import DummyConstantInput
from tensorpack.models import Conv2D, GlobalAvgPooling
from test_collective import Told

from conftest import refused
from dataset import read_images
from ghostnet import GhostNet
from imagenet_utils import ImageNetModel, session_creator
from pictures import PictureReader
from runs import cut, stats_of
from training.collective import CollectiveWorkers
from training.train import Data, Run, train as train_in_process
from training.workers import OneWorker

VERSION_2 = tf_compat.wants_processes()


class OneLayer(ImageNetModel):
    """Two variables."""

    def __init__(self):
        super(OneLayer, self).__init__('NHWC', 0.1, 0, 0, False, image_size=128)

    def get_logits(self, image):
        return GlobalAvgPooling('pool', Conv2D('conv', self.image_preprocess(image), 10, 1))


def set_up(trainer, model, batch=4):
    """The nodes of the training graph of a model."""
    size = model.image_size
    trainer.setup_graph(model.inputs(), DummyConstantInput([[batch, size, size, 3], [batch]]), model.build_graph, model.optimizer)
    return tf.get_default_graph().as_graph_def().node


@pytest.mark.parametrize('gpus', [2, 8])
def test_replicated_gradients(gpus):
    """NCCL where it is sound; on TensorFlow 2, where several GPUs get a process each unless --trainer replicated is given, sums."""
    with tf.Graph().as_default():
        nodes = set_up(OneWorker().trainer(gpus, 1), OneLayer())
    nccl = sum(node.op == 'NcclAllReduce' for node in nodes)
    assert nccl == (2 * gpus if (gpus, VERSION_2) == (2, False) else 0)
    assert any(node.name.startswith('AllReduceGradsHierachical/') for node in nodes) == (gpus == 8)
    assert any('gpu' in node.device.lower() for node in nodes)


@pytest.mark.parametrize('gpu', [False, True], ids=['CPU', 'GPU'])
def test_collective_gradients(gpu, monkeypatch):
    """One operation for all gradients, by NCCL between GPUs; one for what the guard needs, after it."""
    monkeypatch.setattr('training.collective.computes_on_gpu', lambda: gpu)
    workers = CollectiveWorkers(Told(), '0' if gpu else None)
    with tf.Graph().as_default():
        nodes = set_up(workers.trainer(1, 1), OneLayer())
        reduced, = (node for node in nodes if node.op == 'CollectiveReduce')
        workers.sum(tf.zeros([2]), 'guard')
        second, = (node for node in tf.get_default_graph().as_graph_def().node[len(nodes):] if node.op == 'CollectiveReduce')
    assert ('GPU' if gpu else 'CPU') in reduced.device.upper() and reduced.attr['group_size'].i == 2
    if VERSION_2:    # 1.13 has no choice
        assert reduced.attr['communication_hint'].s == (b'nccl' if gpu else b'ring')
    assert reduced.attr['instance_key'].i < second.attr['instance_key'].i
    inputs = [node for node in tf.get_default_graph().as_graph_def().node]
    assert not inputs    # the default graph of the process is as it was


def optimised(graph, train_op, config):
    """The nodes of a graph after TensorFlow's rewriting for a GPU that is not there."""
    from tensorflow.core.protobuf import device_properties_pb2
    from tensorflow.python.grappler import cluster, tf_optimizer
    devices = [device_properties_pb2.NamedDevice(name='/%s:0' % kind) for kind in ('CPU', 'GPU')]
    for device, kind in zip(devices, ('CPU', 'GPU')):
        device.properties.type, device.properties.num_cores, device.properties.frequency = kind, 80, 1500
    devices[1].properties.memory_size = 16 << 30
    devices[1].properties.environment.update({'architecture': '8.0', 'cuda': '11000', 'cudnn': '8000'})
    graph = tf.train.export_meta_graph(graph=graph)
    graph.collection_def['train_op'].node_list.value[:] = [train_op.name]
    for node in graph.graph_def.node:
        node.device = '/device:CPU:0' if 'input' in node.name else '/device:GPU:0'
    return tf_optimizer.OptimizeGraph(config, graph, verbose=False, cluster=cluster.Cluster(devices=devices)).node


def test_mixed_precision(monkeypatch):
    """Convolutions compute in float16 and channels first, variables and the loss stay float32."""
    if not VERSION_2:
        pytest.skip("needs TensorFlow 2 for its rewriting")
    model = GhostNet(10, width=0.1, image_size=128, data_format='NCHW')
    model.mixed_precision = True
    monkeypatch.setenv('TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_IGNORE_PERFORMANCE', '1')    # it has no speed to look at
    with tf.Graph().as_default() as graph:
        trainer = OneWorker().trainer(1, 1)
        set_up(trainer, model)
        nodes = optimised(graph, trainer.train_op, session_creator(1, mixed_precision=True).config)
        assert all(v.dtype.base_dtype == tf.float32 for v in tf.trainable_variables())
    found = collections.Counter((node.op, node.attr['T'].type) for node in nodes)
    for op in ('Conv2D', 'Conv2DBackpropFilter', 'DepthwiseConv2dNative'):
        assert found[op, tf.float16.as_datatype_enum] > 30 and not found[op, tf.float32.as_datatype_enum], found
    assert {node.attr['data_format'].s for node in nodes if node.op == 'Conv2D'} == {b'NCHW'}
    losses = [node for node in nodes if node.op == 'SparseSoftmaxCrossEntropyWithLogits']
    assert losses and all(node.attr['T'].type == tf.float32.as_datatype_enum for node in losses)


@pytest.mark.skipif(not VERSION_2, reason="--amp needs TensorFlow 1.14 or later")
def test_a_scaled_loss_trains(digits, tmp_path):
    """Without a GPU, in float32: steps are applied, and the scale is saved to resume from."""
    tree = str(cut(digits, tmp_path / 'tree', 16, 8))
    model = GhostNet(10, width=0.25, image_size=128)
    model.mixed_precision = True
    data = Data(read_images(tree, 'train'), read_images(tree, 'val'), 0.08, PictureReader(image_size=128))
    train_in_process(model, data, Run(str(tmp_path / 'log'), 16, 1, seed=1))
    assert stats_of(tmp_path / 'log')[0]['global_step'] == 1


def test_xla_and_memory():
    config = session_creator(1, xla=True).config
    assert config.graph_options.optimizer_options.global_jit_level == 1 and config.gpu_options.allow_growth
    assert session_creator(1).config.graph_options.optimizer_options.global_jit_level == 0


@pytest.mark.parametrize('more, message', [
    (['--train', '--amp', '--data_dir', 'x'], '--amp is for GPUs' if VERSION_2 else '--amp needs TensorFlow 1.14'),
    (['--eval', '--xla'], '--xla goes with --train')])
def test_flags_that_do_not_go_together(more, message):
    assert message in refused(*more)


def test_layout(monkeypatch):
    """Channels first on GPUs, unless it is said otherwise, or the engine computes on the CPU."""
    import main
    from flags import parse_args
    for on_gpu, flag, expected in ((True, [], 'NCHW'), (False, [], 'NHWC'), (True, ['--data-format', 'NHWC'], 'NHWC'),
                                   (True, ['--engine', 'tflite'], 'NHWC')):
        monkeypatch.setattr('sys.argv', ['main.py', '--eval', '--data_dir', os.curdir, '--load', 'x'] + flag)
        monkeypatch.setattr('tf_compat.computes_on_gpu', lambda on_gpu=on_gpu: on_gpu)
        assert main.layout(parse_args()) == expected
