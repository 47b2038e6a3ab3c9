//! An open repository: master key and index in memory, and the ways to its objects.
//!
//! Opening derives a key and loads the index once; the repository is meant to stay open for as long as the program
//! runs. Between operations other programs may add and remove files, so every operation that counts on what the
//! repository holds refreshes the index after it took its lock.
//!
//! - `keys`: what a password opens;
//! - `objects`: the ways to what is in it.

pub(crate) mod keys;
mod objects;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use jiff::Timestamp;
use serde::Serialize;

use crate::archive::Kept;
use crate::backend::{Backend, FileKind};
use crate::crypto::Key;
use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId, TreeId};
use crate::index::{IdSet, Index};
use crate::memory::Account;
use crate::node::{Node, NodeKind};
use crate::password::{KeyCost, Password};
use crate::polynomial;
use crate::request::{Counts, Entry, SnapshotInfo};
use crate::wire::{BlobKind, Config, SnapshotFile};

pub(crate) use keys::{find_key, key_of, master_key, try_key, wrap_key};
pub(crate) use objects::UNLISTED;

/// A repository, open. Clones share everything; all methods block and may be called from many threads.
#[derive(Clone)]
pub struct Repository {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) key: Key,
    pub(crate) hostname: String,
    pub(crate) index: RwLock<Index>,
    /// Held while the index is brought up to date, so that two operations do not load the same files twice.
    refreshing: Mutex<()>,
    /// Held while the index has the marks of a prune: another one's would be taken for them.
    pub(crate) marks: Mutex<()>,
    /// Locks that could not be read, and when that was seen first.
    pub(crate) unreadable_locks: Mutex<HashMap<Id, Timestamp>>,
    /// Packs that this handle wrote, or tried to, and nobody has read back: also those of passes that failed, for
    /// later passes count on their blobs.
    pub(crate) unread: Mutex<IdSet>,
    /// What the newest snapshot of this handle has from others, until somebody proves it.
    pub(crate) kept: Mutex<Option<(Id, Kept)>>,
    repository_id: String,
    /// What copies in this repository were called at first; filled when somebody asks for a snapshot by such a name.
    copies: Mutex<Copies>,
    /// Whose lock files keep others away while this handle works.
    pub(crate) locks: Locks,
    /// Set once.
    effort: OnceLock<Effort>,
    /// What all work on this handle keeps in flight.
    pub(crate) account: Arc<Account>,
    /// The repository that this one is a sketch of; none for all others.
    pub(crate) below: Option<Arc<Self>>,
}

/// Snapshot files that were looked at, and those that are copies, by what they were called at first.
#[derive(Default)]
struct Copies {
    seen: HashSet<Id>,
    /// What has to be there, because it was written through this handle, or somebody says so.
    expected: HashSet<Id>,
    /// Each with its tree.
    by_original: HashMap<Id, BTreeMap<Id, Id>>,
}

/// Who takes the locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locks {
    /// This handle.
    Own,
    /// The other end of the channel, for as long as a job takes.
    OtherEnd,
    /// Nobody: nothing is changed, and nothing counted on but what a snapshot keeps.
    Nobody,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("backend", &self.inner.backend).finish_non_exhaustive()
    }
}

impl Repository {
    /// Reports whether there is a repository.
    ///
    /// # Errors
    /// When the store cannot tell, or holds snapshots or packs but no config: that is damage, not absence.
    pub fn exists(backend: &dyn Backend) -> Result<bool> {
        if backend.size(FileKind::Config, FileKind::CONFIG_ID)?.is_some() {
            return Ok(true);
        }
        // A key alone is what an `init` leaves that was interrupted; it opens nothing.
        for kind in [FileKind::Snapshot, FileKind::Index, FileKind::Pack] {
            // Before `init` the places need not exist, and their listing fails.
            if backend.list(kind).is_ok_and(|files| !files.is_empty()) {
                return Err(Error::damaged(FileKind::Config, FileKind::CONFIG_ID, "missing, though other files exist"));
            }
        }
        Ok(false)
    }

