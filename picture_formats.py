"""Pictures as files: which are some, and which faults of a JPEG, PNG or TIFF cost pixels. Without a decoder, and TensorFlow."""
import re
import struct
import zlib

from command_line import InputError

# The first bytes of pictures: of kinds that every OpenCV reads, and of those that some do.
SIGNATURE = re.compile(
    b'\xff\xd8\xff|\x89PNG|RIFF....WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|P[1-6]\\s+(#|\\d)|P7\n|P[Ff]\n|\x59\xa6\x6a\x95|'
    b'#\\?RADIANCE|#\\?RGBE', re.DOTALL)
RARE_SIGNATURE = re.compile(
    b'GIF8[79]a|....ftyp(avi[fs]|mif1|msf1|hei[cmsx]|hev[cx])|\0\0\0\x0cjP  |\xff\x4f\xff\x51|\x76\x2f\x31\x01|'
    b'\0\0\0\x0cJXL |\xff\x0a', re.DOTALL)
PNG = b'\x89PNG\r\n\x1a\n'
END_OF_IMAGE = b'\xff\xd9'
MARKER = re.compile(b'\xff+([\x01-\xcf\xd8-\xfe])')    # in compressed data, ff00 and ffd0 to ffd7 are no end


class Damaged(Exception):
    """Pixels of a picture are missing or wrong. The message begins after the picture's name and a colon."""


def read_bytes(path, size=-1):
    try:
        with open(path, 'rb') as f:
            return f.read(size)
    except OSError as error:
        raise InputError("cannot read the picture %s: %s" % (path, error.strerror))


# ------------------------------------------------------------------------------------------------------------------- JPEG

def repair_jpeg(data, warning, verify):
    """The JPEG `data` without those of its faults that cost no pixel, and a note on them or None.

    Args:
        data (bytes): what `verify` has refused.
        warning (str): what libjpeg says of it.
        verify: a function that decodes a JPEG, and raises ValueError with libjpeg's first warning.
    Raises:
        Damaged: it is refused without them too.
    """
    note, last = None, warning
    data = tidy_header(data)
    for repair in (lambda data, last: data, complete, without_padding):
        repaired = repair(data, last)
        if repaired is None:
            continue
        if repair is complete:
            note = "it lacks its end marker, and has all its pixels"
        data = repaired
        try:
            verify(data)
            return data, note
        except ValueError as error:
            last = str(error)
    raise Damaged("%s (libjpeg)" % warning)


def segments(data, position=2):
    """The segments of the JPEG `data` from `position` on, through its scans: (code, start at the ff before it, end)."""
    while True:
        marker = MARKER.search(data, position)
        if marker is None:
            return
        code, position = ord(marker.group(1)), marker.end()
        if 0xc0 <= code <= 0xcf or 0xda <= code <= 0xef or code == 0xfe:    # it has a length
            position += int.from_bytes(data[position:position + 2], 'big')
        yield code, marker.end() - 2, position
        if code == 0xd9:
            return


def ends(data):
    """Whether the JPEG `data` has an end marker behind its own scans, not in a thumbnail (T.81, B.1)."""
    return any(code == 0xd9 for code, _, _ in segments(data))


def tidy_header(data):
    """`data` without what may stand before its scans and is no part of the picture: stray bytes, comments, profiles."""
    kept = [data[:2]]
    for code, start, end in segments(data):
        if code == 0xda:
            return b''.join(kept) + data[start:]
        segment = data[start:end]
        if code == 0xe0 and segment[4:9] == b'JFIF\0':
            segment = segment[:9] + b'\1\1' + segment[11:]
        if not 0xe1 <= code <= 0xed and code != 0xfe or segment[4:8] == b'Exif':
            kept.append(segment)
    return data


def complete(data, warning):
    """`data` with an end marker, if it lacks nothing else that its header announces; else None."""
    return data + END_OF_IMAGE if 'Premature end of JPEG file' in warning and has_all_scans(data) else None


def has_all_scans(data):
    """Whether all coefficients of all components come in some scan, to their last bit (T.81, tables B.2, B.3 and G.1.1.1.1)."""
    missing, progressive = {None: True}, False    # {component: which coefficients have not come}
    for code, start, end in segments(data):
        body = data[start + 4:end]
        if code in (0xc0, 0xc1, 0xc2):
            progressive = code == 0xc2
            missing = {component: set(range(64)) for component in body[6::3]}
        elif code == 0xda and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0]:4 + 2 * body[0]]
            for component in body[1:1 + 2 * body[0]:2]:
                if not progressive:
                    missing.pop(component, None)
                elif bits & 15 == 0 and component in missing:
                    missing[component] -= set(range(first, last + 1))
    return not any(missing.values())


def without_padding(data, _):
    """`data` without zeros before its end marker, which some cameras write; None if there are none."""
    end = data.rfind(END_OF_IMAGE)
    kept = data[:end].rstrip(b'\0')
    if kept.endswith(b'\xff'):    # ff00 is the value ff
        kept += b'\0'
    return kept + END_OF_IMAGE if len(kept) < end else None


