#!/usr/bin/env bash
# Starts the pair of docker-compose.yml, breaks one thing after another, shows each take-over with its time, and judges
# what is stored. Exits 1 when anything is wrong. Nothing it starts outlives it: no container, network or volume.
#
# Needs Docker with Compose, bash 5 and curl. Every image can be set, as docker-compose.yml tells.
set -euo pipefail
cd "$(dirname "$0")"

[ "${BASH_VERSINFO[0]}" -ge 5 ] || { echo "Needs bash 5, not $BASH_VERSION." >&2; exit 1; }

# In seconds. What the adapters promise under these settings, Docker's own time not counted:
crash_bound=1     # an adapter that dies
silence_bound=7   # a Prometheus that dies: the adapter's prometheus-timeout of 6 s, and one
lease_bound=10    # an adapter that is cut off
return_bound=15   # a database that is back
# The rest:
scrape=1          # as prometheus-a.yml and prometheus-b.yml say
peace=8           # between two deeds
patience=60       # with a deed

# Names and ports of their own, so that this disturbs nothing else on the machine.
export COMPOSE_PROJECT_NAME="adapter-failover-$$"
export ADAPTER_A_PORT='' ADAPTER_B_PORT='' PROMETHEUS_A_PORT='' PROMETHEUS_B_PORT='' PROMETHEUS_READER_PORT=''

if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    echo "Missing: Docker Compose, as 'docker compose' or 'docker-compose'." >&2
    exit 1
fi

# ---- time and words

export LC_ALL=C   # a point before the decimals
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'; }
at_most() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a <= b) }'; }

began=$EPOCHREALTIME
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
# query SERVICE EXPRESSION TIME: the one number that a Prometheus answers.
query() {
    curl --silent --max-time 10 --get --data-urlencode "query=$2" --data-urlencode "time=$3" "${url[$1]}/api/v1/query" |
        sed -n 's/.*"value":\[[^,]*,"\([^"]*\)"\].*/\1/p' || true
}
sql() { timeout 30 docker exec "${container[postgres]}" psql --username=prometheus --dbname=metrics -qAt -F '  ' -c "$1"; }

# wait_role SIDE ROLE
wait_role() {
    local end=$((SECONDS + patience))
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
    deed start "${container[$1]}"
    find_port "$1"
}

peace() {
    sleep $peace
    show_roles
}

# deed DOCKER'S COMMAND...: sets `at`, when it was ordered, and `docker_took`, the seconds until it was done.
deed() {
    at=$EPOCHREALTIME
    timeout 60 docker "$@" >/dev/null
    docker_took=$(since "$at")
}

