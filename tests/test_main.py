"""main.py as a user runs it: real checkpoints, real images, real mistakes."""
import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from conftest import ROOT, evaluated, random_checkpoint, refused, run_main, without
from tf_compat import TENSORFLOW_VERSION


def evaluate(data_dir, checkpoint, tmp_path, *flags):
    """Runs --eval; returns its stdout, the JSON file and the saved logits."""
    out, result = evaluated(data_dir, checkpoint, tmp_path / 'result.json', '--save_logits', tmp_path / 'logits.npz', *flags)
    return out, result, np.load(str(tmp_path / 'logits.npz'))


def link_tree(mini, root):
    """A tree like the mini one whose files may be changed."""
    shutil.copytree(os.path.join(mini, 'caffe_ilsvrc12'), str(root / 'caffe_ilsvrc12'))
    os.makedirs(str(root / 'val'))
    for folder, _, files in os.walk(os.path.join(mini, 'val')):
        for name in files:
            os.symlink(os.path.join(folder, name), str(root / 'val' / name))
    return str(root)


def shorten(tree, lines):
    """Keeps the first `lines` lines of a tree's val.txt; returns them."""
    path = os.path.join(tree, 'caffe_ilsvrc12', 'val.txt')
    kept = open(path).read().splitlines()[:lines]
    os.chmod(path, 0o644)
    with open(path, 'w') as f:
        f.write('\n'.join(kept) + '\n')
    return kept


def test_calibrated_checkpoint_counts_as_recorded(mini, calibrated, tmp_path):
    out, result, saved = evaluate(mini, calibrated, tmp_path)
    assert 'Top1 Error: 0.726667\n' in out and 'Top5 Error: 0.436667\n' in out and '300 images' in out and 'images/s' in out
    assert (result['images'], result['wrong_top1'], result['wrong_top5']) == (300, 218, 131)
    assert (result['top1_error'], result['top5_error']) == (218 / 300, 131 / 300)
    assert abs(result['images_per_second'] * result['seconds'] - 300) < 1e-6
    assert result['python'] == '%d.%d.%d' % sys.version_info[:3] and {'tensorflow', 'tensorpack', 'opencv'} <= set(result)
    recorded = np.load(os.path.join(os.path.dirname(calibrated), 'logits_val.npz'))['logits']
    assert saved['logits'].dtype == np.float32
    assert np.linalg.norm(saved['logits'] - recorded) / np.linalg.norm(recorded) < 1e-5
    lines = [line.split() for line in open(os.path.join(mini, 'caffe_ilsvrc12', 'val.txt'))]
    assert saved['files'].tolist() == [name for name, _ in lines]
    assert saved['labels'].tolist() == [int(label) for _, label in lines]


@pytest.mark.slow
@pytest.mark.parametrize('batch', [1, 7, 300])
def test_neither_batch_nor_layout_of_val_changes_the_counts(mini, calibrated, tmp_path, batch):
    tree = link_tree(mini, tmp_path / 'flat')
    _, result, _ = evaluate(tree, calibrated + '.index', tmp_path, '--eval_batch', batch)
    assert (result['images'], result['wrong_top1'], result['wrong_top5']) == (300, 218, 131)


def test_digits_come_along(digits, tmp_path):
    """The embedded default gives the counts of models/digits.json, and models/README.md says so, on every stack."""
    _, result, _ = evaluate(digits, os.path.join(ROOT, 'models', 'digits_checkpoint'), tmp_path)
    with open(os.path.join(ROOT, 'models', 'digits.json')) as f:
        expected = json.load(f)['expected']
    assert {name: result[name] for name in expected} == expected and expected['top1_error'] < 0.02
    with open(os.path.join(ROOT, 'models', 'README.md')) as f:
        assert '%(wrong_top1)d wrong by top-1 and %(wrong_top5)d by top-5 of %(images)d\n' % expected in f.read()


