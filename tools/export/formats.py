"""The formats, and the converters from a frozen graph to them. `tools.export` runs a converter in a process of its own:

    python -m tools.export.formats FORMAT GRAPH.pb OUT OUTPUTS DETAILS.json [CALIBRATION.npz]

DETAILS.json has `labels`, the names of the classes or null, `classes`, as the checkpoint records them, its `variant`, the
`image_size`, and the flags `rgb`, `raw`, `features` and `any_size`. For Darknet, the BN of the graph is not folded.

Converters need TensorFlow as version 2 is by default, which tf_compat is not. A new format is an entry in FORMATS, a converter
here, and a runtime in runtimes.py.
"""
import collections
import json
import os
import re
import sys
import tempfile
import zipfile

from tools.export import labels
from tools.export.child import end_with_parent, load_batches

INPUT, PROBABILITIES = 'input', 'probabilities'


def to_frozen(graph_def, outputs, out, details):
    """The GraphDef itself, with the names of the classes as a constant, strings (classes,)."""
    from tensorflow import make_tensor_proto, string
    if details['labels'] is not None:
        node = graph_def.node.add(name=labels.CLASSES, op='Const')
        node.attr['dtype'].type = string.as_datatype_enum
        node.attr['value'].tensor.CopyFrom(make_tensor_proto(labels.as_bytes(details['labels'])))
    with open(out, 'wb') as f:
        f.write(graph_def.SerializeToString(deterministic=True))


def to_savedmodel(graph_def, outputs, out, details):
    """A SavedModel with the signature ``serving_default``, {'input': images} to {name: output}, and, of a classifier that takes
    pixels, ``serving_bytes``: {'image_bytes': strings (N,)} to {'classes': strings (N, 5), 'probabilities': float32 (N, 5)}."""
    import tensorflow as tf
    v1 = tf.compat.v1
    if hasattr(v1, 'disable_control_flow_v2'):    # TensorFlow 1.13.1 lacks both
        v1.disable_control_flow_v2()
    with tf.Graph().as_default():
        contents, input_map = None, None
        if not (details['raw'] or details['features']):
            from tools.export import serving
            contents, images, input_map = serving.entrance(details['rgb'], details['any_size'], details['image_size'], INPUT)
            graph_def = serving.without_entrance(graph_def, INPUT)
        tensors = v1.import_graph_def(graph_def, input_map=input_map, return_elements=[name + ':0' for name in outputs], name='')
        found = dict(zip(outputs, tensors))
        if contents is None:
            images = v1.get_default_graph().get_tensor_by_name(INPUT + ':0')
        signatures = {'serving_default': v1.saved_model.predict_signature_def({INPUT: images}, found)}
        if contents is not None:
            texts = None if details['labels'] is None else labels.as_bytes(details['labels'])
            best = serving.most_probable(tensors[0], outputs[0] == 'logits', texts)
            signatures['serving_bytes'] = v1.saved_model.predict_signature_def({'image_bytes': contents}, best)
        save(signatures, out)


def save(signatures, out):
    """Saves the current graph as SavedModel `out`."""
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    with tf.compat.v1.Session() as session:
        session.graph.clear_collection('while_context')    # for gradients; its order is another one in each run
        builder = tf.compat.v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(session, ['serve'], signatures, strip_default_attrs=True)
        builder.save()
    path = os.path.join(out, 'saved_model.pb')
    with open(path, 'rb') as f:
        model = SavedModel.FromString(f.read())
    with open(path, 'wb') as f:
        f.write(model.SerializeToString(deterministic=True))    # TensorFlow 1 has another order of attributes in each run


def to_tflite(graph_def, outputs, out, details, calibration=None):
    """A TFLite model with that signature; all of it in integers if there are images to calibrate it with."""
    import tensorflow as tf
    if calibration is not None:
        from tools.export import quantise
        graph_def, calibration = quantise.take_float_pixels(graph_def), calibration.astype('float32')
        quantise.equalise(graph_def, INPUT, calibration)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(out)) as folder:
        to_savedmodel(graph_def, outputs, os.path.join(folder, 'model'), dict(details, raw=True))    # of one signature
        converter = tf.lite.TFLiteConverter.from_saved_model(os.path.join(folder, 'model'))
        if calibration is not None:
            quantise.to_integers(converter, calibration)
        model = converter.convert()
    if calibration is not None and quantise.float_operators(model):
        sys.exit("the int8 model would compute in float in %s" % ', '.join(quantise.float_operators(model)))
    if not (details['raw'] or details['features']):
        from tools.export.metadata import with_metadata
        lines = None if details['labels'] is None else labels.as_lines(details['labels'])
        model = with_metadata(model, outputs[0], details['rgb'], lines)
    with open(out, 'wb') as f:
        f.write(model)


