#!/usr/bin/env python
"""GhostNet for TensorFlow: evaluates a checkpoint on ILSVRC12, classifies pictures, trains, or counts multiply-adds."""
import sys

if sys.version_info < (3, 6):    # before anything that such a Python cannot read
    sys.stderr.write("main.py: Python %d.%d is not supported: use CPython 3.6 with TensorFlow 1.13.1 (requirements-tf1.txt), "
                     "or CPython 3.10 to 3.13 with TensorFlow 2.21 (requirements.txt)\n" % sys.version_info[:2])
    sys.exit(2)

import argparse
import contextlib
import os
from itertools import compress

from command_line import (
    ROOT,
    InputError,
    Parser,
    atomic_write,
    check_writable,
    cores,
    number,
    positive,
    quiet_tensorpack,
    run,
    up_to,
    write_json,
)
from recipe import IMAGENET_IMAGES, RECIPE, learning_rate, smallest_area, steps_per_epoch

DIGITS = os.path.join(ROOT, 'data', 'digits')
DIGITS_CHECKPOINT = os.path.join(ROOT, 'models', 'digits_checkpoint')
PUBLISHED_CHECKPOINT = os.path.join(ROOT, 'models', 'ghostnet_checkpoint')
PAPER = {0.5: ('42', '2.6'), 1.0: ('141', '5.2'), 1.3: ('226', '7.3')}    # paper, table 7: millions at each width


# ----------------------------------------------------------------------------------------------------------------- flags

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
    data.add_argument('--data_dir', help="ILSVRC12 tree with train/, val/ and caffe_ilsvrc12/; for --predict, names of the classes")
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
    how.add_argument('--trainer', choices=['replicated', 'horovod'], default='replicated',
                     help="horovod: under horovodrun, on several machines")
    how.add_argument('--data-format', choices=['NHWC', 'NCHW'], default='NHWC', help="layout inside the network")
    how.add_argument('--engine', choices=['tensorpack', 'frozen', 'tflite', 'auto'], default='tensorpack',
                     help="what computes in --eval and --predict; auto is the fastest on this machine. The result is the same")
    how.add_argument('--jobs', type=up_to(1024), help="--eval, --predict: workers, of one core each (default: all cores)")
    how.add_argument('--eval_batch', type=up_to(1024), help="--eval, --predict: images that a worker computes at once (default: "
                     "what the engine does best); changes speed only")
    how.add_argument('--cache', metavar='DIR', help="--eval: keep the preprocessed images there, for the next time")


def add_network_flags(net):
    net.add_argument('--width_ratio', type=number(float, lambda x: 0 < x <= 10, "a number above 0, at most 10"), default=1.0,
                     help="width multiplier")
    net.add_argument('--variant', choices=['published', 'pytorch', 'imgclsmob'], default=argparse.SUPPRESS,
                     help="whose GhostNet (default: that recorded in --load, else published)")
    net.add_argument('--se', type=number(int, lambda n: n >= 0, "0 or a positive integer"), default=3,
                     help="squeeze-and-excitation, 0 for none")
    net.add_argument('--dw_code_str', type=code, default='', metavar='CODE',
                     help="kernel sizes of the cheap operations, 19 integers separated by commas")
    net.add_argument('--ratio_code_str', type=code, default='', metavar='CODE', help="ratios of the ghost modules, likewise")


def add_training_flags(train):
    share = number(float, lambda x: 0 <= x < 1, "a number from 0 up to, but not, 1")
    train.add_argument('--batch', type=positive(), default=RECIPE.batch, help="images a step, of all towers and workers together")
    train.add_argument('--lr', type=number(float, lambda x: x > 0, "a number above 0"), default=RECIPE.lr,
                       help="learning rate for 256 images a step; it is scaled with --batch")
    train.add_argument('--epochs', type=positive(), default=RECIPE.epochs, help="epochs")
    train.add_argument('--weight_decay', type=number(float, lambda x: x >= 0, "0 or a number above"), default=RECIPE.weight_decay,
                       help="factor of half the sum of the squared kernels")
    train.add_argument('--label_smoothing', type=share, default=RECIPE.label_smoothing,
                       help="share of the target that is spread over all classes")
    train.add_argument('--dropout_keep_prob', type=number(float, lambda x: 0 < x <= 1, "a number above 0, at most 1"),
                       default=RECIPE.dropout_keep_prob, help="probability of keeping an input of the last layer")
    train.add_argument('--finetune', action='store_true', help="take all but the last layer from --load, for other classes")
    train.add_argument('--freeze_bn', action='store_true', help="BN keeps the statistics, scale and offset of --load")
    train.add_argument('--resume', action='store_true', help="continue after the last checkpoint in --log_dir, if there is one")
    train.add_argument('--seed', type=number(int, lambda n: 0 <= n < 2 ** 31, "an integer from 0"),
                       help="fixes initial weights, order and augmentation")


