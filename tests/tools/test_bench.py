"""tools/bench.py on few images: what is measured, what is not, and the picture."""

from tf_compat import TENSORFLOW_VERSION

import pytest

from conftest import DIGITS_CHECKPOINT, refused, run_main


@pytest.mark.slow
def test_bench(digits, tmp_path):
    status, out, err = run_main(
        '--data_dir', digits, '--images', 16, '--rounds', 1, '--load', DIGITS_CHECKPOINT, '--plot',
        tmp_path / 'bench.png', '--only', 'frozen', 'TensorFlow', 'OpenVINO', 'GhostNet 0.5', 'MobileNetV3-Small 0.75',
        script=['-m', 'tools.bench'])
    assert status == 0, err
    rows = {line.split('  ')[0]: line.split()[-5:] for line in out.splitlines()}
    for name in ('frozen', 'TensorFlow, frozen graph'):
        assert len(rows[name]) == 5 and all(float(value) > 0 for value in rows[name])
    assert ('OpenVINO' in rows) != ('OpenVINO: not measured' in out)
    if TENSORFLOW_VERSION.startswith('1.'):
        assert 'GhostNet 0.5: not measured (' in out and 'MobileNetV3-Small 0.75: not measured (' in out
    else:
        assert rows['GhostNet 0.5'][-3:-1] == ['42.3', 'M'] and float(rows['MobileNetV3-Small 0.75'][-1]) > 0
    assert (tmp_path / 'bench.png').read_bytes()[:4] == b'\x89PNG'
    for flags, message in [(['--data_dir', digits, '--only', 'timm'], '--only names nothing'),
                           (['--data_dir', tmp_path / 'no'], 'there is no folder'),
                           (['--data_dir', digits, '--images', '0'], '--images'),
                           (['--data_dir', digits, '--load', 'no'], 'there is no checkpoint no'),
                           (['--data_dir', digits, '--plot', tmp_path], 'cannot write')]:
        assert message in refused(*flags, script=['-m', 'tools.bench'])
