"""Says on paper how training scales over GPUs and networks, and measures here what packing the gradients saves.

    python -m tools.scale --plot scale.png
    python -m tools.scale --measure

The first simulates steps. Each GPU computes, for a time that varies; then a ring adds up the gradients: 2 (N - 1) / N of their
bytes pass each link, in 2 (N - 1) hops, inside a machine of eight over PCIe. Meanwhile each machine reads the next batch. What a
GPU and a machine do alone are flags, as no GPU was at hand: take yours from `make test-gpu` and `python -m tools.bench_dataflow`.

The second lets two processes on this machine add up gradients of GhostNet's shapes, in turns: in one operation, in one for each
variable, and as float16.
Source of the ring's cost: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms" (2009).
"""
import argparse
import collections
import itertools
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # python tools/scale.py works too

from command_line import Parser, check_writable, number, quiet_tensorpack, run, up_to, write_json
from recipe import RECIPE

GPUS = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512
NETWORKS = 1, 10, 100         # Gbit/s
GPUS_OF_A_MACHINE, INSIDE = 8, 128    # and Gbit/s between them: PCIe 3.0 of 16 lanes
HOP = 20e-6                   # seconds: a message between two hosts of a data centre, as gRPC or NCCL over TCP need
VARIATION = 0.03              # of the time of a step between GPUs, a standard deviation
STEPS = 200                   # simulated

Setting = collections.namedtuple('Setting', 'speed read bytes gbit')   # images/s of a GPU and read by a machine, gradients, network


def ring_seconds(gpus, size, gbit):
    """Seconds in which a ring of `gpus`, linked with `gbit` Gbit/s, adds up `size` bytes."""
    if gpus == 1:
        return 0.0
    return 2 * (gpus - 1) / gpus * size * 8 / (gbit * 1e9) + 2 * (gpus - 1) * HOP


def images_per_second(setting, gpus, share, rng):
    """Images/s of all `gpus`, each with `share` images a step: the mean of STEPS simulated steps."""
    slowest = (share / setting.speed * (1 + VARIATION * rng.standard_normal((STEPS, gpus)))).max(1)
    computed = slowest + ring_seconds(gpus, setting.bytes, INSIDE if gpus <= GPUS_OF_A_MACHINE else setting.gbit)
    read = share * min(gpus, GPUS_OF_A_MACHINE) / setting.read    # while the step before is computed
    return gpus * share / float(computed.clip(min=read).mean())


def simulate(args, size):
    """A list of {'batch', 'gbit', 'gpus', 'images/s', 'efficiency'}: with the recipe's batch, and with one that grows."""
    import numpy as np
    rows = []
    for growing, gbit, gpus in itertools.product((False, True), NETWORKS, GPUS):
        share = RECIPE.batch // GPUS_OF_A_MACHINE if growing else RECIPE.batch // gpus
        found = images_per_second(Setting(args.gpu_speed, args.read_speed, size, gbit), gpus, share, np.random.RandomState(0))
        rows.append({'batch': share * gpus, 'growing': growing, 'gbit': gbit, 'gpus': gpus, 'images/s': round(found),
                     'efficiency': round(found / (gpus * args.gpu_speed), 3)})
    return rows


def chosen(rows, growing, gbit):
    """Those of a kind of batch and a network, by number of GPUs."""
    return [row for row in rows if (row['growing'], row['gbit']) == (growing, gbit)]


def knee(rows):
    """The most GPUs of which each still does 80 % of what it does alone."""
    return max([row['gpus'] for row in rows if row['efficiency'] >= 0.8], default=1)


