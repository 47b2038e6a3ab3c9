//! Files of every kind in a pod, and an independent look at them: the pod's own find, stat, sha256sum and perl.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{BUSYBOX, Installation, Pod, VOLUMES};

/// Every path with what it is: kind, mode, owner, time to the nanosecond, links, device, size, target, content, and
/// extended attributes where the image can read them.
pub type Tree = BTreeMap<String, Vec<String>>;

/// What the engine writes itself.
const PRUNED: &str = "-path /etc/hosts -o -path /etc/hostname -o -path /etc/resolv.conf -o -path /etc/mtab";

/// Lists extended attributes of the paths on its standard input: perl is in every Debian image, getfattr is not.
const XATTRS: &str = r#"
$/ = "\0";
while (my $path = <STDIN>) {
    chomp $path;
    my $names = "\0" x 4096;
    my $length = syscall(195, $path, $names, 4096);
    next if $length <= 0;
    for my $name (sort split /\0/, substr($names, 0, $length)) {
        next if $name =~ /^(security\.selinux|trusted\.)/;
        my $value = "\0" x 4096;
        my $size = syscall(192, $path, $name, $value, 4096);
        print "$path|$name=", unpack("H*", substr($value, 0, $size)), "\n" if $size >= 0;
    }
}
"#;

/// Sets a user attribute; answers nothing where it cannot be set.
const SETXATTR: &str = r#"
my ($path, $name, $value) = @ARGV;
exit(syscall(189, $path, $name, $value, length $value, 0) == 0 ? 0 : 1);
"#;

/// Bytes that the host's file system holds for a tree.
pub fn allocated(path: &Path) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    let below: u64 = match std::fs::read_dir(path) {
        Ok(entries) if meta.is_dir() => entries.map(|e| allocated(&e.unwrap().path())).sum(),
        _ => 0,
    };
    // Format: st_blocks counts 512 bytes, whatever the block size (inode(7)).
    meta.blocks() * 512 + below
}

/// The eight volumes and one directory that no volume holds.
pub fn tree(installation: &Installation, pod: &Pod) -> Tree {
    let roots = format!("{} /data", VOLUMES.join(" "));
    // gVisor keeps fifos, and until it ends its own idea of times in a container's root, to itself.
    let gvisor = installation.show(pod)["runtime"] == "runsc";
    let pruned = if gvisor { format!("{PRUNED} -o -type p") } else { PRUNED.to_owned() };
    let line = format!(
        "mkdir -p /data
        find {roots} -xdev \\( {pruned} \\) -prune -o -print0 | sort -z >/tmp/paths
        echo stat; xargs -0 stat -c '%N|%F|%a|%u|%g|%Y %y|%t:%T' </tmp/paths
        echo links; find {roots} -xdev \\( {pruned} \\) -prune -o ! -type d -print0 | xargs -0 stat -c '%N|%h'
        echo size; find {roots} -xdev \\( {pruned} \\) -prune -o -type f -print0 | xargs -0 stat -c '%N|%s'
        echo sum; find {roots} -xdev \\( {pruned} \\) -prune -o -type f -print0 | xargs -0 sha256sum
        echo xattr; [ ! -x /usr/bin/perl ] || perl -e '{XATTRS}' </tmp/paths
        rm /tmp/paths"
    );
    let mut tree = Tree::new();
    let mut kind = "";
    let text = installation.sh(pod, &line);
    for line in text.lines() {
        if matches!(line, "stat" | "links" | "size" | "sum" | "xattr") {
            kind = line;
            continue;
        }
        let (path, value) = match kind {
            "sum" => line.split_once("  ").map(|(sum, path)| (path, sum)).unwrap(),
            _ => line.split_once('|').unwrap(),
        };
        // stat quotes, the others do not.
        let path = path.split(" -> ").next().unwrap().trim_matches('\'');
        // The engine makes files of its own in /etc whenever it makes a container, which changes the directory's time.
        let timeless = path == "/etc" || kind == "stat" && gvisor && path.starts_with("/data");
        let value =
            if timeless { value.splitn(5, '|').take(4).collect::<Vec<_>>().join("|") } else { value.to_owned() };
        let target = line.split_once(" -> ").map_or("", |(_, rest)| rest.split('|').next().unwrap());
        tree.entry(path.to_owned()).or_default().push(format!("{kind}: {value} {target}"));
    }
    assert!(tree.len() > 15, "{text}");
    tree
}

