#!/usr/bin/env bash
# Makes the test images without any registry and loads them into the engine of DOCKER_HOST. Only what is missing.
#
#   images.sh [--archives] [NAME…]   all of them, or those named; --archives loads nothing
#   images.sh --directory            only prints where the archives are
#
# Each image is packed once into an archive below $PERENNIAL_DEV_DIR/images/<recipe>, so that every engine gets the same
# image id and a new engine needs seconds. The recipe is a hash of this file: what changes here is made anew.
#
#   perennial-test/busybox:1             static busybox, real /bin and /usr, no /workspace, a user 1000
#   perennial-test/busybox-merged:1      the same with /bin and /sbin as links into /usr
#   perennial-test/opt-link:1            the same with /opt -> / (must never show the host's root)
#   perennial-test/volume:1              the same, declares VOLUME /data and /srv, both with a file in the image
#   perennial-test/layers:1              three layers: files, whiteouts and an opaque directory, files again
#   perennial-test/debian:12             Debian minbase; /usr/share/perennial-test/*.deb are packages to install
#   perennial-test/debian-split:12       the same with /bin, /sbin and /lib apart from /usr
#   perennial-test/debian-postgres:15    the same with PostgreSQL 15 and sqlite3
#   perennial-test/debian-datasette:1    the same with Datasette from PyPI, a service that keeps what it is given in SQLite
set -euo pipefail
. "$(dirname "$0")/lib.sh"

pins=$(dirname "$0")/datasette.txt
recipe=$(cat "$0" "$pins" | sha256sum | cut -c1-12)
cache=$DEV_DIR/images/$recipe
[ "${1:-}" != --directory ] || { echo "$cache"; exit; }
[ "$(id -u)" = 0 ] || { as_root env DOCKER_HOST="${DOCKER_HOST:-}" bash "$0" "$@"; exit; }
only_archives=
[ "${1:-}" != --archives ] || { only_archives=1; shift; }
NAMES=("$@")
[ $# -gt 0 ] || NAMES=(busybox:1 busybox-merged:1 opt-link:1 volume:1 layers:1 debian:12 debian-split:12 debian-postgres:15 debian-datasette:1)
archive_of() { printf '%s/%s.tar' "$cache" "${1/:/-}"; }

tar_tree() { tar -C "$1" --sort=name --numeric-owner --xattrs --acls -c .; }

# pack NAME CONFIG LAYER…: writes the archive that `docker load` reads. CONFIG is the image's "config" object.
pack() {
    local name=$1 config=$2 layer stage archive; shift 2
    archive=$(archive_of "$name")
    stage=$(mktemp -d "$work/pack.XXXX")
    local diff_ids=() paths=()
    for layer in "$@"; do
        ln "$layer" "$stage/layer${#paths[@]}.tar"
        paths+=("layer${#paths[@]}.tar")
        diff_ids+=("sha256:$(sha256sum "$layer" | cut -d' ' -f1)")
    done
    jq -n --argjson config "$config" --arg arch "$(dpkg --print-architecture)" '{
        architecture: $arch, os: "linux", created: "2020-01-01T00:00:00Z", config: $config,
        history: [$ARGS.positional[] | {created: "2020-01-01T00:00:00Z", created_by: "scripts/images.sh"}],
        rootfs: {type: "layers", diff_ids: $ARGS.positional}}' --args -- "${diff_ids[@]}" >"$stage/config.json"
    jq -n --arg tag "perennial-test/$name" '[{Config: "config.json", RepoTags: [$tag], Layers: $ARGS.positional}]' \
        --args -- "${paths[@]}" >"$stage/manifest.json"
    tar -C "$stage" -cf "$archive.new" manifest.json config.json "${paths[@]}"
    mv "$archive.new" "$archive"
    rm -r "$stage"
}

PATH_ENV='"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]'

busybox_tree() {
    local tree=$1 applet
    mkdir -p "$tree"/{bin,sbin,dev,etc,home/user,opt,proc,root,run,srv,sys,tmp,usr/bin,usr/sbin,usr/lib,usr/local/bin,var/lib,var/log,var/tmp}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n' >"$tree/etc/passwd"
    printf 'root:x:0:\nuser:x:1000:\n' >"$tree/etc/group"
    echo 'from the image' >"$tree/etc/motd"
    echo 'from the image' >"$tree/usr/lib/data"
    chmod 700 "$tree/root"
    chmod 1777 "$tree/tmp" "$tree/var/tmp"
    chown -R 1000:1000 "$tree/home/user"
}

