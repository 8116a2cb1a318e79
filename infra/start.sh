#!/usr/bin/env bash
# Train on a rented GPU: `sconce orchestrate --mode cloud` with the arguments given here, beside TensorBoard.
#
#   start.sh --experiment NAME --profile PROFILE [any other option of sconce orchestrate]
#
# To be called again and again: after an interruption it goes on, after the end it says so. SIGTERM saves and ends with
# exit code 0. All files are below the ORCHESTRATE_* roots, none of value is anywhere else.
#
# SCONCE_WHEN_DONE says what becomes of the machine when the run has ended, well or not:
#   exit  nothing more happens (the default)
#   wait  TensorBoard stays up, and the machine is paid for, until somebody stops it
#   stop  RunPod stops the pod, which ends the price of its GPU
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
when_done=${SCONCE_WHEN_DONE:-exit}
case $when_done in
  exit | wait | stop) ;;
  *)
    echo "start.sh: SCONCE_WHEN_DONE: found '$when_done', expected exit, wait or stop" >&2
    exit 2
    ;;
esac

# RunPod puts its secret hf_token here. Where there is none, what is left of the reference is no token.
case ${HF_TOKEN:-} in *RUNPOD_SECRET*) unset HF_TOKEN ;; esac

# A stopped pod shows its log no more: keep one beside the runs.
runs=${ORCHESTRATE_RUNS_ROOT:-/workspace/runs}
if mkdir -p "$runs" 2>/dev/null && [ -w "$runs" ]; then
  exec > >(tee -a "$runs/start-${RUNPOD_POD_ID:-$HOSTNAME}.log") 2>&1
fi

child="" stopped=""
# shellcheck disable=SC2317,SC2329 # the trap calls it
stop() {
  stopped=yes
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM INT

# In the background, so that a signal reaches the trap at once; then the child is waited for, however it ends.
run() {
  "$@" &
  child=$!
  code=0
  if [ -n "$stopped" ]; then stop; fi # by a signal that came before there was a child
  wait "$child" || code=$?
  if [ -n "$stopped" ]; then
    code=0
    wait "$child" || code=$?
  fi
  child=""
}

"$here/tensorboard.sh" &
board=$!
trap 'kill "$board" 2>/dev/null || true' EXIT

if [ "${SCONCE_DOCTOR:-yes}" = yes ]; then
  run sconce doctor
  if [ -n "$stopped" ]; then exit 0; fi # nothing has begun
fi
if [ "${code:-0}" = 0 ]; then
  run sconce orchestrate --mode cloud "$@"
else
  echo "start.sh: this machine computes wrongly: rent another one (SCONCE_DOCTOR=no starts all the same)"
fi

if [ -n "$stopped" ]; then exit "$code"; fi
echo "start.sh: the run has ended with exit code $code"
if [ "$when_done" = stop ]; then
  # RunPod puts the pod's id, and a key that is good for this pod alone, into its environment by itself.
  if [ -z "${RUNPOD_POD_ID:-}" ] || [ -z "${RUNPOD_API_KEY:-}" ]; then
    echo "start.sh: cannot stop the pod without RUNPOD_POD_ID and RUNPOD_API_KEY: stop it yourself, it costs money"
  else
    ask() {
      curl --fail --silent --show-error --max-time 60 --output /dev/null --request POST \
        --header "Authorization: Bearer $RUNPOD_API_KEY" --header "Content-Type: application/json" "$@"
    }
    # The second is the API before that one: a pod that goes on is paid for.
    ask --url "https://api.runpod.io/v2/pods/$RUNPOD_POD_ID/action" --data '{"action": "stop"}' \
      || ask --url "https://rest.runpod.io/v1/pods/$RUNPOD_POD_ID/stop" \
      || echo "start.sh: RunPod did not stop the pod: stop it yourself, it costs money"
  fi
fi
# A container that exits is started again by RunPod: wait to be stopped instead.
if [ "$when_done" != exit ]; then
  ended=$code
  run sleep infinity
  code=$ended
fi
exit "$code"
