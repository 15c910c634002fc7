"""TensorFlow Lite in integers: the graph prepared for it, the conversion, and the check that no float is left in the file.

As converters need TensorFlow as version 2 is by default, the process of tools.export.formats runs this.
"""
import collections

import numpy as np
import tensorflow as tf

SMALLEST_ACTIVATION = 1e-3    # of the largest of a layer: what a channel that the calibration never reaches counts as


def take_float_pixels(graph_def):
    """`graph_def` with a float32 placeholder for pixels from 0 to 255 and without their Cast, which would stay in float. The
    converter then quantises all that follows, preprocessing too."""
    result = tf.compat.v1.GraphDef()
    result.CopyFrom(graph_def)
    for node in result.node:
        if node.op == 'Placeholder':
            node.attr['dtype'].type = tf.float32.as_datatype_enum
        elif node.op == 'GatherV2' and node.attr['Tparams'].type == tf.uint8.as_datatype_enum:    # of --rgb
            node.attr['Tparams'].type = tf.float32.as_datatype_enum
        elif node.op == 'Cast':
            node.op = 'Identity'
            node.attr['T'].type = tf.float32.as_datatype_enum
            for name in ('SrcT', 'DstT', 'Truncate'):
                node.attr.pop(name, None)
    return result


def pairs_of_convolutions(graph_def):
    """Of the chains Conv2D, BiasAdd, Relu, Conv2D in which nothing else reads what is in between: [(first, bias, relu, second)]."""
    nodes = {node.name: node for node in graph_def.node}
    readers = collections.Counter(name for node in graph_def.node for name in node.input)
    found = []
    for second in graph_def.node:
        chain = [second]
        for op in ('Relu', 'BiasAdd', 'Conv2D'):
            before = nodes[chain[0].input[0]] if chain[0].input else None
            if before is None or before.op != op or readers[before.name] != 1:
                break
            chain.insert(0, before)
        if second.op == 'Conv2D' and len(chain) == 4:
            found.append(tuple(chain))
    return found


def equalise(graph_def, input_name, images):
    """Spreads the channels between two convolutions evenly over the 8 bits that activations and weights have.

    A channel is multiplied by s before its ReLU and its weights after that divided by s, so that the largest activation, measured
    on `images`, becomes as large as the largest weight ("Data-Free Quantization Through Weight Equalization and Bias Correction",
    ICCV 2019). In float, the network computes the same. `graph_def` is changed in place.
    """
    pairs = pairs_of_convolutions(graph_def)
    nodes = {node.name: node for node in graph_def.node}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.import_graph_def(graph_def, name='')
        batches = [session.run([relu.name + ':0' for _, _, relu, _ in pairs], {input_name + ':0': images[i:i + 32]})
                   for i in range(0, len(images), 32)]
    largest = [np.max([batch[i].max((0, 1, 2)) for batch in batches], 0) for i in range(len(pairs))]

    def rescale(name, factor):
        tensor = nodes[name].attr['value'].tensor
        tensor.CopyFrom(tf.make_tensor_proto((tf.make_ndarray(tensor) * factor).astype(np.float32)))

    for (first, bias, _, second), activation in zip(pairs, largest):
        if not activation.max() > 0:
            continue
        weight = np.abs(tf.make_ndarray(nodes[second.input[1]].attr['value'].tensor)).max((0, 1, 3)).astype(np.float64)
        weight[weight == 0] = weight.max() or 1
        scale = np.sqrt(weight / np.maximum(activation, SMALLEST_ACTIVATION * activation.max()))
        rescale(first.input[1], scale)
        rescale(bias.input[1], scale)
        rescale(second.input[1], 1 / scale.reshape(-1, 1))


def to_integers(converter, calibration):
    """Sets a TFLiteConverter so that all of its model is integers, uint8 where images go in and results come out.

    Args:
        calibration (np.ndarray): float32 (N, 224, 224, 3), the images by which the range of each activation is measured.
    """
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8


def float_operators(model):
    """The operators of a TFLite model, as bytes, that read or write a tensor in floating point: a list of str, sorted.

    Source: the schema of TFLite, version 3.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model, found = schema.Model.GetRootAs(model, 0), set()
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.OperatorsLength()):
            operator = graph.Operators(j)
            indices = [operator.Inputs(k) for k in range(operator.InputsLength())]
            indices += [operator.Outputs(k) for k in range(operator.OutputsLength())]
            if any('FLOAT' in types[graph.Tensors(k).Type()] for k in indices if k >= 0):    # -1: an optional one that is left out
                found.add(codes[model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()])
    return sorted(found)