@pytest.mark.slow
def test_eval_without_other_flags_takes_the_digits(tmp_path):
    """On a copy of the sources: first without the prepared digits, then with them, cut to a few for speed."""
    for name in os.listdir(ROOT):
        if name.endswith('.py'):
            shutil.copy(os.path.join(ROOT, name), str(tmp_path))
    shutil.copytree(os.path.join(ROOT, 'models'), str(tmp_path / 'models'))
    os.makedirs(str(tmp_path / 'data' / 'digits'))
    shutil.copy(os.path.join(ROOT, 'data', 'digits', 'prepare.py'), str(tmp_path / 'data' / 'digits'))

    def run(*args):
        run = subprocess.run([sys.executable] + list(args), cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             universal_newlines=True)
        return run.returncode, run.stdout, run.stderr

    status, out, err = run('main.py', '--eval')
    assert status == 2 and out == '' and 'prepare.py' in err and err.count('\n') == 1
    assert run('data/digits/prepare.py')[0] == 0
    shorten(str(tmp_path / 'data' / 'digits'), 20)
    status, out, err = run('main.py', '--eval')
    assert status == 0 and '20 images' in out, err


@pytest.mark.slow
@pytest.mark.parametrize('width, multiply_adds, parameters, paper', [
    (1, '141.2 M', '5,183,016', '141 M 5.2 M'), (0.5, '42.3 M', '2,588,232', '42 M 2.6 M'),
    (1.3, '227.0 M', '7,352,622', '226 M 7.3 M')])
def test_flops(width, multiply_adds, parameters, paper):
    status, out, err = run_main('--flops', '1', '--width_ratio', width)
    assert status == 0, err
    lines = [' '.join(line.split()) for line in out.splitlines()]
    assert 'total %s %s' % (multiply_adds, parameters) in lines
    assert 'paper, width %g %s' % (width, paper) in lines
    assert 'Conv2d_16' in out and 'Logits' in out


def test_predict_tells_what_is_in_pictures_and_folders(mini, calibrated, tmp_path):
    """The same probabilities as from the logits of --eval, most probable first, with the words of the tree."""
    listed = [line.split()[0] for line in open(os.path.join(mini, 'caffe_ilsvrc12', 'val.txt'))]
    found = {name: os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(mini, 'val')) for name in names}
    folder = tmp_path / 'folder'
    (folder / 'deeper').mkdir(parents=True)
    shutil.copy(found[listed[7]], str(folder / 'deeper' / 'b.JPEG'))
    shutil.copy(found[listed[3]], str(folder / 'a.jpg'))
    cv2.imwrite(str(folder / 'c.png'), cv2.imread(found[listed[5]]))
    (folder / 'notes.txt').write_text('no picture')
    status, out, err = run_main('--predict', found[listed[0]], folder, '--load', calibrated, '--data_dir', mini, '--topk', 3,
                                '--json', tmp_path / 'result.json')
    assert status == 0, err
    result = json.loads((tmp_path / 'result.json').read_text())
    assert [entry['file'] for entry in result] == [found[listed[0]]] + [str(folder / n) for n in ('a.jpg', 'c.png', 'deeper/b.JPEG')]
    logits = np.load(os.path.join(os.path.dirname(calibrated), 'logits_val.npz'))['logits'].astype(np.float64)
    synsets = [line.strip() for line in open(os.path.join(mini, 'caffe_ilsvrc12', 'synsets.txt'))]
    words = dict(line.strip().split(None, 1) for line in open(os.path.join(mini, 'caffe_ilsvrc12', 'synset_words.txt')))
    lines = out.splitlines()[2:]
    assert len(lines) == 3 * 4
    for i, (entry, index) in enumerate(zip(result, (0, 3, 5, 7))):
        probabilities = np.exp(logits[index] - logits[index].max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities)[:3]
        assert [c['label'] for c in entry['classes']] == best.tolist()
        assert np.allclose([c['probability'] for c in entry['classes']], probabilities[best], rtol=1e-3)
        assert [(c['synset'], c['words']) for c in entry['classes']] == [(synsets[k], words[synsets[k]]) for k in best]
        for line, c in zip(lines[3 * i:], entry['classes']):
            assert line.split()[-len(c['words'].split()):] == c['words'].split() and '%.4f' % c['probability'] in line
        assert lines[3 * i].startswith(entry['file'])


