"""Measures evaluation on this machine: the engines of main.py beside other runtimes.

    python -m tools.bench --data_dir <ILSVRC12 tree> --plot bench.png

End to end is reading files, preprocessing and the network. The engines are measured as main.py runs them. The others read the same
images with cv2.imread, as their users do, resize and crop them as main.py does, and compute with all cores in turn (a plain loop),
or do both in one worker a core, as the engines do. Each is measured in a process of its own, in one run, in rounds, of which the
median counts. Those whose packages (requirements-interop.txt) are missing are named. For GhostNet beside other networks, see
tools.compare.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import functools
import json
import os
import re
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # python tools/bench.py works too

from command_line import (
    InputError,
    Parser,
    atomic_write,
    check_writable,
    cores,
    quiet_tensorpack,
    run,
    run_module,
    up_to,
    work_folder,
)
from flags import ENGINES
from tools.export.child import end_with_parent

SECONDS = 3    # that the network alone, and reading alone, are measured


# ------------------------------------------------------------------------------------------- in a process for each of them

def network(load):
    """The network and what gives it its weights: a checkpoint, or chance at width 1.0."""
    from tf_compat import tf

    from tensorpack.tfutils import SessionInit

    from checkpoints import CheckpointRestore
    from ghostnet import GhostNet, from_checkpoint
    from recipe import IMAGE_SIZE
    quiet_tensorpack()

    class Initial(SessionInit):
        def _setup_graph(self):
            self.initializer = tf.global_variables_initializer()

        def _run_init(self, session):
            session.run(self.initializer)
    if load is None:
        return GhostNet, Initial()
    restore = CheckpointRestore(load)
    return lambda: from_checkpoint(restore, image_size=IMAGE_SIZE), restore


def make_graph(args):
    """Writes the frozen graph, and where its packages are, an ONNX model, into the folder `args.graphs`."""
    from evaluation import frozen
    from evaluation.engines import frozen_graph
    from evaluation.onnx_model import onnx_model
    make, restore = network(args.load)
    graph_def = frozen_graph(make(), restore, cores()).as_graph_def()
    with open(os.path.join(args.graphs, 'ghostnet.pb'), 'wb') as f:
        f.write(graph_def.SerializeToString())
    with contextlib.suppress(InputError):    # ONNX Runtime and OpenVINO are then reported as not measured
        content = onnx_model(graph_def, {frozen.INPUT: 'input'}, {frozen.LOGITS: 'logits'}).SerializeToString()
        with open(os.path.join(args.graphs, 'ghostnet.onnx'), 'wb') as f:
            f.write(content)


def throughput(end_to_end, compute, read, count):
    """Images/s of three functions without arguments that each handle `count` images, and MB."""
    import resource  # which Windows lacks

    from evaluation.throughput import images_per_second
    result = {'network': images_per_second(compute, count, SECONDS), 'read': images_per_second(read, count, SECONDS),
              'end to end': images_per_second(end_to_end, count, 0)}
    return dict(result, MB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def engine(name, args):
    """One of the engines of main.py, run as main.py runs it."""
    network_of, restore = network(args.load)
    from augmentation import eval_images
    from evaluation.engines import make_engine
    from evaluation.evaluate import evaluate
    from imagenet_utils import in_order
    model = network_of()
    made = make_engine(name, model, restore, args.jobs, lambda: eval_images(args.files[:16]))
    images = [[path, 0] for path in args.files]
    batches = [args.files[i:i + made.batch] for i in range(0, len(images), made.batch)]
    pictures = eval_images((args.files * made.batch)[:made.batch])

    def drain(function):
        for _ in in_order(function, batches, args.jobs):
            pass
    return throughput(lambda: evaluate(made, model, images, None, args.jobs, keep_logits=False),
                      lambda: drain(lambda files: made.call(pictures[:len(files)])), lambda: drain(eval_images), len(images))


def tensorflow_call(args, threads):
    import tensorflow
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as graph, open(os.path.join(args.graphs, 'ghostnet.pb'), 'rb') as f:
        tf.import_graph_def(tf.GraphDef.FromString(f.read()), name='')
    session = tf.Session(graph=graph, config=tf.ConfigProto(intra_op_parallelism_threads=threads))
    return session.make_callable(['logits:0'], ['input:0'])


def onnxruntime_call(args, threads):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(os.path.join(args.graphs, 'ghostnet.onnx'), options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {'input': images})


def openvino_call(args, threads):
    import numpy as np
    import openvino
    model = openvino.Core().read_model(os.path.join(args.graphs, 'ghostnet.onnx'))
    model.reshape([args.batch, 224, 224, 3])    # faster than any size
    compiled = openvino.Core().compile_model(model, 'CPU', {
        'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': args.jobs, 'NUM_STREAMS': args.jobs // threads})
    idle = [compiled.create_infer_request() for _ in range(args.jobs)]

    def call(images):
        request = idle.pop()
        result = request.infer([np.resize(images, (args.batch,) + images.shape[1:])])[0].copy()
        idle.append(request)
        return result
    return call


def pytorch_call(args, threads):
    import numpy as np
    import timm
    import torch
    torch.set_num_threads(threads)
    model = timm.create_model('ghostnet_100').eval().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    @torch.inference_mode()
    def call(images):
        images = torch.from_numpy(np.ascontiguousarray(images[..., ::-1])).permute(0, 3, 1, 2)    # channels last
        return model((images.float() - mean) / std).numpy()
    return call


def opencv_images(paths):
    """What eval_images returns, as users of other runtimes read it: with OpenCV alone, whatever it makes of damaged files."""
    import cv2
    import numpy as np

    from augmentation import eval_crop
    return np.stack([eval_crop(cv2.imread(path)) for path in paths])


def peer(make_call, one_core_each, args):
    """Another runtime: all its cores for one batch at a time, or a worker a core."""
    call = make_call(args, 1 if one_core_each else args.jobs)
    batches = [args.files[i:i + args.batch] for i in range(0, len(args.files), args.batch)]
    pictures = opencv_images((args.files * args.batch)[:args.batch])
    call(pictures)    # in one thread: see engines.started_engine
    pool = concurrent.futures.ThreadPoolExecutor(args.jobs if one_core_each else 1)

    def each(function):
        return lambda: [0 for _ in pool.map(function, batches)]
    return throughput(each(lambda files: len(call(opencv_images(files)))), each(lambda files: len(call(pictures[:len(files)]))),
                      each(opencv_images), len(args.files))


# What is measured: {name in the table: function of args}. Some need TensorFlow as version 2 is by default, or must not have it, so
# that each runs in a process that has not imported tf_compat.
PEERS = collections.OrderedDict([('TensorFlow, frozen graph', tensorflow_call), ('ONNX Runtime', onnxruntime_call),
                                 ('OpenVINO', openvino_call), ('PyTorch (timm)', pytorch_call)])
THROUGHPUTS = collections.OrderedDict((name, functools.partial(engine, name)) for name in ENGINES)
for _name, _call in PEERS.items():
    THROUGHPUTS[_name] = functools.partial(peer, _call, False)
for _name in list(PEERS)[1:]:
    THROUGHPUTS[_name + ', a worker a core'] = functools.partial(peer, PEERS[_name], True)


# ---------------------------------------------------------------------------------------------------------------- the run

def measure(name, flags):
    """What a measurement gives in a process of its own: a dict, or a str, the reason why there is none."""
    try:
        said = run_module('tools.bench', '--child', name, *flags).splitlines()
    except InputError as error:
        return str(error)
    return json.loads(said[-1]) if said else 'it printed no result'


def listed(data_dir, count):
    """`count` paths of a tree's validation images, again from the first one if it has fewer. Raises InputError: ``open_tree``."""
    from dataset import open_tree
    paths = [os.path.abspath(path) for path, _ in open_tree(data_dir).images('val')]
    return (paths * (-(-count // len(paths))))[:count]


def of_size(files, size, folder):
    """Paths of as many JPEGs of (width, height) in a folder: up to 32 photographs, each repeated side by side, so that a pixel has
    as much detail and takes as many bytes as in `files`."""
    import cv2
    import numpy as np

    from pictures import read_image
    width, height = size
    for number, path in enumerate(files[:32]):
        image = read_image(path)
        image = np.tile(image, (-(-height // image.shape[0]), -(-width // image.shape[1]), 1))[:height, :width]
        with open(os.path.join(folder, '%d.jpg' % number), 'wb') as f:
            f.write(cv2.imencode('.jpg', image)[1])
    return [os.path.join(folder, '%d.jpg' % (number % 32)) for number in range(len(files))]


def plot(rates, path):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(9, 5))
    names = sorted(rates, key=lambda name: rates[name]['end to end'])
    bars = axes.barh(names, [rates[name]['end to end'] for name in names],
                     color=['tab:orange' if name in ENGINES else 'tab:blue' for name in names])
    for bar in bars:
        axes.text(bar.get_width(), bar.get_y() + bar.get_height() / 2, ' %.0f' % bar.get_width(), va='center')
    axes.set_xlabel('images/s end to end')
    axes.margins(x=0.1)
    axes.set_title('GhostNet 1.0: engines of main.py (orange), other runtimes')
    figure.tight_layout()
    with atomic_write(path) as f:
        figure.savefig(f, format='png', dpi=100)


def bench(args):
    import tf_compat  # noqa: F401  (so that it is reported now if a package is missing)
    if args.plot is not None:
        import matplotlib  # noqa: F401  (likewise)
        check_writable(args.plot)
    files = listed(args.data_dir, args.images)
    if args.load is not None:
        network(args.load)    # reports it if the checkpoint cannot be read
    names = [name for name in THROUGHPUTS if args.only is None or name.startswith(tuple(args.only))]
    if not names:
        raise InputError("--only names nothing that is measured: see the names without it")
    with work_folder(tempfile.gettempdir()) as graphs:
        rates, missing = measure_all(args, names, files, graphs)
    print_results(args, rates, missing)
    if args.plot is not None:
        plot(rates, args.plot)


def measure_all(args, names, files, graphs):
    """The medians of the throughputs, {name: {what: number}}, and what is missing, {name: reason}."""
    import numpy as np
    flags = ['--data_dir', args.data_dir, '--graphs', graphs, '--jobs', str(args.jobs), '--batch', str(args.batch)]
    if args.load is not None:
        flags += ['--load', os.path.abspath(args.load)]
    if args.size is not None:
        files = of_size(files, args.size, graphs)
    with open(os.path.join(graphs, 'files'), 'w') as f:
        json.dump(files, f)
    run_module('tools.bench', '--child', 'make', *flags)
    measured = collections.OrderedDict((name, []) for name in names)
    missing = collections.OrderedDict()
    for _ in range(args.rounds):
        for name in names:
            if name not in missing:
                result = measure(name, flags)
                if isinstance(result, dict):
                    measured[name].append(result)
                else:
                    missing[name] = result
    rates = collections.OrderedDict((name, {key: float(np.median([result[key] for result in results])) for key in results[0]})
                                    for name, results in measured.items() if results)
    return rates, missing


def print_results(args, rates, missing):
    import tabulate
    if rates:
        fastest = max([row['end to end'] for name, row in rates.items() if name not in ENGINES] or [float('nan')])
        print("%d images a round, %d rounds, %d cores; others in batches of %d" % (args.images, args.rounds, args.jobs, args.batch))
        print(tabulate.tabulate(
            [(name,) + tuple('%.0f' % row[key] for key in ('end to end', 'network', 'read', 'MB')) + (
                '%.2f' % (row['end to end'] / fastest),) for name, row in rates.items()],
            headers=('', 'images/s end to end', 'network only', 'reading only', 'peak MB', 'to the fastest other'),
            disable_numparse=True, colalign=('left',) + ('right',) * 5))
    for name, reason in missing.items():
        print("%s: not measured (%s)" % (name, reason))


def size(text):
    """An argparse type: (width, height) in pixels, of what a camera takes at most."""
    match = re.match('([1-9][0-9]{0,3})x([1-9][0-9]{0,3})$', text)
    if match is None:
        raise argparse.ArgumentTypeError("'%s' is not a width and a height up to 9999, such as 4000x3000" % text)
    return int(match.group(1)), int(match.group(2))


def parse_args():
    parser = Parser(prog='bench', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', required=True, help="ILSVRC12 tree, of some hundred photographs at least")
    parser.add_argument('--load', help="checkpoint (default: GhostNet 1.0 with random weights)")
    parser.add_argument('--images', type=up_to(100000), default=1000, help="images a round, of the tree, repeated if it has fewer")
    parser.add_argument('--size', type=size, metavar='WxH', help="of photographs made of those in the tree, such as 4000x3000")
    parser.add_argument('--rounds', type=up_to(100000), default=3, help="how often each is measured")
    parser.add_argument('--jobs', type=up_to(1024), default=cores(), help="cores to use (default: all)")
    parser.add_argument('--batch', type=up_to(1024), default=8, help="images a call of the other runtimes")
    parser.add_argument('--only', nargs='+', metavar='NAME', help="measure these alone, such as tflite or OpenVINO")
    parser.add_argument('--plot', metavar='FILE.png', help="draw the results there")
    parser.add_argument('--child', help=argparse.SUPPRESS)
    parser.add_argument('--graphs', help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(args):
    end_with_parent()
    if args.child == 'make':
        return make_graph(args)
    with open(os.path.join(args.graphs, 'files')) as f:
        args.files = json.load(f)
    print(json.dumps(THROUGHPUTS[args.child](args)))


if __name__ == '__main__':
    arguments = parse_args()
    run(run_child if arguments.child else bench, arguments, 'bench')
