//! Trees that are put together by hand: contents from any reader, directories from nodes.
//!
//! What comes from elsewhere than a directory (an archive that somebody sent) never has to become files first: its
//! names meet no file system, so nothing can lead out of anywhere. The result is no snapshot: an
//! [`archive`](Repository::archive) takes it in as [`Source::Passed`](crate::Source::Passed), and proves on the way that
//! every blob is there. What is written and then taken in by nobody costs space until the next prune.

use std::io::Read;

use perennial_core::progress::Progress;

use crate::archive::ZEROS;
use crate::chunker::{self, Grain};
use crate::error::{Error, Result};
use crate::id::{Id, TreeId};
use crate::lock::{LockGuard, LockMode};
use crate::node::{Node, NodeKind, check_name, encode_tree};
use crate::pack::Sealer;
use crate::repository::Repository;
use crate::uploader::Uploader;
use crate::wire::BlobKind;

/// How much is read at a time.
const READ: usize = 2 << 20;

/// What writing trees left in the repository.
#[derive(Debug)]
pub struct WrittenTrees<T> {
    /// What the work returned.
    pub value: T,
    /// Bytes added to packs, compressed and encrypted.
    pub new_bytes: u64,
}

/// Stores contents and directories.
pub struct TreeWriter<'a> {
    uploader: &'a Uploader<'a>,
    progress: &'a Progress,
    sealer: Sealer,
    buffer: Vec<u8>,
}

