"""The report of an evaluation: its numbers, what names cannot do to it, and what is refused before."""
import csv
import html
import os
import re
import time

import cv2
import numpy as np
import pytest

from command_line import InputError
from conftest import DIGITS_CHECKPOINT, refused, run_main, small_disk, without
from evaluation import measures
from evaluation.evaluate import wrong
from evaluation.report_page import check_report, write_report
from pictures import PictureReader

SURROGATE = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')


def read_table(folder):
    with open(os.path.join(str(folder), 'report.csv'), encoding='utf-8', newline='') as f:
        return list(csv.DictReader(f))


def read_page(folder):
    with open(os.path.join(str(folder), 'report.html'), encoding='utf-8') as f:
        return f.read()


def text_of(page):
    """What a reader sees, without the white space around it."""
    return ' '.join(html.unescape(re.sub('<[^>]*>', ' ', page.split('</style>')[1])).split())


def logits_for(predictions, classes, seed=0):
    """Logits (N, classes) whose largest is that of each prediction."""
    logits = np.random.RandomState(seed).uniform(-1, 0, (len(predictions), classes)).astype('float32')
    logits[np.arange(len(predictions)), predictions] = 2 + np.arange(len(predictions)) / len(predictions)
    return logits


def write(folder, labels, logits, classes, files=None, paths=None):
    """A report of pictures that are all one file, or those at `paths`."""
    path = str(folder.parent / 'picture.png')
    cv2.imwrite(path, np.full((40, 400, 3), 128, np.uint8))
    check_report(str(folder))
    write_report(str(folder), files or ['%d.png' % number for number in range(len(labels))], np.array(labels), logits, classes,
                 paths or [path] * len(labels), PictureReader(), [('Checkpoint', 'some')])
    return read_page(folder)


# ----------------------------------------------------------------------------------------------------------------- numbers

def test_ranks_are_those_of_the_errors():
    rng = np.random.RandomState(0)
    logits, labels = rng.randint(0, 4, (3000, 9)).astype('float32'), rng.randint(0, 9, 3000)    # ties everywhere
    scores = measures.score(logits, labels)
    for k in range(1, 9):
        assert ((scores.rank > k) == wrong(logits, labels, k)).all()
    assert ((scores.prediction == labels) == (scores.rank == 1)).all()
    assert (logits[np.arange(3000), scores.prediction] == logits.max(1)).all()


def test_probabilities_are_those_of_the_softmax():
    scores = measures.score(np.array([[0, np.log(3)], [1000, -1000], [5, 5]], 'float32'), np.array([0, 0, 1]))
    assert np.allclose(scores.probability, [0.75, 1, 0.5])
    assert scores.prediction.tolist() == [1, 0, 1] and scores.rank.tolist() == [2, 1, 1]


@pytest.mark.parametrize('wrong_ones, count, lower, upper', [
    (0, 10, 0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1), (218, 300, 0.6736, 0.7740)])
def test_wilson_interval(wrong_ones, count, lower, upper):
    """As SciPy has it: ``binomtest(...).proportion_ci(method='wilson')``, which SciPy 1.5 lacks."""
    assert np.allclose(measures.wilson(wrong_ones, count), (lower, upper), atol=5e-5)


