"""The layout: which room may import which, what can be had without TensorFlow, and how large files and functions are."""
import ast
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT

# From the bottom up: a module imports from its own room and from the levels below it.
LEVELS = [{'command_line'}, {'tf_compat', 'picture_formats', 'checkpoint_index', 'recipe', 'processes'},
          {'pictures', 'checkpoints'}, {'augmentation', 'dataset'}, {'imagenet_utils', 'myconv2d'}, {'ghostnet'},
          {'evaluation', 'training', 'flags'}, {'data', 'models'}, {'tools', 'main'}, {'keras_model'}, {'examples'}]
RANK = {room: rank for rank, level in enumerate(LEVELS) for room in level}
RELEASE = {'main', 'ghostnet', 'myconv2d', 'imagenet_utils'}    # the files of the published program
WITHOUT_TENSORFLOW = ['command_line', 'checkpoint_index', 'recipe', 'picture_formats', 'pictures', 'dataset', 'augmentation',
                      'processes', 'evaluation.throughput']


def sources():
    """{module: path} of the project's code, without its tests."""
    found = {}
    for room in [''] + [name for name in RANK if os.path.isdir(os.path.join(ROOT, name))]:
        for folder, folders, files in os.walk(os.path.join(ROOT, room)):
            if not room:
                folders[:] = []
            for name in files:
                if name.endswith('.py'):
                    path = os.path.join(folder, name)
                    found[re.sub('([.]__init__)?[.]py$', '', os.path.relpath(path, ROOT).replace(os.sep, '.'))] = path
    return found


SOURCES = sources()


def tree(module):
    with open(SOURCES[module], encoding='utf-8') as f:
        source = f.read()
    if sys.version_info >= (3, 8):
        return ast.parse(source, feature_version=(3, 6))
    return ast.parse(source)


def imported(module):
    """The modules of the project that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "%s imports relatively" % module
            names.update([node.module] + ['%s.%s' % (node.module, alias.name) for alias in node.names])
    return {name for name in names if name in SOURCES}


def room(module):
    return module.split('.')[0]


def test_every_file_belongs_to_a_room():
    assert {room(module) for module in SOURCES} == set(RANK)


def test_arrows_between_rooms_go_one_way():
    wrong = ['%s imports %s' % (module, other) for module in SOURCES for other in imported(module)
             if room(other) != room(module) and RANK[room(other)] >= RANK[room(module)]]
    assert not wrong


def test_no_circle_within_a_room():
    arrows = {module: imported(module) - {module} for module in SOURCES}
    while arrows:
        leaves = {module for module, others in arrows.items() if not others & set(arrows)}
        assert leaves, "in a circle, or above one: %s" % sorted(arrows)
        arrows = {module: others for module, others in arrows.items() if module not in leaves}


def test_root_files_serve_more_than_one_room():
    """Or another root file; but for those that have their names, and their place, from the published program, and for keras_model,
    which users' programs import."""
    for module in SOURCES:
        if os.path.isfile(os.path.join(ROOT, module + '.py')) and module not in RELEASE | {'keras_model'}:
            users = {room(other) for other in SOURCES if module in imported(other)} - {module}
            assert len(users) > 1 or users <= set(SOURCES), "%s.py is for %s alone" % (module, users)


def test_files_and_functions_can_be_read_in_one_sitting():
    """Each file says on its first line what its job is."""
    for module, path in SOURCES.items():
        with open(path, encoding='utf-8') as f:
            lines = len(f.readlines())
        parsed = tree(module)
        assert lines <= 400, "%s has %d lines" % (path, lines)
        if lines:
            first = (ast.get_docstring(parsed) or '').split('\n')[0]
            assert re.match('.{20,}[.:]$', first), "%s does not say what its job is" % path
        for node in ast.walk(parsed):
            if isinstance(node, ast.FunctionDef):
                end = max(getattr(child, 'lineno', 0) for child in ast.walk(node))
                assert end - node.lineno < 60, "%s in %s has %d lines" % (node.name, path, end - node.lineno + 1)


def imports_in_a_process(modules, setup):
    code = "import importlib, sys\nsys.path.insert(0, %r)\n%s\nfor name in %r:\n    importlib.import_module(name)\n" % (
        ROOT, setup, modules)
    return subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


def test_what_reads_pictures_does_not_import_tensorflow():
    run = imports_in_a_process(WITHOUT_TENSORFLOW, "sys.modules['tensorflow'] = sys.modules['tensorpack'] = None")
    assert run.returncode == 0, run.stderr


def test_everything_can_be_imported_without_fcntl():
    """As on Windows. Optional packages may be missing."""
    optional = {'tools.export.keras_layers': 'keras', 'tools.export.keras_trainable': 'keras',
                'tools.export.quantise': 'tensorflow.lite', 'tools.export.metadata': 'flatbuffers'}
    modules = [module for module in SOURCES if module not in optional or subprocess.call(
        [sys.executable, '-c', 'import %s' % optional[module]], stderr=subprocess.DEVNULL) == 0]
    assert {'main', 'training.train', 'evaluation.image_cache', 'models.fetch', 'data.ilsvrc12.prepare'} <= set(modules)
    run = imports_in_a_process(modules, "sys.modules['fcntl'] = None")
    assert run.returncode == 0, run.stderr


@pytest.mark.xdist_group('rooms')
def test_a_group_of_tests_stays_together(request):
    """In one worker of pytest-xdist, so that what takes minutes to make is made once. It lets a worker know by the name."""
    if not getattr(request.config.option, 'loadgroup', False):
        pytest.skip("needs --dist loadgroup: make test")
    assert request.node.nodeid.endswith('@rooms')


@pytest.mark.skipif(sys.version_info < (3, 8), reason="this Python can only parse its own version")
def test_tests_parse_with_cpython_3_6_too():
    for folder, _, files in os.walk(os.path.join(ROOT, 'tests')):
        for name in files:
            if name.endswith('.py'):
                with open(os.path.join(folder, name), encoding='utf-8') as f:
                    ast.parse(f.read(), name, feature_version=(3, 6))
