"""Reproduces a published result, and says yes or no: evaluates a checkpoint and compares its wrong counts with the expected ones.

    python -m tools.reproduce --data_dir <ImageNet> --load models/ghostnet_checkpoint          # the published result
    python -m tools.reproduce --data_dir <tree> --load <checkpoint> --wrong_top1 218 --wrong_top5 131    # any other

Exit status: 0 for EXACT and for WITHIN the tolerance, 1 for DIFFERENT, 2 where it could not run.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # python tools/reproduce.py works too

from command_line import ROOT, InputError, Parser, cores, quiet_tensorpack, run

PUBLISHED = os.path.join(ROOT, 'models', 'published.json')


def count(text):
    if not text.isdigit():
        raise argparse.ArgumentTypeError("'%s' is not a number of images" % text)
    return int(text)


def parse_args():
    parser = Parser(prog='reproduce', description=__doc__.splitlines()[0])
    parser.add_argument('--data_dir', required=True, help="ILSVRC12 tree")
    parser.add_argument('--load', required=True, help="checkpoint")
    parser.add_argument('--manifest', default=PUBLISHED, metavar='FILE',
                        help="what is published of a checkpoint: its files and its result (default: %(default)s)")
    for name, what in (('images', "validation images"), ('wrong_top1', "images wrong by top-1"), ('wrong_top5', "by top-5")):
        parser.add_argument('--' + name, type=count, metavar='N',
                            help="expected %s; with other counts than published, the files may be others too" % what)
    parser.add_argument('--tolerance', type=count, default=25, metavar='N',
                        help="images that each count may differ by (default: 25)")
    args = parser.parse_args()
    if (args.wrong_top1 is None) != (args.wrong_top5 is None):
        parser.error("--wrong_top1 and --wrong_top5 go together")
    return args


def reproduce(args):
    """Prints the comparison; returns the exit status, 0 or 1.

    Raises:
        InputError: the files are not those published, the tree is not complete, or the evaluation could not run.
    """
    import tf_compat  # noqa: F401  (before all else that imports TensorFlow)

    import tabulate

    from checkpoints import CheckpointRestore
    from dataset import read_images, read_synsets
    from evaluation.engines import make_engine
    from evaluation.evaluate import evaluate
    from ghostnet import from_checkpoint
    from models.fetch import check_blob, read_manifest
    quiet_tensorpack()
    manifest = read_manifest(args.manifest)
    expected = manifest['expected']
    published = args.wrong_top1 is None
    images = read_images(args.data_dir, 'val')
    if not published and args.images is None:
        expected['images'] = len(images)
    expected.update((name, value) for name, value in vars(args).items() if name in expected and value is not None)
    if len(images) != expected['images']:
        raise InputError("the tree %s has %d validation images, not %d" % (args.data_dir, len(images), expected['images']))
    restore = CheckpointRestore(args.load)
    if published:
        for entry in manifest['files']:
            check_blob(restore.path + entry['name'][len(manifest['checkpoint']):], entry)
    model = from_checkpoint(restore, num_classes=len(read_synsets(args.data_dir)))
    engine = make_engine('tensorpack', model, restore, cores())
    measured = evaluate(engine, model, images, None, cores(), keep_logits=False)

    rows, worst = [], 0
    for k in ('1', '5'):
        wrong, reference = measured['wrong_top' + k], expected['wrong_top' + k]
        worst = max(worst, abs(wrong - reference))
        for row in (('top-%s error' % k, '%.5f' % (reference / len(images)), '%.5f' % (wrong / len(images)),
                     '%+.5f' % ((wrong - reference) / len(images))),
                    ('top-%s wrong of %d' % (k, len(images)), reference, wrong, '%+d' % (wrong - reference))):
            rows.append(row)
    print(tabulate.tabulate(rows, headers=('', 'expected', 'measured', 'difference'), disable_numparse=True,
                            colalign=('left', 'right', 'right', 'right')))
    print('EXACT' if worst == 0 else 'WITHIN' if worst <= args.tolerance else 'DIFFERENT')
    return 0 if worst <= args.tolerance else 1


if __name__ == '__main__':
    run(reproduce, parse_args(), 'reproduce')
