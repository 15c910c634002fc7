"""Exports the network of a checkpoint to the runtimes that people deploy on.

    python -m tools.export --load CKPT --format tflite ghostnet.tflite
    python -m tools.export --load CKPT --format all exported            # one of each format, in a folder

An export takes any number of uint8 images (N, 224, 224, 3), or of another --image_size, in BGR, as OpenCV reads them.
Preprocessing is inside, and BN in the convolutions. Before it gets its name, its own runtime loads it, and must give what the graph
of main.py gives for photographs: relative error (L2 norm) at most 1e-4 (1e-5 for --trainable and Darknet), and the same top-1 class
for each; of --int8, a top-1 error that is at most --int8_loss larger. Exit status: 1 if one does not, 2 where it cannot be made.
"""
import argparse
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))    # python tools/export works too

from command_line import ROOT, InputError, Parser, check_writable, number, quiet_tensorpack, required, run, work_folder
from flags import add_image_size_flag
from tools.export.child import fix_environment
from tools.export.formats import ALL, FORMATS
from tools.export.web_page import check_npm

INT8 = 'ghostnet_int8.tflite'
ANY_SIZE = ('frozen', 'savedmodel', 'onnx', 'keras')


def make_plan(args):
    """The exports to make, a list of Export. Raises InputError if the packages for one of them are missing."""
    from tf_compat import need_version_2

    from tools.export.exporter import Export
    if args.format == 'all':
        plan = [Export(name, False, os.path.join(args.out, FORMATS[name].file)) for name in ALL]
    else:
        plan = [Export(args.format, False, args.out)]
    if args.int8:
        int8 = Export('tflite', True, os.path.join(args.out, INT8) if args.format == 'all' else args.out)
        plan = plan + [int8] if args.format == 'all' else [int8]
    for export in plan:
        if FORMATS[export.format].needs_tensorflow_2:
            need_version_2("--format " + export.format)
        for package in FORMATS[export.format].packages:
            required(package)
    if args.format == 'web':
        check_npm()
    if args.format == 'darknet':
        check_opencv()
    return plan


def check_opencv():
    """Raises InputError if there is no OpenCV that can read an export to Darknet: 5 cannot, and older ones lack ReLU there."""
    import cv2

    from tools.export.runtimes import OPENCV_4
    if not (os.path.isdir(OPENCV_4) or (4, 5, 5) <= tuple(map(int, re.findall('[0-9]+', cv2.__version__)[:3])) < (5,)):
        raise InputError("--format darknet needs OpenCV from 4.5.5 on and under 5, to compare, and this is %s: python -m pip "
                         "install --no-deps --target %s -r requirements-opencv4.txt" % (cv2.__version__, OPENCV_4))


def check_outputs(plan):
    """Raises InputError if one of the exports cannot be written."""
    for export in plan:
        if export.format in ('savedmodel', 'darknet', 'web') and os.path.lexists(export.out):
            raise InputError("%s is there already: name another, or remove it" % export.out)
        if export.format == 'keras' and not export.out.endswith('.keras'):
            raise InputError("Keras loads only what is called .keras: name OUT so")
        check_writable(export.out)


def main(args):
    fix_environment()
    import tf_compat

    from tools.export.exporter import export_all
    quiet_tensorpack()
    plan = make_plan(args)
    made = args.format == 'all' and not os.path.isdir(args.out)
    if made:
        check_writable(args.out)
        os.mkdir(args.out)
    tf1 = tf_compat.TENSORFLOW_VERSION == '1.13.1'
    tf1_python = os.path.abspath(args.tf1_python)
    compared = os.path.exists(tf1_python)
    try:
        check_outputs(plan)
        folder = os.path.dirname(os.path.realpath(plan[0].out))
        with work_folder(folder) as work:
            status = export_all(args, plan, work, tf1_python if compared and not tf1 else None)
    finally:
        if made and not os.listdir(args.out):
            os.rmdir(args.out)
    if args.format in ('frozen', 'all') and not (tf1 or compared):
        print("frozen: not compared in TensorFlow 1.13.1, there is no %s: 'make test-tf1' makes one" % tf1_python)
    return status


