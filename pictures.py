"""One picture from a file: its pixels, or one line that says why there are none. Without TensorFlow.

Pictures are uint8 (H, W, 3) in BGR, as OpenCV reads them.
"""
import re
import zlib

import cv2
import numpy as np

from command_line import InputError

JPEG_MARKER = re.compile(b'\xff([\x01-\xcf\xd8-\xfe])')    # in compressed data, ff00 and ffd0 to ffd7 are no end


def jpeg_is_whole(data):
    """Whether the JPEG in bytes `data` has its end-of-image marker: not in a thumbnail, but behind its own scans (T.81, B.1)."""
    position = 2
    while True:
        marker = JPEG_MARKER.search(data, position)
        if marker is None:
            return False
        position = marker.end()
        code = ord(marker.group(1))
        if code == 0xd9:
            return True
        if 0xc0 <= code <= 0xcf or 0xda <= code <= 0xef or code == 0xfe:    # a segment with its length
            end = position + int.from_bytes(data[position:position + 2], 'big')
            position = end if end < len(data) else position    # else stray bytes in the compressed data


def png_is_whole(data):
    """Whether the PNG in bytes `data` goes on to its IEND chunk, and all its chunks have the right CRC."""
    position = 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position:position + 4], 'big')
        if zlib.crc32(data[position + 4:end]) != int.from_bytes(data[end:end + 4], 'big'):
            return False
        if data[position + 4:position + 8] == b'IEND':
            return True
        position = end + 4
    return False


def fix_opencv():
    """Makes OpenCV compute the same in this thread on every machine; it keeps the first setting for each thread.

    With IPP, cubic resizing differs between OpenCV builds and processors.
    """
    cv2.ipp.setUseIPP(False)
    cv2.setNumThreads(0)


def read_image(path):
    """The picture at `path`, uint8 (H, W, 3) BGR, turned as its EXIF header says: the same on every stack.

    OpenCV fills what is missing of a truncated file with grey or black, so that is looked for here.

    Raises:
        InputError: the file is missing, truncated or no image.
    """
    fix_opencv()
    try:
        with open(path, 'rb') as f:
            data = f.read()
    except (IOError, OSError) as error:
        raise InputError("cannot read the image %s: %s" % (path, error.strerror))
    if (data[:2] == b'\xff\xd8' and not jpeg_is_whole(data)) or (data[:4] == b'\x89PNG' and not png_is_whole(data)) \
            or (data[:2] == b'BM' and int.from_bytes(data[2:6], 'little') > len(data)):
        raise InputError("the image %s is truncated or broken: get it anew" % path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise InputError("the file %s is not an image, or a broken one: get it anew" % path)
    return image
