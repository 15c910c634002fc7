"""Downloads and verifies the published GhostNet checkpoint: bytes by git blob id, tensors by CRC, variables against the graph.

    python models/fetch.py               # download into models/
    python models/fetch.py --from DIR    # take the two files from DIR instead
    python models/fetch.py --verify      # verify what is in models/
"""
import contextlib
import hashlib
import http.client
import importlib.util
import json
import os
import shutil
import sys
import urllib.error
import urllib.request

# So that this script runs from any folder.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from command_line import InputError, Parser, number, quiet_tensorpack, run, sync

HERE = os.path.dirname(os.path.abspath(__file__))
BLOCK = 1 << 16


class LocalError(InputError):
    """What cannot be mended by getting the files by other means."""


def git_blob(path):
    """The git blob id of a file: SHA-1 of ``blob <size>\\0`` and its bytes."""
    digest = hashlib.sha1(b'blob %d\0' % os.path.getsize(path))
    with open(path, 'rb') as f:
        for block in iter(lambda: f.read(BLOCK), b''):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(path):
    """What is published of a checkpoint: ``checkpoint``, its ``files`` and the ``expected`` result. Raises InputError, OSError."""
    try:
        with open(path, encoding='utf-8') as f:
            manifest = json.load(f)
        for entry in manifest['files']:
            entry['name'], entry['bytes'], entry['git_blob']
        manifest['checkpoint'], [manifest['expected'][name] for name in ('images', 'wrong_top1', 'wrong_top5')]
    except (KeyError, TypeError, ValueError):    # a key is missing, a list or a text stands for an object, or it is not JSON
        raise InputError("%s is not a manifest of a checkpoint, such as models/published.json" % path)
    return manifest


def check_packages():
    """Raises ModuleNotFoundError if a package is missing that is needed after the download."""
    for package in ('tqdm', 'filelock', 'tensorflow', 'tensorpack'):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)


def check_blob(path, entry):
    """Raises InputError if the file is not the one of manifest entry `entry`."""
    if not os.path.isfile(path):
        raise InputError("%s is missing" % path)
    found = git_blob(path)
    if found != entry['git_blob']:
        raise InputError("%s is not the published file: %d bytes with git blob id %s, not %d with %s"
                         % (path, os.path.getsize(path), found, entry['bytes'], entry['git_blob']))


def write(file, block):
    """Writes bytes to an unbuffered file. Raises LocalError if the disk is full, which is no fault of the server's."""
    try:
        while block:
            block = block[file.write(block):]
    except OSError as error:
        raise LocalError("cannot write %s: %s" % (file.name, error.strerror))


