"""The flags of main.py, and which of them go together."""
import argparse
import os

from command_line import ROOT, Parser, cores, number, positive, up_to
from dataset import VAL_SHARE
from recipe import FINETUNE, IMAGE_SIZE, IMAGE_SIZES, RECIPE

DIGITS = os.path.join(ROOT, 'data', 'digits')
DIGITS_CHECKPOINT = os.path.join(ROOT, 'models', 'digits_checkpoint')
ON_CPU = ('tflite', 'openvino', 'onnx')    # the engines that compute on the CPU alone
ENGINES = ('tensorpack', 'frozen') + ON_CPU + ('auto',)
PUBLISHED_CHECKPOINT = os.path.join(ROOT, 'models', 'ghostnet_checkpoint')


def code(text):
    """An argparse type: integers from 1 to 99, separated by commas; none stands for the published ones."""
    entry = number(int, lambda n: 1 <= n <= 99, "an integer from 1 to 99 (a list has them separated by commas)")
    return [entry(part) for part in text.split(',')] if text else None


def add_job_flags(job):
    job.add_argument('--eval', action='store_true',
                     help="evaluate --load on the validation images; without any other flag, the digits that come along")
    job.add_argument('--predict', nargs='+', metavar='FILE',
                     help="print what --load sees in pictures, or in those of a folder; without --load, digits")
    job.add_argument('--train', action='store_true', help="train by the published recipe")
    job.add_argument('--lr_schedule', action='store_true', help="print the learning rate of each epoch of --train, and exit")
    job.add_argument('--flops', type=number(int, lambda n: n in (0, 1), "0 or 1"), default=0,
                     help="1: print multiply-adds and parameters by layer group")


def add_data_flags(data):
    data.add_argument('--data_dir', help="folder with a folder of pictures for each class, in train/ and in val/ or to be split; "
                      "or ILSVRC12 tree with train/, val/ and caffe_ilsvrc12/; for --predict, names of the classes")
    data.add_argument('--val_share', type=number(float, lambda x: 0 < x < 1, "a number between 0 and 1"), default=argparse.SUPPRESS,
                      help="of folders to be split: the share of each class that is the validation part (default: that of --load, "
                      "else %g)" % VAL_SHARE)
    data.add_argument('--load', help="checkpoint; for --eval by default models/ghostnet_checkpoint")
    data.add_argument('--broken', choices=['stop', 'skip', 'accept'], default='stop',
                      help="pictures that are damaged: stop, skip and list them, or accept what OpenCV makes of them, as published")
    data.add_argument('--json', metavar='FILE', help="write the result of --eval or --predict there")
    data.add_argument('--save_logits', metavar='FILE.npz', help="write logits, labels and files of --eval there")
    data.add_argument('--report', metavar='DIR', help="write report.html and report.csv of --eval there")
    data.add_argument('--log_dir', default='train_log', help="folder of the run that --train makes: checkpoints, log, curves")
    data.add_argument('--topk', type=positive(), default=5, help="--predict: so many classes of each picture")


def add_device_flags(how):
    how.add_argument('--gpu', help="GPUs that TensorFlow may use, such as 0 or 0,1; --train uses all of them. By default one")
    how.add_argument('--towers', type=positive(), help="--train: so many replicas on the CPU, as if on so many GPUs")
    how.add_argument('--trainer', choices=['replicated', 'collective', 'horovod'],
                     help="replicated: all GPUs in one process; collective: a process for each, on several machines too; horovod: "
                     "those that horovodrun starts (default: on TensorFlow 2 with several GPUs, or with --hosts, collective)")
    how.add_argument('--hosts', metavar='HOST:PORT,...', help="--trainer collective: all workers, the same list in each; else "
                     "those of TF_CONFIG, or one for each of --gpu or --towers, which the program starts")
    how.add_argument('--worker', type=number(int, lambda n: n >= 0, "0 or a positive integer"),
                     help="the number of this worker in --hosts, from 0")
    how.add_argument('--data-format', choices=['NHWC', 'NCHW'],
                     help="layout inside the network (default: NCHW on GPUs, where it is faster, else NHWC)")
    how.add_argument('--amp', action='store_true',
                     help="--train on GPUs: mixed precision, float16 where it is safe, with loss scaling")
    how.add_argument('--xla', action='store_true', help="--train: XLA compiles what it can of a step")
    how.add_argument('--engine', choices=ENGINES, default='tensorpack',
                     help="what computes in --eval and --predict; auto is the fastest on this machine. The result is the same")
    how.add_argument('--jobs', type=up_to(1024), help="--eval, --predict: workers, of one core each (default: all cores)")
    how.add_argument('--eval_batch', type=up_to(1024), help="--eval, --predict: images that a worker computes at once (default: "
                     "what the engine does best); changes speed only")
    how.add_argument('--cache', metavar='DIR', help="--eval: keep the preprocessed images there, for the next time")


