#!/usr/bin/env bash
# Starts the pair of docker-compose.yml, breaks one thing after another, shows each take-over with its time, and judges
# what is stored. Exits 1 when anything is wrong. Nothing it starts outlives it: no container, network or volume.
#
# Every image can be set, as docker-compose.yml tells. KEEP=1 leaves all of it running when the story has ended.
set -euo pipefail
cd "$(dirname "$0")"

# Seconds. The first three are what the adapters promise under these settings, the rest is patience.
crash_bound=1           # an adapter that dies
silence_bound=7         # a Prometheus that dies: its timeout of 6 s, and one
lease_bound=10          # an adapter that is cut off
return_bound=15         # a database that is back
scrape=1 send=1         # as prometheus-a.yml and prometheus-b.yml say
peace=8                 # between two deeds
patience=40             # with a deed
start_patience=180      # with the first start

# Names and ports of their own, so that this disturbs nothing else on the machine.
export COMPOSE_PROJECT_NAME="adapter-failover-$$"
export ADAPTER_A_PORT='' ADAPTER_B_PORT='' PROMETHEUS_A_PORT='' PROMETHEUS_B_PORT=''

if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "$@"; }
elif command -v docker-compose >/dev/null; then
    compose() { docker-compose "$@"; }
else
    echo "Missing: Docker Compose, as 'docker compose' or 'docker-compose'." >&2
    exit 1
fi

# ---- time and words

now() { printf '%s' "$EPOCHREALTIME" | tr , .; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }
at_most() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a <= b) }'; }
larger() { awk -v a="$1" -v b="$2" 'BEGIN { print (a > b ? a : b) }'; }

began=$(now)
say() { printf '[%5.1f s] %s\n' "$(since "$began")" "$*"; }

wrong=()
# check WHAT COMMAND...: prints a finding, and remembers it when the command says no.
check() {
    local what=$1
    shift
    if "$@"; then
        echo "  ok    $what"
    else
        echo "  WRONG $what"
        wrong+=("$what")
    fi
}

give_up() {
    say "$*"
    for service in adapter-a adapter-b postgres; do
        echo "--- the last lines of $service"
        timeout 20 docker logs --tail 15 "${container[$service]}" 2>&1 || true
    done
    printf '\nVERDICT: WRONG: the story could not be told to its end\n'
    exit 1
}

# ---- the pair

declare -A container=() url=()

# What a service publishes is at another port after each start.
find_port() {
    local address
    address=$(docker port "${container[$1]}" | head -n 1)
    url[$1]="http://127.0.0.1:${address##*:}"
}

get() { curl --silent --max-time 2 "${url[$1]}$2" || true; }
status() { get "adapter-$1" /status.json | grep -o "\"$2\":[^,}]*" | cut -d : -f 2 | tr -d '"'; }
role() { status "$1" role || echo silent; }
# sum SERVICE METRIC: over all its labels.
sum() { get "$1" /metrics | awk -v name="$2" 'index($1, name) == 1 && $1 ~ "^" name "({|$)" { n += $NF } END { print n + 0 }'; }
sql() { timeout 30 docker exec "${container[postgres]}" psql --username=prometheus --dbname=metrics -qAt -F '  ' -c "$1"; }

# wait_role SIDE ROLE [SECONDS]
wait_role() {
    local end=$((SECONDS + ${3:-$patience}))
    until [ "$(role "$1")" = "$2" ]; do
        [ $SECONDS -lt $end ] || give_up "adapter $1 is $(role "$1"), and was to be $2 by now"
        sleep 0.02
    done
}

# Sets `leader` and `standby`, as soon as one side leads.
find_leader() {
    local end=$((SECONDS + patience)) side
    while [ $SECONDS -lt $end ]; do
        for side in a b; do
            if [ "$(role $side)" = leader ]; then
                leader=$side
                standby=$([ $side = a ] && echo b || echo a)
                return
            fi
        done
        sleep 0.02
    done
    give_up "nobody leads"
}

