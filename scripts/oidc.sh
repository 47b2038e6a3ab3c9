#!/usr/bin/env bash
# A throw-away OpenID provider for tests (oidc-provider): a free port of 127.0.0.1, gone when it is stopped.
#
#   oidc.sh start DIR      starts one on DIR (which must not exist or be empty), prints its issuer
#   oidc.sh kill DIR       ends it
#   oidc.sh restart DIR    starts it again, on the same port, with other keys
#   oidc.sh stop DIR       stops it and deletes DIR
#
# Whoever names an account is that one, and has the address of what is before the first "-" of it; whose name ends with "-unverified" has one
# that nobody looked at, and the tokens of those that end with "--KIND" are spoilt (oidc-provider.mjs).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/service.sh"

[ $# = 2 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
dir=$(realpath -m "$2")
modules=$DEV_DIR/tools/oidc/node_modules
[ -e "$modules/oidc-provider/package.json" ] || die "oidc-provider is missing" "run ./dev deps"
# shellcheck disable=SC2034  # for service.sh
ending=KILL

command_line() {
    # shellcheck disable=SC2034  # for service.sh
    argv=(node "$(dirname "$(realpath "$0")")/oidc-provider.mjs" "$modules" "$1")
}

prepare() { :; }
announce() { echo "http://127.0.0.1:$1"; }

service "$1"
