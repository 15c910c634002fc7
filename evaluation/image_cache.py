"""Preprocessed validation images, kept in one file, so that the next evaluation on the same tree decodes nothing."""
import contextlib
import hashlib
import json
import os
import zlib

import cv2
import filelock
import numpy as np

from augmentation import IMAGE_SIZE, PREPROCESSING_VERSION, eval_images
from command_line import InputError, atomic_write

# A row is an image, its CRC-32, and `file_state` of the file that it was read from.
ROW = np.dtype([('image', 'u1', (IMAGE_SIZE, IMAGE_SIZE, 3)), ('checksum', '<u4'), ('state', '<i8', (4,))])


def file_state(path):
    """What changes when a file does, four integers: size, times of modification and of change in ns, inode. (Of the times, a user
    can set the first alone. Both are as fine as the file system's clock, some milliseconds.)"""
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError("cannot read the image %s: %s" % (path, error.strerror))
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino % 2 ** 63


def cache_file(folder, data_dir, images):
    """The file in `folder` for these images: its name follows from the tree, the list, and what preprocesses them."""
    key = [os.path.realpath(data_dir), [os.path.relpath(path, data_dir) for path, _ in images], PREPROCESSING_VERSION,
           cv2.__version__]
    return os.path.join(folder, 'images-%s.npy' % hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16])


@contextlib.contextmanager
def write_errors_named(path):
    """Turns what the system refuses into an InputError that names the cache."""
    try:
        yield
    except OSError as error:
        raise InputError("cannot write the cache %s: %s" % (path, error.strerror))


@contextlib.contextmanager
def cached(folder, data_dir, images):
    """A function from (first, last + 1) to these of the images, preprocessed: from the cache in `folder` where that is there and
    true, else from their files, and then the cache is there when the context ends without an exception.

    The cache is a NumPy file, memory-mapped, of ROWs in the order of `images`.

    Args:
        data_dir (str): the ILSVRC12 tree.
        images (list of [path, label]): from ``dataset.read_images``.
    Raises:
        InputError: the cache cannot be written, or an image in it is damaged, or see ``eval_images``.
    """
    path = cache_file(folder, data_dir, images)
    states = np.array([file_state(image) for image, _ in images], np.int64)
    try:
        os.makedirs(folder, exist_ok=True)
        rows = np.lib.format.open_memmap(path, mode='r') if os.path.exists(path) else None
    except OSError as error:
        raise InputError("cannot use the cache folder %s: %s" % (folder, error.strerror))
    except Exception:    # no NumPy file, or one that was cut or damaged: ValueError, tokenize.TokenError and others
        rows = np.empty(0)
    whole = rows is not None and rows.dtype == ROW and rows.shape == (len(images),)
    changed = int((rows['state'] != states).any(1).sum()) if whole else len(images)
    if changed == 0:
        print("%d images from the cache %s" % (len(images), path))
        yield reader(rows, path)
        return
    if rows is not None:
        print("the cache %s is made again: %s" % (path, "%d of its images have changed" % changed if whole else "it is damaged"))
    with filling(path, states) as rows:
        def read(start, end):
            result = eval_images([image for image, _ in images[start:end]])
            if rows is not None:
                rows['image'][start:end] = result
                rows['checksum'][start:end] = [zlib.crc32(image) for image in result]
            return result
        yield read


def reader(rows, path):
    """A function from (first, last + 1) to these images of the cache."""
    def read(start, end):
        images = rows['image'][start:end].copy()
        for image, checksum in zip(images, rows['checksum'][start:end]):
            if zlib.crc32(image) != checksum:
                with contextlib.suppress(OSError):    # another worker removed it, or nobody can here
                    os.remove(path)
                raise InputError("the cache %s is damaged: %s run the same command again" % (
                    path, "remove it and" if os.path.exists(path) else "it has been removed,"))
        return images
    return read


@contextlib.contextmanager
def filling(path, states):
    """Rows to fill of what becomes the file `path` in the end; None if another process is filling them."""
    lock = filelock.FileLock(path + '.lock')    # it stays: removing a lock that another process waits for would make two of them
    with write_errors_named(path):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            lock = None
    if lock is None:
        print("another process makes the cache %s: it is not used this time" % path)
        yield None
        return
    try:
        with atomic_write(path, temporary=path + '.unfinished') as f:    # of a process that was killed, it is taken over
            with write_errors_named(path):
                rows = allocate(f, states)
            yield rows
            rows.flush()
    finally:
        lock.release()


def allocate(f, states):
    """Makes the open file `f` a NumPy file of ROWs with these states that has its whole size on the disk; memory-mapped."""
    np.lib.format.write_array_header_1_0(f, {
        'descr': np.lib.format.dtype_to_descr(ROW), 'fortran_order': False, 'shape': states.shape[:1]})
    f.flush()
    offset = f.tell()
    if hasattr(os, 'posix_fallocate'):    # a full disk shows here: who writes to mapped memory would be killed
        os.posix_fallocate(f.fileno(), offset, len(states) * ROW.itemsize)
    else:
        f.truncate(offset + len(states) * ROW.itemsize)
    rows = np.memmap(f.name, ROW, 'r+', offset, states.shape[:1])
    rows['state'] = states
    return rows
