"""tools/reproduce.py: yes, nearly, no, and could not run."""
import os
import shutil

import pytest

from conftest import DIGITS_CHECKPOINT, refused, run_main

REPRODUCE = {'script': ['-m', 'tools.reproduce']}


def test_the_digits_exactly(digits):
    status, out, err = run_main('--manifest', 'models/digits.json', '--data_dir', digits, '--load', 'models/digits_checkpoint',
                                '--tolerance', 0, **REPRODUCE)
    assert status == 0 and out.splitlines()[-1] == 'EXACT', err


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('counts, verdict, status', [((4 + 25, 25), 'WITHIN', 0), ((4, 26), 'DIFFERENT', 1)])
def test_verdicts(digits, counts, verdict, status):
    flags = ['--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--wrong_top1', counts[0], '--wrong_top5', counts[1]]
    found = run_main(*flags, **REPRODUCE)
    assert found[0] == status and found[1].splitlines()[-1] == verdict, found
    assert 'top-1 wrong of 360' in found[1] and '%+d' % -counts[1] in found[1]


@pytest.mark.slow
@pytest.mark.parametrize('args, message', [
    (['--images', 360], 'is not the published file'),
    ([], 'has 360 validation images, not 50000'),
    (['--wrong_top1', 4], 'go together'),
    (['--wrong_top1', -1, '--wrong_top5', 1], 'not a number of images'),
    (['--manifest', 'requirements.txt'], 'reproduce: '),
    (['--manifest', 'models/nothing.json'], 'models/nothing.json'),
])
def test_what_cannot_run(digits, args, message):
    assert message in refused('--data_dir', digits, '--load', DIGITS_CHECKPOINT, *args, **REPRODUCE)


@pytest.mark.slow
def test_half_a_checkpoint(digits, tmp_path):
    shutil.copy(DIGITS_CHECKPOINT + '.index', str(tmp_path / 'half.index'))
    flags = ['--data_dir', digits, '--load', tmp_path / 'half', '--wrong_top1', 0, '--wrong_top5', 0]
    assert 'no checkpoint' in refused(*flags, **REPRODUCE)
    assert os.listdir(str(tmp_path)) == ['half.index']
