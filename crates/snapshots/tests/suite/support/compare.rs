//! Compares two trees by what the system says about them; knows nothing of the crate under test.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub atime: (i64, i64),
    pub rdev: u64,
    pub content: Vec<u8>,
    pub target: OsString,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path with the same inode, when there are several.
    pub link: Option<PathBuf>,
}

pub fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0_u8; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut out = BTreeMap::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0_u8; 65536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        out.insert(OsStr::from_bytes(name).to_owned(), value[..len].to_vec());
    }
    out
}

/// Reads without changing the access time.
fn read(path: &Path) -> Vec<u8> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let noatime = rustix::fs::OFlags::NOATIME.bits() as i32;
    let mut file = fs::OpenOptions::new().read(true).custom_flags(noatime).open(path).unwrap();
    let mut data = Vec::new();
    file.read_to_end(&mut data).unwrap();
    data
}

/// Everything below a directory, the directory itself under the empty path.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, Item> {
    snapshot_of(root, &|_| true)
}

/// The same of what is wanted, by its path below the directory; a directory that is not wanted is not looked into.
pub fn snapshot_of(root: &Path, wanted: &dyn Fn(&PathBuf) -> bool) -> BTreeMap<PathBuf, Item> {
    let mut out = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    let mut all = Vec::new();
    while let Some(path) = todo.pop() {
        let relative = path.strip_prefix(root).unwrap().to_path_buf();
        if path != root && !wanted(&relative) {
            continue;
        }
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        all.push(path);
    }
    all.sort();
    for path in all {
        let meta = fs::symlink_metadata(&path).unwrap();
        let relative = path.strip_prefix(root).unwrap().to_path_buf();
        if !wanted(&relative) {
            continue;
        }
        let t = meta.file_type();
        let kind = match () {
            () if t.is_file() => 'f',
            () if t.is_dir() => 'd',
            () if t.is_symlink() => 'l',
            () if t.is_fifo() => 'p',
            () if t.is_socket() => continue,
            () if t.is_char_device() => 'c',
            () => 'b',
        };
        let link = (meta.nlink() > 1 && kind != 'd')
            .then(|| inodes.entry((meta.dev(), meta.ino())).or_insert_with(|| relative.clone()).clone());
        let item = Item {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            // Looking at directories and links changes their access times.
            atime: if kind == 'f' { (meta.atime(), meta.atime_nsec()) } else { (0, 0) },
            rdev: if matches!(kind, 'c' | 'b') { meta.rdev() } else { 0 },
            content: if kind == 'f' { read(&path) } else { vec![] },
            target: if kind == 'l' { fs::read_link(&path).unwrap().into() } else { OsString::new() },
            xattrs: xattrs(&path),
            link,
        };
        out.insert(relative, item);
    }
    out
}

#[track_caller]
pub fn assert_same(expected: &BTreeMap<PathBuf, Item>, found: &BTreeMap<PathBuf, Item>) {
    for (path, item) in expected {
        let other = found.get(path).unwrap_or_else(|| panic!("{} is missing", path.display()));
        if item != other {
            let (mut a, mut b) = (item.clone(), other.clone());
            if a.content == b.content {
                a.content.clear();
                b.content.clear();
            }
            a.content.truncate(64);
            b.content.truncate(64);
            panic!("{} differs:\n{a:?}\n{b:?}", path.display());
        }
    }
    for path in found.keys() {
        assert!(expected.contains_key(path), "{} is too much", path.display());
    }
}
