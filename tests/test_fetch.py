"""models/fetch.py against a server on this machine that misbehaves in all the usual ways."""
import contextlib
import functools
import http.server
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest

from command_line import InputError
from conftest import ROOT, SHARED, random_checkpoint, small_disk, without
from models import fetch

FETCH = os.path.join(ROOT, 'models', 'fetch.py')

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


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint with the names and shapes of the published one."""
    return random_checkpoint(tmp_path_factory.mktemp('checkpoint') / 'ghostnet_checkpoint')


@pytest.fixture
def server(checkpoint, tmp_path):
    """A server of the checkpoint, with `manifest`, the path of a manifest that describes it."""
    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    server.folder, server.requests, server.misbehave = os.path.dirname(checkpoint), [], lambda handler: False
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
    """Runs fetch.py as a user does, and returns (exit status, stdout, stderr)."""
    command = [sys.executable, FETCH, '--manifest', server.manifest, '--to', str(folder)] + [str(flag) for flag in flags]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    return run.returncode, run.stdout, run.stderr


def call_fetch(server, folder, *flags):
    """The same in this process, which has TensorFlow already."""
    command = [FETCH, '--manifest', server.manifest, '--to', str(folder)] + [str(flag) for flag in flags]
    with mock.patch.object(sys, 'argv', command), contextlib.redirect_stdout(io.StringIO()) as out, \
            contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as ended:
        fetch.run(fetch.main, fetch.parse_args(), 'fetch.py')
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def refused(server, folder, *flags, **kwargs):
    """Exit status 2, one line on stderr, which is returned, and nothing under a final name."""
    status, _, err = kwargs.get('runner', run_fetch)(server, folder, *flags)
    assert status == 2 and err.count('\n') == 1 and err.startswith('fetch.py: '), err
    assert not any(os.path.exists(str(folder / name)) for name in NAMES)
    return err


def test_blob_id_is_gits(tmp_path):
    for content, blob in ((b'', 'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'),
                          (b'hello world\n', '3b18e512dba79e4c8300dd08aeb37f8e728b8dad')):
        (tmp_path / 'file').write_bytes(content)
        assert fetch.git_blob(str(tmp_path / 'file')) == blob


def test_the_published_manifest():
    manifest = fetch.read_manifest(os.path.join(ROOT, 'models', 'published.json'))
    assert [(entry['name'], entry['bytes'], entry['git_blob']) for entry in manifest['files']] == [
        (NAMES[0], 20830176, 'c85677b5d8c57b3577129a8f3378e08119d566e4'),
        (NAMES[1], 16723, 'bfcadbffd51610ea0e712aac6fe3bd57760e019a')]
    assert all(entry['address'].endswith('/ghostnet_tensorflow/models/' + entry['name']) for entry in manifest['files'])
    assert manifest['expected']['wrong_top1'] / manifest['expected']['images'] == manifest['expected']['top1_error'] == 0.26066
    assert manifest['expected']['wrong_top5'] / manifest['expected']['images'] == manifest['expected']['top5_error'] == 0.08614
    if os.path.isdir(SHARED):    # which has the published index
        path = os.path.join(SHARED, 'reference', 'published', NAMES[1])
        assert os.path.getsize(path) == 16723
        fetch.check_blob(path, manifest['files'][1])


@pytest.mark.parametrize('isolated', [True, False], ids=['no package', 'no tqdm'])
def test_python_without_packages(server, tmp_path, isolated):
    """One line that says what to run. Help and mistakes in the flags need no package."""
    def run(*args):
        run = subprocess.run([sys.executable] + ['-I', '-S'] * isolated + [FETCH] + list(args), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, universal_newlines=True, cwd=str(tmp_path), env=env)
        return run.returncode, run.stdout, run.stderr

    (tmp_path / 'packages').mkdir()
    env = without('tqdm', tmp_path / 'packages')
    status, out, err = run('--manifest', server.manifest, '--to', 'models')
    assert (status, out) == (2, '') and err.startswith("fetch.py: the package 'tqdm' is missing: run 'make fetch'"), err
    assert err.count('\n') == 1 and server.requests == []
    assert run('--help')[0] == 0
    for flags in (['--timeout', 'nan'], ['--manifest', 'nothing.json'], ['--nothing']):
        status, out, err = run(*flags)
        assert (status, out, err.count('\n')) == (2, '', 1) and err.startswith('fetch.py: ') and 'missing' not in err


@pytest.mark.once
@pytest.mark.slow
def test_interrupted_and_resumed(server, tmp_path):
    """The connection breaks half-way, twice; each run continues where the last one ended."""
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
    for runner in (run_fetch, call_fetch):
        err = refused(server, folder, runner=runner)
        assert 'run this again' in err or 'cannot be downloaded' in err
    server.misbehave = lambda handler: False
    status, out, err = run_fetch(server, folder)
    assert status == 0 and 'all 435 variables' in out, err
    ranges = [requested for path, requested in server.requests if path.endswith(NAMES[0])]
    assert ranges[0] is None and int(ranges[1][6:-1]) > 0 and int(ranges[2][6:-1]) > int(ranges[1][6:-1])
    assert sorted(os.listdir(str(folder))) == ['.fetch'] + NAMES
    for name in NAMES:
        assert (folder / name).read_bytes() == open(os.path.join(server.folder, name), 'rb').read()
    assert call_fetch(server, folder, '--verify')[0] == 0


@pytest.mark.once
@pytest.mark.slow
def test_a_wrong_start_is_not_resumed_for_ever(server, tmp_path):
    work = tmp_path / 'models' / '.fetch'
    work.mkdir(parents=True)
    (work / NAMES[0]).write_bytes(b'wrong' * 1000)
    assert call_fetch(server, tmp_path / 'models')[0] == 0


def test_wrong_bytes_are_refused(server, tmp_path):
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


@pytest.mark.once
@pytest.mark.slow
def test_from_a_folder(server, checkpoint, tmp_path):
    assert 'is missing' in refused(server, tmp_path / 'models', '--from', tmp_path) and not (tmp_path / 'models').exists()
    status, _, _ = call_fetch(server, tmp_path / 'models', '--from', os.path.dirname(checkpoint))
    assert status == 0 and server.requests == [] and sorted(os.listdir(str(tmp_path / 'models'))) == ['.fetch'] + NAMES


def first_bytes(released, sent):
    """A server's answer that sends the first megabyte, sets `sent`, and waits for `released`."""
    def answer(handler):
        if handler.path.endswith('.index') or 'Range' in handler.headers:
            return False
        handler.send_response(200)
        handler.send_header('Content-Length', '20830176')
        handler.end_headers()
        with open(os.path.join(handler.server.folder, NAMES[0]), 'rb') as f:
            handler.wfile.write(f.read(1 << 20))
        handler.wfile.flush()
        sent.set()
        released.wait(60)
        handler.close_connection = True
        return True
    return answer


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('sent_signal', [signal.SIGKILL, signal.SIGTERM], ids=['killed', 'ended'])
def test_two_at_once_and_one_after_a_kill(server, tmp_path, sent_signal):
    """The second says that another one is at work; when that is killed, the next one takes over what it had."""
    released, sent = threading.Event(), threading.Event()
    server.misbehave = first_bytes(released, sent)
    command = [sys.executable, FETCH, '--manifest', server.manifest, '--to', str(tmp_path / 'models')]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert sent.wait(60)
        wait_for = time.time() + 20
        while time.time() < wait_for and sum(path.stat().st_size for path in tmp_path.glob('models/.fetch/*data*')) < 500000:
            time.sleep(0.01)
        for flags in ([], ['--from', server.folder]):
            assert 'another fetch.py is at work in ' in refused(server, tmp_path / 'models', *flags, runner=call_fetch)
    finally:
        first.send_signal(sent_signal)
        first.communicate()
        released.set()
    assert first.returncode == (-signal.SIGKILL if sent_signal == signal.SIGKILL else 128 + signal.SIGTERM)
    assert not any((tmp_path / 'models' / name).exists() for name in NAMES)
    server.misbehave = lambda handler: False
    assert call_fetch(server, tmp_path / 'models')[0] == 0
    assert int(server.requests[-2][1][6:-1]) >= 500000    # resumed


