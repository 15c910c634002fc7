"""tools/bench.py on few images: what is measured, what is not, and the picture."""
import cv2
import numpy as np
import pytest

from conftest import DIGITS_CHECKPOINT, refused, run_main
from pictures import read_image
from tools.bench import of_size


@pytest.mark.once
@pytest.mark.slow
def test_bench(digits, tmp_path):
    status, out, err = run_main(
        '--data_dir', digits, '--images', 16, '--rounds', 1, '--size', '300x200', '--load', DIGITS_CHECKPOINT, '--plot',
        tmp_path / 'bench.png', '--only', 'frozen', 'TensorFlow', 'OpenVINO',
        script=['-m', 'tools.bench'])
    assert status == 0, err
    rows = {line.split('  ')[0]: line.split()[-5:] for line in out.splitlines()}
    for name in ('frozen', 'TensorFlow, frozen graph'):
        assert len(rows[name]) == 5 and all(float(value) > 0 for value in rows[name])
    assert ('OpenVINO' in rows) != ('OpenVINO: not measured' in out)
    assert (tmp_path / 'bench.png').read_bytes()[:4] == b'\x89PNG'
    for flags, message in [(['--data_dir', digits, '--only', 'timm'], '--only names nothing'),
                           (['--data_dir', tmp_path / 'no'], 'there is no folder'),
                           (['--data_dir', digits, '--images', '0'], '--images'),
                           (['--data_dir', digits, '--size', '300'], "'300' is not a width and a height"),
                           (['--data_dir', digits, '--load', 'no'], 'there is no checkpoint no'),
                           (['--data_dir', digits, '--plot', tmp_path], 'cannot write')]:
        assert message in refused(*flags, script=['-m', 'tools.bench'])


def test_photographs_of_any_size_are_made_of_those_there(tmp_path):
    """As detailed as they are: at this size, each is repeated and cut."""
    image = np.repeat((np.random.RandomState(0).rand(40, 60, 1) * 255).astype(np.uint8), 3, axis=2)    # JPEG halves colours
    cv2.imwrite(str(tmp_path / 'one.png'), image)
    first, second = of_size([str(tmp_path / 'one.png')] * 2, (100, 70), str(tmp_path))
    made = read_image(first)
    assert made.shape == (70, 100, 3) and np.array_equal(made, read_image(second))
    assert np.abs(made[:40, :60].astype(int) - image).mean() < 30 and made.std() > 0.8 * image.std()
