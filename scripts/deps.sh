#!/usr/bin/env bash
# Installs what development and tests need, and only what is missing. Debian and Ubuntu.
# A Docker Engine that is already there is used as it is: never configured, never restarted.
#
#   deps.sh           everything
#   deps.sh --build   what a build needs
#   deps.sh --run     what a first pod needs besides
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# command (or @package, for what has no command) = package, or alternatives, the first that exists wins
FOR_BUILD=(gcc=gcc @libc6-dev=libc6-dev pkg-config=pkg-config jq=jq)
FOR_RUN=(
    curl=curl flock=util-linux ip=iproute2 iptables=iptables
    dockerd=docker.io docker='docker-cli docker.io' debootstrap=debootstrap busybox=busybox-static
)
FOR_TESTS=(
    setfattr=attr setfacl=acl mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs
    sqlite3=sqlite3 restic=restic shellcheck=shellcheck 'g++=g++' ssh=openssh-client node=nodejs npm=npm
    'gdb=gdb-minimal gdb' aiosmtpd=python3-aiosmtpd
)

apt_ready=
apt_prepare() {
    [ -z "$apt_ready" ] || return 0
    apt_ready=1
    say "deps: apt-get update"
    as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
}

# Installs packages without letting them start a daemon on a machine that has no systemd to supervise it.
apt_install() {
    apt_prepare
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -d /run/systemd/system ] && [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
        ours=1
    fi
    say "deps: installing $*"
    local failed=
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -qq -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends "$@" >&2 || failed=1
    [ -z "$ours" ] || as_root rm -f $policy
    [ -z "$failed" ] || die "apt-get install failed"
}

# The tests start one of their own: the package's is told to stay away, now and when the machine starts.
install_sshd() {
    [ ! -x /usr/sbin/sshd ] || return 0
    as_root install -D -m 644 /dev/null /etc/ssh/sshd_not_to_be_run
    apt_install openssh-server
}

has_candidate() { [[ $(apt-cache policy "$1" 2>/dev/null) == *"Candidate: "[!\(]* ]]; }

first_candidate() {
    local name
    for name in "$@"; do has_candidate "$name" && { printf '%s\n' "$name"; return; }; done
    die "no package found for: $*"
}

install_packages() {
    local entry what packages=()
    for entry in "$@"; do
        what=${entry%%=*}
        case $what in
            @*) dpkg-query -W -f '${db:Status-Status}\n' "${what#@}" 2>/dev/null | grep -qx installed && continue ;;
            *) have "$what" || [ -x "/usr/sbin/$what" ] && continue ;;
        esac
        apt_prepare
        # shellcheck disable=SC2086  # alternatives are separate words
        packages+=("$(first_candidate ${entry#*=})")
    done
    [ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
}

# The server binaries only: the packages' own cluster is neither made nor started.
install_postgres() {
    pg_bin >/dev/null && return
    apt_prepare
    local conf=/etc/postgresql-common/createcluster.d/perennial-dev.conf
    as_root mkdir -p "$(dirname $conf)"
    echo 'create_main_cluster = false' | as_root tee $conf >/dev/null
    apt_install "$(first_candidate postgresql-15 postgresql)"
    as_root rm -f $conf
}

