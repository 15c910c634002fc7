"""The images as their users run them: the era's, which `make test-docker` builds and names in GHOSTNET_IMAGE, and today's without
and with the CUDA libraries, which `make test-docker-tf2` builds and names in GHOSTNET_IMAGE_TF2 and GHOSTNET_IMAGE_TF2_GPU.
"""
import os
import subprocess

import pytest

from conftest import SHARED

IMAGE, TODAY, CUDA = (os.environ.get('GHOSTNET_IMAGE' + suffix) for suffix in ('', '_TF2', '_TF2_GPU'))
era = pytest.mark.skipif(not IMAGE, reason="needs GHOSTNET_IMAGE, which `make test-docker` builds")
today = pytest.mark.skipif(not TODAY, reason="needs GHOSTNET_IMAGE_TF2, which `make test-docker-tf2` builds")
HARDENED = ['--read-only', '--tmpfs', '/tmp', '--network', 'none', '--user', '12345']


def docker_run(*args, **kwargs):
    """Runs `image`, by default the era's, with docker flags `flags` and `args`; returns (exit status, stdout, stderr)."""
    run = subprocess.run(['docker', 'run', '--rm'] + kwargs.get('flags', []) + [kwargs.get('image', IMAGE)] + [
                             str(arg) for arg in args],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=2400)
    return run.returncode, run.stdout, run.stderr


@pytest.fixture
def mounts():
    """The real images and the calibrated checkpoint, where the image looks for them."""
    return ['-v', os.path.join(SHARED, 'data', 'ilsvrc12-mini') + ':/data:ro',
            '-v', os.path.join(SHARED, 'reference', 'calibrated') + ':/models:ro']


@era
@pytest.mark.parametrize('flags', [[], HARDENED], ids=['plain', 'hardened'])
def test_nothing_mounted_reproduces_the_digits(flags):
    status, out, err = docker_run(flags=flags)
    assert status == 0 and out.splitlines()[-1] == 'EXACT', err


@era
@pytest.mark.parametrize('counts, verdict, status', [
    ((218, 131), 'EXACT', 0), ((220, 131), 'WITHIN', 0), ((218, 160), 'DIFFERENT', 1)])
def test_reproduce(mounts, counts, verdict, status):
    found = docker_run('reproduce', '--wrong_top1', counts[0], '--wrong_top5', counts[1], flags=mounts + HARDENED)
    assert found[0] == status and found[1].splitlines()[-1] == verdict, found[2]


@era
def test_reproduce_that_cannot_run(mounts):
    status, out, err = docker_run('reproduce', flags=mounts)    # neither the published checkpoint nor 50,000 images
    assert status == 2 and out == '' and err == "reproduce: the tree /data has 300 validation images, not 50000\n"
    status, _, err = docker_run('reproduce', '--images', 300, flags=mounts)
    assert status == 2 and 'is not the published file' in err
    status, _, err = docker_run('reproduce')
    assert status == 2 and 'there is no folder /data' in err and err.count('\n') == 1


@era
def test_other_arguments_go_to_main(mounts):
    status, out, err = docker_run('--eval', '--data_dir', '/data', '--load', '/models/ghostnet_checkpoint', flags=mounts)
    assert status == 0 and '300 images, of which wrong: 218 by top-1, 131 by top-5' in out, err
    assert docker_run('--eval', '--load', 'x')[0] == 2


@era
def test_the_test_suite_passes_inside():
    # The slow ones are `make test-tf1`'s, on the same packages.
    flags = ['-v', SHARED + ':/shared:ro', '--entrypoint', 'python', '--tmpfs', '/tmp:exec', '--read-only']
    status, out, err = docker_run('-m', 'pytest', '-q', '-n', 'logical', '-p', 'no:cacheprovider', '-m', 'not slow', 'tests',
                                  flags=flags)
    assert status == 0, out[-3000:] + err[-1000:]


@era
def test_training_has_more_batches_than_fit_into_shared_memory():
    """Docker gives a container 64 MB, and three batches take 150."""
    status, _, err = docker_run('--train', '--data_dir', 'data/digits', '--batch', 1024, '--width_ratio', 0.1, '--image_size', 128,
                                '--epochs', 1, '--log_dir', '/tmp/log', flags=HARDENED)
    assert status == 0 and err.count('/dev/shm has no room for 151 MB: the batches go through /tmp') == 1, err[-2000:]


@era
@pytest.mark.parametrize('cpus, cores', [('0.5', 1), ('1', 1), ('1.5', 2)])
def test_a_quota_of_cpus_limits_the_cores(cpus, cores):
    status, out, err = docker_run('-c', 'from command_line import cores; print(cores())',
                                  flags=['--cpus', cpus, '--entrypoint', 'python'])
    assert status == 0 and int(out) == min(cores, os.cpu_count()), err


@era
def test_size():
    """Uncompressed, at most 1.5 GB."""
    size = subprocess.check_output(['docker', 'image', 'inspect', '--format', '{{.Size}}', IMAGE])
    assert int(size) <= 1.5e9


@today
@pytest.mark.parametrize('image', [TODAY, CUDA], ids=['cpu', 'cuda'])
def test_todays_stack_reproduces_the_digits_and_says_that_there_is_no_gpu(image):
    status, out, err = docker_run(image=image, flags=HARDENED)
    assert status == 0 and out.splitlines()[-1] == 'EXACT', err
    status, _, err = docker_run('--eval', '--data_dir', 'data/digits', '--load', 'models/digits_checkpoint', '--gpu', 0,
                                image=image)
    assert status == 2 and err.count('\n') == 1 and (
        "--gpu 0 cannot be used: this machine has no NVIDIA driver, or this container no access to it, which 'docker run --gpus "
        "all' gives" in err)


LOAD_ALL = """
import ctypes, glob, sysconfig
for path in glob.glob(sysconfig.get_paths()['purelib'] + '/nvidia/*/lib/lib*.so.*'):
    try:
        ctypes.CDLL(path)
        print(path.split('/')[-3])
    except OSError as error:
        assert str(error).startswith('libcuda.so.1: '), error
"""


@today
def test_the_cuda_libraries_load_but_for_what_asks_for_the_driver():
    """TensorFlow must be imported first: it loads what some of them need."""
    flags = ['--entrypoint', 'python']
    status, out, err = docker_run('-c', 'import tensorflow' + LOAD_ALL, image=CUDA, flags=flags)
    assert status == 0 and {'cublas', 'cuda_runtime', 'cudnn', 'cufft', 'nccl'} <= set(out.split()), err
    assert docker_run('-m', 'pip', 'check', image=CUDA, flags=flags)[0] == 0
    assert docker_run('-c', LOAD_ALL, image=TODAY, flags=flags)[:2] == (0, '')    # the CPU's image carries none
