"""The report of an evaluation: report.html, one page that needs nothing besides itself, and report.csv. Without TensorFlow."""
import base64
import csv
import io
import os
import re

import cv2
import numpy as np

from command_line import InputError, atomic_write, check_writable, required
from dataset import tops
from evaluation import measures
from evaluation.charts import draw_calibration, draw_matrix
from pictures import fix_opencv

PAGE, TABLE = 'report.html', 'report.csv'
TEMPLATE = 'report.html.j2'
COLUMNS = ('file', 'label', 'label_name', 'label_words', 'prediction', 'prediction_name', 'prediction_words', 'probability', 'rank')
WHOLE_MATRIX = 50      # classes whose confusion matrix can still be read
PAIRS = 50             # of classes that were confused
WRONG = 50             # pictures
THUMBNAIL = 160        # pixels, the longer side
NO_TEXT = re.compile('[\ud800-\udfff]')
UNSEEN = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029]')


# ------------------------------------------------------------------------------------------------------------------ before

def check_report(folder):
    """Makes `folder` for a report, if it is missing.

    Raises:
        InputError: a package for reports is missing, or the files of a report cannot be written there.
    """
    for module in ('jinja2', 'matplotlib', 'sklearn'):
        required(module, "--report needs what requirements.txt lists (on CPython 3.6: requirements-tf1.txt)")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError("cannot make the folder '%s' for --report: %s" % (folder, error.strerror))
    for name in (PAGE, TABLE):
        check_writable(os.path.join(folder, name))


# ------------------------------------------------------------------------------------------------------------------- names

def as_text(name):
    """`name` with bytes that are not UTF-8, which Python has as surrogates, written as \\xe9."""
    return NO_TEXT.sub(lambda found: '\\x%02x' % (ord(found.group()) & 0xff), name)


def visible(value):
    """As `as_text`, and line breaks and other control characters written as \\n or \\x1b; what is no str, or is HTML, as it is."""
    if not isinstance(value, str) or hasattr(value, '__html__'):
        return value
    return UNSEEN.sub(lambda found: found.group().encode('unicode_escape').decode(), as_text(value))


def short_name(pair):
    """The first of the words of a class, (name, words), or its name."""
    name, words = pair
    return visible(words.split(',')[0].strip() or name)


# ------------------------------------------------------------------------------------------------------------------- parts

def thumbnail(path, read):
    """The picture at `path` as a small JPEG, bytes; None if it cannot be read any more. `read`: a PictureReader."""
    try:
        picture = read(path)
    except InputError:
        return None
    if picture is None:
        return None
    fix_opencv()
    height, width = picture.shape[:2]
    scale = min(1, THUMBNAIL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def data_url(kind, content):
    return 'data:image/%s;base64,%s' % (kind, base64.b64encode(content).decode())


def confidently_wrong(files, paths, labels, scores, read):
    """The WRONG pictures with a wrong prediction of the highest probability, as the template shows them: [dict]."""
    wrong = np.flatnonzero(scores.rank > 1)
    found = []
    for index in wrong[np.argsort(-scores.probability[wrong], kind='stable')][:WRONG]:
        picture = thumbnail(paths[index], read)
        found.append({'file': files[index], 'label': labels[index], 'prediction': scores.prediction[index],
                      'probability': scores.probability[index], 'rank': scores.rank[index],
                      'picture': picture and data_url('jpeg', picture)})
    return found


def errors(scores, classes):
    """What the page says of the errors: [dict of k, wrong, error, lower, upper], top-5 only where it means something."""
    count, found = len(scores.rank), []
    for k in tops(classes):
        wrong = int((scores.rank > k).sum())
        lower, upper = measures.wilson(wrong, count)
        found.append({'k': k, 'wrong': wrong, 'error': wrong / count, 'lower': lower, 'upper': upper})
    return found


def page_content(labels, scores, classes):
    """What the template needs of the numbers, a dict."""
    matrix = measures.confusions(labels, scores.prediction, len(classes))
    rows = measures.class_rows(labels, scores.prediction, matrix)
    with_pictures = [row for row in rows if row.pictures]
    bins, calibration_error = measures.calibration(scores.probability, scores.rank == 1)
    names, whole = [short_name(pair) for pair in classes], len(classes) <= WHOLE_MATRIX
    return {
        'count': len(labels), 'classes': classes, 'names': names, 'errors': errors(scores, len(classes)),
        'rows': sorted(rows, key=lambda row: (row.pictures == 0, 2 if row.f1 is None else row.f1, row.label)),
        'macro_f1': sum(row.f1 for row in with_pictures) / len(with_pictures),
        'matrix': data_url('png', draw_matrix(matrix, names)) if whole else None,
        'pairs': measures.most_confused(matrix, PAIRS), 'bins': bins, 'all_bins': measures.BINS,
        'calibration_error': calibration_error, 'calibration': data_url('png', draw_calibration(bins))}


def rendered(content):
    """The page, str. Every value is escaped."""
    import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))), autoescape=True, finalize=visible,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters['percent'] = lambda share: '–' if share is None else '%.2f\u00a0%%' % (100 * share)
    environment.filters['counted'] = '{:,}'.format
    return environment.get_template(TEMPLATE).render(content)


def write_table(out, files, labels, scores, classes):
    """Writes a line a picture, in UTF-8, to `out`, a binary file."""
    text = io.TextIOWrapper(out, 'utf-8', newline='')
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    names = [tuple(map(as_text, pair)) for pair in classes]
    for file, label, prediction, probability, rank in zip(files, labels, *scores):
        writer.writerow((as_text(file), label) + names[label] + (prediction,) + names[prediction] + ('%.6f' % probability, rank))
    text.flush()
    text.detach()    # `out` is not closed here


def write_report(folder, files, labels, logits, classes, paths, read, about=()):
    """Writes report.html and report.csv into `folder`, which `check_report` has made.

    Args:
        files (list of str): what the report calls the pictures, which are those that were not left out.
        labels (np.ndarray): int (N,).
        logits (np.ndarray): float32 (N, classes), finite.
        classes (list of (str, str)): name and words of each, in the order of the labels.
        paths (list of str): where the pictures are.
        read (PictureReader): reads them for thumbnails.
        about (list of (str, str)): what else the page says of the evaluation: a term, and what is said of it.
    Raises:
        OSError: the files cannot be written. Then neither has appeared.
    """
    scores = measures.score(logits, labels)
    content = dict(page_content(labels, scores, classes), about=about,
                   wrong=confidently_wrong(files, paths, labels, scores, read))
    page = rendered(content).encode('utf-8')
    with atomic_write(os.path.join(folder, TABLE)) as table, atomic_write(os.path.join(folder, PAGE)) as out:
        write_table(table, files, labels, scores, classes)
        out.write(page)
