"""Reads the tensors in a file, in a process of its own: what a crafted one asks for, or breaks, is no more than that.

    python -m tools.state_dict FILE > tensors.npz    # arr_0: their names; arr_1: their dtypes in the file; then the tensors
"""
import argparse
import collections
import contextlib
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # for the process that `read_state` starts

from checkpoint_index import LARGEST_INDEX, LONGEST_NAME, MOST_ENTRIES, is_name
from command_line import InputError, required, run
from tools.foreign_files import FORMATS, format_of

KERAS = ('.keras', '.weights.h5')
OTHERS = KERAS + ('.safetensors',)    # than tools/foreign_files.py has, and than torch.save's
WRAPPER = '\t'    # behind the names of the dicts that a tensor is in
DEEPEST = 4       # dicts within dicts, as training scripts save a state dict
# `values`: {name: np.ndarray}. Of tensors in nested dicts, those of the keys come first: 'state_dict\tconv_stem.weight'. `dtypes`:
# {name: str}, those in the file, since NumPy has not all.
Tensors = collections.namedtuple('Tensors', 'values dtypes')
SECONDS, MEMORY = 60, 256 << 20    # for a file of no size; a sound one takes up to four times its size, and seconds


def read_state(path):
    """The Tensors in a file: those of each dict in it that has nothing else. No code in it is executed.

    Raises:
        InputError: the file cannot be read, or has no such dict, or one with other tensors than dense ones; a package is missing.
    """
    import numpy as np
    try:
        child = subprocess.run([sys.executable, os.path.abspath(__file__), path], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               timeout=10 * SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError("%s takes minutes to read, as no state dict does: get it again" % path)
    if child.returncode == 2:
        raise InputError(child.stderr.decode(errors='replace').strip().splitlines()[-1].split(': ', 1)[1])
    if child.returncode:
        raise InputError("%s is damaged, or made to do harm: get it again (the process that read it ended with status %d)"
                         % (path, child.returncode))
    with np.load(io.BytesIO(child.stdout), allow_pickle=False) as tensors:
        names = [str(name) for name in tensors['arr_0']]
        return Tensors({name: tensors['arr_%d' % (i + 2)] for i, name in enumerate(names)},
                       dict(zip(names, map(str, tensors['arr_1']))))


def limit(size):
    """Limits the memory and the processor's time of this process, for a file of `size` bytes, where the system can do that."""
    try:
        import resource
        with open('/proc/self/statm') as f:
            used = int(f.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):    # Windows; macOS
        return
    for kind, most in ((resource.RLIMIT_AS, used + MEMORY + 4 * size), (resource.RLIMIT_CPU, SECONDS + (size >> 24))):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def loader(path, form):
    """The function that loads a file of such a name, or of this one of FORMATS. Raises InputError if a package is missing."""
    if form:
        if form == '.h5':
            required('h5py', "pip install -r requirements.txt")
        return FORMATS[form].read
    if path.endswith(KERAS):
        required('h5py', "pip install -r requirements.txt")
        from tools.keras_weights import load as load_keras
        return load_keras
    if path.endswith('.safetensors'):
        with contextlib.suppress(ImportError):
            import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16)
        return required('safetensors.numpy').load_file
    torch = required('torch')
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 6):    # CVE-2025-32434
        raise InputError("PyTorch %s may execute code in the file: pip install -r requirements-interop.txt" % torch.__version__)
    torch.set_num_threads(1)    # each takes memory

    def load_torch(path):
        with torch.serialization.safe_globals(harmless()):
            return torch.load(path, map_location='cpu', weights_only=True)
    return load_torch


def harmless():
    """What training scripts save beside the tensors, and what has no effect when it is made: flags, and numbers of NumPy.

    A list of what PyTorch's reader, which knows no other classes than its own, may make: objects, or (object, name in the file).
    """
    import numpy as np
    scalar, dtypes = np.float64(0).__reduce__()[0], {type(np.dtype(kind)) for kind in 'efdilq?'}
    return [argparse.Namespace, np.dtype, (scalar, 'numpy.core.multiarray.scalar'), (scalar, 'numpy._core.multiarray.scalar')] + \
        sorted(dtypes, key=str)


