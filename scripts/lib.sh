# Shared by ./dev and the scripts next to this file; sourced, never run.
# shellcheck shell=bash disable=SC2034

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything the development environment makes outside the checkout lives here. It needs a file system that can be
# the upper side of an overlay mount (ext4, XFS, btrfs; not another overlay).
DEV_DIR=${PERENNIAL_DEV_DIR:-/var/lib/perennial-dev}

# Messages go to stderr, so that stdout of every script is data.
say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf '\nhint: %s\n' "$2" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    have sudo || die "this needs root: $*" "run it as root, or install sudo"
    sudo PERENNIAL_DEV_DIR="$DEV_DIR" "$@"
}

# Starts this script again as root when it is not.
become_root() {
    [ "$(id -u)" = 0 ] || { as_root bash "$@"; exit; }
}

# wait_for SECONDS COMMAND…: polls until the command succeeds; fails when the time is over.
wait_for() {
    local deadline=$((SECONDS + $1)); shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# The server binaries of the newest PostgreSQL that is installed.
pg_bin() {
    local dir newest=
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V); do
        [ ! -x "$dir/initdb" ] || newest=$dir
    done
    [ -n "$newest" ] && echo "$newest"
}

# The Debian mirror this machine uses: the site of its main packages that is not the security archive. Empty on others.
debian_mirror() {
    # shellcheck disable=SC2016  # apt expands these
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' |
        awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ && !found { found = $3 } END { print found }'
}
