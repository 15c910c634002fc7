"""Weights of other libraries against those libraries: their own models, with random weights and BN statistics."""
import argparse
import importlib.util
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile

import cv2
import numpy as np
import pytest

from augmentation import eval_images
from checkpoints import CheckpointRestore
from conftest import DIGITS_CHECKPOINT, ROOT, rare, refused, run_main, small_disk

for _package in ('torch', 'timm', 'pytorchcv', 'safetensors'):
    if importlib.util.find_spec(_package) is None:
        pytest.skip("needs %s: make test-interop" % _package, allow_module_level=True)
IMPORT = {'script': ['-m', 'tools.import_weights']}
TF1_PYTHON = os.environ.get('GHOSTNET_TF1_PYTHON', os.path.join(ROOT, '.venv-tf1', 'bin', 'python'))


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """Three pictures of coloured noise, and their preprocessed pixels."""
    root = tmp_path_factory.mktemp('noise')
    for folder in ('val', 'caffe_ilsvrc12'):
        (root / folder).mkdir()
    (root / 'caffe_ilsvrc12' / 'synsets.txt').write_text(''.join('n%08d\n' % i for i in range(1000)))
    (root / 'caffe_ilsvrc12' / 'val.txt').write_text(''.join('%d.png %d\n' % (i, i) for i in range(3)))
    rng = np.random.RandomState(0)
    for i in range(3):
        noise = cv2.resize(rng.randint(0, 256, (30 + 40 * i, 50, 3)).astype(np.uint8), (300, 280), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / 'val' / ('%d.png' % i)), noise)
    return root, eval_images([str(root / 'val' / ('%d.png' % i)) for i in range(3)])


def normalised(pictures):
    """What the libraries' networks take, RGB, of pixels in BGR."""
    scale, mean, std = [np.float32(values) for values in (1.0 / 255, [0.406, 0.456, 0.485], [0.225, 0.224, 0.229])]
    return ((pictures.astype(np.float32) * scale - mean) / std)[..., ::-1]


def their_models(*args):
    status, _, err = run_main(*args, script=[os.path.join(ROOT, 'tests', 'tools', 'their_models.py')])
    assert status == 0, err


@pytest.mark.parametrize('library, width, model', [
    rare('timm', 0.5, 'ghostnet_050'), rare('timm', 1.0, 'ghostnet_100'), ('timm', 1.3, 'ghostnet_130'),
    ('imgclsmob', 0.5, 'imgclsmob 0.5'), rare('imgclsmob', 1.0, 'imgclsmob 1.0'), rare('imgclsmob', 1.3, 'imgclsmob 1.3'),
    rare('iamhankai', 1.0, 'iamhankai 1.0'), rare('d-li14', 1.0, 'd-li14 1.0')])    # and of other widths below
def test_logits_are_those_of_the_library_on_both_stacks_and_the_way_back_is_exact(library, width, model, tree, tmp_path):
    root, pictures = tree
    theirs = tmp_path / ('theirs.safetensors' if model == 'ghostnet_130' else 'theirs.pth')
    np.save(str(tmp_path / 'images.npy'), normalised(pictures))
    their_models('make', model, int(10 * width), theirs, tmp_path / 'images.npy', tmp_path / 'theirs.npy')
    expected = np.load(str(tmp_path / 'theirs.npy'))

    status, out, err = run_main(theirs, tmp_path / 'ours', **IMPORT)    # which library it is of shows in the file
    assert status == 0, err
    assert "width %g, 1000 classes, variant '%s'" % (width, {'timm': 'pytorch'}.get(library, library)) in out
    command = out.splitlines()[-1].replace(' DIR ', ' %s ' % root).split()    # as the tool says
    assert command[:2] == ['python', 'main.py']
    assert os.path.exists(TF1_PYTHON), "needs %s: make .venv-tf1/installed" % TF1_PYTHON
    for python in (sys.executable, TF1_PYTHON):
        status, _, err = run_main(*(command[2:] + ['--save_logits', tmp_path / 'logits.npz']), python=python)
        assert status == 0, err
        logits = np.load(str(tmp_path / 'logits.npz'))['logits']
        error = (np.abs(logits - expected).max(1) / np.abs(expected).max(1)).max()
        print('%s, width %g, %s: relative error %.1e' % (library, width, python, error))
        assert error <= 1e-5

    for to, name in [(library, 'back.pth')] + [('pytorch', 'back.safetensors')] * (library == 'timm'):
        status, _, err = run_main('--to', to, tmp_path / 'ours', tmp_path / name, **IMPORT)
        assert status == 0, err
        their_models('same', model, theirs, tmp_path / name)