make_busybox() {
    local tree=$work/busybox config="{$PATH_ENV,\"Cmd\":[\"sh\"]}"
    busybox_tree "$tree"
    tar_tree "$tree" >"$work/busybox.tar"
    pack busybox:1 "$config" "$work/busybox.tar"

    cp -a "$tree" "$work/merged"
    mv "$work"/merged/bin/* "$work/merged/usr/bin/"
    rmdir "$work"/merged/{bin,sbin}
    ln -s usr/bin "$work/merged/bin"
    ln -s usr/sbin "$work/merged/sbin"
    tar_tree "$work/merged" >"$work/merged.tar"
    pack busybox-merged:1 "$config" "$work/merged.tar"

    cp -a "$tree" "$work/opt-link"
    rmdir "$work/opt-link/opt"
    ln -s / "$work/opt-link/opt"
    tar_tree "$work/opt-link" >"$work/opt-link.tar"
    pack opt-link:1 "$config" "$work/opt-link.tar"

    mkdir -p "$work"/volume/{data,srv}
    echo 'from the image' | tee "$work/volume/data/seed" >"$work/volume/srv/seed"
    tar_tree "$work/volume" >"$work/volume.tar"
    pack volume:1 "{$PATH_ENV,\"Cmd\":[\"sh\"],\"Volumes\":{\"/data\":{},\"/srv\":{}}}" "$work/busybox.tar" "$work/volume.tar"

    # The middle layer deletes /opt/gone and /opt/back, and hides what the first put into /srv/opaque.
    mkdir -p "$work"/l1/{opt,srv/opaque} "$work"/l2/{opt,srv/opaque} "$work"/l3/opt
    touch "$work"/l1/opt/{kept,gone,back} "$work/l1/srv/opaque/hidden"
    touch "$work"/l2/opt/.wh.{gone,back} "$work"/l2/srv/opaque/{.wh..wh..opq,shown}
    echo 'third layer' >"$work/l3/opt/back"
    local n
    for n in 1 2 3; do tar_tree "$work/l$n" >"$work/l$n.tar"; done
    pack layers:1 "$config" "$work/busybox.tar" "$work"/l{1,2,3}.tar
}

# perennial-hello 1 has a program that reads from /etc and /usr/lib, and a file that 2 no longer has.
hello_deb() {
    local version=$1 out=$2 tree
    tree=$work/hello-$version
    mkdir -p "$tree"/DEBIAN "$tree"/etc "$tree"/usr/bin "$tree"/usr/lib/perennial-hello
    printf '%s\n' 'Package: perennial-hello' "Version: $version" 'Architecture: all' \
        'Maintainer: Perennial tests <tests@example.invalid>' 'Description: package of the tests' >"$tree/DEBIAN/control"
    echo /etc/perennial-hello.conf >"$tree/DEBIAN/conffiles"
    printf '#!/bin/sh\nset -e\nmkdir -p /var/lib/perennial-hello\necho %s >/var/lib/perennial-hello/installed\n' "$version" \
        >"$tree/DEBIAN/postinst"
    chmod 755 "$tree/DEBIAN/postinst"
    echo 'greeting=hello' >"$tree/etc/perennial-hello.conf"
    echo "data $version" >"$tree/usr/lib/perennial-hello/data"
    [ "$version" != 1 ] || echo 'only in 1' >"$tree/usr/lib/perennial-hello/removed-in-2"
    # shellcheck disable=SC2016  # expanded where it runs
    printf '%s\n' '#!/bin/sh' '. /etc/perennial-hello.conf' "echo \"\$greeting $version \$(cat /usr/lib/perennial-hello/data)\"" \
        >"$tree/usr/bin/perennial-hello"
    chmod 755 "$tree/usr/bin/perennial-hello"
    dpkg-deb --root-owner-group --build "$tree" "$out" >/dev/null
}

debian_rootfs() {
    local tar=$DEV_DIR/images/debian-12.rootfs.tar keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
    if [ ! -e "$tar" ]; then
        say "images: debootstrap of Debian 12"
        mirror=$(debian_mirror)
        # shellcheck disable=SC2086  # no mirror: debootstrap knows its own
        debootstrap --variant=minbase --keyring=$keyring bookworm "$work/bootstrap" $mirror >"$work/debootstrap.log" ||
            { tail "$work/debootstrap.log" >&2; die "debootstrap failed"; }
        rm -rf "$work"/bootstrap/var/{cache/apt/*.bin,cache/apt/archives/*.deb,lib/apt/lists/*,log/bootstrap.log}
        tar_tree "$work/bootstrap" >"$tar.new"
        mv "$tar.new" "$tar"
        rm -r "$work/bootstrap"
    fi
    ln "$tar" "$work/debian.tar"
}

# The layer with the packages is kept, so that it is the same one in every image, whenever that is made.
debs_layer() {
    local debs=$work/debs/usr/share/perennial-test
    if [ ! -e "$cache/debs.tar" ]; then
        mkdir -p "$debs" "$cache/debs"
        hello_deb 1 "$debs/perennial-hello_1.deb"
        hello_deb 2 "$debs/perennial-hello_2.deb"
        cp "$debs"/*.deb "$cache/debs/"
        # Only the directories of the path, so that the layer changes nothing but the files.
        tar_tree "$work/debs" >"$cache/debs.tar.new"
        mv "$cache/debs.tar.new" "$cache/debs.tar"
    fi
    ln "$cache/debs.tar" "$work/debs.tar"
}

make_debian() {
    local config="{$PATH_ENV,\"Cmd\":[\"bash\"]}"
    debian_rootfs
    debs_layer
    ! lacks debian:12 || pack debian:12 "$config" "$work/debian.tar" "$work/debs.tar"
    lacks debian-postgres:15 debian-datasette:1 debian-split:12 || return 0
    mkdir "$work/debian"
    tar -C "$work/debian" --xattrs --acls -xpf "$work/debian.tar"
    ! lacks debian-postgres:15 || make_debian_postgres "$config"
    ! lacks debian-datasette:1 || make_debian_datasette "$config"
    ! lacks debian-split:12 || make_debian_split "$config"
}

# begin_above NAME: mounts debian:12 with an upper directory that becomes the layer above it; sets `root`.
begin_above() {
    root=$work/$1-root
    mkdir -p "$root" "$work/$1" "$work/$1-work"
    mount -t overlay overlay -o "lowerdir=$work/debian,upperdir=$work/$1,workdir=$work/$1-work,redirect_dir=off,metacopy=off" "$root"
    mount -t proc proc "$root/proc"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
}

# debian_install NAME PACKAGE…: without documentation, and without what apt leaves behind.
debian_install() {
    local log=$work/$1.log; shift
    # shellcheck disable=SC2016  # expanded where it runs
    DEBIAN_FRONTEND=noninteractive chroot "$root" sh -ec '
        apt-get -qq update
        apt-get -qq -o DPkg::Options::=--path-exclude=/usr/share/doc/\* -o DPkg::Options::=--path-exclude=/usr/share/man/\* \
            -o DPkg::Options::=--path-exclude=/usr/share/locale/\* install -y --no-install-recommends "$@"
        apt-get -qq clean
        rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d /var/cache/apt/*.bin' sh "$@" >"$log" 2>&1 ||
        { tail "$log" >&2; die "installing $* into the image failed"; }
}

# end_above NAME IMAGE CONFIG
end_above() {
    umount "$root/proc"
    umount "$root"
    overlay_to_layer "$work/$1"
    tar_tree "$work/$1" >"$work/$1.tar"
    pack "$2" "$3" "$work/debian.tar" "$work/debs.tar" "$work/$1.tar"
}

make_debian_postgres() {
    say "images: PostgreSQL into Debian 12"
    begin_above postgres
    mkdir -p "$root/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.d/image.conf"
    debian_install postgres postgresql-15 sqlite3
    # The just-in-time compiler is two thirds of the size, and nothing here needs it.
    rm -rf "$root"/usr/lib/postgresql/15/lib/{bitcode,llvmjit*} "$root"/usr/lib/*/{libLLVM*,libz3*}
    end_above postgres debian-postgres:15 "$1"
}

