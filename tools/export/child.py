"""The processes that `tools.export` starts: an environment in which only the input decides, their images, an end with their parent.
"""
import ctypes
import os
import re
import signal
import sys

# What changes how a graph is converted or computed. The other variables of TensorFlow choose logs, Keras and memory of GPUs.
VARIABLE = re.compile('(TF|TF2ONNX|XLA|MLIR)_(?!CPP_|USE_LEGACY_KERAS|GPU_|FORCE_GPU_)')


def fix_environment():
    """Removes such variables, for this process, if it has not imported TensorFlow yet, and for its children, but for oneDNN, which
    stays on. Fixes how sets are ordered in the latter, by which converters number and sort nodes."""
    for name in list(filter(VARIABLE.match, os.environ)):
        del os.environ[name]
    os.environ['TF_ENABLE_ONEDNN_OPTS'], os.environ['PYTHONHASHSEED'] = '1', '0'


def end_with_parent():
    """Has Linux end this process when its parent is killed, so that nothing writes into a folder that the next run removes."""
    if sys.platform.startswith('linux'):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)    # PR_SET_PDEATHSIG


def load_batches(path):
    """The batches of images, a list of arrays, that numpy.savez has written to a file."""
    import numpy as np
    with np.load(path) as arrays:
        return [arrays['arr_%d' % i] for i in range(len(arrays.files))]