def test_training_wrappers_and_half_precision(tmp_path):
    """What training scripts save: a dict with the state in it, of a DataParallel model, in half precision, without BN's steps."""
    their_models('make', 'ghostnet_050', 0, tmp_path / 'theirs.pth')
    import torch
    state = {name: value.half() for name, value in torch.load(str(tmp_path / 'theirs.pth'), weights_only=True).items()
             if not name.endswith('num_batches_tracked')}
    # As timm's training script does: with its flags, the optimizer's tensors, a number of NumPy, and a moving average.
    wrapped = {'arch': 'ghostnet_050', 'args': argparse.Namespace(lr=0.1, hosts=['a']), 'metric': np.float64(73.9), 'epoch': 7,
               'optimizer': {'state': {0: {'exp_avg': torch.zeros(2)}}}, 'state_dict': with_prefix('module.', state),
               'state_dict_ema': {name: value.float() + 1 for name, value in state.items()}}
    torch.save(wrapped, str(tmp_path / 'training.pth.tar'))
    message = refused(tmp_path / 'training.pth.tar', tmp_path / 'ours', **IMPORT)
    assert "plain ones in 'state_dict.module' and their moving average in 'state_dict_ema': say which by --weights" in message
    status, out, err = run_main('--weights', 'plain', tmp_path / 'training.pth.tar', tmp_path / 'ours', **IMPORT)
    assert status == 0, err
    assert "training.pth.tar: a GhostNet of pytorch, in 'state_dict', names without 'module.'\n" in out
    assert "\n432 tensors were converted from float16 to float32\n" in out
    restore = CheckpointRestore(str(tmp_path / 'ours'))
    kernel = restore.values['MobileNetV2/Conv2d_1_up_pointwise/dw1/DW']
    theirs = state['blocks.0.0.ghost1.cheap_operation.0.weight'].float().numpy()
    assert restore.variant == 'pytorch' and np.array_equal(kernel[:, :, :, 0], theirs[:, 0].transpose(1, 2, 0))
    torch.save({name: value.float() for name, value in state.items()}, str(tmp_path / 'float.pth'))
    status, _, err = run_main('--to', 'pytorch', tmp_path / 'ours', tmp_path / 'back.pth', **IMPORT)
    assert status == 0, err
    their_models('same', 'ghostnet_050', tmp_path / 'float.pth', tmp_path / 'back.pth')