def add_image_size_flag(parser, default):
    """--image_size, of main.py and of tools.export. `default`: what argparse gives where it is absent."""
    smallest, largest = IMAGE_SIZES
    parser.add_argument('--image_size', type=up_to(largest, smallest), default=default, metavar='N',
                        help="height and width of images in pixels, from %d to %d (default: that recorded in --load, else %d)"
                        % (smallest, largest, IMAGE_SIZE))


def add_network_flags(net):
    net.add_argument('--width_ratio', type=number(float, lambda x: 0 < x <= 10, "a number above 0, at most 10"),
                     default=argparse.SUPPRESS, help="width multiplier (default: that of --load, else 1)")
    add_image_size_flag(net, argparse.SUPPRESS)
    net.add_argument('--variant', choices=['published', 'pytorch', 'imgclsmob', 'iamhankai', 'd-li14'], default=argparse.SUPPRESS,
                     help="whose GhostNet (default: that recorded in --load, else published)")
    net.add_argument('--se', type=number(int, lambda n: n >= 0, "0 or a positive integer"), default=argparse.SUPPRESS,
                     help="squeeze-and-excitation, 0 for none (default: as in --load, else 3)")
    net.add_argument('--dw_code_str', type=code, default=argparse.SUPPRESS, metavar='CODE',
                     help="kernel sizes of the cheap operations, 19 integers separated by commas (default: as in --load, else 3)")
    net.add_argument('--ratio_code_str', type=code, default=argparse.SUPPRESS, metavar='CODE',
                     help="ratios of the ghost modules, likewise (default: as in --load, else 2)")


def add_training_flags(train):
    def both(name):
        return "(default: %g; with --finetune, %g)" % (getattr(RECIPE, name), getattr(FINETUNE, name))

    share = number(float, lambda x: 0 <= x < 1, "a number from 0 up to, but not, 1")
    train.add_argument('--batch', type=positive(), default=argparse.SUPPRESS,
                       help="images a step, of all towers and workers together " + both('batch'))
    train.add_argument('--lr', type=number(float, lambda x: x > 0, "a number above 0"), default=argparse.SUPPRESS,
                       help="learning rate for 256 images a step; it is scaled with --batch " + both('lr'))
    train.add_argument('--epochs', type=positive(), default=argparse.SUPPRESS, help="epochs " + both('epochs'))
    train.add_argument('--weight_decay', type=number(float, lambda x: x >= 0, "0 or a number above"), default=RECIPE.weight_decay,
                       help="factor of half the sum of the squared kernels")
    train.add_argument('--label_smoothing', type=share, default=RECIPE.label_smoothing,
                       help="share of the target that is spread over all classes")
    train.add_argument('--dropout_keep_prob', type=number(float, lambda x: 0 < x <= 1, "a number above 0, at most 1"),
                       default=RECIPE.dropout_keep_prob, help="probability of keeping an input of the last layer")
    train.add_argument('--finetune', action='store_true', help="take all but the last layer from --load, for other classes")
    train.add_argument('--freeze_bn', action='store_true', help="BN keeps the statistics, scale and offset of --load")
    train.add_argument('--class_weights', choices=['balanced'],
                       help="balanced: classes with few pictures count as much in the loss")
    train.add_argument('--patience', type=positive(), metavar='N',
                       help="end after N epochs without a lower validation error, with the weights of the lowest")
    train.add_argument('--resume', action='store_true', help="continue after the last checkpoint in --log_dir, if there is one")
    train.add_argument('--seed', type=number(int, lambda n: 0 <= n < 2 ** 31, "an integer from 0"),
                       help="fixes initial weights, order and augmentation")


