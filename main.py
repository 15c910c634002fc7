#!/usr/bin/env python
"""GhostNet for TensorFlow: evaluates a checkpoint on ILSVRC12, classifies pictures, trains, or counts multiply-adds."""
import sys

if sys.version_info < (3, 6):    # before anything that such a Python cannot read
    sys.stderr.write("main.py: Python %d.%d is not supported: use CPython 3.6 with TensorFlow 1.13.1 (requirements-tf1.txt), "
                     "or CPython 3.10 to 3.13 with TensorFlow 2.21 (requirements.txt)\n" % sys.version_info[:2])
    sys.exit(2)

import contextlib
import os
from itertools import compress

from command_line import InputError, check_writable, quiet_tensorpack, run, write_json, write_npz
from dataset import VAL_SHARE, open_tree, open_tree_of
from flags import ON_CPU, parse_args
from recipe import FINETUNE, IMAGE_SIZE, IMAGENET_IMAGES, RECIPE, learning_rate, smallest_area, steps_per_epoch

PAPER = {0.5: ('42', '2.6'), 1.0: ('141', '5.2'), 1.3: ('226', '7.3')}    # paper, table 7: millions at each width


# ----------------------------------------------------------------------------------------------------------- the network

def build_model(args, num_classes, source=None):
    """GhostNet as the flags say, and where they do not, as `source` was made, a Description or CheckpointRestore."""
    from checkpoints import PUBLISHED
    from ghostnet import CODE_LENGTH, GhostNet, infer_architecture, known_variant
    recorded = PUBLISHED if source is None else source.record.variant
    if source is not None and args.variant not in (None, recorded):
        raise InputError("the checkpoint %s is one of the variant '%s': leave --variant out" % (source.path, recorded))
    for flag in ('dw_code_str', 'ratio_code_str'):
        given = getattr(args, flag)
        if given and len(given) < CODE_LENGTH:
            print("--%s has %d entries; as published, under %d the default is used instead" % (flag, len(given), CODE_LENGTH))
    variant = known_variant(args.variant or recorded)
    image_size = args.image_size or (IMAGE_SIZE if source is None else source.record.image_size)
    if image_size != IMAGE_SIZE:
        print("images of %d x %d pixels" % (image_size, image_size))
    made_with = (source and infer_architecture(source.shapes, variant)) or {
        'width': 1.0, 'se': 3, 'dw_code': None, 'ratio_code': None}

    def chosen(flag, name):
        return made_with[name] if getattr(args, flag) is None else getattr(args, flag)
    return GhostNet(num_classes, chosen('dw_code_str', 'dw_code'), chosen('ratio_code_str', 'ratio_code'), chosen('se', 'se'),
                    layout(args), chosen('width_ratio', 'width'), args.lr, args.weight_decay, args.dropout_keep_prob,
                    args.label_smoothing, args.freeze_bn, variant, image_size=image_size)


def layout(args):
    """--data-format, or by default that in which the device computes fastest."""
    from tf_compat import computes_on_gpu
    on_gpu = args.engine not in ON_CPU and not args.flops and computes_on_gpu()
    return args.data_format or ('NCHW' if on_gpu else 'NHWC')


