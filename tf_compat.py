"""The one place that knows which TensorFlow generation runs.

The rooms say ``from tf_compat import tf`` and get TensorFlow's version 1 API: TensorFlow 1.13 to 1.15 as it is, TensorFlow 2
through ``tf.compat.v1``. Importing this module imports TensorFlow; it raises InputError where the installed packages cannot run
GhostNet. It leaves a program as it is: eager execution, comparing tensors, and the Keras behind ``tf.keras``.
"""
import contextlib
import ctypes
import gc
import importlib
import os
import re
import sys
import warnings

from command_line import KERAS_DEFAULTS, InputError, cores, quiet_stderr

# What fails is raised as well; their log lines would bury ours.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

INSTALL = ("install the pinned packages, with 'make eval' or with 'pip install -r requirements.txt' on CPython 3.10 to 3.13 "
           "(requirements-tf1.txt on CPython 3.6)")
SUPPORTED = "TensorFlow 1.13 to 1.15 with Tensorpack 0.9.7, or TensorFlow 2.16 to 2.21 with Tensorpack 0.11"


def _limit():
    """How many GB of address space this process may have (``ulimit -v``), infinite if there is no limit."""
    try:
        import resource  # which Windows lacks
    except ImportError:
        return float('inf')
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return float('inf') if soft == resource.RLIM_INFINITY else soft / 2 ** 30


def need_memory(more=0):
    """Raises InputError where an evaluation, or what takes `more` GB, would not even start: TensorFlow would abort."""
    # Measured with TensorFlow 2.21 and 1.13.1, on one and two cores.
    needed = (2.3 if sys.version_info >= (3, 8) else 1.5) + 0.2 * cores() + more
    if _limit() < needed:
        raise InputError("memory is short: 'ulimit -v' allows %.1f GB of address space, and %.1f GB are needed at least: raise the "
                         "limit, as with 'ulimit -v unlimited'" % (_limit(), needed))


def _version(module):
    """(major, minor) of an imported package."""
    return tuple(int(part) for part in module.__version__.split('.')[:2])


@contextlib.contextmanager
def _keras_2(tensorflow):
    """Inside, ``tf.keras`` is tf-keras, as Tensorpack and ``tf.compat.v1.layers`` want it when they are imported; afterwards it is
    what the program chooses."""
    if _version(tensorflow) < (2, 0):
        yield
        return
    before, keras = {name: os.environ.get(name) for name in KERAS_DEFAULTS}, tensorflow.keras
    os.environ.update(KERAS_DEFAULTS)
    try:
        tensorflow.keras = importlib.import_module('tf_keras')
        yield
    except ModuleNotFoundError as error:
        if error.name != 'tf_keras':
            raise
        raise InputError("TensorFlow %s needs the package tf-keras: %s" % (tensorflow.__version__, INSTALL))
    finally:
        tensorflow.keras = keras
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _check(tensorflow):
    version = _version(tensorflow)
    if not ((1, 13) <= version < (2, 0) or (2, 16) <= version):
        raise InputError("TensorFlow %s is not supported: use %s; %s" % (tensorflow.__version__, SUPPORTED, INSTALL))
    with _keras_2(tensorflow):
        import tensorpack.libinfo
        getattr(tensorflow.compat.v1.layers, 'Layer', None)    # TensorFlow loads them when they are first used
    if version >= (2, 0) and _version(tensorpack.libinfo) < (0, 11):
        raise InputError("Tensorpack %s does not run on TensorFlow %s: use %s; %s" % (
            tensorpack.libinfo.__version__, tensorflow.__version__, SUPPORTED, INSTALL))


need_memory()
# While modules are imported nothing becomes garbage: not to look for it saves a fifth of the time.
gc.disable()
try:
    with quiet_stderr:
        import tensorflow
    _check(tensorflow)
    for _package in ('cv2', 'simplejpeg', 'tabulate', 'tqdm', 'filelock'):    # so that it is reported here if one is missing
        importlib.import_module(_package)
    from tensorpack.compat import tfv1 as tf
except InputError:
    raise
except ModuleNotFoundError as error:
    raise InputError("the package '%s' is missing: %s" % (error.name, INSTALL))
except Exception as error:    # a library that cannot be loaded, or a version that does not go with the others
    reason = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    short = re.search('cannot allocate memory|failed to map segment|start new thread', str(error), re.I)
    if short or isinstance(error, MemoryError):
        raise InputError("memory is short (%s): close other programs, or raise the limit (ulimit -v)" % reason[-1].strip())
    raise InputError("the packages cannot be imported (%s): %s" % (reason[-1].strip(), INSTALL))
finally:
    getattr(gc, 'freeze', lambda: None)()    # what is there now stays; CPython 3.6 has no such function
    gc.enable()

tf.logging.set_verbosity(tf.logging.ERROR)
# Tensorpack calls layers by a method that tf-keras deprecates.
warnings.filterwarnings('ignore', message='`layer.(apply|add_variable)` is deprecated')
TENSORFLOW_VERSION = tensorflow.__version__


