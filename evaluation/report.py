"""What main.py prints and writes of an evaluation and of a prediction."""
import math
import platform

from tf_compat import TENSORFLOW_VERSION

import cv2
import numpy as np
import tabulate
import tensorpack

from command_line import warn
from pictures import listed


def print_errors(result, count, engine, left_out):
    wrong_top1, wrong_top5, seconds = result['wrong_top1'], result['wrong_top5'], result['seconds']
    print("Top1 Error: %.6g" % (wrong_top1 / count))
    if wrong_top5 is None:    # of five classes or fewer, it would be 0
        print("%d images, of which wrong: %d by top-1" % (count, wrong_top1))
    else:
        print("Top5 Error: %.6g" % (wrong_top5 / count))
        print("%d images, of which wrong: %d by top-1, %d by top-5" % (count, wrong_top1, wrong_top5))
    if left_out:
        print("%d broken images were left out and are not in this result" % left_out)
    print("%.1f images/s, %.1f seconds used, engine %s" % (count / seconds, seconds, engine))


def eval_record(result, count, engine, reader):
    """What --json gets of an evaluation. `reader`: the PictureReader, by which pictures were left out."""
    return {'images': count, 'wrong_top1': result['wrong_top1'], 'wrong_top5': result['wrong_top5'],
            'top1_error': result['wrong_top1'] / count,
            'top5_error': None if result['wrong_top5'] is None else result['wrong_top5'] / count, 'engine': engine,
            'image_size': reader.image_size, 'left_out': listed(reader.left_out),
            'seconds': result['seconds'], 'images_per_second': count / result['seconds'], 'python': platform.python_version(),
            'tensorflow': TENSORFLOW_VERSION, 'tensorpack': tensorpack.__version__, 'opencv': cv2.__version__}


def hint_at_chance(wrong_top1, count, classes):
    """Warns where guessing might be as good: no more are right than its mean and two standard deviations."""
    chance = 1.0 / classes
    if 0 < wrong_top1 and count - wrong_top1 <= count * chance + 2 * math.sqrt(count * chance * (1 - chance)):
        warn("the top-1 error is not clearly better than chance: the labels may be those of another synsets.txt or counted from 1, "
             "or the checkpoint is of another network or data set")


def most_probable(logits, classes, count):
    """The `count` most probable classes, from logits (classes,): [{'label', 'class', 'probability'}, ...].

    Of `classes`, [(name, words), ...], or None if they have no names. Where they have words, 'synset' and 'words' are in place of
    'class'.
    """
    probabilities = np.exp(logits.astype('float64') - logits.max())
    probabilities /= probabilities.sum()
    columns = named_columns(classes)[1:]
    return [dict(zip(columns, classes[label] if columns else ()), label=int(label), probability=probabilities[label])
            for label in np.argsort(-probabilities, kind='stable')[:count]]


def named_columns(classes):
    """What is said of a class: its label, and the names that `classes` have."""
    if classes is None:
        return ['label']
    return ['label', 'synset', 'words'] if any(words for _, words in classes) else ['label', 'class']


def print_predictions(predictions, classes):
    """A table of predictions, with the names of the classes if they are not None."""
    columns = named_columns(classes)
    rows = [('' if rank else entry['file'], '%.4f' % found['probability']) + tuple(found[column] for column in columns)
            for entry in predictions for rank, found in enumerate(entry['classes'])]
    print(tabulate.tabulate(rows, headers=['picture', 'probability'] + columns, disable_numparse=True,
                            colalign=('left', 'right', 'right', 'left', 'left')[:2 + len(columns)]))
