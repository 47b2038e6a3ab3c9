//! Drills: a snapshot is proven by restoring it, and looking at what came of it.
//!
//! Everything that somebody would get back is restored, one directory after the other, into a place of ours; then it is
//! walked by code that shares nothing with the restore ([`compare`]): contents are hashed against the trees, metadata
//! and removed lists compared. What differs is damage of the snapshot, or of the way back. That there was no space, or
//! that the store did not answer, says nothing about the snapshot. Bytes come from the medium: what is cached is dropped first.

mod compare;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use perennial_core::progress::Progress;

use crate::backend::{BackendError, FileKind};
use crate::error::{Error, Result};
use crate::id::SnapshotFileId;
use crate::node::{Node, NodeKind};
use crate::reader::{Reader, Scratch};
use crate::removed::{self, Removed};
use crate::repository::{Inner, Repository};
use crate::request::Counts;
use crate::restore::{Existing, Removals, RestoreRequest};
use crate::verify::walk_tree;
use crate::wire::BlobKind;
use compare::Comparison;

/// What an inode takes up, at most, beside its content.
const PER_ENTRY: u64 = 4096;
/// The name of what is restored, below the scratch directory.
const PART: &str = "part";

/// What a drill proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drilled {
    /// What was restored and compared; files that were only read from the repository are in it.
    pub counts: Counts,
    /// Bytes that were hashed.
    pub bytes_compared: u64,
    /// Entries of removed lists that were found as whiteouts and opaque directories.
    pub removals: u64,
}

/// A directory of a snapshot that is restored by itself, as a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillPart {
    /// Its path in the snapshot.
    pub path: String,
    /// Its removed list, when it is of an overlay.
    pub list: Option<String>,
    /// What it takes up when it is restored, at most.
    pub needs: Room,
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Inodes; of a file system that makes them when they are needed, [`u64::MAX`] are free.
    pub inodes: u64,
}

impl Repository {
    /// The directories of a snapshot that a drill restores, one after the other: those at its top, and in place of those
    /// that are named by `apart` the ones in them.
    ///
    /// # Errors
    /// Damage, as for [`verify`](Self::verify); store errors.
    pub fn drill_parts(&self, snapshot: SnapshotFileId, apart: &[&str], progress: &Progress) -> Result<Vec<DrillPart>> {
        let inner = &*self.inner;
        inner.refresh_index()?;
        let reader = Reader::new(inner);
        let root = self.snapshot(snapshot)?.tree.0;
        let mut parts = Vec::new();
        for entry in reader.load_tree(root, "/")? {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let at = format!("/{name}");
            match entry.subtree {
                None => {}
                // Lists are read where they are needed.
                Some(_) if at == removed::LISTS => {}
                Some(all) if apart.contains(&name.as_str()) => {
                    for one in reader.load_tree(all, &at)? {
                        let name = String::from_utf8_lossy(&one.name).into_owned();
                        parts.extend(self.part(&reader, root, format!("{at}/{name}"), &one, progress)?);
                    }
                }
                Some(_) => parts.extend(self.part(&reader, root, at, &entry, progress)?),
            }
        }
        Ok(parts)
    }

    fn part(
        &self,
        reader: &Reader<'_>,
        root: crate::id::Id,
        path: String,
        node: &Node,
        progress: &Progress,
    ) -> Result<Option<DrillPart>> {
        let Some(tree) = node.subtree else { return Ok(None) };
        let list = removed::list_path(&path);
        let list = match self.inner.resolve(root, list.as_bytes()) {
            Ok(_) => Some(list),
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Some(DrillPart { needs: needs(reader, tree, &path, progress)?, path, list }))
    }

    /// Restores every part of a snapshot ([`drill_parts`](Self::drill_parts) says what `apart` means) below an empty directory
    /// and compares it; what was restored is removed again.
    ///
    /// `space` tells what is free there; a part is begun only when it fits.
    ///
    /// # Errors
    /// [`Error::Differs`], [`Error::Damaged`], [`Error::MissingBlob`], [`Error::Mismatch`], [`Error::InvalidContent`]
    /// and [`Error::NotFound`] say that the snapshot, or the way back from it, is not good
    /// ([`Error::is_damage`]); all others, such as [`Error::NoSpace`], that nothing is known.
    pub fn drill(
        &self,
        snapshot: SnapshotFileId,
        apart: &[&str],
        scratch: &Path,
        space: &dyn Fn(&Path) -> Result<Room>,
        progress: &Progress,
    ) -> Result<Drilled> {
        self.drilled(snapshot, apart, scratch, space, progress).map_err(|error| self.inner.judged(error))
    }

