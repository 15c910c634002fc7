"""What needs a GPU: `make test-gpu`. It counts, trains and computes as the CPU does, and how fast."""
import os
import subprocess
import sys

from tf_compat import gpu_count

import pytest

from conftest import DIGITS_CHECKPOINT, ROOT, evaluated
from runs import STILL, cut, difference, flags, train, variables

if not gpu_count():
    pytest.skip("needs a GPU that TensorFlow can use: `make test-gpu`", allow_module_level=True)


def test_evaluation_counts_as_the_cpu_does(digits, tmp_path):
    for engine in ('tensorpack', 'frozen'):
        _, result = evaluated(digits, DIGITS_CHECKPOINT, tmp_path / 'result.json', '--gpu', 0, '--engine', engine)
        assert (result['wrong_top1'], result['wrong_top5']) == (4, 0), engine


def test_a_step_has_the_gradients_of_the_cpu(digits, tmp_path, monkeypatch):
    """As tests/training/test_train.py compares towers: the first momentum is the gradient. A GPU may round products to TF32."""
    tree = cut(digits, tmp_path / 'tree', 16, 10)
    train(*flags(tree, tmp_path / 'gpu', '--epochs', 1, '--gpu', 0, *STILL))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    train(*flags(tree, tmp_path / 'cpu', '--epochs', 1, *STILL))
    found = difference(variables(tmp_path / 'cpu' / 'model-1'), variables(tmp_path / 'gpu' / 'model-1'), '/Momentum')
    print("gradients: relative difference %.1e" % found)
    assert found < 1e-2


def test_throughput(digits):
    """Prints images/s of a training, and the ratio to the bare graph."""
    subprocess.run([sys.executable, '-m', 'tools.bench_training', '--data_dir', digits, '--batch', '128', '--seconds', '10'],
                   cwd=ROOT, env=os.environ, check=True)
