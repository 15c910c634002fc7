"""Training as a user runs it, on a few of the digits: recipe, towers, interruptions, fine-tuning, mistakes."""
import logging
import os
import re
import signal
import time

from tf_compat import tf

import cv2
import numpy as np
import psutil
import pytest

from checkpoints import CheckpointRestore
from conftest import DIGITS_CHECKPOINT, ended, random_checkpoint, run_main, small_disk, worker_processes
from dataset import read_images
from ghostnet import GhostNet
from pictures import PictureReader
from recipe import learning_rate
from runs import STEPS, STILL, VALIDATION, cut, cut_fixture, difference, flags, started, stats_of, train, variables, wait_for, wrong
from training.run_folder import saved_steps
from training.train import Data, Run, train as train_in_process

KILLS = int(os.environ.get('GHOSTNET_KILLS', 4))    # each takes 20 seconds
small, sixteen = cut_fixture(64, VALIDATION), cut_fixture(16, VALIDATION)


# -------------------------------------------------------------------------------------------------------- a run's folder

@pytest.mark.slow
def test_run_leaves_what_it_promises(small, tmp_path):
    log_dir = tmp_path / 'log'
    run = flags(small, log_dir, '--epochs', 3, '--width_ratio', 1)
    out = train(*run)
    assert 'Estimated Time Left' in out
    stats = stats_of(log_dir)
    assert [(entry['epoch_num'], entry['global_step']) for entry in stats] == [(1, STEPS), (2, 2 * STEPS), (3, 3 * STEPS)]
    for name in ('cost', 'xentropy-loss', 'train-error-top1', 'train-error-top5', 'val-error-top1', 'val-error-top5'):
        assert all(np.isfinite(entry[name]) for entry in stats), name
    assert all(entry['images-per-second'] > 0 for entry in stats)
    assert abs(stats[-1]['learning_rate'] / learning_rate(11, STEPS, 3, 0.1, 16) - 1) < 1e-5
    assert any(name.startswith('events.out.tfevents') for name in os.listdir(str(log_dir)))
    assert cv2.imread(str(log_dir / 'curves.png')).std() > 10

    assert saved_steps(str(log_dir), 'model') == [STEPS, 2 * STEPS, 3 * STEPS]
    errors = [entry['val-error-top1'] for entry in stats]
    best = (1 + errors.index(min(errors))) * STEPS
    assert saved_steps(str(log_dir), 'best') == [best]
    for checkpoint, error in (('model-12', errors[-1]), ('best-%d' % best, min(errors)), ('ghostnet_checkpoint', errors[-1])):
        assert wrong(small, log_dir / checkpoint, tmp_path) == round(error * VALIDATION)
    assert not [name for name in os.listdir(str(log_dir)) if 'unfinished' in name or name.endswith('.tmp')]

    for more, line in ([], 'add --resume'), (['--resume', '--weight_decay', 0], '--weight_decay was 4e-05'):
        status, _, err = run_main(*(run + more))
        assert status == 2 and line in err and err.count('\n') == 1
    # A run that is finished stays so; what a kill at the very end prevented is made up for.
    os.remove(str(log_dir / 'ghostnet_checkpoint.index'))
    train(*(run + ['--resume']))
    assert len(stats_of(log_dir)) == 3 and wrong(small, log_dir / 'ghostnet_checkpoint', tmp_path) == round(errors[-1] * VALIDATION)

    # Two more epochs, of two larger batches each.
    train(*(run + ['--resume', '--epochs', 5, '--batch', 32]))
    stats = stats_of(log_dir)
    assert [(entry['epoch_num'], entry['global_step']) for entry in stats[3:]] == [(4, 14), (5, 16)]
    assert abs(stats[3]['learning_rate'] / learning_rate(7, 2, 5, 0.1, 32) - 1) < 1e-5
    log = (log_dir / 'log.log').read_text()
    assert '--batch was 16, and is 32 from here on' in log and 'after epoch 3, step 12, with the learning rate' in log
    assert wrong(small, log_dir / 'ghostnet_checkpoint', tmp_path) == round(stats[-1]['val-error-top1'] * VALIDATION)


