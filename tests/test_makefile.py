"""The Makefile, with a stand-in for Python: it makes its environments again, and never removes what it did not make."""
import os
import shutil
import subprocess

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which('make') is None, reason="needs make")

VENVS = ['.venv', '.venv-tf1', '.venv-horovod', '.venv-interop', '.venv-imgclsmob', '.venv-gpu']
TARGETS = dict(zip(VENVS, ['eval', 'test-tf1', 'test-horovod', 'test-interop', 'test-imgclsmob', 'gpu-venv']))
STAND_IN = '''#!/bin/sh
echo "$@" >> "%s/log"
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg" ;;
"-m pip") [ ! -e fail ] ;;
"--version ") echo Python ;;
esac
'''


@pytest.fixture
def clone(tmp_path):
    """The Makefile and what it needs, in a folder without an environment."""
    root = tmp_path / 'clone'
    for name in ['Makefile', 'tools/environments.sh'] + [name for name in os.listdir(ROOT) if name.startswith('requirements')]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(os.path.join(ROOT, name), str(root / name))
    (root / 'python').write_text(STAND_IN % root)
    (root / 'python').chmod(0o755)
    return root


def make(clone, *args):
    """Exit status, stdout, and stderr without make's own line."""
    python = str(clone / 'python')
    env = {name: value for name, value in os.environ.items() if not name.startswith(('MAKE', 'MFLAGS', 'ARGS'))}
    run = subprocess.run(['make', 'PYTHON=' + python, 'PYTHON36=' + python, 'PYTHON37=' + python] + list(args), env=env,
                         cwd=str(clone), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
    return run.returncode, run.stdout, [line for line in run.stderr.splitlines() if not line.startswith('make: ***')]


def files(root):
    return {str(path): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


def precious(folder, *names):
    """A folder that somebody else made."""
    for name in names or ('precious', 'lib/precious.py'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('precious')
    return folder


def by_somebody(kind, place, outside):
    """Puts at `place` what make did not make. `outside` is where links lead, with an environment of somebody else's."""
    precious(outside, 'precious', 'pyvenv.cfg', 'lib/precious.py')
    if kind == 'folder':
        precious(place)
    elif kind == 'environment':    # python -m venv
        precious(place, 'pyvenv.cfg', 'lib/precious.py')
    elif kind == 'hidden':
        precious(place, '.precious')
    elif kind == 'file':
        place.write_text('precious')
    elif kind == 'link to nothing':
        place.symlink_to(outside / 'nothing')
    else:
        place.symlink_to(outside, target_is_directory=True)


@pytest.mark.parametrize('kind', ['folder', 'environment', 'hidden', 'file', 'link', 'link to nothing', 'link to its own'])
def test_what_make_did_not_make_stays(clone, tmp_path, kind):
    outside = tmp_path / 'outside'
    for venv in VENVS[:3]:
        by_somebody(kind, clone / venv, outside)
        if kind == 'link to its own':    # an environment of another clone, perhaps
            (outside / 'made-by-make').touch()
    before = files(tmp_path)
    for venv in VENVS[:3] if kind == 'folder' else VENVS[:1]:
        for ignore in ([], ['-i']):
            status, _, err = make(clone, TARGETS[venv], *ignore)
            assert (status == 2 or ignore) and err[0].startswith('make: %s is ' % venv) and 'make leaves as it is' in err[0], err
            assert ignore or len(err) == 1, err
    status, out, err = make(clone, 'clean')
    assert (status, err) == (0, [])
    assert out == 'make: left as it is, because make did not make it, or not all of it: .venv .venv-tf1 .venv-horovod\n'
    after = files(tmp_path)
    after.pop(str(clone / 'log'), None)
    assert after == before


def test_gpus_have_an_environment_of_their_own(clone):
    assert make(clone, 'gpu-venv') == (0, 'Installing requirements.txt into .venv with Python (about 2.5 GB, a few minutes)\n'
                                       'Installing requirements-gpu.txt into .venv-gpu (about 8 GB, a few minutes)\n', [])
    assert (clone / 'log').read_text().endswith(' -r requirements-gpu.txt\n')
    assert make(clone, 'test-gpu')[0] == 0
    assert (clone / 'log').read_text().endswith('\n-m pytest -rsP tests/training/test_gpu.py\n')


def test_an_environment_that_is_made_with_another_one(clone):
    assert make(clone, 'lint')[0] == 0
    before = files(precious(clone / '.venv-interop'))
    status, _, err = make(clone, 'test-interop')
    assert (status, len(err)) == (2, 1) and err[0].startswith('make: .venv-interop is not an environment that make made')
    assert files(clone / '.venv-interop') == before


def test_environments_of_its_own_are_made_again(clone):
    """Complete, interrupted, of an earlier version of the project, empty: each in place of the one before."""
    venv = clone / '.venv'

    def made_again(**kwargs):
        (clone / 'log').write_text('')
        status, out, err = make(clone, 'lint')
        assert (status, err) == (0, []), (out, err)
        again = '-m venv .venv' in (clone / 'log').read_text()
        assert (venv / 'installed').exists() and not (venv / 'old').exists() or not again
        (venv / 'old').touch()
        return again

    venv.mkdir()
    assert made_again() and not made_again()
    os.utime(str(clone / 'requirements.txt'))
    os.utime(str(venv / 'installed'), (1, 1))
    assert made_again() and not made_again()

    (venv / 'installed').unlink()
    (clone / 'fail').touch()    # pip ends without success: there is no network, or Ctrl-C
    assert make(clone, 'lint')[0] == 2 and not (venv / 'installed').exists()
    (clone / 'fail').unlink()
    assert made_again()

    (venv / 'made-by-make').unlink()    # of an earlier version
    os.utime(str(venv / 'installed'), (1, 1))
    assert made_again() and (venv / 'made-by-make').exists()

    precious(clone / 'outside')
    (venv / 'link').symlink_to(clone / 'outside', target_is_directory=True)
    assert make(clone, 'clean') == (0, '', []) and not venv.exists()
    assert sorted(path.name for path in (clone / 'outside').iterdir()) == ['lib', 'precious']


@pytest.mark.parametrize('name, refused', [
    ('{}/linked/', True), ('{}/linked//', True), ('{}/linked/.', True), ('{}/folder/', True), ('{}/folder/..', True), ('.', True),
    ('', True), ('{}', True), ('{}/folder/new', False), ('{}/linked/new/', False), ('new', False)])
def test_the_name_of_an_environment(clone, tmp_path, name, refused):
    """With slashes behind a link, as a parent folder, through a linked folder: VENV=... is as safe as .venv."""
    (precious(tmp_path / 'folder') / 'made').mkdir()
    (tmp_path / 'linked').symlink_to(tmp_path / 'folder', target_is_directory=True)
    before = files(tmp_path)
    venv = 'VENV=' + name.format(tmp_path)
    status, _, err = make(clone, 'lint', venv)
    assert (status, len(err)) == ((2, 1) if refused else (0, 0)), err
    assert make(clone, 'clean', venv)[0] == 0
    after = files(tmp_path)
    assert set(after) - set(before) <= {str(clone / 'log')} and {path: after.get(path) for path in before} == before


def test_clean_removes_the_digits_and_leaves_what_the_user_put_there(clone, tmp_path):
    digits, outside = clone / 'data' / 'digits', precious(tmp_path / 'outside', 'val.txt', 'digits_val_00000001.png')
    images = ('val/digits_val_00000001.png', 'train/n00000003/n00000003_7.png')
    lists = {'val': 'digits_val_00000001.png 1', 'train': 'n00000003/n00000003_7.png 3', 'synsets': 'n00000000',
             'synset_words': 'n00000000 zero'}

    def prepare():
        precious(digits, *images)
        precious(digits / 'unfinished-x', '.lock')
        for name, line in lists.items():
            (precious(digits, 'caffe_ilsvrc12/%s.txt' % name) / 'caffe_ilsvrc12' / (name + '.txt')).write_text(line + '\n' + line)

    prepare()
    assert make(clone, 'clean') == (0, '', []) and list(digits.iterdir()) == []
    prepare()
    precious(digits, 'val/mine.png', 'train/n00000003/mine.png', 'train/n00000004/n00000004_mine.png')
    (digits / 'caffe_ilsvrc12' / 'val.txt').write_text('mine.png 1\n')
    (digits / 'train' / 'n00000005').symlink_to(outside, target_is_directory=True)
    status, out, err = make(clone, 'clean')
    assert (status, err) == (0, []) and out.endswith(': data/digits/train data/digits/val data/digits/caffe_ilsvrc12\n')
    assert sorted(path[len(str(digits)) + 1:] for path in files(digits)) == [
        'caffe_ilsvrc12/val.txt', 'train/n00000003/mine.png', 'train/n00000004/n00000004_mine.png', 'val/mine.png']
    for name in ('train', 'val', 'caffe_ilsvrc12'):
        shutil.rmtree(str(digits / name))
        (digits / name).symlink_to(outside, target_is_directory=True)
    (outside / 'n00000003').mkdir()
    assert make(clone, 'clean')[:2] == (0, out) and (digits / 'val').is_symlink()
    assert len(files(outside)) == 2 and (outside / 'n00000003').is_dir()
