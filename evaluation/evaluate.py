"""The evaluation loop: workers read images, an engine computes their logits, and the errors are counted.

A worker reads its images and then computes their logits, on one core; there are as many as cores. So no image waits for another
thread, no core for one, and no operation is cut into pieces for several cores.
"""
import time

import numpy as np
from tensorpack.utils.utils import get_tqdm

from augmentation import kept_images
from command_line import InputError, progress_options
from dataset import tops
from imagenet_utils import in_order, layout_explained
from pictures import PictureReader


def wrong(logits, labels, k):
    """Which images are not among the `k` most probable classes, bool (N,), by the rule of ``tf.nn.in_top_k``.

    Of classes with equal logits, each counts as the more probable one; where a logit is not finite, all is wrong.
    """
    with np.errstate(invalid='ignore'):
        larger = logits > logits[np.arange(len(labels)), labels][:, np.newaxis]
    return (larger.sum(1) >= k) | ~np.isfinite(logits).all(1)


def evaluate(engine, model, images, batch, jobs, read=None, keep_logits=True):
    """Computes the logits of images, and counts the errors.

    Args:
        engine (Engine): from ``make_engine``.
        model (ImageNetModel): its network.
        images (list of [path, label]): from ``dataset.read_images``.
        batch (int): images a call, None for the engine's own; it makes no difference to the result.
        jobs (int): number of workers, as for the engine.
        read: function from (first, last + 1) to what ``kept_images`` returns for these. By default their files are read.
        keep_logits (bool): whether logits are wanted; they take memory.
    Returns:
        dict: ``wrong_top1`` and ``wrong_top5`` (counts; the latter None for fewer than six classes), ``seconds``, ``kept``, bool
        (images,), which of them were not left out, and ``logits``, float32 (N, classes), of these, in order.
    Raises:
        InputError: an image cannot be read, all are left out, or logits are not finite.
    """
    if read is None:
        reader = PictureReader(image_size=model.image_size)

        def read(start, end):
            return kept_images([path for path, _ in images[start:end]], reader)

    def compute(span):
        pictures, kept = read(*span)
        return (engine.call(pictures) if len(pictures) else None), kept

    batch = batch or engine.batch
    spans = [(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
    labels = np.array([label for _, label in images])
    found, all_kept, wrong_top1, wrong_top5, classes, start = [], [], 0, 0, 0, time.time()
    with layout_explained(model), get_tqdm(total=len(images), unit=' images', **progress_options()) as progress:
        for span, (logits, kept) in zip(spans, in_order(compute, spans, jobs)):
            all_kept.append(kept)
            progress.update(len(kept))
            if logits is None:
                continue
            check_finite(logits, [path for (path, _), keep in zip(images[slice(*span)], kept) if keep])
            classes = logits.shape[1]
            wrong_top1 += int(wrong(logits, labels[slice(*span)][kept], 1).sum())
            wrong_top5 += int(wrong(logits, labels[slice(*span)][kept], 5).sum())
            if keep_logits:
                found.append(logits)
    kept = np.concatenate(all_kept)
    if not kept.any():
        raise InputError("all %d pictures are left out: none of them can be used" % len(images))
    result = {'wrong_top1': wrong_top1, 'wrong_top5': wrong_top5 if 5 in tops(classes) else None,
              'seconds': time.time() - start, 'kept': kept}
    return dict(result, logits=np.concatenate(found)) if keep_logits else result


def check_finite(logits, paths):
    """Raises InputError if logits (N, classes), of the pictures at `paths`, are not all finite."""
    bad = ~np.isfinite(logits).all(1)
    if bad.any():
        raise InputError("the logits of %s are not finite: the weights of this checkpoint are too large or not sound, take another"
                         % paths[int(bad.argmax())])
