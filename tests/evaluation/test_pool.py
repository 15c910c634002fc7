"""Worker processes that read for an evaluation: the same pictures, the same mistakes."""
import collections
import json
import os
import shutil

import numpy as np
import pytest

from command_line import InputError
from conftest import DIGITS_CHECKPOINT
from dataset import read_images
from evaluation import pool
from evaluation.evaluate import evaluate
from imagenet_utils import ImageNetModel
from pictures import PictureReader

Sums = collections.namedtuple('Sums', 'call batch')


def sums(pictures):
    """Logits that show which pictures came, and in which order."""
    return np.float32([np.arange(10) * picture.sum(dtype=np.int64) % 1009 for picture in pictures])


def evaluated_with(images, read):
    model = ImageNetModel('NHWC', 0.1, 0, 0, False)
    return evaluate(Sums(sums, 7), model, images, None, 3, read)


@pytest.fixture
def images(digits, tmp_path):
    """60 pictures, the files of which may be changed."""
    copies = []
    for number, (path, label) in enumerate(read_images(digits, 'val')[:60]):
        copies.append([shutil.copy(path, str(tmp_path / ('%02d.png' % number))), label])
    return copies


def test_the_result_is_that_of_threads(images):
    read = pool.PoolReader(images, PictureReader(), 2)
    ours, theirs = evaluated_with(images, read), evaluated_with(images, None)
    assert (ours['logits'] == theirs['logits']).all() and ours['wrong_top1'] == theirs['wrong_top1']


def test_broken_pictures(images):
    path = images[30][0]
    with open(path, 'wb') as f:
        f.write(b'no image')
    with pytest.raises(InputError, match=os.path.basename(path)):
        evaluated_with(images, pool.PoolReader(images, PictureReader(), 2))
    reader = PictureReader('skip')
    result = evaluated_with(images, pool.PoolReader(images, reader, 2))
    assert list(reader.left_out) == [path] and list(np.flatnonzero(~result['kept'])) == [30] and len(result['logits']) == 59


@pytest.mark.parametrize('gpu, jobs, faster', [(True, 1, True), (False, 2, False), (False, 64, True)])
def test_where_it_reads(monkeypatch, gpu, jobs, faster):
    monkeypatch.setattr(pool, 'computes_on_gpu', lambda: gpu)
    assert pool.pool_is_faster(jobs) == faster


def test_the_command_counts_the_same(digits, tmp_path, monkeypatch):
    import main
    from flags import parse_args
    monkeypatch.setattr(pool, 'pool_is_faster', lambda jobs: True)
    monkeypatch.setattr('sys.argv', ['main.py', '--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--engine', 'frozen',
                                     '--json', str(tmp_path / 'result.json')])
    main.run_eval(parse_args())
    result = json.loads((tmp_path / 'result.json').read_text())
    assert (result['images'], result['wrong_top1'], result['wrong_top5']) == (360, 4, 0)