@contextlib.contextmanager
def tensors_by_identity():
    """Inside, variables are the same if they are one object, as in TensorFlow 1: a second less for Keras' look-ups of a network."""
    by_value = _version(tensorflow) >= (2, 0) and tf.Tensor._USE_EQUALITY
    if by_value:
        tf.disable_tensor_equality()
    try:
        yield
    finally:
        if by_value:
            tf.enable_tensor_equality()


def save_tensors(prefix, names, tensors):
    """The operation behind tf.train.Saver: it writes `tensors` under `names` as checkpoint `prefix`, a string tensor ()."""
    try:
        save = tf.raw_ops.SaveV2
    except AttributeError:    # TensorFlow 1.13
        from tensorflow.python.ops.gen_io_ops import save_v2 as save
    return save(prefix=prefix, tensor_names=names, shape_and_slices=[''] * len(names), tensors=tensors)


def inter_op_threads(workers):
    """``inter_op_parallelism_threads`` for `workers` threads that each run a session alone: TensorFlow 2 then computes in these."""
    return workers if _version(tensorflow) < (2, 0) else -1


def gpu_count():
    """Number of GPUs that TensorFlow can use."""
    try:
        return len(tensorflow.config.experimental.list_physical_devices('GPU'))
    except AttributeError:    # TensorFlow 1.13
        from tensorflow.python.client import device_lib
        return sum(device.device_type == 'GPU' for device in device_lib.list_local_devices())


def need_gpus(names):
    """Raises InputError, which says why as far as it can be known, unless TensorFlow can use the GPUs `names`, such as '0,1'."""
    wanted, usable = len(names.split(',')), gpu_count()
    if usable >= wanted:
        return
    if usable:
        why = "TensorFlow can use %d of these %d GPUs: name those that 'nvidia-smi' shows" % (usable, wanted)
    else:
        why = only_cpus() or (
            "TensorFlow finds none, though there is a driver: name one that 'nvidia-smi' shows, or install the CUDA libraries, "
            "as with \"pip install 'tensorflow[and-cuda]==%s'\"" % TENSORFLOW_VERSION)
    raise InputError("--gpu %s cannot be used: %s; or leave --gpu out" % (names, why))


def gradient_mode(gpus):
    """How Tensorpack's replicated trainer adds up the gradients of `gpus` GPUs of one process, 0 for the CPU.

    TensorFlow 2's NCCL operations may wait for each other for ever. It adds naively here, and needs a process for each GPU: see
    `wants_processes`. Source: https://github.com/tensorflow/tensorflow/issues/41539
    """
    if not gpus:
        return 'cpu'
    return 'hierarchical' if gpus == 8 else 'gpu' if wants_processes() else 'nccl'


def wants_processes():
    """Whether several GPUs of a machine are better used by a process each, which collective operations connect."""
    return _version(tensorflow) >= (2, 0)


def only_cpus():
    """Why TensorFlow can have no GPU here, None if it may have some. It is not asked for them: TensorFlow 1 would take them."""
    test = tensorflow.test
    if not getattr(test, 'is_built_with_gpu_support', test.is_built_with_cuda)():
        return "the installed TensorFlow %s is one for CPUs alone: install one for GPUs" % TENSORFLOW_VERSION
    if test.is_built_with_cuda() and not _loads('libcuda.so.1'):
        return ("this machine has no NVIDIA driver, or this container no access to it, which 'docker run --gpus all' gives: see "
                "whether 'nvidia-smi' works")
    return None


def computes_on_gpu():
    """Whether TensorFlow will take a GPU."""
    if only_cpus() is not None or os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return False
    return _version(tensorflow) < (2, 0) or gpu_count() > 0    # TensorFlow 1 would take memory of all to count them


def need_mixed_precision():
    """Raises InputError where --amp is not possible."""
    if _version(tensorflow) < (1, 14):
        raise InputError("--amp needs TensorFlow 1.14 or later, and this is %s: leave it out" % TENSORFLOW_VERSION)
    if not computes_on_gpu():
        raise InputError("--amp is for GPUs: %s; or leave --amp out" % (only_cpus() or "name one with --gpu"))


def loss_scaled(optimizer):
    """An optimizer whose loss is scaled, dynamically, so that float16 gradients do not vanish; it skips steps that overflow.

    Source: Micikevicius et al., "Mixed Precision Training" (2018), section 3.2; tf.train.experimental.DynamicLossScale.
    """
    from tensorflow.python.training.experimental import loss_scale, loss_scale_optimizer
    return loss_scale_optimizer.MixedPrecisionLossScaleOptimizer(optimizer, loss_scale.DynamicLossScale())


def _loads(library):
    try:
        return ctypes.CDLL(library) is not None
    except OSError:
        return False


def need_version_2(what):
    """Raises InputError on TensorFlow 1."""
    if _version(tensorflow) < (2, 0):
        raise InputError("%s needs TensorFlow 2, this is %s: %s" % (what, TENSORFLOW_VERSION, INSTALL))
