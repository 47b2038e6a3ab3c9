//! Replacing a small file on a full disk.
//!
//! A pod that filled its disk must still be stopped, started and enlarged, and a start writes the generation into the
//! set's marker. So a second file of a block's size lies beside the marker from the beginning. When there is no room for
//! a new file, the spare one is written instead, which takes no space, and the two change names. File systems that write
//! every change to a new place (btrfs) may still refuse; they keep such small files elsewhere and reserve room for it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::tree;

/// Size of the spare file, and at most of the content: one block of the usual file systems.
const SIZE: usize = 4096;
/// How often the spare file is opened anew because somebody else took it meanwhile.
const ATTEMPTS: usize = 16;

/// Replaces `dir/name` durably, on a full disk as well when it was written before with room to spare.
pub(super) fn write_durably(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    match tree::write_durably(dir, name, content) {
        Err(full) if is_full(&full) => by_exchange(dir, name, content).map_err(|error| {
            tracing::debug!(%error, dir = %dir.display(), "no spare file to write");
            full
        }),
        Err(other) => Err(other),
        Ok(()) if spare(dir, name).exists() => Ok(()),
        // Without it everything works but a full disk.
        Ok(()) => match tree::write_durably(dir, &spare_name(name), &[b' '; SIZE]) {
            Err(e) if !is_full(&e) => Err(e),
            _ => Ok(()),
        },
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn spare_name(name: &str) -> String {
    format!("{name}.spare")
}

fn spare(dir: &Path, name: &str) -> PathBuf {
    dir.join(spare_name(name))
}

fn by_exchange(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    if content.len() > SIZE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "more than fits into the spare file"));
    }
    let spare = spare(dir, name);
    for _ in 0..ATTEMPTS {
        let file = File::options().write(true).open(&spare)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // Whoever had the lock before may have given this file the other name.
        if std::fs::symlink_metadata(&spare)?.ino() != file.metadata()?.ino() {
            continue;
        }
        let mut block = [b' '; SIZE];
        block[..content.len()].copy_from_slice(content);
        file.write_all_at(&block, 0)?;
        file.sync_all()?;
        renameat_with(CWD, &spare, CWD, dir.join(name), RenameFlags::EXCHANGE)?;
        return tree::sync_dir(dir);
    }
    Err(io::Error::new(ErrorKind::ResourceBusy, "others keep taking the spare file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system of so many kilobytes in memory; unmounted when dropped.
    struct Small(tempfile::TempDir);

    impl Small {
        fn new(kilobytes: u32) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let size = std::ffi::CString::new(format!("size={kilobytes}k")).expect("no zeros");
            rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), &*size)
                .expect("mount");
            Self(dir)
        }

        fn fill(&self) {
            let file = File::create(self.0.path().join("full")).expect("a file");
            let full = (0..).find_map(|n: u64| file.write_all_at(&[7; SIZE], n * SIZE as u64).err());
            assert!(full.is_some_and(|e| is_full(&e)));
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[test]
    fn a_file_is_replaced_again_and_again_on_a_full_disk() {
        let small = Small::new(128);
        let dir = small.0.path();
        write_durably(dir, "set.json", b"0").expect("there is room");
        small.fill();
        for n in 1..5 {
            write_durably(dir, "set.json", n.to_string().as_bytes()).expect("the spare file");
            let found = std::fs::read_to_string(dir.join("set.json")).expect("readable");
            assert_eq!(found.trim_end(), n.to_string());
        }
        let names: Vec<_> = std::fs::read_dir(dir).expect("list").map(|e| e.expect("entry").file_name()).collect();
        assert_eq!(names.len(), 3, "what could not be written is not left: {names:?}");
    }

    #[test]
    fn without_a_spare_file_a_full_disk_keeps_what_was_there() {
        let small = Small::new(128);
        let dir = small.0.path();
        write_durably(dir, "set.json", b"0").expect("there is room");
        std::fs::remove_file(spare(dir, "set.json")).expect("removed");
        small.fill();
        assert!(write_durably(dir, "set.json", b"1").is_err_and(|e| is_full(&e)));
        assert!(write_durably(dir, "set.json", &[b'1'; SIZE + 1]).is_err_and(|e| is_full(&e)));
        assert_eq!(std::fs::read(dir.join("set.json")).expect("readable"), b"0");
    }
}