def with_prefix(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture
def imported(tmp_path, in_this_process, monkeypatch):
    """A function that gives the variables, the options and the printed lines that a state dict is imported as. None is saved."""
    import torch

    from tools import import_weights
    saved = []
    monkeypatch.setattr(import_weights, 'save', lambda values, out, options, variant, said: saved.append((values, options, said)))

    def import_state(state, weights=None):
        torch.save(state, str(tmp_path / 'theirs.pth'))
        import_weights.import_weights('auto', str(tmp_path / 'theirs.pth'), str(tmp_path / 'ours'), weights)
        return saved.pop()
    return import_state


def test_prefixes_wrappers_and_moving_averages(sound, imported):
    """What is saved of models that are wrapped, compiled, or part of another."""
    import torch

    from command_line import InputError
    state = torch.load(str(sound), weights_only=True)
    average = {name: value + 1 for name, value in state.items()}
    stem = state['bn1.bias'].numpy()

    def bias(*args):
        return imported(*args)[0]['MobileNetV2/Conv2d_0/bn/beta']
    for saved in [
            {'model_state_dict': with_prefix('_orig_mod.', state), 'best': {'top1': torch.tensor(0.7)}},
            {'net': {'ghost': with_prefix('_orig_mod.module.model.backbone.', state)}, 'ema': None},
            dict(with_prefix('module.', state), n_averaged=torch.tensor(5)), {'model_ema': state, 'optimizer': {'lr': 0.1}}]:
        assert np.array_equal(bias(saved), stem), list(saved)[0]
    for saved in [{'model': with_prefix('module.', state), 'model_ema': average},
                  {'model': state, 'ema': {'state_dict': average, 'decay': 0.999}},
                  dict(with_prefix('model.', state), **with_prefix('ema_model.module.', average)),
                  dict(state, **with_prefix('ema.', average))]:
        with pytest.raises(InputError, match='two sets of weights, plain ones in .* moving average in .*ema'):
            imported(saved)
        assert np.array_equal(bias(saved, 'plain'), stem) and np.array_equal(bias(saved, 'ema'), stem + 1)
    for saved, weights, message in [
            ({'student': state, 'teacher': average}, None, "has 2 networks, in 'student' and 'teacher': save"),
            (state, 'ema', "has no ema weights, only those in the file itself: leave --weights out"),
            (dict(with_prefix('backbone.', state), **{'heat.weight': torch.zeros(2)}), None,
             'differs in 1 tensors: heat.weight is .2,. there, absent'),
            (dict(with_prefix('module.', state), **{'module.bn1.bias': torch.zeros(9)}), None,
             'differs in 1 tensors: module.bn1.bias is .9,. there, .8,. in'),
            ({'model': {'layer1.0.conv1.weight': torch.zeros(2)}}, None, 'no GhostNet of .*: its tensors are called layer1.0.')]:
        with pytest.raises(InputError, match=message):
            imported(saved, weights)


def test_other_heads_and_none(sound, imported, tmp_path):
    import torch

    from checkpoints import Record, save_values
    from command_line import InputError
    state = torch.load(str(sound), weights_only=True)
    values, options, _ = imported(dict(state, **{'classifier.weight': torch.ones(7, 1280), 'classifier.bias': torch.zeros(7)}))
    assert values['MobileNetV2/Logits/Conv2d_1c_1x1/W'].shape == (1, 1, 1280, 7) and options == {'num_classes': 7, 'width': 0.5}
    for lacking in ('classifier', 'classifier|conv_head', 'classifier|conv_head|blocks.9'):
        backbone = {name: value for name, value in state.items() if not re.match(lacking, name)}
        values, options, _ = imported(backbone)
        assert len(values) == len(backbone) and options == {'width': 0.5}
    save_values(values, str(tmp_path / 'backbone'), Record('pytorch', None, None))
    status, _, err = run_main('--to', 'timm', tmp_path / 'backbone', tmp_path / 'back.pth', **IMPORT)
    assert status == 0 and set(torch.load(str(tmp_path / 'back.pth'))) == set(backbone), err
    for there, lacking, message in [(state, 'conv_head', 'conv_head.weight is absent there, .1280, 480, 1, 1. in the model; conv_'),
                                    (backbone, 'bn1.weight', 'differs in 1 tensors: bn1.weight is absent there')]:
        with pytest.raises(InputError, match=message):
            imported({name: value for name, value in there.items() if not name.startswith(lacking)})


def graph_logits(checkpoint, pictures):
    """The logits of a checkpoint for uint8 pictures, in this process."""
    from tf_compat import tf

    from tensorpack.tfutils.tower import PredictTowerContext

    from ghostnet import from_checkpoint
    with tf.Graph().as_default(), tf.Session() as session, PredictTowerContext(''):
        image, restore = tf.placeholder(tf.uint8, pictures.shape), CheckpointRestore(checkpoint)
        logits = from_checkpoint(restore).get_logits(image)
        restore.init(session)
        return session.run(logits, {image: pictures})


@pytest.mark.parametrize('width', [0.5, rare(1.3)])
def test_two_libraries_of_one_naming_are_told_by_a_shape(width, tree, tmp_path, in_this_process):
    from tools.import_weights import import_weights
    np.save(str(tmp_path / 'images.npy'), normalised(tree[1]))
    for library in ('iamhankai', 'd-li14'):
        model = '%s %g' % (library, width)
        their_models('make', model, 3, tmp_path / 'theirs.pth', tmp_path / 'images.npy', tmp_path / 'theirs.npy')
        import_weights('auto', str(tmp_path / 'theirs.pth'), str(tmp_path / 'ours'))
        assert CheckpointRestore(str(tmp_path / 'ours')).variant == library
        expected, logits = np.load(str(tmp_path / 'theirs.npy')), graph_logits(str(tmp_path / 'ours'), tree[1])
        error = (np.abs(logits - expected).max(1) / np.abs(expected).max(1)).max()
        print('%s: relative error %.1e' % (model, error))
        assert error <= 1e-5


# --------------------------------------------------------------------------------------------------------------- mistakes

class Code(object):
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def halve(path, source):
    data = open(str(source), 'rb').read()
    with open(str(path), 'wb') as f:
        f.write(data[:len(data) // 2])


@pytest.fixture
def in_this_process(monkeypatch):
    """Files are read here, without limits: a process for each would take two seconds."""
    from tools import import_weights, state_dict
    monkeypatch.setattr(state_dict, 'limit', lambda size: None)
    monkeypatch.setattr(import_weights, 'read_state', state_dict.tensors_in)


def test_files_that_are_no_weights_are_refused(tmp_path, in_this_process):
    their_models('make', 'resnet18', 0, tmp_path / 'resnet18.pth')
    their_models('make', 'ghostnetv2_100', 0, tmp_path / 'ghostnetv2.pth')
    import torch
    from safetensors.torch import save_file

    from command_line import InputError
    from tools.import_weights import import_weights
    planted = str(tmp_path / 'planted')
    torch.save({'conv_stem.weight': Code(planted)}, str(tmp_path / 'code.pth'))
    with open(str(tmp_path / 'pickle.pth'), 'wb') as f:
        pickle.dump(Code(planted), f)
    save_file(torch.load(str(tmp_path / 'ghostnetv2.pth')), str(tmp_path / 'ghostnetv2.safetensors'))
    halve(tmp_path / 'half.pth', tmp_path / 'resnet18.pth')
    halve(tmp_path / 'half.safetensors', tmp_path / 'ghostnetv2.safetensors')
    torch.save(torch.nn.Linear(2, 2), str(tmp_path / 'module.pth'))
    torch.save({'weight': torch.zeros(2), 'epoch': 3}, str(tmp_path / 'mixed.pth'))
    torch.save({}, str(tmp_path / 'nothing.pth'))
    torch.save({0: torch.zeros(2)}, str(tmp_path / 'numbered.pth'))
    torch.save({'classifier.weight': torch.tensor(1.0), 'blocks.9.0.conv.weight': torch.tensor(1.0)}, str(tmp_path / 'scalars.pth'))
    (tmp_path / 'empty.pth').write_text('')
    (tmp_path / 'text.pth').write_text('no weights\n')
    for name, messages in [
            ('code.pth', ['not executed']), ('pickle.pth', ['not executed']), ('module.pth', ['torch.nn.modules.linear.Linear']),
            ('resnet18.pth', ['is not a GhostNet of timm',
                              'conv_stem.weight is absent there, (16, 3, 3, 3) in the model; bn1.weight']),
            ('ghostnetv2.safetensors', ['is not a GhostNet of timm',
                                        'short_conv.0.weight is (72, 24, 1, 1) there, absent']),
            ('half.pth', ['truncated']), ('half.safetensors', ['truncated']), ('empty.pth', ['truncated']),
            ('text.pth', ['truncated']),
            ('numbered.pth', ['not a state dict']), ('scalars.pth', ['is not a GhostNet of timm']),
            ('mixed.pth', ['not a state dict']), ('nothing.pth', ['not a state dict']),
            ('missing.pth', ['there is no file'])]:
        with pytest.raises(InputError) as refusal:
            import_weights('timm', str(tmp_path / name), str(tmp_path / 'ours'))
        assert all(message in str(refusal.value) for message in messages) and '\n' not in str(refusal.value), name
    assert not os.path.exists(planted) and not os.path.exists(str(tmp_path / 'ours.index'))
    assert 'is truncated' in refused('--from', 'timm', tmp_path / 'half.pth', tmp_path / 'ours', **IMPORT)
    assert 'not executed' in refused('--from', 'pytorch', tmp_path / 'pickle.pth', tmp_path / 'ours', **IMPORT)
    assert not os.path.exists(planted)


def crafted_zip(path, source, member, content, compression=zipfile.ZIP_STORED):
    """A copy of what torch.save wrote, with another content of one member."""
    with zipfile.ZipFile(str(source)) as old, zipfile.ZipFile(str(path), 'w', compression) as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(member) else old.read(name))


def crafted_safetensors(path, header, data=b'', length=None):
    if not isinstance(header, bytes):
        header = {name: dict(zip(('dtype', 'shape', 'data_offsets'), values)) for name, values in header.items()}
        header = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(header) if length is None else length) + header + data)


