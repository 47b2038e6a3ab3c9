#!/usr/bin/env bash
# Asks a running server what its OpenAPI document allows, and what it does not: schemathesis.sh [--examples N] [--seed N] [sqlite|postgres]
#
# The server is a scratch one with the simulated engine, some pods and their snapshots; whatever becomes of them is fine. One with SQLite
# and then one with PostgreSQL, unless one of both is named. Which answers are right, and which routes are left out, is in
# schemathesis.toml. A failure prints the request that shows it again; all requests and the server's log are in
# target/schemathesis/sqlite and target/schemathesis/postgres.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Less than a minute. With a fixed seed about the same is asked every time; ids and who comes first are not the same.
examples=8
seed=20
databases=(sqlite postgres)
while [ $# -gt 0 ]; do
    case $1 in
        --examples) examples=${2:?--examples needs a number}; shift 2 ;;
        --seed) seed=${2:?--seed needs a number}; shift 2 ;;
        sqlite | postgres) databases=("$1"); shift ;;
        *) die "schemathesis: unknown option $1" ;;
    esac
done

tools=$DEV_DIR/tools/schemathesis
[ -x "$tools/bin/schemathesis" ] || die "schemathesis is missing" "run ./dev deps"
build=(cargo build --locked --workspace --bin perennial --features perennial/failpoints)
# The program of the tests, which is built already: alone it would have fewer features of its dependencies, and be built once more.
[ -z "${CI:-}" ] || build=(cargo test --no-run --locked --workspace --features perennial/failpoints)
[ -z "${CI:-}" ] || for package in perennial perennial-core perennial-drivers '"*"'; do
    build+=(--config "profile.dev.package.$package.opt-level=1")
done
binary=$("${build[@]}" --quiet --message-format json-render-diagnostics |
    jq -r 'select(.executable != null and .target.name == "perennial" and .target.kind == ["bin"] and .profile.test == false) | .executable')

listens_or_ended() { grep -q '"listening"' "$work/ready" || ! kill -0 "$server" 2>/dev/null; }
have_done() { "$binary" "$@" >"$work/done" 2>&1 || { cat "$work/done" >&2; die "perennial $* failed"; }; }
ask() { curl -sf -H "Authorization: Bearer $token" "$url/api/v1/$1"; }

# Without garbage collection, which a run this short does not need: in Python before 3.11.8 what runs in a collection while a
# source is parsed can break that ("AST constructor recursion depth mismatch", python/cpython#106905).
ask_everything='import gc, sys; gc.disable(); from schemathesis.cli import schemathesis; sys.argv[0] = "schemathesis"; schemathesis()'

# In a shell of its own, with which its servers end.
ask_all() (
    work=$ROOT/target/schemathesis/$1
    rm -rf "$work"
    mkdir -p "$work"
    server='' cluster='' options=()
    # shellcheck disable=SC2317  # called by the trap
    clean_up() {
        if [ -n "$server" ] && kill "$server" 2>/dev/null; then wait "$server" || true; fi
        if [ -n "$cluster" ]; then scripts/postgres.sh stop "$cluster/pg" && rmdir "$cluster"; fi
    }
    trap clean_up EXIT
    if [ "$1" = postgres ]; then
        cluster=$(mktemp -d)
        # Its own user has to get in.
        chmod 755 "$cluster"
        options=(--database "$(scripts/postgres.sh start "$cluster/pg")")
    fi
    "$binary" serve --data-dir "$work/data" --listen 127.0.0.1:0 --engine sim "${options[@]}" \
        >"$work/ready" 2>"$work/server.log" </dev/null &
    server=$!
    wait_for 60 listens_or_ended || true
    grep -q '"listening"' "$work/ready" || { cat "$work/server.log" >&2; die 'the server does not say that it listens'; }
    url=$(jq -r .listening "$work/ready")
    token=$(cat "$work/data/admin-token")
    export PERENNIAL_SERVER=$url PERENNIAL_TOKEN=$token

    # Ids that exist, since nobody guesses one: pods that run and pods that are stopped, snapshots and operations of theirs.
    for pod in running stopped kept spare; do have_done pod create $pod --image debian:12; done
    have_done snapshot create running
    have_done snapshot create kept
    have_done pod stop stopped
    pods=$(ask pods | jq -c '[.items[].id]')
    snapshots=$(ask snapshots | jq -c '[.items[].id]')
    operations=$(for pod in $(jq -r '.[]' <<<"$pods"); do ask "pods/$pod/operations"; done | jq -sc '[.[].items[].id]')
    sed -e "s/@PODS@/$pods/" -e "s/@SNAPSHOTS@/$snapshots/" -e "s/@OPERATIONS@/$operations/" scripts/schemathesis.toml \
        >"$work/schemathesis.toml"

    status=0
    (cd "$work" && "$tools/bin/python3" -c "$ask_everything" --config-file schemathesis.toml run "$url/openapi.json" \
        --header "Authorization: Bearer $token" --seed "$seed" --max-examples "$examples" \
        --report har --report-har-path requests.har) >"$work/report" 2>&1 || status=$?
    if [ $status != 0 ]; then
        cat "$work/report" >&2
        die "the API is not what its document says" "$work has the requests and the server's log"
    fi
    kill -0 "$server" 2>/dev/null || die 'the server has ended' "see $work/server.log"
    say "schemathesis on $1: $(grep -A1 '^Test cases:' "$work/report" | tail -1 | xargs)"
)

for database in "${databases[@]}"; do ask_all "$database"; done
