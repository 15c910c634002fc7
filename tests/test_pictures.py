"""One picture from a file: every kind that ImageNet holds, and everything that is wrong with one."""
import base64
import re
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

import pictures
from command_line import InputError
from conftest import ROOT
from pictures import BrokenPicture, PictureReader, read_image

# 24x16 pixels: a CMYK JPEG as Photoshop writes them, and a progressive one.
CMYK = base64.b64decode(
    '/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLUBXQUZMTlJTUjI+WmFaUGBKUVJP/8AAFAgA'
    'EAAYBEMRAE0RAFkRAEsRAP/EABgAAQEBAQEAAAAAAAAAAAAAAAUEAwYH/8QAGhAAAgMBAQAAAAAAAAAAAAAAAAQCAyExYf/aAA4EQwBNAFkASwAAPwDtHG+6cUmp'
    'zD0G6309InMCcb7o8mpzCC630nnMBcb7o6mpzCG630wnMecb7oEmpzC66303nMBcb7o6mpzCG630wnMCcb7o8mpzCC630wnM/9k=')
PROGRESSIVE = base64.b64decode(
    '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBD'
    'AQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wgARCAAQABgDASIAAhEBAxEB/8QAFgABAQEA'
    'AAAAAAAAAAAAAAAAAAID/8QAFQEBAQAAAAAAAAAAAAAAAAAABAX/2gAMAwEAAhADEAAAAbhATmZVX//EABQQAQAAAAAAAAAAAAAAAAAAACD/2gAIAQEAAQUCX//E'
    'ABcRAAMBAAAAAAAAAAAAAAAAAAACAyH/2gAIAQMBAT8BhASGH//EABYRAQEBAAAAAAAAAAAAAAAAAAIAAf/aAAgBAgEBPwECwX//xAAUEAEAAAAAAAAAAAAAAAAA'
    'AAAg/9oACAEBAAY/Al//xAAVEAEBAAAAAAAAAAAAAAAAAAABAP/aAAgBAQABPyFZZZZZb//aAAwDAQACAAMAAAAQ6M//xAAXEQEAAwAAAAAAAAAAAAAAAAAAITFR'
    '/9oACAEDAQE/EKIYH//EABURAQEAAAAAAAAAAAAAAAAAAAAh/9oACAECAQE/EBJ//8QAFBABAAAAAAAAAAAAAAAAAAAAIP/aAAgBAQABPxBf/wD/2Q==')


def picture(height=60, width=90):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def encode(image, extension):
    return cv2.imencode(extension, image)[1].tobytes()


def with_exif(jpeg, orientation):
    """The JPEG with an EXIF header that gives its orientation and holds a whole JPEG as its thumbnail."""
    tiff = b'II*\x00\x08\x00\x00\x00' + struct.pack('<HHHII', 1, 0x0112, 3, 1, orientation) + b'\x00\x00\x00\x00' + PROGRESSIVE
    body = b'Exif\x00\x00' + tiff
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + jpeg[2:]


def read(tmp_path, data, name='image.JPEG', **rule):
    path = str(tmp_path / name)
    with open(path, 'wb') as f:
        f.write(data)
    return PictureReader(**rule)(path)


