"""Engines: a checkpoint's network as a function from images to logits, in Tensorpack, as a frozen graph, or in other runtimes."""
import collections
import contextlib
import functools
import os
import tempfile
import warnings

from tf_compat import inter_op_threads, need_version_2, tensorflow, tf

import numpy as np
from tensorpack.predict import OfflinePredictor, PredictConfig

from command_line import InputError, quiet_stderr, required, work_folder
from evaluation import frozen
from evaluation.onnx_model import onnx_model
from evaluation.throughput import images_per_second
from imagenet_utils import MEAN, STD, in_order, layout_explained, session_creator

# `call` is a function from images, uint8 (N, size, size, 3) BGR, to logits, float32 (N, classes), for several threads at once.
# `batch` is how many images a call is best given.
Engine = collections.namedtuple('Engine', 'name call batch')
NORMALISED = 'MobileNetV2/preprocessed'    # what ``image_preprocess`` makes of images


def worker_sessions(jobs):
    """Tensorpack's session creator, for a session that `jobs` threads run, each on one core."""
    creator = session_creator(threads=1)
    creator.config.inter_op_parallelism_threads = inter_op_threads(jobs)
    return creator


def session_batch(session):
    """How many images a call of a session is best given. On CPUs, what the layers hand on should stay in the core's cache."""
    return 64 if any(device.device_type == 'GPU' for device in session.list_devices()) else 8


def tensorpack_engine(model, restore, jobs):
    """The published path: the graph as it is built, in Tensorpack's OfflinePredictor."""
    predictor = OfflinePredictor(PredictConfig(model=model, session_init=restore, session_creator=worker_sessions(jobs),
                                               input_names=[frozen.INPUT], output_names=[frozen.LOGITS]))
    return Engine('tensorpack', lambda images: predictor(images)[0], session_batch(predictor.sess))


@functools.lru_cache(maxsize=1)    # 'auto' makes several engines of it
def frozen_graph(model, restore, jobs):
    """The graph of constants of a network and its checkpoint."""
    with tf.Session(graph=tf.Graph(), config=worker_sessions(jobs).config) as session:
        graph_def = frozen.freeze(session, frozen.build_and_restore(session, model, restore))
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name='')
    return graph


def frozen_engine(model, restore, jobs):
    """The frozen graph in a TensorFlow session, whose Grappler optimises it further."""
    session = tf.Session(graph=frozen_graph(model, restore, jobs), config=worker_sessions(jobs).config)
    call = session.make_callable([frozen.LOGITS + ':0'], [frozen.INPUT + ':0'])
    return Engine('frozen', lambda images: call(images)[0], session_batch(session))


def normaliser(size):
    """``image_preprocess`` in NumPy, a function of images uint8 (N, `size`, `size`, 3).

    TFLite takes 0.9 of 5.7 ms for it, and ONNX Runtime 1.5 of 8: they are slow where the last axis has three values.
    """
    scale, offset = (np.resize(values, [size, size, 3]) for values in (1 / (255 * STD), MEAN / STD))
    return lambda images: images * scale - offset


def filled(images, count):
    """`images` repeated until they are `count`."""
    return images if len(images) == count else np.resize(images, (count,) + images.shape[1:])


@contextlib.contextmanager
def taken(idle):
    """The last of the list `idle`, which is not in it meanwhile; for several threads."""
    one = idle.pop()
    try:
        yield one
    finally:
        idle.append(one)


def tflite_engine(model, restore, jobs):
    """The frozen graph in TFLite with XNNPACK in float32: `jobs` interpreters of one thread each."""
    need_version_2("--engine tflite")
    if model.data_format != 'NHWC':
        raise InputError("TFLite computes in NHWC alone: leave out --data-format, or --engine")
    with tf.Session(graph=frozen_graph(model, restore, jobs)) as session, quiet_stderr, warnings.catch_warnings():
        warnings.simplefilter('ignore')    # that both classes will move to other packages
        tensors = [session.graph.get_tensor_by_name(name + ':0') for name in (NORMALISED, frozen.LOGITS)]
        content = tf.lite.TFLiteConverter.from_session(session, tensors[:1], tensors[1:]).convert()
        idle = [tensorflow.lite.Interpreter(model_content=content, num_threads=1) for _ in range(jobs)]
        for interpreter in idle:
            interpreter.allocate_tensors()
    normalise = normaliser(model.image_size)
    source, = idle[0].get_input_details()
    logits, = idle[0].get_output_details()
    sizes = dict.fromkeys(idle, source['shape'][0])

    def call(images):
        with taken(idle) as interpreter:
            if sizes[interpreter] != len(images):
                interpreter.resize_tensor_input(source['index'], images.shape)
                interpreter.allocate_tensors()
                sizes[interpreter] = len(images)
            interpreter.set_tensor(source['index'], normalise(images))
            interpreter.invoke()
            return interpreter.get_tensor(logits['index'])
    return Engine('tflite', call, 2)


