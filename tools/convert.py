"""Turns a frozen graph (frozen.py) into what other runtimes load. `tools.export` runs it, in a process of its own:

    python -m tools.convert FORMAT GRAPH.pb OUT OUTPUTS [CALIBRATION.npy]

The converters need TensorFlow as version 2 is by default, which tf_compat is not.
"""
import os
import re
import sys
import tempfile

import numpy as np
import tensorflow as tf

INPUT = 'input'


def to_savedmodel(graph_def, outputs, out):
    """A SavedModel with the signature ``serving_default``: {'input': images} to {name: output}."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        v1.import_graph_def(graph_def, name='')
        tensors = {name: graph.get_tensor_by_name(name + ':0') for name in [INPUT] + outputs}
        signature = v1.saved_model.predict_signature_def({INPUT: tensors.pop(INPUT)}, tensors)
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(session, ['serve'], {'serving_default': signature})
        builder.save()


def to_tflite(graph_def, outputs, out, calibration=None):
    """A TFLite model with that signature; with integer weights and activations if there are images to calibrate them with."""
    with tempfile.TemporaryDirectory() as folder:
        to_savedmodel(graph_def, outputs, os.path.join(folder, 'model'))
        converter = tf.lite.TFLiteConverter.from_saved_model(os.path.join(folder, 'model'))
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ({INPUT: image[np.newaxis]} for image in calibration)
        model = converter.convert()
    with open(out, 'wb') as f:
        f.write(model)


def to_onnx(graph_def, outputs, out):
    """An ONNX model, its inputs and outputs named as those of the graph."""
    import onnx
    import tf2onnx
    names = {name + ':0': name for name in [INPUT] + outputs}
    model, _ = tf2onnx.convert.from_graph_def(graph_def, input_names=[INPUT + ':0'], output_names=[name + ':0' for name in outputs],
                                              opset=18, tensors_to_rename=names)
    for node in model.graph.node:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        dilations = attributes.get('dilations', [1])
        if 'auto_pad' in attributes and max(dilations) > 1:    # ONNX Runtime does not do both
            whole = [(size - 1) * dilation for size, dilation in zip(attributes['kernel_shape'], dilations)]
            kept = [attribute for attribute in node.attribute if attribute.name != 'auto_pad']
            del node.attribute[:]
            node.attribute.extend(kept + [onnx.helper.make_attribute(
                'pads', [pad // 2 for pad in whole] + [pad - pad // 2 for pad in whole])])
    onnx.checker.check_model(model)
    onnx.save(model, out)


def to_keras(graph_def, outputs, out):
    """A Keras 3 model of Keras' own layers, named as in the graph. With one output it returns that, else {name: output}."""
    import keras
    from keras import layers
    nodes = {node.name: node for node in graph_def.node}
    tensors = {}

    def constant(name):
        return tf.make_ndarray(nodes[name].attr['value'].tensor)

    def convolution(node, bias, name):
        kernel = constant(node.input[1])
        options = {'strides': node.attr['strides'].list.i[1], 'padding': node.attr['padding'].s.decode().lower(),
                   'dilation_rate': (list(node.attr['dilations'].list.i) or [1, 1])[1], 'name': name}
        layer = layers.Conv2D(kernel.shape[3], kernel.shape[:2], **options) if node.op == 'Conv2D' else \
            layers.DepthwiseConv2D(kernel.shape[:2], depth_multiplier=kernel.shape[3], **options)
        output = layer(tensors[node.input[0]])
        layer.set_weights([kernel, bias])
        return output

    def made(node, name):
        """What `node` computes, by a Keras layer."""
        x, rest = tensors.get(node.input[0]), list(node.input[1:])
        if node.op == 'ConcatV2':
            return layers.Concatenate(name=name)([x] + [tensors[other] for other in rest[:-1]])
        if node.op in ('Add', 'AddV2', 'Mul') and rest[0] in tensors:
            return (layers.Multiply if node.op == 'Mul' else layers.Add)(name=name)([x, tensors[rest[0]]])
        values = [constant(other) for other in rest]
        if node.op == 'BiasAdd':
            return convolution(nodes[node.input[0]], values[0], name)
        if node.op in ('Identity', 'Cast'):
            return x
        if node.op in ('Add', 'AddV2', 'Sub'):
            return layers.Rescaling(1.0, (values[0] if node.op != 'Sub' else -values[0]).tolist(), name=name)(x)
        if node.op in ('Mul', 'RealDiv'):
            return layers.Rescaling((values[0] if node.op == 'Mul' else 1 / values[0]).tolist(), name=name)(x)
        if node.op in ('Relu', 'Relu6'):
            return layers.ReLU(6.0 if node.op == 'Relu6' else None, name=name)(x)
        if node.op in ('Minimum', 'Maximum'):
            return getattr(keras.ops, node.op.lower())(x, values[0].item())
        if node.op == 'GatherV2':
            return keras.ops.take(x, values[0].tolist(), axis=-1)
        if node.op == 'Slice':
            return x[..., :values[1].tolist()[-1]]
        if node.op == 'Pad':
            return layers.ZeroPadding2D(values[0][1:3].tolist(), name=name)(x)
        if node.op == 'AvgPool':
            return layers.AveragePooling2D(node.attr['ksize'].list.i[1:3], name=name)(x)
        if node.op == 'Mean':
            return layers.GlobalAveragePooling2D(keepdims=True, name=name)(x)
        if node.op == 'Squeeze':
            return layers.Flatten(name=name)(x)
        if node.op == 'Softmax':
            return layers.Softmax(name=name)(x)
        raise NotImplementedError("no Keras layer for the operation %s" % node.op)

    for node in graph_def.node:
        if node.op == 'Placeholder':
            shape = [size.size if size.size > 0 else None for size in node.attr['shape'].shape.dim]
            tensors[node.name] = layers.Input(shape[1:], dtype=tf.as_dtype(node.attr['dtype'].type).name, name=INPUT)
        elif node.op not in ('Const', 'Conv2D', 'DepthwiseConv2dNative'):    # convolutions come with their BiasAdd
            tensors[node.name] = made(node, re.sub('^MobileNetV2_', '', node.name.replace('/', '_')))
    results = {name: tensors[name] for name in outputs}
    keras.Model(tensors[INPUT], results if len(results) > 1 else results[outputs[0]], name='ghostnet').save(out)


def main(form, graph, out, outputs, calibration=None):
    with open(graph, 'rb') as f:
        graph_def = tf.compat.v1.GraphDef.FromString(f.read())
    options = {} if calibration is None else {'calibration': np.load(calibration)}
    {'savedmodel': to_savedmodel, 'tflite': to_tflite, 'onnx': to_onnx, 'keras': to_keras}[form](
        graph_def, outputs.split(','), out, **options)


if __name__ == '__main__':
    main(*sys.argv[1:])