def is_turned(data):
    """Whether OpenCV may turn a JPEG, because its EXIF header has an orientation other than 1, or cannot be understood here."""
    start = data.find(b'Exif\0\0', 0, 1 << 17)
    if start < 0:
        return False
    tiff = data[start + 6:start + (1 << 16)]
    order = '<' if tiff[:2] == b'II' else '>'
    try:
        first, = struct.unpack_from(order + 'I', tiff, 4)
        count, = struct.unpack_from(order + 'H', tiff, first)
        tags = [struct.unpack_from(order + 'HHIH', tiff, first + 2 + 12 * i) for i in range(count)]
    except struct.error:
        return True
    return any(tag == 0x0112 and (kind, length, value) != (3, 1, 1) for tag, kind, length, value in tags) \
        or data.find(b'Exif\0\0', start + 1, 1 << 17) > 0


# -------------------------------------------------------------------------------------------------------------------- PNG

def tidy_png(data, check_size):
    """The PNG `data` of its first image alone, without what is not needed for its pixels, and a note on its faults or None.

    libpng finds out whether the compressed data has all pixels; what it says of profiles and texts would be lines without a name.

    Raises:
        Damaged: pixels are missing or wrong; or what `check_size` raises for height, width and bits a sample.
    """
    kept, note, position = [], None, 8
    while True:
        end = position + 12 + int.from_bytes(data[position:position + 4], 'big')
        kind = data[position + 4:position + 8]
        needed = kind in (b'IHDR', b'PLTE', b'IDAT')
        sound = end <= len(data) and zlib.crc32(data[position + 4:end - 4]) == int.from_bytes(data[end - 4:end], 'big')
        if needed and not sound:
            raise Damaged("it is truncated" if end > len(data) else "a chunk %s has a wrong CRC" % kind.decode())
        if not sound:
            note = "a chunk that is not needed is damaged or missing; it has all its pixels"
        if kind == b'IEND' or end > len(data):
            break
        if needed or (sound and kind in (b'tRNS', b'sBIT')):
            kept.append((kind, data[position:end]))
        position = end
    if not kept or kept[0][0] != b'IHDR' or len(kept[0][1]) != 25:
        raise Damaged("it has no header")
    width, height, bits = struct.unpack('>IIB', kept[0][1][8:17])
    check_size(height, width, bits)
    return PNG + b''.join(chunk for _, chunk in kept) + b'\0\0\0\0IEND\xaeB`\x82', note


# ------------------------------------------------------------------------------------------------------------------- TIFF

TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}    # bytes
TIFF_INTEGERS = {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}
WIDTH, HEIGHT, BITS, COMPRESSION, STRIPS, STRIP_SIZES, LARGEST, TILES, TILE_SIZES, SAMPLE_FORMAT, JPEG_TABLES = \
    TIFF_TAGS = 256, 257, 258, 259, 273, 279, 281, 324, 325, 339, 347


def tiff_samples(data, verify_jpeg, check_size):
    """How many bits a sample has in the first image of a TIFF, and the largest value that the file declares, or None.

    Raises:
        Damaged: it is truncated; a JPEG in it is damaged, for which `verify_jpeg` raises ValueError; its samples are floats; or
            what `check_size` raises for height, width and bits a sample.
    """
    try:
        tags = tiff_tags(data)
        for starts, sizes in ((STRIPS, STRIP_SIZES), (TILES, TILE_SIZES)):
            for start, size in zip(tags.get(starts, ()), tags.get(sizes, ())):
                if start + size > len(data):
                    raise Damaged("it is truncated")
                if tags.get(COMPRESSION) == (7,):
                    tables = bytes(tags.get(JPEG_TABLES, ()))    # of all strips
                    verify_jpeg(tables[:-2] + data[start + 2 * bool(tables):start + size])
    except (struct.error, OverflowError):    # an offset may have 64 bits
        raise Damaged("it is truncated")
    except ValueError as warning:
        raise Damaged("%s (libjpeg)" % warning)
    if 3 in tags.get(SAMPLE_FORMAT, ()):
        raise Damaged("its samples are floating-point numbers, and their range is not known: save it with 8 or 16 bits")
    bits = max(tags.get(BITS, (1,)) or (1,))
    check_size(max(tags.get(HEIGHT, (0,)), default=0), max(tags.get(WIDTH, (0,)), default=0), bits)
    return bits, max(tags[LARGEST], default=None) if LARGEST in tags else None


def tiff_tags(data):
    """Those of TIFF_TAGS that the first image in a TIFF or BigTIFF has, {number: integers}.

    Raises:
        struct.error, OverflowError: it is truncated.
    """
    order = '<' if data[:2] == b'II' else '>'
    word, start = ('Q', 8) if 43 in data[2:4] else ('I', 4)
    inline = struct.calcsize(word)
    first, = struct.unpack_from(order + word, data, start)
    count, = struct.unpack_from(order + ('Q' if word == 'Q' else 'H'), data, first)
    first += 8 if word == 'Q' else 2
    tags = {}
    for entry in range(first, first + count * (4 + 2 * inline), 4 + 2 * inline):
        tag, kind, length = struct.unpack_from(order + 'HH' + word, data, entry)
        size, place = TIFF_SIZES.get(kind, 1) * length, entry + 4 + inline
        if size > inline:
            place, = struct.unpack_from(order + word, data, place)
        if place + size > len(data):
            raise struct.error
        if tag in TIFF_TAGS and tag not in tags and (kind in TIFF_INTEGERS or tag == JPEG_TABLES):
            tags[tag] = struct.unpack_from(order + str(length) + TIFF_INTEGERS.get(kind, 'B'), data, place)
    return tags
