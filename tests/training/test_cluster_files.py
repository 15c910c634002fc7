"""The files of docs/cluster/: what each worker is told, and two that train."""
import os
import subprocess
import sys

import pytest
from test_collective import tf_config

from conftest import ROOT
from runs import VALIDATION, cut_fixture, stats_of
from training.cluster import free_addresses

sixteen = cut_fixture(16, VALIDATION)

def in_kubernetes(kind):
    """(command, number of workers) of the container in docs/cluster/<kind>.yaml, which `docker/entrypoint.sh` runs."""
    yaml = pytest.importorskip('yaml', reason="needs PyYAML")
    with open(os.path.join(ROOT, 'docs', 'cluster', kind + '.yaml')) as f:
        documents = list(yaml.safe_load_all(f))
    assert [document['metadata']['name'] for document in documents] == ['ghostnet'] * len(documents)
    spec = documents[-1]['spec']
    template = spec['tfReplicaSpecs']['Worker'] if kind == 'tfjob' else spec
    pod = template['template']['spec']['containers']
    mounted = {mount['name'] for mount in pod[0]['volumeMounts']}
    assert mounted == {volume['name'] for volume in template['template']['spec']['volumes']}
    command = pod[0].get('command', ['sh', 'docker/entrypoint.sh']) + pod[0]['args']
    return command, template['replicas'] if kind == 'tfjob' else spec['completions']


QUICK = ['--epochs', '1', '--batch', '16', '--width_ratio', '0.25', '--image_size', '128']


def recorder(folder):
    """A program called `python` that only writes its arguments, a line each, into files that this returns."""
    (folder / 'bin').mkdir(exist_ok=True)
    python = folder / 'bin' / 'python'
    python.write_text('#!/bin/bash\nprintf "%%s\\n" "$@" > "%s/task${SLURM_PROCID-$NUMBER}"\n' % folder)
    python.chmod(0o755)
    return [folder / ('task%d' % number) for number in (0, 1)]


def run_in_kubernetes(kind, path, tree, folder):
    """Runs the commands of docs/cluster/<kind>.yaml as two processes, with these addresses and folders in place of theirs, and
    `python` on `path`. Returns the addresses."""
    command, count = in_kubernetes(kind)
    assert count == 2
    addresses = free_addresses(2)
    command = [part.replace('ghostnet-0.ghostnet:2222', addresses[0]).replace('ghostnet-1.ghostnet:2222', addresses[1])
               .replace('/data', str(tree)).replace('/runs', str(folder)) for part in command]
    command = command + QUICK if kind == 'tfjob' else command[:-1] + [' '.join([command[-1]] + QUICK)]
    env = dict(os.environ, PATH='%s:%s' % (path, os.environ['PATH']), CUDA_VISIBLE_DEVICES='')
    workers = []
    for number in (0, 1):
        own = {'TF_CONFIG': tf_config(addresses, number)} if kind == 'tfjob' else {'JOB_COMPLETION_INDEX': str(number)}
        workers.append(subprocess.Popen(command, cwd=ROOT, env=dict(env, NUMBER=str(number), **own)))
    assert [worker.wait(300) for worker in workers] == [0, 0]
    return addresses


@pytest.mark.parametrize('kind', ['tfjob', 'job'])
def test_kubernetes_gives_each_worker_its_number(tmp_path, kind):
    files = recorder(tmp_path)
    addresses = run_in_kubernetes(kind, tmp_path / 'bin', 'tree', tmp_path)
    for number, file in enumerate(files):
        cluster = [] if kind == 'tfjob' else ['--hosts', ','.join(addresses), '--worker', str(number)]
        found = file.read_text().splitlines()
        assert found[:4] == ['main.py', '--train', '--trainer', 'collective'] and found[-len(QUICK):] == QUICK
        assert sorted(found[4:-len(QUICK)]) == sorted(cluster + ['--data_dir', 'tree', '--log_dir', str(tmp_path / 'ghostnet'),
                                                                '--resume'])


@pytest.mark.rare
@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize('kind', ['tfjob', 'job'])
def test_kubernetes(sixteen, tmp_path, kind):
    run_in_kubernetes(kind, os.path.dirname(sys.executable), sixteen, tmp_path)
    assert [entry['global_step'] for entry in stats_of(tmp_path / 'ghostnet')] == [1]


def in_slurm(tmp_path, tree, python):
    """Runs docs/cluster/slurm.sh with `python` and a scheduler that runs two tasks on this node; returns the first's address."""
    (tmp_path / 'bin').mkdir(exist_ok=True)
    for name, script in (('scontrol', 'echo 127.0.0.1'), ('srun', '''
                         for task in 0 1; do SLURM_PROCID=$task "$@" & tasks="${tasks-} $!"; done
                         for task in $tasks; do wait "$task" || exit; done''')):
        (tmp_path / 'bin' / name).write_text('#!/bin/bash\n%s\n' % script)
        (tmp_path / 'bin' / name).chmod(0o755)
    address = free_addresses(2)[0]
    env = dict(os.environ, PATH='%s:%s' % (tmp_path / 'bin', os.environ['PATH']), PYTHON=str(python), PORT=address.split(':')[1],
               SLURM_JOB_NODELIST='node[1-1]', SLURM_NTASKS_PER_NODE='2', CUDA_VISIBLE_DEVICES='')
    subprocess.run(['bash', 'docs/cluster/slurm.sh', str(tree), str(tmp_path / 'log')] + QUICK, cwd=ROOT, env=env, check=True,
                   timeout=300)
    return address


def test_slurm_gives_each_task_its_number(tmp_path):
    files = recorder(tmp_path)
    first = in_slurm(tmp_path, 'a tree', tmp_path / 'bin' / 'python')
    second = '%s:%d' % (first.split(':')[0], int(first.split(':')[1]) + 1)
    for task, file in enumerate(files):
        assert file.read_text().splitlines() == [
            'main.py', '--train', '--trainer', 'collective', '--hosts', first + ',' + second, '--worker', str(task),
            '--data_dir', 'a tree', '--log_dir', str(tmp_path / 'log'), '--resume'] + QUICK


@pytest.mark.rare
@pytest.mark.once
@pytest.mark.slow
def test_slurm(sixteen, tmp_path):
    in_slurm(tmp_path, sixteen, sys.executable)
    assert [entry['global_step'] for entry in stats_of(tmp_path / 'log')] == [1]