/// Writes files of every kind in each volume and outside them, and deletes some of the image's.
pub fn fill(installation: &Installation, pod: &Pod) {
    let mut line = String::from("set -e\n");
    for root in VOLUMES.iter().chain(&["/data"]) {
        line.push_str(&format!(
            "mkdir -p {root}/made/deep && cd {root}/made
            echo 'written to {root}' >plain; chmod 640 plain; chown 1234:4321 plain
            echo setuid >setuid; chmod 4755 setuid; chmod 1777 deep
            ln plain deep/hard; ln -s ../made/plain soft; ln -s /nowhere/at/all dangling
            : >empty; mkdir void; mkfifo fifo
            dd if=/dev/zero of=sparse bs=1 count=0 seek=4194304 2>/dev/null
            printf tail | dd of=sparse bs=1 seek=2097152 conv=notrunc 2>/dev/null
            echo odd >\"$(printf 'not\\377utf8 \\t line')\"; echo wh >.wh.plain
            dd if=/dev/urandom of=large bs=65536 count=9 2>/dev/null
            touch -d '2001-02-03 04:05:06' plain soft; touch -d '1999-12-31 23:59:59' deep void\n"
        ));
    }
    installation.sh(pod, &line);
    if installation.show(pod)["image"] != BUSYBOX {
        let deleted = "set -e; rm -r /etc/cron.daily /var/lib/dpkg/info/perl-base.list /etc/debian_version
            rm -rf /etc/skel; mkdir /etc/skel; echo instead >/etc/skel/new; rm /var/log/* 2>/dev/null || true";
        installation.sh(pod, deleted);
    } else {
        installation.sh(pod, "set -e; rm /etc/motd /etc/group; echo again >/etc/group");
    }
}

/// Sets a `user.` attribute on a file of each volume; false where the runtime has none.
pub fn fill_xattrs(installation: &Installation, pod: &Pod) -> bool {
    VOLUMES.iter().all(|root| {
        let line = format!("perl -e '{SETXATTR}' {root}/made/plain user.perennial 'value of {root}'");
        installation.try_sh(pod, &line).1
    })
}

/// Without the times of what the pod never touched: each backend has the image's files from another copy of the image, of
/// which one keeps whole seconds and one makes the directories anew.
pub fn but_for_the_images_times(tree: &Tree) -> Tree {
    let timeless = |value: &String| -> String {
        let fields = value.split('|').enumerate().filter(|(n, _)| !value.starts_with("stat:") || *n != 4);
        fields.map(|(_, field)| field).collect::<Vec<_>>().join("|")
    };
    let strip = |(path, values): (&String, &Vec<String>)| {
        let values = if path.contains("/made") { values.clone() } else { values.iter().map(timeless).collect() };
        (path.clone(), values)
    };
    tree.iter().map(strip).collect()
}

/// Compares, and names what differs instead of printing everything.
pub fn assert_same(before: &Tree, after: &Tree) {
    assert_same_when("", before, after);
}

pub fn assert_same_when(when: &str, before: &Tree, after: &Tree) {
    let mut differences: Vec<String> = Vec::new();
    for path in before.keys().chain(after.keys().filter(|p| !before.contains_key(*p))) {
        if before.get(path) != after.get(path) {
            differences.push(format!("{path}\n  before {:?}\n  after  {:?}", before.get(path), after.get(path)));
        }
    }
    assert!(
        differences.is_empty(),
        "{when}: {} paths differ:\n{}",
        differences.len(),
        differences[..differences.len().min(12)].join("\n")
    );
}
