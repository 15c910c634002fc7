"""One picture from a file: its pixels, or one line that says why there are none. Without TensorFlow.

Pictures are uint8 (H, W, 3) in BGR, as OpenCV reads them. What a decoder would fill with grey, or guess, is found here: libjpeg
reports damaged data as a warning, which OpenCV drops and simplejpeg raises. One flipped bit may go unnoticed by any decoder.
"""
import io
import os
import re
import struct
import warnings

import cv2
import numpy as np
import simplejpeg

from command_line import InputError, quiet_stderr, warn
from picture_formats import (
    END_OF_IMAGE,
    PNG,
    RARE_SIGNATURE,
    SIGNATURE,
    Damaged,
    ends,
    is_turned,
    read_bytes,
    repair_jpeg,
    tidy_png,
    tiff_samples,
)
from recipe import IMAGE_SIZE, shorter_side

warnings.filterwarnings('ignore', module='PIL')    # they have no file name
MAX_PIXELS = int(os.environ['OPENCV_IO_MAX_IMAGE_PIXELS'])    # of a picture, and of one that is resized for the network
NO_MEMORY = -4    # cv2.Error.StsNoMem
DARK = 1 << 14    # 16-bit samples all below this are a quarter as bright as they could be, or not of 16 bits


class BrokenPicture(InputError):
    """The picture at `path` is damaged, too large, or none: `reason`."""

    def __init__(self, path, reason, way_out):
        super(BrokenPicture, self).__init__("the picture %s is broken: %s%s" % (path, reason, way_out))
        self.path, self.reason = path, reason


def fix_opencv():
    """Makes OpenCV compute the same in this thread on every machine; it keeps the first setting for each thread.

    With IPP, cubic resizing differs between OpenCV builds and processors.
    """
    cv2.ipp.setUseIPP(False)
    cv2.setNumThreads(0)


# ------------------------------------------------------------------------------------------------------------------ size

