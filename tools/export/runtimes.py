"""Runs an exported model in the runtime that it is for, and times it. `tools.export` runs it, in a process of its own:

    python -m tools.export.runtimes FORMAT MODEL BATCHES.npz RESULT.npz OUTPUTS

BATCHES.npz has arr_0 and so on, batches of images. RESULT.npz gets what comes out for all of them, under the names of the outputs,
`latency`, of one image in seconds, and `runtime`, its name and version. Each of RUNTIMES takes the path of a model and the names of
its outputs, and returns a function from images to a list of arrays, and the runtime.
"""
import os
import sys

import numpy as np

from command_line import cores
from evaluation.throughput import latency
from tools.export.child import end_with_parent, load_batches

OPENCV_4 = os.path.join(sys.prefix, 'opencv4')    # as of `pip install --target`


def frozen(path, outputs):
    import tensorflow
    tf = tensorflow.compat.v1
    with open(path, 'rb') as f:
        graph_def = tf.GraphDef.FromString(f.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name='')
    session = tf.Session(graph=graph, config=tf.ConfigProto(intra_op_parallelism_threads=cores()))
    return session.make_callable([name + ':0' for name in outputs], ['input:0']), 'TensorFlow ' + tensorflow.__version__


def savedmodel(path, outputs):
    import tensorflow
    tf = tensorflow.compat.v1
    session = tf.Session(graph=tf.Graph(), config=tf.ConfigProto(intra_op_parallelism_threads=cores()))
    with session.graph.as_default():
        signature = tf.saved_model.loader.load(session, ['serve'], path).signature_def['serving_default']
    call = session.make_callable([signature.outputs[name].name for name in outputs], [signature.inputs['input'].name])
    return call, 'TensorFlow ' + tensorflow.__version__


def tflite(path, outputs):
    try:
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter
        runtime = 'LiteRT ' + ai_edge_litert.__version__
    except ImportError:
        import tensorflow
        Interpreter, runtime = tensorflow.lite.Interpreter, 'tf.lite ' + tensorflow.__version__
    runner = Interpreter(model_path=path, num_threads=cores()).get_signature_runner('serving_default')

    details = runner.get_output_details()

    def real(name, values):
        scale, zero = details[name]['quantization']    # (0, 0): they are real numbers
        return np.float32(scale) * (values.astype(np.float32) - zero) if scale else values

    def call(images):
        results = runner(input=images)
        return [real(name, results[name]) for name in outputs]
    return call, runtime


def onnx(path, outputs):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(outputs, {'input': images}), 'ONNX Runtime ' + onnxruntime.__version__


def keras(path, outputs):
    import keras
    model = keras.saving.load_model(path)

    def call(images):
        results = model.predict_on_batch(images)
        return [results[name] for name in outputs] if isinstance(results, dict) else [results]
    return call, 'Keras ' + keras.__version__


def darknet(path, outputs):
    """OpenCV 4 reads Darknet, and 5 does not; so the former may be in a folder of its own."""
    sys.path[:0] = [OPENCV_4] if os.path.isdir(OPENCV_4) else []
    import cv2

    from tools.darknet import CFG, WEIGHTS
    cv2.setNumThreads(cores())
    net = cv2.dnn.readNetFromDarknet(os.path.join(path, CFG), os.path.join(path, WEIGHTS))

    def single(image):
        net.setInput(cv2.dnn.blobFromImage(image, 1 / 255.0, swapRB=True))
        return net.forward().ravel().copy()

    def call(images):    # [scale_channels] of OpenCV takes no more than one at once
        return [np.stack([single(image) for image in images])]
    return call, 'OpenCV ' + cv2.__version__


def batches(images):
    """An array of images as a list of arrays of 32 images at most."""
    return [images[i:i + 32] for i in range(0, len(images), 32)]


def results(call, outputs, images):
    """What `call` returns for a list of batches: {name of the output: array}, of all images."""
    found = [call(batch) for batch in images]
    return {name: np.concatenate([arrays[i] for arrays in found]) for i, name in enumerate(outputs)}


def web(path, outputs):
    """The model of a page, in ONNX Runtime; tests/tools/test_export_web.py runs the page."""
    from tools.export.web_page import MODEL
    return onnx(os.path.join(path, MODEL), outputs)


RUNTIMES = {'frozen': frozen, 'savedmodel': savedmodel, 'tflite': tflite, 'onnx': onnx, 'keras': keras, 'darknet': darknet,
            'web': web}


def main(form, path, images, result, outputs):
    end_with_parent()
    outputs = outputs.split(',')
    call, runtime = RUNTIMES[form](path, outputs)
    images = load_batches(images)
    np.savez(result, latency=latency(lambda: call(images[0][:1])), runtime=runtime, **results(call, outputs, images))


if __name__ == '__main__':
    main(*sys.argv[1:])