def download(entry, path, timeout):
    """Downloads the rest of a file that `path` has the start of, or all of it.

    Raises:
        InputError: the server does not answer, refuses, stalls for `timeout` seconds or ends early. What came is kept.
    """
    from tqdm import tqdm
    if 'address' not in entry:
        raise InputError("the manifest has no address of %s" % entry['name'])
    have = os.path.getsize(path) if os.path.exists(path) else 0
    request = urllib.request.Request(entry['address'], headers={'Range': 'bytes=%d-' % have} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            if response.status != 206:
                have = 0    # a server that does not resume starts over
            with open(path, 'ab' if have else 'wb', buffering=0) as f, tqdm(
                    total=entry['bytes'], initial=have, unit='B', unit_scale=True, desc=entry['name'], leave=False,
                    disable=None) as bar:
                while f.tell() < entry['bytes']:    # whatever else the server would send
                    block = response.read(min(BLOCK, entry['bytes'] - f.tell()))
                    if not block:
                        raise InputError("%s ended after %d of %d bytes: run this again to continue"
                                         % (entry['address'], f.tell(), entry['bytes']))
                    write(f, block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        raise InputError("%s: the server answers %d %s" % (entry['address'], error.code, error.reason))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError("%s cannot be downloaded (%s)" % (entry['address'], getattr(error, 'reason', None) or error))


def obtain(entry, path, timeout):
    """Makes `path` the file of manifest entry `entry`; wrong bytes are removed, not left to be resumed from."""
    resumed = os.path.exists(path)
    if not (resumed and os.path.getsize(path) >= entry['bytes']):
        download(entry, path, timeout)
    try:
        check_blob(path, entry)
    except InputError:
        os.remove(path)
        if not resumed:
            raise
        obtain(entry, path, timeout)


def verify_tensors(prefix):
    """Reads every tensor of the checkpoint and compares all variables with GhostNet's graph.

    Raises:
        InputError: a tensor has the wrong CRC, or a variable is missing, extra or of another shape.
        ImportError: TensorFlow or another package is missing.
    """
    from tf_compat import tf  # only here, for it takes seconds

    from tensorpack.tfutils.tower import PredictTowerContext

    from checkpoints import CheckpointRestore
    from ghostnet import GhostNet
    quiet_tensorpack()
    restore = CheckpointRestore(prefix)
    with tf.Graph().as_default(), PredictTowerContext(''):
        GhostNet().get_logits(tf.placeholder(tf.uint8, [None, 224, 224, 3]))
        restore.compare_with_graph()
    print("%s: all %d variables are sound and fit GhostNet" % (prefix, len(restore.values)))


def verify(manifest, folder):
    """Verifies the checkpoint in `folder`: bytes, tensors and variables. Raises what `check_blob` and `verify_tensors` do."""
    for entry in manifest['files']:
        check_blob(os.path.join(folder, entry['name']), entry)
        print("%s: git blob id %s, as published" % (os.path.join(folder, entry['name']), entry['git_blob']))
    verify_tensors(os.path.join(folder, manifest['checkpoint']))


@contextlib.contextmanager
def work_locked(work):
    """Makes folder `work`, which no other process gets meanwhile. Raises LocalError if one has it, or if it is a link."""
    import filelock
    path = os.path.join(work, '.lock')    # it stays: two could have it while one of them removes it
    for place in (work, path):
        if os.path.islink(place):
            raise LocalError("%s is a link: remove it" % place)
    os.makedirs(work, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise LocalError("another fetch.py is at work in %s: wait until it has ended" % work)
    try:
        yield
    finally:
        lock.release()


def fetch(manifest, folder, source, timeout):
    """Puts the checkpoint into `folder` under its final names once it is verified; until then it is in ``folder/.fetch``."""
    work = os.path.join(folder, '.fetch')
    if source is not None:
        for entry in manifest['files']:
            check_blob(os.path.join(source, entry['name']), entry)
    with work_locked(work):
        paths = [os.path.join(work, entry['name']) for entry in manifest['files']]
        for path, entry in zip(paths, manifest['files']):
            if os.path.islink(path):    # what it leads to is not written to
                os.remove(path)
            if source is None:
                obtain(entry, path, timeout)
            else:
                shutil.copyfile(os.path.join(source, entry['name']), path)
        verify(manifest, work)
        for path, entry in zip(paths, manifest['files']):
            sync(path)
            os.replace(path, os.path.join(folder, entry['name']))
    print("--load %s" % os.path.join(folder, manifest['checkpoint']))


def parse_args():
    parser = Parser(prog='fetch.py', description=__doc__.splitlines()[0])
    parser.add_argument('--from', dest='source', metavar='DIR', help="take the two files from there instead")
    parser.add_argument('--verify', action='store_true', help="verify what is there, and change nothing")
    parser.add_argument('--to', metavar='DIR', default=HERE, help="where the checkpoint goes, or is (default: %(default)s)")
    parser.add_argument('--manifest', metavar='FILE', default=os.path.join(HERE, 'published.json'),
                        help="which checkpoint (default: %(default)s)")
    parser.add_argument('--timeout', type=number(float, lambda seconds: seconds > 0, "a positive number of seconds"),
                        metavar='SECONDS', default=60, help="for a server that stalls (default: 60)")
    return parser.parse_args()


def main(args):
    manifest = read_manifest(args.manifest)
    check_packages()
    try:
        if args.verify:
            verify(manifest, args.to)
        else:
            fetch(manifest, args.to, args.source, args.timeout)
    except InputError as error:
        if args.source or args.verify or isinstance(error, LocalError):
            raise
        raise InputError("%s; or get %s by other means and use --from DIR" % (
            error, ' and '.join(entry.get('address', entry['name']) for entry in manifest['files'])))


if __name__ == '__main__':
    run(main, parse_args(), 'fetch.py', target='fetch')
