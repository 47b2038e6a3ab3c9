//! Looking into a snapshot without restoring it: entries with all their metadata, and contents from any offset.
//!
//! Nothing here takes a lock: what a snapshot needs goes only when the snapshot itself does, and a blob that a prune
//! moved to another pack is found there. A snapshot that is forgotten and pruned meanwhile is an error, never a short
//! read.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::id::{Id, TreeId};
use crate::node::{Node, NodeKind};
use crate::repository::{Inner, Repository};
use crate::verify::plain_length;
use crate::wire::BlobKind;

impl Repository {
    /// Finds the entry at a slash path below a tree; the path `/` is a directory for the tree itself.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such entry; damage.
    pub fn entry(&self, tree: TreeId, path: &[u8]) -> Result<Node> {
        self.inner.resolve(tree.0, path)
    }

    /// Lists a directory's entries, sorted by name.
    ///
    /// # Errors
    /// [`Error::InvalidContent`] when it is no directory; damage.
    pub fn entries(&self, directory: &Node) -> Result<Vec<Node>> {
        let name = || String::from_utf8_lossy(&directory.name).into_owned();
        let subtree = directory.subtree.ok_or_else(|| Error::invalid(name(), "not a directory"))?;
        self.inner.load_tree(subtree, &name())
    }

    /// Opens a regular file's content. Every blob of it is known to be there; none has been read yet.
    ///
    /// # Errors
    /// [`Error::InvalidContent`] when it is no regular file; [`Error::MissingBlob`]; [`Error::Mismatch`] when the blobs
    /// do not add up to the file's size.
    pub fn open_file(&self, file: &Node) -> Result<FileReader> {
        let name = String::from_utf8_lossy(&file.name).into_owned();
        if file.kind != NodeKind::File {
            return Err(Error::invalid(name, "not a regular file"));
        }
        let mut blobs = Vec::with_capacity(file.content.len());
        let mut end = 0_u64;
        let mut refreshed = false;
        for id in &file.content {
            let mut found = self.inner.find_blob(BlobKind::Data, *id);
            if found.is_none() && !refreshed {
                self.inner.refresh_index()?;
                refreshed = true;
                found = self.inner.find_blob(BlobKind::Data, *id);
            }
            let found = found.ok_or_else(|| Error::MissingBlob { blob: *id, needed_by: name.clone() })?;
            end += plain_length(&found.blob);
            blobs.push((*id, end));
        }
        if end != file.size {
            return Err(Error::Mismatch { what: format!("bytes of {name}"), expected: file.size, found: end });
        }
        let inner = Arc::clone(&self.inner);
        Ok(FileReader {
            inner,
            name,
            blobs: blobs.into(),
            size: end,
            position: 0,
            loaded: None,
            recent: Arc::default(),
        })
    }
}

/// A file's content, read blob by blob; every blob is proven by its hash before a byte of it is handed out.
///
/// One blob is in memory, and the few that were read last by it or its clones: an archive whose members are read one after the
/// other, each by a clone, is not decrypted again for every one of them.
#[derive(Clone)]
pub struct FileReader {
    inner: Arc<Inner>,
    name: String,
    /// Each blob, and where it ends in the file.
    blobs: Arc<[(Id, u64)]>,
    size: u64,
    position: u64,
    loaded: Option<Loaded>,
    /// What the clones loaded last, the newest at the end.
    recent: Arc<Mutex<VecDeque<Loaded>>>,
}

/// Which blob of the file, and what is in it.
type Loaded = (usize, Arc<Vec<u8>>);

/// Blobs that clones of a reader keep for each other: a blob is at most 8 MiB.
const RECENT: usize = 4;

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("name", &self.name).field("position", &self.position).finish_non_exhaustive()
    }
}

impl FileReader {
    /// The file's size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    fn part(&mut self, most: usize) -> Result<&[u8]> {
        if self.position >= self.size {
            return Ok(&[]);
        }
        let at = self.blobs.partition_point(|(_, end)| *end <= self.position);
        let Some((id, end)) = self.blobs.get(at).copied() else { return Ok(&[]) };
        let start = at.checked_sub(1).and_then(|before| self.blobs.get(before)).map_or(0, |(_, end)| *end);
        if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != at) {
            self.loaded = None;
            self.loaded = Some((at, self.load(at, id, end - start)?));
        }
        let data = self.loaded.as_ref().map_or(&[][..], |(_, data)| data);
        // Within the blob, whose length fits.
        let rest = data.get(usize::try_from(self.position - start).unwrap_or(usize::MAX)..).unwrap_or_default();
        Ok(&rest[..rest.len().min(most)])
    }
}

impl FileReader {
    fn load(&self, at: usize, id: Id, expected: u64) -> Result<Arc<Vec<u8>>> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, data)) = recent().iter().find(|(loaded, _)| *loaded == at) {
            return Ok(Arc::clone(data));
        }
        let data = Arc::new(self.inner.load_blob(BlobKind::Data, id, &self.name)?);
        if data.len() as u64 != expected {
            let (what, found) = (format!("bytes of blob {id}"), data.len() as u64);
            return Err(Error::Mismatch { what, expected, found });
        }
        // A reader without clones reads on, and comes back to nothing.
        if Arc::strong_count(&self.recent) > 1 {
            let mut recent = recent();
            if recent.len() >= RECENT {
                recent.pop_front();
            }
            recent.push_back((at, Arc::clone(&data)));
        }
        Ok(data)
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.part(buffer.len()).map_err(io::Error::other)?;
        buffer[..part.len()].copy_from_slice(part);
        let read = part.len();
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for FileReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