# Wheels only, and pinned: no script of any package is run.
make_debian_datasette() {
    say "images: Datasette into Debian 12"
    begin_above datasette
    debian_install datasette python3
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" --quiet --disable-pip-version-check install --only-binary :all: --require-hashes --no-deps \
        --python-version 311 --implementation cp --platform "manylinux2014_$(uname -m)" --platform "manylinux_2_28_$(uname -m)" \
        --target "$root/opt/datasette" -r "$pins" >&2
    # Anybody may write: it is reached through a port of the host's loopback.
    printf '%s\n' 'permissions:' '  create-table: true' '  insert-row: true' >"$root/opt/datasette/datasette.yaml"
    # shellcheck disable=SC2016  # expanded where it runs
    printf '%s\n' '#!/bin/sh' 'PYTHONPATH=/opt/datasette exec python3 -m datasette serve --create "$1" -c /opt/datasette/datasette.yaml \
        -h 0.0.0.0 -p 8001' >"$root/usr/local/bin/serve-datasette"
    chmod 755 "$root/usr/local/bin/serve-datasette"
    end_above datasette debian-datasette:1 "$1"
}

# Turns what overlayfs writes for deletions into what a layer has for them.
overlay_to_layer() {
    local path
    find "$1" -type c -printf '%p\n' | while read -r path; do
        [ "$(stat -c %t:%T "$path")" = 0:0 ] || continue
        rm "$path"
        touch "$(dirname "$path")/.wh.$(basename "$path")"
    done
    find "$1" -type d | while read -r path; do
        [ "$(getfattr --absolute-names --only-values -n trusted.overlay.opaque "$path" 2>/dev/null)" = y ] || continue
        setfattr -x trusted.overlay.opaque "$path"
        touch "$path/.wh..wh..opq"
    done
}

