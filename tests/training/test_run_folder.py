"""The folder of a run: from where an interrupted one continues, and what is refused."""
import contextlib
import json
import os

from tf_compat import tf

import numpy as np
import pytest

from checkpoints import save_checkpoint
from command_line import InputError
from recipe import Schedule, learning_rate
from runs import stats_of, variables
from training.run_folder import locked, open_run, saved_steps

OPTIONS = {'--batch': 16, '--epochs': 3, '--lr': 0.1, 'number of training images': 64}


@pytest.fixture
def folder(tmp_path):
    """A run's folder as 3 epochs of 4 steps leave it, with two variables."""
    tmp_path = tmp_path / 'run.data'    # a name that a checkpoint's file could have
    tmp_path.mkdir()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable('a/W', initializer=np.arange(6, dtype='float32'))
        tf.get_variable('global_step', initializer=0)
        tf.get_variable('EMA/cost', initializer=0.0)    # of runs that reported moving averages, with Tensorpack 0.9.7
        session.run(tf.global_variables_initializer())
        for step in (4, 8, 12):
            save_checkpoint(session, tf.train.Saver(), str(tmp_path / ('model-%d' % step)))
        save_checkpoint(session, tf.train.Saver(), str(tmp_path / 'best-8'))
    (tmp_path / 'run.json').write_text(json.dumps(dict(OPTIONS, **{'--seed': 5})))
    (tmp_path / 'stats.json').write_text(json.dumps([
        {'epoch_num': e, 'global_step': 4 * e, 'val-error-top1': error} for e, error in ((1, 0.5), (2, 0.25), (3, 0.5))]))
    return tmp_path


def test_resumption_takes_the_newest_whole_checkpoint(folder):
    done, restore, seed = open_run(str(folder), OPTIONS, None, True)[:3]
    assert done == 12 and sorted(restore.values) == ['a/W', 'global_step'] and seed == 5
    # One without its index (the last file to appear) is none; a damaged one is passed over. What came after is forgotten.
    os.remove(str(folder / 'model-12.index'))
    data = folder / 'model-8.data-00000-of-00001'
    data.write_bytes(data.read_bytes()[:-1])
    (folder / 'unfinished-model-16.data-00000-of-00001').write_bytes(b'half')
    done, restore = open_run(str(folder), OPTIONS, 5, True)[:2]
    assert done == 4 and restore.path.endswith('model-4')
    assert [entry['epoch_num'] for entry in stats_of(folder)] == [1]
    assert saved_steps(str(folder), 'model') == [4] and saved_steps(str(folder), 'best') == [4]
    assert not (folder / 'unfinished-model-16.data-00000-of-00001').exists()
    assert (folder / 'damaged-model-8.index').exists() and (folder / 'damaged-best-8.index').exists()


def test_resumption_refuses_what_it_cannot_go_on_with(folder):
    for options, resume, message in [
            ((16, None), False, 'add --resume'), ((32, None), True, '--batch was 16'), ((16, 6), True, '--seed was 5')]:
        with pytest.raises(InputError, match=message):
            open_run(str(folder), dict(OPTIONS, **{'--batch': options[0]}), options[1], resume)
    for size, message in (224, None), (160, '--image_size was 224 .* and is 160 now'):    # of a run that did not know others
        with pytest.raises(InputError, match=message) if message else contextlib.ExitStack():
            open_run(str(folder), dict(OPTIONS, **{'--image_size': size}), None, True)
    (folder / 'run.json').write_text('no')
    with pytest.raises(InputError, match='run.json'):
        open_run(str(folder), OPTIONS, None, True)
    (folder / 'run.json').write_text(json.dumps(dict(OPTIONS, **{'--seed': 5})))
    for step in (4, 8, 12):
        (folder / ('model-%d.index' % step)).write_bytes(b'no index')
    with pytest.raises(InputError, match='none of the checkpoints'):
        open_run(str(folder), OPTIONS, None, True)
    assert saved_steps(str(folder), 'model') == [4, 8, 12]    # nothing is lost