def parse_args():
    parser = Parser(prog='export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--load', required=True, metavar='CKPT', help="checkpoint")
    parser.add_argument('--format', required=True, choices=list(FORMATS) + ['all'], help="what to make")
    parser.add_argument('out', metavar='OUT', help="file to write; for savedmodel, darknet, web and all, a folder")
    parser.add_argument('--raw', action='store_true', help="without preprocessing: float32 images, of mean 0 and deviation 1")
    parser.add_argument('--rgb', action='store_true', help="images in RGB")
    parser.add_argument('--softmax', action='store_true', help="output probabilities, not logits")
    parser.add_argument('--features', action='store_true',
                        help="output the feature maps of the backbone, at strides 4 to 32, for images of any size")
    add_image_size_flag(parser, None)
    parser.add_argument('--any_size', action='store_true',
                        help="take images of any size (one for all of a batch), and resize and crop them as evaluation does")
    parser.add_argument('--output_stride', type=int, choices=[8, 16, 32], default=32,
                        help="stride of the last feature maps, by atrous convolution (default: 32)")
    parser.add_argument('--trainable', action='store_true', help="--format keras: BN as layers and dropout, to be trained in Keras")
    parser.add_argument('--int8', action='store_true', help="TFLite in integers, calibrated on --data_dir: faster, not the same")
    parser.add_argument('--int8_loss', type=number(float, lambda x: x >= 0, "a number from 0 on"), default=0.05, metavar='SHARE',
                        help="how much larger the top-1 error of int8 may be (default: 0.05)")
    parser.add_argument('--data_dir', help="ILSVRC12 tree for --int8")
    parser.add_argument('--images', nargs='+', metavar='FILE', help="pictures, or folders of them, to compare on")
    parser.add_argument('--tf1_python', default=os.path.join(ROOT, '.venv-tf1', 'bin', 'python'), metavar='FILE',
                        help="Python with TensorFlow 1.13.1, to load 'frozen' there too (default: .venv-tf1/bin/python)")
    args = parser.parse_args()
    if args.format == 'web':
        if args.raw or args.features:
            parser.error("--format web takes pictures and shows classes: leave out --raw and --features")
        args.rgb = args.softmax = True    # what a browser reads, and a page shows
    if args.format == 'darknet' and (args.raw or args.rgb or args.features):
        parser.error("--format darknet takes RGB / 255 and gives classes, as Darknet does: leave out --raw, --rgb and --features")
    if args.softmax and args.features:
        parser.error("--features are no classes: leave out --softmax")
    if args.image_size is not None and args.features:
        parser.error("--features take images of any size: leave out --image_size")
    if args.trainable and (args.format != 'keras' or args.int8):
        parser.error("--trainable goes with --format keras, and without --int8")
    if args.output_stride != 32 and not args.features:
        parser.error("--output_stride goes with --features")
    if args.any_size and (args.format not in ANY_SIZE or args.int8):
        parser.error("--any_size goes with --format %s, and without --int8" % ', '.join(ANY_SIZE))
    if args.any_size and (args.raw or args.features):
        parser.error("--any_size takes pictures and crops them: leave out --raw and --features")
    if args.int8 and args.features:
        parser.error("--int8 does not go with --features: LiteRT cannot run that at any size")
    if args.int8 and args.raw:
        parser.error("--int8 takes pixels: leave out --raw")
    if args.int8 and (args.format not in ('tflite', 'all') or args.data_dir is None):
        parser.error("--int8 goes with --format tflite or all, and --data_dir of the ILSVRC12 tree to calibrate on")
    return args


if __name__ == '__main__':
    run(main, parse_args(), 'export')
