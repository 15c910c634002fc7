"""One's own pictures, from a folder to every export and to a page in the browser: the README's four commands on drawn shapes."""
import json
import os
import shutil

import pytest
from pages import chromium, classified, opened, served
from shapes import SHAPES, draw

from conftest import DIGITS_CHECKPOINT, run_main
from tools.export.formats import ALL, FORMATS

pytest.importorskip('tf2onnx', reason="needs the packages of requirements-interop.txt: make test-interop")


@pytest.mark.slow
def test_four_commands(tmp_path):
    """No command gets told the network or the classes."""
    root, log_dir, out = draw(tmp_path / 'shapes', 30), tmp_path / 'log', tmp_path / 'exported'
    checkpoint = str(log_dir / 'ghostnet_checkpoint')
    status, said, err = run_main('--train', '--data_dir', root, '--load', DIGITS_CHECKPOINT, '--finetune', '--epochs', 1,
                                 '--log_dir', log_dir, '--seed', 1)
    assert status == 0, err
    status, said, err = run_main('--eval', '--data_dir', root, '--load', checkpoint, '--report', tmp_path / 'report')
    assert status == 0 and all(name in (tmp_path / 'report' / 'report.html').read_text() for name in SHAPES), err
    status, said, err = run_main('--predict', root, '--load', checkpoint, '--json', tmp_path / 'json')
    predicted = json.loads((tmp_path / 'json').read_text())
    assert status == 0 and len(predicted) == 30, err
    status, said, err = run_main('--load', checkpoint, '--format', 'all', out, '--images', root, script=['-m', 'tools.export'])
    assert status == 0 and '30 of 30' in said, (said, err)
    assert sorted(os.listdir(str(out))) == sorted(FORMATS[name].file for name in ALL)

    if shutil.which('npm') is None:
        pytest.skip("all but the page, which needs npm")
    status, said, err = run_main('--load', checkpoint, '--format', 'web', tmp_path / 'page', script=['-m', 'tools.export'])
    assert status == 0, err
    with chromium() as browser, served(tmp_path / 'page') as address:
        tab, _ = opened(browser, address)
        for picture in predicted[::3]:
            rows, best = classified(tab, picture['file']), picture['classes'][0]
            assert rows[0][2] == SHAPES[best['label']] and abs(rows[0][1] - best['probability']) < 0.02, (picture, rows)
