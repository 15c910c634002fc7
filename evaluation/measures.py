"""The numbers of a report, from logits and labels: ranks, intervals, classes, confusions, calibration. Without TensorFlow."""
import collections
import math

import numpy as np

Z = 1.959963984540054    # of the standard normal distribution, 95 % lies between -Z and Z
BINS = 15                # of the probability, as in Guo et al. 2017
ROWS = 1024              # so many pictures at a time: 1000 classes take 8 MB

# Arrays (N,), an entry a picture. `rank` counts from 1.
Scores = collections.namedtuple('Scores', 'prediction probability rank')
ClassRow = collections.namedtuple('ClassRow', 'label pictures precision recall f1 taken_for times')
Pair = collections.namedtuple('Pair', 'label prediction times share')
Bin = collections.namedtuple('Bin', 'start end pictures probability accuracy')


def score(logits, labels):
    """What the network says of each picture, by the rule of ``evaluate.wrong``: of equal logits, that of the label comes first.

    Args:
        logits (np.ndarray): float32 (N, classes), finite.
        labels (np.ndarray): int (N,).
    Returns:
        Scores: the predicted label, int (N,); its softmax probability, float64 (N,); the rank of the right label, int (N,).
    """
    parts = []
    for start in range(0, len(labels), ROWS):
        rows, right = logits[start:start + ROWS].astype('float64'), labels[start:start + ROWS]
        rank = 1 + (rows > rows[np.arange(len(right)), right][:, np.newaxis]).sum(1)
        prediction = np.where(rank == 1, right, rows.argmax(1))
        parts.append((prediction, 1 / np.exp(rows - rows.max(1, keepdims=True)).sum(1), rank))
    return Scores(*(np.concatenate(column) for column in zip(*parts)))


def wilson(wrong, count):
    """The 95 % interval of an error of `wrong` in `count` pictures by Wilson's score: (lower, upper), from 0 to 1."""
    share, square = wrong / count, Z * Z / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def confusions(labels, predictions, classes):
    """How often each class was taken for which: int (classes, classes), a row for each right label. `classes`: their number."""
    from sklearn.metrics import confusion_matrix
    return confusion_matrix(labels, predictions, labels=np.arange(classes))


def class_rows(labels, predictions, matrix):
    """A ClassRow for each class, in the order of the labels.

    What is not defined is None: the precision of a class that was never predicted, the recall of one without pictures, and the F1
    of one that is neither. `taken_for` is the label for which its pictures were most often taken, `times` of them, or None.
    """
    from sklearn.metrics import precision_recall_fscore_support
    precision, recall, f1, pictures = precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(matrix)), average=None, zero_division=0)
    predicted, mistakes = matrix.sum(0), matrix - np.diag(np.diag(matrix))
    rows = []
    for label, taken_for in enumerate(mistakes.argmax(1)):
        times = int(mistakes[label, taken_for])
        rows.append(ClassRow(label, int(pictures[label]), float(precision[label]) if predicted[label] else None,
                             float(recall[label]) if pictures[label] else None,
                             float(f1[label]) if predicted[label] or pictures[label] else None,
                             int(taken_for) if times else None, times))
    return rows


def most_confused(matrix, count):
    """The `count` pairs of a label and another prediction that are most frequent, and of equal ones the larger share: [Pair]."""
    mistakes, pictures = matrix - np.diag(np.diag(matrix)), matrix.sum(1)
    pairs = [Pair(int(label), int(prediction), int(mistakes[label, prediction]), mistakes[label, prediction] / pictures[label])
             for label, prediction in zip(*np.nonzero(mistakes))]
    return sorted(pairs, key=lambda pair: (-pair.times, -pair.share, pair.label, pair.prediction))[:count]


def calibration(probability, right):
    """How often predictions of some probability are right.

    Args:
        probability (np.ndarray): of the predictions, (N,).
        right (np.ndarray): bool (N,).
    Returns:
        ([Bin], float): those of BINS bins of equal width that have pictures, and the expected calibration error: the mean distance
        of a bin's accuracy from its mean probability, weighted by its pictures.
    """
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    bins = []
    for index in np.unique(place):
        inside = place == index
        bins.append(Bin(index / BINS, (index + 1) / BINS, int(inside.sum()), float(probability[inside].mean()),
                        float(right[inside].mean())))
    return bins, sum(found.pictures * abs(found.accuracy - found.probability) for found in bins) / len(right)
