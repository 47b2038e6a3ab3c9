#!/usr/bin/env bash
# A small file system of its own kind for tests, on a sparse file, with project quotas where the kernel can.
#
#   loopfs.sh mount btrfs|xfs|ext4 DIR [SIZE]    makes it and mounts it on DIR (SIZE: 1G when not given)
#   loopfs.sh umount DIR                         unmounts it and deletes DIR and its file
set -euo pipefail
. "$(dirname "$0")/lib.sh"

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
become_root "$0" "$@"

mount_loop() {
    local kind=$1 dir image size=${3:-1G} quota=
    dir=$(realpath -m "$2")
    image=$dir.img
    [ ! -e "$image" ] || die "$image is there already" "scripts/loopfs.sh umount $dir"
    mkdir -p "$dir"
    truncate -s "$size" "$image"
    case $kind in
        btrfs) mkfs.btrfs -q "$image" ;;
        xfs) mkfs.xfs -q "$image"; quota=,prjquota ;;
        ext4) mkfs.ext4 -q "$image"; quota=,prjquota ;;
        *) rm "$image"; usage ;;
    esac
    [ "$kind" != ext4 ] || tune2fs -O project,quota -Q prjquota "$image" >/dev/null
    if ! mount -o "loop$quota" "$image" "$dir" 2>/dev/null; then
        say "loopfs: no project quotas for $kind in this kernel"
        [ "$kind" != ext4 ] || tune2fs -O ^quota "$image" >/dev/null 2>&1
        mount -o loop "$image" "$dir" || { rm "$image"; die "cannot mount $kind here"; }
    fi
    [ "$kind" != btrfs ] || btrfs quota enable "$dir"
    echo "$dir"
}

# The loop device goes with the mount, because mount made it.
umount_loop() {
    local dir
    dir=$(realpath -m "$1")
    [ -e "$dir.img" ] || return 0
    ! mountpoint -q "$dir" || umount "$dir" || umount -l "$dir"
    rm -f "$dir.img"
    rmdir "$dir"
}

case "${1:-} $#" in
    'mount 3' | 'mount 4') mount_loop "${@:2}" ;;
    'umount 2') umount_loop "$2" ;;
    *) usage ;;
esac