def test_files_that_declare_more_than_they_have_are_refused(tmp_path, in_this_process):
    import torch

    from command_line import InputError
    from tools.import_weights import import_weights
    one, saved = torch.zeros(1), {}
    for name, tensor in [
            ('repeated', one.half().expand(10 ** 10)), ('flags', one.bool().expand(10 ** 10)),
            ('meta', torch.zeros(10 ** 10, device='meta')),
            ('sparse', torch.sparse_coo_tensor(torch.tensor([[0]]), one, (10 ** 12,))), ('dense', torch.zeros(4, 4).to_sparse()),
            ('complex', torch.zeros([1280, 1000], dtype=torch.complex64))]:
        saved[name] = {'w': tensor}
    saved.update(nested={'state_dict': {'state_dict': {'state_dict': {}}}}, views={str(i): one.expand(1000) for i in range(999)},
                 nul={'a\0b': one}, long={'a' * 10 ** 7: one}, escape={'a\x1b[31m': one}, many={str(i): one for i in range(20001)})
    for name, state in saved.items():
        torch.save(state, str(tmp_path / (name + '.pth')))
    crafted_zip(tmp_path / 'bomb.pth', tmp_path / 'dense.pth', 'data/0', bytes(1 << 28), zipfile.ZIP_DEFLATED)
    crafted_safetensors(tmp_path / 'header.safetensors', b'{}', length=1 << 62)
    crafted_safetensors(tmp_path / 'absurd.safetensors', {'w': ('F32', [1 << 40], [0, 1 << 42])})
    crafted_safetensors(tmp_path / 'overlap.safetensors', {'a': ('F32', [2], [0, 8]), 'b': ('F32', [2], [4, 12])}, bytes(12))
    crafted_safetensors(tmp_path / 'empty.safetensors', {'a': ('F32', [0, 1 << 62], [0, 0])})
    crafted_safetensors(tmp_path / 'nul.safetensors', {'a\0b': ('F32', [1], [0, 4])}, bytes(4))
    crafted_safetensors(tmp_path / 'many.safetensors', {'%06d' % i: ('F32', [0], [0, 0]) for i in range(20001)})
    for name, message in [
            ('repeated.pth', 'has tensors of 10000000000 numbers'), ('flags.pth', 'has tensors of 10000000000 numbers'),
            ('meta.pth', 'has tensors of 10000000000 numbers'), ('sparse.pth', 'has tensors of 1000000000000 numbers'),
            ('dense.pth', 'not dense numbers'), ('complex.pth', 'is not a GhostNet'), ('nested.pth', 'not a state dict'),
            ('views.pth', 'has tensors of 999000 numbers'), ('nul.pth', 'names are no text'), ('long.pth', 'names are no text'),
            ('escape.pth', 'names are no text'), ('many.pth', 'more than 20000'), ('bomb.pth', 'is compressed'),
            ('header.safetensors', 'truncated'), ('absurd.safetensors', 'truncated'), ('overlap.safetensors', 'invalid offset'),
            ('empty.safetensors', 'truncated'), ('nul.safetensors', 'names are no text'), ('many.safetensors', 'header is larger')]:
        with pytest.raises(InputError, match=message) as refusal:
            import_weights('timm', str(tmp_path / name), str(tmp_path / 'ours'))
        assert '\n' not in str(refusal.value) and '\x1b' not in str(refusal.value), name