def test_classes_by_hand():
    labels, predictions = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 1, 0])    # class 3 is nowhere
    matrix = measures.confusions(labels, predictions, 4)
    assert matrix.tolist() == [[2, 1, 1, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    rows = measures.class_rows(labels, predictions, matrix)
    assert rows[0] == (0, 4, pytest.approx(2 / 3), 0.5, pytest.approx(4 / 7), 1, 1)
    assert rows[1] == (1, 2, 0.5, 0.5, 0.5, 0, 1)
    assert rows[2] == (2, 0, 0, None, 0, None, 0) and rows[3] == (3, 0, None, None, None, None, 0)
    assert measures.most_confused(matrix, 2) == [(1, 0, 1, 0.5), (0, 1, 1, 0.25)]


def test_calibration_by_hand():
    bins, error = measures.calibration(np.array([0.41, 0.43, 0.95, 1.0]), np.array([True, False, True, True]))
    assert [found[:3] for found in bins] == [(6 / 15, 7 / 15, 2), (14 / 15, 1, 2)]
    assert np.allclose([found[3:] for found in bins], [(0.42, 0.5), (0.975, 1)])
    assert error == pytest.approx((0.08 + 0.025) / 2)


def test_report_of_the_digits(digits, evaluated_digits, tmp_path):
    """By the real command: the same numbers in the page, in the table and in --json."""
    said, result, saved = evaluated_digits
    folder = tmp_path / 'new' / 'report'
    status, out, err = run_main('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--report', folder)
    assert status == 0 and out.splitlines()[:3] == said.splitlines()[:3], err
    assert sorted(os.listdir(str(folder))) == ['report.csv', 'report.html']
    rows = read_table(folder)
    assert [row['file'] for row in rows] == saved['files'].tolist()
    assert [int(row['label']) for row in rows] == saved['labels'].tolist()
    assert [int(row['prediction']) for row in rows] == saved['logits'].argmax(1).tolist()
    assert sum(int(row['rank']) > 1 for row in rows) == result['wrong_top1'] == 4
    assert rows[0]['label_words'] == 'four' and rows[0]['label_name'] == 'n00000004'
    page = read_page(folder)
    text = text_of(page)
    assert 'Top-1 error 1.11 % 0.43 % to 2.82 % (95 %) 4 of 360 wrong Top-5 error 0.00 % 0.00 % to 1.06 %' in text
    assert 'eight n00000008 8 39 97.37 % 94.87 % 96.10 % four (1)' in text
    assert page.count('data:image/jpeg;base64,') == 4 and page.count('data:image/png;base64,') == 2
    assert not re.search('(src|href)="(?!data:|#)', page)    # it needs nothing besides itself


def test_fewer_than_six_classes_have_no_top5(tmp_path):
    for classes, shown in (5, False), (6, True):
        labels = [number % classes for number in range(12)]
        page = write(tmp_path / str(classes), labels, logits_for(labels, classes), [('c%d' % k, '') for k in range(classes)])
        assert ('Top-5 error' in text_of(page)) == shown
        assert 'No prediction is wrong.' in page and 'No two classes were confused.' in page


def test_many_classes_have_pairs_in_place_of_the_matrix(tmp_path):
    for classes, matrix in (50, True), (51, False):
        labels = [number % classes for number in range(4 * classes)]
        predictions = [(label + 1) % classes if number >= 3 * classes else label for number, label in enumerate(labels)]
        page = write(tmp_path / str(classes), labels, logits_for(predictions, classes), [('c%d' % k, '') for k in range(classes)])
        assert ('alt="Confusion matrix' in page) == matrix
        assert 'c0 c1 1 25.00 %' in text_of(page)
        assert page.count('data:image/jpeg') == 50    # the most confident ones, which come last
        assert 'Picture %d.png' % (len(labels) - 1) in page and 'Picture 0.png' not in page


@pytest.mark.once
@pytest.mark.slow
def test_report_of_imagenet_is_quick_and_small(tmp_path):
    count, classes = 50000, 1000
    labels = [number % classes for number in range(count)]
    logits = np.random.RandomState(0).standard_normal((count, classes)).astype('float32')
    logits[np.arange(count), labels] += 3
    start = time.time()
    write(tmp_path / 'report', labels, logits, [('n%08d' % k, 'a class, also known as %d' % k) for k in range(classes)])
    assert time.time() - start < 30
    assert os.path.getsize(str(tmp_path / 'report' / 'report.html')) < 20e6
    assert len(read_table(tmp_path / 'report')) == count


# ------------------------------------------------------------------------------------------------------------------- names

def test_names_are_only_text(tmp_path):
    evil = ['<img src=x onerror=alert(1)>', '$\\foo$', '"><script>alert(1)</script>', 'two\nlines', '猫', SURROGATE]
    labels, predictions = list(range(6)), [1, 2, 3, 4, 5, 0]
    page = write(tmp_path / 'report', labels, logits_for(predictions, 6), [(name, '') for name in evil], files=evil)
    assert '<script' not in page and '<img src=x' not in page
    for shown in evil[:3] + ['two\\nlines', '猫', 'caf\\xe9.png']:
        assert page.count(html.escape(shown, quote=False).replace('"', '&#34;')) > 5
    rows = read_table(tmp_path / 'report')
    shown = evil[:5] + ['caf\\xe9.png']    # the csv module gives line breaks back
    assert [row['file'] for row in rows] == [row['label_name'] for row in rows] == shown
    assert [row['prediction_name'] for row in rows] == shown[1:] + shown[:1]


def test_pictures_that_have_gone_are_named(tmp_path):
    """After a long evaluation, this is no reason to end without a report."""
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'no picture')
    page = write(tmp_path / 'report', [0, 1], logits_for([1, 0], 2), [('a', ''), ('b', '')],
                 paths=[str(tmp_path / 'none.png'), str(broken)])
    assert text_of(page).count('cannot be read any more') == 2


# ----------------------------------------------------------------------------------------------------------------- refusals

def test_refused_before_the_evaluation(digits, tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'taken' / 'report.csv').mkdir(parents=True)
    command = ['--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--report']
    for folder, said in ((tmp_path / 'file', "cannot make the folder '%s' for --report: File exists"),
                         (tmp_path / 'file' / 'in', "cannot make the folder '%s' for --report: Not a directory"),
                         ('', "cannot make the folder '%s' for --report: No such file"),
                         (tmp_path / 'taken', "cannot write '%s/report.csv': ")):
        assert said % folder in refused(*(command + [folder]))
    assert '--report goes with --eval' in refused('--predict', digits, '--report', tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('package', ['jinja2', 'matplotlib', 'sklearn'])
def test_missing_package(package, digits, tmp_path):
    (tmp_path / 'env').mkdir()
    said = refused('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--report', tmp_path / 'report',
                   env=without(package, tmp_path / 'env'))
    assert "the package '%s' is missing: --report needs " % package in said and not (tmp_path / 'report').exists()


def test_both_files_or_none(tmp_path):
    with small_disk(tmp_path / 'disk', '40k') as disk:
        labels = [0, 1] * 20
        with pytest.raises(OSError):
            write(disk / 'report', labels, logits_for([1, 0] * 20, 2), [('a', ''), ('b', '')])
        assert os.listdir(str(disk / 'report')) == []


def test_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError):
        check_report('/proc/report')
