"""How the tools are called: with -m or without, from any folder, and with packages missing."""
import os
import sys

from tf_compat import TENSORFLOW_VERSION

import pytest

from conftest import DIGITS_CHECKPOINT, ROOT, refused, run_main, without

IMPORT = {'script': ['-m', 'tools.import_weights']}
EXPORT = {'script': ['-m', 'tools.export']}


@pytest.mark.parametrize('tool', ['export', 'import_weights.py', 'reproduce.py', 'bench.py', 'bench_training.py'])
def test_a_tool_works_without_m_from_any_folder(tool, tmp_path):
    script = {'script': [os.path.join(ROOT, 'tools', tool)], 'cwd': str(tmp_path)}
    status, out, err = run_main('--help', **script)
    assert status == 0 and out.startswith('usage: ' + tool.split('.')[0]), err
    assert '(see --help)' in refused(**script)
    status, out, err = run_main('--help', script=['-S'] + script['script'], cwd=str(tmp_path))    # before packages are installed
    assert status == 0 and out.startswith('usage: ' + tool.split('.')[0]), err


@pytest.mark.once
@pytest.mark.slow
def test_export_without_m_from_another_folder(tmp_path):
    """A tool that imports its own package, and starts processes of it."""
    status, out, err = run_main('--load', DIGITS_CHECKPOINT, '--format', 'frozen', 'ghostnet.pb', '--tf1_python', 'none',
                                cwd=str(tmp_path), script=[os.path.join(ROOT, 'tools', 'export')])
    assert status == 0 and (tmp_path / 'ghostnet.pb').stat().st_size > 1e7, err


@pytest.mark.parametrize('package, flags, tool', [
    ('torch', ['--from', 'timm', DIGITS_CHECKPOINT + '.index', 'ours'], IMPORT),
    ('safetensors', ['--to', 'timm', DIGITS_CHECKPOINT, 'theirs.safetensors'], IMPORT),
    ('onnx', ['--load', DIGITS_CHECKPOINT, '--format', 'onnx', 'ghostnet.onnx'], EXPORT)])
def test_a_missing_package_is_named(package, flags, tool, tmp_path):
    (tmp_path / 'packages').mkdir()
    flags = flags[:-1] + [tmp_path / flags[-1]]
    message = refused(*flags, env=without(package, tmp_path / 'packages'), **tool)
    if tool is EXPORT and TENSORFLOW_VERSION.startswith('1.'):
        assert 'needs TensorFlow 2' in message
    else:
        assert "the package '%s' is missing: pip install -r requirements-interop.txt" % package in message


def test_weights_that_cannot_be_imported_are_refused(tmp_path):
    assert 'expected one argument' in refused('--from', **IMPORT)
    assert 'there is no file no.pth' in refused('no.pth', tmp_path / 'ours', **IMPORT)
    assert 'not allowed with' in refused('--from', 'timm', '--to', 'timm', 'x', 'y', **IMPORT)
    assert '--weights goes with' in refused('--to', 'timm', '--weights', 'ema', 'x', 'y', **IMPORT)
    assert 'cannot write' in refused('--from', 'timm', 'x.pth', tmp_path / 'no' / 'ours', **IMPORT)


def test_a_child_that_prints_nothing_is_reported(monkeypatch, capsys):
    """In place of a KeyError, or an IndexError."""
    from tools import bench, bench_training
    for tool in (bench, bench_training):
        monkeypatch.setattr(tool, 'run_module', lambda *args: '')
    assert bench.measure('frozen', []) == 'it printed no result'
    monkeypatch.setattr(sys, 'argv', ['bench_training', '--data_dir', 'x', '--rounds', '1'])
    bench_training.main(bench_training.parse_args())
    out = capsys.readouterr().out
    assert out.count('not measured (it printed no rate)') == len(bench_training.MEASURED) - 1
    assert 'main.py --train: not measured (main.py --train ended with status 2: main.py: ' in out    # there is no folder x
