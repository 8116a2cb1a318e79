#!/usr/bin/env bash
# A volume comes mounted as root's: hand its folders to the user `sconce`, and be that user from here on. With
# SCONCE_USER=root everything stays root's.
set -euo pipefail
case ${SCONCE_USER:=sconce} in
  sconce | root) ;;
  *)
    echo "entrypoint.sh: SCONCE_USER: found '$SCONCE_USER', expected sconce or root" >&2
    exit 2
    ;;
esac
if [ "$(id -u)" = 0 ] && [ "$SCONCE_USER" = sconce ]; then
  volume=${SCONCE_VOLUME:-/workspace}
  mkdir -p "$volume"
  find "$volume" -maxdepth 3 -type d -user root -exec chown sconce:sconce {} + || true # a refusal shows soon enough
  exec setpriv --reuid=sconce --regid=sconce --init-groups "$0" "$@"
fi
if [ "$SCONCE_USER" = sconce ]; then export HOME=/home/sconce; fi
exec "$@"
