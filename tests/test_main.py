"""main.py as a user runs it: real checkpoints, real images, real mistakes."""
import json
import os
import shutil
import subprocess
import sys

from tf_compat import TENSORFLOW_VERSION

import cv2
import numpy as np
import pytest

from conftest import DIGITS_CHECKPOINT, ROOT, evaluated, random_checkpoint, refused, run_main, without
from dataset import read_list
from trees import link_tree, shorten


def test_digits_count_as_published(digits, evaluated_digits):
    """The embedded default gives the counts of models/digits.json, and models/README.md says so, on every stack."""
    out, result, saved = evaluated_digits
    assert 'Top1 Error: 0.0111111\n' in out and 'Top5 Error: 0\n' in out and '360 images' in out and 'images/s' in out
    with open(os.path.join(ROOT, 'models', 'digits.json')) as f:
        expected = json.load(f)['expected']
    assert {name: result[name] for name in expected} == expected and (result['wrong_top1'], result['wrong_top5']) == (4, 0)
    with open(os.path.join(ROOT, 'models', 'README.md')) as f:
        assert '%(wrong_top1)d wrong by top-1 and %(wrong_top5)d by top-5 of %(images)d\n' % expected in f.read()
    assert abs(result['images_per_second'] * result['seconds'] - 360) < 1e-6
    assert result['python'] == '%d.%d.%d' % sys.version_info[:3] and {'tensorflow', 'tensorpack', 'opencv'} <= set(result)
    files, labels = zip(*read_list(digits, 'val'))
    assert saved['logits'].dtype == np.float32
    assert saved['files'].tolist() == list(files) and saved['labels'].tolist() == list(labels)


def relative_error(path, expected):
    """Of the logits in a file, by those that are `expected`."""
    logits = np.load(str(path))['logits']
    return np.linalg.norm(logits - expected) / np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize('batch, images', [(1, 40), (360, 360)])
def test_neither_batch_nor_layout_of_val_changes_the_result(batch, images, digits, evaluated_digits, tmp_path):
    """With a folder for each synset, in place of one for all."""
    tree = link_tree(digits, tmp_path / 'folders', by_synset=True)
    shorten(tree, images)
    _, result = evaluated(tree, DIGITS_CHECKPOINT + '.index', tmp_path / 'json', '--eval_batch', batch, '--save_logits',
                          tmp_path / 'logits.npz')
    expected, labels = (evaluated_digits[2][name][:images] for name in ('logits', 'labels'))
    assert (result['images'], result['wrong_top1'], result['wrong_top5']) == (images, (expected.argmax(1) != labels).sum(), 0)
    assert relative_error(tmp_path / 'logits.npz', expected) < 1e-5


@pytest.mark.slow
def test_eval_without_other_flags_takes_the_digits(tmp_path):
    """On a copy of the sources: first without the prepared digits, then with them, cut to a few for speed."""
    for folder in ('', 'evaluation', 'models', os.path.join('data', 'digits')):
        os.makedirs(str(tmp_path / folder), exist_ok=True)
        for name in os.listdir(os.path.join(ROOT, folder)):
            if name.endswith('.py') or folder == 'models' and not name.startswith(('.', '_')):
                shutil.copy(os.path.join(ROOT, folder, name), str(tmp_path / folder))
    main = {'script': [str(tmp_path / 'main.py')], 'cwd': str(tmp_path)}
    assert 'prepare.py' in refused('--eval', **main)
    assert run_main(script=[str(tmp_path / 'data' / 'digits' / 'prepare.py')], cwd=str(tmp_path))[0] == 0
    shorten(str(tmp_path / 'data' / 'digits'), 20)
    status, out, err = run_main('--eval', **main)
    assert status == 0 and '20 images' in out, err


