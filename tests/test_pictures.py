"""One picture from a file: every kind that ImageNet holds, and everything that is wrong with one."""
import base64
import struct

import cv2
import numpy as np
import pytest

from command_line import InputError
from pictures import jpeg_is_whole, read_image

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


def read(tmp_path, data, name='image.JPEG'):
    path = str(tmp_path / name)
    with open(path, 'wb') as f:
        f.write(data)
    return read_image(path)


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


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize('kind', ['jpeg', 'exif', 'progressive', 'cmyk', 'png'])
def test_truncated_images_are_refused(tmp_path, kind, share):
    jpeg = encode(picture(), '.jpg')
    data = {'jpeg': jpeg, 'exif': with_exif(jpeg, 1), 'progressive': PROGRESSIVE, 'cmyk': CMYK,
            'png': encode(picture(), '.png')}[kind]
    with pytest.raises(InputError, match='image.JPEG'):
        read(tmp_path, data[:min(int(len(data) * share), len(data) - 1)])


@pytest.mark.parametrize('data', [b'', b'no image at all', b'\xff\xd8\xff\xd9', b'\x89PNG\r\n\x1a\n', b'GIF89a'])
def test_what_is_no_image_is_refused(tmp_path, data):
    with pytest.raises(InputError, match='image.JPEG'):
        read(tmp_path, data)


def test_damaged_but_whole_jpegs_are_read(tmp_path):
    """Stray markers in the compressed data, even with a length that leads behind the end, do not hide the end."""
    jpeg = encode(picture(), '.jpg')
    assert jpeg.endswith(b'\xff\xd9') and jpeg_is_whole(jpeg)
    for stray in (b'\xff\xff', b'\xff\xc4\xff\xff', b'\xff\xfe\x7f\xff', b'\xff\x01'):
        assert jpeg_is_whole(jpeg[:-2] + stray + jpeg[-2:])
    assert read(tmp_path, jpeg[:-2] + b'\xff\xff\xff' + jpeg[-2:]).shape == (60, 90, 3)


def test_a_png_with_a_flipped_bit_is_refused(tmp_path):
    png = bytearray(encode(picture(), '.png'))
    png[len(png) // 2] ^= 4
    with pytest.raises(InputError, match='broken'):
        read(tmp_path, bytes(png))


def test_missing_image_and_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match='cannot read the image'):
        read_image(str(tmp_path / 'nothing.JPEG'))
    with pytest.raises(InputError, match='cannot read the image'):
        read_image(str(tmp_path))