def tree_of(args, source=None):
    """The tree in --data_dir. Raises InputError if its classes, or what is split off, are not those that `source` records."""
    recorded = source and source.record.val_share
    if recorded and args.val_share not in (None, recorded):
        raise InputError("--val_share is %g, and the checkpoint %s was trained with %g: its training pictures would be among "
                         "those of the validation; leave the flag out" % (args.val_share, source.path, recorded))
    tree = open_tree_of(source, args.data_dir, args.val_share) if source else open_tree(args.data_dir, args.val_share or VAL_SHARE)
    if args.val_share is not None and tree.val_share is None:
        raise InputError("%s is not split by --val_share, it has a validation part: leave the flag out" % args.data_dir)
    return tree


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
    from evaluation.image_cache import cached
    from evaluation.report import eval_record, hint_at_chance, print_errors
    from evaluation.report_page import check_report
    from ghostnet import need_classifier

    for path in (args.json, args.save_logits):
        if path is not None:
            check_writable(path)
    if args.report is not None:
        check_report(args.report)
    restore = CheckpointRestore(args.load)
    need_classifier(restore)
    tree = tree_of(args, restore)
    images, model = tree.images('val'), build_model(args, len(tree.classes), restore)
    reader = picture_reader(args, model)
    if tree.val_share is not None:
        print("the validation part, %g of each class: %d pictures" % (tree.val_share, len(images)))
    with contextlib.ExitStack() as stack:    # the cache gets its name in the end, when the result is out
        read = None
        if args.cache is not None:
            read = stack.enter_context(cached(args.cache, args.data_dir, images, reader))
        keep_logits = args.save_logits is not None or args.report is not None
        result, engine = computed(args, model, restore, images, reader, read, keep_logits)
        count = int(result['kept'].sum())
        print_errors(result, count, engine.name, len(reader.left_out))
        if args.save_logits is not None:
            write_npz(args.save_logits, logits=result['logits'], files=np.array(tree.files('val'))[result['kept']],
                      labels=np.array([label for _, label in images])[result['kept']])
        if args.json is not None:
            write_json(args.json, eval_record(result, count, engine.name, reader))
        if args.report is not None:
            report(args, tree, images, result, reader)
    hint_at_chance(result['wrong_top1'], count, model.num_classes)


def report(args, tree, images, result, reader):
    """Writes --report of the `result` of ``evaluate`` on `images`, the validation part of a tree."""
    import numpy as np

    from evaluation.report_page import write_report
    kept = result['kept']
    about = [('Checkpoint', args.load), ('Pictures', args.data_dir), ('Left out', '%d broken pictures' % len(reader.left_out))]
    write_report(args.report, list(compress(tree.files('val'), kept)), np.array([label for _, label in images])[kept],
                 result['logits'], tree.classes, [path for path, _ in compress(images, kept)], reader, about)


def picture_reader(args, model):
    from pictures import PictureReader
    return PictureReader(args.broken, "; get it again, or leave such pictures out with --broken skip", model.image_size)


def computed(args, model, restore, images, reader, read=None, keep_logits=True):
    """What ``evaluate`` gives for images, and the engine: both of --eval and of --predict."""
    from augmentation import kept_images
    from evaluation.engines import make_engine
    from evaluation.evaluate import evaluate
    from evaluation.pool import PoolReader, pool_is_faster

    def read_files(start, end):
        return kept_images([path for path, _ in images[start:end]], reader)
    with mismatch_explained(model):
        engine = make_engine(args.engine, model, restore, args.jobs, lambda: read_files(0, 16)[0])
    if read is None:
        read = PoolReader(images, reader) if pool_is_faster(args.jobs) else read_files
    return evaluate(engine, model, images, args.eval_batch, args.jobs, read, keep_logits), engine


def run_predict(args):
    from checkpoints import CheckpointRestore
    from dataset import find_images
    from evaluation.report import most_probable, print_predictions
    from ghostnet import infer_architecture, need_classifier

    if args.json is not None:
        check_writable(args.json)
    files = find_images(args.predict)
    restore = CheckpointRestore(args.load)
    need_classifier(restore)
    classes = restore.record.classes if args.data_dir is None else tree_of(args, restore).classes
    made_with = infer_architecture(restore.shapes, restore.variant) or {'num_classes': 1000}
    model = build_model(args, len(classes or ()) or made_with['num_classes'], restore)
    reader = picture_reader(args, model)
    result, _ = computed(args, model, restore, [[file, 0] for file in files], reader)
    predictions = [{'file': file, 'classes': most_probable(row, classes, args.topk)}
                   for file, row in zip((file for file, keep in zip(files, result['kept']) if keep), result['logits'])]
    if args.json is not None:
        write_json(args.json, predictions)
    print_predictions(predictions, classes)
    if reader.left_out:
        print("%d broken pictures were left out" % len(reader.left_out))


