# Sourced helper: end_or_requeue CODE, after run_ranks.
# shellcheck shell=bash disable=SC2154  # GOT_SIGNAL, RANKS_LOST and SITE_RESTARTS come from the files sourced before

TO_GO_ON=75  # vmreid/command.py: stopped by a signal, with a checkpoint
RANK_LOST=74 # vmreid/lifeline.py: another rank went without a word

# Exit with the code, or have the job start again where it goes on: at its time limit, and where a node was lost. A rank that
# says what is wrong (1, 2) ends the job.
end_or_requeue() {
  local code=$1
  if ((code == 0)); then exit 0; fi
  if ((${SLURM_RESTART_COUNT:-0} >= SITE_RESTARTS)); then
    echo "slurm: started again ${SLURM_RESTART_COUNT} times, SITE_RESTARTS in slurm/site.sh allows no more" >&2
    exit "$code"
  fi
  if [[ "$GOT_SIGNAL" == USR1 ]] && ((code == TO_GO_ON || code == 138)); then # 138: it had not begun to train
    requeue "the time limit is near"
  elif [[ -n "$RANKS_LOST" ]] || ((code == RANK_LOST)); then
    # Slurm starts the job again by itself once it sees the node down, and this script must still run then. A node that is back
    # before that was never down to Slurm.
    local seconds
    seconds=$(scontrol show config | sed -n 's/^SlurmdTimeout *= *\([0-9]*\).*/\1/p')
    seconds=$((${seconds:-300} * 3 / 2 + 20))
    echo "slurm: a rank was lost; waiting $seconds s for Slurm to find its node down" >&2
    sleep "$seconds"
    requeue "no node is down"
  fi
  exit "$code"
}

requeue() {
  echo "slurm: $1; back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID" && sleep 300 # until Slurm ends this script
  exit 1
}
