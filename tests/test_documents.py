"""The documents: every command in them is run, here or where the table says, and every link leads somewhere."""
import collections
import concurrent.futures
import functools
import glob
import os
import re
import shutil
import subprocess
import sys

import cv2
import pytest
from archives import photograph, small_archives

from conftest import DIGITS_CHECKPOINT, ROOT, rare

DOCUMENTS = ['README.md'] + sorted('docs/' + os.path.basename(path) for path in glob.glob(os.path.join(ROOT, 'docs', '*.md')))
LINKED = DOCUMENTS + ['CONTRIBUTING.md', 'CHANGELOG.md', 'models/README.md', 'tests/recorded/README.md']
FENCED = re.compile('^```([^\n]*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)

# What is run below, in `clone`: the commands of an entry in one shell. `swap` is how they differ from what is written, besides the
# PLACEHOLDERS; `prints` is on stdout, besides what a block ```text after the command shows; `writes` is a file.
PLACEHOLDERS = [('<tree>', 'tree'), ('<checkpoint>', 'models/digits_checkpoint'), ('<folder>', 'folder')]
Here = collections.namedtuple('Here', 'commands swap prints writes')


def here(*commands, swap=(), prints='', writes='.'):
    return Here(commands, swap, prints, writes)


QUICK = [
    here('make eval'),
    here('source .venv/bin/activate', 'python main.py --predict data/digits/val/digits_val_00000004.png --topk 3'),
    here("make data ARGS='--val <folder>/ILSVRC2012_img_val.tar --devkit <folder>/ILSVRC2012_devkit_t12.tar.gz --out <tree>'",
         swap=[('<tree>', 'made')], prints='made: 20 classes, 30 '),
    here("make data ARGS='--links <folder> --devkit <folder>/ILSVRC2012_devkit_t12.tar.gz --out <tree>'",
         "make data ARGS='--check <tree>'", swap=[('<tree>', 'linked')], prints='linked is sound: 20 classes, 30 '),
    here('python main.py --lr_schedule', prints='1251 steps an epoch, 500400 in all'),
]
TRAINABLE = here(    # what a block of Python loads
    'python -m tools.export --load models/digits_checkpoint --format keras --trainable ghostnet_trainable.keras',
    'python -m tools.import_weights --from keras ghostnet_trainable.keras models/trained_checkpoint '
    '--base models/digits_checkpoint',
    prints='models/trained_checkpoint: 435 tensors, ', writes='ghostnet_trainable.keras')
SHORT = '--batch 8 --epochs 1'
BENCHMARKS = [
    here('python -m tools.bench_training --data_dir <tree>', swap=[('<tree>', 'tree --batch 8 --seconds 0.1 --rounds 1')],
         prints='\nmain.py --train '),
    here('python -m tools.bench_dataflow --data_dir <tree>', swap=[('<tree>', 'tree --batch 8 --seconds 0.1 --json rates.json')],
         prints='\nprocesses ', writes='rates.json'),
    here('python -m tools.bench_dataflow --workers 1,2,4,8,16,32 --sleep_ms 2', swap=[('16,32', '16 --seconds 0.1')],
         prints='\nprocesses, 2 ms '),
    here('python -m tools.scale --plot scale.png', 'python -m tools.scale --measure', swap=[('--measure', '--measure --rounds 2')],
         prints='\n| one for each variable ', writes='scale.png'),
]
SLOW = [
    here('make train-digits', swap=[('digits', "digits ARGS='--data_dir tree --log_dir digits_log %s'" % SHORT)],
         writes='digits_log/ghostnet_checkpoint.index'),    # all of it takes 18 minutes
    here('python main.py --train --data_dir data/digits --load models/digits_checkpoint --finetune --freeze_bn --lr 0.01 '
         '--batch 32 --epochs 2 --log_dir finetuned', swap=[('data/digits', 'tree'), ('--batch 32 --epochs 2', SHORT)],
         writes='finetuned/ghostnet_checkpoint.index'),
    here('python -m tools.export --load models/digits_checkpoint --format tflite ghostnet.tflite', writes='ghostnet.tflite'),
    TRAINABLE,
    here('python main.py --eval --data_dir=<tree> --load=<checkpoint> --engine auto --cache <folder>', writes='folder/*.npy',
         prints='20 images, of which wrong: '),
    here("make eval ARGS='--data_dir <tree> --load <checkpoint>'", prints='20 images, of which wrong: '),
    here('make reproduce DATA=<tree>', prints='\nEXACT\n',    # with a checkpoint and counts that can be had
         swap=[('<tree>', "data/digits LOAD=models/digits_checkpoint ARGS='--manifest models/digits.json'")]),
    here('python main.py --predict <folder> --load <checkpoint> --data_dir <tree> --topk 5 --json result.json',
         prints='folder/picture.jpg', writes='result.json'),
]

# What something else runs: {file: {command: text in the file that shows it}}.
ELSEWHERE = {
    'tests/conftest.py': {
        'python main.py --eval --data_dir=<tree> --load=./models/ghostnet_checkpoint':
            "run_main('--eval', '--data_dir', data_dir, '--load', checkpoint, "},
    '.ci/run': {
        'make test-horovod': 'make test-horovod\n',
        'make test-imgclsmob': 'make test-imgclsmob ',
        'make test-interop': 'make test-interop ARGS='},
    'Makefile': {
        'make reproduce DATA=<tree> LOAD=models/ghostnet_checkpoint': 'tools.reproduce --data_dir "$(DATA)" --load "$(LOAD)" ',
        'make fetch': 'python models/fetch.py $(ARGS)\n',    # and tests/test_fetch.py, as the next two
        'pip install -r requirements.txt -r requirements-interop.txt': ' -r requirements.txt -r requirements-interop.txt && ',
        'pip install --no-deps --target .venv/opencv4 -r requirements-opencv4.txt':
            ' --no-deps --target $(VENV_INTEROP)/opencv4 \\\n\t\t-r requirements-opencv4.txt && ',
        'docker build -f docker/Dockerfile -t ghostnet-tf1 .': 'docker build -f docker/Dockerfile -t $(IMAGE) .\n',
        'docker build -f docker/Dockerfile.tf2 -t ghostnet-tf2 .': 'docker build -f docker/Dockerfile.tf2 -t $(IMAGE_TF2) .\n',
        'docker build -f docker/Dockerfile.tf2 -t ghostnet-tf2-gpu --build-arg GPU=1 .':
            'docker build -f docker/Dockerfile.tf2 -t $(IMAGE_TF2)-gpu --build-arg GPU=1 .\n'},
    'tests/test_makefile.py': {    # no GPU can be had
        'make gpu-venv': "make(clone, 'gpu-venv')",
        'make test-gpu': "make(clone, 'test-gpu')"},
    'tests/test_fetch.py': {
        "make fetch ARGS='--from <folder>'": "'--from', os.path.dirname(checkpoint))\n",
        "make fetch ARGS='--verify'": "'--verify')[0] == 0\n"},
    'tests/test_keras_model.py': {
        'python examples/detection.py --load models/digits_checkpoint --picture found.png':
            "run_main('--load', DIGITS_CHECKPOINT, '--picture', tmp_path / 'found.png', script=script)"},
    'tests/test_main.py': {
        'python data/digits/prepare.py': "script=[str(tmp_path / 'data' / 'digits' / 'prepare.py')]",
        'python main.py --eval': "run_main('--eval', **main)",
        'python main.py --predict data/digits/val --topk 1':
            "run_main('--predict', first, folder, '--load', DIGITS_CHECKPOINT, '--data_dir', digits, '--topk', 3,",
        'python main.py --flops 1': "run_main('--flops', '1', '--width_ratio', width, *flags)",
        'python main.py --flops 1 --width_ratio 0.5': "run_main('--flops', '1', '--width_ratio', width, *flags)"},
    'tests/tools/test_reproduce.py': {
        'python -m tools.reproduce --data_dir <tree> --load <checkpoint> --wrong_top1 218 --wrong_top5 131':
            "'--load', DIGITS_CHECKPOINT, '--wrong_top1', counts[0], "},
    'tests/test_docker.py': {    # make test-docker, make test-docker-tf2
        'docker run --rm ghostnet-tf1': 'test_nothing_mounted_reproduces_the_digits(',
        'docker run --rm ghostnet-tf2': 'docker_run(image=image, flags=HARDENED)\n',
        'docker run --rm -v <tree>:/data:ro -v <folder>:/models:ro ghostnet-tf1 reproduce': "docker_run('reproduce', ",
        'docker run --rm -v <tree>:/data:ro -v <folder>:/models:ro ghostnet-tf1 --eval --data_dir /data --load '
        '/models/ghostnet_checkpoint': "docker_run('--eval', '--data_dir', '/data', '--load', '/models/ghostnet_checkpoint', "},
    'tests/training/test_collective.py': {
        'python main.py --train --trainer collective --hosts <host1>:2222,<host2>:2222 --worker 0 --data_dir=<tree> --log_dir '
        'train_log': "['--hosts', ','.join(addresses), '--worker', number], None\n"},
    'tests/training/test_cluster_files.py': {
        'sbatch docs/cluster/slurm.sh <tree> <folder>':
            "['bash', 'docs/cluster/slurm.sh', str(tree), str(tmp_path / 'log')]",
        'kubectl apply -f docs/cluster/tfjob.yaml': "('kind', ['tfjob', 'job'])\n",
        'kubectl apply -f docs/cluster/job.yaml': "('kind', ['tfjob', 'job'])\n"},
    'tests/training/test_train.py': {    # no GPU can be had
        'python main.py --train --data_dir=<tree> --gpu 0,1,2,3,4,5,6,7 --log_dir train_log':
            "    train(*flags(small, whole, *more))",
        'python main.py --train --data_dir=<tree> --gpu 0,1,2,3,4,5,6,7 --log_dir train_log --resume':
            "    train(*flags(small, log_dir, '--resume', *more))"},
    'tests/evaluation/test_report_page.py': {
        'python main.py --eval --data_dir=<tree> --load=<checkpoint> --report report':
            "run_main('--eval', '--data_dir', digits, '--load', DIGITS_CHECKPOINT, '--report', folder)"},
    'tests/training/test_horovod.py': {    # make test-horovod
        'horovodrun -np 16 -H <host1>:8,<host2>:8 python main.py --train --trainer horovod --data_dir=<tree> --log_dir train_log':
            "[HOROVODRUN, '-np', '2', '-H', hosts, "},
    # With other libraries and runtimes: make test-interop.
    'tests/tools/test_bench.py': {
        'python -m tools.bench --data_dir <tree> --images 640 --rounds 1 --plot bench.png': "'--images', 16, '--rounds', 1, ",
        'python -m tools.bench --data_dir <tree> --images 128 --size 4000x3000': "'--size', '300x200', "},
    'tests/tools/test_compare.py': {
        'python -m tools.compare --plot figure.png --json figure.json > figure.md':
            "'--plot', tmp_path / 'figure.png', '--json', tmp_path / ",
        'python -m tools.compare --plot figure.png --load <checkpoint> --result result.json':
            "'--load', DIGITS_CHECKPOINT,\n        '--result', tmp_path / 'result.json', '--plot', "},
    'tests/tools/test_export_web.py': {
        'python -m tools.export --load models/digits_checkpoint --format web out && python -m http.server -d out':
            "'--format', 'web', folder / 'out', **EXPORT)"},
    'tests/tools/test_export.py': {
        'python -m tools.export --load models/digits_checkpoint --format onnx --any_size ghostnet.onnx':
            "'--format', form, path, '--any_size', '--image_size', size, *flags)",
        'python -m tools.export --load models/digits_checkpoint --format tflite --features --output_stride 16 backbone.tflite':
            "'--format', form, path, '--features', '--output_stride', 8)",
        'python -m tools.export --load models/digits_checkpoint --format all exported --int8 --data_dir data/digits':
            "'--format', 'all', tmp_path / 'all', '--int8', '--data_dir', digits)"},
    'tests/tools/test_darknet.py': {
        'python -m tools.export --load models/digits_checkpoint --format darknet darknet':
            "'--load', DIGITS_CHECKPOINT, '--format', 'darknet', tmp_path / 'darknet', **EXPORT)",
        'python -m tools.import_weights --from darknet darknet/ghostnet.cfg models/darknet_checkpoint':
            "'--from', 'darknet', tmp_path / 'darknet' / 'ghostnet.cfg', "},
    'tests/tools/test_own_pictures.py': {
        'python main.py --train --data_dir flowers --load models/ghostnet_checkpoint --finetune --epochs 20 --log_dir flowers_log':
            "('--train', '--data_dir', root, '--load', DIGITS_CHECKPOINT, '--finetune', '--epochs', 1,\n",
        'python main.py --eval --data_dir flowers --load flowers_log/ghostnet_checkpoint --report report':
            "('--eval', '--data_dir', root, '--load', checkpoint, '--report', ",
        'python main.py --predict <folder> --load flowers_log/ghostnet_checkpoint':
            "('--predict', root, '--load', checkpoint, ",
        'python -m tools.export --load flowers_log/ghostnet_checkpoint --format all exported':
            "'--load', checkpoint, '--format', 'all', "},
    'tests/tools/test_import_weights.py': {
        'python -m tools.import_weights <folder>/model.safetensors models/timm_checkpoint': 'run_main(theirs, tmp_path / ',
        'python main.py --eval --data_dir <tree> --load models/timm_checkpoint': "run_main(*(command[2:] + ['--save_logits'",
        'python -m tools.import_weights --to pytorch models/timm_checkpoint state_dict.pth': "('--to', 'pytorch', tmp_path / "},
}


# ------------------------------------------------------------------------------------------------------------- documents

def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        return f.read()


BLOCKS = [block for document in DOCUMENTS for block in FENCED.findall(read(document))]    # (language, text)


def commands(text):
    return [line for line in text.replace('\\\n', '').splitlines() if line]


# {command: what a block ```text after it shows}
SHOWN = {commands(block[1])[-1]: after[1] for block, after in zip(BLOCKS, BLOCKS[1:]) if (block[0], after[0]) == ('sh', 'text')}


def anchors(document):
    """Those that GitHub makes of the headings."""
    count = collections.Counter()
    for heading in re.findall('^#+ (.*)', FENCED.sub('', read(document)), re.MULTILINE):
        anchor = re.sub(r'[^\w\- ]', '', re.sub(r'\]\(.*?\)', '', heading).lower()).replace(' ', '-')
        yield '%s-%d' % (anchor, count[anchor]) if count[anchor] else anchor
        count[anchor] += 1


def test_the_table_has_every_command_and_no_other():
    run_here = {command for entry in QUICK + BENCHMARKS + SLOW for command in entry.commands}
    run_elsewhere = {command for texts in ELSEWHERE.values() for command in texts}
    written = {command for language, text in BLOCKS if language == 'sh' for command in commands(text)}
    assert sorted(run_here | run_elsewhere) == sorted(written) and not run_here & run_elsewhere
    # Nothing hides in another kind of block, or in one that FENCED does not find.
    assert {language for language, _ in BLOCKS} <= {'sh', 'text', 'python', 'bibtex'}
    assert sum(read(document).count('```') for document in DOCUMENTS) == 2 * len(BLOCKS)
    assert set(SHOWN) <= {entry.commands[-1] for entry in QUICK + BENCHMARKS + SLOW}


@pytest.mark.parametrize('path', sorted(ELSEWHERE))
def test_what_is_run_elsewhere_is_run_there(path):
    if path == '.ci/run' and not os.path.exists(os.path.join(ROOT, path)):
        pytest.skip(".ci is not part of the Docker image")
    for command, text in ELSEWHERE[path].items():
        assert text in read(path), command


@pytest.mark.parametrize('document', LINKED)
def test_links_lead_somewhere(document):
    for link in re.findall(r'\]\(([^)\s]+)\)', re.sub('`[^`\n]*`', '', FENCED.sub('', read(document)))):
        if '://' not in link:
            path, _, anchor = link.partition('#')
            target = os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document
            assert not target.startswith('..') and os.path.exists(os.path.join(ROOT, target)), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short():
    assert len(read('README.md').split()) <= 1500


# -------------------------------------------------------------------------------------------------------------- commands

today = pytest.mark.skipif(sys.version_info < (3, 10), reason="the documents' commands are for today's stack: make test-all")


@pytest.fixture(scope='module')
def clone(digits, tmp_path_factory):
    """A copy of the sources with the prepared digits, this Python as .venv, and what the placeholders stand for."""
    root = tmp_path_factory.mktemp('documents') / 'clone'
    for room in ['.', 'data/digits', 'data/ilsvrc12', 'evaluation', 'models', 'tools', 'tools/export', 'training']:
        os.makedirs(str(root / room), exist_ok=True)
        for name in os.listdir(os.path.join(ROOT, room)):
            if re.search('[.]py$|[.]j2$|[.]json$|^requirements.*txt$|^Makefile$|^digits_checkpoint[.]', name):
                shutil.copyfile(os.path.join(ROOT, room, name), str(root / room / name))
    for suffix in ('.index', '.data-00000-of-00001'):    # in place of the published one
        shutil.copyfile(DIGITS_CHECKPOINT + suffix, str(root / 'models' / 'ghostnet_checkpoint') + suffix)

    (root / '.venv').mkdir()
    for name in set(os.listdir(sys.prefix)) - {'installed'}:
        os.symlink(os.path.join(sys.prefix, name), str(root / '.venv' / name))
    (root / '.venv' / 'installed').touch()    # after requirements.txt, so that make does not install

    for place in ('train', 'val', 'caffe_ilsvrc12'):
        shutil.copytree(os.path.join(digits, place), str(root / 'data' / 'digits' / place))
    shutil.copytree(digits, str(root / 'tree'))
    for name, lines in (('train.txt', 16), ('val.txt', 20)):
        path = root / 'tree' / 'caffe_ilsvrc12' / name
        path.write_text(''.join(path.read_text().splitlines(True)[:lines]))
    (root / 'folder').mkdir()
    cv2.imwrite(str(root / 'folder' / 'picture.jpg'), cv2.imread(os.path.join(digits, 'val', 'digits_val_00000004.png')))
    archives = small_archives(root / 'folder', 30, 2, photograph)[0]
    shutil.unpack_archive(archives.val, str(root / 'folder' / 'val'))
    os.rename(archives.val, str(root / 'folder' / 'ILSVRC2012_img_val.tar'))
    os.rename(archives.devkit, str(root / 'folder' / 'ILSVRC2012_devkit_t12.tar.gz'))
    return root


def shell(clone, script):
    """Runs a script in the clone, as a user does who has .venv on the path; returns stdout."""
    around = ('MAKE', 'MFLAGS', 'ARGS', 'DATA', 'LOAD')    # of the `make test` that runs this
    env = {name: value for name, value in os.environ.items() if not name.startswith(around)}
    env['PATH'] = '%s:%s' % (clone / '.venv' / 'bin', env['PATH'])
    run = subprocess.run(['bash', '-e', '-c', script], cwd=str(clone), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, universal_newlines=True, timeout=600)
    assert run.returncode == 0, (script, run.stdout[-2000:], run.stderr[-2000:])
    return run.stdout


def can_run(entry):
    """Images have neither make nor virtual environments."""
    needed = {'make ': shutil.which('make'), 'activate': os.path.exists(os.path.join(sys.prefix, 'bin', 'activate'))}
    return all(found or word not in ' '.join(entry.commands) for word, found in needed.items())


def check(clone, entry):
    """Runs the commands of an entry, and compares what comes of it with what the table and the documents say."""
    script = '\n'.join(entry.commands)
    for old, new in list(entry.swap) + PLACEHOLDERS:
        script = script.replace(old, new)
    out = shell(clone, script)
    assert entry.prints in out and glob.glob(str(clone / entry.writes)), (script, out)
    speed = '[0-9.]+ images/s, [0-9.]+ seconds'
    assert re.sub(speed, '', out).endswith(re.sub(speed, '', SHOWN.get(entry.commands[-1], ''))), (script, out)


@today
@pytest.mark.parametrize('entry', QUICK, ids=[entry.commands[-1] for entry in QUICK])
def test_quick_command(clone, entry):
    if not can_run(entry):
        pytest.skip("needs make, or a virtual environment")
    check(clone, entry)


@today
@pytest.mark.slow
@pytest.mark.xdist_group('documents')
@pytest.mark.parametrize('entries', [SLOW, rare(BENCHMARKS)], ids=['jobs', 'benchmarks'])
def test_slow_commands(clone, entries):
    """Two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(functools.partial(check, clone), filter(can_run, entries)))


@today
@pytest.mark.slow
@pytest.mark.xdist_group('documents')    # to find what the commands have made
def test_python_blocks(clone):
    if not (clone / TRAINABLE.writes).exists():
        check(clone, TRAINABLE)
    for text in [text for language, text in BLOCKS if language == 'python']:
        (clone / 'block.py').write_text(text)
        shell(clone, 'python block.py')
