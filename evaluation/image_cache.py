"""Preprocessed validation images, kept in one file, so that the next evaluation on the same tree decodes nothing."""
import contextlib
import hashlib
import json
import os
import threading
import zlib

import cv2
import filelock
import numpy as np

from augmentation import PREPROCESSING_VERSION, kept_images
from command_line import InputError, atomic_write
from recipe import IMAGE_SIZE


def row_type(size):
    """The dtype of a row: an image of `size` x `size` pixels, its CRC-32, and `file_state` of the file that it was read from."""
    return np.dtype([('image', 'u1', (size, size, 3)), ('checksum', '<u4'), ('state', '<i8', (4,))])


def file_state(path):
    """What changes when a file does, four integers: size, times of modification and of change in ns, inode. (Of the times, a user
    can set the first alone. Both are as fine as the file system's clock, some milliseconds.)"""
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError("cannot read the image %s: %s" % (path, error.strerror))
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino % 2 ** 63


def cache_file(folder, data_dir, images, read_picture):
    """The file in `folder` for these images: its name follows from the tree, the list, what preprocesses them, their size, and
    whether broken ones are accepted."""
    key = [os.path.realpath(data_dir), [os.path.relpath(path, data_dir) for path, _ in images], PREPROCESSING_VERSION,
           cv2.__version__] + ['accept'] * (read_picture.broken == 'accept')
    if read_picture.image_size != IMAGE_SIZE:    # caches of older versions are of this one
        key.append(read_picture.image_size)
    return os.path.join(folder, 'images-%s.npy' % hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16])


@contextlib.contextmanager
def write_errors_named(path):
    """Turns what the system refuses into an InputError that names the cache."""
    try:
        yield
    except OSError as error:
        raise InputError("cannot write the cache %s: %s" % (path, error.strerror))


class Rows:
    """The rows of an open NumPy file, for several threads. Read and written, not memory-mapped: a file that somebody truncates
    would end the process with SIGBUS.

    Args:
        file: opened for reading, or also for writing.
        offset (int): where its first row is.
        row (np.dtype): of ``row_type``.
    """

    def __init__(self, file, offset, row):
        self.file, self.offset, self.row, self.lock = file, offset, row, threading.Lock()

    def read(self, start, end):
        """Rows `start` to `end` - 1; fewer if the file has fewer."""
        with self.lock:
            self.file.seek(self.offset + start * self.row.itemsize)
            data = self.file.read((end - start) * self.row.itemsize)
        return np.frombuffer(data[:len(data) // self.row.itemsize * self.row.itemsize], self.row)

    def write(self, start, rows):
        with self.lock:
            self.file.seek(self.offset + start * self.row.itemsize)
            self.file.write(rows.tobytes())

    def states(self, count):
        """The states of the first `count` rows, int64 (N, 4)."""
        place = self.row.fields['state'][1]
        with self.lock:
            parts = []
            for row in range(count):
                self.file.seek(self.offset + row * self.row.itemsize + place)
                parts.append(self.file.read(self.row.itemsize - place))
        data = b''.join(parts)
        return np.frombuffer(data[:len(data) // 32 * 32], '<i8').reshape(-1, 4)


def open_rows(stack, path, count, row):
    """The Rows of the cache at `path`, open as long as `stack`; None if it is damaged, or has another number or type of them."""
    file = stack.enter_context(open(path, 'rb'))
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        whole = (version, shape, fortran_order, dtype) == ((1, 0), (count,), False, row)
    except Exception:    # no NumPy file, or one that was cut or damaged: ValueError, tokenize.TokenError and others
        whole = False
    offset = file.tell()
    return Rows(file, offset, row) if whole and os.path.getsize(path) == offset + count * row.itemsize else None


@contextlib.contextmanager
def cached(folder, data_dir, images, read_picture):
    """A function from (first, last + 1) to what ``kept_images`` returns for these: from the cache in `folder` where that is there
    and true, else from their files, and then the cache is there when the context ends without an exception.

    The cache is a NumPy file of rows in the order of `images`. Without all of them there is none.

    Args:
        data_dir (str): the ILSVRC12 tree.
        images (list of [path, label]): from ``dataset.read_images``.
        read_picture (PictureReader): how to read one, and in which size.
    Raises:
        InputError: the cache cannot be written, or an image in it is damaged, or see ``kept_images``.
    """
    path, row = cache_file(folder, data_dir, images, read_picture), row_type(read_picture.image_size)
    states = np.array([file_state(image) for image, _ in images], np.int64)
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(folder, exist_ok=True)
            there = os.path.exists(path)
            rows = open_rows(stack, path, len(images), row) if there else None
        except OSError as error:
            raise InputError("cannot use the cache folder %s: %s" % (folder, error.strerror))
        changed = len(images)
        if rows is not None:
            known = rows.states(len(images))
            changed = int((known != states).any(1).sum()) if known.shape == states.shape else len(images)
        if changed == 0:
            print("%d images from the cache %s" % (len(images), path))
            yield reader(rows, path)
            return
        if there:
            print("the cache %s is made again: %s" % (
                path, "it is damaged" if rows is None else "%d of its images have changed" % changed))
    with filling(path, states, row, read_picture) as rows:
        def read(start, end):
            result, kept = kept_images([image for image, _ in images[start:end]], read_picture)
            if rows is not None and kept.all():
                filled = np.empty(end - start, row)
                filled['image'], filled['state'] = result, states[start:end]
                filled['checksum'] = [zlib.crc32(image) for image in result]
                with write_errors_named(path):
                    rows.write(start, filled)
            return result, kept
        yield read


def reader(rows, path):
    """A function from (first, last + 1) to these images of the cache, and that they are all there."""
    def read(start, end):
        found = rows.read(start, end)
        images = found['image'].copy()
        if len(images) < end - start or any(
                zlib.crc32(image) != checksum for image, checksum in zip(images, found['checksum'])):
            with contextlib.suppress(OSError):    # another worker removed it, or nobody can here
                os.remove(path)
            raise InputError("the cache %s is damaged: %s run the same command again" % (
                path, "remove it and" if os.path.exists(path) else "it has been removed,"))
        return images, np.ones(len(images), bool)
    return read


class LeftOut(Exception):
    """The cache would lack images, and does not get its name."""


@contextlib.contextmanager
def filling(path, states, row, read_picture):
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
                rows = allocate(f, len(states), row)
            yield rows
            if read_picture.left_out:
                raise LeftOut
    except LeftOut:
        print("the cache %s is not kept: it would lack the pictures that are left out" % path)
    finally:
        lock.release()


def allocate(f, count, row):
    """Makes the open file `f` a NumPy file of so many rows of that type that has its whole size on the disk; its Rows."""
    np.lib.format.write_array_header_1_0(f, {
        'descr': np.lib.format.dtype_to_descr(row), 'fortran_order': False, 'shape': (count,)})
    f.flush()
    offset = f.tell()
    if hasattr(os, 'posix_fallocate'):    # a full disk shows here, not after an hour
        os.posix_fallocate(f.fileno(), offset, count * row.itemsize)
    else:
        f.truncate(offset + count * row.itemsize)
    return Rows(f, offset, row)
