#!/bin/bash
# Two machines of eight GPUs under Slurm: sbatch docs/configs/multi_node.sh align ...
# Without Slurm, run the last command on each machine, with --machine_rank 0 on the first and 1 on the second.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export first
# The output folder must lie on storage that all machines share.
srun bash -c 'accelerate launch \
    --multi_gpu --num_machines "$SLURM_NNODES" --num_processes "$((8 * SLURM_NNODES))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$first" --main_process_port 29500 \
    --mixed_precision no --dynamo_backend no \
    -m muscle "$@"' muscle "$@"
