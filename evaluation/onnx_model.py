"""A frozen graph as an ONNX model, for the engine and the exports. Without tf_compat, which converters of exports must not have."""
from command_line import required


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


def onnx_model(graph_def, inputs, outputs):
    """The ModelProto of a GraphDef between two dicts, {name of an operation: name in the model}.

    Raises InputError where onnx or tf2onnx is missing.
    """
    required('onnx')
    tf2onnx = required('tf2onnx')
    tf2onnx.graph.Node.__hash__ = lambda node: hash(node.name)    # its sets of nodes would have another order in each run
    names = {name + ':0': new for ends in (inputs, outputs) for name, new in ends.items()}
    model, _ = tf2onnx.convert.from_graph_def(
        graph_def, input_names=[name + ':0' for name in inputs], output_names=[name + ':0' for name in outputs], opset=18,
        tensors_to_rename=names)
    for node in model.graph.node:
        replace_auto_pad(node)
    return model
