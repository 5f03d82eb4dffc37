# Sourced helper: pass_signals COMMAND...
# shellcheck shell=bash

# Run the command and return its exit code. TERM, USR1 and USR2 that reach this shell are passed on to the command:
# Slurm may signal the shell alone, and a shell that waits in the foreground would keep the signal to itself.
# GOT_SIGNAL is the last one's name.
pass_signals() {
  local child code=0 signal woken=1
  # shellcheck disable=SC2034  # slurm/requeue.sh reads it
  GOT_SIGNAL=""
  "$@" &
  child=$!
  for signal in TERM USR1 USR2; do
    # shellcheck disable=SC2064  # the child's number is meant as it is now
    trap "woken=1; GOT_SIGNAL=$signal; kill -$signal $child 2>/dev/null || true" "$signal"
  done
  while ((woken)); do # a signal ends `wait` early: wait again
    woken=0
    wait "$child" && code=0 || code=$?
  done
  trap - TERM USR1 USR2
  return "$code"
}
