"""Measures evaluation on this machine: the engines of main.py beside other runtimes, and GhostNet beside MobileNetV3.

    python -m tools.bench --data_dir <ILSVRC12 tree> --plot bench.png

End to end is reading files, preprocessing and the network. The engines are measured as main.py runs them. The others read the same
images, resize and crop them with OpenCV, and compute with all cores in turn (a plain loop), or do both in one worker a core, as the
engines do. Each is measured in a process of its own, in one run, in rounds, of which the median counts. Then the latency of single
images on one core in TFLite, over multiply-adds. Those whose packages (requirements-interop.txt) are missing are named.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from command_line import InputError, Parser, check_writable, cores, number, run, whole_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENGINES = ('tensorpack', 'frozen', 'tflite')
PEERS = ('TensorFlow, frozen graph', 'ONNX Runtime', 'OpenVINO', 'PyTorch (timm)')
WORKERS = ', a worker a core'
GHOSTNETS = (0.5, 1.0, 1.3)
MOBILENETS = (('Small', 0.75), ('Small', 1.0), ('Large', 0.75), ('Large', 1.0))
SECONDS = 3    # that the network alone, and reading alone, are measured


# ------------------------------------------------------------------------------------------- in a process for each of them

def network(load):
    """The network and what gives it its weights: a checkpoint, or chance at width 1.0."""
    from tensorpack.tfutils import SessionInit
    from tf_compat import tf
    from ghostnet import GhostNet, of_checkpoint
    from imagenet_utils import CheckpointRestore, quiet_logger
    quiet_logger()

    class Initial(SessionInit):
        def _setup_graph(self):
            self.initializer = tf.global_variables_initializer()

        def _run_init(self, session):
            session.run(self.initializer)
    if load is None:
        return GhostNet, Initial()
    restore = CheckpointRestore(load)
    return lambda: of_checkpoint(restore), restore


def make_graph(args):
    """Writes the frozen graph, and where its packages are, an ONNX model, into the folder `args.graphs`."""
    from engines import frozen_graph
    make, restore = network(args.load)
    path = os.path.join(args.graphs, 'ghostnet.pb')
    with open(path, 'wb') as f:
        f.write(frozen_graph(make(), restore, cores()).as_graph_def().SerializeToString())
    subprocess.run([sys.executable, '-m', 'tools.convert', 'onnx', path, os.path.join(args.graphs, 'ghostnet.onnx'), 'logits'],
                   cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def throughput(end_to_end, compute, read, count):
    """Images/s of three functions without arguments that each handle `count` images, and MB."""
    def rate(function, seconds):
        function()
        start, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - start < seconds:
            function()
            calls += 1
        return calls * count / (time.perf_counter() - start)
    result = {'network': rate(compute, SECONDS), 'read': rate(read, SECONDS), 'end to end': rate(end_to_end, 0)}
    return dict(result, MB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def engine(name, args):
    from engines import evaluate, in_order, make_engine
    from imagenet_utils import eval_images
    make, restore = network(args.load)
    model = make()
    made = make_engine(name, model, restore, args.jobs, [])
    images = [[path, 0] for path in args.files]
    batches = [args.files[i:i + made.batch] for i in range(0, len(images), made.batch)]
    pictures = eval_images((args.files * made.batch)[:made.batch])
    return throughput(lambda: evaluate(made, model, images, None, args.jobs, keep_logits=False),
                      lambda: [0 for _ in in_order(lambda files: made.call(pictures[:len(files)]), batches, args.jobs)],
                      lambda: [0 for _ in in_order(eval_images, batches, args.jobs)], len(images))


def read(paths):
    """As imagenet_utils preprocesses for evaluation, in a process without TensorFlow: uint8 (N, 224, 224, 3) BGR."""
    import cv2
    cv2.ipp.setUseIPP(False)
    cv2.setNumThreads(0)
    images = []
    for path in paths:
        image = cv2.imread(path)
        scale = 256 / min(image.shape[:2])
        image = cv2.resize(image, (max(256, int(image.shape[1] * scale + 0.5)), max(256, int(image.shape[0] * scale + 0.5))),
                           interpolation=cv2.INTER_CUBIC)
        y, x = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
        images.append(image[y:y + 224, x:x + 224])
    return np.stack(images)


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


CALLS = dict(zip(PEERS, (tensorflow_call, onnxruntime_call, openvino_call, pytorch_call)))


def peer(name, args):
    workers = name.endswith(WORKERS)
    call = CALLS[name[:-len(WORKERS)] if workers else name](args, 1 if workers else args.jobs)
    batches = [args.files[i:i + args.batch] for i in range(0, len(args.files), args.batch)]
    pictures = read((args.files * args.batch)[:args.batch])
    pool = concurrent.futures.ThreadPoolExecutor(args.jobs if workers else 1)

    def each(function):
        return lambda: [0 for _ in pool.map(function, batches)]
    return throughput(each(lambda files: len(call(read(files)))), each(lambda files: len(call(pictures[:len(files)]))), each(read),
                      len(args.files))


def median_latency(call, size):
    from tools.runtimes import latency
    return 1e3 * latency(call, np.random.RandomState(0).randint(0, 256, (1, size, size, 3)).astype(np.uint8))


def ghostnet(width, args):
    from engines import tflite_engine
    from ghostnet import GhostNet, layer_costs
    _, initial = network(None)
    model = GhostNet(width=width)
    return {'multiply-adds': sum(cost for _, cost, _ in layer_costs(model)) / 1e6,
            'ms': median_latency(tflite_engine(model, initial, 1).call, 224)}


def mobilenet(size, alpha, args):
    import tensorflow as tf
    model = getattr(tf.keras.applications, 'MobileNetV3' + size)((224, 224, 3), alpha, weights=None)
    costs = 0
    for layer in model.layers:
        if layer.weights and type(layer).__name__ in ('Conv2D', 'DepthwiseConv2D', 'Dense'):    # each weight once a pixel
            pixels = layer.output.shape[1] * layer.output.shape[2] if len(layer.output.shape) == 4 else 1
            costs += pixels * layer.count_params()
    interpreter = tf.lite.Interpreter(model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert(), num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]

    def call(images):
        interpreter.set_tensor(source['index'], images.astype(source['dtype']))
        interpreter.invoke()
    return {'multiply-adds': costs / 1e6, 'ms': median_latency(call, 224)}


def measure(name, args):
    """One of the measurements: a dict."""
    kind, _, rest = name.partition(' ')
    if name in ENGINES:
        return engine(name, args)
    if kind == 'GhostNet':
        return ghostnet(float(rest), args)
    if kind.startswith('MobileNetV3'):
        return mobilenet(kind[len('MobileNetV3-'):], float(rest), args)
    return peer(name, args)


# ---------------------------------------------------------------------------------------------------------------- the run

def child(args, name, flags):
    """What a measurement in a process of its own gives, or a str, the last line of what it said."""
    command = [sys.executable, '-m', 'tools.bench', '--child', name] + flags
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if process.returncode:
        return (process.stderr.strip().splitlines() or ['status %d' % process.returncode])[-1][:200]
    return json.loads(process.stdout.splitlines()[-1]) if process.stdout.strip() else {}


def listed(data_dir, count):
    """`count` paths of validation images of a tree, again from the first one if it has fewer. Raises InputError: see read_images."""
    from imagenet_utils import read_images
    paths = [os.path.abspath(path) for path, _ in read_images(data_dir, 'val')]
    return (paths * (-(-count // len(paths))))[:count]


def plot(rates, latencies, path):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 5))
    names = sorted(rates, key=lambda name: rates[name]['end to end'])
    bars = left.barh(names, [rates[name]['end to end'] for name in names],
                     color=['tab:orange' if name in ENGINES else 'tab:blue' for name in names])
    for bar in bars:
        left.text(bar.get_width(), bar.get_y() + bar.get_height() / 2, ' %.0f' % bar.get_width(), va='center')
    left.set_xlabel('images/s end to end')
    left.margins(x=0.1)
    left.set_title('GhostNet 1.0: engines of main.py (orange), other runtimes')
    families = collections.OrderedDict()
    for name in latencies:
        families.setdefault(name.split(' ')[0], []).append(name)
    for family, members in families.items():
        x, y = ([latencies[name][key] for name in members] for key in ('multiply-adds', 'ms'))
        right.plot(x, y, 'o-', label=family)
        for name, a, b in zip(members, x, y):
            right.annotate(name.split(' ')[1], (a, b), xytext=(5, -10), textcoords='offset points')
    right.set_xlabel('multiply-adds (millions)')
    right.set_ylabel('latency of one image (ms), one core, TFLite')
    right.set_title('at each width multiplier, random weights')
    right.margins(x=0.1)
    if families:
        right.legend()
    figure.tight_layout()
    with whole_file(path) as f:
        figure.savefig(f, format='png', dpi=100)


def bench(args):
    import tabulate
    if args.plot is not None:
        import matplotlib    # noqa: F401  (so that it is told now if it is missing)
        check_writable(args.plot)
    files = listed(args.data_dir, args.images)
    if args.load is not None:
        network(args.load)    # tells here if it cannot be read
    names, networks = ([name for name in group if args.only is None or name.startswith(tuple(args.only))] for group in (
        ENGINES + PEERS + tuple(peer + WORKERS for peer in PEERS[1:]),
        ['GhostNet %g' % width for width in GHOSTNETS] + ['MobileNetV3-%s %g' % net for net in MOBILENETS]))
    if not names + networks:
        raise InputError("--only names nothing that is measured: see the names without it")
    measured, missing = collections.OrderedDict((name, []) for name in names), collections.OrderedDict()
    with tempfile.TemporaryDirectory() as graphs:
        flags = ['--data_dir', args.data_dir, '--graphs', graphs, '--jobs', str(args.jobs), '--batch', str(args.batch)]
        flags += [] if args.load is None else ['--load', os.path.abspath(args.load)]
        with open(os.path.join(graphs, 'files'), 'w') as f:
            json.dump(files, f)
        error = child(args, 'make', flags)
        if isinstance(error, str):
            raise InputError(error)
        for _ in range(args.rounds):
            for name in names:
                result = child(args, name, flags) if name not in missing else ''
                if isinstance(result, dict):
                    measured[name].append(result)
                else:
                    missing.setdefault(name, result)
        latencies = collections.OrderedDict()
        for name in networks:
            result = child(args, name, flags)
            (latencies if isinstance(result, dict) else missing)[name] = result
    rates = collections.OrderedDict((name, {key: float(np.median([result[key] for result in results])) for key in results[0]})
                                    for name, results in measured.items() if results)
    fastest = max([rates[name]['end to end'] for name in rates if name not in ENGINES] or [np.nan])
    if rates:
        print("%d images a round, %d rounds, %d cores; others in batches of %d" % (len(files), args.rounds, args.jobs, args.batch))
        print(tabulate.tabulate(
            [(name,) + tuple('%.0f' % row[key] for key in ('end to end', 'network', 'read', 'MB')) + (
                '%.2f' % (row['end to end'] / fastest),) for name, row in rates.items()],
            headers=('', 'images/s end to end', 'network only', 'reading only', 'peak MB', 'to the fastest other'),
            disable_numparse=True, colalign=('left',) + ('right',) * 5))
    if latencies:
        print()
        print(tabulate.tabulate([(name, '%.1f M' % row['multiply-adds'], '%.2f' % row['ms']) for name, row in latencies.items()],
                                headers=('', 'multiply-adds', 'ms an image'), disable_numparse=True, colalign=('left', 'right', 'right')))
    for name, error in missing.items():
        print("%s: not measured (%s)" % (name, error))
    if args.plot is not None:
        plot(rates, latencies, args.plot)


def parse_args():
    positive = number(int, lambda n: 0 < n <= 100000, "an integer from 1 to 100000")
    to_1024 = number(int, lambda n: 0 < n <= 1024, "an integer from 1 to 1024")
    parser = Parser(prog='bench', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', required=True, help="ILSVRC12 tree, of some hundred photographs at least")
    parser.add_argument('--load', help="checkpoint (default: GhostNet 1.0 with random weights)")
    parser.add_argument('--images', type=positive, default=1000, help="images a round, of the tree, repeated if it has fewer")
    parser.add_argument('--rounds', type=positive, default=3, help="how often each is measured")
    parser.add_argument('--jobs', type=to_1024, default=cores(), help="cores to use (default: all)")
    parser.add_argument('--batch', type=to_1024, default=8, help="images a call of the other runtimes")
    parser.add_argument('--only', nargs='+', metavar='NAME', help="measure these alone, such as tflite or OpenVINO")
    parser.add_argument('--plot', metavar='FILE.png', help="draw the results there")
    parser.add_argument('--child', help=argparse.SUPPRESS)
    parser.add_argument('--graphs', help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(args):
    if args.child == 'make':
        return make_graph(args)
    with open(os.path.join(args.graphs, 'files')) as f:
        args.files = json.load(f)
    print(json.dumps(measure(args.child, args)))


if __name__ == '__main__':
    arguments = parse_args()
    if arguments.child and arguments.child not in ENGINES + ('make',):    # others must not have TensorFlow besides, or another mode of it
        run_child(arguments)
    else:
        run(run_child if arguments.child else bench, arguments, 'bench')
