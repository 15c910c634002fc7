"""Compares GhostNet with other small networks on this machine: multiply-adds, latency, and the top-1 that was published.

    python -m tools.compare --plot figure.png [--runtime tflite|onnx] [--load CHECKPOINT --result RESULT.json]

Prints two tables in Markdown: what was measured, and where the published numbers are from. All networks run in one runtime, in
turns, with random weights, on pictures of 224x224 pixels that are preprocessed; latencies are medians and quartiles of all calls.
Multiply-adds are counted alike for all: those of convolutions and dense layers with their own biases, but not of BN. Needs
TensorFlow 2 and the packages tf2cv, and for ONNX, tf2onnx and onnxruntime (requirements-interop.txt).
"""
import argparse
import collections
import concurrent.futures
import functools
import json
import os
import platform
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))    # python tools/compare works too

from command_line import (
    InputError,
    Parser,
    check_writable,
    cores,
    number,
    required,
    run,
    run_module,
    up_to,
    warn,
    work_folder,
    write_json,
)
from tools.compare.networks import CONVERTERS, NETWORKS, Network, model_file, name_of

AT_ONCE = 4    # networks that are made, at most: each takes about 1.5 GB of memory


def selected(only):
    """Those of NETWORKS whose names begin with one of `only`. Raises InputError if there is one that none begins with."""
    for start in only or ():
        if not any(name_of(network).startswith(start) for network in NETWORKS):
            raise InputError("--only %s names no network: the names are %s" % (start, ', '.join(map(name_of, NETWORKS))))
    return [network for network in NETWORKS if only is None or name_of(network).startswith(tuple(only))]


def own_network(load, result):
    """The user's checkpoint as a Network, with the top-1 that `result`, the file of ``main.py --eval --json``, has, if it is not None.

    Raises InputError if one of them cannot be used.
    """
    from checkpoints import CheckpointRestore
    from ghostnet import from_checkpoint
    restore = CheckpointRestore(load)
    classes = from_checkpoint(restore).num_classes
    top1, source = None, "no --result"
    if result is not None:
        try:
            with open(result) as f:
                record = json.load(f)
            images, wrong = int(record['images']), int(record['wrong_top1'])
            top1 = 100 * (1 - wrong / images)
        except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            raise InputError("cannot read %s as what main.py --eval --json writes: %r" % (result, error))
        if not 0 <= top1 <= 100:
            raise InputError("%s has %d of %d images wrong" % (result, wrong, images))
        source = "%s: %d of %d images wrong, %d classes" % (os.path.basename(result), wrong, images, classes)
    return Network('yours:', os.path.basename(restore.path), top1, None, source, None)


def make_models(networks, args, batches, folder):
    """Makes the models of all networks in `folder`, each in a process of its own. Returns their multiply-adds, a list of int."""
    def make(network):
        load = [os.path.abspath(args.load)] if network.build is None else []
        said = run_module('tools.compare.networks', name_of(network), args.runtime, ','.join(map(str, batches)), folder, *load)
        return int(said.split()[-1])
    with concurrent.futures.ThreadPoolExecutor(min(cores(), AT_ONCE)) as pool:
        return list(pool.map(make, networks))


