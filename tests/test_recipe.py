"""The published recipe's numbers, and the learning rate that follows from them."""
import math

from shapes import draw

from conftest import DIGITS_CHECKPOINT, run_main
from recipe import learning_rate


def test_learning_rate_follows_the_recipe():
    steps = 1281167 // 1024
    rate = [learning_rate(step, steps, 400, 0.1, 1024) for step in range(400 * steps)]
    assert abs(rate[0] - 0.1) < 1e-12 and rate[5 * steps] == 0.4 and max(rate) == 0.4
    assert abs(rate[5 * steps // 2] - 0.25) < 1e-3    # half-way up
    assert abs(rate[(5 + 400) * steps // 2] - 0.2) < 1e-6 and 0 < rate[-1] < 1e-8
    assert learning_rate(0, 10, 4, 0.1, 64) == 0.025    # under five epochs, no warm-up
    assert learning_rate(20, 10, 10, 0.1, 64) == 0.025    # under 25, a fifth of them


def schedule(*args):
    """The words of each line that --lr_schedule prints."""
    status, out, err = run_main('--lr_schedule', *args)
    assert status == 0, err
    return [line.split() for line in out.splitlines()]


def test_schedule_is_printed(digits, tmp_path):
    rows = schedule()
    assert ' '.join(rows[0]) == '1281167 images, 1024 a step: 1251 steps an epoch, 500400 in all'
    epochs = {row[0]: row[1:] for row in rows[1:]}
    assert epochs['1'][:2] == ['0', '0.1'] and epochs['5'][2] == '6254' and epochs['6'][:2] == ['6255', '0.4']
    middle = 0.2 * (1 + math.cos(math.pi * (200 * 1251 - 6255) / (500400 - 6255)))
    assert epochs['201'][:2] == ['250200', '%.6g' % middle] and epochs['400'][2] == '500399' and float(epochs['400'][3]) < 1e-8
    rows = schedule('--data_dir', digits, '--batch', 360, '--epochs', 2)    # of 1,437 images
    assert rows[0][-3:] == ['6', 'in', 'all'] and rows[-1][1] == '3'
    small = draw(tmp_path / 'shapes', 10)
    said, first = schedule('--data_dir', small, '--finetune', '--load', DIGITS_CHECKPOINT, '--epochs', 2)[:2]    # as --train
    count = first[0]
    assert ' '.join(said) == '%s training images: --batch %s, in place of 32' % (count, count) and first[5:7] == ['1', 'steps']