def onnx_engine(model, restore, jobs):
    """The frozen graph in ONNX Runtime: a session that computes in the thread that calls it."""
    need_version_2("--engine onnx")
    onnxruntime = required('onnxruntime')
    graph = frozen_graph(model, restore, jobs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with quiet_stderr:
        content = onnx_model(graph.as_graph_def(), {NORMALISED: frozen.INPUT}, {frozen.LOGITS: frozen.LOGITS}).SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    normalise = normaliser(model.image_size)
    return Engine('onnx', lambda images: session.run(None, {frozen.INPUT: normalise(images)})[0], 2)


def openvino_engine(model, restore, jobs):
    """The frozen graph in OpenVINO in float32: `jobs` requests of one thread each, for a fixed number of images."""
    need_version_2("--engine openvino")
    openvino, batch = required('openvino'), 4
    graph = frozen_graph(model, restore, jobs)
    with quiet_stderr, work_folder(tempfile.gettempdir()) as folder:
        path = os.path.join(folder, 'ghostnet.pb')    # OpenVINO knows the format by this ending
        with open(path, 'wb') as f:
            f.write(graph.as_graph_def().SerializeToString())
        core = openvino.Core()
        network = core.read_model(path)
        network.reshape([batch, model.image_size, model.image_size, 3])    # a tenth faster than any
        compiled = core.compile_model(network, 'CPU', {
            'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': jobs, 'NUM_STREAMS': jobs, 'ENABLE_CPU_PINNING': False})
        idle = [compiled.create_infer_request() for _ in range(jobs)]

    def call(images):
        with taken(idle) as request:
            parts = [images[start:start + batch] for start in range(0, len(images), batch)]
            return np.concatenate([request.infer([filled(part, batch)], share_inputs=True)[0][:len(part)] for part in parts])
    return Engine('openvino', call, batch)


ENGINES = collections.OrderedDict([('tensorpack', tensorpack_engine), ('frozen', frozen_engine), ('tflite', tflite_engine),
                                   ('openvino', openvino_engine), ('onnx', onnx_engine)])
OPTIONAL = ('openvino', 'onnx')    # the engines whose packages need not be there, or work


def started_engine(name, model, restore, jobs):
    """One of ENGINES after its first call, in which Grappler optimises. Workers whose first calls of OpenVINO meet wait for ever.

    Raises: see make_engine.
    """
    try:
        engine = ENGINES[name](model, restore, jobs)
        engine.call(np.zeros([1, model.image_size, model.image_size, 3], np.uint8))
    except (InputError, MemoryError, OSError):
        raise
    except Exception as error:    # packages that do not go with each other raise many types
        if name not in OPTIONAL:
            raise
        raise InputError("--engine %s does not work with the packages installed (%s): pip install -r requirements-interop.txt, or "
                         "choose another one" % (name, error))
    return engine


def fastest_engine(model, restore, jobs, images, seconds=0.5):
    """The one of ENGINES that computes most images a second here; says so, with the rates.

    Args:
        images (np.ndarray): some to measure with, uint8 (N, size, size, 3) BGR.
        seconds (float): how long each is measured at least.
    """
    rates, best = collections.OrderedDict(), None
    for name in ENGINES:
        try:
            engine = started_engine(name, model, restore, jobs)
        except (InputError, MemoryError, OSError):    # on TensorFlow 1, with NCHW, without its packages, or on a full disk
            if not rates:
                raise
            continue
        rates[name] = measure(engine, images, jobs, seconds)
        if best is not None and rates[name] > 0.8 * rates[best.name]:    # in turns, since the machine is not always as fast
            for one in (best, engine) * 2:
                rates[one.name] = max(rates[one.name], measure(one, images, jobs, seconds))
        if rates[name] == max(rates.values()):
            best = engine
    print("engine %s, of %s images/s without reading" % (
        best.name, ', '.join('%s %.0f' % item for item in rates.items())))
    return best


def measure(engine, images, jobs, seconds):
    """Images/s of an engine on `images`, which have been read, with `jobs` threads, over at least `seconds`."""
    batches = [np.resize(images, (engine.batch,) + images.shape[1:])] * (8 * jobs)

    def compute():
        for _ in in_order(engine.call, batches, jobs):
            pass
    return images_per_second(compute, sum(map(len, batches)), seconds)


def make_engine(name, model, restore, jobs, sample=None):
    """The engine called `name`, one of ENGINES or 'auto', which is measured on the images, as of `call`, that `sample()` returns.

    Raises:
        CheckpointMismatch: the checkpoint is not one of `model`.
        InputError: the engine cannot compute that, not on this TensorFlow, or not with the packages installed.
        MemoryError, OSError: memory is short, or the folder of temporary files is full.
    """
    with layout_explained(model):
        if name == 'auto':
            return fastest_engine(model, restore, jobs, sample())
        return started_engine(name, model, restore, jobs)
