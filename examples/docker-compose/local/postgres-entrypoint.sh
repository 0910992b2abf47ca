#!/usr/bin/env bash
# Makes the user and the database that POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB name, once, and runs PostgreSQL.
set -euo pipefail

export PGDATA=/var/lib/postgresql/data
if [ ! -e "$PGDATA/ready" ]; then
    rm -rf "$PGDATA"
    initdb --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") --encoding=UTF8 \
        --auth-local=trust --auth-host=scram-sha-256
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -j postgres
    touch "$PGDATA/ready"
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