@pytest.mark.slow
@pytest.mark.parametrize('width, multiply_adds, parameters, paper, flags', [
    (1, '141.2 M', '5,183,016', '141 M 5.2 M', []), (0.5, '42.3 M', '2,588,232', '42 M 2.6 M', []),
    (1.3, '227.0 M', '7,352,622', '226 M 7.3 M', []), (1, '104.8 M', '5,183,016', None, ['--image_size', 192])])
def test_flops(width, multiply_adds, parameters, paper, flags):
    status, out, err = run_main('--flops', '1', '--width_ratio', width, *flags)
    assert status == 0, err
    lines = [' '.join(line.split()) for line in out.splitlines()]
    assert 'total %s %s' % (multiply_adds, parameters) in lines
    assert 'paper, width %g %s' % (width, paper) in lines if paper else 'paper' not in out
    assert ('images of 192 x 192 pixels' in lines) == (flags != [])
    assert 'Conv2d_16' in out and 'Logits' in out


def test_predict_prints_the_classes_of_pictures_and_folders(digits, evaluated_digits, tmp_path):
    """The same probabilities as from the logits of --eval, most probable first, with the words of the tree."""
    _, _, evaluation = evaluated_digits
    names = evaluation['files'].tolist()
    folder = tmp_path / 'folder'
    (folder / 'deeper').mkdir(parents=True)
    shutil.copy(os.path.join(digits, 'val', names[7]), str(folder / 'deeper' / 'b.JPEG'))
    shutil.copy(os.path.join(digits, 'val', names[3]), str(folder / 'a.dat'))
    cv2.imwrite(str(folder / 'c.bmp'), cv2.imread(os.path.join(digits, 'val', names[5])))
    (folder / 'notes.txt').write_text('no picture')
    first = os.path.join(digits, 'val', names[0])
    status, out, err = run_main('--predict', first, folder, '--load', DIGITS_CHECKPOINT, '--data_dir', digits, '--topk', 3,
                                '--json', tmp_path / 'result.json')
    assert status == 0, err
    result = json.loads((tmp_path / 'result.json').read_text())
    assert [entry['file'] for entry in result] == [first] + [str(folder / n) for n in ('a.dat', 'c.bmp', 'deeper/b.JPEG')]
    assert 'left out: 1 files that this OpenCV does not read as pictures: %s' % (folder / 'notes.txt') in err
    words = [line.split() for line in open(os.path.join(digits, 'caffe_ilsvrc12', 'synset_words.txt'))]
    lines = out.splitlines()[2:]
    assert len(lines) == 3 * 4
    for i, (entry, index) in enumerate(zip(result, (0, 3, 5, 7))):
        logits = evaluation['logits'][index].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities)[:3]
        assert [c['label'] for c in entry['classes']] == best.tolist()
        assert np.allclose([c['probability'] for c in entry['classes']], probabilities[best], rtol=1e-3)
        assert [[c['synset'], c['words']] for c in entry['classes']] == [words[k] for k in best]
        for line, c in zip(lines[3 * i:], entry['classes']):
            assert line.split()[-1] == c['words'] and '%.4f' % c['probability'] in line
        assert lines[3 * i].startswith(entry['file'])