def test_two_runs_in_one_process(small, tmp_path):
    """A run leaves nothing changed in the process, and the folder free: the second goes on where the first has ended."""
    graph, handlers = tf.get_default_graph(), [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    raising, log = logging.raiseExceptions, logging.getLogger('tensorpack').handlers[:]
    data = Data(read_images(str(small), 'train'), read_images(str(small), 'val')[:8], 0.08, PictureReader())
    for folder, seed in (('one', 1), ('two', 1), ('one', 1)):
        train_in_process(GhostNet(10, width=0.25), data, Run(str(tmp_path / folder), 64, 1, seed=seed, resume=True))
        assert sorted(stats_of(tmp_path / folder)[0]) and (tmp_path / folder / 'ghostnet_checkpoint.index').exists()
    assert difference(variables(tmp_path / 'one' / 'model-1'), variables(tmp_path / 'two' / 'model-1'), '/mean/EMA') < 1e-4
    assert tf.get_default_graph() is graph and not graph.get_operations()
    assert handlers == [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    assert logging.raiseExceptions == raising and logging.getLogger('tensorpack').handlers == log


# ---------------------------------------------------------------------------------------------------------- interruptions

@pytest.mark.once
@pytest.mark.slow
def test_signals_stop_cleanly_and_a_resumed_run_ends_like_an_uninterrupted_one(small, tmp_path):
    whole, log_dir, output = tmp_path / 'whole', tmp_path / 'log', tmp_path / 'output'
    # From weights that are good already, so that rounding is not amplified: from random ones it grows to tens of percent.
    more = ['--epochs', 4, '--dropout_keep_prob', 1, '--width_ratio', 1, '--lr', 0.001, '--load', DIGITS_CHECKPOINT]
    train(*flags(small, whole, *more))
    for epoch, signum in ((1, signal.SIGINT), (2, signal.SIGTERM)):
        with started(flags(small, log_dir, '--resume', *more), output) as process:
            wait_for(process, log_dir / ('model-%d.index' % (epoch * STEPS)), output)
            process.send_signal(signum)
            assert process.wait() == 128 + signum
        last = output.read_text().splitlines()[-1]
        assert last.startswith('main.py: stopped after step ') and '--resume' in last and 'Traceback' not in output.read_text()
        assert epoch <= len(stats_of(log_dir)) < 4
    train(*flags(small, log_dir, '--resume', *more))
    stats = stats_of(log_dir)
    assert [entry['epoch_num'] for entry in stats] == [1, 2, 3, 4]
    for entry, uninterrupted in zip(stats, stats_of(whole)):    # but for how fast images were read and computed
        assert sorted(entry) == sorted(uninterrupted)
        for name in set(entry) - {'images-per-second', 'SplitInput/queue_size'}:
            assert entry[name] == pytest.approx(uninterrupted[name], rel=1e-4), name
    # Steps, learning rate, momentum and BN statistics: all that is saved at the end.
    one, other = variables(whole / 'model-16'), variables(log_dir / 'model-16')
    assert sorted(one) == sorted(other) and one['global_step'] == other['global_step'] == 16
    assert abs(other['learning_rate'] / learning_rate(15, STEPS, 4, 0.001, 16) - 1) < 1e-5
    for kind, tolerance in (('/W', 1e-6), ('/W/Momentum', 0.01), ('/mean/EMA', 1e-4), ('/variance/EMA', 1e-4)):
        assert difference(one, other, kind) < tolerance, kind


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('which', [0, -1], ids=['training', 'validation'])
def test_a_worker_process_that_is_killed_ends_the_run_with_one_line(small, tmp_path, which):
    log_dir, output = tmp_path / 'log', tmp_path / 'output'
    with started(flags(small, log_dir, '--epochs', 1000), output) as process:
        wait_for(process, log_dir / 'model-4.index', output)
        workers = worker_processes(process.pid)
        workers[which].kill()
        assert process.wait(30) == 2
    last = output.read_text().splitlines()[-1]
    assert last.startswith('main.py: a worker process was killed by signal 9') and 'Traceback' not in output.read_text()
    _, alive = psutil.wait_procs(workers, 1)
    assert all(map(ended, alive))


@pytest.mark.once
@pytest.mark.slow
def test_killed_at_any_moment(small, tmp_path):
    """SIGKILL, again and again: each resumption goes on after the last whole epoch, and the end is the schedule's."""
    log_dir, epochs = tmp_path / 'log', 400
    run = flags(small, log_dir, '--resume', '--batch', 64, '--epochs', epochs)
    rng, reached, output = np.random.RandomState(0), 0, tmp_path / 'output'
    for _ in range(KILLS):
        with started(run, output) as process:
            if rng.uniform() < 0.8:    # else while it starts
                wait_for(process, log_dir / ('model-%d.index' % (reached + 1)), output)
                if reached == 0:
                    assert 'another process' in refused_in_training(*run)
            time.sleep(rng.uniform(0, 3))
        saved = saved_steps(str(log_dir), 'model') if log_dir.exists() else []
        assert not saved or saved[-1] >= reached    # nothing is lost that was saved
        reached = saved[-1] if saved else 0
        if (log_dir / 'stats.json').exists():
            known = [entry['global_step'] for entry in stats_of(log_dir)]
            assert known == list(range(1, len(known) + 1)) and reached <= len(known) <= reached + 1
    assert reached >= KILLS // 2
    epochs = reached + 3    # an end that is near
    train(*(run + ['--epochs', epochs]))
    stats = stats_of(log_dir)
    assert [entry['epoch_num'] for entry in stats] == list(range(1, epochs + 1)) and stats[-1]['global_step'] == epochs
    assert abs(stats[-1]['learning_rate'] / learning_rate(epochs - 1, 1, epochs, 0.1, 64) - 1) < 1e-4
    error = stats[-1]['val-error-top1']
    assert wrong(small, log_dir / 'ghostnet_checkpoint', tmp_path, '--width_ratio', 0.25) == round(error * VALIDATION)


# ------------------------------------------------------------------------------------------------- towers, seeds, fine-tuning

@pytest.mark.slow
def test_towers_average_the_gradient_of_the_whole_batch(sixteen, tmp_path):
    """The first momentum is the gradient. BN uses stored statistics here: its own of a batch are those of a tower's share, and
    differ by design. Few images, so that no activation is so close to zero that rounding changes its sign, which 64 can have."""
    train(*flags(sixteen, tmp_path / 'one', '--epochs', 1, *STILL))
    train(*flags(sixteen, tmp_path / 'two', '--epochs', 1, '--towers', 2, *STILL))
    one, two = variables(tmp_path / 'one' / 'model-1'), variables(tmp_path / 'two' / 'model-1')
    assert sorted(one) == sorted(two) and difference(one, two, '/Momentum') < 1e-4
    reported, (stats,) = stats_of(tmp_path / 'one')[0], stats_of(tmp_path / 'two')
    for name in ('cost', 'weight-decay', 'train-error-top1', 'train-error-top5'):    # of all towers
        assert stats[name] == pytest.approx(reported[name], rel=1e-4), name
    error = stats['val-error-top1']
    assert wrong(sixteen, tmp_path / 'two' / 'ghostnet_checkpoint', tmp_path) == round(error * VALIDATION)
    before = variables(DIGITS_CHECKPOINT)
    frozen = [name for name in before if re.search('/(gamma|beta|EMA)$', name)]
    assert len(frozen) > 300 and all(np.array_equal(before[name], two[name]) for name in frozen)
    assert not np.array_equal(before['MobileNetV2/Conv2d_0/W'], two['MobileNetV2/Conv2d_0/W'])


@pytest.mark.rare    # test_two_runs_in_one_process has the same seed twice
@pytest.mark.once
@pytest.mark.slow
def test_seed_fixes_weights_order_and_augmentation(small, tmp_path):
    for name, seed in (('one', 3), ('again', 3), ('other', 4)):
        train(*flags(small, tmp_path / name, '--batch', 64, '--epochs', 1, '--seed', seed))
    one, again, other = (variables(tmp_path / name / 'model-1') for name in ('one', 'again', 'other'))
    # The means of every layer follow from weights and images. (Gradients of a random network amplify the rounding of threads.)
    assert difference(one, again, '/mean/EMA') < 1e-4
    assert difference(one, other, '/mean/EMA') > 0.1


def test_fine_tuning_learns_other_classes(digits, tmp_path):
    """From the ten digits to four of them: all but the last layer is taken over, so that a few steps suffice."""
    tree, log_dir = cut(digits, tmp_path / 'tree', 96, 40, 4), tmp_path / 'log'
    run = flags(tree, log_dir, '--width_ratio', 1, '--epochs', 4, '--lr', 0.4, '--load',
                DIGITS_CHECKPOINT)
    assert '--finetune' in refused_in_training(*run)
    out = train(*(run + ['--finetune']))
    left_out = re.findall('Not taken from .*: (.*)', out)
    assert left_out == ['MobileNetV2/Logits/Conv2d_1c_1x1/W', 'MobileNetV2/Logits/Conv2d_1c_1x1/b']
    assert stats_of(log_dir)[-1]['val-error-top1'] < 0.3    # chance: 0.75
    assert variables(log_dir / 'ghostnet_checkpoint')[left_out[1]].shape == (4,)


@pytest.mark.once
@pytest.mark.slow
def test_a_variant_is_trained_on_and_resumed(small, tmp_path):
    """From a checkpoint that records it, and has no head, through all that a run saves."""
    log_dir, load = tmp_path / 'log', random_checkpoint(tmp_path / 'checkpoint', lacking='Conv2d_18/|Logits/', variant='pytorch',
                                                        width=0.25)
    run = flags(small, log_dir, '--load', load)
    assert 'has no classifier' in refused_in_training(*run)
    run.append('--finetune')
    out = train(*(run + ['--epochs', 2]))
    assert re.findall('Not in .*, and trained from the start: (.*)', out) == ['Logits', 'Conv2d_18'] and 'Not taken' not in out
    for name in ('model-8', 'best-*.index', 'ghostnet_checkpoint'):
        path = str(next(log_dir.glob(name + '*')))
        assert CheckpointRestore(path).variant == 'pytorch'
    status, out, err = run_main('--eval', '--data_dir', small, '--load', log_dir / 'ghostnet_checkpoint', '--width_ratio', 0.25)
    assert status == 0, err
    assert "variant" in refused_in_training(*(flags(small, log_dir, '--variant', 'published', '--epochs', 2, '--resume')))


# --------------------------------------------------------------------------------------------------------------- mistakes

def refused_in_training(*args):
    """Runs main.py --train on bad input: exit status 2, no traceback; returns the last line on stderr, behind Tensorpack's."""
    status, _, err = run_main(*args)
    last = err.splitlines()[-1]
    assert status == 2 and last.startswith('main.py: ') and 'Traceback' not in err, (status, err[-2000:])
    return last


def test_loss_that_is_not_finite_names_the_step(small, tmp_path):
    last = refused_in_training(*flags(small, tmp_path / 'log', '--epochs', 5, '--lr', 2e9))
    step, epoch = map(int, re.search(r'not finite at step (\d+), in epoch (\d+)', last).groups())
    assert 1 <= step <= 3 * STEPS and epoch == (step - 1) // STEPS + 1
    assert not (tmp_path / 'log' / 'ghostnet_checkpoint.index').exists()
    assert all(saved < step for saved in saved_steps(str(tmp_path / 'log'), 'model'))


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('name', ['train', 'val'])
def test_an_image_that_cannot_be_read_ends_the_training(digits, tmp_path, name):
    """Tensorpack's thread alone would let it seem to end well."""
    tree = cut(digits, tmp_path / 'tree', 64, VALIDATION)
    image = (tree / 'caffe_ilsvrc12' / (name + '.txt')).read_text().splitlines()[35].split()[0]
    (tree / name / image).write_bytes(b'no image')
    assert image in refused_in_training(*flags(tree, tmp_path / 'log', '--epochs', 3))
    assert not (tmp_path / 'log' / 'ghostnet_checkpoint.index').exists()


@pytest.mark.parametrize('more, message', [
    (['--batch', 65], '--batch 65 is more than the 64 training images'),
    (['--towers', 3], '--batch 16 cannot be split evenly among 3 towers'),
    (['--load', 'nothing'], 'no checkpoint nothing'),
    (['--trainer', 'horovod'], 'Horovod'),
])
def test_what_cannot_be_trained_is_told_before(small, tmp_path, more, message):
    if '--trainer' in more:
        try:
            import horovod.tensorflow  # noqa: F401
            pytest.skip("Horovod is installed here: test_horovod.py")
        except ImportError:
            pass
    assert message in refused_in_training(*flags(small, tmp_path / 'log', *more))


@pytest.mark.once
@pytest.mark.slow
def test_full_disk_keeps_the_checkpoints_that_are_whole(small, tmp_path):
    """A file system of 12 MB, on which two checkpoints of the narrow network do not fit."""
    with small_disk(tmp_path / 'log', '12m') as log_dir:
        last = refused_in_training(*flags(small, log_dir, '--epochs', 9))
        assert 'cannot write the checkpoint' in last and 'make room' in last
        for step in saved_steps(str(log_dir), 'model'):
            variables(log_dir / ('model-%d' % step))
