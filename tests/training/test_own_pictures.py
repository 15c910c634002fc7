"""One's own pictures, from a folder to predictions with names: the README's commands on drawn shapes."""
import json
import os
import shutil

import numpy as np
import pytest
from shapes import SHAPES, draw

from checkpoints import CheckpointRestore, describe
from conftest import DIGITS_CHECKPOINT, evaluated, random_checkpoint, refused, run_main
from dataset import open_tree
from imagenet_utils import balanced_weights
from runs import cut, stats_of, train

pytestmark = pytest.mark.xdist_group('own pictures')    # so that `shapes` is made once


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A folder of 200 shapes, in a folder for each class, and the run that was fine-tuned on them from digits."""
    folder = tmp_path_factory.mktemp('shapes')
    root, log_dir = draw(folder / 'shapes'), folder / 'log'
    with open(os.path.join(root, SHAPES[0], 'notes.txt'), 'w') as f:
        f.write('no picture')
    said = train('--train', '--data_dir', root, '--load', DIGITS_CHECKPOINT, '--finetune', '--epochs', 6, '--log_dir', log_dir,
                 '--seed', 1, '--image_size', 128)
    assert 'Traceback' not in said
    return root, log_dir


@pytest.mark.once
@pytest.mark.slow
def test_from_a_folder_to_predictions_with_names(shapes, tmp_path):
    root, log_dir = shapes
    checkpoint, val = str(log_dir / 'ghostnet_checkpoint'), open_tree(root).images('val')
    status, said, err = run_main('--eval', '--data_dir', root, '--load', checkpoint, '--json', tmp_path / 'json')
    result = json.loads((tmp_path / 'json').read_text())
    assert status == 0 and 'Top5' not in said and 'val-error-top5' not in stats_of(log_dir)[-1], err
    assert result['images'] == len(val) and result['wrong_top5'] is None and result['top1_error'] < 0.2
    assert abs(result['top1_error'] - stats_of(log_dir)[-1]['val-error-top1']) < 1e-6
    assert 'left out: 1 files' in err and 'the validation part, 0.2 of each class: %d pictures' % len(val) in said
    status, said, err = run_main('--predict', os.path.join(root, SHAPES[1]), '--load', checkpoint, '--json', tmp_path / 'json')
    predictions = json.loads((tmp_path / 'json').read_text())
    assert status == 0 and len(predictions) == 67 and SHAPES[1] in said and 'class' in said.splitlines()[1], err
    assert np.mean([prediction['classes'][0]['class'] == SHAPES[1] for prediction in predictions]) > 0.8
    assert set(predictions[0]['classes'][0]) == {'label', 'class', 'probability'} and len(predictions[0]['classes']) == 3


@pytest.mark.once
@pytest.mark.slow
def test_a_tree_of_other_classes_is_refused(shapes, digits, tmp_path):
    root, log_dir = shapes
    load = ('--load', log_dir / 'ghostnet_checkpoint')
    other = tmp_path / 'other'
    shutil.copytree(root, str(other), ignore=shutil.ignore_patterns('*.txt'))
    os.rename(str(other / 'triangle'), str(other / 'square'))
    line = refused('--eval', '--data_dir', other, *load)
    assert "label 2 is 'triangle' in the checkpoint and 'square' in the tree" in line
    assert "label 0 is 'circle' in the checkpoint and 'n00000000' in the tree" in refused('--eval', '--data_dir', digits, *load)
    shutil.rmtree(str(other / 'square'))
    line = refused('--predict', os.path.join(root, 'circle', '000.jpg'), '--data_dir', other, *load)
    assert "is of 3 classes, and %s has 2: 'triangle' is only in the checkpoint" % other in line
    assert '--val_share is 0.5, and the checkpoint' in refused('--eval', '--data_dir', root, '--val_share', 0.5, *load)
    assert 'is not split by --val_share' in refused('--eval', '--data_dir', digits, '--val_share', 0.5, '--load',
                                                             DIGITS_CHECKPOINT)
    assert "label 0 is" in refused('--train', '--data_dir', digits, '--log_dir', tmp_path / 'log', *load)


@pytest.mark.once
@pytest.mark.slow
def test_small_sets_take_a_smaller_batch_and_broken_pictures_are_listed(shapes, tmp_path):
    few, log_dir = tmp_path / 'few', tmp_path / 'log'
    draw(few, 30)
    broken = os.path.join(str(few), open_tree(str(few)).files('train')[0])
    with open(broken, 'r+b') as f:
        f.truncate(os.path.getsize(broken) // 2)
    flags = ['--train', '--data_dir', few, '--log_dir', log_dir, '--epochs', 1, '--width_ratio', 0.25]
    status, _, err = run_main(*flags)
    assert status == 2 and broken in err.splitlines()[-1] and 'Traceback' not in err
    shutil.rmtree(str(log_dir))
    said = train(*(flags + ['--broken', 'skip']))
    assert '%d training images: --batch' % len(open_tree(str(few)).files('train')) in said
    assert [entry['file'] for entry in json.loads((log_dir / 'left_out.json').read_text())] == [broken]
    assert describe(str(log_dir / 'ghostnet_checkpoint')).record.classes == [(name, '') for name in sorted(SHAPES)]


@pytest.mark.once
@pytest.mark.slow
def test_patience_ends_a_run_with_its_best_weights(digits, tmp_path):
    """A learning rate of nothing: no epoch is better than the first."""
    tree, log_dir = cut(digits, tmp_path / 'tree', 32, 8), tmp_path / 'log'
    run = ['--train', '--data_dir', tree, '--log_dir', log_dir, '--batch', 16, '--width_ratio', 0.25, '--lr', 1e-30, '--epochs', 40,
           '--patience', 3, '--freeze_bn', '--load', random_checkpoint(tmp_path / 'start', num_classes=10, width=0.25)]
    train(*run)
    assert len(stats_of(log_dir)) == 4
    assert sorted(name for name in os.listdir(str(log_dir)) if name.startswith('best')) == [
        'best-2.data-00000-of-00001', 'best-2.index']
    best, last = (CheckpointRestore(str(log_dir / name)).values for name in ('best-2', 'ghostnet_checkpoint'))
    assert all(np.array_equal(best[name], last[name]) for name in best)
    train(*(run + ['--resume']))    # it is at its end, not to be continued
    assert len(stats_of(log_dir)) == 4


@pytest.mark.once
@pytest.mark.slow
def test_the_network_is_read_from_the_checkpoint(digits, tmp_path):
    options = dict(num_classes=10, width=0.5, se=0, dw_code=[5] * 19, ratio_code=[3] * 19, image_size=160)
    checkpoint, digit = random_checkpoint(tmp_path / 'ck', **options), os.path.join(digits, 'val', 'digits_val_00000004.png')
    status, said, err = run_main('--predict', digit, '--load', checkpoint, '--topk', 1)
    assert status == 0 and len(said.splitlines()) == 4 and said.startswith('images of 160 x 160 pixels\n'), err
    line = refused('--predict', digit, '--load', checkpoint, '--image_size', 224, '--width_ratio', 1)
    assert 'it was made with --width_ratio 0.5' in line
    status, said, _ = run_main('--flops', 1, '--load', checkpoint, '--image_size', 224)
    assert status == 0 and 'paper, width 0.5' in said and 'images of' not in said
    tree, log_dir = cut(digits, tmp_path / 'tree', 16, 8, classes=4), tmp_path / 'log'
    run = ['--train', '--data_dir', tree, '--batch', 16, '--log_dir', log_dir, '--epochs', 2]
    train(*(run + ['--load', checkpoint, '--finetune']))
    record = json.loads((log_dir / 'run.json').read_text())
    assert record['--width_ratio'] == 0.5 and record['--se'] == 0 and record['--dw_code_str'] == [5] * 19
    assert record['--image_size'] == 160
    train(*(run + ['--resume']))    # a run knows its own network
    line = refused(*(run + ['--resume', '--image_size', 224]))
    assert '--image_size was 160 when the run' in line and 'is 224 now' in line
    trained = log_dir / 'ghostnet_checkpoint'
    assert describe(str(trained)).record.image_size == describe(str(log_dir / 'model-2')).record.image_size == 160
    said, result = evaluated(tree, trained, tmp_path / 'json')
    assert 'images of 160 x 160 pixels' in said and result['image_size'] == 160
    assert evaluated(tree, trained, tmp_path / 'json', '--image_size', 225)[1]['image_size'] == 225    # another is allowed


def test_balanced_weights():
    assert balanced_weights([0, 0, 0, 1], 2).tolist() == pytest.approx([4 / 6, 2])
    assert balanced_weights([0, 2], 3).dtype == np.float32
