#!/usr/bin/env bash
# A throw-away PostgreSQL for tests: no durability, a free port of 127.0.0.1, gone when it is stopped.
#
#   postgres.sh start DIR     makes a cluster in DIR (which must not exist or be empty), starts it, prints its URL
#   postgres.sh stop DIR      stops it and deletes DIR
set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ $# = 2 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
dir=$(realpath -m "$2")
bin=${PERENNIAL_TEST_PG_BIN:-$(pg_bin)} || die "PostgreSQL is missing" "run ./dev deps"

# PostgreSQL refuses to run as root; then it runs as the user of the package, or as nobody.
owner=$(id -un)
[ "$(id -u)" != 0 ] || { owner=postgres; id -u postgres >/dev/null 2>&1 || owner=nobody; }
as_owner() { if [ "$(id -u)" = 0 ]; then setpriv --reuid "$owner" --regid "$(id -g "$owner")" --clear-groups "$@"; else "$@"; fi; }

# The ports the system gives to clients are avoided; a port that is taken all the same makes the start fail, and the
# next one is tried.
start() {
    [ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || die "$dir is not empty"
    mkdir -p "$dir"
    [ "$(id -u)" != 0 ] || chown "$owner" "$dir"
    chmod 700 "$dir"
    (
        cd "$dir"
        as_owner "$bin/initdb" -D "$dir/data" -U perennial -A trust -E UTF8 --locale=C --no-sync >"$dir/initdb.log" 2>&1 ||
            { cat "$dir/initdb.log" >&2; die "initdb failed" "every parent of $dir must be open to user $owner"; }
        local attempt port
        for attempt in 1 2 3 4 5; do
            port=$((20000 + (RANDOM + attempt) % 10000))
            if as_owner "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -t 30 -w -s start \
                -o "-h 127.0.0.1 -p $port -k $dir -F -c full_page_writes=off -c synchronous_commit=off -c max_connections=200" \
                >/dev/null 2>&1 </dev/null; then
                as_owner "$bin/createdb" -h "$dir" -p "$port" -U perennial perennial
                echo "postgres://perennial@127.0.0.1:$port/perennial"
                exit
            fi
        done
        tail -n 20 "$dir/log" >&2
        die "PostgreSQL does not start"
    )
}

stop() {
    [ -d "$dir" ] || return 0
    [ ! -d "$dir/data" ] || (cd "$dir" && as_owner "$bin/pg_ctl" -D "$dir/data" -m immediate -t 30 -s stop >/dev/null 2>&1) || true
    rm -rf --one-file-system "$dir"
}

case $1 in
    start) start ;;
    stop) stop ;;
    *) die "unknown: $1" ;;
esac
