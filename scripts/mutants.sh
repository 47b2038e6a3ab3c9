#!/usr/bin/env bash
# Shows that the tests have teeth: each mutation below breaks one law on purpose, and the test named beside it notices.
#
#   mutants.sh [PREFIX…]   all mutations, or those whose names begin so
#
# Every test has to pass without its mutation first. A mutation that no longer applies, that its test does not notice, or
# that only lets the time run out, fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | tar -cf - --null -T - | tar -xf - -C "$copy"
# The dependencies are built already; only what is mutated is built again.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}

# name | file | what is replaced | by what | package | test target (or lib) | test
mutations() {
    cat <<'TABLE'
permit-ignores-verification|crates/core/src/permit.rs|snapshot.state != SnapshotState::Verified \|\| snapshot.repository_id.is_none()|false|perennial-core|lib|law_1_every_missing_part
permit-ignores-losses|crates/core/src/permit.rs|    if !snapshot.losses.is_empty() {|    if false {|perennial-core|lib|law_1_every_missing_part
permit-ignores-generation|crates/core/src/permit.rs|snapshot.set != Some(set) \|\| Some(snapshot.generation) != recorded.attached|snapshot.set != Some(set)|perennial-core|lib|law_1_every_missing_part
permit-ignores-writer|crates/core/src/permit.rs|container.is_live() \|\| another_run|false|perennial-core|lib|law_1_every_missing_part
permit-for-what-ran|crates/core/src/permit.rs|    if recorded.attached.is_some() {|    if false {|perennial-core|lib|law_1_what_ran_is_never
permit-container-of-a-vm|crates/core/src/permit.rs|        if pod.keeps_layer() {|        if false {|perennial-core|lib|law_1_a_container_goes
permit-purge-unconfirmed|crates/core/src/permit.rs|        _ => Err(Denied::NotConfirmed),|        _ => Ok(String::new()),|perennial-core|lib|law_1_a_purge_needs
plan-releases-unverified|crates/core/src/plan/release.rs|        SnapshotState::Uploaded => act(Action::Verify { snapshot: chosen.id }),|        SnapshotState::Uploaded => Progress::Done(chosen),|perennial-core|lib|law_1_nothing_is_deleted
plan-starts-without-data|crates/core/src/plan/run.rs|    Some(Next::Blocked(found))|    None|perennial-core|lib|law_2_lost_volumes
plan-accepts-old-data|crates/core/src/plan/mod.rs|set.marked.is_some_and(\|marked\| seen < marked)|false|perennial-core|lib|law_2_older_data
plan-ignores-foreign-writer|crates/core/src/plan/mod.rs|    if !input.observed.foreign.is_empty() {|    if false {|perennial-core|lib|law_6_a_foreign
plan-forgets-what-it-cannot-prove|crates/core/src/plan/leftovers.rs|        None => Next::Act(Action::Record(Record::SetQuarantined(set.number))),|        None => Next::Act(Action::Record(Record::SetGone(set.number))),|perennial-core|lib|law_7_a_leftover
subscription-skips-a-warning|crates/core/src/subscription.rs|warned: self.warned + 1, trash_at|warned: self.warned + 2, trash_at|perennial-core|lib|no_jump_of_the_clock
subscription-lets-it-run|crates/core/src/subscription.rs|            if after == Desired::Running \|\| (is_hidden(before)|            if (is_hidden(before)|perennial-core|lib|the_pod_goes_no_way
record-keeps-stale-source|crates/core/src/record.rs|            pod.source = None;|            pod.source = pod.source;|perennial|sim|sim_stop_releases
executor-skips-the-restore|crates/perennial/src/reconcile/fill.rs|                self.restore_volumes(view, &set, &row, progress).await?;||perennial|sim|sim_stop_releases
executor-skips-the-layer|crates/perennial/src/reconcile/execute.rs|        self.put_layer_back(view, &id, progress).await?;||perennial|sim|sim_three_stop_start
executor-captures-without-layer|crates/perennial/src/reconcile/capture.rs|        roots.extend(layer.root().cloned());||perennial|sim|sim_three_stop_start
TABLE
}

# chosen NAME PREFIX…: whether one of the prefixes, if there are any, begins the name
chosen() {
    local name=$1 prefix; shift
    [ $# != 0 ] || return 0
    for prefix; do [[ $name != "$prefix"* ]] || return 0; done
    return 1
}

# tried PACKAGE TARGET TEST: runs the test in the copy, its words in $log; 124 when the time is over
tried() {
    local selection=(--lib)
    [ "$2" = lib ] || selection=(--test "$2")
    (cd "$copy" && cargo test --locked -q -p "$1" "${selection[@]}" --no-run) >"$log" 2>&1 || {
        tail -20 "$log" >&2
        die "$name does not build: the mutation has to be rewritten"
    }
    (cd "$copy" && timeout "$PATIENCE" cargo test --locked -q -p "$1" "${selection[@]}" "$3") >"$log" 2>&1
}

PATIENCE=300
log=$copy/log
caught=0 missed=0
declare -A sound=()
while IFS= read -r line; do
    # A bar inside a pattern is written \|.
    IFS=$'\t' read -r name file from to package target test < <(sed 's/\\|/\x01/g; s/|/\t\x02/g; s/\x01/|/g' <<<"$line")
    from=${from#$'\x02'} to=${to#$'\x02'} file=${file#$'\x02'} package=${package#$'\x02'} target=${target#$'\x02'} test=${test#$'\x02'}
    chosen "$name" "$@" || continue
    if [ -z "${sound[$package $target $test]:-}" ]; then
        tried "$package" "$target" "$test" || die "$test fails without any mutation: $(tail -5 "$log")"
        grep -qE 'test result: ok. [1-9]' "$log" || die "$name: the test $test does not exist"
        sound[$package $target $test]=1
    fi
    cp "$file" "$copy/$file"
    FROM=$from TO=$to python3 - "$copy/$file" <<'PYTHON' || die "$name no longer applies to $file"
import os, sys
path, old, new = sys.argv[1], os.environ["FROM"], os.environ["TO"]
text = open(path).read()
if text.count(old) < 1:
    sys.exit(1)
open(path, "w").write(text.replace(old, new, 1))
PYTHON
    status=0
    tried "$package" "$target" "$test" || status=$?
    case $status in
        0) echo "MISSED $name: $test passes" && missed=$((missed + 1)) ;;
        124) die "$name: $test did not end within $PATIENCE s, which proves nothing" ;;
        *) echo "caught $name by $test" && caught=$((caught + 1)) ;;
    esac
    cp "$file" "$copy/$file"
done < <(mutations)
echo "$caught mutations caught, $missed missed"
[ "$caught" != 0 ] || die "no mutation is called so"
[ "$missed" = 0 ]
