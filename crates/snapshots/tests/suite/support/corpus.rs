//! A tree with one of everything.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

/// Bytes that neither compress nor repeat.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    // Another factor than the step below, or one seed would only be another one shifted.
    let mut state = seed.wrapping_add(1).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// An ACL as the kernel keeps it: version 2, then tag, permissions, id for owner, a user, group, mask and others.
fn acl() -> Vec<u8> {
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 5, 1234), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

pub fn set_mtime(path: &Path, seconds: i64, nanos: u32) {
    let time = if seconds >= 0 {
        SystemTime::UNIX_EPOCH + Duration::new(seconds as u64, nanos)
    } else {
        SystemTime::UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), 0) + Duration::new(0, nanos)
    };
    File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
}

pub fn xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|e| panic!("{name} on {}: {e}", path.display()));
}

pub fn make(root: &Path) {
    let at = |p: &str| root.join(p);
    fs::create_dir_all(at("dir/empty")).unwrap();
    fs::create_dir_all(at("a/b/c/d/e/f/g/h")).unwrap();
    fs::write(at("a/b/c/d/e/f/g/h/deep"), b"deep").unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("small"), b"small file\n").unwrap();
    fs::write(at("zeros"), vec![0; 100_000]).unwrap();
    fs::write(at("large"), noise(5 << 20, 1)).unwrap();
    fs::write(at("text"), "compressible ".repeat(100_000)).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(&noise(70_000, 2), (40 << 20) + 123).unwrap();
    sparse.set_len(64 << 20).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not\xffutf8\xc3")), b"bytes").unwrap();
    fs::write(at("quote\"back\\slash\nline"), b"odd").unwrap();
    fs::write(at("grüße 😀"), b"unicode").unwrap();
    symlink("small", at("link")).unwrap();
    symlink(OsStr::from_bytes(b"dangling\xfe"), at("dangling")).unwrap();
    fs::write(at("hard1"), b"one inode").unwrap();
    fs::hard_link(at("hard1"), at("hard2")).unwrap();
    fs::hard_link(at("hard1"), at("dir/hard3")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    mknodat(CWD, at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3)).unwrap();
    mknodat(CWD, at("loop"), FileType::BlockDevice, Mode::from_raw_mode(0o660), rustix::fs::makedev(7, 300)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("sock")).unwrap());
    fs::set_permissions(at("small"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o3770)).unwrap();
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o000)).unwrap();
    std::os::unix::fs::chown(at("text"), Some(12345), Some(54321)).unwrap();
    std::os::unix::fs::lchown(at("link"), Some(1000), Some(1000)).unwrap();
    // A capability (cap_net_raw+ep), an ACL, a default ACL, and an attribute on a link.
    xattr(&at("text"), "security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    xattr(&at("large"), "system.posix_acl_access", &acl());
    xattr(&at("dir"), "system.posix_acl_default", &acl());
    xattr(&at("link"), "trusted.onlink", b"x");
    xattr(&at("dir/empty"), "trusted.binary", &[0, 1, 255]);
    set_mtime(&at("large"), 1_234_567_890, 123_456_789);
    set_mtime(&at("zeros"), -86_400 * 365, 5);
    set_mtime(&at("hard1"), 1, 1);
    set_mtime(&at("a/b"), 1_000_000_000, 1);
    set_mtime(root, 1_600_000_000, 7);
}
