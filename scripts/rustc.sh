#!/usr/bin/env bash
# As RUSTC_WRAPPER: builds tests without optimising, whatever their package says. What they call is optimised; they only call it, and
# are a third of what there is to build. The tests inside of perennial-snapshots are built with the code that they put to work.
if [ "${CARGO_CRATE_NAME:-}" != perennial_snapshots ]; then
    for word; do
        [ "$word" != --test ] || exec "${@/#opt-level=1/opt-level=0}"
    done
fi
exec "$@"