def to_onnx(graph_def, outputs, out, details):
    """An ONNX model, its inputs and outputs named as those of the graph."""
    import onnx

    from evaluation.onnx_model import onnx_model
    model = onnx_model(graph_def, {INPUT: INPUT}, {name: name for name in outputs})
    properties = {'channels': 'RGB' if details['rgb'] else 'BGR'}
    if details['labels'] is not None:
        properties[labels.CLASSES] = labels.as_json(details['labels'])
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    onnx.save(model, out)


def to_web(graph_def, outputs, out, details):
    """A folder with a page that classifies pictures in the browser."""
    import onnx

    from tools.export.web_page import MODEL, write_page
    os.mkdir(out)
    to_onnx(graph_def, outputs, os.path.join(out, MODEL), details)
    shape = onnx.load(os.path.join(out, MODEL)).graph.output[0].type.tensor_type.shape
    write_page(out, details['labels'], shape.dim[-1].dim_value)


def to_darknet(graph_def, outputs, out, details):
    """A folder with cfg, weights and names of the classes. The constants of the graph have the names of the variables."""
    from tensorflow import make_ndarray

    from checkpoints import MODEL_VARIABLE
    from ghostnet import GhostNet, infer_architecture
    from tools import darknet
    values = {node.name: make_ndarray(node.attr['value'].tensor) for node in graph_def.node
              if node.op == 'Const' and MODEL_VARIABLE.search(node.name)}
    options = infer_architecture({name: value.shape for name, value in values.items()}, details['variant'])
    model = GhostNet(variant=details['variant'], image_size=details['image_size'], **options)
    os.mkdir(out)
    darknet.write(out, darknet.Layout(model, outputs == [PROBABILITIES]), values, details['classes'])


def to_keras(graph_def, outputs, out, details):
    """A Keras 3 model of Keras' own layers, named as in the graph. With one output it returns that, else {name: output}."""
    from tools.export.keras_layers import build, with_names
    with_names(build(graph_def, outputs, INPUT), details['labels']).save(out)
    forget_circumstances(out)


def forget_circumstances(path):
    """Rewrites a .keras file without the time of its making, and with numbers in place of addresses in memory."""
    with zipfile.ZipFile(path) as archive:
        contents = [(name, archive.read(name)) for name in archive.namelist()]
    numbers = {}

    def number(match):
        return match.group(1) + b'%d' % numbers.setdefault(match.group(2), len(numbers) + 1)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in contents:
            if name == 'metadata.json':
                content = re.sub(rb'("date_saved": ")[^"]*', rb'\g<1>1980-01-01@00:00:00', content)
            elif name == 'config.json':
                content = re.sub(rb'("shared_object_id": )(\d+)', number, content)
            archive.writestr(zipfile.ZipInfo(name), content)    # of 1980-01-01


# `file` is its name in a folder. `convert` takes a GraphDef, the names of its outputs, the path to write and the details of the
# child's command. `dilations`: whether atrous convolutions have that attribute. `needs_tensorflow_2`: whether the
# converter or the runtime does. `packages`: what requirements.txt lacks.
Format = collections.namedtuple('Format', 'file convert dilations needs_tensorflow_2 packages')
FORMATS = collections.OrderedDict([
    ('frozen', Format('ghostnet.pb', to_frozen, False, False, ())),
    ('savedmodel', Format('saved_model', to_savedmodel, False, False, ())),
    ('tflite', Format('ghostnet.tflite', to_tflite, True, True, ())),
    ('onnx', Format('ghostnet.onnx', to_onnx, True, True, ('onnx', 'tf2onnx', 'onnxruntime'))),
    ('keras', Format('ghostnet.keras', to_keras, True, True, ())),
    ('darknet', Format('darknet', to_darknet, False, False, ())),
    ('web', Format('page', to_web, True, True, ('onnx', 'tf2onnx', 'onnxruntime')))])
# The page needs npm, --rgb and --softmax; Darknet needs OpenCV 4, and takes RGB.
ALL = [name for name in FORMATS if name not in ('darknet', 'web')]


def main(form, graph, out, outputs, details, calibration=None):
    end_with_parent()
    import numpy as np
    import tensorflow as tf
    with open(graph, 'rb') as f:
        graph_def = tf.compat.v1.GraphDef.FromString(f.read())
    with open(details) as f:
        details = json.load(f)
    options = {} if calibration is None else {'calibration': np.concatenate(load_batches(calibration))}
    FORMATS[form].convert(graph_def, outputs.split(','), out, details, **options)


if __name__ == '__main__':
    main(*sys.argv[1:])
