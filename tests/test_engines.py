"""The engines give the same counts, whatever reads for them; the cache is never stale."""
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import engines
import image_cache
import imagenet_utils
from command_line import InputError
from conftest import ROOT, random_checkpoint, refused, run_main
from tf_compat import TENSORFLOW_VERSION, tf

TF1 = TENSORFLOW_VERSION.startswith('1.')
DIGITS_CHECKPOINT = os.path.join(ROOT, 'models', 'digits_checkpoint')


def needs_tflite():
    if TF1:
        pytest.skip("TFLite needs TensorFlow 2, this is " + TENSORFLOW_VERSION)


@pytest.mark.parametrize('k', [1, 5])
def test_wrong_is_in_top_k(k):
    rng = np.random.RandomState(k)
    logits = rng.randint(0, 6, (500, 12)).astype(np.float32)    # with many ties
    logits[::17, 3], logits[5::29, 4], logits[7::31, 5] = np.nan, np.inf, -np.inf
    labels = rng.randint(0, 12, 500)
    with tf.Graph().as_default(), tf.Session() as session:
        right = session.run(tf.nn.in_top_k(logits, labels, k))
    assert 0 < right.sum() < 500
    assert (engines.wrong(logits, labels, k) == ~right).all()


def evaluated(data_dir, checkpoint, out, *flags):
    """stdout and the JSON result of --eval."""
    status, said, err = run_main('--eval', '--data_dir', data_dir, '--load', checkpoint, '--json', out, *flags)
    assert status == 0, err
    with open(str(out)) as f:
        return said, json.load(f)


@pytest.mark.parametrize('engine', ['frozen', 'tflite'])
def test_engines_count_as_recorded(mini, calibrated, digits, tmp_path, engine):
    """tensorpack, the default, is the one of tests/test_main.py."""
    if engine == 'tflite':
        needs_tflite()
    for data_dir, checkpoint, counts in [(mini, calibrated, (300, 218, 131)), (digits, DIGITS_CHECKPOINT, (360, 4, 0))]:
        said, result = evaluated(data_dir, checkpoint, tmp_path / 'json', '--engine', engine, '--save_logits', tmp_path / 'logits.npz')
        assert (result['images'], result['wrong_top1'], result['wrong_top5']) == counts
        assert result['engine'] == engine and said.endswith('engine %s\n' % engine)
        if data_dir == mini:
            recorded = np.load(os.path.join(os.path.dirname(calibrated), 'logits_val.npz'))['logits']
            saved = np.load(str(tmp_path / 'logits.npz'))['logits']
            assert np.linalg.norm(saved - recorded) / np.linalg.norm(recorded) < 1e-4


@pytest.mark.slow
def test_auto_takes_the_fastest_and_says_which(digits, tmp_path):
    said, result = evaluated(digits, DIGITS_CHECKPOINT, tmp_path / 'json', '--engine', 'auto')
    first = said.splitlines()[0].split()
    rates = dict(zip(first[3:-4:2], map(float, (rate.rstrip(',') for rate in first[4:-3:2]))))
    assert list(rates) == ['tensorpack', 'frozen'] + ['tflite'] * (not TF1)
    assert first[:2] == ['engine', result['engine'] + ','] and rates[result['engine']] == max(rates.values())
    assert (result['wrong_top1'], result['wrong_top5']) == (4, 0)


@pytest.mark.slow
@pytest.mark.parametrize('engine', ['tensorpack', 'frozen', 'tflite'])
def test_neither_jobs_nor_batch_change_the_counts(digits, tmp_path, engine):
    if engine == 'tflite':
        needs_tflite()
    for flags in (['--jobs', 1, '--eval_batch', 100], ['--jobs', 5, '--eval_batch', 1]):
        result = evaluated(digits, DIGITS_CHECKPOINT, tmp_path / 'json', '--engine', engine, *flags)[1]
        assert (result['images'], result['wrong_top1'], result['wrong_top5']) == (360, 4, 0)


@pytest.mark.parametrize('engine', ['frozen', 'tflite'])
def test_predict_with_another_engine(digits, tmp_path, engine):
    if engine == 'tflite':
        needs_tflite()
    results = []
    for name in ('tensorpack', engine):
        status, _, err = run_main('--predict', os.path.join(digits, 'val'), '--load', DIGITS_CHECKPOINT, '--engine', name,
                                  '--topk', 10, '--json', tmp_path / name)
        assert status == 0, err
        entries = json.loads((tmp_path / name).read_text())
        results.append((entries, [sorted((c['label'], c['probability']) for c in entry['classes']) for entry in entries]))
    assert [entry['classes'][0]['label'] for entry in results[0][0]] == [entry['classes'][0]['label'] for entry in results[1][0]]
    assert np.allclose(results[0][1], results[1][1], atol=1e-5)


