#!/usr/bin/env bash
# Runs fuzz targets for a time each, four at once: fuzz.sh [TARGET…] [--seconds N]
#
# libFuzzer as a library, with the installed stable compiler: what cargo-fuzz adds is the flags for coverage, and they go
# to our own crates alone, so that all dependencies are those of the ordinary build. What breaks a target is kept in
# target/fuzz/artifacts; once understood it belongs in fuzz/regressions/TARGET, which the tests replay.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

if [ "${1:-}" = --rustc ]; then
    # As RUSTC_WORKSPACE_WRAPPER: members of the workspace tell which way they take. libFuzzer looks for the functions that
    # it stands in for in shared libraries, so this one program is not static.
    shift
    exec "${@/target-feature=+crt-static/target-feature=-crt-static}" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
fi

seconds=60
targets=()
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
        -*) die "fuzz: unknown option $1" ;;
        *) targets+=("$1"); shift ;;
    esac
done
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n '/^pub const TARGETS/,/^];/s/^    ("\([a-z_]*\)".*/\1/p' fuzz/src/lib.rs)

# As for the tests, so that both have the same dependencies; checks of overflows stay.
OPTIMISE=()
[ -z "${CI:-}" ] || for package in perennial perennial-core perennial-drivers '"*"'; do
    OPTIMISE+=(--config "profile.dev.package.$package.opt-level=1")
done

work=$ROOT/target/fuzz
mkdir -p "$work/artifacts"
wrapper=$work/rustc
printf '#!/bin/sh\nexec %q --rustc "$@"\n' "$ROOT/scripts/fuzz.sh" > "$wrapper.new"
chmod +x "$wrapper.new" && mv "$wrapper.new" "$wrapper"
RUSTC_WORKSPACE_WRAPPER=$wrapper cargo build --locked --workspace --bin fuzz "${OPTIMISE[@]}" \
    --features perennial/failpoints,perennial-fuzz/engine
program=$ROOT/target/$(rustc --print host-tuple)/debug/fuzz
# It knows real data to begin with.
PERENNIAL_FUZZ_TARGET=tree PERENNIAL_FUZZ_SEEDS=$work/seeds "$program" -runs=1 > "$work/seeds.log" 2>&1 ||
    die "the seeds cannot be made, see $work/seeds.log"

# One target: a log, and the way back to what broke it.
run() {
    mkdir -p "$work/corpus/$1" "$work/seeds/$1"
    if PERENNIAL_FUZZ_TARGET=$1 "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -malloc_limit_mb=768 -max_len=65536 -print_final_stats=1 -artifact_prefix="$work/artifacts/$1-" \
        "$work/corpus/$1" "$work/seeds/$1" > "$work/$1.log" 2>&1; then
        say "fuzz $1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$1.log") inputs, nothing broke"
    else
        grep -A8 "panicked at\|ERROR: libFuzzer" "$work/$1.log" >&2 || true
        tail -12 "$work/$1.log" >&2
        say "fuzz $1: BROKEN, see $work/$1.log and $work/artifacts/$1-*"
        return 1
    fi
}
export -f run say
export work program seconds
printf '%s\n' "${targets[@]}" | xargs -P 4 -I{} bash -c 'run {}'
