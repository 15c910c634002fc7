"""Exports the network of a checkpoint to the runtimes that people deploy on.

    python -m tools.export --load CKPT --format tflite ghostnet.tflite
    python -m tools.export --load CKPT --format all exported            # one of each format, in a folder

An export takes any number of uint8 images (N, 224, 224, 3) in BGR, as OpenCV reads them. Preprocessing is inside, and BN in the
convolutions. Before it gets its name, its own runtime loads it, and must give what the graph of main.py gives for photographs:
relative error (L2 norm) at most 1e-4, and the same top-1 class for each. Exit status: 1 if one does not, 2 where it cannot be made.
"""
import argparse
import collections
import glob
import os
import shutil
import subprocess
import sys
import tempfile

from command_line import InputError, Parser, check_writable, required, run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FORMATS = collections.OrderedDict([    # and their names in a folder
    ('frozen', 'ghostnet.pb'), ('savedmodel', 'saved_model'), ('tflite', 'ghostnet.tflite'), ('onnx', 'ghostnet.onnx'),
    ('keras', 'ghostnet.keras')])
INT8 = 'ghostnet_int8.tflite'
NEEDED = {'onnx': ('onnx', 'tf2onnx', 'onnxruntime')}    # packages
LARGEST_ERROR = 1e-4
CALIBRATION, VALIDATION = 200, 1000    # images at most, for int8


def photographs(paths):
    """uint8 (N, 224, 224, 3) BGR, from files and folders; by default, two that come with scikit-learn, whole and in tiles."""
    import numpy as np
    from imagenet_utils import eval_augmentors, find_images, read_image
    if paths:
        pictures = [read_image(path) for path in find_images(paths)]
    else:
        folder = os.path.join(os.path.dirname(required('sklearn.datasets').__file__), 'images')
        pictures = [read_image(path) for path in find_images([folder])]
        pictures += [tile for picture in pictures for row in np.array_split(picture, 3) for tile in np.array_split(row, 4, axis=1)]
    augmentors = eval_augmentors()
    return np.stack([augmentors.augment(picture) for picture in pictures])