    /// Makes a repository where there is nothing yet, and opens it.
    ///
    /// # Errors
    /// [`Error::AlreadyInitialized`] when any file of a repository is there; store errors.
    pub fn init(backend: Arc<dyn Backend>, password: &Password, cost: KeyCost) -> Result<Self> {
        if backend.size(FileKind::Config, FileKind::CONFIG_ID)?.is_some() {
            return Err(Error::AlreadyInitialized);
        }
        backend.prepare()?;
        for kind in [FileKind::Snapshot, FileKind::Index, FileKind::Pack] {
            if !backend.list(kind)?.is_empty() {
                return Err(Error::AlreadyInitialized);
            }
        }
        // A key without a config is what a crash of an earlier `init` leaves, or what somebody is about to write a config for.
        let others = backend.list(FileKind::Key)?;
        let key = Key::random();
        let file = wrap_key(&key, password, cost)?;
        backend.write(FileKind::Key, Id::of(&file), &file)?;
        let config = Config {
            version: 2,
            id: hex::encode(rand::random::<[u8; 32]>()),
            chunker_polynomial: format!("{:x}", polynomial::random_irreducible()),
        };
        // The config comes last: with it, there is a repository. It is never compressed, for its version says
        // whether anything is.
        match backend.write(FileKind::Config, FileKind::CONFIG_ID, &key.seal(&to_json(&config)?)) {
            // Somebody made one here at the same time; our key opens nothing.
            Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {
                backend.remove(FileKind::Key, Id::of(&file))?;
                return Err(Error::AlreadyInitialized);
            }
            other => other?,
        }
        // From here on they open nothing, and restic would take one that has the same password for ours.
        for other in others {
            backend.remove(FileKind::Key, other.id)?;
        }
        Self::open(backend, password)
    }