def parse_args():
    parser = Parser(prog='main.py', description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_job_flags(parser.add_argument_group('what to do'))
    add_data_flags(parser.add_argument_group('data and results'))
    add_device_flags(parser.add_argument_group('how to run'))
    add_network_flags(parser.add_argument_group('network'))
    add_training_flags(parser.add_argument_group('training'))
    args = parser.parse_args()
    args.variant = getattr(args, 'variant', None)
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
        parser.error("--data_dir is missing: name an ILSVRC12 tree, with train/, val/ and caffe_ilsvrc12/")
    if (args.eval or args.predict) and args.load is None:
        args.load = PUBLISHED_CHECKPOINT


def check_combinations(args, parser):
    """Reports flags that do not go together."""
    if args.gpu is not None and not all(part.strip().isdigit() for part in args.gpu.split(',')):
        parser.error("argument --gpu: '%s' is not a list of GPU numbers, such as 0 or 0,1" % args.gpu)
    if args.towers is not None and (args.gpu is not None or args.trainer == 'horovod'):
        parser.error("--towers is for one machine's CPU: leave out %s" % ('--gpu' if args.gpu is not None else '--trainer horovod'))
    if args.json is not None and not (args.eval or args.predict):
        parser.error("--json goes with --eval and --predict")
    for flag in ('save_logits', 'cache', 'report'):
        if getattr(args, flag) is not None and not args.eval:
            parser.error("--%s goes with --eval" % flag)
    if args.engine == 'tflite' and args.gpu is not None:
        parser.error("--engine tflite computes on the CPU: leave out --gpu")
    if args.json is not None and args.save_logits is not None and os.path.realpath(args.json) == os.path.realpath(args.save_logits):
        parser.error("--json and --save_logits name the same file")


# ----------------------------------------------------------------------------------------------------------- the network

def build_model(args, num_classes, recorded):
    """GhostNet as the flags say, or of the variant that is `recorded` with --load."""
    from ghostnet import CODE_LENGTH, GhostNet, known_variant
    if args.load is not None and args.variant not in (None, recorded):
        raise InputError("the checkpoint %s is one of the variant '%s': leave --variant out" % (args.load, recorded))
    for flag in ('dw_code_str', 'ratio_code_str'):
        given = getattr(args, flag)
        if given and len(given) < CODE_LENGTH:
            print("--%s has %d entries; as published, under %d the default is used instead" % (flag, len(given), CODE_LENGTH))
    return GhostNet(num_classes, args.dw_code_str, args.ratio_code_str, args.se, args.data_format, args.width_ratio, args.lr,
                    args.weight_decay, args.dropout_keep_prob, args.label_smoothing, args.freeze_bn,
                    known_variant(args.variant or recorded))


def flags_to_change(model, restore, finetune):
    """What to say of a checkpoint that does not fit `model`: which flags it was made with."""
    import ghostnet
    made_with = ghostnet.infer_architecture(restore.shapes, restore.variant)
    if made_with is None:
        return "it is not a GhostNet checkpoint"
    bottlenecks = sum(isinstance(row, ghostnet.Bottleneck) for row in ghostnet.ROWS)
    changes = []
    if made_with['num_classes'] != model.num_classes and not finetune:
        changes.append("--data_dir of a tree with %d classes, this one has %d (--train has --finetune for that)"
                       % (made_with['num_classes'], model.num_classes))
    if abs(made_with['width'] - model.width) >= 0.01:
        changes.append("--width_ratio %.4g" % made_with['width'])
    if (made_with['se'] > 0) != (model.se > 0):
        changes.append("--se %d" % made_with['se'])
    for name in ('dw_code', 'ratio_code'):
        if made_with[name][:bottlenecks] != getattr(model, name)[:bottlenecks]:
            changes.append("--%s_str %s" % (name, ','.join(map(str, made_with[name]))))
    return "it was made with " + ' and '.join(changes) if changes else "no flag explains it"


@contextlib.contextmanager
def mismatch_explained(model, finetune=False):
    """Adds the flags to change to what is said of a checkpoint that does not fit."""
    from checkpoints import CheckpointMismatch
    try:
        yield
    except CheckpointMismatch as error:
        error.args = ("%s; %s" % (error, flags_to_change(model, error.restore, finetune)),)
        raise


# ------------------------------------------------------------------------------------------------------------------ jobs

def run_eval(args):
    import numpy as np

    from checkpoints import CheckpointRestore
    from dataset import read_images, read_list, read_words
    from evaluation.image_cache import cached
    from evaluation.report import eval_record, hint_at_chance, print_errors
    from evaluation.report_page import check_report, write_report

    for path in (args.json, args.save_logits):
        if path is not None:
            check_writable(path)
    files, labels = zip(*read_list(args.data_dir, 'val'))
    images, reader = read_images(args.data_dir, 'val'), picture_reader(args)
    if args.report is not None:
        check_report(args.report)
    with contextlib.ExitStack() as stack:    # the cache gets its name in the end, when the result is out
        read = None
        if args.cache is not None:
            read = stack.enter_context(cached(args.cache, args.data_dir, images, reader))
        restore = CheckpointRestore(args.load)
        classes = read_words(args.data_dir)
        model = build_model(args, len(classes), restore.variant)
        keep_logits = args.save_logits is not None or args.report is not None
        result, engine = computed(args, model, restore, images, reader, read, keep_logits)
        count = int(result['kept'].sum())
        print_errors(result, count, engine.name, len(reader.left_out))
        if args.save_logits is not None:
            with atomic_write(args.save_logits) as f:
                np.savez(f, logits=result['logits'], labels=np.array(labels)[result['kept']],
                         files=np.array(files)[result['kept']])
        if args.json is not None:
            write_json(args.json, eval_record(result, count, engine.name, reader.left_out))
        if args.report is not None:
            kept, about = result['kept'], [('Checkpoint', args.load), ('Pictures', args.data_dir),
                                           ('Left out', '%d broken pictures' % len(reader.left_out))]
            write_report(args.report, list(compress(files, kept)), np.array(labels)[kept], result['logits'], classes,
                         list(compress([path for path, _ in images], kept)), reader, about)
    hint_at_chance(result['wrong_top1'], count, model.num_classes)


def picture_reader(args):
    from pictures import PictureReader
    return PictureReader(args.broken, "; get it again, or leave such pictures out with --broken skip")


def computed(args, model, restore, images, reader, read=None, keep_logits=True):
    """What ``evaluate`` gives for images, and the engine: both of --eval and of --predict."""
    from augmentation import kept_images
    from evaluation.engines import make_engine
    from evaluation.evaluate import evaluate

    def read_files(start, end):
        return kept_images([path for path, _ in images[start:end]], reader)
    with mismatch_explained(model):
        engine = make_engine(args.engine, model, restore, args.jobs, lambda: read_files(0, 16)[0])
    return evaluate(engine, model, images, args.eval_batch, args.jobs, read or read_files, keep_logits), engine


def run_predict(args):
    from checkpoints import CheckpointRestore
    from dataset import find_images, read_words
    from evaluation.report import most_probable, print_predictions
    from ghostnet import infer_architecture

    if args.json is not None:
        check_writable(args.json)
    files = find_images(args.predict)
    restore = CheckpointRestore(args.load)
    if args.data_dir is not None:
        classes = read_words(args.data_dir)
    else:
        made_with = infer_architecture(restore.shapes, restore.variant)
        classes = [('', '')] * (made_with['num_classes'] if made_with else 1000)
    model = build_model(args, len(classes), restore.variant)
    reader = picture_reader(args)
    result, _ = computed(args, model, restore, [[file, 0] for file in files], reader)
    predictions = [{'file': file, 'classes': most_probable(row, classes, args.topk)}
                   for file, row in zip((file for file, keep in zip(files, result['kept']) if keep), result['logits'])]
    if args.json is not None:
        write_json(args.json, predictions)
    print_predictions(predictions, args.data_dir is not None)
    if reader.left_out:
        print("%d broken pictures were left out" % len(reader.left_out))


def run_train(args):
    from checkpoints import UNRECORDED
    from dataset import read_images, read_synsets
    from training.train import Data, Run, train
    from training.workers import HorovodWorkers, OneWorker
    data = Data(read_images(args.data_dir, 'train'), read_images(args.data_dir, 'val'), smallest_area(args.width_ratio),
                picture_reader(args))
    model = build_model(args, len(read_synsets(args.data_dir)), variant_to_train(args))
    options = {'--' + flag: getattr(args, flag) for flag in (
        'batch', 'dropout_keep_prob', 'dw_code_str', 'epochs', 'freeze_bn', 'label_smoothing', 'lr', 'ratio_code_str', 'se',
        'weight_decay', 'width_ratio')}
    options.update({'--variant': model.variant, 'number of classes': model.num_classes,
                    'number of training images': len(data.train)})
    with mismatch_explained(model, args.finetune):
        train(model, data, Run(
            args.log_dir, args.batch, args.epochs, seed=args.seed, record=UNRECORDED._replace(variant=model.variant),
            options=options, load=args.load, finetune=args.finetune,
            resume=args.resume, gpus=len(args.gpu.split(',')) if args.gpu else 0, towers=args.towers or 1,
            workers=HorovodWorkers() if args.trainer == 'horovod' else OneWorker()))


def variant_to_train(args):
    """The variant of the network that --load is of, or the published one."""
    from checkpoints import PUBLISHED, recorded
    if args.load is None:
        return PUBLISHED
    try:
        return recorded(args.load).variant
    except InputError:
        if not args.resume:    # a run that continues does not need it any more; --variant is compared with what it recorded
            raise
        return args.variant or PUBLISHED


def print_schedule(args):
    import tabulate

    from dataset import read_list
    images = IMAGENET_IMAGES if args.data_dir is None else len(read_list(args.data_dir, 'train'))
    steps = steps_per_epoch(images, args.batch)
    print("%d images, %d a step: %d steps an epoch, %d in all" % (images, args.batch, steps, steps * args.epochs))
    rows = []
    for epoch in range(args.epochs):
        row = [epoch + 1]
        for step in (epoch * steps, (epoch + 1) * steps - 1):
            row += [step, '%.6g' % learning_rate(step, steps, args.epochs, args.lr, args.batch)]
        rows.append(row)
    print(tabulate.tabulate(rows, headers=('epoch', 'first step', 'learning rate', 'last step', 'learning rate'),
                            disable_numparse=True, colalign=('right',) * 5))


def print_costs(args):
    import tabulate

    from checkpoints import PUBLISHED, recorded
    from dataset import read_synsets
    from ghostnet import layer_costs
    classes = 1000 if args.data_dir is None else len(read_synsets(args.data_dir))
    costs = layer_costs(build_model(args, classes, PUBLISHED if args.load is None else recorded(args.load).variant))
    costs.append(('total', sum(cost[1] for cost in costs), sum(cost[2] for cost in costs)))
    rows = [(name, "%.2f M" % (multiply_adds / 1e6), "{:,}".format(parameters)) for name, multiply_adds, parameters in costs]
    rows[-1] = ('total', "%.1f M" % (costs[-1][1] / 1e6), rows[-1][2])
    if args.width_ratio in PAPER:
        rows.append(('paper, width %g' % args.width_ratio,) + tuple("%s M" % value for value in PAPER[args.width_ratio]))
    print(tabulate.tabulate(rows, headers=('layer group', 'multiply-adds', 'parameters'), colalign=('left', 'right', 'right'),
                            disable_numparse=True))


def main(args):
    if args.gpu is not None or args.towers is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = args.gpu or ''
    import tf_compat  # noqa: F401  (before all else that imports TensorFlow)
    if not args.train:
        quiet_tensorpack()
    if args.flops:
        print_costs(args)
    if args.eval:
        run_eval(args)
    if args.predict:
        run_predict(args)
    if args.lr_schedule:
        print_schedule(args)
    elif args.train:
        run_train(args)


if __name__ == '__main__':
    run(main, parse_args(), 'main.py')