@pytest.mark.parametrize('pickled', [
    b'\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.',
    b'\x80\x02}(' + b')' + b'\x85' * 1000000 + b'Nu.'],    # the hash of a tuple is that of what it has in it
    ids=['gigabytes', 'the stack'])    # pytest gives the id to each process that is started, and a megabyte does not fit
def test_pickles_that_break_the_process_which_reads_them(tmp_path, pickled):
    import torch
    torch.save({}, str(tmp_path / 'sound.pth'))
    crafted_zip(tmp_path / 'crafted.pth', tmp_path / 'sound.pth', 'data.pkl', pickled)
    assert 'crafted.pth is ' in refused('--from', 'timm', tmp_path / 'crafted.pth', tmp_path / 'ours', **IMPORT)
    assert not (tmp_path / 'ours.index').exists()


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp('sound') / 'theirs.pth'
    their_models('make', 'ghostnet_050', 0, path)
    return path


def test_weights_that_are_not_finite_are_refused(sound, tmp_path, in_this_process):
    import torch

    from command_line import InputError
    from tools.import_weights import import_weights
    for key, value, message in [
            ('bn1.weight', torch.full([8], float('nan')), 'has NaN or infinity in 1 of .* variables, such as bn1.weight'),
            ('bn1.bias', torch.zeros(8, dtype=torch.complex64), 'has in bn1.bias not floating-point numbers, but complex64')]:
        state = torch.load(str(sound), weights_only=True)
        assert state[key].shape == value.shape
        state[key] = value
        torch.save(state, str(tmp_path / 'changed.pth'))
        with pytest.raises(InputError, match=message):
            import_weights('timm', str(tmp_path / 'changed.pth'), str(tmp_path / 'ours'))
    assert os.listdir(str(tmp_path)) == ['changed.pth']