# Debian 12 packages still carry the unmerged paths, so the merge can be taken back file by file.
make_debian_split() {
    local tree=$work/debian dir path
    for dir in bin sbin lib lib32 lib64 libx32; do
        [ -L "$tree/$dir" ] || continue
        rm "$tree/$dir"
        mkdir "$tree/$dir"
    done
    cat "$tree"/var/lib/dpkg/info/*.list | grep -E '^/(s?bin|lib[0-9x]*)/' | sort -u | while read -r path; do
        if [ -d "$tree/usr$path" ] && [ ! -L "$tree/usr$path" ]; then
            mkdir -p "$tree$path"
        elif [ -e "$tree/usr$path" ] || [ -L "$tree/usr$path" ]; then
            mkdir -p "$tree$(dirname "$path")"
            mv "$tree/usr$path" "$tree$path"
        fi
    done
    [ -e "$tree/bin/sh" ] || ln -s dash "$tree/bin/sh"
    chroot "$tree" ldconfig
    tar_tree "$tree" >"$work/split.tar"
    pack debian-split:12 "$1" "$work/split.tar" "$work/debs.tar"
}

# lacks NAME…: one of these is wanted and has no archive yet.
lacks() {
    local name
    for name in "${NAMES[@]}"; do
        [[ " $* " != *" $name "* ]] || [ -e "$(archive_of "$name")" ] || return 0
    done
    return 1
}

make_archives() {
    lacks "${NAMES[@]}" || return 0
    say "images: making the archives"
    find "$DEV_DIR/images" -mindepth 1 -maxdepth 1 -type d ! -path "$cache" -exec rm -rf --one-file-system {} +
    mkdir -p "$cache"
    work=$(mktemp -d "$DEV_DIR/images/work.XXXX")
    # shellcheck disable=SC2064  # the directory of now
    trap "umount -l '$work'/*-root/proc '$work'/*-root 2>/dev/null || true; rm -rf --one-file-system '$work'" EXIT
    ! lacks busybox:1 busybox-merged:1 opt-link:1 volume:1 layers:1 || make_busybox
    ! lacks debian:12 debian-postgres:15 debian-datasette:1 debian-split:12 || make_debian
}

# The id of an image is the hash of its configuration; what another recipe left behind has another one.
load_missing() {
    local name archive id now
    for name in "${NAMES[@]}"; do
        archive=$(archive_of "$name")
        id=sha256:$(tar -xOf "$archive" config.json | sha256sum | cut -d' ' -f1)
        now=$(docker image inspect -f '{{.Id}}' "perennial-test/$name" 2>/dev/null) || now=
        [ "$now" != "$id" ] || continue
        say "images: loading perennial-test/$name"
        docker load -qi "$archive" >/dev/null
        [ -z "$now" ] || docker image rm "$now" >/dev/null 2>&1 || true
    done
}

mkdir -p "$DEV_DIR/images"
exec 9>"$DEV_DIR/images/.lock"
flock -w 600 9
make_archives
[ -n "$only_archives" ] || load_missing