def photograph(height=240, width=320):
    """Smooth, with some noise, so that its JPEG has about as many bits a pixel as one of a camera."""
    y, x = np.mgrid[:height, :width] / 40.0
    image = 127 + 60 * np.stack([np.sin(x + y), np.cos(x - y), np.sin(x * y / 4)], axis=2)
    return np.clip(image + np.random.RandomState(1).normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def scan_start(jpeg):
    """Where the compressed data begins."""
    start = jpeg.rindex(b'\xff\xda')
    return start + 2 + int.from_bytes(jpeg[start + 2:start + 4], 'big')


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def tiff(image, order='<', big=False, **changes):
    """A TIFF of one strip with its directory first. `changes`: tags by name, `cut` bytes to leave out at the end."""
    pixels = image[..., ::-1].astype(image.dtype.newbyteorder(order)).tobytes() if image.ndim == 3 else image.tobytes()
    height, width, samples = image.shape if image.ndim == 3 else image.shape + (1,)
    tags = {256: width, 257: height, 258: image.dtype.itemsize * 8, 259: 1, 262: 2 if samples == 3 else 1, 273: 0, 277: samples,
            278: height, 279: len(pixels), 281: changes.get('largest'), 339: changes.get('form')}
    tags = {tag: value for tag, value in tags.items() if value is not None}
    head, entry = (16 + 8, 20) if big else (8 + 2, 12)
    bits = head + entry * len(tags) + (8 if big else 4)
    tags[273] = bits + 2 * samples
    entries = b''
    for tag, value in sorted(tags.items()):
        if tag == 258 and samples == 3:    # three values, which do not fit into a classic entry
            value = (bits if not big else sum(value << 16 * i for i in range(3)))
            entries += struct.pack(order + 'HH' + ('QQ' if big else 'II'), tag, 3, 3, value)
        else:
            entries += struct.pack(order + 'HH' + ('QQ' if big else 'II'), tag, 4, 1, value)
    start = (b'II' if order == '<' else b'MM') + struct.pack(order + ('HHHQQ' if big else 'HIH'), *(
        (43, 8, 0, 16, len(tags)) if big else (42, 8, len(tags))))
    depth = struct.pack(order + '%dH' % samples, *[image.dtype.itemsize * 8] * samples)
    data = start + entries + struct.pack(order + ('Q' if big else 'I'), 0) + depth + pixels
    return data[:len(data) - changes.get('cut', 0)]


def test_images_of_every_kind_that_imagenet_holds(tmp_path):
    jpeg = encode(picture(), '.jpg')
    plain = read(tmp_path, jpeg)
    assert read(tmp_path, CMYK).shape == (16, 24, 3) and read(tmp_path, PROGRESSIVE).shape == (16, 24, 3)
    assert np.array_equal(read(tmp_path, encode(picture(), '.png')), picture())    # a PNG named .JPEG
    assert np.array_equal(read(tmp_path, jpeg + b'\x00trailing \xff\xd9 bytes' * 9), plain)
    assert np.array_equal(read(tmp_path, encode(picture(), '.png') + b'\x00trailing'), picture())
    assert np.array_equal(read(tmp_path, with_exif(jpeg, 1)), plain)
    assert np.array_equal(read(tmp_path, with_exif(jpeg, 6)), np.rot90(plain, -1))    # turned, as cv2.imread does
    grey = encode(picture()[:, :, 0], '.jpg')
    assert read(tmp_path, grey).shape == (60, 90, 3)


def test_jpegs_are_decoded_once_by_simplejpeg_but_for_turned_and_cmyk_ones(tmp_path, monkeypatch):
    """To the same pixels, in less time, above all large ones."""
    large = encode(photograph(960, 1280), '.jpg')
    expected, decoded = cv2.imdecode(np.frombuffer(large, np.uint8), cv2.IMREAD_COLOR), []
    assert expected.shape[0] * expected.shape[1] > 10 ** 6
    monkeypatch.setattr(pictures, 'decode', lambda data: decoded.append(data) or np.zeros((16, 24, 3), np.uint8))
    assert np.array_equal(read(tmp_path, large), expected) and not decoded
    for data in (with_exif(large, 6), CMYK):
        read(tmp_path, data)
        assert decoded.pop() == data and not decoded


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize('kind', ['jpeg', 'exif', 'progressive', 'cmyk', 'png'])
def test_truncated_images_are_refused(tmp_path, kind, share):
    jpeg = encode(picture(), '.jpg')
    data = {'jpeg': jpeg, 'exif': with_exif(jpeg, 1), 'progressive': PROGRESSIVE, 'cmyk': CMYK,
            'png': encode(picture(), '.png')}[kind]
    with pytest.raises(InputError, match='image.JPEG'):
        read(tmp_path, data[:min(int(len(data) * share), len(data) - 16)])


@pytest.mark.parametrize('data', [b'', b'no image at all', b'\xff\xd8\xff\xd9', b'\x89PNG\r\n\x1a\n', b'GIF89a'])
def test_what_is_no_image_is_refused(tmp_path, data):
    with pytest.raises(InputError, match='image.JPEG'):
        read(tmp_path, data)


def test_jpegs_with_damaged_data_are_refused(tmp_path):
    """512 random bytes, or 4,096 zeros, in the compressed data. What becomes a valid stream again cannot be noticed."""
    jpeg, rng = encode(photograph(), '.jpg'), np.random.RandomState(0)
    start, accepted = scan_start(jpeg), 0
    for damage in [rng.bytes(512) for _ in range(100)] + [bytes(4096)] * 100:
        place = rng.randint(start, len(jpeg) - 2 - len(damage))
        try:
            read(tmp_path, jpeg[:place] + damage + jpeg[place + len(damage):])
            accepted += 1
        except BrokenPicture as error:
            assert 'image.JPEG is broken' in str(error)
    assert accepted <= 3


def test_sound_jpegs_that_libjpeg_warns_of_are_read(tmp_path, capfd):
    """An unknown JFIF revision, stray bytes between segments, zeros or fill bytes before the end marker, a wrong profile."""
    jpeg = encode(photograph(), '.jpg')
    expected, start = read(tmp_path, jpeg), jpeg.index(b'\xff\xdb')
    profile = b'\xff\xe2\x00\x10ICC_PROFILE\0\x07\x02'
    for data in (jpeg[:11] + b'\x02\x01' + jpeg[13:], jpeg[:start] + b'stray' + jpeg[start:], jpeg[:-2] + bytes(100) + jpeg[-2:],
                 jpeg[:-2] + b'\xff\xff\xff' + jpeg[-2:], jpeg[:20] + profile + jpeg[20:]):
        assert np.array_equal(read(tmp_path, data), expected)
    assert capfd.readouterr().err == ''
    with pytest.raises(BrokenPicture, match='extraneous'):
        read(tmp_path, jpeg[:-2] + b'stray' + jpeg[-2:])


def test_what_costs_no_pixel_is_a_warning(tmp_path, capfd):
    """A JPEG without its end marker, a BMP with a wrong size, a PNG with a damaged text or end."""
    jpeg, png, bmp = (encode(photograph(), extension) for extension in ('.jpg', '.png', '.bmp'))
    text = chunk(b'tEXt', b'Comment\0hello')
    for whole, faulty, reason in [
            (jpeg, jpeg[:-2], 'lacks its end marker'), (jpeg, jpeg[:-1], 'lacks its end marker'),
            (bmp, bmp[:2] + struct.pack('<I', len(bmp) + 2) + bmp[6:], 'gives a wrong size'),
            (png, png[:33] + text[:-1] + b'?' + png[33:], 'not needed is damaged'), (png, png[:-12], 'not needed is damaged'),
            (png, png[:-5], 'not needed is damaged'), (png, png[:-1] + b'?', 'not needed is damaged')]:
        assert np.array_equal(read(tmp_path, whole), read(tmp_path, faulty))
        said = capfd.readouterr().err
        assert said.startswith('warning: ') and 'image.JPEG' in said and reason in said and said.count('\n') == 1
    reader = PictureReader()
    assert reader(str(tmp_path / 'image.JPEG')) is not None and reader(str(tmp_path / 'image.JPEG')) is not None
    assert capfd.readouterr().err.count('\n') == 1    # once for each picture, not in each epoch


def test_a_progressive_jpeg_that_ends_between_two_scans_is_refused(tmp_path):
    """With an end marker it would be decoded without a warning, and blurred."""
    last = PROGRESSIVE.rindex(b'\xff\xc4')
    with pytest.raises(BrokenPicture):
        read(tmp_path, PROGRESSIVE[:last])
    assert np.array_equal(read(tmp_path, PROGRESSIVE[:-2]), read(tmp_path, PROGRESSIVE))


@pytest.mark.parametrize('kind, data', [
    ('crc', lambda png: png[:len(png) // 2] + bytes([png[len(png) // 2] ^ 4]) + png[len(png) // 2 + 1:]),
    ('short', lambda png: png[:33] + chunk(b'IDAT', zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b'')),
    ('zlib', lambda png: png[:33] + chunk(b'IDAT', b'nonsense') + chunk(b'IEND', b'')),
    ('none', lambda png: png[:33] + chunk(b'IEND', b'')), ('header', lambda png: png[:8] + png[33:])])
def test_damaged_pngs_are_refused_in_one_line(tmp_path, kind, data, capfd):
    with pytest.raises(BrokenPicture):
        read(tmp_path, data(encode(picture(), '.png')))
    assert capfd.readouterr().err == ''    # libpng's own lines have no file name


def test_tiffs(tmp_path):
    image = picture()
    for order in '<>':
        assert np.array_equal(read(tmp_path, tiff(image, order)), image)
        with pytest.raises(BrokenPicture, match='truncated'):
            read(tmp_path, tiff(image, order, cut=10))
    if cv2.__version__ > '5':
        assert np.array_equal(read(tmp_path, tiff(image, big=True)), image)
    with pytest.raises(BrokenPicture, match='truncated'):
        read(tmp_path, tiff(image, big=True, cut=10))
    for far in (1 << 40, 1 << 63):
        with pytest.raises(BrokenPicture, match='truncated'):
            read(tmp_path, struct.pack('<2sHHHQ', b'II', 43, 8, 0, far) + tiff(image, big=True)[16:])
    with pytest.raises(BrokenPicture, match='floating-point'):
        read(tmp_path, tiff(image.astype(np.float32), form=3))


def test_a_jpeg_in_a_tiff_that_is_truncated_or_damaged_is_refused(tmp_path):
    from PIL import Image
    path = str(tmp_path / 'whole.tif')
    Image.fromarray(photograph()[..., ::-1]).save(path, compression='jpeg')
    with open(path, 'rb') as f:
        data = f.read()
    assert read(tmp_path, data).shape == (240, 320, 3)
    damaged = data[:3000] + np.random.RandomState(0).bytes(512) + data[3512:]
    for broken in (data[:len(data) * 95 // 100], damaged):
        with pytest.raises(BrokenPicture):
            read(tmp_path, broken)


def test_samples_of_12_bits_in_16(tmp_path, capfd):
    """They are scaled by what the file declares, or it is said that they are dark."""
    grey = photograph()[..., 0]
    deep = grey.astype(np.uint16) * 16 + grey // 16
    png = encode(deep, '.png')
    expected = np.repeat(grey[..., np.newaxis], 3, axis=2)
    assert np.abs(read(tmp_path, png[:33] + chunk(b'sBIT', b'\x0c') + png[33:]).astype(int) - expected).max() <= 1
    assert np.abs(read(tmp_path, tiff(deep, largest=4095)).astype(int) - expected).max() <= 1
    assert capfd.readouterr().err == ''
    for data in (png, tiff(deep)):
        assert np.array_equal(read(tmp_path, data), expected // 16)
        assert 'the upper ones are not used' in capfd.readouterr().err
    # As the PNG specification wants it: 12 significant bits, stretched to 16.
    assert np.array_equal(read(tmp_path, encode(deep * 16, '.png')), expected)
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('name', ['jpeg', 'png', 'long png', '16-bit png', '16-bit tiff', 'bmp', 'tiff', 'ppm'])
def test_what_would_take_gigabytes_is_refused_before_it_is_decoded(tmp_path, name):
    jpeg, png, bmp = (encode(picture(), extension) for extension in ('.jpg', '.png', '.bmp'))
    frame = jpeg.index(b'\xff\xc0')
    long_png = png[:8] + chunk(b'IHDR', struct.pack('>IIBBBBB', 65535, 3, 1, 0, 0, 0, 0)) + chunk(
        b'IDAT', zlib.compress(bytes(3 * 8193))) + chunk(b'IEND', b'')
    data = {'jpeg': jpeg[:frame + 5] + struct.pack('>HH', 30000, 30000) + jpeg[frame + 9:],
            'png': png[:8] + chunk(b'IHDR', struct.pack('>II', 20000, 20000) + png[24:29]) + png[33:], 'long png': long_png,
            '16-bit png': png[:8] + chunk(b'IHDR', struct.pack('>IIBBBBB', 10000, 10000, 16, 2, 0, 0, 0)) + png[33:],
            '16-bit tiff': tiff(picture().astype(np.uint16)).replace(
                struct.pack('<HHII', 256, 4, 1, 90), struct.pack('<HHII', 256, 4, 1, 10000)).replace(
                struct.pack('<HHII', 257, 4, 1, 60), struct.pack('<HHII', 257, 4, 1, 10000)),
            'bmp': bmp[:18] + struct.pack('<ii', 20000, 20000) + bmp[26:],
            'tiff': tiff(picture()).replace(struct.pack('<HHII', 256, 4, 1, 90), struct.pack('<HHII', 256, 4, 1, 20000)).replace(
                struct.pack('<HHII', 257, 4, 1, 60), struct.pack('<HHII', 257, 4, 1, 20000)),
            'ppm': b'P6 20000 20000 255\n'}[name]
    (tmp_path / 'bomb.jpg').write_bytes(data)
    code = "import sys; from pictures import read_image\ntry: read_image(sys.argv[1])\n" \
           "except Exception as error: print(error, open('/proc/self/status').read())"
    out = subprocess.check_output([sys.executable, '-c', code, str(tmp_path / 'bomb.jpg')], cwd=ROOT, universal_newlines=True)
    assert 'bomb.jpg is broken: it has ' in out and int(re.search(r'VmHWM:\s+(\d+) kB', out).group(1)) < 300000


def test_rules_for_broken_pictures(tmp_path, capfd):
    jpeg = encode(photograph(), '.jpg')
    cut = jpeg[:len(jpeg) // 2]
    skip = PictureReader('skip')
    (tmp_path / 'image.JPEG').write_bytes(cut)
    assert skip(str(tmp_path / 'image.JPEG')) is None and skip(str(tmp_path / 'image.JPEG')) is None
    assert list(skip.left_out) == [str(tmp_path / 'image.JPEG')] and capfd.readouterr().err.count('left out: ') == 1
    # As cv2.imread, and so the published program, reads it.
    accepted = read(tmp_path, cut, broken='accept')
    assert np.array_equal(accepted, cv2.imread(str(tmp_path / 'image.JPEG'))) and accepted.shape == (240, 320, 3)
    assert 'accepted as OpenCV reads it, although' in capfd.readouterr().err
    for rule in ('stop', 'accept'):
        with pytest.raises(BrokenPicture, match='it is empty'):
            read(tmp_path, b'', broken=rule)


def test_what_is_too_long_to_be_resized_depends_on_the_size(tmp_path):
    """1 x 1000 pixels are 256 x 256,000 for a network of 224, and 439 x 439,000, more than can be, for one of 384."""
    png = encode(np.zeros((1, 1000, 3), np.uint8), '.png')
    assert read(tmp_path, png).shape == (1, 1000, 3)
    for rule in ('stop', 'accept'):
        with pytest.raises(BrokenPicture, match='1000 x 1 pixels, which is too long to be resized'):
            read(tmp_path, png, broken=rule, image_size=384)


def test_missing_image_and_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match='cannot read the picture'):
        read_image(str(tmp_path / 'nothing.JPEG'))
    with pytest.raises(InputError, match='cannot read the picture'):
        read_image(str(tmp_path))
