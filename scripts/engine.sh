#!/usr/bin/env bash
# Docker Engines of our own for development and tests: each has its own data, sockets, containerd, bridge and pid file
# below $PERENNIAL_DEV_DIR/engines/NAME, next to whatever engine the machine already runs.
#
#   engine.sh start NAME [JSON]   starts it if it is not running; prints the socket path. JSON is merged into daemon.json;
#                                 its "hosts" are listened on beside the socket
#   engine.sh stop NAME           graceful; its containers stop
#   engine.sh kill NAME           SIGKILL of the daemon alone; containers run on, as after a daemon crash
#   engine.sh crash NAME          SIGKILL of the daemon and everything it runs; mounts are gone: a host that lost power
#   engine.sh wipe NAME           crash, then all of its state is deleted
#   engine.sh status NAME         exit code 0: it answers, 3: it does not; prints the socket path
set -euo pipefail
. "$(dirname "$0")/lib.sh"

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
action=$1 name=$2 extra=${3:-\{\}}
case $name in *[!a-z0-9]* | ???????????*) die "engine names are 1 to 10 of a-z 0-9: $name" ;; esac
become_root "$0" "$@"

dir=$DEV_DIR/engines/$name
socket=$dir/docker.sock
pidfile=$dir/dockerd.pid
# Names of interfaces are short, and another development directory may have an engine of this name.
bridge=prnl-$(printf '%s' "$dir" | sha256sum | cut -c1-10)

