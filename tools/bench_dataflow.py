"""Measures how many images/s training's worker processes hand to the graph, without the graph.

    python -m tools.bench_dataflow --workers 1,2,4,8,16,32 --sleep_ms 2
    python -m tools.bench_dataflow --data_dir <ILSVRC12 tree>

With --sleep_ms, a worker sleeps in place of reading and augmenting an image: what is measured is how many images a second this
process can order and receive, on any number of cores. With --data_dir, photographs are read, by worker processes and by threads in
turns, since machines are noisy: what counts is the ratio.
"""
import argparse
import collections
import itertools
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # python tools/bench_dataflow.py works too

from command_line import Parser, check_writable, cores, number, positive, run, up_to, write_json


class Sleep:
    """Takes so many seconds for an image, and makes none."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, item, out):
        time.sleep(self.seconds)
        return item[1], []


def of_sleeps(args, workers):
    """Batches of nothing."""
    from imagenet_utils import PictureBatches, ShuffledImages
    from pictures import PictureReader
    from tools.bench_dataflow import Sleep  # as the workers know it
    sleep = Sleep(args.sleep_ms / 1000)
    sleep.reader = PictureReader()
    images = ShuffledImages([['', 0]] * 1000000, 0, args.batch)
    return PictureBatches(images, args.batch, sleep, sleep, workers)


def of_processes(args, workers):
    from imagenet_utils import train_dataflow
    return train_dataflow(shuffled(args), smallest_area(), workers)


def of_threads(args, workers):
    """The same batches, made by threads."""
    import numpy as np

    from augmentation import augment
    from imagenet_utils import in_order
    from pictures import read_image

    def sample(datapoint):
        path, label, seed = datapoint
        return augment(read_image(path), np.random.RandomState(seed), smallest_area()), label
    samples = in_order(sample, shuffled(args), workers)
    while True:
        pictures, labels = zip(*itertools.islice(samples, args.batch))
        yield [np.stack(pictures), np.array(labels)]


def smallest_area():
    from recipe import smallest_area
    return smallest_area(1)


def shuffled(args):
    from dataset import open_tree
    from imagenet_utils import ShuffledImages
    return ShuffledImages(open_tree(args.data_dir).images('train'), 0, args.batch)


def rate(batches, args):
    """Images/s over `args.seconds`, once as many batches have come as are made ahead."""
    from evaluation.throughput import images_per_second
    batches = iter(batches)
    for _ in range(8):
        next(batches)
    try:
        return images_per_second(lambda: next(batches), args.batch, args.seconds)
    finally:
        batches.close()


def main(args):
    import tf_compat  # noqa: F401  (so that it is reported now if a package is missing)

    import numpy as np
    import tabulate
    if args.json is not None:
        check_writable(args.json)
    made = {'processes': of_processes, 'threads': of_threads} if args.data_dir else {'processes, %g ms' % args.sleep_ms: of_sleeps}
    rates = collections.OrderedDict(((name, workers), []) for workers in args.workers for name in made)
    for _ in range(args.rounds):
        for name, workers in rates:
            rates[name, workers].append(rate(made[name](args, workers), args))
    rows = [{'kind': name, 'workers': workers, 'images_per_second': values} for (name, workers), values in rates.items()]
    print(tabulate.tabulate([(row['kind'], row['workers'], '%.0f' % np.median(row['images_per_second'])) for row in rows],
                            headers=('', 'workers', 'images/s'), disable_numparse=True, colalign=('left', 'right', 'right')))
    if args.json is not None:
        write_json(args.json, rows)


def numbers(text):
    """An argparse type: integers from 1, separated by commas."""
    return [up_to(1024)(part) for part in text.split(',')]


def parse_args():
    parser = Parser(prog='bench_dataflow', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--sleep_ms', type=number(float, lambda x: 0 <= x < 10000, "a number of milliseconds"),
                        help="how long a worker takes for an image, in place of reading one")
    source.add_argument('--data_dir', help="ILSVRC12 tree, of some hundred photographs at least")
    parser.add_argument('--workers', type=numbers, default=[cores()], help="how many, such as 1,2,4 (default: as many as cores)")
    parser.add_argument('--batch', type=positive(), default=256, help="images a batch")
    parser.add_argument('--seconds', type=number(float, lambda x: x > 0, "a number above 0"), default=5,
                        help="for each measurement")
    parser.add_argument('--rounds', type=positive(), default=1, help="how often each is measured")
    parser.add_argument('--json', metavar='FILE', help="write the images/s of each round there")
    return parser.parse_args()


if __name__ == '__main__':
    run(main, parse_args(), 'bench_dataflow')