impl Repository {
    /// Has `work` store contents and directories; everything it stored is indexed when this returns.
    ///
    /// # Errors
    /// What the work says; [`Error::Locked`]; [`Error::Cancelled`]; store errors. What was stored by then is of use to a
    /// second try.
    pub fn write_trees<T, E: From<Error>>(
        &self,
        progress: &Progress,
        work: impl FnOnce(&mut TreeWriter<'_>) -> Result<T, E>,
    ) -> Result<WrittenTrees<T>, E> {
        progress.check().map_err(Error::from)?;
        let guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        self.inner.refresh_index()?;
        let uploader = Uploader::new(&self.inner);
        let mut writer = TreeWriter { uploader: &uploader, progress, sealer: Sealer::new()?, buffer: Vec::new() };
        let value = match work(&mut writer) {
            Ok(value) => value,
            Err(error) => {
                uploader.salvage();
                return Err(error);
            }
        };
        uploader.flush()?;
        guard.ensure()?;
        Ok(WrittenTrees { value, new_bytes: uploader.new_bytes() })
    }
}

impl TreeWriter<'_> {
    /// Stores a file's content: all that the reader has, which must be `size` bytes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the reader has more or fewer bytes; [`Error::Io`] with what the reader says.
    pub fn file(&mut self, reader: &mut dyn Read, size: u64) -> Result<Vec<Id>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let stored = self.file_with(reader, size, &mut buffer);
        self.buffer = buffer;
        stored
    }

    fn file_with(&mut self, reader: &mut dyn Read, size: u64, buffer: &mut Vec<u8>) -> Result<Vec<Id>> {
        let mut content = Vec::new();
        let mut total = 0_u64;
        let mut grain = None;
        loop {
            self.progress.check()?;
            let old = buffer.len();
            let got = reader.take(READ as u64).read_to_end(buffer).map_err(|e| Error::io("read", "the content", e))?;
            total += got as u64;
            let last = buffer.len() - old < READ;
            if total > size || (last && total < size) {
                let what = "bytes of a content".to_owned();
                return Err(Error::Mismatch { what, expected: size, found: total });
            }
            self.progress.add_bytes(got as u64);
            let grain = *grain.get_or_insert_with(|| Grain::of(size, buffer, false));
            self.chunks(buffer, grain, last, &mut content)?;
            if last {
                return Ok(content);
            }
        }
    }

    /// Saves chunks from the front of the buffer. One that more input could make longer waits, unless this is the last.
    fn chunks(&mut self, buffer: &mut Vec<u8>, grain: Grain, last: bool, content: &mut Vec<Id>) -> Result<()> {
        let mut start = 0;
        while start < buffer.len() {
            self.progress.check()?;
            let rest = &buffer[start..];
            let len = grain.cut(rest);
            if !last && len == rest.len() && len < chunker::MAX {
                break;
            }
            let chunk = &rest[..len];
            let (zeros, id) = &*ZEROS;
            content.push(if chunk == zeros {
                // A hole's chunk is known without hashing it again and again.
                self.uploader.save_as(&mut self.sealer, BlobKind::Data, *id, chunk)?;
                *id
            } else {
                self.uploader.save(&mut self.sealer, BlobKind::Data, chunk)?
            });
            start += len;
        }
        buffer.drain(..start);
        Ok(())
    }

    /// Stores a directory with these entries, sorted by name.
    ///
    /// # Errors
    /// [`Error::InvalidContent`] for names that a directory cannot have, doubled or unsorted ones, and for directories
    /// among the entries that have not been stored.
    pub fn directory(&mut self, entries: &[Node]) -> Result<Id> {
        for node in entries {
            check_name(&node.name).map_err(|reason| Error::invalid(String::from_utf8_lossy(&node.name), reason))?;
            if (node.kind == NodeKind::Dir) != node.subtree.is_some() {
                return Err(Error::invalid(String::from_utf8_lossy(&node.name), "a directory is a stored one"));
            }
        }
        if entries.windows(2).any(|pair| pair[0].name >= pair[1].name) {
            return Err(Error::invalid("a directory", "the entries are not sorted, or doubled"));
        }
        self.progress.check()?;
        self.uploader.save(&mut self.sealer, BlobKind::Tree, &encode_tree(entries)?)
    }

    /// Stores the directory that everything else is below, as an archive can take it in.
    ///
    /// # Errors
    /// See [`directory`](Self::directory).
    pub fn top(&mut self, entries: &[Node]) -> Result<TreeId> {
        self.directory(entries).map(TreeId)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{ArchiveRequest, Depth, KeyCost, MemoryBackend, Pass, Password, Root, Source, Verify};

    fn repository() -> Repository {
        Repository::init(Arc::new(MemoryBackend::new()), &Password::new("p"), KeyCost::Test).expect("a repository")
    }

    fn file(name: &str, content: Vec<Id>, size: u64) -> Node {
        Node { content, size, mode: 0o644, ..Node::new(name, NodeKind::File) }
    }

    #[test]
    fn what_is_written_is_taken_in_verified_and_read() {
        let repository = repository();
        let progress = Progress::default();
        let data: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let holes = 20_u64 << 20;
        let written = repository
            .write_trees(&progress, |writer| {
                let size = data.len() as u64;
                let large = writer.file(&mut data.as_slice(), size)?;
                let empty = writer.file(&mut std::io::empty(), 0)?;
                let hole = writer.file(&mut std::io::repeat(0).take(holes), holes)?;
                assert_eq!(hole[0], ZEROS.1);
                let nodes = [file("empty", empty, 0), file("hole", hole, holes), file("large", large, size)];
                let below = writer.directory(&nodes)?;
                writer.top(&[Node { subtree: Some(below), ..Node::new("d", NodeKind::Dir) }])
            })
            .expect("written");
        let request = ArchiveRequest {
            time: jiff::Timestamp::UNIX_EPOCH,
            hostname: "h".into(),
            tags: vec![],
            parents: vec![],
            roots: vec![Root { at: "/x".into(), source: Source::Passed { tree: written.value, path: "/d".into() } }],
            pass: Pass::Commit,
            accept_losses: vec![],
        };
        let archived = repository.archive(&request, &progress).expect("archived");
        let id = archived.snapshot.expect("a snapshot");
        repository.verify(id, &Verify::Everything, &progress).expect("verified");
        let node = repository.entry(archived.tree, b"/x/large").expect("there");
        let mut read = Vec::new();
        repository.open_file(&node).expect("open").read_to_end(&mut read).expect("read");
        assert!(read == data);
        assert!(repository.check(Depth::Data, &progress).expect("checked").problems.is_empty());
    }

    #[test]
    fn a_size_that_lies_and_a_directory_that_makes_no_sense_are_refused() {
        let repository = repository();
        let progress = Progress::default();
        let refused = |work: &dyn Fn(&mut TreeWriter<'_>) -> Result<Id>| {
            repository.write_trees::<Id, Error>(&progress, |writer| work(writer)).is_err()
        };
        assert!(refused(&|c| c.file(&mut &b"abc"[..], 2).map(|_| Id::of(b""))));
        assert!(refused(&|c| c.file(&mut &b"abc"[..], 4).map(|_| Id::of(b""))));
        assert!(refused(&|c| c.directory(&[file("..", vec![], 0)])));
        assert!(refused(&|c| c.directory(&[file("b", vec![], 0), file("a", vec![], 0)])));
        assert!(refused(&|c| c.directory(&[Node::new("d", NodeKind::Dir)])));
        assert!(!refused(&|c| c.directory(&[file("a", vec![], 0), file("b", vec![], 0)])));
    }
}
