# Shared by the scripts that run a throw-away service of the tests; sourced, never run. They define
#   command_line PORT   sets argv to the service's command line
#   prepare             makes what it needs
#   announce PORT       says where it is
# and use $dir, where all of it lives, and $ending, the signal that ends it.
# shellcheck shell=bash disable=SC2154

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# One that nobody has waited for yet has ended all the same.
ended() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }
listens_or_ended() { listens "$1" || ended "$2"; }

# launch PORT: fails when the service ends again, as it does when somebody else has the port.
launch() {
    local pid argv
    command_line "$1"
    # In a script without job control setsid becomes the service, as the leader of a session of its own.
    setsid "${argv[@]}" >>"$dir/log" 2>&1 </dev/null &
    pid=$!
    wait_for 60 listens_or_ended "$1" $pid || true
    if ended $pid || ! listens "$1"; then
        return 1
    fi
    echo $pid >"$dir/pid"
    echo "$1" >"$dir/port"
}

# The ports the system gives to clients are avoided; of a port that is taken the service ends, and the next is tried.
start() {
    [ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || die "$dir is not empty"
    mkdir -p "$dir"
    prepare
    local attempt port
    for attempt in 1 2 3 4 5; do
        port=$((20000 + (RANDOM + attempt) % 10000))
        listens $port && continue
        if launch $port; then
            announce $port
            return
        fi
    done
    tail -n 20 "$dir/log" >&2
    die "the service does not start"
}

restart() {
    [ -e "$dir/port" ] || die "nothing was started on $dir"
    local port
    port=$(cat "$dir/port")
    launch "$port" || { tail -n 20 "$dir/log" >&2; die "the service does not start again"; }
    announce "$port"
}

kill_service() {
    local pid
    [ -e "$dir/pid" ] || return 0
    pid=$(cat "$dir/pid")
    rm -f "$dir/pid"
    kill "-$ending" -- "-$pid" 2>/dev/null || true
    wait_for 5 ended "$pid" || kill -KILL -- "-$pid" 2>/dev/null || true
    wait_for 5 ended "$pid" || die "the service does not die"
}

service() {
    case $1 in
        start) start ;;
        kill) kill_service ;;
        restart) restart ;;
        stop)
            kill_service
            rm -rf --one-file-system "$dir"
            ;;
        *) die "unknown: $1" ;;
    esac
}
