#!/usr/bin/env bash
# A volume comes mounted as root's: hand its folders to the user `sconce`, and be that user from here on.
set -euo pipefail
if [ "$(id -u)" = 0 ]; then
  volume=${SCONCE_VOLUME:-/workspace}
  mkdir -p "$volume"
  find "$volume" -maxdepth 3 -type d -user root -exec chown sconce:sconce {} + || true # a refusal shows soon enough
  exec setpriv --reuid=sconce --regid=sconce --init-groups "$0" "$@"
fi
export HOME=/home/sconce
exec "$@"