    /// Opens a repository: finds the key for the password and loads the index.
    ///
    /// # Errors
    /// [`Error::NoRepository`], [`Error::WrongPassword`], damage, store errors.
    pub fn open(backend: Arc<dyn Backend>, password: &Password) -> Result<Self> {
        let config = match backend.read(FileKind::Config, FileKind::CONFIG_ID) {
            Ok(config) => config,
            Err(e) if e.is_not_found() => {
                return Err(if Self::exists(&*backend)? { e.into() } else { Error::NoRepository });
            }
            Err(e) => return Err(e.into()),
        };
        let key = find_key(&*backend, password, &config)?;
        let damaged = |reason: String| Error::damaged(FileKind::Config, FileKind::CONFIG_ID, reason);
        let config = key.open(&config).map_err(|e| damaged(e.to_string()))?;
        let config: Config = serde_json::from_slice(&config).map_err(|e| damaged(e.to_string()))?;
        if config.version != 2 {
            return Err(Error::UnsupportedVersion { version: config.version });
        }
        let inner = Inner {
            backend,
            key,
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            index: RwLock::default(),
            refreshing: Mutex::default(),
            marks: Mutex::default(),
            unreadable_locks: Mutex::default(),
            unread: Mutex::default(),
            kept: Mutex::default(),
            repository_id: config.id,
            copies: Mutex::default(),
            locks: Locks::Own,
            effort: OnceLock::new(),
            account: Arc::default(),
            below: None,
        };
        inner.refresh_index()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A repository whose store is at the other end of a channel; its index is loaded by the first job.
    pub(crate) fn at_far_end(backend: Arc<dyn Backend>, key: Key) -> Self {
        let inner = Inner {
            backend,
            key,
            hostname: String::new(),
            index: RwLock::default(),
            refreshing: Mutex::default(),
            marks: Mutex::default(),
            unreadable_locks: Mutex::default(),
            unread: Mutex::default(),
            kept: Mutex::default(),
            repository_id: String::new(),
            copies: Mutex::default(),
            locks: Locks::OtherEnd,
            effort: OnceLock::new(),
            account: Arc::default(),
            below: None,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Bounds what work on this repository takes from its machine, for this handle and its clones. Only the first call counts.
    #[must_use]
    pub fn with_effort(self, effort: Effort) -> Self {
        self.inner.effort.get_or_init(|| effort);
        self
    }

    /// The most bytes that work on this handle and its clones has kept in flight at a time since it was opened, by its own
    /// accounts. What is counted is what [`Memory`](crate::Memory) bounds.
    #[must_use]
    pub fn peak_in_flight(&self) -> u64 {
        self.inner.account.peak()
    }

    /// The id in the config file: 64 hexadecimal digits, drawn when the repository was made.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.repository_id
    }

    /// Lists the snapshots that carry all of the tags, oldest first. No tags: all snapshots.
    ///
    /// # Errors
    /// When any snapshot file cannot be read: a list that silently lacks one is worse than none.
    pub fn find(&self, tags: &[&str]) -> Result<Vec<SnapshotInfo>> {
        let mut found = Vec::new();
        for info in self.inner.backend.list(FileKind::Snapshot)? {
            let file = match self.inner.load_json::<SnapshotFile>(FileKind::Snapshot, info.id) {
                Ok(file) => file,
                // Forgotten between the listing and now.
                Err(Error::Backend(e)) if e.is_not_found() => continue,
                Err(e) => return Err(e),
            };
            if tags.iter().all(|tag| file.tags.iter().any(|t| t == tag)) {
                found.push(snapshot_info(SnapshotFileId(info.id), file));
            }
        }
        found.sort_by_key(|s| (s.time, s.id));
        Ok(found)
    }

    /// Lists what the snapshots are called here; none of them is read.
    ///
    /// # Errors
    /// When the store cannot tell.
    pub fn snapshot_names(&self) -> Result<Vec<SnapshotFileId>> {
        let files = self.inner.backend.list(FileKind::Snapshot)?;
        Ok(files.into_iter().map(|info| SnapshotFileId(info.id)).collect())
    }

    /// Lists what is here of snapshots that are called so, here or where they were copied from at first. What cannot be read
    /// counts only by its own name.
    ///
    /// # Errors
    /// When the store cannot tell.
    pub fn names_of(&self, snapshots: &[SnapshotFileId]) -> Result<Vec<SnapshotFileId>> {
        let listed = self.inner.refresh_copies()?;
        let mut names: Vec<Id> = snapshots.iter().flat_map(|id| self.inner.copies_of(id.0)).collect();
        names.extend(snapshots.iter().map(|id| id.0));
        names.retain(|id| listed.contains(id));
        names.sort_unstable();
        names.dedup();
        Ok(names.into_iter().map(SnapshotFileId).collect())
    }

    /// Reads one snapshot's description. A copy is also found by what its original was called, here and in everything
    /// that takes a snapshot: whoever recorded that name finds it in the repository that takes the other's place.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is proven absent.
    pub fn snapshot(&self, id: SnapshotFileId) -> Result<SnapshotInfo> {
        let id = self.inner.name_here(id)?;
        Ok(snapshot_info(id, self.inner.load_snapshot(id)?))
    }

    /// Reads a whole file out of a snapshot; for small ones.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the snapshot has no such file; damage.
    pub fn read_file(&self, snapshot: SnapshotFileId, path: &str) -> Result<Vec<u8>> {
        let tree = self.snapshot(snapshot)?.tree;
        let node = self.inner.resolve(tree.0, path.as_bytes())?;
        if node.kind != NodeKind::File {
            return Err(Error::invalid(path, "not a regular file"));
        }
        let mut data = Vec::new();
        for blob in &node.content {
            data.extend_from_slice(&self.inner.load_blob(BlobKind::Data, *blob, path)?);
        }
        Ok(data)
    }

    /// Lists a directory of a snapshot, sorted by name.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the snapshot has no such directory; damage.
    pub fn ls(&self, snapshot: SnapshotFileId, path: &str) -> Result<Vec<Entry>> {
        let tree = self.snapshot(snapshot)?.tree;
        let node = self.inner.resolve(tree.0, path.as_bytes())?;
        let subtree = node.subtree.ok_or_else(|| Error::invalid(path, "not a directory"))?;
        let entry = |n: Node| Entry {
            name: n.name,
            kind: n.kind,
            mode: n.mode,
            uid: n.uid,
            gid: n.gid,
            size: n.size,
            mtime: n.mtime,
            link_target: n.link_target,
        };
        Ok(self.inner.load_tree(subtree, path)?.into_iter().map(entry).collect())
    }
}

fn snapshot_info(id: SnapshotFileId, file: SnapshotFile) -> SnapshotInfo {
    let counts = file.summary.as_ref().and_then(|s| {
        Some(Counts { files: s.total_files_processed, dirs: s.perennial_dirs?, bytes: s.total_bytes_processed })
    });
    SnapshotInfo {
        id,
        original: file.original.map(SnapshotFileId),
        time: file.time,
        hostname: file.hostname,
        tags: file.tags,
        tree: TreeId(file.tree),
        paths: file.paths,
        counts,
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::invalid("a repository file", e.to_string()))
}
