"""Checks a MAT-file before scipy.io.loadmat reads it, which allocates what the file announces, not what it has.

Source: "MAT-File Format", MathWorks (level 5). Only what the devkit's meta.mat needs: structures of texts and numbers.
"""
import struct
import zlib

LARGEST = 1 << 24    # bytes of a variable. That of ILSVRC12 has two million
MOST = 1 << 17       # fields in all rows of a structure. That of ILSVRC12 has 15,000
DEEPEST = 3
COMPRESSED, MATRIX = 15, 14    # types of elements
CELLS, STRUCTURE, TEXT, NUMBERS = 1, 2, 4, range(6, 16)    # classes of arrays


def element(data, position, order):
    """The element at `position`: its type, its bytes, and where the next one is."""
    kind, size = struct.unpack_from(order + 'II', data, position)
    start = position + 8
    if kind >> 16:    # a small element has its size and its bytes in these eight
        kind, size, start = kind & 0xffff, kind >> 16, position + 4
    end = start + size
    if end > len(data) or (start == position + 4 and size > 4):
        raise ValueError("an element is longer than the file")
    return kind, data[start:end], position + 8 if start == position + 4 else end if kind == COMPRESSED else end + -size % 8


def check_array(data, order, depth=1):
    """Raises ValueError or struct.error unless the array in the bytes of a MATRIX has the content that its header announces."""
    if not data:
        return
    parts, position = [], 0
    while position < len(data):
        kind, content, position = element(data, position, order)
        parts.append((kind, content))
        if len(parts) > MOST + 8:
            raise ValueError("an array has too many parts")
    (_, flags), (_, dimensions), _ = parts[:3]
    count = 1
    for size in struct.unpack('%s%di' % (order, len(dimensions) // 4), dimensions):
        if not 0 <= count * size <= LARGEST:
            raise ValueError("an array is too large")
        count *= size
    if not count:
        return
    array = struct.unpack(order + 'II', flags)[0] & 0xff
    inside = parts[3:]
    if array == TEXT or array in NUMBERS:
        if count > len(inside[0][1]) or any(kind == MATRIX for kind, _ in inside):
            raise ValueError("an array is shorter than its header says")
        return
    fields = 1
    if array == STRUCTURE:
        width, = struct.unpack(order + 'i', inside[0][1])
        fields = len(inside[1][1]) // width
        inside = inside[2:]
    elif array != CELLS:
        raise ValueError("there is something else than structures of texts and numbers")
    if not inside or len(inside) != count * fields or depth == DEEPEST:
        raise ValueError("a structure has another number of fields than its header says, or is too deep")
    for kind, content in inside:
        if kind != MATRIX:
            raise ValueError("a field is no array")
        check_array(content, order, depth + 1)


def check_variable(data, name):
    """Raises ValueError or another Exception unless loadmat can read variable `name` of the MAT-file in bytes `data` safely."""
    data = memoryview(data)
    order = {b'IM': '<', b'MI': '>'}[bytes(data[126:128])]
    if struct.unpack_from(order + 'H', data, 124)[0] != 0x100:
        raise ValueError("it is not of level 5")
    position = 128
    while position < len(data):
        kind, content, position = element(data, position, order)
        if kind == COMPRESSED:
            inflated = memoryview(zlib.decompressobj().decompress(content, LARGEST + 1))
            if len(inflated) > LARGEST:
                raise ValueError("a variable is too large")
            kind, content, _ = element(inflated, 0, order)
        if kind != MATRIX:
            raise ValueError("there is something else than variables")
        _, _, after = element(content, 0, order)
        _, _, after = element(content, after, order)
        if bytes(element(content, after, order)[1]) == name.encode():
            check_array(content, order)
