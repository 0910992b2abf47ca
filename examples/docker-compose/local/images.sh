#!/usr/bin/env bash
# Makes every image of docker-compose.yml on this machine, pulling none, and prints the variables that name them:
#
#   export $(examples/docker-compose/local/images.sh)
#
# The base is a Debian by debootstrap, made once and kept as an image; the rest is Debian's packages on top of it, and
# the adapter as `make build` has left it. Needs root (or sudo) for debootstrap, and Debian's mirror.
set -euo pipefail
cd "$(dirname "$0")"
top=$(cd ../../.. && pwd)

suite=${DEBIAN_SUITE:-bookworm}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
tag=prometheus-postgresql-adapter-local
base=$tag/debian:$suite

say() { printf '%s\n' "$*" >&2; }

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)

make_base() {
    docker image inspect "$base" >/dev/null 2>&1 && return 0
    "$top/.ci/install-deps" debootstrap >&2
    say "Making $base by debootstrap (a minute or two, once) ..."
    # On disk: a /tmp of memory may forbid device files.
    local root
    root=$(mktemp --directory /var/tmp/debootstrap.XXXXXX)
    # shellcheck disable=SC2064 # the directory of now
    trap "${sudo[*]} rm -rf '$root'" EXIT
    if ! "${sudo[@]}" env PATH="$PATH:/usr/sbin:/sbin" timeout 900 \
        debootstrap --variant=minbase "$suite" "$root/debian" "$mirror" >"$root/log" 2>&1 </dev/null; then
        tail -20 "$root/log" >&2
        return 1
    fi
    "${sudo[@]}" tar --directory="$root/debian" --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
        --create . | docker import --change 'CMD ["bash"]' - "$base" >/dev/null
}

# build NAME CONTEXT [OPTION...]: an image of the name, quietly unless it fails.
build() {
    local name=$1 context=$2 log
    shift 2
    say "Building $tag/$name ..."
    log=$(mktemp)
    if ! timeout 900 docker build --build-arg BASE_IMAGE="$base" --tag "$tag/$name" "$@" "$context" \
        >"$log" 2>&1 </dev/null; then
        tail -30 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

[ -x "$top/target/release/prometheus-postgresql-adapter" ] || { say "There is no binary yet: run make build"; exit 1; }
make_base
build adapter "$top" --target prebuilt --build-arg RUST_IMAGE="$base"
for name in postgres prometheus node-exporter; do
    build "$name" . --target "$name"
done
if ! docker run --rm --network none "$tag/adapter" -version >&2; then
    say "The binary does not run on $suite. Built on a newer system, it needs a DEBIAN_SUITE as new."
    exit 1
fi
cat <<VARIABLES
ADAPTER_IMAGE=$tag/adapter
POSTGRES_IMAGE=$tag/postgres
PROMETHEUS_IMAGE=$tag/prometheus
NODE_EXPORTER_IMAGE=$tag/node-exporter
VARIABLES