def test_predict_takes_the_digits_and_says_what_is_no_picture(digits, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.png').write_text('no picture')
    load = ['--load', DIGITS_CHECKPOINT]
    assert 'has no picture' in refused('--predict', tmp_path / 'empty', *load)
    assert 'there is no picture' in refused('--predict', tmp_path / 'missing.jpg', *load)
    assert 'text.png is broken: it is no picture' in refused('--predict', tmp_path / 'text.png', *load)
    picture, label = open(os.path.join(digits, 'caffe_ilsvrc12', 'val.txt')).readline().split()
    path = [os.path.join(folder, picture) for folder, _, names in os.walk(os.path.join(digits, 'val')) if picture in names][0]
    status, out, err = run_main('--predict', path, '--topk', 1, *load)    # without a tree, the labels alone
    assert status == 0, err
    assert out.split() == ['picture', 'probability', 'label'] + out.split()[3:6] + [path, out.split()[7], label]


def test_names_that_stdout_cannot_print_and_streams_that_are_closed(digits, tmp_path):
    """Latin-1 and other names under any encoding: the table has escapes, and the JSON file the names."""
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for name in (b'caf\xe9.png', '\u00fc.png'.encode()):
        shutil.copy(os.path.join(digits, 'val', 'digits_val_00000004.png'), os.path.join(os.fsencode(str(pictures)), name))
    flags = ['--predict', pictures, '--load', DIGITS_CHECKPOINT, '--topk', 1, '--json', tmp_path / 'x.json']
    for encoding in ('ascii', 'utf-8:strict'):
        status, out, err = run_main(*flags, env=dict(os.environ, PYTHONIOENCODING=encoding, LC_ALL='C'))
        assert status == 0 and err == '' and len(out.splitlines()) == 4 and 'caf\\udce9.png' in out, err
        assert len(json.loads((tmp_path / 'x.json').read_text())) == 2
    command = ' '.join([sys.executable, os.path.join(ROOT, 'main.py')] + [str(flag) for flag in flags])
    for closed, status in (('>&-', 0), ('2>&-', 0), ('<&- >&- 2>&-', 0), ('>/dev/full', 2)):
        run = subprocess.run(command + ' ' + closed, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert run.returncode == status, (closed, run)
        assert run.stderr in (b'', b'main.py: cannot write the output: No space left on device\n')
        assert len(json.loads((tmp_path / 'x.json').read_text())) == 2


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
    (['--eval', '--image_size', '127'], "--image_size: '127' is not an integer from 128 to 384"),
    (['--train', '--image_size', '385'], "--image_size: '385' is not an integer from 128 to 384"),
    (['--flops', '1', '--image_size', '160.5'], "--image_size: '160.5'"),
])
def test_impossible_flags(flags, message):
    assert message in refused(*flags)