def parse_args(description=None):
    parser = Parser(prog='main.py', description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_job_flags(parser.add_argument_group('what to do'))
    add_data_flags(parser.add_argument_group('data and results'))
    add_device_flags(parser.add_argument_group('how to run'))
    add_network_flags(parser.add_argument_group('network'))
    add_training_flags(parser.add_argument_group('training'))
    args = parser.parse_args()
    args.changeable = ['--' + name for name in ('batch', 'epochs', 'lr') if hasattr(args, name)]    # when a run is resumed
    for name in ('variant', 'val_share', 'width_ratio', 'se', 'dw_code_str', 'ratio_code_str', 'batch', 'image_size'):
        setattr(args, name, getattr(args, name, None))    # not given
    for name in ('lr', 'epochs'):
        setattr(args, name, getattr(args, name, getattr(FINETUNE if args.finetune else RECIPE, name)))
    check_job(args, parser)
    take_default_inputs(args, parser)
    check_combinations(args, parser)
    args.jobs = args.jobs or cores()
    return args


def check_job(args, parser):
    """Reports it if the flags name no job, or two."""
    jobs = [args.eval, args.predict is not None, args.train]
    if sum(jobs) > 1:
        parser.error("--eval, --predict and --train exclude each other: name one")
    if not (any(jobs) or args.flops or args.lr_schedule):
        parser.error("nothing to do: name --eval, --predict, --train, --lr_schedule or --flops 1")


def take_default_inputs(args, parser):
    """Fills in the tree and the checkpoint where they are not given, and reports it where they must be."""
    if (args.eval or args.predict) and args.data_dir is None and args.load is None:
        args.data_dir, args.load = DIGITS, DIGITS_CHECKPOINT
        if not os.path.isdir(os.path.join(DIGITS, 'caffe_ilsvrc12')):
            parser.error("the digits are not prepared: run 'python data/digits/prepare.py' (or 'make eval') first")
    for flag in ('finetune', 'freeze_bn'):
        if getattr(args, flag) and args.load is None:
            parser.error("--%s needs --load, the checkpoint to start from" % flag)
    if (args.eval or args.train) and args.data_dir is None:
        parser.error("--data_dir is missing: name a folder with train/ and val/, or with a folder for each class")
    if (args.eval or args.predict) and args.load is None:
        args.load = PUBLISHED_CHECKPOINT


def check_combinations(args, parser):
    """Reports flags that do not go together."""
    if args.gpu is not None and not all(part.strip().isdigit() for part in args.gpu.split(',')):
        parser.error("argument --gpu: '%s' is not a list of GPU numbers, such as 0 or 0,1" % args.gpu)
    if (args.hosts is None) != (args.worker is None):
        parser.error("--hosts and --worker go together: all workers, and the number of this one")
    if args.hosts is not None and not (args.train and args.trainer in (None, 'collective')):
        parser.error("--hosts goes with --train --trainer collective")
    if args.hosts is not None:
        args.trainer = 'collective'
    if args.towers is not None and (args.gpu is not None or args.trainer == 'horovod'):
        parser.error("--towers is for one machine's CPU: leave out %s" % ('--gpu' if args.gpu is not None else '--trainer horovod'))
    if args.json is not None and not (args.eval or args.predict):
        parser.error("--json goes with --eval and --predict")
    for flag in ('save_logits', 'cache', 'report'):
        if getattr(args, flag) is not None and not args.eval:
            parser.error("--%s goes with --eval" % flag)
    for flag in ('class_weights', 'patience', 'amp', 'xla'):
        if getattr(args, flag) and not args.train:
            parser.error("--%s goes with --train" % flag)
    if args.engine in ON_CPU and args.gpu is not None:
        parser.error("--engine %s computes on the CPU: leave out --gpu" % args.engine)
    if args.json is not None and args.save_logits is not None and os.path.realpath(args.json) == os.path.realpath(args.save_logits):
        parser.error("--json and --save_logits name the same file")
