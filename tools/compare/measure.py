"""How long networks take in a runtime, in turns: for one picture and a batch, on one thread and on all."""
import collections
import time

from command_line import cores, progress_options, quiet_stderr, required

FEWEST_CALLS = 3    # in a round, however long they take


def tflite(path, threads):
    """A function from pictures to logits, with XNNPACK."""
    import tensorflow
    with quiet_stderr:
        interpreter = tensorflow.lite.Interpreter(model_path=path, num_threads=threads)
        interpreter.allocate_tensors()
    (source,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()

    def call(pictures):
        interpreter.set_tensor(source['index'], pictures)
        interpreter.invoke()
        return interpreter.get_tensor(logits['index'])
    return call


def onnx(path, threads):
    """A function from pictures to logits, on the CPU."""
    onnxruntime = required('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda pictures: session.run(None, {name: pictures})[0]


def version(runtime):
    """The name and version of what runs the models."""
    import tensorflow
    return ('TFLite of TensorFlow ' + tensorflow.__version__ if runtime == 'tflite'
            else 'ONNX Runtime ' + required('onnxruntime').__version__)


RUNTIMES = {'tflite': tflite, 'onnx': onnx}


def settings(batch):
    """(pictures, threads) of all that is measured."""
    return [(pictures, threads) for pictures in sorted({1, batch}) for threads in sorted({1, cores()})]


def seconds_of_calls(call, pictures, seconds):
    """How long each call takes, a list, over about `seconds`, after two that are not counted."""
    for _ in range(2):
        call(pictures)
    times, start = [], time.perf_counter()
    while len(times) < FEWEST_CALLS or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call(pictures)
        times.append(time.perf_counter() - before)
    return times


def latencies(files, runtime, batch, rounds, seconds):
    """Measures every network once a round.

    Args:
        files (dict): {name: function from a number of pictures to the path of its model}.
        seconds (float): how long each setting of each network is measured in a round.
    Returns:
        OrderedDict: {name: {(pictures, threads): [first quartile, median, third quartile]}}, in ms a picture, of all calls.
    """
    import numpy as np
    from tqdm import tqdm
    pictures = np.random.RandomState(0).standard_normal((batch, 224, 224, 3)).astype(np.float32)
    times = collections.OrderedDict((name, collections.defaultdict(list)) for name in files)
    for _, name in tqdm([(turn, name) for turn in range(rounds) for name in files], unit='network', **progress_options()):
        for count, threads in settings(batch):
            call = RUNTIMES[runtime](files[name](count), threads)    # made again each time: the memory of one network is enough
            times[name][count, threads] += seconds_of_calls(call, pictures[:count], seconds)
    return collections.OrderedDict(
        (name, {(count, threads): [float(quartile) for quartile in np.percentile(measured, [25, 50, 75]) * 1e3 / count]
                for (count, threads), measured in of_network.items()}) for name, of_network in times.items())
