"""How long networks take in a runtime, in turns: for one picture and a batch, on one thread and on all."""
import collections
import time

import numpy as np

from command_line import cores, progress_options, quiet_stderr, required

BATCH = 8           # pictures, besides one
SECONDS = 0.2       # how long each setting of each network is measured in a round, about
FEWEST_CALLS = 3    # in a round, however long they take


def random_pictures(shape):
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


def tflite(path, threads):
    """A function without arguments that computes a model's logits of random pictures, with XNNPACK."""
    with quiet_stderr:
        interpreter = required('ai_edge_litert.interpreter').Interpreter(model_path=path, num_threads=threads)
        interpreter.allocate_tensors()
    (source,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    pictures = random_pictures(source['shape'])

    def call():
        interpreter.set_tensor(source['index'], pictures)
        interpreter.invoke()
        return interpreter.get_tensor(logits['index'])
    return call


def onnx(path, threads):
    """A function without arguments that computes a model's logits of random pictures, on the CPU."""
    onnxruntime = required('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    source, = session.get_inputs()
    pictures = random_pictures(source.shape)
    return lambda: session.run(None, {source.name: pictures})[0]


# {--runtime: (function, its package, the name for the reader)}
RUNTIMES = {'tflite': (tflite, 'ai_edge_litert', 'LiteRT'), 'onnx': (onnx, 'onnxruntime', 'ONNX Runtime')}


def version(runtime):
    """The name and version of what runs the models."""
    _, package, name = RUNTIMES[runtime]
    return '%s %s' % (name, required(package).__version__)


def seconds_of_calls(call):
    """How long each call takes, a list, after two that are not counted."""
    call(), call()
    times, start = [], time.perf_counter()
    while len(times) < FEWEST_CALLS or time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return times


def latencies(files, runtime, rounds):
    """Measures every network once a round.

    Args:
        files (dict): {name: function from a number of pictures, 1 or BATCH, to the path of its model}.
    Returns:
        OrderedDict: {name: {(pictures, threads): [first quartile, median, third quartile]}}, in ms a picture, of all calls.
    """
    from tqdm import tqdm
    make = RUNTIMES[runtime][0]
    times = collections.OrderedDict((name, collections.OrderedDict()) for name in files)
    for _, name in tqdm([(turn, name) for turn in range(rounds) for name in files], unit='network', **progress_options()):
        for setting in [(pictures, threads) for pictures in (1, BATCH) for threads in sorted({1, cores()})]:
            call = make(files[name](setting[0]), setting[1])    # again each time: the memory of one network is enough
            times[name].setdefault(setting, []).extend(seconds_of_calls(call))
    return collections.OrderedDict(
        (name, collections.OrderedDict((setting, (np.percentile(measured, [25, 50, 75]) * 1e3 / setting[0]).tolist())
                                       for setting, measured in of_network.items())) for name, of_network in times.items())
