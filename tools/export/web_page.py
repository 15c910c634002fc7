"""The web page: a folder for any static server, with the page, the network in ONNX, ONNX Runtime Web and the classes' names."""
import json
import os
import shutil
import subprocess
import tempfile

from command_line import InputError
from tools.export.labels import numbered, printable

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'web')
PAGE = ('index.html', 'style.css', 'app.js', 'picture.js')
RUNTIME = ('ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm')
MODEL, LABELS = 'model.onnx', 'labels.json'


def check_npm():
    """Raises InputError if ONNX Runtime Web is neither installed in tools/export/web nor can be by npm."""
    if not installed(SOURCE) and shutil.which('npm') is None:
        raise InputError("--format web needs ONNX Runtime Web: install npm (of Node.js), or run npm ci in %s" % SOURCE)


def installed(folder):
    """Whether ``node_modules`` in `folder` has ONNX Runtime Web in the version of package.json."""
    with open(os.path.join(SOURCE, 'package.json')) as f:
        wanted = json.load(f)['dependencies']['onnxruntime-web']
    try:
        with open(os.path.join(folder, 'node_modules', 'onnxruntime-web', 'package.json')) as f:
            return json.load(f)['version'] == wanted
    except OSError:
        return False


def install(folder):
    """Installs ONNX Runtime Web, as package-lock.json pins it, into the empty `folder`. Raises InputError."""
    for name in 'package.json', 'package-lock.json':
        shutil.copy(os.path.join(SOURCE, name), folder)
    npm = subprocess.run([shutil.which('npm'), 'ci', '--ignore-scripts', '--no-audit', '--no-fund'], cwd=folder,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if npm.returncode:
        said = [line for line in npm.stdout.splitlines() if line.startswith('npm error')] or ['npm error without a message']
        raise InputError("npm cannot install ONNX Runtime Web: %s" % said[0][:200])


def write_page(out, names, classes):
    """Writes all of the page but the model into the folder `out`.

    Args:
        names (list of str): names of the classes, or None: then they are called by their labels.
        classes (int): how many there are.
    Raises:
        InputError: ONNX Runtime Web cannot be had.
    """
    for name in PAGE:
        shutil.copyfile(os.path.join(SOURCE, name), os.path.join(out, name))
    with open(os.path.join(out, LABELS), 'w') as f:
        json.dump(printable(names or numbered(classes)), f)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(out)) as folder:
        if installed(SOURCE):
            folder = SOURCE
        else:
            install(folder)
        modules = os.path.join(folder, 'node_modules', 'onnxruntime-web')
        for name in RUNTIME:
            shutil.copyfile(os.path.join(modules, 'dist', name), os.path.join(out, name))