@pytest.mark.once
@pytest.mark.slow
def test_trees_that_cannot_be_used(digits, tmp_path):
    load = ['--load', DIGITS_CHECKPOINT]
    assert 'nowhere' in refused('--eval', '--data_dir', tmp_path / 'nowhere', *load)
    tree = link_tree(digits, tmp_path / 'tree')
    names = [line.split()[0] for line in shorten(tree, 40)]
    # The 31st image is cut; then it is a text, then gone. The --json of an evaluation that failed is not written.
    broken = os.path.join(tree, 'val', names[30])
    os.remove(broken)
    image = np.zeros((300, 300, 3), np.uint8)
    jpeg, bmp = (cv2.imencode(extension, image)[1].tobytes() for extension in ('.jpg', '.bmp'))
    for content, message in [
            (b'no image', 'it is no picture'), (bmp[:len(bmp) // 2], 'truncated'), (jpeg[:len(jpeg) // 2], 'libjpeg')]:
        with open(broken, 'wb') as f:
            f.write(content)
        err = refused('--eval', '--data_dir', tree, '--json', tmp_path / 'result.json', *load)
        assert message in err and names[30] in err and '--broken skip' in err
    results = {}
    for rule in ('skip', 'accept'):
        _, results[rule] = evaluated(tree, DIGITS_CHECKPOINT, tmp_path / 'json', '--broken', rule, '--engine', 'frozen')
    assert [(result['images'], len(result['left_out'])) for _, result in sorted(results.items())] == [(40, 0), (39, 1)]
    os.remove(str(tmp_path / 'json'))
    os.remove(broken)
    assert names[30] in refused('--eval', '--data_dir', tree, '--save_logits', tmp_path / 'logits.npz', *load)
    assert sorted(os.listdir(str(tmp_path))) == ['tree']


def test_checkpoints_that_cannot_be_used(digits, tmp_path):
    flags = ['--eval', '--data_dir', digits]
    assert 'no checkpoint' in refused(*(flags + ['--load', tmp_path / 'nothing']))
    for suffix in ('.index', '.data-00000-of-00001'):
        shutil.copy(DIGITS_CHECKPOINT + suffix, str(tmp_path / ('ghostnet_checkpoint' + suffix)))
    copy = tmp_path / 'ghostnet_checkpoint'
    data = tmp_path / 'ghostnet_checkpoint.data-00000-of-00001'
    data.chmod(0o644)
    whole = data.read_bytes()
    data.write_bytes(whole[:10000000] + bytes([whole[10000000] ^ 1]) + whole[10000001:])
    assert 'cannot be read at MobileNetV2/' in refused(*(flags + ['--load', copy]))
    data.write_bytes(whole[:-1000])
    assert 'its data are truncated' in refused(*(flags + ['--load', copy]))


def test_a_checkpoint_without_a_classifier_has_no_classes(digits, tmp_path):
    load = ['--load', random_checkpoint(tmp_path / 'backbone', lacking='Conv2d_17/|Conv2d_18/|Logits/', width=0.5)]
    for job in (['--eval', '--data_dir', digits], ['--predict', os.path.join(digits, 'val')]):
        assert 'backbone has no classifier, and so no classes: train one by --train --finetune' in refused(*(job + load))
    assert '42.' in run_main('--flops', '1', *load)[1]


@pytest.mark.slow
@pytest.mark.parametrize('flags, made_with', [
    (['--width_ratio', '0.5'], '--width_ratio 1\n'),
    (['--se', '0'], '--se 3\n'),
    (['--dw_code_str', ','.join(['5'] * 19)], '--dw_code_str ' + ','.join(['3'] * 19) + '\n'),
    (['--ratio_code_str', ','.join(['4'] * 19)], '--ratio_code_str ' + ','.join(['2'] * 19) + '\n'),
])
def test_checkpoint_of_another_network(digits, flags, made_with):
    err = refused('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, *flags)
    assert 'does not fit the model' in err and 'in the checkpoint' in err and err.endswith('it was made with ' + made_with)


@pytest.mark.slow
def test_checkpoint_of_another_number_of_classes(digits, tmp_path):
    tree = link_tree(digits, tmp_path / 'tree')
    with open(os.path.join(tree, 'caffe_ilsvrc12', 'synsets.txt'), 'a') as f:
        f.write('n00000010\n')
    err = refused('--eval', '--data_dir', tree, '--load', DIGITS_CHECKPOINT)
    assert 'Conv2d_1c_1x1/W is (1, 1, 1280, 10) in the checkpoint, (1, 1, 1280, 11) in the model' in err
    assert '--data_dir of a tree with 10 classes, this one has 11' in err


@pytest.mark.once
@pytest.mark.slow
def test_results_that_cannot_be_written(digits, tmp_path):
    for path in (tmp_path / 'no' / 'file', '', '/dev/null', tmp_path):
        assert 'cannot write' in refused('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--json', path)


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
        source = "__version__ = '%s'" % version
        if version == 'broken':
            source = "raise ImportError('no\\nlibGL.so.1: cannot open', name='cv2')"
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
def test_nchw_gives_the_same_or_says_why_not(digits, evaluated_digits, tmp_path):
    """oneDNN builds (TensorFlow 2) compute channels first on a CPU, TensorFlow 1.13.1's Eigen kernels do not."""
    tree = link_tree(digits, tmp_path / 'tree')
    shorten(tree, 40)
    status, _, err = run_main('--eval', '--data_dir', tree, '--load', DIGITS_CHECKPOINT, '--data-format', 'NCHW', '--save_logits',
                              tmp_path / 'logits.npz')
    if TENSORFLOW_VERSION.startswith('1.'):
        assert status == 2 and '--data-format NHWC' in err and err.count('\n') == 1
    else:
        assert status == 0, err
        assert relative_error(tmp_path / 'logits.npz', evaluated_digits[2]['logits'][:40]) < 1e-5