def test_batch_epochs_and_learning_rate_may_be_changed_where_they_are_given(folder):
    def resumed(changeable, **options):
        options = dict(OPTIONS, **{'--' + name: value for name, value in options.items()})
        return open_run(str(folder), options, None, True, ['--' + name for name in changeable])

    with pytest.raises(InputError, match='--epochs was 3 .* and is 400 now'):    # the default of a flag that was forgotten
        resumed(['lr'], epochs=400)
    with pytest.raises(InputError, match='done 3 epochs, more than --epochs 2'):
        resumed(['epochs'], epochs=2)
    assert json.loads((folder / 'run.json').read_text())['--epochs'] == 3
    opened = resumed(['epochs', 'lr'], epochs=6, lr=0.2)
    assert opened[0] == 12 and opened.began == (0, 0) and opened.changed == {'--epochs': 3, '--lr': 0.1}
    opened = resumed(['batch', 'epochs', 'lr'], batch=32, epochs=6, lr=0.2)
    assert opened.began == (12, 3) and opened.changed == {'--batch': 16}
    schedule = Schedule(64, 32, 0.2, 6, opened.began)
    assert schedule.last == 12 + 3 * 2 and schedule.epochs_done(12) == 3 and schedule.epochs_done(17) == 5
    assert schedule.learning_rate(12) == learning_rate(3 * 2, 2, 6, 0.2, 32)
    assert resumed([], batch=32, epochs=6, lr=0.2).began == (12, 3)    # and that is how it goes on
    os.remove(str(folder / 'model-12.index'))    # from a checkpoint of the time before
    assert resumed([], batch=32, epochs=6, lr=0.2).began == (8, 2)


def test_resumption_makes_up_for_a_kill_between_a_checkpoint_and_its_being_the_best(folder):
    os.remove(str(folder / 'best-8.index'))
    stats = stats_of(folder)
    stats[2]['val-error-top1'] = 0.125
    (folder / 'stats.json').write_text(json.dumps(stats))
    assert open_run(str(folder), OPTIONS, 5, True)[0] == 12
    assert saved_steps(str(folder), 'best') == [12] and list(variables(folder / 'best-12')) == ['a/W']


def test_results_without_a_checkpoint_are_not_overwritten(folder):
    for step in (4, 8, 12):
        os.remove(str(folder / ('model-%d.index' % step)))
    for resume in (False, True):
        with pytest.raises(InputError, match='name another folder'):
            open_run(str(folder), OPTIONS, 5, resume)
    assert saved_steps(str(folder), 'best') == [8] and len(stats_of(folder)) == 3


def test_a_folder_with_other_files_keeps_them(tmp_path):
    for name in ('notes.tmp', 'unfinished-model-1.txt', 'model-1.txt'):
        (tmp_path / name).write_text('mine')
    open_run(str(tmp_path), OPTIONS, 1, False)
    assert sorted(os.listdir(str(tmp_path))) == ['model-1.txt', 'notes.tmp', 'run.json', 'unfinished-model-1.txt']
    os.remove(str(tmp_path / 'run.json'))
    for content in ('[]', 'no'):
        (tmp_path / 'stats.json').write_text(content)
        with pytest.raises(InputError, match='name another folder'):
            open_run(str(tmp_path), OPTIONS, 1, True)


def test_a_best_that_is_lost_is_taken_from_what_is_left(folder):
    """The best so far, epoch 2, lies in a checkpoint that a former best could not be made up from."""
    for name in ('best-8.index', 'best-8.data-00000-of-00001'):
        os.remove(str(folder / name))
    assert open_run(str(folder), OPTIONS, 5, True)[0] == 12
    assert saved_steps(str(folder), 'best') == [8]


def test_resumption_from_nothing_is_a_start(tmp_path):
    done, restore, seed = open_run(str(tmp_path), OPTIONS, None, True)[:3]
    assert (done, restore) == (0, None)
    assert 0 <= seed < 2 ** 31 and json.loads((tmp_path / 'run.json').read_text()) == dict(
        OPTIONS, **{'--seed': seed, 'batches': [[0, 0, 16]]})




def test_one_process_at_a_time(tmp_path):
    with locked(str(tmp_path / 'run')):
        with pytest.raises(InputError, match='another process is training'):
            with locked(str(tmp_path / 'run')):
                pass
    with locked(str(tmp_path / 'run')):    # free again
        pass
