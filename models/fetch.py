"""Downloads and verifies the published GhostNet checkpoint: bytes by git blob id, tensors by CRC, variables against the graph.

    python models/fetch.py               # download into models/
    python models/fetch.py --from DIR    # take the two files from DIR instead
    python models/fetch.py --verify      # verify what is in models/
"""
import argparse
import hashlib
import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request

from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
BLOCK = 1 << 16


class FetchError(Exception):
    """The checkpoint cannot be had, or is not the right one. The message is one line that says what to do."""


def git_blob(path):
    """The git blob id of a file: SHA-1 of ``blob <size>\\0`` and its bytes."""
    digest = hashlib.sha1(b'blob %d\0' % os.path.getsize(path))
    with open(path, 'rb') as f:
        for block in iter(lambda: f.read(BLOCK), b''):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(path):
    """What is published of a checkpoint: ``checkpoint``, its ``files`` and the ``expected`` result. Raises ValueError."""
    with open(path) as f:
        manifest = json.load(f)
    try:
        for entry in manifest['files']:
            entry['name'], entry['bytes'], entry['git_blob']
        manifest['checkpoint'], [manifest['expected'][name] for name in ('images', 'wrong_top1', 'wrong_top5')]
    except (KeyError, TypeError):
        raise ValueError("%s is no manifest of a checkpoint, such as models/published.json" % path)
    return manifest


def check_blob(path, entry):
    """Raises FetchError if the file is not the one of manifest entry `entry`."""
    if not os.path.isfile(path):
        raise FetchError("%s is missing" % path)
    found = git_blob(path)
    if found != entry['git_blob']:
        raise FetchError("%s is not the published file: %d bytes with git blob id %s, not %d with %s"
                         % (path, os.path.getsize(path), found, entry['bytes'], entry['git_blob']))


def download(entry, path, timeout):
    """Downloads the rest of what `path` has of a file already.

    Raises:
        FetchError: the server does not answer, refuses, stalls for `timeout` seconds or ends early. What came is kept.
    """
    have = os.path.getsize(path) if os.path.exists(path) else 0
    request = urllib.request.Request(entry['address'], headers={'Range': 'bytes=%d-' % have} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            if response.status != 206:
                have = 0    # a server that does not resume starts over
            with open(path, 'ab' if have else 'wb') as f, tqdm(
                    total=entry['bytes'], initial=have, unit='B', unit_scale=True, desc=entry['name'], leave=False,
                    disable=None) as bar:
                while f.tell() < entry['bytes']:    # whatever else the server would send
                    block = response.read(min(BLOCK, entry['bytes'] - f.tell()))
                    if not block:
                        raise FetchError("%s ended after %d of %d bytes: run this again to go on"
                                         % (entry['address'], f.tell(), entry['bytes']))
                    f.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        raise FetchError("%s: the server says %d %s" % (entry['address'], error.code, error.reason))
    except (OSError, http.client.HTTPException) as error:
        raise FetchError("%s cannot be downloaded (%s)" % (entry['address'], getattr(error, 'reason', None) or error))


def obtain(entry, path, timeout):
    """Makes `path` the file of manifest entry `entry`; wrong bytes are removed, not left to be resumed from."""
    resumed = os.path.exists(path)
    if not (resumed and os.path.getsize(path) >= entry['bytes']):
        download(entry, path, timeout)
    try:
        check_blob(path, entry)
    except FetchError:
        os.remove(path)
        if not resumed:
            raise
        obtain(entry, path, timeout)


def verify_tensors(prefix):
    """Reads every tensor of the checkpoint and compares all variables with GhostNet's graph.

    Raises:
        FetchError: a tensor has the wrong CRC, or a variable is missing, extra or of another shape.
        ImportError: TensorFlow or another package is missing.
    """
    sys.path.insert(0, os.path.dirname(HERE))
    from tf_compat import tf    # only here, for it takes seconds
    from ghostnet import GhostNet
    from imagenet_utils import CheckpointRestore, InputError, quiet_logger
    from tensorpack.tfutils.tower import PredictTowerContext
    quiet_logger()
    try:
        restore = CheckpointRestore(prefix)
        with tf.Graph().as_default(), PredictTowerContext(''):
            GhostNet().get_logits(tf.placeholder(tf.uint8, [None, 224, 224, 3]))
            restore._setup_graph()
    except InputError as error:
        raise FetchError(error)
    print("%s: all %d variables are sound and fit GhostNet" % (prefix, len(restore.values)))


def verify(manifest, folder):
    """Verifies the checkpoint in `folder` wholly. Raises what `verify_tensors` does, and FetchError."""
    for entry in manifest['files']:
        check_blob(os.path.join(folder, entry['name']), entry)
        print("%s: git blob id %s, as published" % (os.path.join(folder, entry['name']), entry['git_blob']))
    verify_tensors(os.path.join(folder, manifest['checkpoint']))


def fetch(manifest, folder, source, timeout):
    """Puts the checkpoint into `folder` under its final names once it is verified; until then it is in ``folder/.fetch``."""
    work = os.path.join(folder, '.fetch')
    if source is not None:
        verify(manifest, source)
    os.makedirs(work, exist_ok=True)
    for entry in manifest['files']:
        path = os.path.join(work, entry['name'])
        if source is None:
            obtain(entry, path, timeout)
        else:
            shutil.copyfile(os.path.join(source, entry['name']), path)
    if source is None:
        verify(manifest, work)
    for entry in manifest['files']:
        path = os.path.join(work, entry['name'])
        with open(path, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(path, os.path.join(folder, entry['name']))
    shutil.rmtree(work)
    print("--load %s" % os.path.join(folder, manifest['checkpoint']))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--from', dest='source', metavar='DIR', help="take the two files from there instead")
    parser.add_argument('--verify', action='store_true', help="verify what is there, and change nothing")
    parser.add_argument('--to', metavar='DIR', default=HERE, help="where the checkpoint goes, or is (default: %(default)s)")
    parser.add_argument('--manifest', metavar='FILE', default=os.path.join(HERE, 'published.json'),
                        help="which checkpoint (default: %(default)s)")
    parser.add_argument('--timeout', type=float, metavar='SECONDS', default=60, help="for a server that stalls (default: 60)")
    args = parser.parse_args()
    try:
        manifest = read_manifest(args.manifest)
        if args.verify:
            verify(manifest, args.to)
        else:
            fetch(manifest, args.to, args.source, args.timeout)
    except FetchError as error:
        by_hand = '' if args.source or args.verify else "; or get %s by other means and use --from DIR" % ' and '.join(
            entry['address'] for entry in manifest['files'])
        return "fetch.py: %s%s" % (error, by_hand)
    except (ImportError, OSError, ValueError) as error:
        return "fetch.py: %s" % error
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == '__main__':
    message = main()
    if message is not None:
        sys.stderr.write(message + "\n")
        sys.exit(2)
