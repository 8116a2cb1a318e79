#!/usr/bin/env bash
# TensorBoard over every run of the volume, on port 6006 or TENSORBOARD_PORT. It asks for no password.
set -euo pipefail
exec tensorboard --logdir "${ORCHESTRATE_RUNS_ROOT:-/workspace/runs}" --host 0.0.0.0 \
  --port "${TENSORBOARD_PORT:-6006}" --reload_interval 30