# Prints the pid of our daemon when it runs. The pid file alone proves nothing after a reboot.
daemon_pid() {
    local pid
    pid=$(cat "$pidfile" 2>/dev/null) && arguments "$pid" | grep -qxF "$dir/daemon.json" && echo "$pid"
}
gone() { [ ! -d "/proc/$1" ] || grep -q '^State:\s*Z' "/proc/$1/status" 2>/dev/null; }
answers() { curl -sf --max-time 2 --unix-socket "$socket" http://engine/_ping >/dev/null 2>&1; }

runs_containerd() { arguments "$(cat "$dir/exec/containerd/containerd.pid" 2>/dev/null)" | grep -qF "$dir/exec/"; }

# The arguments of a process, one per line; nothing for one that has ended, zombies included.
arguments() { { tr '\0' '\n' <"/proc/$1/cmdline"; } 2>/dev/null || true; }

# Everything this engine runs: processes that carry its exec root in their arguments (containerd, shims, gVisor), and
# all their descendants (what runs in the containers).
engine_pids() {
    local pid found=()
    for pid in /proc/[0-9]*; do
        pid=${pid#/proc/}
        [ "$pid" != $$ ] && arguments "$pid" | grep -qF "$dir/exec/" && found+=("$pid")
    done
    [ ${#found[@]} = 0 ] || descendants "${found[@]}" | sort -un
}
descendants() {
    local pid
    for pid in "$@"; do
        echo "$pid"
        # shellcheck disable=SC2046  # one word per child
        descendants $(cat "/proc/$pid/task/"*/children 2>/dev/null)
    done
}

unmount_all() {
    local target
    awk -v prefix="$dir/" 'index($5, prefix) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
        while read -r target; do umount -l "$target" 2>/dev/null || true; done
}

# The bridge gets the first free subnet of ours; containers of other engines never share it.
ensure_bridge() {
    [[ $(ip -o -4 addr show dev "$bridge" 2>/dev/null) != *" 10.213."* ]] || return 0
    local n lock
    exec {lock}>"$DEV_DIR/engines/.bridges.lock"
    flock -w 60 "$lock"
    for n in $(seq 0 255); do
        [[ $(ip -o -4 addr) == *" 10.213.$n.1/"* ]] || break
    done
    ip link add "$bridge" type bridge 2>/dev/null || true
    ip addr add "10.213.$n.1/24" dev "$bridge"
    ip link set "$bridge" up
    exec {lock}>&-
}

# Bridges of networks that were made through the API are named after the network's id, which its state file holds.
remove_bridges() {
    local link
    for link in "$bridge" $(grep -aoE '"id":"[0-9a-f]{64}"' "$dir/data/network/files/local-kv.db" 2>/dev/null |
        sed 's/"id":"\(.\{12\}\).*/br-\1/' | sort -u); do
        ip link del "$link" 2>/dev/null || true
    done
}

# Only the engine called "main" writes firewall rules, and only where no other daemon does: dockerd flushes the
# chains of every other one when it starts.
writes_firewall() {
    [ "$name" = main ] && ! docker --host unix:///var/run/docker.sock version >/dev/null 2>&1
}

runsc_runtime() {
    jq -n --arg path "$DEV_DIR/bin/$1" '{path: $path, runtimeArgs: ["--ignore-cgroups", "--network=host", $ARGS.positional[]]}' \
        --args -- "${@:2}"
}

# gVisor keeps changes of the root file system to itself unless told otherwise (--overlay2=none): they would be lost at
# every stop, and no snapshot could see them. "runsc-overlay" has that default, so that refusing it can be tested.
runtimes() {
    local runtimes='{}'
    add() { runtimes=$(jq -n --argjson all "$runtimes" --arg name "$1" --argjson one "$2" '$all + {($name): $one}'); }
    if [ -x "$DEV_DIR/bin/runsc" ]; then
        add runsc "$(runsc_runtime runsc --platform=systrap --overlay2=none)"
        add runsc-ptrace "$(runsc_runtime runsc --platform=ptrace --overlay2=none)"
        add runsc-overlay "$(runsc_runtime runsc --platform=systrap)"
    fi
    [ ! -x "$DEV_DIR/bin/runsc-2022" ] || add runsc-2022 "$(runsc_runtime runsc-2022 --platform=ptrace)"
    echo "$runtimes"
}

write_config() {
    local firewall=false
    writes_firewall && firewall=true
    jq -n --arg dir "$dir" --arg bridge "$bridge" --arg namespace "perennial-$name" \
        --argjson firewall $firewall --argjson runtimes "$(runtimes)" --argjson extra "$extra" '{
            "data-root": "\($dir)/data", "exec-root": "\($dir)/exec", pidfile: "\($dir)/dockerd.pid",
            hosts: ["unix://\($dir)/docker.sock"], bridge: $bridge, iptables: $firewall, ip6tables: false,
            "storage-driver": "overlay2", "containerd-namespace": $namespace, "containerd-plugins-namespace": "plugins.\($namespace)",
            "shutdown-timeout": 5, runtimes: $runtimes
        } as $ours | $ours + $extra | .hosts = $ours.hosts + ($extra.hosts // [])' >"$dir/daemon.json.new"
    mv "$dir/daemon.json.new" "$dir/daemon.json"
}

answers_or_ended() { answers || { [ -n "${child:-}" ] && gone "$child"; }; }

start() {
    if ! daemon_pid >/dev/null; then
        have dockerd || die "dockerd is missing" "run ./dev deps"
        rm -f "$pidfile" "$socket"
        # After a reboot only files are left; a containerd pid file among them may name some other process of today.
        [ -n "$(engine_pids)" ] || { unmount_all; rm -rf "$dir/exec"; }
        # And after a kill, the containerd that died with the daemon may be a zombie that dockerd would wait for.
        runs_containerd || rm -f "$dir/exec/containerd/containerd.pid"
        ensure_bridge
        write_config
        setsid dockerd --config-file "$dir/daemon.json" >>"$dir/dockerd.log" 2>&1 </dev/null 9>&- &
        child=$!
    fi
    wait_for 60 answers_or_ended || true
    answers || { tail -n 20 "$dir/dockerd.log" >&2; die "engine $name does not answer" "see $dir/dockerd.log"; }
    # The group of the person who called sudo may use it, like the engine's usual socket allows the docker group.
    [ -z "${SUDO_GID:-}" ] || chgrp "$SUDO_GID" "$socket"
    echo "$socket"
}

stop() {
    local pid
    pid=$(daemon_pid) || return 0
    kill "$pid"
    wait_for 60 gone "$pid" || { say "engine $name: does not stop, killing it"; kill -KILL "$pid"; wait_for 10 gone "$pid"; }
}

kill_daemon() {
    local pid
    pid=$(daemon_pid) || return 0
    kill -KILL "$pid"
    wait_for 10 gone "$pid"
}

# Killing one process can let another appear (a shim that reports an exit), so it repeats until nothing is left.
crash() {
    kill_daemon
    none_left() {
        local pids
        pids=$(engine_pids)
        [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086  # one word per process
        kill -KILL $pids 2>/dev/null
        return 1
    }
    wait_for 20 none_left || die "engine $name: processes do not end: $(engine_pids | xargs)"
    unmount_all
    rm -rf "$dir/exec" "$pidfile" "$socket"
}

wipe() {
    [ -d "$dir" ] || return 0
    crash
    remove_bridges
    # The lock goes with the directory; whoever waits for it starts from nothing.
    rm -rf --one-file-system "$dir"
}

mkdir -p "$DEV_DIR/engines"
[ "$action" = status ] || { exec 9>"$DEV_DIR/engines/.$name.lock"; flock -w 120 9; }
case $action in
    start) mkdir -p "$dir"; start ;;
    stop) stop ;;
    kill) kill_daemon ;;
    crash) crash ;;
    wipe) wipe ;;
    status) echo "$socket"; answers || exit 3 ;;
    *) usage ;;
esac
