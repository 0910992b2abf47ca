#!/usr/bin/env bash
# Brings the images of docker-compose.yml to this machine and runs failover.sh with them: `make demo-docker`.
#
# IMAGES=public pulls them, and compiles the adapter in its container. IMAGES=local makes all of them here, from
# Debian's packages and the binary of `make build`. Without it, the first image that cannot be pulled decides for local.
set -euo pipefail
cd "$(dirname "$0")"
top=$(cd ../.. && pwd)

if ! command -v docker >/dev/null || ! timeout 20 docker info >/dev/null 2>&1; then
    echo "No Docker Engine answers here. Install one (Debian: apt-get install docker.io), start it, and be allowed to use it." >&2
    exit 1
fi
compose=(docker compose)
if ! "${compose[@]}" version >/dev/null 2>&1; then
    "$top/.ci/install-deps" docker-compose
    compose=(docker-compose)
fi

pull() { timeout "$1" "${compose[@]}" pull --quiet "${@:2}" </dev/null >"$log" 2>&1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
images=${IMAGES:-}
if [ "$images" != local ]; then
    echo "Pulling the public images ..."
    # The smallest one first: where there is no way out, it says so soon.
    if pull 120 node-exporter && pull 1200 postgres prometheus-a; then
        echo "Compiling the adapter in its container (some minutes, once) ..."
        timeout 3600 "${compose[@]}" build adapter-a </dev/null
    elif [ "$images" = public ]; then
        cat "$log" >&2
        exit 1
    else
        tail -n 1 "$log"
        echo "No image can be pulled: making them here."
        images=local
    fi
fi
if [ "$images" = local ]; then
    make --no-print-directory -C "$top" build
    variables=$(local/images.sh)
    # shellcheck disable=SC2086,SC2163 # NAME=VALUE, one a word
    export $variables
fi
./failover.sh