show_roles() {
    local side
    for side in a b; do
        printf -v line '    adapter %s: %-8s %8d samples received, %8d stored' $side "$(role $side)" \
            "$(sum adapter-$side prometheus_postgresql_adapter_samples_received_total)" \
            "$(sum adapter-$side prometheus_postgresql_adapter_samples_stored_total)"
        say "$line"
    done
}

start_again() {
    docker start "${container[$1]}" >/dev/null
    [ "$1" = postgres ] || find_port "$1"
}

peace() {
    sleep $peace
    show_roles
}

# Counters begin anew with each start of a Prometheus: they are kept until the end.
senders=()
note_sender() {
    local of="prometheus-$1"
    senders+=("Prometheus $1$2: $(sum "$of" prometheus_remote_storage_samples_total) $(sum "$of" prometheus_remote_storage_samples_failed_total) $(sum "$of" prometheus_remote_storage_samples_dropped_total)")
}

# ---- the end, however it comes

clean_up() {
    local status=$?
    trap - EXIT
    trap '' INT TERM
    if [ -n "${KEEP:-}" ] && [ $status = 0 ]; then
        say "left running: COMPOSE_PROJECT_NAME=$COMPOSE_PROJECT_NAME; adapters at ${url[adapter-a]} and ${url[adapter-b]}"
        exit 0
    fi
    say "removing the containers and networks ..."
    if ! timeout 120 "$BASH" -c "$(declare -f compose)"'; compose down --volumes --remove-orphans --timeout 5' >/dev/null 2>"$log"; then
        cat "$log" >&2
        # Never leave anything behind, whatever the tool says.
        docker ps --all --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" | xargs --no-run-if-empty docker rm --force --volumes
        docker network ls --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" | xargs --no-run-if-empty docker network rm
    fi
    rm -f "$log"
    exit $status
}
log=$(mktemp)
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- the story

say "starting PostgreSQL, node_exporter, two Prometheis and an adapter beside each ..."
if ! timeout 600 "$BASH" -c "$(declare -f compose)"'; compose up --detach' >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    exit 1
fi
for service in postgres adapter-a adapter-b prometheus-a prometheus-b; do
    container[$service]=$(compose ps --quiet $service)
done
for service in adapter-a adapter-b prometheus-a prometheus-b; do
    find_port $service
done
patience=$start_patience find_leader
wait_role "$standby" standby
say "adapter $leader leads and stores; adapter $standby stands by"
peace

echo
say "1. adapter $leader, which leads, is killed"
at=$(now)
docker kill "${container[adapter-$leader]}" >/dev/null
killing=$(since "$at")
wait_role "$standby" leader
crash=$(since "$at")
say "adapter $standby leads, $crash s after the kill was ordered ($killing s of which Docker took for it)"
start_again "adapter-$leader"
wait_role "$leader" standby
say "adapter $leader is started again, and stands by"
peace

echo
find_leader
note_sender "$leader" " until its death"
say "2. Prometheus $leader is killed: its adapter leads, but has nothing to store any more"
at=$(now)
docker kill "${container[prometheus-$leader]}" >/dev/null
wait_role "$standby" leader
silence=$(since "$at")
say "adapter $standby leads, $silence s after the kill was ordered"
start_again "prometheus-$leader"
wait_role "$leader" standby
say "Prometheus $leader is started again; adapter $leader stands by: nobody takes the lead from a leader that does its work"
peace

echo
say "3. PostgreSQL is killed: nobody can lead, and both Prometheis keep what they cannot send"
docker kill "${container[postgres]}" >/dev/null
wait_role a unknown
wait_role b unknown
say "neither leads; both answer 503"
sleep 5
at=$(now)
start_again postgres
find_leader
outage=$(since "$at")
say "PostgreSQL is started again: adapter $leader leads $outage s later"
wait_role "$standby" standby
peace

