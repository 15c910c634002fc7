"""models/fetch.py against a server on this machine that misbehaves in all the usual ways."""
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, 'models'))
import fetch    # noqa: E402

NAMES = ['ghostnet_checkpoint.data-00000-of-00001', 'ghostnet_checkpoint.index']


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges. `server.misbehave` is called with the handler before each answer; True: it has answered."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get('Range')))
        if self.server.misbehave(self):
            return
        with open(os.path.join(self.server.folder, os.path.basename(self.path)), 'rb') as f:
            data = f.read()
        start = int(self.headers['Range'][6:-1]) if 'Range' in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(calibrated, tmp_path):
    """A server of the calibrated checkpoint, with `manifest`, the path of a manifest that describes it."""
    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    server.folder, server.requests, server.misbehave = os.path.dirname(calibrated), [], lambda handler: False
    address = 'http://127.0.0.1:%d/' % server.server_port
    manifest = {'checkpoint': 'ghostnet_checkpoint', 'expected': {'images': 300, 'wrong_top1': 218, 'wrong_top5': 131}, 'files': [
        {'name': name, 'address': address + name, 'bytes': os.path.getsize(os.path.join(server.folder, name)),
         'git_blob': fetch.git_blob(os.path.join(server.folder, name))} for name in NAMES]}
    server.manifest = str(tmp_path / 'manifest.json')
    with open(server.manifest, 'w') as f:
        json.dump(manifest, f)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.05))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run_fetch(server, folder, *flags):
    run = subprocess.run([sys.executable, os.path.join(ROOT, 'models', 'fetch.py'), '--manifest', server.manifest,
                          '--to', str(folder)] + [str(flag) for flag in flags],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    return run.returncode, run.stdout, run.stderr


def refused(server, folder, *flags):
    """Exit status 2, one line on stderr, which is returned, and nothing under a final name."""
    status, _, err = run_fetch(server, folder, *flags)
    assert status == 2 and err.count('\n') == 1 and 'Traceback' not in err, err
    assert not any(os.path.exists(str(folder / name)) for name in NAMES)
    return err


def test_blob_id_is_gits(shared):
    assert fetch.git_blob(os.path.join(shared, 'reference', 'published', 'ghostnet_checkpoint.index')) \
        == 'bfcadbffd51610ea0e712aac6fe3bd57760e019a'


def test_the_published_manifest(shared):
    with open(os.path.join(ROOT, 'models', 'published.json')) as f:
        manifest = json.load(f)
    index = manifest['files'][1]
    path = os.path.join(shared, 'reference', 'published', index['name'])
    assert (index['bytes'], index['git_blob']) == (os.path.getsize(path), fetch.git_blob(path))
    assert manifest['expected']['wrong_top1'] / manifest['expected']['images'] == manifest['expected']['top1_error'] == 0.26066
    assert manifest['expected']['wrong_top5'] / manifest['expected']['images'] == manifest['expected']['top5_error'] == 0.08614


@pytest.mark.slow
def test_interrupted_and_resumed(server, tmp_path):
    """The connection breaks half-way, twice; each run goes on where the last one ended."""
    folder = tmp_path / 'models'

    def cut(handler):
        if handler.path.endswith('.index'):
            return False
        data = open(os.path.join(server.folder, NAMES[0]), 'rb').read()
        start = int(handler.headers['Range'][6:-1]) if 'Range' in handler.headers else 0
        handler.send_response(206 if start else 200)
        handler.send_header('Content-Length', str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start:start + 5000000])
        handler.close_connection = True
        return True

    server.misbehave = cut
    for _ in range(2):
        err = refused(server, folder)
        assert 'run this again' in err or 'cannot be downloaded' in err
    server.misbehave = lambda handler: False
    status, out, err = run_fetch(server, folder)
    assert status == 0 and 'all 435 variables' in out, err
    ranges = [requested for path, requested in server.requests if path.endswith(NAMES[0])]
    assert ranges[0] is None and int(ranges[1][6:-1]) > 0 and int(ranges[2][6:-1]) > int(ranges[1][6:-1])
    assert sorted(os.listdir(str(folder))) == NAMES
    for name in NAMES:
        assert (folder / name).read_bytes() == open(os.path.join(server.folder, name), 'rb').read()
    assert run_fetch(server, folder, '--verify')[0] == 0


