#!/bin/sh
# Holds a Lease for the adapter beside it, and tells it: PUT 1 while it has the Lease, PUT 0 once it has not.
#
# Two that believe to have the Lease do no harm: the adapter that is told later leads, and the other one's writes are
# refused by the database. So this only has to be right most of the time; the loop puts the rest right.
#
# LEASE      the Lease's name: the same for both replicas
# IDENTITY   this replica's name: the pod's
# ADAPTER    the adapter beside it
# PROMETHEUS its Prometheus; a replica without one that is ready gives the Lease up
# TOKEN      the adapter's -web-admin-token, if it has one
set -eu

: "${LEASE:?}" "${IDENTITY:?}"
ADAPTER=${ADAPTER:-http://127.0.0.1:9201}
PROMETHEUS=${PROMETHEUS:-http://127.0.0.1:9090}
LEASE_SECONDS=${LEASE_SECONDS:-15}
PERIOD_SECONDS=${PERIOD_SECONDS:-2}

# What was seen last, and when by the clock of this host: no other clock is compared with.
seen='' seen_at=0 leads=no

say() { echo "$(date -u +%FT%TZ) $IDENTITY: $*"; }

now() { date +%s; }

tell() {
    curl -sf --max-time 10 -X PUT -d "$1" ${TOKEN:+-H "Authorization: Bearer $TOKEN"} "$ADAPTER/admin/election/leader" >/dev/null
}

is_well() {
    curl -sf --max-time 2 -o /dev/null "$PROMETHEUS/-/ready" && curl -sf --max-time 2 -o /dev/null "$ADAPTER/healthz"
}

# The Lease as it is to be; $1 is its holder, $2 the version it follows, which the server compares.
lease() {
    time=$(date -u +%FT%T.000000Z) follows=''
    [ -z "$2" ] || follows=", \"resourceVersion\": \"$2\""
    cat <<END
{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
 "metadata": {"name": "$LEASE"$follows},
 "spec": {"holderIdentity": "$1", "leaseDurationSeconds": $LEASE_SECONDS, "renewTime": "$time"}}
END
}

# Takes the Lease or renews it, if it is this replica's, nobody's, or has not been renewed for its duration. 1: another
# replica has it; 2: nobody can say.
hold() {
    if ! found=$(kubectl get lease "$LEASE" --ignore-not-found \
        -o 'jsonpath={.metadata.resourceVersion}/{.spec.holderIdentity}'); then
        return 2
    fi
    if [ -z "$found" ]; then
        lease "$IDENTITY" '' | kubectl create -f - >/dev/null || return 2
        return 0
    fi
    if [ "$found" != "$seen" ]; then
        seen=$found seen_at=$(now)
    fi
    version=${found%%/*} holder=${found#*/}
    if [ "$holder" = "$IDENTITY" ] || [ -z "$holder" ] || [ $(($(now) - seen_at)) -gt "$LEASE_SECONDS" ]; then
        lease "$IDENTITY" "$version" | kubectl replace -f - >/dev/null || return 2
        return 0
    fi
    return 1
}

# Lets the other one have the Lease at once.
give_up() {
    tell 0 || say "the adapter cannot be told to resign"
    found=$(kubectl get lease "$LEASE" --ignore-not-found \
        -o 'jsonpath={.metadata.resourceVersion}/{.spec.holderIdentity}') || return 0
    if [ "${found#*/}" = "$IDENTITY" ]; then
        lease '' "${found%%/*}" | kubectl replace -f - >/dev/null || true
    fi
}

stop() {
    trap - TERM INT
    say "stops"
    [ "$leads" = no ] || give_up
    exit 0
}
trap stop TERM INT

while :; do
    mine=0
    if is_well; then hold || mine=$?; else mine=1; fi
    if [ "$mine" = 0 ]; then
        # Each time: an adapter that was restarted does not know, and one that was told does nothing.
        if tell 1; then
            [ "$leads" = yes ] || say "has the lease, its adapter leads"
            leads=yes
        else
            say "its adapter cannot lead: gives the lease up"
            give_up
            leads=no
        fi
    elif [ "$mine" = 1 ] && [ "$leads" = yes ]; then
        say "has lost the lease, or is not well"
        give_up
        leads=no
    fi
    # With nobody to say who has it, whoever leads goes on: that must not end because Kubernetes is being upgraded.
    # In the background, so that a signal is heard at once.
    sleep "$PERIOD_SECONDS" &
    wait $! || true
done