def check_file(path):
    """Raises ValueError, or others, where a file says that it has more in it than it can have."""
    if path.endswith('.safetensors'):
        with open(path, 'rb') as f:
            if int.from_bytes(f.read(8), 'little') > LARGEST_INDEX:
                raise ValueError("its header is larger than that of any GhostNet")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as members:
            if sum(member.file_size for member in members.infolist()) > os.path.getsize(path):
                raise ValueError("it is compressed")


def load(path):
    """What a file has in it. Raises InputError if it cannot be read."""
    if not os.path.isfile(path):
        raise InputError("there is no file %s" % path)
    form = format_of(path, OTHERS)
    function = loader(path, form)
    limit(os.path.getsize(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')    # of what is refused next
            if not form:
                check_file(path)
            return function(path)
    except pickle.UnpicklingError as error:
        code = re.search(r'GLOBAL ([\w.]+)', str(error))
        raise InputError("%s is truncated, or has more in it than tensors%s, which is not executed: save model.state_dict()"
                         % (path, ', such as ' + code.group(1) if code else ''))
    except Exception as error:    # RuntimeError, EOFError, MemoryError, SafetensorError and others
        kind = 'what %s saves' % FORMATS[form].writer if form else (
            'what Keras 3 saves of a trainable export' if path.endswith(KERAS) else 'a state dict')
        raise InputError("%s is truncated, or not %s: get it again (%s)"
                         % (path, kind, (str(error) or repr(error)).splitlines()[0][:120]))


def state_dicts(content, wrappers=()):
    """Yields (WRAPPER's names, dict) for each dict of tensors in what a file has in it."""
    if isinstance(content, dict) and all(isinstance(name, str) for name in content):
        if all(hasattr(value, 'shape') for value in content.values()) and content:
            yield '.'.join(wrappers) + WRAPPER if wrappers else '', content
        elif len(wrappers) < DEEPEST:
            for key, value in content.items():
                if is_name(key):
                    yield from state_dicts(value, wrappers + (key,))


def tensors_in(path):
    """The dense tensors of the state dicts in a file, as Tensors. Raises InputError: see `read_state`."""
    found = list(state_dicts(load(path)))
    if not found:
        raise InputError("%s is not a state dict, {name: tensor}, and has none in it: save model.state_dict()" % path)
    if not all(is_name(name) for _, state in found for name in state) or sum(len(state) for _, state in found) > MOST_ENTRIES:
        raise InputError("%s has tensors whose names are no text of up to %d characters, or more than %d: save model.state_dict()"
                         % (path, LONGEST_NAME, MOST_ENTRIES))
    state = {wrapper + name: value for wrapper, tensors in found for name, value in tensors.items()}
    count = sum(value.size if hasattr(value, 'astype') else value.numel() for value in state.values())
    if count > 4 * os.path.getsize(path) + 1000:    # a tensor may repeat the few numbers that it has, or have none
        raise InputError("%s is %d bytes long, and has tensors of %d numbers: get it again" % (path, os.path.getsize(path), count))

    def array(value):
        if hasattr(value, 'astype'):
            return value.astype('float32') if value.dtype.kind == 'V' else value    # bfloat16
        return (value.float() if value.is_floating_point() else value).detach().numpy()
    try:
        return Tensors({name: array(value) for name, value in state.items()},
                       {name: str(value.dtype).replace('torch.', '') for name, value in state.items()})
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:    # sparse or quantised; of more dimensions than NumPy has
        raise InputError("%s has tensors that are not dense numbers: save those of a float model (%s)"
                         % (path, (str(error) or repr(error)).splitlines()[0][:120]))


def main(path):
    out = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)    # what libraries print is no part of it
    tensors = tensors_in(path)
    import numpy as np
    with out:
        np.savez(out, np.array(list(tensors.values), str), np.array(list(tensors.dtypes.values()), str), *tensors.values.values())


if __name__ == '__main__':
    run(main, sys.argv[1], 'state_dict')
