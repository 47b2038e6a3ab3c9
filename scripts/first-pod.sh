#!/usr/bin/env bash
# The life of a first pod, shown and asserted step by step against a running server.
#
#   first-pod.sh BINARY SERVER-URL TOKEN-FILE [IMAGE]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ $# -ge 3 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
binary=$1
export PERENNIAL_SERVER=$2
token_file=$3 image=${4:-perennial-test/debian:12}
pod=dev-$$
mounts=(/workspace /home /root /etc /usr/local /opt /var /srv)

perennial() { "$binary" --token-file "$token_file" "$@"; }
step() { printf '\n== %s\n' "$*"; }
show_pod() { perennial pod show "$pod" --output json; }
container() { show_pod | jq -er .container.id; }
in_pod() { docker exec "$(container)" "$@"; }
assert() { "${@:2}" || die "$1"; }
assert_phase() { assert "the pod is not $1 but $(show_pod | jq -r .phase)" [ "$(show_pod | jq -r .phase)" = "$1" ]; }
# The engine's own view: volumes that carry this pod's label.
engine_volumes() { docker volume ls --filter "label=io.perennial.pod=$id" --format '{{.Name}}'; }

everything_is_back() {
    local mount
    for mount in "${mounts[@]}"; do
        assert "$mount/proof is gone" [ "$(in_pod cat "$mount/proof")" = "written to $mount" ]
    done
    assert 'the installed program does not run' in_pod perennial-hello
}

step "A pod named $pod from $image"
perennial pod create "$pod" --image "$image" --cpus 1 --memory 512Mi -- sleep infinity
id=$(show_pod | jq -er .id)
assert_phase running
docker ps --filter "id=$(container)"
engine_volumes

step 'A file in each of the eight volumes, and a package'
for mount in "${mounts[@]}"; do
    in_pod sh -c "echo 'written to $mount' >$mount/proof"
done
in_pod dpkg -i /usr/share/perennial-test/perennial-hello_1.deb
everything_is_back

step 'Stop: a verified snapshot, then the host is released'
perennial pod stop "$pod"
assert_phase stopped
assert 'the stopped pod still has a container' [ "$(show_pod | jq -r .container)" = null ]
assert 'the stopped pod still has volumes' [ -z "$(engine_volumes)" ]
show_pod | jq '{phase, latestSnapshot}'
docker volume ls --filter "label=io.perennial.pod=$id"

step 'Start: everything is back'
perennial pod start "$pod"
assert_phase running
engine_volumes
everything_is_back

step 'Somebody removes the container: it comes back by itself'
lost=$(container)
docker rm -f "$lost"
came_back() { local now; now=$(container 2>/dev/null) && [ "$now" != "$lost" ] && [ "$(show_pod | jq -r .phase)" = running ]; }
assert 'the container did not come back' wait_for 60 came_back
everything_is_back

step 'Delete'
perennial pod rm "$pod" --yes
assert 'the deleted pod still has volumes' [ -z "$(engine_volumes)" ]
printf '\nThe pod outlived its container, its volumes and its package manager.\n'
