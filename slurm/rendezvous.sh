# Sourced by the job scripts after site.sh: where the ranks meet, how many threads each has, and run_ranks.
# shellcheck shell=bash
source slurm/signals.sh

if [[ -n "$SITE_PARTITION" && ",$SITE_PARTITION," != *",$SLURM_JOB_PARTITION,"* ]]; then
  echo "slurm: this job runs in partition $SLURM_JOB_PARTITION, slurm/site.sh names $SITE_PARTITION;" \
    "unless you gave --partition: source slurm/site.sh before sbatch" >&2
fi
if ((${#SITE_MODULES[@]})); then
  set +u # module is a shell function of the site, and not always written for it
  module load "${SITE_MODULES[@]}"
  set -u
fi
if [[ -n "$SITE_INTERFACE" ]]; then export NCCL_SOCKET_IFNAME="$SITE_INTERFACE" GLOO_SOCKET_IFNAME="$SITE_INTERFACE"; fi

# The ranks meet at the first node. Its port is below Linux' range of outgoing ports and differs between the jobs of a node.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${hosts%%$'\n'*}"
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export EXPECT_WORLD_SIZE="$SLURM_NTASKS"
unset RANK LOCAL_RANK WORLD_SIZE # sbatch hands on the submitting shell's; each rank takes its own from SLURM_PROCID

# Without --cpus-per-task a rank has one CPU. srun does not take the value over from sbatch since Slurm 22.05.
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi

export PYTHONUNBUFFERED=1 # a rank that is killed has its last lines in the log
PYTHON=python3
if [[ ${#SITE_CONTAINER[@]} -eq 0 && -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi

# run_ranks MODULE ARGS...: `python -m MODULE ARGS...` once a rank. The exit code is the first failing rank's; where none could
# tell one, srun's; RANKS_LOST is then set if they had begun.
run_ranks() {
  local code=0
  RANKS_LOST=""
  export FIRST_FAILURE="$PWD/.first-failure-$SLURM_JOB_ID"
  rm -f "$FIRST_FAILURE" "$FIRST_FAILURE-begun"
  pass_signals srun --label --kill-on-bad-exit=1 --wait=60 "${SITE_SRUN[@]}" \
    bash slurm/rank.sh "${SITE_CONTAINER[@]}" "$PYTHON" -m "$@" || code=$?
  if [[ -s "$FIRST_FAILURE" ]]; then
    code=$(<"$FIRST_FAILURE")
  elif [[ -e "$FIRST_FAILURE-begun" ]]; then
    # shellcheck disable=SC2034  # slurm/requeue.sh reads it
    RANKS_LOST=yes
  fi
  rm -f "$FIRST_FAILURE" "$FIRST_FAILURE-begun"
  return "$code"
}