@pytest.mark.slow
def test_variants_and_layouts_in_every_engine(digits, tmp_path):
    """A network with other widths and codes, of another library, in the frozen graph: the logits of the default engine."""
    for name, options in (('imgclsmob', {'variant': 'imgclsmob', 'width': 0.5}), ('pytorch', {'variant': 'pytorch', 'se': 0})):
        load = random_checkpoint(tmp_path / name, num_classes=10, **options)
        logits = []
        for engine in ['tensorpack', 'frozen'] + ['tflite'] * (not TF1):
            flags = ['--width_ratio', options.get('width', 1), '--se', options.get('se', 3), '--engine', engine]
            flags += ['--data-format', 'NCHW'] if engine == 'frozen' and not TF1 else []
            evaluated(digits, load, tmp_path / 'json', '--save_logits', tmp_path / 'logits.npz', *flags)
            logits.append(np.load(str(tmp_path / 'logits.npz'))['logits'])
        for other in logits[1:]:
            assert np.median(np.linalg.norm(other - logits[0], axis=1) / np.linalg.norm(logits[0], axis=1)) < 1e-5


def test_engines_refuse(digits, tmp_path):
    flags = ['--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--engine', 'tflite']
    assert 'leave out --gpu' in refused('--gpu', '0', *flags)
    if TF1:
        assert '--engine tflite needs TensorFlow 2' in refused(*flags)
    else:
        assert 'leave out --data-format' in refused('--data-format', 'NCHW', *flags)
    assert 'does not fit the model' in refused('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--engine', 'frozen',
                                               '--width_ratio', 0.5)


def test_what_cannot_be_read_ends_the_evaluation_at_once(tmp_path):
    """With workers that are busy for ever otherwise."""
    computed = []

    def call(images):
        computed.append(len(images))
        return np.zeros([len(images), 10], np.float32)

    def read(start, end):
        if start >= 40:
            raise InputError("the image is broken")
        return np.zeros([end - start, 4], np.uint8)
    model = type('Model', (), {'data_format': 'NHWC'})
    with pytest.raises(InputError):
        engines.evaluate(engines.Engine('none', call, 4), model, [['x', 0]] * 100000, None, 2, read)
    assert sum(computed) == 40


def test_workers_overlap(tmp_path):
    """Each of the two waits until the other one computes too."""
    together = threading.Barrier(2)

    def call(images):
        together.wait(timeout=60)
        return np.zeros([len(images), 10], np.float32)
    model = type('Model', (), {'data_format': 'NHWC'})
    result = engines.evaluate(engines.Engine('none', call, 4), model, [['x', 0]] * 16, None, 2,
                              lambda start, end: np.zeros([end - start, 4], np.uint8))
    assert result['logits'].shape == (16, 10) and result['wrong_top1'] == 0


# ----------------------------------------------------------------------------------------------------------------- cache

@pytest.fixture
def tree(digits, tmp_path):
    """24 digits whose files may be changed, in a flat val/."""
    tree = tmp_path / 'tree'
    shutil.copytree(os.path.join(digits, 'caffe_ilsvrc12'), str(tree / 'caffe_ilsvrc12'))
    (tree / 'val').mkdir()
    listing = tree / 'caffe_ilsvrc12' / 'val.txt'
    listing.write_text(''.join(listing.read_text().splitlines(True)[:24]))
    found = {name: os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(digits, 'val')) for name in names}
    for line in listing.read_text().splitlines():
        shutil.copy(found[line.split()[0]], str(tree / 'val'))
    return tree


def listed(tree):
    return imagenet_utils.read_images(str(tree), 'val')


def cache(tree, capsys):
    """What comes through the cache in tree/../cache, and what was said of it."""
    images = listed(tree)
    with image_cache.cached(str(tree.parent / 'cache'), str(tree), images) as read:
        result = np.concatenate([read(0, 10), read(10, 24)])
    assert (result == imagenet_utils.eval_images([path for path, _ in images])).all()
    return capsys.readouterr().out


def test_the_cache_is_read_while_nothing_has_changed(tree, capsys):
    assert cache(tree, capsys) == ''
    file, = (tree.parent / 'cache').iterdir()
    for _ in range(2):
        assert cache(tree, capsys) == '24 images from the cache %s\n' % file
    rows = np.load(str(file), mmap_mode='r')
    assert rows['image'].shape == (24, 224, 224, 3)


def test_the_cache_notices_what_changes(tree, capsys, monkeypatch):
    cache(tree, capsys)
    path, other = listed(tree)[5][0], listed(tree)[6][0]
    # Other content of the same length at the same time as before: nobody can set the time of the last change.
    times = os.stat(path)
    with open(path, 'rb') as f:
        content = f.read()
    with open(path, 'wb') as f:
        f.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert '1 of its images have changed' in cache(tree, capsys)
    shutil.copy(other, path)
    assert '1 of its images have changed' in cache(tree, capsys)
    shutil.copy(path, path + '.new')
    os.replace(path + '.new', path)
    assert '1 of its images have changed' in cache(tree, capsys)
    assert 'from the cache' in cache(tree, capsys)
    listing = tree / 'caffe_ilsvrc12' / 'val.txt'
    lines = listing.read_text().splitlines(True)
    listing.write_text(''.join(lines[::-1]))
    assert cache(tree, capsys) == ''
    monkeypatch.setattr(image_cache, 'eval_augmentors', lambda: imagenet_utils.imgaug.AugmentorList([]))
    assert image_cache.cache_file('x', str(tree), listed(tree)) != image_cache.cache_file(
        'x', str(tree), listed(tree)[::-1]) and cache(tree, capsys) == ''
    assert len(list((tree.parent / 'cache').iterdir())) == 3