def test_bfloat16_of_safetensors(sound, tmp_path):
    import torch
    from safetensors.torch import save_file
    state = torch.load(str(sound), weights_only=True)
    save_file({name: value.bfloat16() for name, value in state.items()}, str(tmp_path / 'theirs.safetensors'))
    status, _, err = run_main('--from', 'timm', tmp_path / 'theirs.safetensors', tmp_path / 'ours', **IMPORT)
    assert status == 0, err
    ours = CheckpointRestore(str(tmp_path / 'ours')).values['MobileNetV2/Conv2d_0/bn/gamma']
    assert np.array_equal(ours, state['bn1.weight'].bfloat16().float().numpy())


def test_a_full_disk_leaves_nothing(sound, tmp_path):
    with small_disk(tmp_path / 'disk', '6m') as disk:
        assert 'disk/ours' in refused('--from', 'timm', sound, disk / 'ours', **IMPORT)
        assert os.listdir(str(disk)) == []


def test_stopped_while_a_file_is_read_it_leaves_nothing(tmp_path):
    """Neither files nor the process that reads."""
    import torch
    torch.save({}, str(tmp_path / 'sound.pth'))
    endless = b'\x80\x02}' + b'K\1K\1s' * (4 << 20) + b'.'    # some seconds long
    crafted_zip(tmp_path / 'endless.pth', tmp_path / 'sound.pth', 'data.pkl', endless)
    child = subprocess.Popen([sys.executable, '-m', 'tools.import_weights', '--from', 'timm', str(tmp_path / 'endless.pth'),
                              str(tmp_path / 'ours')], cwd=ROOT, stderr=subprocess.PIPE, universal_newlines=True)
    reader = []
    while not reader:
        time.sleep(0.1)
        assert child.poll() is None
        reader = subprocess.run(['pgrep', '-P', str(child.pid)], stdout=subprocess.PIPE).stdout.split()
    time.sleep(1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate()
    assert child.returncode == 143 and err == 'import_weights: stopped by SIGTERM\n'
    assert sorted(os.listdir(str(tmp_path))) == ['endless.pth', 'sound.pth'] and not os.path.exists('/proc/%d' % int(reader[0]))


def test_another_variant_is_refused(tmp_path):
    assert "the variant 'published', and timm has no such network" in refused(
        '--to', 'timm', DIGITS_CHECKPOINT, tmp_path / 'theirs.pth', **IMPORT)
