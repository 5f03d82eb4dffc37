#!/usr/bin/env bash
# One rank of a job: srun starts `rank.sh COMMAND...` once for each.
#
# srun returns the highest code of its tasks, and the ranks it ends because another one failed count as 143 (TERM), which
# hides the cause. So the first rank that fails leaves its code in the file FIRST_FAILURE, which all nodes see.
set -uo pipefail
source slurm/signals.sh

: >"$FIRST_FAILURE-begun"
pass_signals "$@"
code=$?
if ((code != 0)); then
  (set -o noclobber && echo "$code" >"$FIRST_FAILURE") 2>/dev/null # fails where another rank was first
fi
exit "$code"