def print_rows(args, rows, size):
    import tabulate
    print("%.1f MB of gradients a step; a GPU computes %d images/s, a machine of %d reads %d images/s (assumed)" % (
        size / 1e6, args.gpu_speed, GPUS_OF_A_MACHINE, args.read_speed))
    print(tabulate.tabulate([['%d Gbit/s' % gbit] + ['%.0f ms' % (1e3 * ring_seconds(gpus, size, gbit)) for gpus in (8, 64, 512)]
                             for gbit in NETWORKS], headers=['the ring takes', '8 GPUs', '64', '512'], tablefmt='github'))
    table = []
    for growing, gbit in itertools.product((False, True), NETWORKS):
        curve = chosen(rows, growing, gbit)
        batch = "%d a GPU" % (RECIPE.batch // GPUS_OF_A_MACHINE) if growing else "%d in all" % RECIPE.batch
        speeds = [row['images/s'] for row in curve if row['gpus'] in (8, 64, 512)]
        table.append([batch, '%d Gbit/s' % gbit] + speeds + ['%d GPUs' % knee(curve)])
    print()
    print(tabulate.tabulate(table, headers=['batch', 'network', 'images/s: 8 GPUs', '64', '512', '80 % up to'], tablefmt='github'))


def plot(rows, path):
    """Two panels: the recipe's batch split among ever more GPUs, and a batch that grows with them."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for panel, growing in zip(panels, (False, True)):
        for gbit, style in zip(NETWORKS, ('o-', 's-', '^-')):
            curve = chosen(rows, growing, gbit)
            panel.loglog([row['gpus'] for row in curve], [row['images/s'] for row in curve], style, label='%d Gbit/s' % gbit)
        alone = [row['images/s'] for row in rows if row['gpus'] == 1][0]
        panel.loglog(GPUS, [alone * gpus for gpus in GPUS], 'k:', label='ideal')
        panel.set_xticks(GPUS)
        panel.set_xticklabels(GPUS)
        panel.minorticks_off()
        panel.set_xlabel('GPUs')
        panel.set_title('%d images a GPU' % (RECIPE.batch // GPUS_OF_A_MACHINE) if growing else '%d images a step' % RECIPE.batch)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel('images/s (simulated)')
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


# -------------------------------------------------------------------------------------------------- measured, two processes

def gradient_shapes():
    """The shapes of GhostNet's trainable variables."""
    from tf_compat import tf

    from tensorpack.tfutils.tower import TrainTowerContext

    from ghostnet import GhostNet
    quiet_tensorpack()
    with tf.Graph().as_default(), TrainTowerContext(''):
        GhostNet(1000).get_logits(tf.placeholder(tf.uint8, [None, 224, 224, 3]))
        return [v.shape.as_list() for v in tf.trainable_variables()]


def size_of(shapes):
    """Bytes of float32 arrays of these shapes."""
    import numpy as np
    return 4 * sum(int(np.prod(shape)) for shape in shapes)


def add_up(args):
    """A process of --measure, which adds up gradients with the other one. Worker 0 prints what each way takes."""
    from training.cluster import find_cluster
    from training.watch import Watch
    with Watch(find_cluster(args.hosts, args.worker)) as watch:
        from tf_compat import tf

        from imagenet_utils import session_creator
        from training.collective import CollectiveWorkers
        workers = CollectiveWorkers(watch, None)
        creator = workers.adapt(session_creator(1))
        with tf.Graph().as_default():
            shapes = gradient_shapes()
            values = [tf.fill(shape, 1.0) for shape in shapes]

            def half():
                small = [tf.cast(value, tf.float16) for value in values]
                return [tf.cast(total, tf.float32) for total in workers.sum_packed(small, 'half')]
            ways = collections.OrderedDict()
            for name, way in (('one operation', lambda: workers.sum_packed(values, 'packed')), ('one, as float16', half),
                              ('one for each variable', lambda: [workers.sum(value, 'single') for value in values])):
                workers.before = []    # else each way would begin with the others
                ways[name] = tf.group(*way())
            session = tf.Session(creator.target, config=creator.config)
            seconds = collections.defaultdict(list)
            for _, (name, way) in itertools.product(range(args.rounds), ways.items()):
                start = time.time()
                session.run(way)
                seconds[name].append(time.time() - start)
        if workers.rank == 0:
            import tabulate
            print(tabulate.tabulate([[name, '%.1f ms' % (1e3 * statistics.median(found[1:]))] for name, found in seconds.items()],
                                    headers=['%d gradients of %.1f MB' % (len(shapes), size_of(shapes) / 1e6), 'median'],
                                    tablefmt='github'))
        workers.agree()
        workers.finish()


def measure(args):
    """Runs the two processes of --measure. Returns their exit status."""
    from training.cluster import run_workers
    return run_workers(['-m', 'tools.scale', '--rounds', str(args.rounds)], [[], []])


def main(args):
    if args.hosts is not None:
        return add_up(args)
    if args.measure:
        return measure(args)
    for path in filter(None, (args.json, args.plot)):
        check_writable(path)
    size = size_of(gradient_shapes())
    rows = simulate(args, size)
    print_rows(args, rows, size)
    if args.json is not None:
        write_json(args.json, rows)
    if args.plot is not None:
        plot(rows, args.plot)
    return None


def parse_args():
    parser = Parser(prog='tools.scale', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    speed = number(float, lambda x: 0 < x < 1e9, "a number above 0")
    parser.add_argument('--gpu_speed', type=speed, default=1200, help="images/s that a GPU trains on alone (default: 1200)")
    parser.add_argument('--read_speed', type=speed, default=12000, help="images/s that a machine reads (default: 12000)")
    parser.add_argument('--plot', metavar='FILE.png', help="draw images/s there")
    parser.add_argument('--json', metavar='FILE', help="write the rows there")
    parser.add_argument('--measure', action='store_true', help="measure packing with two processes on this machine")
    parser.add_argument('--rounds', type=up_to(1000, 2), default=30, help="--measure: so many of each (default: 30)")
    parser.add_argument('--hosts', help=argparse.SUPPRESS)
    parser.add_argument('--worker', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == '__main__':
    run(main, parse_args(), 'tools.scale')
