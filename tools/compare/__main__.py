"""Compares GhostNet with other small networks on this machine: multiply-adds, latency, and the top-1 that was published.

    python -m tools.compare --plot figure.png [--runtime tflite|onnx] [--load CHECKPOINT --result RESULT.json]

Prints, in Markdown, what was measured, which networks none of the others beats, and where the published numbers are from. All
networks run in one runtime, in turns, with random weights, on pictures of 224x224 pixels that are preprocessed; latencies are
medians and quartiles of all calls, of one picture and of a batch of 8. Multiply-adds are counted alike for all: those of
convolutions and dense layers with their own biases, but not of BN. Needs TensorFlow 2 and requirements-interop.txt.
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
    atomic_write,
    check_writable,
    cores,
    progress_options,
    required,
    run,
    run_module,
    up_to,
    warn,
    work_folder,
    write_json,
)
from tools.compare.networks import CONVERTERS, NETWORKS, Network, Source, model_file, name_of

AT_ONCE = 4    # networks that are made, at most: each takes about 1.5 GB of memory


def selected(starts):
    """Those of NETWORKS whose names begin with one of `starts`. Raises InputError if there is one that none begins with."""
    for start in starts or ():
        if not any(name_of(network).startswith(start) for network in NETWORKS):
            raise InputError("--networks: none is called '%s'; there are %s" % (start, ', '.join(map(name_of, NETWORKS))))
    return [network for network in NETWORKS if starts is None or name_of(network).startswith(tuple(starts))]


def own_network(load, result):
    """The user's checkpoint as a Network, with the top-1 of `result`, a file of ``main.py --eval --json``, if it is not None.

    Raises InputError if one of them cannot be used.
    """
    from checkpoints import CheckpointRestore
    from ghostnet import from_checkpoint
    restore = CheckpointRestore(load)
    model = from_checkpoint(restore)
    top1, read = None, "no --result"
    if result is not None:
        try:
            with open(result) as f:
                record = json.load(f)
            images, wrong = int(record['images']), int(record['wrong_top1'])
            top1 = 100 * (1 - wrong / images)
        except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            raise InputError("cannot read %s as what main.py --eval --json writes: %r" % (result, error))
        if not 0 <= top1 <= 100:
            raise InputError("%s says that %d of %d images are wrong" % (result, wrong, images))
        if record.get('image_size', model.image_size) != model.image_size:
            raise InputError("%s is of pictures of %s pixels, and %s is for %d" % (
                result, record['image_size'], load, model.image_size))
        read = "%s: %d of %d images wrong" % (os.path.basename(result), wrong, images)
    if model.num_classes != 1000:
        warn("%s has %d classes, so that its top-1 is not comparable with the others'" % (load, model.num_classes))
    return Network('yours', '', top1, None, Source(os.path.basename(restore.path), read), None)


def make_models(networks, args, batches, folder):
    """Makes the models of all networks in `folder`, each in a process of its own. Returns their multiply-adds, a list of int."""
    from tqdm import tqdm

    def make(network):
        load = [os.path.abspath(args.load)] if network.build is None else []
        said = run_module('tools.compare.networks', name_of(network), args.runtime, ','.join(map(str, batches)), folder, *load)
        return int(said.split()[-1])
    with concurrent.futures.ThreadPoolExecutor(min(cores(), AT_ONCE)) as pool:
        return list(tqdm(pool.map(make, networks), total=len(networks), unit='network', **progress_options()))


def processor():
    """The name of the processor, as far as the system tells it."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':')[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def front(rows, cost):
    """The names of those rows that none beats: by a top-1 that is higher, or a cost that is lower, where the other is no worse."""
    known = [row for row in rows if row['top1'] is not None]
    return [row['name'] for row in known if not any(
        other['top1'] >= row['top1'] and cost(other) <= cost(row) and (other['top1'], cost(other)) != (row['top1'], cost(row))
        for other in known)]