# fetch_runsc NAME SUITE: one static gVisor binary, taken out of its package, so that no package source is added to the
# machine and two releases can be there side by side. Fails softly: gVisor is optional on a developer's machine.
fetch_runsc() {
    local target=$DEV_DIR/bin/$1 suite=$2 tmp mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -x "$target" ] && return
    mirror=$(debian_mirror)
    if [ -z "$mirror" ] || [ ! -e $keyring ]; then
        say "deps: no Debian mirror configured here, $1 is left out; tests with gVisor will say so"
        return
    fi
    say "deps: fetching $1 from Debian $suite"
    tmp=$(mktemp -d)
    chmod 755 "$tmp"
    mkdir -p "$tmp"/lists/partial "$tmp"/archives/partial
    printf 'deb [signed-by=%s] %s %s main\n' $keyring "$mirror" "$suite" >"$tmp/sources"
    local apt=(apt-get -qq -o "Dir::Etc::SourceList=$tmp/sources" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$tmp/lists" -o "Dir::Cache=$tmp" -o APT::Sandbox::User=root
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    if (cd "$tmp" && "${apt[@]}" update && "${apt[@]}" download runsc && dpkg-deb -x runsc_*.deb tree) >&2; then
        as_root install -D -m 755 "$tmp/tree/usr/bin/runsc" "$target"
    else
        say "deps: $1 could not be fetched; tests with gVisor will say so"
    fi
    rm -rf "$tmp"
}

# Built without optimisation: a third of the time, and what they do here is quick enough.
install_cargo_tool() {
    have "$1" || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/$1" ] && return
    say "deps: cargo install $1"
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --quiet --locked "$1" >&2
}

# An S3 service. Newer ones need a newer Rust than the workspace does.
S3_SERVER=s3s-fs@0.14.1
install_s3() {
    [ -x "$DEV_DIR/tools/bin/s3s-fs" ] && return
    say "deps: cargo install $S3_SERVER"
    as_root mkdir -p "$DEV_DIR/tools"
    as_root chown "$(id -u)" "$DEV_DIR/tools"
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --quiet --locked --features binary --root "$DEV_DIR/tools" "$S3_SERVER" >&2
}

# install_npm NAME PACKAGE@VERSION: no script of any package is run.
install_npm() {
    local target=$DEV_DIR/tools/$1
    [ "$(cat "$target/version" 2>/dev/null)" = "$2" ] && return
    say "deps: npm install $2"
    as_root mkdir -p "$target"
    as_root chown "$(id -u)" "$DEV_DIR/tools" "$target"
    npm install --silent --ignore-scripts --no-audit --no-fund --omit=dev --prefix "$target" "$2" >&2
    echo "$2" >"$target/version"
}

# Wheels only: no script of any package is run. All that it needs is pinned, or the same seed would ask something else every day.
install_schemathesis() {
    local target=$DEV_DIR/tools/schemathesis pins version
    pins=$(dirname "$0")/schemathesis.txt
    version=$(sha256sum <"$pins")
    [ "$(cat "$target/version" 2>/dev/null)" = "$version" ] && return
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    say "deps: pip install $(grep -o '^schemathesis==[^ ]*' "$pins")"
    as_root rm -rf "$target"
    as_root mkdir -p "$target"
    as_root chown "$(id -u)" "$DEV_DIR/tools" "$target"
    python3 -m venv "$target"
    "$target/bin/pip" --quiet --disable-pip-version-check install --only-binary :all: --require-hashes -r "$pins" >&2
    echo "$version" >"$target/version"
}

have apt-get || die "only Debian and Ubuntu are supported" "install the tools listed in scripts/deps.sh yourself"
have cargo || die "cargo is missing" "install Rust with rustup; rust-version is in Cargo.toml"
case ${1:-} in
    --build) install_packages "${FOR_BUILD[@]}" ;;
    --run)
        install_packages "${FOR_BUILD[@]}" "${FOR_RUN[@]}"
        fetch_runsc runsc trixie
        ;;
    '')
        install_packages "${FOR_BUILD[@]}" "${FOR_RUN[@]}" "${FOR_TESTS[@]}"
        install_postgres
        install_sshd
        fetch_runsc runsc trixie
        fetch_runsc runsc-2022 bookworm
        install_cargo_tool cargo-nextest
        install_cargo_tool cargo-deny
        install_s3
        # An Azure Blob service, and an OpenID provider.
        install_npm azurite azurite@3.35.0
        install_npm oidc oidc-provider@8.8.1
        install_schemathesis
        ;;
    *) die "unknown option: $1" ;;
esac
