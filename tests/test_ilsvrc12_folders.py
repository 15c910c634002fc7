"""data/ilsvrc12/prepare.py --links: images that are extracted already, with the names of others, and Kaggle's tree."""
import hashlib
import os
import shutil
import tarfile

import pytest
from archives import contents, flags, made, read_list, refused, run_prepare, tar_of, without_md5s, write

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('flat', [True, False], ids=['flat', 'folders'])
def test_links_to_an_extracted_folder(small, tmp_path, flat):
    archives, tree = small
    source = tmp_path / 'source'
    shutil.copytree(os.path.join(tree, 'train'), str(source / 'train'))
    shutil.copytree(os.path.join(tree, 'val'), str(source / 'val'))
    write(source / 'val' / 'valprep.sh', b'#!/bin/bash\n')
    if flat:
        for folder in [path for path in (source / 'val').iterdir() if path.is_dir()]:
            for path in folder.iterdir():
                path.rename(source / 'val' / path.name)
            folder.rmdir()
    before = contents(source)
    linked = tmp_path / 'linked'
    for _ in range(2):    # the second time, all links are there
        made('--links', 'source', '--devkit', archives.devkit, '--out', 'linked', runner=run_prepare, cwd=str(tmp_path))
    for name in ('synsets.txt', 'synset_words.txt', 'val.txt', 'train.txt'):
        assert read_list(linked, name) == read_list(tree, name)
    for path, digest in without_md5s(tree).items():
        if digest is not None:
            with open(str(linked / path), 'rb') as f:
                assert hashlib.sha256(f.read()).hexdigest() == digest
    assert ' is sound: 20 classes, 30 validation images, 40 training images' in made('--check', linked)

    # Archives are never extracted through a link, and a folder of images is never replaced by one.
    assert ' is a link' in refused(*flags(archives, linked))
    shutil.copytree(tree, str(tmp_path / 'copy'))
    assert ' exists and is not a link' in refused('--links', source, '--devkit', archives.devkit, '--out', tmp_path / 'copy')
    assert contents(tmp_path / 'copy/val') == contents(os.path.join(tree, 'val'))
    assert contents(source) == before


def test_an_image_from_the_archive_replaces_a_link_to_a_damaged_one(small, tmp_path):
    """What the link names is the user's, and stays as it is."""
    archives, tree = small
    image = next(path for path in contents(os.path.join(tree, 'val')) if path.endswith('00000007.JPEG'))
    source = tmp_path / 'source' / 'val'
    source.mkdir(parents=True)
    for path, digest in contents(os.path.join(tree, 'val')).items():
        if digest is not None:
            shutil.copy(os.path.join(tree, 'val', path), str(source))
    damaged = write(source / os.path.basename(image), b'damaged')
    made('--links', tmp_path / 'source', '--devkit', archives.devkit, '--out', tmp_path / 'linked')
    before = contents(source)
    assert os.path.realpath(str(tmp_path / 'linked' / 'val' / image)) == damaged
    made('--val', archives.val, '--devkit', archives.devkit, '--out', tmp_path / 'linked')
    assert contents(source) == before
    assert contents(tmp_path / 'linked')['val/' + image] == contents(tree)['val/' + image]


def test_links_to_a_folder_that_lacks_something(small, tmp_path):
    archives, tree = small
    source = tmp_path / 'source'
    shutil.copytree(tree, str(source))
    synsets = read_list(tree, 'synsets.txt').decode().split()
    image = next(path for path in contents(source / 'val') if path.endswith('00000007.JPEG'))
    command = ['--links', source, '--devkit', archives.devkit, '--out', tmp_path / 'linked']

    os.rename(str(source / 'val' / image), str(tmp_path / 'image'))
    assert 'lacks 1 of 30 validation images, the first is ILSVRC2012_val_00000007.JPEG' in refused(*command)
    other = next(synset for synset in synsets if not image.startswith(synset) and (source / 'val' / synset).is_dir())
    shutil.copy(str(tmp_path / 'image'), str(source / 'val' / other / os.path.basename(image)))
    assert 'is not where the devkit has it' in refused(*command)
    os.rename(str(source / 'val' / other / os.path.basename(image)), str(source / 'val' / image))
    os.rename(str(source / 'train' / synsets[4]), str(tmp_path / 'class'))
    assert 'lacks 1 of 20 classes, the first is %s' % synsets[4] in refused(*command)
    shutil.copytree(str(tmp_path / 'class'), str(source / 'train' / 'n99999999'))
    assert 'n99999999 is not the folder of a class' in refused(*command)


def rename(source, form):
    """Gives the images below folder `source` the names with which others have them."""
    for path in sorted(source.glob('*/**/*.JPEG')):
        synset = path.parent.name
        path.rename(path.parent / (path.name.replace('.JPEG', form.format(synset))))


@pytest.mark.parametrize('form', ['_{}.JPEG', '.jpeg', '_{}.JPG'])
@pytest.mark.parametrize('flat', [True, False], ids=['flat', 'folders'])
def test_names_of_others(small, tmp_path, form, flat):
    """Those of Hugging Face, and endings in lower case: the tree has the published names, and leads to the same bytes."""
    archives, tree = small
    source = tmp_path / 'source'
    for name in ('train', 'val'):
        shutil.copytree(os.path.join(tree, name), str(source / name))
    rename(source, form)
    write(source / 'train' / '._n01440764_1.JPEG', b'')
    if flat:
        for folder in [path for path in source.glob('*/*') if path.is_dir()]:
            for path in folder.iterdir():
                path.rename(folder.parent / path.name)
            folder.rmdir()
    for _ in range(2):
        made('--links', source, '--devkit', archives.devkit, '--out', tmp_path / 'linked')
    for path, digest in without_md5s(tree).items():
        if digest is not None:
            with open(str(tmp_path / 'linked' / path), 'rb') as f:
                assert hashlib.sha256(f.read()).hexdigest() == digest
    assert ' is sound: 20 classes, 30 validation images, 40 training images' in made('--check', tmp_path / 'linked')


