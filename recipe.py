"""The published training recipe: each of its numbers once, and the learning rate that follows from them."""
import collections
import math

from command_line import InputError

# Learning rate for 256 images a step; a `batch` is that of all towers and workers together.
Recipe = collections.namedtuple('Recipe', 'batch lr epochs weight_decay label_smoothing dropout_keep_prob')
# From a trained checkpoint, for other classes: what docs/own_pictures.md measures.
FINETUNE = Recipe(batch=32, lr=0.1, epochs=20, weight_decay=4e-5, label_smoothing=0.1, dropout_keep_prob=0.8)
RECIPE = Recipe(batch=1024, lr=0.1, epochs=400, weight_decay=4e-5, label_smoothing=0.1, dropout_keep_prob=0.8)
MOMENTUM = 0.9                   # Nesterov's
WARM_UP_EPOCHS = 5               # in runs of under 25 epochs, a fifth of them
WARM_UP_START = 0.25             # share of the peak learning rate
IMAGENET_IMAGES = 1281167        # in ILSVRC12's training set
IMAGE_SIZE = 224                 # pixels, height and width of what the network takes
IMAGE_SIZES = 128, 384           # the smallest and the largest that --image_size offers


def smallest_area(width):
    """The smallest share of an image's area that a training crop may have: narrow networks (width multiplier) see more of it."""
    return 0.49 if width < 1 else 0.08


def shorter_side(image_size):
    """Pixels to which evaluation resizes the shorter side of a picture, before it crops the centre: 256 for 224, in proportion."""
    return int(round(image_size * 256 / 224))


def steps_per_epoch(images, batch):
    """Steps of `batch` images in an epoch of `images`. Raises InputError if there is none."""
    if batch > images:
        raise InputError("--batch %d is more than the %d training images" % (batch, images))
    return images // batch


class Schedule:
    """The epochs and learning rates of a run by its global steps, which count from 1 and go on where --resume changes the batch.

    Args:
        images (int): of the training set.
        batch, lr, epochs: see Recipe.
        began (int, int): the step, and the epochs done by then, from which on the run has this batch.
    """

    def __init__(self, images, batch, lr, epochs, began=(0, 0)):
        self.steps = steps_per_epoch(images, batch)
        self.batch, self.lr, self.epochs, self.began = batch, lr, epochs, began
        self.last = began[0] + (epochs - began[1]) * self.steps    # the step with which the run ends

    def position(self, done):
        """How many steps a run that has had this batch from its start would have done after so many."""
        return done - self.began[0] + self.began[1] * self.steps

    def epochs_done(self, done):
        """How many epochs are done after so many steps."""
        return self.position(done) // self.steps

    def learning_rate(self, done):
        """The learning rate of the step after so many: see `learning_rate`."""
        return learning_rate(self.position(done), self.steps, self.epochs, self.lr, self.batch)


def learning_rate(step, steps_per_epoch, epochs, lr, batch):
    """Linear warm-up from a quarter of the peak, then cosine to zero, updated every step. At batch 1024 the peak is 0.4.

    Args:
        step (int): from 0; the last is ``epochs * steps_per_epoch - 1``.
        lr (float): learning rate for 256 images a step.
    Returns:
        float: the learning rate of that step.
    """
    peak = lr * batch / 256.0
    warm_up = min(WARM_UP_EPOCHS, epochs // 5) * steps_per_epoch
    if step < warm_up:
        return peak * (WARM_UP_START + (1 - WARM_UP_START) * step / warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (epochs * steps_per_epoch - warm_up)))