def processor():
    """The name of the processor, as far as the system tells it."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':')[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure_all(networks, args):
    """What --json gets: a dict with the circumstances and `networks`, a list of dicts."""
    from tools.compare import measure
    version = measure.version(args.runtime)
    with work_folder(tempfile.gettempdir()) as folder:
        costs = make_models(networks, args, sorted({1, args.batch}), folder)
        files = collections.OrderedDict((name_of(network), functools.partial(model_file, folder, name_of(network)))
                                        for network in networks)
        found = measure.latencies(files, args.runtime, args.batch, args.rounds, args.seconds)
    return {'runtime': version, 'processor': processor(), 'cores': cores(), 'rounds': args.rounds, 'seconds': args.seconds,
            'networks': [{
                'name': name_of(network), 'family': network.family, 'top1': network.top1, 'source': network.source,
                'published_millions': network.millions, 'multiply_adds': cost,
                'latencies': [{'pictures': pictures, 'threads': threads, 'ms': median, 'quartiles': [first, third]}
                              for (pictures, threads), (first, median, third) in found[name_of(network)].items()]}
                for network, cost in zip(networks, costs)]}


def table(headers, rows, left):
    """Rows as a Markdown table, whose first `left` columns are aligned to the left."""
    lines = [headers, ['---'] * left + ['---:'] * (len(headers) - left)] + rows
    return '\n'.join('| %s |' % ' | '.join(str(cell).replace('|', '\\|') for cell in line) for line in lines)


def print_tables(result):
    """Prints what was measured and the sources, in Markdown."""
    def known(value, form):
        return '–' if value is None else form % value

    rows = result['networks']
    headers = ['%s, %s' % ('one picture' if entry['pictures'] == 1 else 'each of %d' % entry['pictures'],
                           'one thread' if entry['threads'] == 1 else '%d threads' % entry['threads'])
               for entry in rows[0]['latencies']]
    print("%s on %s, %d rounds; median (quartiles) in ms a picture; random weights.\n" % (
        result['runtime'], result['processor'], result['rounds']))
    print(table(['network', 'multiply-adds', 'top-1'] + headers, [
        [row['name'], '%.1f M' % (row['multiply_adds'] / 1e6), known(row['top1'], '%.1f')] +
        ['%.2f (%.2f–%.2f)' % ((entry['ms'],) + tuple(entry['quartiles'])) for entry in row['latencies']] for row in rows], 1))
    print()
    print(table(['network', 'published multiply-adds and top-1', 'read in'], [
        [row['name'], '%s, %s' % (known(row['published_millions'], '%d M'), known(row['top1'], '%.1f %%')), row['source']]
        for row in rows], 3))


def compare(args):
    from tf_compat import need_version_2
    need_version_2("tools.compare")
    networks = selected(args.only)
    if any(hasattr(network.build, 'needs_tf2cv') for network in networks):
        required('tf2cv')
    if args.runtime == 'onnx':
        required('onnxruntime'), required('tf2onnx')
    for path in filter(None, (args.plot, args.json)):
        check_writable(path)
    if args.plot is not None:
        required('matplotlib', "pip install -r requirements.txt")
    if args.load is not None:
        networks.append(own_network(args.load, args.result))
        if args.plot is not None and args.result is None:
            warn("the figure leaves out %s: its top-1 is not known without --result" % args.load)
    result = measure_all(networks, args)
    print_tables(result)
    if args.json is not None:
        write_json(args.json, result)
    if args.plot is not None:
        from tools.compare import figure
        figure.save(result, args.plot)


def parse_args():
    parser = Parser(prog='compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plot', metavar='FILE.png', help="draw the figure there")
    parser.add_argument('--json', metavar='FILE', help="write the result there")
    parser.add_argument('--runtime', choices=list(CONVERTERS), default='tflite', help="what runs the networks (default: tflite)")
    parser.add_argument('--load', metavar='CHECKPOINT', help="measure this GhostNet too")
    parser.add_argument('--result', metavar='FILE', help="its error: what main.py --eval --json wrote")
    parser.add_argument('--only', nargs='+', metavar='NAME', help="measure these alone, such as GhostNet or 'MobileNetV2 1.0'")
    parser.add_argument('--rounds', type=up_to(1000), default=5, help="how often each network is measured (default: 5)")
    parser.add_argument('--seconds', type=number(float, lambda x: x > 0, "a number above 0"), default=0.2,
                        help="for each number of pictures and threads, in each round (default: 0.2)")
    parser.add_argument('--batch', type=up_to(1024), default=8, help="pictures at once, besides one (default: 8)")
    args = parser.parse_args()
    if args.result is not None and args.load is None:
        parser.error("--result goes with --load")
    return args


if __name__ == '__main__':
    run(compare, parse_args(), 'compare')