def test_predict_takes_the_digits_and_says_what_is_no_picture(digits, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.png').write_text('no picture')
    load = ['--load', os.path.join(ROOT, 'models', 'digits_checkpoint')]
    assert 'has no picture' in refused('--predict', tmp_path / 'empty', *load)
    assert 'there is no picture' in refused('--predict', tmp_path / 'missing.jpg', *load)
    assert 'text.png is not an image' in refused('--predict', tmp_path / 'text.png', *load)
    picture, label = open(os.path.join(digits, 'caffe_ilsvrc12', 'val.txt')).readline().split()
    path = [os.path.join(folder, picture) for folder, _, names in os.walk(os.path.join(digits, 'val')) if picture in names][0]
    status, out, err = run_main('--predict', path, '--topk', 1, *load)    # without a tree, the labels alone
    assert status == 0, err
    assert out.split() == ['picture', 'probability', 'label'] + out.split()[3:6] + [path, out.split()[7], label]


def test_a_variant_need_not_be_named(digits, tmp_path):
    load = ['--load', random_checkpoint(tmp_path / 'checkpoint', variant='imgclsmob', width=0.25, num_classes=10)]
    flags = ['--eval', '--data_dir', digits, '--width_ratio', 0.25] + load
    status, out, err = run_main(*flags)
    assert status == 0 and '360 images' in out, err
    assert "one of the variant 'imgclsmob': leave --variant out" in refused('--variant', 'pytorch', *flags)


@pytest.mark.parametrize('flags, message', [
    ([], 'nothing to do'),
    (['--eval', '--train'], 'exclude each other'),
    (['--eval', '--predict', 'x.png'], 'exclude each other'),
    (['--predict'], '--predict: expected at least one argument'),
    (['--predict', 'x.png', '--topk', '0'], "--topk: '0'"),
    (['--predict', 'x.png', '--save_logits', 'x.npz'], '--save_logits goes with --eval'),
    (['--eval', '--variant', 'theirs'], '--variant'),
    (['--eval', '--load', 'models/digits_checkpoint'], '--data_dir is missing'),
    (['--train'], '--data_dir is missing'),
    (['--train', '--data_dir', '.', '--finetune'], '--finetune needs --load'),
    (['--train', '--data_dir', '.', '--freeze_bn'], '--freeze_bn needs --load'),
    (['--train', '--data_dir', '.', '--towers', '2', '--gpu', '0'], 'leave out --gpu'),
    (['--train', '--data_dir', '.', '--towers', '2', '--trainer', 'horovod'], 'leave out --trainer horovod'),
    (['--train', '--data_dir', '.', '--towers', '0'], "--towers: '0'"),
    (['--lr_schedule', '--epochs', '0'], '--epochs'),
    (['--flops', '2'], '--flops'),
    (['--eval', '--width_ratio', '0'], "--width_ratio: '0'"),
    (['--eval', '--width_ratio', 'nan'], "--width_ratio: 'nan'"),
    (['--eval', '--width_ratio', 'wide'], "--width_ratio: 'wide'"),
    (['--eval', '--dw_code_str', '3,three,3'], "--dw_code_str: 'three'"),
    (['--eval', '--dw_code_str', '3,,3'], '--dw_code_str'),
    (['--eval', '--dw_code_str', '3,100000000000000000000'], '--dw_code_str'),
    (['--eval', '--batch', '1' + '0' * 400], '--batch'),
    (['--eval', '--json', 'x.json', '--save_logits', './x.json'], 'the same file'),
    (['--eval', '--ratio_code_str', '2,0'], "--ratio_code_str: '0'"),
    (['--eval', '--eval_batch', '0'], "--eval_batch: '0'"),
    (['--eval', '--jobs', '100000'], "--jobs: '100000'"),
    (['--eval', '--batch', '-1'], "--batch: '-1'"),
    (['--eval', '--se', '-1'], '--se'),
    (['--eval', '--dropout_keep_prob', '0'], '--dropout_keep_prob'),
    (['--eval', '--label_smoothing', '1'], '--label_smoothing'),
    (['--eval', '--lr', 'inf'], '--lr'),
    (['--eval', '--weight_decay', '-1'], '--weight_decay'),
    (['--eval', '--epochs', '1.5'], '--epochs'),
    (['--eval', '--data-format', 'NWHC'], '--data-format'),
    (['--eval', '--gpu', 'first'], '--gpu'),
    (['--flops', '1', '--json', 'result.json'], '--json'),
    (['--evaluate'], '--evaluate'),
])
def test_impossible_flags(flags, message):
    assert message in refused(*flags)


@pytest.mark.slow
def test_trees_that_cannot_be_used(mini, calibrated, tmp_path):
    assert 'nowhere' in refused('--eval', '--data_dir', tmp_path / 'nowhere', '--load', calibrated)
    tree = link_tree(mini, tmp_path / 'tree')
    names = [line.split()[0] for line in shorten(tree, 40)]
    # The 31st image is cut; then it is a text, then gone. The --json of an evaluation that failed is not written.
    broken = os.path.join(tree, 'val', names[30])
    data = open(broken, 'rb').read()
    os.remove(broken)
    bmp = cv2.imencode('.bmp', np.zeros((300, 300, 3), np.uint8))[1].tobytes()
    for content, message in [(data[:len(data) // 2], 'truncated'), (bmp[:len(bmp) // 2], 'broken'), (b'no image', 'not an image')]:
        with open(broken, 'wb') as f:
            f.write(content)
        err = refused('--eval', '--data_dir', tree, '--load', calibrated, '--json', tmp_path / 'result.json')
        assert message in err and names[30] in err
    os.remove(broken)
    assert names[30] in refused('--eval', '--data_dir', tree, '--load', calibrated, '--save_logits', tmp_path / 'logits.npz')
    assert sorted(os.listdir(str(tmp_path))) == ['tree']


def test_checkpoints_that_cannot_be_used(mini, calibrated, tmp_path):
    flags = ['--eval', '--data_dir', mini]
    assert 'no checkpoint' in refused(*(flags + ['--load', tmp_path / 'nothing']))
    for suffix in ('.index', '.data-00000-of-00001'):
        shutil.copy(calibrated + suffix, str(tmp_path / ('ghostnet_checkpoint' + suffix)))
    copy = tmp_path / 'ghostnet_checkpoint'
    data = tmp_path / 'ghostnet_checkpoint.data-00000-of-00001'
    data.chmod(0o644)
    whole = data.read_bytes()
    data.write_bytes(whole[:10000000] + bytes([whole[10000000] ^ 1]) + whole[10000001:])
    assert 'cannot be read at MobileNetV2/' in refused(*(flags + ['--load', copy]))
    data.write_bytes(whole[:-1000])
    assert 'cannot be read at MobileNetV2/' in refused(*(flags + ['--load', copy]))


@pytest.mark.slow
@pytest.mark.parametrize('flags, made_with', [
    (['--width_ratio', '0.5'], '--width_ratio 1\n'),
    (['--se', '0'], '--se 3\n'),
    (['--dw_code_str', ','.join(['5'] * 19)], '--dw_code_str ' + ','.join(['3'] * 19) + '\n'),
    (['--ratio_code_str', ','.join(['4'] * 19)], '--ratio_code_str ' + ','.join(['2'] * 19) + '\n'),
])
def test_checkpoint_of_another_network(mini, calibrated, flags, made_with):
    err = refused('--eval', '--data_dir', mini, '--load', calibrated, *flags)
    assert 'does not fit the model' in err and 'in the checkpoint' in err and err.endswith('it was made with ' + made_with)


@pytest.mark.slow
def test_checkpoint_of_another_number_of_classes(digits, calibrated):
    err = refused('--eval', '--data_dir', digits, '--load', calibrated)
    assert 'Conv2d_1c_1x1/W is (1, 1, 1280, 1000) in the checkpoint, (1, 1, 1280, 10) in the model' in err
    assert '--data_dir of a tree with 1000 classes, this one has 10' in err


@pytest.mark.slow
def test_results_that_cannot_be_written(mini, calibrated, tmp_path):
    for path in (tmp_path / 'no' / 'file', '', '/dev/null', tmp_path):
        assert 'cannot write' in refused('--eval', '--data_dir', mini, '--load', calibrated, '--json', path)


@pytest.mark.parametrize('package, version, message', [
    ('tensorflow', '1.4.0', 'TensorFlow 1.4.0 is not supported: use TensorFlow 1.13'),
    ('tensorflow', '2.3.0', 'TensorFlow 2.3.0 is not supported'),
    ('tensorflow', None, "the package 'tensorflow' is missing: install"),
    ('cv2', 'broken', "cannot be imported (libGL.so.1: cannot open)"),
    ('tensorpack', None, "the package 'tensorpack' is missing: install"),
])
def test_unsupported_or_missing_packages(tmp_path, package, version, message):
    env = without(package, tmp_path)
    if version:
        source = "raise ImportError('no\\nlibGL.so.1: cannot open', name='cv2')" if version == 'broken' else "__version__ = '%s'" % version
        (tmp_path / package / '__init__.py').write_text(source + '\n')
    assert message in refused('--eval', '--data_dir', '.', '--load', 'x', env=env)


def test_help_needs_no_tensorflow():
    code = "import sys; sys.argv = ['main.py', '--help']; import main\ntry: main.parse_args()\nexcept SystemExit: pass\n" \
           "assert not {'tensorflow', 'numpy', 'cv2', 'tensorpack'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_python_that_is_too_old_is_told_so():
    found = None
    for name in ('python2.7', os.path.expanduser('~/.pyenv/versions/2.7.18/bin/python2.7')):
        try:
            run = subprocess.run([name, os.path.join(ROOT, 'main.py'), '--eval'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError:
            continue
        found = found or (run if b'main.py' in run.stderr else None)    # a pyenv shim may have no Python behind it
    if found is None:
        pytest.skip("needs a Python 2.7")
    assert found.returncode == 2 and b'is not supported: use CPython 3.6' in found.stderr and found.stderr.count(b'\n') == 1


@pytest.mark.slow
def test_nchw_gives_the_same_or_says_why_not(mini, calibrated, tmp_path):
    """oneDNN builds (TensorFlow 2) compute channels first on a CPU, TensorFlow 1.13.1's Eigen kernels do not."""
    tree = link_tree(mini, tmp_path / 'tree')
    shorten(tree, 30)
    flags = ['--eval', '--data_dir', tree, '--load', calibrated, '--json', tmp_path / 'result.json', '--data-format']
    assert run_main(*(flags + ['NHWC']))[0] == 0
    nhwc = json.loads((tmp_path / 'result.json').read_text())
    status, _, err = run_main(*(flags + ['NCHW']))
    if not TENSORFLOW_VERSION.startswith('1.'):
        assert status == 0, err
        nchw = json.loads((tmp_path / 'result.json').read_text())
        assert (nchw['wrong_top1'], nchw['wrong_top5']) == (nhwc['wrong_top1'], nhwc['wrong_top5'])
    else:
        assert status == 2 and '--data-format NHWC' in err and err.count('\n') == 1