def test_a_damaged_cache_is_noticed(tree, capsys):
    cache(tree, capsys)
    file, = (tree.parent / 'cache').iterdir()
    whole = file.read_bytes()
    for damaged in (b'', b'no array', whole[:len(whole) // 2], whole[:-1]):
        file.write_bytes(damaged)
        assert 'is made anew: it is damaged' in cache(tree, capsys)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match='was damaged, and has been removed: run the same command again'):
        cache(tree, capsys)
    capsys.readouterr()
    assert cache(tree, capsys) == '' and 'from the cache' in cache(tree, capsys)


def test_an_unfinished_cache_does_not_count(tree, capsys):
    folder = tree.parent / 'cache'
    images = listed(tree)
    with pytest.raises(InputError):
        with image_cache.cached(str(folder), str(tree), images) as read:
            read(0, 10)
            raise InputError("an image is broken")
    assert not list(folder.iterdir())
    with image_cache.cached(str(folder), str(tree), images) as read:    # two at once
        read(0, 24)
        with image_cache.cached(str(folder), str(tree), images) as second:
            second(0, 24)
        assert 'another process makes the cache' in capsys.readouterr().out
    assert 'from the cache' in cache(tree, capsys)
    (folder / 'x.unfinished').write_text('left by a process that was killed')
    file, = folder.glob('*.npy')
    os.rename(str(file), str(file) + '.unfinished')
    assert cache(tree, capsys) == '' and file.exists() and not (folder / (file.name + '.unfinished')).exists()


def test_cache_by_the_command_line(tree, tmp_path):
    results = []
    for k in range(2):
        said, result = evaluated(str(tree), DIGITS_CHECKPOINT, tmp_path / 'json', '--cache', tmp_path / 'kept')
        results.append((result['wrong_top1'], result['wrong_top5']))
        assert ('24 images from the cache' in said) == (k == 1)
    assert results[0] == results[1]
    flags = ['--eval', '--data_dir', tree, '--load', DIGITS_CHECKPOINT, '--cache']
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'cache'):
        assert 'cannot use the cache folder' in refused(*(flags + [folder]))
    assert '--cache goes with --eval' in refused('--predict', 'x.png', '--cache', 'x')


def test_a_cache_that_does_not_fit_on_the_disk(tree, tmp_path):
    small = tmp_path / 'small'
    small.mkdir()
    if subprocess.call(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(small)], stderr=subprocess.DEVNULL) != 0:
        pytest.skip("needs a file system that is small, and mounting one is not allowed here")
    try:
        err = refused('--eval', '--data_dir', tree, '--load', DIGITS_CHECKPOINT, '--cache', small)
        assert 'cannot write the cache' in err and 'No space left' in err and not list(small.iterdir())
    finally:
        subprocess.check_call(['umount', str(small)])


# --------------------------------------------------------------------------------------------------------------- startup

def test_help_needs_no_tensorflow():
    code = "import sys; sys.argv = ['main.py', '--help']; import main\ntry: main.parse_args()\nexcept SystemExit: pass\n" \
           "assert not {'tensorflow', 'numpy', 'cv2', 'tensorpack'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_bench(digits, tmp_path):
    """On few images: what is measured here, what is not, and the picture."""
    names = ['frozen', 'TensorFlow', 'OpenVINO']
    status, out, err = run_main('--data_dir', digits, '--images', 16, '--rounds', 1, '--only', *(
        names + ['--load', DIGITS_CHECKPOINT, '--plot', tmp_path / 'bench.png']), script=['-m', 'tools.bench'])
    assert status == 0, err
    rows = {line.split('  ')[0]: line.split()[-5:] for line in out.splitlines()}
    for name in ('frozen', 'TensorFlow, frozen graph'):
        assert len(rows[name]) == 5 and all(float(value) > 0 for value in rows[name])
    assert ('OpenVINO' in rows) != ('OpenVINO: not measured' in out)
    assert (tmp_path / 'bench.png').read_bytes()[:4] == b'\x89PNG'
    for flags, message in [(['--data_dir', tmp_path / 'no'], 'there is no folder'), (['--data_dir', digits, '--images', '0'], '--images'),
                           (['--data_dir', digits, '--load', 'no'], 'there is no checkpoint no'),
                           (['--data_dir', digits, '--plot', tmp_path], 'cannot write')]:
        assert message in refused(*flags, script=['-m', 'tools.bench'])