def start_watch(args):
    """The Watch over the workers of --trainer collective, of which this process is one; None if it is none, or alone.

    Before TensorFlow is imported, so that the others learn of it if this one is killed meanwhile.
    """
    from training.cluster import find_cluster
    from training.watch import Watch
    cluster = find_cluster(args.hosts, args.worker) if args.trainer == 'collective' else None
    if cluster and args.gpu and ',' in args.gpu:
        raise InputError("--gpu %s: each worker of --hosts or TF_CONFIG has one GPU" % args.gpu)
    return Watch(cluster) if cluster and cluster.size > 1 else None


def local_shares(args):
    """The flags of each of the workers that this machine is to have, [] where one process does all."""
    from tf_compat import wants_processes
    gpus = args.gpu.split(',') if args.gpu else []
    if args.trainer == 'collective' and not gpus and not args.towers:
        raise InputError("--trainer collective needs workers: --gpu 0,1 or --towers 2 for those of this machine, or --hosts and "
                         "--worker, or TF_CONFIG, for those of several")
    if args.trainer == 'collective' or (args.trainer is None and len(gpus) > 1 and wants_processes()):
        more = ['--trainer', 'collective']
        shares = [more + ['--gpu', gpu.strip()] for gpu in gpus] or [more + ['--towers', '1']] * args.towers
        return shares if len(shares) > 1 else []
    return []


def run_train(args, watch):
    from checkpoints import Record
    from dataset import warn_of_duplicates
    from ghostnet import need_classifier
    from imagenet_utils import balanced_weights
    from training.train import Data, Run, train
    from training.workers import HorovodWorkers, OneWorker
    if watch is not None:
        from training.collective import CollectiveWorkers
    source = source_to_train(args)
    if source is not None and not args.finetune:
        need_classifier(source)
    tree = tree_of(args, None if args.finetune and not args.resume else source)
    model = build_model(args, len(tree.classes), source)
    model.mixed_precision = args.amp
    data = Data(tree.images('train'), tree.images('val'), smallest_area(model.width), picture_reader(args, model))
    warn_of_duplicates(data.train, data.val)
    if args.class_weights:
        model.class_weights = balanced_weights([label for _, label in data.train], model.num_classes)
    workers = CollectiveWorkers(watch, args.gpu) if watch else HorovodWorkers() if args.trainer == 'horovod' else OneWorker()
    gpus, towers = len(args.gpu.split(',')) if args.gpu else 0, args.towers or 1
    batch = batch_size(args, len(data.train), max(workers.size, gpus, towers))
    record = Record(model.variant, tree.classes, tree.val_share, model.image_size)
    with mismatch_explained(model, args.finetune):
        train(model, data, Run(
            args.log_dir, batch, args.epochs, seed=args.seed, record=record,
            options=run_options(args, model, tree.val_share), load=args.load, finetune=args.finetune, patience=args.patience,
            resume=args.resume, changeable=args.changeable, gpus=gpus, towers=towers, workers=workers,
            xla=args.xla))


def source_to_train(args):
    """The Description of what a run begins with: the last checkpoint of the one that is resumed, or --load; None for nothing."""
    from checkpoints import describe
    from training.run_folder import saved_steps
    steps = saved_steps(args.log_dir, 'model') if args.resume and os.path.isdir(args.log_dir) else []
    for step in reversed(steps):
        with contextlib.suppress(InputError):    # it is damaged: the one before
            return describe(os.path.join(args.log_dir, 'model-%d' % step))
    return None if args.load is None else describe(args.load)


