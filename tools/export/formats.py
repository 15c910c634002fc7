"""The formats, and the converters from a frozen graph to them. `tools.export` runs a converter in a process of its own:

    python -m tools.export.formats FORMAT GRAPH.pb OUT OUTPUTS [CALIBRATION.npy]

Converters need TensorFlow as version 2 is by default, which tf_compat is not. A new format is an entry in FORMATS, a converter
here, and a runtime in runtimes.py.
"""
import collections
import os
import re
import sys
import tempfile
import zipfile

from tools.export.child import end_with_parent

INPUT = 'input'


def to_savedmodel(graph_def, outputs, out):
    """A SavedModel with the signature ``serving_default``: {'input': images} to {name: output}."""
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        v1.import_graph_def(graph_def, name='')
        tensors = {name: graph.get_tensor_by_name(name + ':0') for name in [INPUT] + outputs}
        signature = v1.saved_model.predict_signature_def({INPUT: tensors.pop(INPUT)}, tensors)
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(session, ['serve'], {'serving_default': signature})
        builder.save()
    path = os.path.join(out, 'saved_model.pb')
    with open(path, 'rb') as f:
        model = SavedModel.FromString(f.read())
    with open(path, 'wb') as f:
        f.write(model.SerializeToString(deterministic=True))    # TensorFlow 1 has another order of attributes in each run


def to_tflite(graph_def, outputs, out, calibration=None):
    """A TFLite model with that signature; all of it in integers if there are images to calibrate it with."""
    import tensorflow as tf
    if calibration is not None:
        from tools.export import quantise
        graph_def, calibration = quantise.take_float_pixels(graph_def), calibration.astype('float32')
        quantise.equalise(graph_def, INPUT, calibration)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(out)) as folder:
        to_savedmodel(graph_def, outputs, os.path.join(folder, 'model'))
        converter = tf.lite.TFLiteConverter.from_saved_model(os.path.join(folder, 'model'))
        if calibration is not None:
            quantise.to_integers(converter, calibration)
        model = converter.convert()
    if calibration is not None and quantise.float_operators(model):
        sys.exit("the int8 model would compute in float in %s" % ', '.join(quantise.float_operators(model)))
    with open(out, 'wb') as f:
        f.write(model)


def replace_auto_pad(node):
    """Gives an atrous convolution its padding in numbers: ONNX Runtime does not combine `auto_pad` and `dilations`."""
    import onnx
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    dilations = attributes.get('dilations', [1])
    if 'auto_pad' not in attributes or max(dilations) == 1:
        return
    sides = [(size - 1) * dilation for size, dilation in zip(attributes['kernel_shape'], dilations)]
    kept = [attribute for attribute in node.attribute if attribute.name != 'auto_pad']
    del node.attribute[:]
    node.attribute.extend(kept + [onnx.helper.make_attribute(
        'pads', [side // 2 for side in sides] + [side - side // 2 for side in sides])])


def to_onnx(graph_def, outputs, out):
    """An ONNX model, its inputs and outputs named as those of the graph."""
    import onnx
    import tf2onnx
    tf2onnx.graph.Node.__hash__ = lambda node: hash(node.name)    # its sets of nodes would have another order in each run
    names = {name + ':0': name for name in [INPUT] + outputs}
    model, _ = tf2onnx.convert.from_graph_def(graph_def, input_names=[INPUT + ':0'], output_names=[name + ':0' for name in outputs],
                                              opset=18, tensors_to_rename=names)
    for node in model.graph.node:
        replace_auto_pad(node)
    onnx.checker.check_model(model)
    onnx.save(model, out)


def to_keras(graph_def, outputs, out):
    """A Keras 3 model of Keras' own layers, named as in the graph. With one output it returns that, else {name: output}."""
    from tools.export.keras_layers import build
    build(graph_def, outputs, INPUT).save(out)
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


# `file` is its name in a folder. `convert` takes a GraphDef, the names of its outputs and the path to write; without one, the
# export is the frozen graph. `dilations`: whether atrous convolutions have that attribute. `needs_tensorflow_2`: whether the
# converter or the runtime does. `packages`: what requirements.txt lacks.
Format = collections.namedtuple('Format', 'file convert dilations needs_tensorflow_2 packages')
FORMATS = collections.OrderedDict([
    ('frozen', Format('ghostnet.pb', None, False, False, ())),
    ('savedmodel', Format('saved_model', to_savedmodel, False, False, ())),
    ('tflite', Format('ghostnet.tflite', to_tflite, True, True, ())),
    ('onnx', Format('ghostnet.onnx', to_onnx, True, True, ('onnx', 'tf2onnx', 'onnxruntime'))),
    ('keras', Format('ghostnet.keras', to_keras, True, True, ()))])


def main(form, graph, out, outputs, calibration=None):
    end_with_parent()
    import numpy as np
    import tensorflow as tf
    with open(graph, 'rb') as f:
        graph_def = tf.compat.v1.GraphDef.FromString(f.read())
    options = {} if calibration is None else {'calibration': np.load(calibration)}
    FORMATS[form].convert(graph_def, outputs.split(','), out, **options)


if __name__ == '__main__':
    main(*sys.argv[1:])
