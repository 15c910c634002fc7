"""The standard metadata of TFLite, by which TensorFlow Lite's and MediaPipe's tasks know a classifier's input and class names.

Source: metadata_schema.fbs of TensorFlow Lite Support, version 1.5 (the numbers of the fields and enumerations).
"""
import io
import zipfile

import flatbuffers

FILE = 'labels.txt'
NAME, VERSION = b'TFLITE_METADATA', '1.0.0'
RGB, IMAGE_PROPERTIES, NORMALIZATION, AXIS_LABELS = 1, 2, 1, 2


class Writer:
    """Writes tables whose fields are (number, kind, value): an offset, a string, a byte, or lists of those or of floats."""

    def __init__(self):
        self.builder = flatbuffers.Builder(1024)

    def vector(self, values, size, write):
        self.builder.StartVector(size, len(values), size)
        for value in reversed(values):
            write(value)
        return self.builder.EndVector()

    def value(self, kind, value):
        builder = self.builder
        if kind == 'string':
            return builder.CreateString(value)
        if kind == 'floats':
            return self.vector(value, 4, builder.PrependFloat32)
        return self.vector(value, 4, builder.PrependUOffsetTRelative) if kind == 'tables' else value

    def table(self, *fields):
        fields = [(number, kind, self.value(kind, value)) for number, kind, value in fields]
        self.builder.StartObject(11)
        for number, kind, value in fields:
            if kind == 'byte':
                self.builder.PrependUint8Slot(number, value, 0)
            else:
                self.builder.PrependUOffsetTRelativeSlot(number, value, 0)
        return self.builder.EndObject()


def metadata(output, rgb, named):
    """The table ModelMetadata, as bytes: of a model of images that takes pixels as they are and has the output `output`.

    Without `rgb`, no colour space is named, for the schema lacks BGR. `named`: whether the file with the names is there.
    """
    writer = Writer()
    content = writer.table((0, 'byte', IMAGE_PROPERTIES), (1, 'table', writer.table((0, 'byte', RGB if rgb else 0))))
    options = writer.table((0, 'floats', [0.0]), (1, 'floats', [1.0]))    # mean and deviation
    unit = writer.table((0, 'byte', NORMALIZATION), (1, 'table', options))
    limits = writer.table((0, 'floats', [255.0]), (1, 'floats', [0.0]))
    image = writer.table((0, 'string', 'image'), (3, 'table', content), (4, 'tables', [unit]), (5, 'table', limits))
    files = [writer.table((0, 'string', FILE), (2, 'byte', AXIS_LABELS))] if named else []
    scores = writer.table((0, 'string', output), (6, 'tables', files))
    graph = writer.table((2, 'tables', [image]), (3, 'tables', [scores]))
    model = writer.table((0, 'string', 'GhostNet'), (3, 'tables', [graph]), (7, 'string', VERSION))
    writer.builder.Finish(model, b'M001')
    return bytes(writer.builder.Output())


def with_metadata(model, output, rgb, lines):
    """`model`, a TFLite file as bytes, with metadata and, in a ZIP archive behind it, the label file `lines`, bytes or None."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(metadata(output, rgb, lines is not None))
    entry.name, entry.buffer = NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = (model.metadata or []) + [entry]
    content = io.BytesIO(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    if lines is not None:
        with zipfile.ZipFile(content, 'a') as archive:    # of 1980-01-01
            archive.writestr(zipfile.ZipInfo(FILE), lines)
    return content.getvalue()