def batch_size(args, images, shares):
    """Images a step: --batch, else the default, or as many as there are, for small sets, in equal shares."""
    if args.batch:
        return args.batch
    default = (FINETUNE if args.finetune else RECIPE).batch
    batch = min(default, images // shares * shares)
    if batch < default:
        print("%d training images: --batch %d, in place of %d" % (images, batch, default))
    return max(batch, 1)


def run_options(args, model, val_share):
    """What a run depends on besides what Run knows of itself, {name: value}: it can be resumed only with the same."""
    options = {'--' + flag: getattr(args, flag) for flag in ('dropout_keep_prob', 'freeze_bn', 'label_smoothing', 'weight_decay')}
    options.update({'--variant': model.variant, '--image_size': model.image_size, '--width_ratio': model.width, '--se': model.se,
                    'number of classes': model.num_classes})
    for name, code, default in ('--dw_code_str', model.dw_code, 3), ('--ratio_code_str', model.ratio_code, 2):
        options[name] = None if set(code) == {default} else code
    added = {'--class_weights': args.class_weights, '--patience': args.patience, '--val_share': val_share,
             '--amp': args.amp or None, '--xla': args.xla or None}    # older runs lack them
    options.update({name: value for name, value in added.items() if value is not None})
    return options


def print_schedule(args):
    import tabulate
    images = IMAGENET_IMAGES if args.data_dir is None else len(tree_of(args).files('train'))
    batch = batch_size(args, images, args.towers or 1)
    steps = steps_per_epoch(images, batch)
    print("%d images, %d a step: %d steps an epoch, %d in all" % (images, batch, steps, steps * args.epochs))
    rows = []
    for epoch in range(args.epochs):
        row = [epoch + 1]
        for step in (epoch * steps, (epoch + 1) * steps - 1):
            row += [step, '%.6g' % learning_rate(step, steps, args.epochs, args.lr, batch)]
        rows.append(row)
    print(tabulate.tabulate(rows, headers=('epoch', 'first step', 'learning rate', 'last step', 'learning rate'),
                            disable_numparse=True, colalign=('right',) * 5))


def print_costs(args):
    import tabulate

    from checkpoints import describe
    from ghostnet import infer_architecture, layer_costs
    source = None if args.load is None else describe(args.load)
    made_with = (source and infer_architecture(source.shapes, source.record.variant)) or {'num_classes': 1000}
    classes = made_with['num_classes'] or 1000 if args.data_dir is None else len(tree_of(args, source).classes)
    model = build_model(args, classes, source)
    costs = layer_costs(model)
    costs.append(('total', sum(cost[1] for cost in costs), sum(cost[2] for cost in costs)))
    rows = [(name, "%.2f M" % (multiply_adds / 1e6), "{:,}".format(parameters)) for name, multiply_adds, parameters in costs]
    rows[-1] = ('total', "%.1f M" % (costs[-1][1] / 1e6), rows[-1][2])
    if model.width in PAPER and model.image_size == IMAGE_SIZE:
        rows.append(('paper, width %g' % model.width,) + tuple("%s M" % value for value in PAPER[model.width]))
    print(tabulate.tabulate(rows, headers=('layer group', 'multiply-adds', 'parameters'), colalign=('left', 'right', 'right'),
                            disable_numparse=True))


def main(args):
    if args.gpu is not None or args.towers is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = args.gpu or ''
    with contextlib.ExitStack() as stack:
        watch = start_watch(args) if args.train and not args.lr_schedule else None
        if watch is not None:
            stack.enter_context(watch)
        return run_jobs(args, watch)


def run_jobs(args, watch):
    if args.xla:    # for CPUs too, which it else leaves out
        os.environ['TF_XLA_FLAGS'] = (os.environ.get('TF_XLA_FLAGS', '') + ' --tf_xla_cpu_global_jit').strip()
    import tf_compat  # before all else that imports TensorFlow
    if args.amp:
        tf_compat.need_mixed_precision()
    if args.gpu is not None and (args.eval or args.predict or args.train and not args.lr_schedule):
        tf_compat.need_gpus(args.gpu)
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
        from training.cluster import run_workers
        shares = [] if watch else local_shares(args)
        if shares:
            return run_workers(sys.argv, shares)
        run_train(args, watch)
    return None


if __name__ == '__main__':
    run(main, parse_args(__doc__), 'main.py')