def check_size(height, width, bits=8):
    """Raises Damaged for what would take gigabytes: before it is decoded, and before its shorter side becomes 256 pixels.

    `bits`: of a sample; those of 16 bits take twice the memory.
    """
    most = MAX_PIXELS if bits <= 8 else MAX_PIXELS // 2
    if height * width > most:
        raise Damaged("it has %d x %d pixels of %d bits a sample, more than %d million" % (width, height, bits, most // 10 ** 6))
    check_length(height, width, IMAGE_SIZE)


def check_length(height, width, image_size):
    """Raises Damaged for what would take gigabytes once it is resized for a network of that image size."""
    if height and width and shorter_side(image_size) ** 2 * max(height, width) > MAX_PIXELS * min(height, width):
        raise Damaged("it has %d x %d pixels, which is too long to be resized" % (width, height))


def is_picture(path):
    """Whether the content of the file at `path` is a picture of a kind that this OpenCV reads. Its name does not matter.

    Raises InputError if it cannot be read.
    """
    start = read_bytes(path, 32)
    if RARE_SIGNATURE.match(start):
        try:
            return decode(read_bytes(path)) is not None
        except Damaged:
            return False
    return SIGNATURE.match(start) is not None


# --------------------------------------------------------------------------------------------------------------- decoding

def decode(data, flags=cv2.IMREAD_COLOR):
    """What OpenCV makes of bytes `data`. Raises Damaged if that is nothing."""
    if not data:
        raise Damaged("it is empty")
    try:
        with quiet_stderr:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == NO_MEMORY:
            raise MemoryError
        if 'CV_IO_MAX_IMAGE' in str(error):
            raise Damaged("it has more than %d million pixels" % (MAX_PIXELS // 10 ** 6))
        image = None
    if image is None:
        raise Damaged("it is truncated or damaged, or of a kind that OpenCV %s cannot read" % cv2.__version__
                      if SIGNATURE.match(data) or RARE_SIGNATURE.match(data) else "it is no picture")
    return image


def verified_jpeg(data):
    """The pixels of a JPEG as libjpeg gives them, BGR or CMYK; None for a kind that simplejpeg does not read.

    Raises ValueError with the first warning; Damaged.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (KeyError, ValueError) as error:
        if isinstance(error, ValueError) and 'subsampling' not in str(error):
            raise
        return verified_by_pillow(data)
    check_size(height, width)
    return simplejpeg.decode_jpeg(data, 'CMYK' if colours in ('CMYK', 'YCCK') else 'BGR')


def verified_by_pillow(data):
    """None, or ValueError for a damaged JPEG: for rare subsamplings. Pillow finds most damage, and no lack at the end."""
    from PIL import Image
    if not ends(data):
        raise ValueError("it is truncated")
    try:
        image = Image.open(io.BytesIO(data))
        check_size(image.height, image.width)
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error))


def read_jpeg(data):
    """The pixels of a JPEG and, if a fault costs none of them, a note on it. Raises Damaged."""
    note = None
    try:
        image = verified_jpeg(data)
    except ValueError as warning:
        data, note = repair_jpeg(data, str(warning), verified_jpeg)
        image = None
    if image is None or image.shape[2] == 4 or is_turned(data):
        image = decode(data)
    return image, note


def read_png(data):
    """As `read_jpeg`, for a PNG."""
    data, note = tidy_png(data, check_size)
    if data[24] < 16:    # bits a sample
        return decode(data), note
    bits = re.search(b'sBIT(.)', data[33:data.find(b'IDAT')], re.DOTALL)
    image, other = eight_bits(data, (1 << ord(bits.group(1))) - 1 if bits else None)
    return image, note or other


def read_tiff(data):
    """As `read_jpeg`, for a TIFF."""
    bits, largest = tiff_samples(data, verified_jpeg, check_size)
    return eight_bits(data, largest) if bits == 16 else (decode(data), None)


def eight_bits(data, largest):
    """The pixels of a picture with 16 bits a sample, and a note. `largest`: the largest value as the file declares it, or None.

    OpenCV takes the upper 8 bits, which is nearly black where a camera's 12 bits were stored as they are.
    """
    deep = decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    brightest = int(deep.max())
    if deep.dtype != np.uint16 or brightest >= DARK:
        return decode(data), None
    if largest is not None and 0 < brightest <= largest < 65535:
        return cv2.convertScaleAbs(deep, alpha=255.0 / largest), None
    return decode(data), "of its 16 bits a sample, the upper ones are not used (the largest is %d): it is read as nearly black; " \
        "if these are 10, 12 or 14 bits, scale them to 16" % brightest


READERS = {b'\xff\xd8': read_jpeg, PNG[:2]: read_png, b'II': read_tiff, b'MM': read_tiff}


def read_noted(data):
    """The pixels of bytes `data` and, if a fault costs none of them, a note on it. Raises Damaged."""
    fix_opencv()
    if data[:2] in READERS:
        image, note = READERS[data[:2]](data)
    else:
        flags = cv2.IMREAD_COLOR
        if data[8:12] == b'WEBP':    # OpenCV before 4.11 does not turn it, and the answer is the same on every stack
            flags |= cv2.IMREAD_IGNORE_ORIENTATION
        image, note = decode(data, flags), None
        if data[:2] == b'BM' and struct.unpack_from('<I', data, 2)[0] > len(data):
            note = "its header gives a wrong size"
    check_size(*image.shape[:2])
    return image, note


# ---------------------------------------------------------------------------------------------------------------- reading

class PictureReader:
    """Reads pictures, and has one rule for those that are broken.

    Args:
        broken (str): 'stop' raises BrokenPicture; 'skip' leaves them out; 'accept' takes what OpenCV makes of them, which is what
            the published program does.
        way_out (str): how the message of BrokenPicture ends.
        image_size (int): of the network that the pictures are resized for, pixels.

    Attributes: `left_out`, {path: reason}; `notes`, [[path, note], ...], what a ReaderInWorker keeps for the reader of its parent.
    """

    def __init__(self, broken='stop', way_out=": get it again", image_size=IMAGE_SIZE):
        self.broken, self.way_out, self.image_size = broken, way_out, image_size
        self.left_out, self.notes = {}, []
        self.noted = set()

    def __call__(self, path):
        """The picture at `path`, uint8 (H, W, 3) BGR, turned as the EXIF header of a JPEG says; None where it is left out.

        It is the same on every stack. A fault that costs no pixel is a warning.

        Raises:
            BrokenPicture: it is damaged, too large, or no picture.
            InputError: it cannot be read.
        """
        data = read_bytes(path)
        try:
            image, note = read_noted(data)
            check_length(*image.shape[:2], image_size=self.image_size)
        except Damaged as error:
            image, note = self.doubtful(path, data, error)
        if note is not None:
            self.note(path, note)
        return image

    def note(self, path, note):
        """Says what is noted of the picture at `path`, once."""
        if path not in self.noted:
            self.noted.add(path)
            warn("%s: %s" % (path, note))

    def leave_out(self, path, reason):
        if path not in self.left_out:
            self.left_out[path] = reason
            warn("left out: %s: %s" % (path, reason))

    def doubtful(self, path, data, error):
        """What becomes of a broken picture, by the rule: its pixels and a note, or None for both."""
        if self.broken == 'accept':
            try:
                image = decode(data + END_OF_IMAGE if data[:2] == b'\xff\xd8' else data)    # cv2.imread gives a cut one its end
                check_size(*image.shape[:2])
                check_length(*image.shape[:2], image_size=self.image_size)
                return image, "accepted as OpenCV reads it, although %s" % error
            except Damaged as other:
                error = other
        if self.broken == 'skip':
            self.leave_out(path, str(error))
            return None, None
        raise BrokenPicture(path, error, self.way_out)


class ReaderInWorker(PictureReader):
    """A PictureReader like `reader`, in a worker process: it leaves it to that one to say what there is to say."""

    def __init__(self, reader):
        super(ReaderInWorker, self).__init__(reader.broken, reader.way_out, reader.image_size)

    def note(self, path, note):
        self.notes.append([path, note])

    def leave_out(self, path, reason):
        pass


def read_image(path):
    """The picture at `path`: see PictureReader, of which this is 'stop'."""
    return PictureReader()(path)


def listed(left_out):
    """What is written of the `left_out` of a PictureReader: [{'file', 'reason'}, ...]."""
    return [{'file': path, 'reason': reason} for path, reason in sorted(left_out.items())]