def measure_all(networks, args):
    """What --json gets: a dict with the circumstances, `networks`, a list of dicts, and the fronts.

    `latencies` of a network begin with those of one picture on one thread. Times are in ms a picture.
    """
    from tools.compare import measure
    with work_folder(tempfile.gettempdir()) as folder:
        costs = make_models(networks, args, (1, measure.BATCH), folder)
        files = collections.OrderedDict((name_of(network), functools.partial(model_file, folder, name_of(network)))
                                        for network in networks)
        found = measure.latencies(files, args.runtime, args.rounds)
    rows = [{'name': name_of(network), 'family': network.family, 'top1': network.top1, 'published_in': network.source.published,
             'read_in': network.source.read, 'published_millions': network.millions, 'multiply_adds': cost,
             'latencies': [{'pictures': pictures, 'threads': threads, 'ms': median, 'quartiles': [first, third]}
                           for (pictures, threads), (first, median, third) in found[name_of(network)].items()]}
            for network, cost in zip(networks, costs)]
    return {'runtime': measure.version(args.runtime), 'processor': processor(), 'cores': cores(), 'rounds': args.rounds,
            'networks': rows, 'front_by_multiply_adds': front(rows, lambda row: row['multiply_adds']),
            'front_by_latency': front(rows, lambda row: row['latencies'][0]['ms'])}


def table(headers, rows, left):
    """Rows as a Markdown table, whose first `left` columns are aligned to the left."""
    lines = [headers, ['---'] * left + ['---:'] * (len(headers) - left)] + rows
    return '\n'.join('| %s |' % ' | '.join(str(cell).replace('|', '\\|') for cell in line) for line in lines)


def print_tables(result):
    """Prints what was measured, the fronts and the sources, in Markdown."""
    def known(value, form):
        return '–' if value is None else form % value

    rows = result['networks']
    headers = ['%s, %s' % ('one picture' if entry['pictures'] == 1 else 'each of %d' % entry['pictures'],
                           'one thread' if entry['threads'] == 1 else '%d threads' % entry['threads'])
               for entry in rows[0]['latencies']]
    print("%s on %s, %d rounds; median (quartiles) in ms a picture; random weights.\n" % (
        result['runtime'], result['processor'], result['rounds']))
    print(table(['network', 'multiply-adds', 'published', 'top-1'] + headers, [
        [row['name'], '%.1f M' % (row['multiply_adds'] / 1e6), known(row['published_millions'], '%d M'), known(row['top1'], '%.1f')]
        + ['%.2f (%.2f–%.2f)' % ((entry['ms'],) + tuple(entry['quartiles'])) for entry in row['latencies']] for row in rows], 1))
    print("\nNo network here has a higher top-1 with as few multiply-adds as: %s.\n" % ', '.join(result['front_by_multiply_adds']))
    print("No network here has a higher top-1 in as little time (one picture, one thread) as: %s.\n" % (
        ', '.join(result['front_by_latency'])))
    sources = collections.OrderedDict()
    for row in rows:
        sources.setdefault((row['published_in'], row['read_in']), []).append(row['name'])
    print(table(['networks', 'top-1 and multiply-adds published in', 'read in'], [
        [', '.join(names), published, read] for (published, read), names in sources.items()], 3))


def compare(args):
    networks = selected(args.networks)
    for path in filter(None, (args.plot, args.json)):
        check_writable(path)
    from tf_compat import need_version_2
    need_version_2("tools.compare")
    for package in {'tflite': ['tf2cv', 'ai_edge_litert'], 'onnx': ['tf2cv', 'onnx', 'tf2onnx', 'onnxruntime']}[args.runtime]:
        required(package)
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
        with atomic_write(args.plot) as f:
            f.write(figure.as_png(result))


def parse_args():
    parser = Parser(prog='compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plot', metavar='FILE.png', help="draw the figure there")
    parser.add_argument('--json', metavar='FILE', help="write the result there")
    parser.add_argument('--runtime', choices=list(CONVERTERS), default='tflite', help="what runs the networks (default: tflite)")
    parser.add_argument('--load', metavar='CHECKPOINT', help="measure this GhostNet too")
    parser.add_argument('--result', metavar='FILE', help="its error: what main.py --eval --json wrote")
    parser.add_argument('--networks', nargs='+', metavar='NAME', help="measure these alone, such as GhostNet or 'MobileNetV2 1.0'")
    parser.add_argument('--rounds', type=up_to(1000), default=10, help="how often each network is measured (default: 10)")
    args = parser.parse_args()
    if args.result is not None and args.load is None:
        parser.error("--result goes with --load")
    return args


if __name__ == '__main__':
    run(compare, parse_args(), 'compare')