echo
find_leader
network=${COMPOSE_PROJECT_NAME}_database
say "4. adapter $leader, which leads, is cut off from PostgreSQL: it runs, and its Prometheus goes on sending to it"
at=$(now)
docker network disconnect "$network" "${container[adapter-$leader]}"
wait_role "$standby" leader
cut=$(since "$at")
say "adapter $standby leads, $cut s after the cut; adapter $leader is $(role "$leader")"
docker network connect "$network" "${container[adapter-$leader]}"
wait_role "$leader" standby
say "the network is whole again: adapter $leader stands by"
peace

# ---- the verdict

echo
say "what a SQL client sees:"
select="SELECT time, value FROM metrics WHERE name='up' AND labels @> '{\"job\":\"node\"}'"
say "$select"
sql "$select ORDER BY time DESC LIMIT 3" | sed 's/^/              /'

say "and what is true of all of it:"
check "take-over after $crash s when an adapter dies, at most $crash_bound s" at_most "$crash" "$crash_bound"
check "take-over after $silence s when a Prometheus dies, at most $silence_bound s" at_most "$silence" "$silence_bound"
check "a leader $outage s after PostgreSQL is back, at most $return_bound s" at_most "$outage" "$return_bound"
check "take-over after $cut s when an adapter is cut off, at most $lease_bound s" at_most "$cut" "$lease_bound"

samples=$(sql "SELECT count(*) FROM metrics")
series=$(sql "SELECT count(*) FROM (SELECT DISTINCT name, labels FROM metrics) s")
check "$samples samples of $series series are stored" [ "$samples" -gt 0 ]

doubled=$(sql "SELECT coalesce(sum(n - 1), 0)::bigint
    FROM (SELECT count(*) AS n FROM metrics GROUP BY name, labels, time HAVING count(*) > 1) d")
check "$doubled are doubled (same series, same time)" [ "$doubled" = 0 ]

# Ten scrapes in ten seconds, and a few more at a switch. Where both sides had been stored, there would be twenty.
overlaps=$(sql "SELECT count(*) FROM (
    SELECT 1 FROM metrics WHERE name = 'up'
    GROUP BY labels, floor(extract(epoch FROM time) / 10) HAVING count(*) > 14) o")
check "$overlaps times both sides of the pair were stored side by side" [ "$overlaps" = 0 ]

replicas=$(sql "SELECT count(*) FROM metrics WHERE labels ? '__replica__'")
check "$replicas carry the label that tells the replicas apart" [ "$replicas" = 0 ]

hole=$(sql "SELECT coalesce(max(extract(epoch FROM lag)), 0)::numeric(10, 1) FROM (
    SELECT time - lag(time) OVER (PARTITION BY labels ORDER BY time) AS lag FROM metrics WHERE name = 'up') l")
# What the old leader's Prometheus had not sent, and the next scrape of the new one's. While PostgreSQL was down both
# Prometheis kept their samples: that is no hole.
longest=$(larger "$crash" "$(larger "$silence" "$cut")")
bound=$(awk -v t="$longest" -v s=$scrape -v d=$send 'BEGIN { printf "%.1f", t + 2 * s + 2 * d }')
check "the longest hole in a series is $hole s, at most $bound s allowed" at_most "$hole" "$bound"

note_sender a ""
note_sender b ""
for sender in "${senders[@]}"; do
    read -r sent failed dropped <<<"${sender##*: }"
    check "${sender%%: *} sent $sent samples, $failed failed, $dropped dropped" \
        awk -v s="$sent" -v f="$failed" -v d="$dropped" 'BEGIN { exit !(s > 0 && f == 0 && d == 0) }'
done

leaders=0
for side in a b; do
    [ "$(role $side)" = leader ] && leaders=$((leaders + 1))
done
check "$leaders of two adapters leads" [ $leaders = 1 ]

if [ ${#wrong[@]} -gt 0 ]; then
    printf '\nVERDICT: WRONG: %s\n' "$(printf '%s; ' "${wrong[@]}" | sed 's/; $//')"
    exit 1
fi
printf '\nVERDICT: %s samples stored once, %s doubled; take-overs in %s s, %s s and %s s; longest hole %s s\n' \
    "$samples" "$doubled" "$crash" "$silence" "$cut" "$hole"