def tree_images(data_dir, classes):
    """Of an ILSVRC12 tree: images to calibrate with, others of the validation set to compare on, and the labels of those.

    `classes` is how many the tree must have. The former are of the training set; without one, the validation set is shared out.
    """
    from imagenet_utils import read_images, read_synsets
    found = len(read_synsets(data_dir))
    if found != classes:
        raise InputError("the network has %d classes, and %s has %d: name the tree that it is for" % (classes, data_dir, found))
    val = read_images(data_dir, 'val')
    if os.path.isdir(os.path.join(data_dir, 'train')):
        calibration = read_images(data_dir, 'train')
    else:
        calibration, val = val[::2], val[1::2]
        if not val:
            raise InputError("%s has a single image, and none to compare on: name a tree with more" % data_dir)
    calibration, val = [images[::-(-len(images) // most)] for images, most in ((calibration, CALIBRATION), (val, VALIDATION))]
    return photographs([path for path, _ in calibration]), photographs([path for path, _ in val]), [label for _, label in val]


def child(python, module, *args):
    """Runs a module of this project in a process of its own. Raises InputError, with the last line of what it said, if it fails."""
    process = subprocess.run([python, '-m', module] + list(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             universal_newlines=True, cwd=ROOT)
    if process.returncode:
        said = process.stderr.strip().splitlines() or ["nothing"]
        raise InputError("%s %s ended with status %d, and said: %s" % (module, args[0], process.returncode, said[-1][:300]))


def files(path):
    """A file, or a folder with all that is in it."""
    return [path] + [os.path.join(folder, name) for folder, folders, names in os.walk(path) for name in folders + names]


def publish(path, out):
    """Gives a file or folder its final name."""
    for file in files(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.replace(path, os.path.realpath(out))    # a link stays, and its target is replaced


def difference(results, expected):
    """Compares outputs, both {name: (N, ...)}.

    Returns:
        float, int: the largest relative error of an output, in the L2 norm over all images; for how many of them the top-1 class is
        the same, None if the outputs are no classes.
    """
    import numpy as np
    error = max(np.linalg.norm(results[name] - value) / np.linalg.norm(value) for name, value in expected.items())
    name, value = list(expected.items())[0]
    return error, None if value.ndim > 2 else int((results[name].argmax(1) == value.argmax(1)).sum())


def export(args, plan, work):
    """Makes, compares and publishes the exports in `plan`, a list of (format, whether int8, path). `work` is a folder for the rest.

    Returns:
        int: exit status.
    """
    import numpy as np
    import tabulate
    from tf_compat import TENSORFLOW_VERSION, tf
    import frozen
    from ghostnet import BACKBONE, GhostNet, of_checkpoint
    from imagenet_utils import MODEL_VARIABLE, CheckpointRestore, session_creator
    from tools import runtimes
    restore = CheckpointRestore(args.load, BACKBONE if args.features else MODEL_VARIABLE)
    model = of_checkpoint(restore, output_stride=args.output_stride)
    tf1, tf1_python = TENSORFLOW_VERSION == '1.13.1', os.path.abspath(args.tf1_python)

    def network(**options):
        """A session with the network in its graph, and the names of its outputs."""
        session = tf.Session(graph=tf.Graph(), config=session_creator().config)
        return session, frozen.restored(session, model, restore, softmax=args.softmax, features=args.features, **options)

    def file(name):
        return os.path.join(work, name)

    session, outputs = network()
    graph = session.make_callable([name + ':0' for name in outputs], [frozen.INPUT + ':0'])
    images, expected = {'pictures': photographs(args.images)}, {}
    if args.int8:
        images['calibration'], images['tree'], labels = tree_images(
            args.data_dir, session.graph.get_tensor_by_name(outputs[0] + ':0').shape.as_list()[-1])
    for name, pictures in images.items():
        if name != 'calibration':
            expected[name] = runtimes.results(graph, outputs, pictures)
        if args.raw:
            with tf.Graph().as_default(), tf.Session() as preprocessing:
                pictures = preprocessing.run(GhostNet().image_preprocess(tf.constant(pictures)))
        np.save(file(name + '.npy'), pictures[..., ::-1] if args.rgb else pictures)

    graph_def = frozen.freeze(network(raw=args.raw, rgb=args.rgb)[0], outputs)
    for name, content in ('graph', graph_def), ('dilations', frozen.with_dilations(graph_def, outputs)):
        with open(file(name), 'wb') as f:
            f.write(content.SerializeToString())

    rows, refused = [], []
    graph_latency = runtimes.latency(graph, images['pictures'][:1])

    def add_row(name, runtime, paths, latency, error='', same=''):
        megabytes = sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) / 1e6
        rows.append((name, runtime, '%.2f' % megabytes, '%.1f' % (1e3 * latency), '%.2f' % (latency / graph_latency), error, same))

    add_row('none, the checkpoint', 'TensorFlow ' + TENSORFLOW_VERSION, glob.glob(glob.escape(restore.path) + '.*'), graph_latency)
    try:
        for form, int8, out in plan:
            path, pictures, passes = file(FORMATS[form]), 'tree' if int8 else 'pictures', True
            if form == 'frozen':
                shutil.copy(file('graph'), path)
            else:
                child(sys.executable, 'tools.convert', form, file('graph' if form == 'savedmodel' else 'dilations'), path,
                      ','.join(outputs), *([file('calibration.npy')] if int8 else []))
            for python in [sys.executable] + ([tf1_python] if form == 'frozen' and os.path.exists(tf1_python) and not tf1 else []):
                child(python, 'tools.runtimes', form, path, file(pictures + '.npy'), file('result.npz'), ','.join(outputs))
                with np.load(file('result.npz')) as result:
                    error, same = difference(result, expected[pictures])
                    count = len(expected[pictures][outputs[0]])
                    add_row(form + ' int8' * int8, result['runtime'], files(path), result['latency'], '%.1e' % error,
                            '' if same is None else '%d of %d' % (same, count))
                    passes = passes and (int8 or (error <= LARGEST_ERROR and same in (None, count)))
                    if int8:
                        errors = tuple(np.mean(values[outputs[0]].argmax(1) != labels) for values in (result, expected[pictures]))
            if passes:
                publish(path, out)
            else:
                refused.append(form)
    finally:    # if a later one cannot be made, of the ones that were
        headers = ('export', 'runtime', 'MB', 'ms an image', 'to the graph', 'relative error', 'same top-1')
        print(tabulate.tabulate(rows, headers=headers, disable_numparse=True, colalign=('left', 'left') + ('right',) * 5))
    if args.int8:
        print("int8: calibrated with %d images, compared on %d of the validation set: top-1 error %.4f, that of the graph %.4f" % (
            (len(images['calibration']), len(images['tree'])) + errors))
    if args.format in ('frozen', 'all') and not (tf1 or os.path.exists(tf1_python)):
        print("frozen: not compared in TensorFlow 1.13.1, there is no %s: 'make test-tf1' makes one" % tf1_python)
    for form in refused:
        sys.stderr.write("export: the export '%s' does not give what the graph does, and was not written\n" % form)
    return 1 if refused else 0


def main(args):
    from tf_compat import need_version_2
    from imagenet_utils import quiet_logger
    quiet_logger()
    plan = [(form, False, os.path.join(args.out, name) if args.format == 'all' else args.out) for form, name in FORMATS.items()
            if args.format in (form, 'all')]
    if args.int8:
        plan = plan + [('tflite', True, os.path.join(args.out, INT8))] if args.format == 'all' else [('tflite', True, args.out)]
    for form, _, out in plan:
        if form not in ('frozen', 'savedmodel'):
            need_version_2("--format " + form)
        for package in NEEDED.get(form, ()):
            required(package)
    made = args.format == 'all' and not os.path.isdir(args.out)
    if made:
        check_writable(args.out)
        os.mkdir(args.out)
    try:
        return checked(args, plan)
    finally:
        if made and not os.listdir(args.out):
            os.rmdir(args.out)


def checked(args, plan):
    """`export`, if all of `plan` can be written."""
    for form, _, out in plan:
        if form == 'savedmodel' and os.path.lexists(out):
            raise InputError("%s is there already: name another, or remove it" % out)
        if form == 'keras' and not out.endswith('.keras'):
            raise InputError("Keras loads only what is called .keras: name OUT so")
        check_writable(out)
    with tempfile.TemporaryDirectory(prefix='unfinished-', dir=os.path.dirname(os.path.realpath(plan[0][2]))) as work:
        return export(args, plan, work)


def parse_args():
    parser = Parser(prog='export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--load', required=True, metavar='CKPT', help="checkpoint")
    parser.add_argument('--format', required=True, choices=list(FORMATS) + ['all'], help="what to make")
    parser.add_argument('out', metavar='OUT', help="file to write; for savedmodel and all, a folder")
    parser.add_argument('--raw', action='store_true', help="without preprocessing: float32 images, of mean 0 and deviation 1")
    parser.add_argument('--rgb', action='store_true', help="images in RGB")
    parser.add_argument('--softmax', action='store_true', help="output probabilities, not logits")
    parser.add_argument('--features', action='store_true',
                        help="output the feature maps of the backbone, at strides 4 to 32, for images of any size")
    parser.add_argument('--output_stride', type=int, choices=[8, 16, 32], default=32,
                        help="stride of the last feature maps, by atrous convolution (default: 32)")
    parser.add_argument('--int8', action='store_true', help="TFLite in integers, calibrated on --data_dir: faster, not the same")
    parser.add_argument('--data_dir', help="ILSVRC12 tree for --int8")
    parser.add_argument('--images', nargs='+', metavar='FILE', help="pictures, or folders of them, to compare on")
    parser.add_argument('--tf1_python', default=os.path.join(ROOT, '.venv-tf1', 'bin', 'python'), metavar='FILE',
                        help="Python with TensorFlow 1.13.1, to load 'frozen' there too (default: .venv-tf1/bin/python)")
    args = parser.parse_args()
    if args.softmax and args.features:
        parser.error("--features are no classes: leave out --softmax")
    if args.output_stride != 32 and not args.features:
        parser.error("--output_stride goes with --features")
    if args.int8 and args.features:
        parser.error("--int8 does not go with --features: LiteRT cannot run that at any size")
    if args.int8 and (args.format not in ('tflite', 'all') or args.data_dir is None):
        parser.error("--int8 goes with --format tflite or all, and --data_dir of the ILSVRC12 tree to calibrate on")
    return args


if __name__ == '__main__':
    run(main, parse_args(), 'export')