def test_names_that_contradict_the_devkit(small, tmp_path):
    archives, tree = small
    command = ['--devkit', archives.devkit, '--out', tmp_path / 'linked', '--links', tmp_path]
    shutil.copytree(os.path.join(tree, 'val'), str(tmp_path / 'val'))
    shutil.copytree(os.path.join(tree, 'train'), str(tmp_path / 'train'))
    image = next((tmp_path / 'val').glob('*/*_00000007.JPEG'))
    other = next(path.name for path in (tmp_path / 'val').iterdir() if path != image.parent)
    wrong = image.parent / ('ILSVRC2012_val_00000007_%s.JPEG' % other)
    image.rename(wrong)
    said = 'ILSVRC2012_val_00000007_%s.JPEG, whose name says class %s, but the devkit says %s' % (other, other, image.parent.name)
    assert said in refused(*command)
    with open(archives.val, 'rb') as f, tarfile.open(fileobj=f) as tar:
        members = [(wrong.name if '00007' in member.name else member.name, tar.extractfile(member).read()) for member in tar]
    write(tmp_path / 'hf.tar', tar_of(members))
    assert said in refused('--val', tmp_path / 'hf.tar', '--devkit', archives.devkit, '--out', tmp_path / 'a')
    shutil.copy(str(wrong), str(image))
    wrong.rename(image.parent / 'ILSVRC2012_val_00000007.jpeg')
    assert 'are the same image' in refused(*command)
    (image.parent / 'ILSVRC2012_val_00000007.jpeg').unlink()
    image = next((tmp_path / 'train').glob('*/*_7.JPEG'))
    image.rename(image.parent / image.name.replace('.JPEG', '_n00000009.JPEG'))
    assert 'whose name says class n00000009, but its folder says ' + image.parent.name in refused(*command)


@pytest.fixture
def kaggle(small, tmp_path):
    """The tree of small archives as Kaggle has it."""
    tree, root = small[1], tmp_path / 'kaggle'
    images = root / 'ILSVRC' / 'Data' / 'CLS-LOC'
    shutil.copytree(os.path.join(tree, 'train'), str(images / 'train'))
    (images / 'val').mkdir()
    rows = []
    synsets = read_list(tree, 'synsets.txt').decode().split()
    for line in read_list(tree, 'val.txt').decode().splitlines():
        name, synset = line.split()[0], synsets[int(line.split()[1])]
        shutil.copy(os.path.join(tree, 'val', synset, name), str(images / 'val'))
        rows.append('%s,%s 85 1 499 272 %s 0 0 9 9 \r\n' % (name[:-5], synset, synset))
    write(root / 'LOC_val_solution.csv', ('ImageId,PredictionString\r\n' + ''.join(rows[::-1])).encode())
    write(root / 'LOC_synset_mapping.txt', read_list(tree, 'synset_words.txt'))
    return root


def test_the_tree_of_kaggle(small, kaggle, tmp_path):
    """Without the devkit: the same tree as that of the archives; with it, too."""
    archives, tree = small
    for name, devkit in (('without', []), ('with', ['--devkit', archives.devkit])):
        linked = tmp_path / name
        out = made('--links', kaggle, '--out', linked, *devkit)
        assert out.splitlines()[-1] == '%s: 20 classes, 30 validation images, 40 training images' % linked
        for path, digest in without_md5s(tree).items():
            if digest is not None:
                with open(str(linked / path), 'rb') as f:
                    assert hashlib.sha256(f.read()).hexdigest() == digest
        assert ' is sound: ' in made('--check', linked)


@pytest.mark.parametrize('name, old, new, said', [
    ('LOC_synset_mapping.txt', b'n10000000 ', b'n10000000', "line 1: 'n10000000cr"),
    ('LOC_synset_mapping.txt', b'n10000000 ', b'n99999999 ', 'is not sorted by WordNet id'),
    ('LOC_synset_mapping.txt', b'n10000000 ', b'n10001000 ', 'one of them twice'),
    ('LOC_synset_mapping.txt', b'\n', b'\xff\n', 'is not a text in UTF-8'),
    ('LOC_val_solution.csv', b'val_00000030', b'val_00000031', 'has 30 images, but not those with the numbers'),
    ('LOC_val_solution.csv', b'val_00000030', b'val_00000029', 'comes twice'),
    ('LOC_val_solution.csv', b'val_00000030,', b'val_00000030,n00000009 1 2 3 4 ', 'line 2: '),
    ('LOC_val_solution.csv', b'val_00000030,', b'val_00000030;', 'line 2: '),
    ('LOC_val_solution.csv', b'val_00000030,', b'val_00000030,"', 'is not'),
    ('LOC_val_solution.csv', b'val_00000030,', b'val_00000030,' + b'x' * 200000, 'is not a CSV file: field larger'),
    ('LOC_val_solution.csv', None, None, 'LOC_val_solution.csv is not a file')])
def test_lists_of_kaggle_that_are_wrong(kaggle, tmp_path, name, old, new, said):
    if old is None:
        (kaggle / name).unlink()
    else:
        data = (kaggle / name).read_bytes()
        assert old in data
        write(kaggle / name, data.replace(old, new, 1))
    error = refused('--links', kaggle, '--out', tmp_path / 'linked')
    assert said in error and name in error and not (tmp_path / 'linked').exists(), error
