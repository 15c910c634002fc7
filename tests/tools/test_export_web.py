"""The page that --format web makes, in a real browser without a window, as people use it."""
import glob
import importlib.util
import json
import os
import shutil

import cv2
import numpy as np
import pytest
from pages import chromium, classified, opened, served
from test_export_names import NAMES

from checkpoints import CheckpointRestore, Record, save_values
from command_line import ROOT
from conftest import DIGITS_CHECKPOINT, refused, run_main

SHOWN = NAMES[:6] + ['\\xff7'] + NAMES[7:]    # a byte that is not UTF-8 is escaped
pytestmark = pytest.mark.xdist_group('web page')    # so that `page` is made once
EXPORT = {'script': ['-m', 'tools.export']}
TURNED = b'\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'    # EXIF: by 90 degrees


def needs_packages():
    if importlib.util.find_spec('tf2onnx') is None:
        pytest.skip("needs tf2onnx: make test-interop")


@pytest.fixture(scope='module')
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope='module')
def page(browser, tmp_path_factory):
    """The folder of a page of the digits' network with NAMES, for 193 x 193 pixels, and the checkpoint, which records that."""
    needs_packages()
    if shutil.which('npm') is None:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp('page')
    save_values(CheckpointRestore(DIGITS_CHECKPOINT).values, str(folder / 'checkpoint'),
                Record('published', [(name, '') for name in NAMES], None, 193))
    status, _, err = run_main('--load', folder / 'checkpoint', '--format', 'web', folder / 'out', **EXPORT)
    assert status == 0, err
    return folder / 'out', folder / 'checkpoint'


@pytest.fixture(scope='module')
def address(page):
    with served(page[0]) as url:
        yield url


@pytest.fixture(scope='module')
def pictures(tmp_path_factory, digits):
    """20 files: digits, photographs, noise; in JPEG and PNG, wide, tall, small, grey, in 16 bits, turned by EXIF."""
    folder = tmp_path_factory.mktemp('pictures')
    images = os.path.join(os.path.dirname(importlib.util.find_spec('sklearn').origin), 'datasets', 'images')
    photographs = [os.path.join(images, name) for name in ('china.jpg', 'flower.jpg')]
    china, flower = [cv2.imread(path) for path in photographs]
    noise = cv2.GaussianBlur(np.random.RandomState(0).randint(0, 256, (300, 400, 3)).astype(np.uint8), (0, 0), 5)
    made = {'a name with é & <b>.jpg': china[:, :300], 'wide.jpg': flower[100:220], 'tall.png': flower[:, 250:380],
            'small.jpg': china[:60, :41], 'grey.jpg': cv2.cvtColor(flower, cv2.COLOR_BGR2GRAY), 'square.png': china[:256, :256],
            'deep.png': china.astype(np.uint16) * 257, 'noise.png': noise, 'stretched.jpg': cv2.normalize(noise, None, 0, 255, 32)}
    for name, picture in made.items():
        cv2.imwrite(str(folder / name), picture)
    with open(photographs[1], 'rb') as f:
        content = f.read()
    (folder / 'turned.jpg').write_bytes(content[:2] + TURNED + content[2:])
    files = sorted(glob.glob(os.path.join(digits, 'val', '*.png')))[:8] + photographs
    return files + [str(folder / name) for name in list(made) + ['turned.jpg']]


@pytest.mark.slow
def test_the_page_says_what_predict_says(page, address, browser, pictures, tmp_path):
    status, _, err = run_main('--predict', *(pictures + ['--load', page[1], '--json', tmp_path / 'said.json']))
    assert status == 0, err
    with open(str(tmp_path / 'said.json')) as f:
        said = [entry['classes'] for entry in json.load(f)]
    assert len(pictures) == len(said) == 20

    tab, requests = opened(browser, address)
    for path, classes in zip(pictures, said):
        rows = classified(tab, path)
        assert len(rows) == 5 and rows[0][0] == classes[0]['label'] and rows[0][2] == SHOWN[rows[0][0]], (path, rows, classes)
        probability = {entry['label']: entry['probability'] for entry in classes}
        assert all(abs(share - probability[label]) < 0.02 for label, share, _ in rows if label in probability), (path, rows)
        assert os.path.basename(path) in tab.text_content('#status') and tab.text_content('#status').endswith(' ms')
    assert all(url.startswith((address, 'blob:' + address, 'data:')) for url in requests)    # nothing from outside


@pytest.mark.slow
def test_the_page_is_usable_by_keyboard_on_a_phone_and_says_what_is_wrong(address, browser, pictures, tmp_path):
    tab, _ = opened(browser, address, width=360)
    for focused in 'choose', 'photograph':
        tab.keyboard.press('Tab')
        assert tab.evaluate('document.activeElement.id') == focused
    assert tab.get_by_label('Take a photograph').get_attribute('capture') == 'environment'
    assert tab.get_by_role('status').text_content() == 'Ready: choose a picture.'
    (tmp_path / 'no.png').write_bytes(b'no picture')
    tab.set_input_files('#choose', str(tmp_path / 'no.png'))
    tab.wait_for_selector('#status.wrong')
    assert 'no.png is not a picture' in tab.text_content('#status')

    with open(pictures[0], 'rb') as f:
        content = list(f.read())
    tab.evaluate("""content => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(content)], 'dropped.png', {type: 'image/png'}));
        document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}));
    }""", content)
    tab.wait_for_selector('#classes li', timeout=60000)
    assert tab.text_content('#status').startswith('dropped.png: ') and tab.get_by_role('listitem').count() == 5
    assert tab.get_by_alt_text('The picture dropped.png').is_visible()
    assert tab.evaluate('document.documentElement.scrollWidth') <= 360


def test_without_npm_the_page_is_refused(tmp_path):
    needs_packages()
    if os.path.isdir(os.path.join(ROOT, 'tools', 'export', 'web', 'node_modules')):
        pytest.skip("ONNX Runtime Web is installed in tools/export/web")
    out = refused('--load', DIGITS_CHECKPOINT, '--format', 'web', tmp_path / 'out', env=dict(os.environ, PATH=''), **EXPORT)
    assert 'install npm' in out and not list(tmp_path.iterdir())


@pytest.mark.parametrize('flag', ['--raw', '--features'])
def test_a_page_takes_pictures_and_shows_classes(flag, tmp_path):
    assert '--format web takes pictures' in refused('--load', 'x', '--format', 'web', tmp_path / 'out', flag, **EXPORT)
