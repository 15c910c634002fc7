"""tools/bench.py on few images: what is measured, what is not, and the picture."""
import os

import pytest

from conftest import ROOT, refused, run_main


@pytest.mark.slow
def test_bench(digits, tmp_path):
    names = ['frozen', 'TensorFlow', 'OpenVINO']
    status, out, err = run_main('--data_dir', digits, '--images', 16, '--rounds', 1, '--only', *(
        names + ['--load', os.path.join(ROOT, 'models', 'digits_checkpoint'), '--plot', tmp_path / 'bench.png']), script=['-m', 'tools.bench'])
    assert status == 0, err
    rows = {line.split('  ')[0]: line.split()[-5:] for line in out.splitlines()}
    for name in ('frozen', 'TensorFlow, frozen graph'):
        assert len(rows[name]) == 5 and all(float(value) > 0 for value in rows[name])
    assert ('OpenVINO' in rows) != ('OpenVINO: not measured' in out)
    assert (tmp_path / 'bench.png').read_bytes()[:4] == b'\x89PNG'
    for flags, message in [(['--data_dir', tmp_path / 'no'], 'there is no folder'), (['--data_dir', digits, '--images', '0'], '--images'),
                           (['--data_dir', digits, '--load', 'no'], 'there is no checkpoint no'),
                           (['--data_dir', digits, '--plot', tmp_path], 'cannot write')]:
        assert message in refused(*flags, script=['-m', 'tools.bench'])
