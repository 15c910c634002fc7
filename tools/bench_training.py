#!/usr/bin/env python
"""Measures training on this machine: the dataflow alone, the bare graph, main.py --train, and PyTorch's step where it is installed.

    python -m tools.bench_training --data_dir <ILSVRC12 tree>

The measurements take turns, in several rounds of one run, since machines are noisy: what counts is the ratio.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import tabulate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def rate(step, batch, seconds):
    """Images/s of a function that handles `batch` images a call, over at least `seconds`, after a first call."""
    step()
    start, calls = time.time(), 0
    while time.time() - start < seconds:
        step()
        calls += 1
    return calls * batch / (time.time() - start)


def dataflow(args):
    import imagenet_utils
    from command_line import cores
    images = imagenet_utils.read_images(args.data_dir, 'train')
    ds = imagenet_utils.train_dataflow(imagenet_utils.ShuffledImages(images, 0, args.batch), 0.08, cores())
    ds.reset_state()
    batches = iter(ds)
    return rate(lambda: next(batches), args.batch, args.seconds)


def bare_graph(args):
    from ghostnet import GhostNet
    from imagenet_utils import session_creator
    from tensorpack.tfutils.tower import TrainTowerContext
    from tf_compat import tf
    model = GhostNet()
    images = np.random.RandomState(0).randint(0, 256, (args.batch, 224, 224, 3)).astype(np.uint8)
    with tf.Graph().as_default():
        image, label = tf.constant(images), tf.constant(np.arange(args.batch) % 1000, tf.int32)
        with TrainTowerContext(''):
            step = model.optimizer().minimize(model.build_graph(tf.identity(image), label))
        step = tf.group(step, *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        session = session_creator().create_session()
        session.run(tf.global_variables_initializer())
        return rate(lambda: session.run(step), args.batch, args.seconds)


def main_train(args):
    with tempfile.TemporaryDirectory() as log_dir:
        # The first epoch starts everything up.
        run = subprocess.run([sys.executable, os.path.join(ROOT, 'main.py'), '--train', '--data_dir', args.data_dir, '--batch',
                              str(args.batch), '--epochs', '3', '--log_dir', log_dir], stdout=subprocess.DEVNULL)
        if run.returncode != 0:
            sys.exit("bench_training: main.py --train failed")
        with open(os.path.join(log_dir, 'stats.json')) as f:
            return np.mean([entry['images-per-second'] for entry in json.load(f)[1:]])


def pytorch(args, channels_last):
    import timm
    import torch
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model('ghostnet_100').train().to(memory_format=memory)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=4e-5)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    image, label = torch.randn(args.batch, 3, 224, 224).to(memory_format=memory), torch.arange(args.batch) % 1000

    def step():
        optimizer.zero_grad()
        loss(model(image), label).backward()
        optimizer.step()
    return rate(step, args.batch, args.seconds)


MEASURED = {
    'dataflow': dataflow, 'bare graph': bare_graph, 'main.py --train': main_train,
    'PyTorch (timm), bare step': lambda args: pytorch(args, False),
    'PyTorch (timm), bare step, channels last': lambda args: pytorch(args, True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', required=True, help="ILSVRC12 tree, of some hundred photographs at least")
    parser.add_argument('--batch', type=int, default=32, help="images a step")
    parser.add_argument('--seconds', type=float, default=15, help="for each measurement")
    parser.add_argument('--rounds', type=int, default=3, help="how often each is measured")
    parser.add_argument('--measure', choices=sorted(MEASURED), help="measure this alone, and print the images/s")
    args = parser.parse_args()
    if args.measure:
        print(MEASURED[args.measure](args))
        return
    rates = {}
    for _ in range(args.rounds):
        for name in MEASURED:    # each in a process of its own
            run = subprocess.run([sys.executable, '-m', 'tools.bench_training', '--measure', name, '--data_dir', args.data_dir, '--batch',
                                  str(args.batch), '--seconds', str(args.seconds)], cwd=ROOT, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, universal_newlines=True)
            if run.returncode == 0:
                rates.setdefault(name, []).append(float(run.stdout.split()[-1]))
            elif name not in rates:
                print("%s: not measured (%s)" % (name, run.stderr.splitlines()[-1]))
    rows = [(name, ' '.join('%.1f' % x for x in values), '%.2f' % (np.median(values) / np.median(rates['bare graph'])))
            for name, values in rates.items()]
    print(tabulate.tabulate(rows, headers=('', 'images/s, each round', 'ratio to the bare graph'), disable_numparse=True))


if __name__ == '__main__':
    main()
