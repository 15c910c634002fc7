"""tools/reproduce.py: yes, nearly, no, and could not run."""
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT


def reproduce(*args):
    run = subprocess.run([sys.executable, '-m', 'tools.reproduce'] + [str(arg) for arg in args], cwd=ROOT,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return run.returncode, run.stdout, run.stderr


def test_the_digits_exactly(digits):
    status, out, err = reproduce('--manifest', 'models/digits.json', '--data_dir', digits, '--load', 'models/digits_checkpoint',
                                 '--tolerance', 0)
    assert status == 0 and out.splitlines()[-1] == 'EXACT', err


@pytest.mark.slow
@pytest.mark.parametrize('counts, verdict, status', [
    ((218, 131), 'EXACT', 0), ((218 - 25, 131 + 25), 'WITHIN', 0), ((218, 131 + 26), 'DIFFERENT', 1)])
def test_verdicts(mini, calibrated, counts, verdict, status):
    found = reproduce('--data_dir', mini, '--load', calibrated, '--wrong_top1', counts[0], '--wrong_top5', counts[1])
    assert found[0] == status and found[1].splitlines()[-1] == verdict, found
    assert 'top-1 wrong of 300' in found[1] and '%+d' % (131 - counts[1]) in found[1]


@pytest.mark.slow
@pytest.mark.parametrize('args, message', [
    (['--images', 300], 'is not the published file'),
    ([], 'has 300 validation images, not 50000'),
    (['--wrong_top1', 218], 'go together'),
    (['--wrong_top1', -1, '--wrong_top5', 1], 'not a number of images'),
    (['--manifest', 'requirements.txt'], 'reproduce: '),
    (['--manifest', 'models/nothing.json'], 'models/nothing.json'),
])
def test_what_cannot_run(mini, calibrated, args, message):
    status, out, err = reproduce('--data_dir', mini, '--load', calibrated, *args)
    assert status == 2 and out == '' and message in err and err.count('\n') == 1, err


@pytest.mark.slow
def test_a_checkpoint_that_is_no_ghostnet(mini, tmp_path, calibrated):
    shutil.copy(calibrated + '.index', str(tmp_path / 'half.index'))
    status, _, err = reproduce('--data_dir', mini, '--load', tmp_path / 'half', '--wrong_top1', 0, '--wrong_top5', 0)
    assert status == 2 and 'no checkpoint' in err and err.count('\n') == 1
    assert os.listdir(str(tmp_path)) == ['half.index']
