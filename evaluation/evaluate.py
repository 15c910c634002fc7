"""The evaluation loop: workers read images, an engine computes their logits, and the errors are counted.

A worker reads its images and then computes their logits, on one core; there are as many as cores. So no image waits for another
thread, no core for one, and no operation is cut into pieces for several cores.
"""
import time

import numpy as np
from tensorpack.utils.utils import get_tqdm

from augmentation import eval_images
from command_line import progress_options
from imagenet_utils import in_order, layout_explained


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
        read: function from (first, last + 1) to these images, preprocessed. By default they are read from their files.
        keep_logits (bool): whether logits are wanted; they take memory.
    Returns:
        dict: ``wrong_top1`` and ``wrong_top5`` (counts), ``seconds``, and ``logits``, float32 (N, classes), in order.
    """
    if read is None:
        def read(start, end):
            return eval_images([path for path, _ in images[start:end]])
    batch = batch or engine.batch
    spans = [(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
    labels = np.array([label for _, label in images])
    kept, wrong_top1, wrong_top5, start = [], 0, 0, time.time()
    with layout_explained(model), get_tqdm(total=len(images), unit=' images', **progress_options()) as progress:
        for span, logits in zip(spans, in_order(lambda span: engine.call(read(*span)), spans, jobs)):
            wrong_top1 += int(wrong(logits, labels[slice(*span)], 1).sum())
            wrong_top5 += int(wrong(logits, labels[slice(*span)], 5).sum())
            if keep_logits:
                kept.append(logits)
            progress.update(len(logits))
    result = {'wrong_top1': wrong_top1, 'wrong_top5': wrong_top5, 'seconds': time.time() - start}
    return dict(result, logits=np.concatenate(kept)) if keep_logits else result
