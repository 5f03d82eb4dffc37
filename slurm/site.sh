# Site values: the one file to edit for your cluster. Empty values work on a plain cluster.
#
# A running job reads this file by itself. Partition and account, though, must be known before the job exists, and
# `#SBATCH` lines cannot read a file. sbatch takes them from its environment, so source this once in the shell you submit from:
#
#     source slurm/site.sh
#     sbatch slurm/train.sbatch --out runs/first
#
# Precedence of sbatch: flags on the command line, then the SBATCH_* variables, then the #SBATCH lines of the script.
# shellcheck shell=bash disable=SC2034  # the arrays are read by slurm/rendezvous.sh

SITE_PARTITION=""   # EDIT  name of the partition, e.g. "gpu"; empty: the cluster's default
SITE_ACCOUNT=""     # EDIT  account that is charged, e.g. "project123"; empty: your default
SITE_MODULES=()     # EDIT  environment modules to load in the job, e.g. (gcc/13 cuda/12.8)
SITE_CONTAINER=()   # EDIT  command in front of python, e.g. (apptainer exec --nv /shared/vmreid.sif); empty: .venv
SITE_SRUN=()        # EDIT  more srun flags, e.g. (--mpi=none) or pyxis: (--container-image=/shared/vmreid.sqsh)
SITE_INTERFACE=""   # EDIT  network interface of NCCL and gloo, e.g. "ib0"; empty: they choose

SITE_RESTARTS=100   # EDIT  so often a training job starts again by itself, after lost nodes and before time limits

# EDIT  any other default of sbatch may be set here in the same way (man sbatch, INPUT ENVIRONMENT VARIABLES), e.g.
# export SBATCH_TIMELIMIT=24:00:00 SBATCH_GPUS_PER_NODE=8

if [[ -n "$SITE_PARTITION" ]]; then export SBATCH_PARTITION="$SITE_PARTITION"; fi
if [[ -n "$SITE_ACCOUNT" ]]; then export SBATCH_ACCOUNT="$SITE_ACCOUNT"; fi
