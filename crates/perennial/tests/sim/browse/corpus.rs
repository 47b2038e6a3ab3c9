//! A tree with every kind of entry.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

/// A tree with what an archive can hold.
pub fn make(home: &Path) {
    let at = |name: &str| home.join(name);
    std::fs::create_dir_all(at("dir/empty")).unwrap();
    std::fs::write(at("small"), b"small").unwrap();
    std::fs::write(at("hard1"), b"one inode").unwrap();
    std::fs::hard_link(at("hard1"), at("dir/hard2")).unwrap();
    std::os::unix::fs::symlink("small", at("link")).unwrap();
    std::os::unix::fs::symlink("t".repeat(200), at("long-link")).unwrap();
    let long = "d".repeat(120);
    std::fs::create_dir(at(&long)).unwrap();
    std::fs::write(at(&long).join("f".repeat(150)), b"long").unwrap();
    std::fs::write(home.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"raw\xff")), b"raw")
        .unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    mknodat(CWD, at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3)).unwrap();
    std::fs::hard_link(at("null"), at("null too")).unwrap();
    lsetxattr(at("small"), "user.note", b"a\0b\n", XattrFlags::empty()).ok();
    lsetxattr(at("small"), "trusted.note", b"a\0b\n", XattrFlags::empty()).unwrap();
    lsetxattr(at("dir/empty"), "system.posix_acl_default", &acl(), XattrFlags::empty()).unwrap();
    lsetxattr(at("hard1"), "system.posix_acl_access", &acl(), XattrFlags::empty()).unwrap();
    std::fs::hard_link(at("link"), at("link too")).unwrap();
    std::fs::set_permissions(at("dir/empty"), PermissionsExt::from_mode(0o3775)).unwrap();
    let sparse = std::fs::File::create(at("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data between holes", 20 << 20).unwrap();
    std::os::unix::fs::chown(at("small"), Some(3_000_000), Some(1000)).unwrap();
    std::fs::set_permissions(at("small"), PermissionsExt::from_mode(0o4751)).unwrap();
    let time = |name: &str, seconds: i64, nanoseconds: i64| {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, at(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    time("small", 1_234_567_890, 123_456_789);
    time("hard1", -1000, 500_000_000);
    time("dir", 7, 0);
}

/// An access control list as the system keeps it: one more user may read.
fn acl() -> Vec<u8> {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let all = u32::MAX;
    let entries = [entry(1, 6, all), entry(2, 4, 1000), entry(4, 4, all), entry(0x10, 4, all), entry(0x20, 4, all)];
    [&2_u32.to_le_bytes()[..], &entries.concat()].concat()
}
