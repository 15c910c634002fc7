"""The weights of a GhostNet in a file of Keras 3, .keras or .weights.h5, under the names of a checkpoint's variables.

It is for the process in which tools/state_dict.py reads files of others. Nothing in the file is built or executed: the tensors are
read from its HDF5 part, where Keras notes the name of each layer.
"""
import io
import json
import re
import zipfile

WEIGHTS, CONFIG = 'model.weights.h5', 'config.json'    # in a .keras file
# The layers that tools/export/keras_trainable.py names, and the variables of one, in Keras' order.
LAYER = re.compile(r'(Conv2d_\d+|Logits[.])[\w.]*$')
# Layers that only some variants have, those with symmetric padding and those with a hard sigmoid in SE.
SYMMETRIC, HARD_SIGMOID, SIZE = 'symmetric', 'hard_sigmoid', 'image_size'
MARKS = {SYMMETRIC: re.compile('Conv2d_2_depthwise_Pad$'), HARD_SIGMOID: re.compile(r'Conv2d_\d+_se\w*_Relu6$')}
BN = ('gamma', 'beta', 'mean/EMA', 'variance/EMA')


def variable_names(layer):
    """The names of a layer's variables in a checkpoint, a list."""
    if layer.endswith(('.bn', '.output')):
        leaves = BN
    else:
        leaves = ('DW' if layer.endswith('.dw1') else 'W', 'b')
    return ['MobileNetV2/%s/%s' % (layer.replace('.', '/'), leaf) for leaf in leaves]


def image_size(config):
    """Height and width of what a GhostNet takes, by the JSON of a .keras file; None for any, or where they are not known."""
    pending, sizes = [json.loads(config)], set()
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            layers = part.get('layers')
            layers = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
            if any(layer.get('name') == 'Conv2d_0' for layer in layers):
                inputs = [layer['config'] for layer in layers if layer.get('class_name') == 'InputLayer']
                sizes.update(str(entry['batch_shape'][1:3]) for entry in inputs)
        pending.extend(part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())
    found = re.match(r'\[(\d{1,5}), \1\]$', sizes.pop()) if len(sizes) == 1 else None
    return found and int(found.group(1))


def groups_below(group, h5py):
    """The groups in an HDF5 group and below it. Links, which may lead to other files or round in circles, are not followed."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink) and isinstance(group[name], h5py.Group):
            yield group[name]
            yield from groups_below(group[name], h5py)


def array_of(dataset, name):
    """The numbers of an HDF5 dataset. Raises ValueError where they are not in this file, or less than they are said to be."""
    if dataset.is_virtual or dataset.external or dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
        raise ValueError("the tensor %s is not in it" % name)
    return dataset[()]


def load(path):
    """{variable: np.ndarray} of the layers that are named as those of a trainable export, however deep in the user's model.

    With those of MARKS, empty arrays, of which there are layers; with SIZE, an integer (), if the file has `image_size`.

    Raises:
        ValueError: there are two of a name, or none. Others, if the file is damaged.
    """
    import h5py
    import numpy as np
    content, values = path, {}
    if not path.endswith('.h5'):
        with zipfile.ZipFile(path) as archive:
            content, size = io.BytesIO(archive.read(WEIGHTS)), image_size(archive.read(CONFIG).decode())
        if size is not None:
            values[SIZE] = np.array(size)
    with h5py.File(content, 'r') as f:
        for group in groups_below(f, h5py):
            layer = group.attrs.get('name')
            if not (isinstance(layer, str) and LAYER.match(layer) and group.name.endswith('/vars')):
                continue
            values.update({mark: np.zeros(0, 'float32') for mark, name in MARKS.items() if name.match(layer)})
            for index, variable in zip(sorted(group, key=int), variable_names(layer)):
                if variable in values:
                    raise ValueError("two layers of it are called %s: save the GhostNet alone" % layer)
                value = array_of(group[index], variable)
                # A Dense layer may have taken the place of the classifier.
                values[variable] = value[None, None] if variable.endswith('/W') and value.ndim == 2 else value
    if not set(values) - set(MARKS) - {SIZE}:
        raise ValueError("no layer of it is called as those of tools.export --trainable")
    return values