    fn drilled(
        &self,
        snapshot: SnapshotFileId,
        apart: &[&str],
        scratch: &Path,
        space: &dyn Fn(&Path) -> Result<Room>,
        progress: &Progress,
    ) -> Result<Drilled> {
        self.drop_what_is_cached(snapshot, progress)?;
        let mut drilled = Drilled::default();
        for part in self.drill_parts(snapshot, apart, progress)? {
            let free = space(scratch)?;
            let needs = part.needs;
            for (of, needed, free) in [("bytes", needs.bytes, free.bytes), ("inodes", needs.inodes, free.inodes)] {
                if needed > free {
                    return Err(Error::NoSpace { path: scratch.to_owned(), of, needed, free });
                }
            }
            let target = scratch.join(PART);
            let done = self
                .drill_restore(snapshot, &part, &target, progress)
                .and_then(|()| self.drill_compare(snapshot, &part, &target, progress));
            let removed = match fs::remove_dir_all(&target) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other.map_err(|e| Error::io("remove what was restored to", &target, e)),
            };
            let compared = done?;
            removed?;
            drilled.counts.merge(compared.counts);
            drilled.bytes_compared += compared.bytes_compared;
            drilled.removals += compared.removals;
        }
        let rest = self.read_the_rest(snapshot, progress)?;
        drilled.counts.merge(rest);
        Ok(drilled)
    }

    /// Makes what is read from here on come from the medium: pages that somebody wrote or read lately prove nothing of it.
    fn drop_what_is_cached(&self, snapshot: SnapshotFileId, progress: &Progress) -> Result<()> {
        let inner = &*self.inner;
        inner.refresh_index()?;
        let snapshot = inner.name_here(snapshot)?;
        // One that is gone shows when it is read.
        let gone_or = |dropped: Result<(), BackendError>| match dropped {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        };
        gone_or(inner.backend.drop_caches(FileKind::Snapshot, snapshot.0))?;
        let tree = inner.load_snapshot(snapshot)?.tree;
        let reader = Reader::new(inner);
        let load = |tree, path: &str| reader.load_tree(tree, path).map(Arc::new);
        for pack in walk_tree((inner, &load), tree, "", progress)?.packs {
            progress.check()?;
            gone_or(inner.backend.drop_caches(FileKind::Pack, pack))?;
        }
        Ok(())
    }

    /// Restores one part, as a start does.
    ///
    /// # Errors
    /// As for [`restore`](Self::restore).
    pub fn drill_restore(
        &self,
        snapshot: SnapshotFileId,
        part: &DrillPart,
        target: &Path,
        progress: &Progress,
    ) -> Result<()> {
        let removals = part.list.clone().map_or(Removals::Ignore, |list| Removals::Whiteouts { list });
        let request = RestoreRequest {
            subtree: part.path.clone(),
            target: target.to_owned(),
            existing: Existing::MustBeEmpty,
            removals,
            against_lower: None,
        };
        self.restore(snapshot, &request, progress).map(drop)
    }

    /// Compares what is in a directory with one part of a snapshot.
    ///
    /// # Errors
    /// As for [`drill`](Self::drill).
    pub fn drill_compare(
        &self,
        snapshot: SnapshotFileId,
        part: &DrillPart,
        target: &Path,
        progress: &Progress,
    ) -> Result<Drilled> {
        let inner = &*self.inner;
        let root = inner.resolve(self.snapshot(snapshot)?.tree.0, part.path.as_bytes())?;
        let list: Option<Vec<Removed>> = match &part.list {
            Some(list) => Some(removed::decode(&self.read_file(snapshot, list)?)?),
            None => None,
        };
        Comparison::new(inner, part.path.as_bytes(), list, progress).run(&root, target)
    }

    /// Reads the files that no part restores, such as `pod.json` and removed lists.
    fn read_the_rest(&self, snapshot: SnapshotFileId, progress: &Progress) -> Result<Counts> {
        let inner: &Inner = &self.inner;
        let reader = Reader::new(inner);
        let root = self.snapshot(snapshot)?.tree.0;
        let mut counts = Counts::default();
        let mut memory = Scratch::default();
        let mut read = |node: &Node, at: &str| -> Result<()> {
            counts.add(node.kind, node.size);
            for blob in &node.content {
                progress.check()?;
                reader.load(BlobKind::Data, *blob, at, &mut memory)?;
            }
            Ok(())
        };
        for node in reader.load_tree(root, "/")? {
            let at = format!("/{}", String::from_utf8_lossy(&node.name));
            match node.subtree.filter(|_| at == removed::LISTS) {
                Some(lists) => {
                    for list in reader.load_tree(lists, &at)? {
                        read(&list, &format!("{at}/{}", String::from_utf8_lossy(&list.name)))?;
                    }
                }
                None if node.subtree.is_none() => read(&node, &at)?,
                None => {}
            }
        }
        Ok(counts)
    }
}

/// What a tree takes up when it is restored, at most: holes do not count, nor does a hard link's content twice.
fn needs(reader: &Reader<'_>, tree: crate::id::Id, path: &str, progress: &Progress) -> Result<Room> {
    let zeros = crate::archive::ZEROS.1;
    let mut room = Room { bytes: PER_ENTRY, inodes: 1 };
    let mut links = HashSet::new();
    let mut stack = vec![(tree, path.to_owned())];
    while let Some((tree, path)) = stack.pop() {
        progress.check()?;
        for node in reader.load_tree(tree, &path)? {
            room.bytes += PER_ENTRY;
            if let Some(subtree) = node.subtree {
                stack.push((subtree, format!("{path}/{}", String::from_utf8_lossy(&node.name))));
            }
            let first = node.link_key().is_none_or(|key| links.insert(key));
            room.inodes += u64::from(first);
            if node.kind == NodeKind::File && first {
                let holes = node.content.iter().filter(|blob| **blob == zeros).count() as u64;
                room.bytes += node.size.saturating_sub(holes * crate::archive::ZEROS.0.len() as u64);
            }
        }
    }
    Ok(room)
}