# check_take_over SECONDS DOCKER'S BOUND WHAT
check_take_over() {
    local own
    own=$(awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", (a > b ? a - b : 0) }')
    check "take-over $1 s after the order, $own s after Docker had done it, when $4: at most $3 s" at_most "$own" "$3"
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
    say "removing the containers and networks ..."
    if ! timeout 120 "${compose[@]}" down --volumes --remove-orphans --timeout 5 >"$log" 2>&1; then
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

say "starting PostgreSQL, node_exporter, two Prometheis, an adapter beside each, and a Prometheus that reads ..."
# Long enough to pull and to compile, where that has not been done yet.
if ! timeout 3600 "${compose[@]}" up --detach >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    exit 1
fi
for service in postgres adapter-a adapter-b prometheus-a prometheus-b prometheus-reader; do
    container[$service]=$("${compose[@]}" ps --quiet "$service")
done
for service in adapter-a adapter-b prometheus-a prometheus-b prometheus-reader; do
    find_port $service
done
find_leader
wait_role "$standby" standby
say "adapter $leader leads and stores; adapter $standby stands by"
peace

echo
say "1. adapter $leader, which leads, is killed"
deed kill "${container[adapter-$leader]}"
wait_role "$standby" leader
crash=$(since "$at") crash_docker=$docker_took
say "adapter $standby leads, $crash s after the order ($docker_took s of them Docker's)"
start_again "adapter-$leader"
wait_role "$leader" standby
say "adapter $leader is started again, and stands by"
peace

echo
find_leader
note_sender "$leader" " until its death"
say "2. Prometheus $leader is killed: its adapter leads, but has nothing to store any more"
deed kill "${container[prometheus-$leader]}"
wait_role "$standby" leader
silence=$(since "$at") silence_docker=$docker_took
say "adapter $standby leads, $silence s after the order ($docker_took s of them Docker's)"
start_again "prometheus-$leader"
wait_role "$leader" standby
say "Prometheus $leader is started again; adapter $leader stands by: nobody takes the lead from a leader that does its work"
peace

echo
say "3. PostgreSQL is killed: nobody can lead, and both Prometheis keep what they cannot send"
deed kill "${container[postgres]}"
wait_role a unknown
wait_role b unknown
say "neither leads; both answer 503"
sleep 5
deed start "${container[postgres]}"
find_leader
outage=$(since "$at") outage_docker=$docker_took
say "PostgreSQL is started again: adapter $leader leads $outage s after the order ($docker_took s of them Docker's)"
wait_role "$standby" standby
peace

echo
find_leader
network=${COMPOSE_PROJECT_NAME}_database
say "4. adapter $leader, which leads, is cut off from PostgreSQL: it runs, and its Prometheus goes on sending to it"
deed network disconnect "$network" "${container[adapter-$leader]}"
wait_role "$standby" leader
cut=$(since "$at") cut_docker=$docker_took
say "adapter $standby leads, $cut s after the order ($docker_took s of them Docker's); adapter $leader is $(role "$leader")"
deed network connect "$network" "${container[adapter-$leader]}"
wait_role "$leader" standby
say "the network is whole again; $(since "$at") s later adapter $leader stands by"
peace

# ---- the verdict

echo
say "what a SQL client sees:"
select="SELECT time, value FROM metrics WHERE name='up' AND labels @> '{\"job\":\"node\"}'"
say "$select"
sql "$select ORDER BY time DESC LIMIT 3" | sed 's/^/              /'

say "and what is true of all of it:"
check_take_over "$crash" "$crash_docker" $crash_bound "an adapter dies"
check_take_over "$silence" "$silence_docker" $silence_bound "a Prometheus dies"
check_take_over "$outage" "$outage_docker" $return_bound "PostgreSQL is back"
check_take_over "$cut" "$cut_docker" $lease_bound "an adapter is cut off"

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

# What the leader did not store the standby's buffer has, and after two scrapes and 5 s it is stored from there; what PostgreSQL
# could not take was kept. So no scrape is missing anywhere. Half an interval is for a scrape that came late.
gaps="SELECT extract(epoch FROM time - lag(time) OVER (PARTITION BY labels ORDER BY time)) / $scrape AS scrapes
    FROM metrics WHERE name = 'up'"
end=$((SECONDS + 15))
while
    read -r lost hole <<<"$(sql "SELECT coalesce(sum(round(scrapes) - 1) FILTER (WHERE scrapes > 1.5), 0)::bigint,
        (coalesce(max(scrapes), 0) * $scrape)::numeric(10, 1) FROM ($gaps) g")"
    [ "$lost" != 0 ] && [ $SECONDS -lt $end ]
do
    sleep 1
done
check "$lost scrapes of a target are lost; the longest hole is $hole s" [ "$lost" = 0 ]

# At a time when all is stored, and for less long than the leader has led.
find_leader
end=$(sql "SELECT (extract(epoch FROM max(time)) - 3)::numeric(20, 3) FROM metrics WHERE name = 'up'")
question='sum(count_over_time(up[4s]))'
read=$(query prometheus-reader "$question" "$end")
own=$(query "prometheus-$leader" "$question" "$end")
check "$question by remote_read gives ${read:-nothing}, ${own:-nothing} by the leading Prometheus itself" \
    [ "${read:-nothing}" = "$own" ]

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

services=$("${compose[@]}" ps --services | wc -l)
healthy=$(docker ps --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter health=healthy | wc -l)
check "$healthy of $services containers say that they are healthy" [ "$healthy" = "$services" ]

if [ ${#wrong[@]} -gt 0 ]; then
    printf '\nVERDICT: WRONG: %s\n' "$(printf '%s; ' "${wrong[@]}" | sed 's/; $//')"
    exit 1
fi
printf '\nVERDICT: %s samples stored once, %s lost, %s doubled; take-overs in %s s, %s s and %s s; longest hole %s s\n' \
    "$samples" "$lost" "$doubled" "$crash" "$silence" "$cut" "$hole"