@pytest.mark.slow
def test_a_wrong_start_is_not_resumed_for_ever(server, tmp_path):
    work = tmp_path / 'models' / '.fetch'
    work.mkdir(parents=True)
    (work / NAMES[0]).write_bytes(b'wrong' * 1000)
    assert run_fetch(server, tmp_path / 'models')[0] == 0


def test_wrong_bytes_are_refused(server, calibrated, tmp_path):
    wrong = tmp_path / 'wrong'
    wrong.mkdir()
    for name in NAMES:
        shutil.copyfile(os.path.join(server.folder, name), str(wrong / name))
    with open(str(wrong / NAMES[0]), 'r+b') as f:
        f.seek(12345)
        f.write(b'\x00\x01\x02')
    server.folder = str(wrong)
    assert 'is not the published file' in refused(server, tmp_path / 'models')
    assert not (tmp_path / 'models' / '.fetch' / NAMES[0]).exists()
    assert 'is not the published file' in refused(server, tmp_path / 'models', '--from', wrong)


def test_not_found_and_no_server(server, tmp_path):
    def not_found(handler):
        handler.send_error(404)
        return True

    server.misbehave = not_found
    err = refused(server, tmp_path / 'models')
    assert '404' in err and all('/' + name in err for name in NAMES) and '--from DIR' in err
    with open(server.manifest) as f:
        text = f.read()
    with socket.socket() as free:    # a port where nobody listens
        free.bind(('127.0.0.1', 0))
        with open(server.manifest, 'w') as f:
            f.write(text.replace(str(server.server_port), str(free.getsockname()[1])))
        assert 'cannot be downloaded' in refused(server, tmp_path / 'models')


def test_a_server_that_stalls(server, tmp_path):
    released = threading.Event()

    def stall(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', '20830176')
        handler.end_headers()
        handler.wfile.write(b'a few bytes')
        handler.wfile.flush()
        released.wait(60)
        handler.close_connection = True
        return True

    server.misbehave = stall
    start = time.time()
    err = refused(server, tmp_path / 'models', '--timeout', 2)
    released.set()
    assert 'timed out' in err and time.time() - start < 45


@pytest.mark.slow
def test_from_a_folder(server, calibrated, tmp_path):
    assert 'is missing' in refused(server, tmp_path / 'models', '--from', tmp_path) and not (tmp_path / 'models').exists()
    status, out, _ = run_fetch(server, tmp_path / 'models', '--from', os.path.dirname(calibrated))
    assert status == 0 and server.requests == [] and sorted(os.listdir(str(tmp_path / 'models'))) == NAMES


@pytest.mark.slow
def test_every_flipped_bit_is_found_and_its_tensor_named(calibrated, tmp_path):
    """Should the blob ids be right for wrong bytes: 50 bits over all of the data, and TensorFlow's CRCs."""
    prefix = str(tmp_path / 'ghostnet_checkpoint')
    for name in NAMES:
        shutil.copyfile(os.path.join(os.path.dirname(calibrated), name), str(tmp_path / name))
    rng = np.random.RandomState(0)
    size = os.path.getsize(str(tmp_path / NAMES[0]))
    named = set()
    with open(str(tmp_path / NAMES[0]), 'r+b') as f:
        for position in rng.randint(0, size, 50).tolist():
            f.seek(position)
            byte = f.read(1)[0]
            for value in (byte ^ (1 << rng.randint(8)), byte):
                f.seek(position)
                f.write(bytes([value]))
                f.flush()
                if value != byte:
                    with pytest.raises(fetch.FetchError) as error:
                        fetch.verify_tensors(prefix)
                    named.add(str(error.value).split(' at ')[1].split(':')[0])
    assert len(named) > 10 and all(name.startswith('MobileNetV2/') for name in named)


def test_a_checkpoint_of_another_network_does_not_pass():
    with pytest.raises(fetch.FetchError, match='does not fit'):
        fetch.verify_tensors(os.path.join(ROOT, 'models', 'digits_checkpoint'))


@pytest.mark.parametrize('missing', ['images', 'wrong_top1', 'wrong_top5'])
def test_a_manifest_without_a_count_is_none(tmp_path, missing):
    with open(os.path.join(ROOT, 'models', 'published.json')) as f:
        manifest = json.load(f)
    del manifest['expected'][missing]
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match='no manifest'):
        fetch.read_manifest(str(tmp_path / 'manifest.json'))
