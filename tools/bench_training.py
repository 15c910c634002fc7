"""Measures training on this machine: the dataflow alone, the bare graph, main.py --train, and PyTorch's step where it is installed.

    python -m tools.bench_training --data_dir <ILSVRC12 tree>

The measurements take turns, in several rounds of one run, since machines are noisy: what counts is the ratio.
"""
import argparse
import collections
import functools
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # python tools/bench_training.py works too

from command_line import ROOT, InputError, Parser, cores, number, positive, run, run_module, work_folder
from tools.export.child import end_with_parent


def dataflow(args):
    from tf_compat import tf  # noqa: F401

    from tools.bench_dataflow import of_processes, rate
    return rate(of_processes(args, cores()), args)


def bare_graph(args):
    from tf_compat import tf

    import numpy as np
    from tensorpack.tfutils.tower import TrainTowerContext

    from evaluation.throughput import images_per_second
    from ghostnet import GhostNet
    from imagenet_utils import session_creator
    model = GhostNet()
    images = np.random.RandomState(0).randint(0, 256, (args.batch, 224, 224, 3)).astype(np.uint8)
    with tf.Graph().as_default():
        image, label = tf.constant(images), tf.constant(np.arange(args.batch) % 1000, tf.int32)
        with TrainTowerContext(''):
            step = model.optimizer().minimize(model.build_graph(tf.identity(image), label))
        step = tf.group(step, *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        session = session_creator().create_session()
        session.run(tf.global_variables_initializer())
        return images_per_second(lambda: session.run(step), args.batch, args.seconds)


def main_train(args):
    with work_folder(tempfile.gettempdir()) as folder:
        log_dir = os.path.join(folder, 'log')
        # The first epoch starts everything up.
        training = subprocess.run([sys.executable, os.path.join(ROOT, 'main.py'), '--train', '--data_dir', args.data_dir, '--batch',
                                   str(args.batch), '--epochs', '3', '--log_dir', log_dir], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, universal_newlines=True)
        if training.returncode != 0:
            raise InputError("main.py --train ended with status %d: %s"
                             % (training.returncode, (training.stderr.split('\n')[:-1] or [''])[-1][:300]))
        with open(os.path.join(log_dir, 'stats.json')) as f:
            rates = [entry['images-per-second'] for entry in json.load(f)[1:]]
        return sum(rates) / len(rates)


def pytorch(channels_last, args):
    import timm
    import torch

    from evaluation.throughput import images_per_second
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model('ghostnet_100').train().to(memory_format=memory)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=4e-5)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    image, label = torch.randn(args.batch, 3, 224, 224).to(memory_format=memory), torch.arange(args.batch) % 1000

    def step():
        optimizer.zero_grad()
        loss(model(image), label).backward()
        optimizer.step()
    return images_per_second(step, args.batch, args.seconds)


MEASURED = collections.OrderedDict([
    ('dataflow', dataflow), ('bare graph', bare_graph), ('main.py --train', main_train),
    ('PyTorch (timm), bare step', functools.partial(pytorch, False)),
    ('PyTorch (timm), bare step, channels last', functools.partial(pytorch, True))])


def measure(name, args):
    """Images/s of one of MEASURED, in a process of its own. Raises InputError if that fails."""
    if MEASURED[name] is main_train:    # whose process would go on, were it the child of a child that is killed
        return main_train(args)
    printed = run_module('tools.bench_training', '--measure', name, '--data_dir', args.data_dir, '--batch', args.batch,
                         '--seconds', args.seconds).split()
    try:
        return float(printed[-1])
    except (IndexError, ValueError):
        raise InputError("it printed no rate")


def measure_all(args):
    """Images/s of each round, {name: list}, each measured in a process of its own; and what is missing, {name: reason}."""
    rates, missing = collections.OrderedDict(), collections.OrderedDict()
    for _ in range(args.rounds):
        for name in MEASURED:
            if name not in missing:
                try:
                    rates.setdefault(name, []).append(measure(name, args))
                except InputError as error:
                    missing[name] = str(error)
                    rates.pop(name, None)
    return rates, missing


def main(args):
    if args.measure:
        end_with_parent()
        print(MEASURED[args.measure](args))
        return
    import numpy as np
    import tabulate
    rates, missing = measure_all(args)
    bare = np.median(rates['bare graph']) if 'bare graph' in rates else float('nan')
    rows = [(name, ' '.join('%.1f' % x for x in values), '%.2f' % (np.median(values) / bare)) for name, values in rates.items()]
    print(tabulate.tabulate(rows, headers=('', 'images/s, each round', 'ratio to the bare graph'), disable_numparse=True))
    for name, reason in missing.items():
        print("%s: not measured (%s)" % (name, reason))


def parse_args():
    parser = Parser(prog='bench_training', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', required=True, help="ILSVRC12 tree, of some hundred photographs at least")
    parser.add_argument('--batch', type=positive(), default=32, help="images a step")
    parser.add_argument('--seconds', type=number(float, lambda x: x > 0, "a number above 0"), default=15,
                        help="for each measurement")
    parser.add_argument('--rounds', type=positive(), default=3, help="how often each is measured")
    parser.add_argument('--measure', choices=sorted(MEASURED), help="measure this alone, and print the images/s")
    return parser.parse_args()


if __name__ == '__main__':
    run(main, parse_args(), 'bench_training')