@pytest.mark.once
@pytest.mark.slow
def test_full_disk(server, tmp_path):
    server.handle_error = lambda *_: None    # the connection is reset
    with small_disk(tmp_path / 'disk', '5m') as disk:
        for flags in ([], [], ['--from', server.folder]):
            assert 'No space left on device' in refused(server, disk, *flags, runner=call_fetch)
        subprocess.check_call(['mount', '-o', 'remount,size=50m', str(disk)])
        assert call_fetch(server, disk)[0] == 0
        for name in NAMES:
            assert (disk / name).read_bytes() == open(os.path.join(server.folder, name), 'rb').read()


@pytest.mark.once
@pytest.mark.slow
def test_links(server, tmp_path):
    """Files to take may be links; what is linked to where the checkpoint goes is not written to."""
    outside, source, folder = tmp_path / 'outside', tmp_path / 'source', tmp_path / 'models'
    for path in (outside, source, folder / '.fetch'):
        path.mkdir(parents=True)
    (outside / 'precious').write_text('precious')
    for name in NAMES:
        (source / name).symlink_to(os.path.join(server.folder, name))
        for place in (folder / name, folder / '.fetch' / name):
            place.symlink_to(outside / 'precious')
    for flags in (['--from', source], []):
        assert call_fetch(server, folder, *flags)[0] == 0
        assert not any((folder / name).is_symlink() for name in NAMES)
        for name in NAMES:
            (folder / '.fetch' / name).symlink_to(outside / 'precious')
    shutil.rmtree(str(folder))
    folder.mkdir()
    (folder / '.fetch').symlink_to(outside, target_is_directory=True)
    assert '.fetch is a link' in refused(server, folder, runner=call_fetch)
    (folder / '.fetch').unlink()
    (folder / '.fetch').mkdir()
    (folder / '.fetch' / '.lock').symlink_to(outside / 'precious')
    assert '.lock is a link' in refused(server, folder, runner=call_fetch)
    assert (outside / 'precious').read_text() == 'precious' and len(list(outside.iterdir())) == 1


