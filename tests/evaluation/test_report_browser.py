"""The report in a real browser: names of classes run no script, nothing is requested, and a telephone shows all of it."""
import os

import pytest
from pages import chromium

from conftest import DIGITS_CHECKPOINT, run_main
from trees import link_tree

pytestmark = pytest.mark.xdist_group('report')    # so that `report` is made once
EVIL = ['<img src=x onerror=document.title="evil">', '</title><script>document.title="evil"</script>', "'\"><svg onload=alert(1)>",
        '{{ 7 * 7 }}', '<b>bold</b> & "quoted"']


@pytest.fixture(scope='module')
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope='module')
def report(digits, tmp_path_factory):
    """The report of the digits, whose classes have other names."""
    root = tmp_path_factory.mktemp('report')
    tree = link_tree(digits, root / 'tree')
    with open(os.path.join(tree, 'caffe_ilsvrc12', 'synsets.txt'), 'w') as f:
        f.write('\n'.join(EVIL[label % 5] + ' ' * (label // 5) + str(label) for label in range(10)) + '\n')
    status, _, err = run_main('--eval', '--data_dir', tree, '--load', DIGITS_CHECKPOINT, '--report', root / 'report')
    assert status == 0, err
    return str(root / 'report' / 'report.html')


@pytest.mark.parametrize('width', [360, 1200])
def test_the_page_in_chromium(browser, report, width):
    page = browser.new_page(viewport={'width': width, 'height': 800})
    requests, said = [], []
    page.on('request', lambda request: requests.append(request.url))
    page.on('dialog', lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto('file://' + report)
    page.wait_for_timeout(200)
    assert page.title() == 'Evaluation report' and said == []
    assert [url for url in requests if not url.startswith('data:')] == ['file://' + report]
    assert page.evaluate("document.querySelectorAll('script, svg, b, [onerror], [onload]').length") == 0
    assert page.evaluate("Array.from(document.images).filter(image => !image.complete || !image.naturalWidth).length") == 0
    text = page.inner_text('body')
    assert all(name in text for name in EVIL)
    assert page.evaluate('document.documentElement.scrollWidth') == width    # only tables and pictures scroll
    assert page.evaluate("document.querySelectorAll('img:not([alt]), table:not(:has(th[scope=col]))').length") == 0
    page.close()
