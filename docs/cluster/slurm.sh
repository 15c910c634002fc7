#!/bin/bash
# Trains on 2 nodes of 8 GPUs, a worker for each GPU:  sbatch docs/cluster/slurm.sh <tree> <folder>
# Both are on storage that all nodes share. Submitted again, the same command goes on after the last whole epoch.
#SBATCH --job-name=ghostnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
set -euo pipefail
tree=$1 folder=$2
shift 2

hosts=
for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    for ((task = 0; task < SLURM_NTASKS_PER_NODE; task++)); do
        hosts+=${hosts:+,}$host:$((${PORT:-2222} + task))
    done
done
# Tasks are numbered in the order of this list: SLURM_PROCID is known in each of them alone.
export hosts tree folder SLURM_KILL_BAD_EXIT=1
srun bash -c 'exec "${PYTHON:-python}" main.py --train --trainer collective --hosts "$hosts" --worker "$SLURM_PROCID" \
    --data_dir "$tree" --log_dir "$folder" --resume "$@"' worker "$@"