@pytest.mark.once
@pytest.mark.slow
def test_every_flipped_bit_is_found_and_its_tensor_named(checkpoint, tmp_path):
    """Should the blob ids be right for wrong bytes: 50 bits over all of the data, and TensorFlow's CRCs."""
    prefix = str(tmp_path / 'ghostnet_checkpoint')
    for name in NAMES:
        shutil.copyfile(os.path.join(os.path.dirname(checkpoint), name), str(tmp_path / name))
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
                    with pytest.raises(InputError) as error:
                        fetch.verify_tensors(prefix)
                    named.add(str(error.value).split(' at ')[1].split(':')[0])
    assert len(named) > 10 and all(name.startswith('MobileNetV2/') for name in named)


def test_a_checkpoint_of_another_network_does_not_pass():
    with pytest.raises(InputError, match='does not fit'):
        fetch.verify_tensors(os.path.join(ROOT, 'models', 'digits_checkpoint'))


@pytest.mark.parametrize('missing', ['images', 'wrong_top1', 'wrong_top5'])
def test_a_manifest_without_a_count_is_refused(tmp_path, missing):
    with open(os.path.join(ROOT, 'models', 'published.json')) as f:
        manifest = json.load(f)
    del manifest['expected'][missing]
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(InputError, match='is not a manifest'):
        fetch.read_manifest(str(tmp_path / 'manifest.json'))


@pytest.mark.parametrize('content', [b'', b'[]', b'{"files": [{}]}', b'no JSON', b'\xff'])
def test_a_file_that_is_not_a_manifest(tmp_path, content):
    (tmp_path / 'manifest.json').write_bytes(content)
    with pytest.raises(InputError, match='is not a manifest'):
        fetch.read_manifest(str(tmp_path / 'manifest.json'))


def test_a_manifest_without_addresses(server, tmp_path):
    """That of the digits' checkpoint, which is part of the project."""
    server.manifest = os.path.join(ROOT, 'models', 'digits.json')
    assert 'has no address of digits_checkpoint.data' in refused(server, tmp_path / 'models', runner=call_fetch)
