"""Chromium without a window, and the page of --format web as people use it in there."""
import contextlib
import shutil
import subprocess
import sys

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update',
         '--disable-sync']
SERVE = ("import functools, http.server, sys; handler = functools.partial(http.server.SimpleHTTPRequestHandler, "
         "directory=sys.argv[1]); server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler); "
         "print(server.server_address[1], flush=True); server.serve_forever()")


@contextlib.contextmanager
def chromium():
    """The browser, of playwright. Skips the test where it is not installed."""
    playwright = pytest.importorskip('playwright.sync_api', reason="needs playwright, of requirements-interop.txt")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def served(folder):
    """The address at which `folder` is served, as `python -m http.server` does it."""
    server = subprocess.Popen([sys.executable, '-c', SERVE, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield 'http://127.0.0.1:%d/' % int(server.stdout.readline())
    finally:
        server.kill()
        server.communicate()


def opened(browser, address, width=1200):
    """A tab with the page, when its network is loaded, and the list of the addresses that it asks for."""
    tab = browser.new_page(viewport={'width': width, 'height': 800})
    requests = []
    tab.on('request', lambda request: requests.append(request.url))
    tab.goto(address)
    tab.wait_for_selector('#choose:enabled', timeout=120000)
    return tab, requests


def classified(tab, path):
    """What the page says of a picture's file: [(label, probability, name), ...]."""
    tab.evaluate("document.getElementById('classes').replaceChildren()")
    tab.set_input_files('#choose', path)
    tab.wait_for_selector('#classes li', timeout=60000)
    return tab.eval_on_selector_all('#classes li', 'items => items.map(item => [Number(item.dataset.label), '
                                    'Number(item.dataset.probability), item.querySelector("span").textContent])')
