//! An open repository: master key and index in memory, and the ways to its objects.
//!
//! Opening derives a key and loads the index once; the repository is meant to stay open for as long as the program
//! runs. Between operations other programs may add and remove files, so every operation that counts on what the
//! repository holds refreshes the index after it took its lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{Backend, FileKind};
use crate::crypto::Key;
use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId, TreeId};
use crate::index::{Found, IdMap, IdSet, Index, Origin};
use crate::node::{Node, NodeKind, decode_tree};
use crate::pack::open_blob;
use crate::password::{KeyCost, Password};
use crate::polynomial;
use crate::request::{Counts, Entry, SnapshotInfo};
use crate::wire::{BlobKind, Config, IndexFile, KeyFile, MacKey, MasterKey, SnapshotFile};

/// Memory a foreign key file may make us use, in bytes.
const MAX_KEY_MEMORY: u64 = 1 << 30;

/// The largest file that is no pack, unpacked, in bytes: an index of ten million blobs is a third of it.
const MAX_UNPACKED: u64 = if cfg!(test) { 1 << 20 } else { 4 << 30 };

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
    /// Locks that could not be read, and when that was seen first.
    pub(crate) unreadable_locks: Mutex<HashMap<Id, Timestamp>>,
    /// Packs that this handle wrote, or tried to, and nobody has read back: also those of passes that failed, for
    /// later passes count on their blobs.
    pub(crate) unread: Mutex<IdSet>,
    repository_id: String,
    /// What copies in this repository were called at first; filled when somebody asks for a snapshot by such a name.
    copies: Mutex<Copies>,
    /// Whose lock files keep others away while this handle works.
    pub(crate) locks: Locks,
    /// Set once.
    effort: OnceLock<Effort>,
    /// The repository that this one is a sketch of; none for all others.
    pub(crate) below: Option<Arc<Self>>,
}

/// Snapshot files that were looked at, and those that are copies, by what they were called at first.
#[derive(Default)]
struct Copies {
    seen: HashSet<Id>,
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
            unreadable_locks: Mutex::default(),
            unread: Mutex::default(),
            repository_id: config.id,
            copies: Mutex::default(),
            locks: Locks::Own,
            effort: OnceLock::new(),
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
            unreadable_locks: Mutex::default(),
            unread: Mutex::default(),
            repository_id: String::new(),
            copies: Mutex::default(),
            locks: Locks::OtherEnd,
            effort: OnceLock::new(),
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

/// A key in its file form.
pub(crate) fn master_key(key: &Key) -> MasterKey {
    MasterKey { mac: MacKey { k: key.mac_k.to_vec(), r: key.mac_r.to_vec() }, encrypt: key.encrypt.to_vec() }
}

/// The key of this file form; none when a part has the wrong size.
pub(crate) fn key_of(master: MasterKey) -> Option<Key> {
    let (encrypt, k, r) =
        (master.encrypt.try_into().ok()?, master.mac.k.try_into().ok()?, master.mac.r.try_into().ok()?);
    Some(Key::new(encrypt, k, r))
}

pub(crate) fn wrap_key(key: &Key, password: &Password, cost: KeyCost) -> Result<Vec<u8>> {
    let salt: [u8; 64] = rand::random();
    let wrapping = Key::derive(password.reveal(), &salt, cost.log_n(), 8, 1)?;
    to_json(&KeyFile {
        created: Timestamp::now(),
        username: "perennial".into(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        kdf: "scrypt".into(),
        n: 1 << cost.log_n(),
        r: 8,
        p: 1,
        salt: salt.to_vec(),
        data: wrapping.seal(&to_json(&master_key(key))?),
    })
}

/// The key that this password opens, of several the one that the config is sealed with: a key of an interrupted `init` is not.
pub(crate) fn find_key(backend: &dyn Backend, password: &Password, config: &[u8]) -> Result<Key> {
    let mut trouble = None;
    let mut stray = None;
    for info in backend.list(FileKind::Key)? {
        match try_key(backend, info.id, password) {
            Ok(Some(key)) if key.open(config).is_ok() => return Ok(key),
            Ok(Some(key)) => stray = Some(key),
            Ok(None) => {}
            // Another key may open; when none does, "damaged" or "unreachable" must not read "wrong password".
            Err(e) => trouble = Some(e),
        }
    }
    // With it the config reads as damaged, which it is then.
    stray.map_or_else(|| Err(trouble.unwrap_or(Error::WrongPassword)), Ok)
}

/// Decompresses a file that is not a pack, as far as memory allows.
fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut plain = Vec::new();
    let read = zstd::stream::read::Decoder::with_buffer(packed)?.take(MAX_UNPACKED + 1).read_to_end(&mut plain)?;
    if read as u64 > MAX_UNPACKED { Err(std::io::Error::other("unreasonably large")) } else { Ok(plain) }
}

/// The logarithm of the cost of a key file's derivation; `None` when it is unknown, or costs too much.
///
/// Nothing vouches for a key file: whoever can write into a store chooses these numbers.
pub(crate) fn affordable(file: &KeyFile) -> Option<u8> {
    let fits = |blocks: u64| blocks.checked_mul(u64::from(file.r) * 128).is_some_and(|bytes| bytes <= MAX_KEY_MEMORY);
    // One table of `n` blocks, and `p` blocks to begin with.
    let affordable = fits(file.n) && fits(u64::from(file.p));
    if file.kdf != "scrypt" || !file.n.is_power_of_two() || !affordable || file.p > 64 {
        return None;
    }
    // At most 30: bounded by the memory above.
    u8::try_from(file.n.trailing_zeros()).ok()
}

pub(crate) fn try_key(backend: &dyn Backend, id: Id, password: &Password) -> Result<Option<Key>> {
    let data = backend.read(FileKind::Key, id)?;
    let damaged = |reason: &str| Error::damaged(FileKind::Key, id, reason);
    if Id::of(&data) != id {
        return Err(damaged("its hash is not its name"));
    }
    let file: KeyFile = serde_json::from_slice(&data).map_err(|e| damaged(&e.to_string()))?;
    let log_n = affordable(&file).ok_or_else(|| damaged("unsupported key derivation"))?;
    let wrapping = Key::derive(password.reveal(), &file.salt, log_n, file.r, file.p)?;
    let Ok(master) = wrapping.open(&file.data) else { return Ok(None) };
    let master: MasterKey = serde_json::from_slice(&master).map_err(|e| damaged(&e.to_string()))?;
    key_of(master).map(Some).ok_or_else(|| damaged("a key has the wrong size"))
}

impl Inner {
    pub(crate) fn effort(&self) -> Effort {
        self.effort.get().copied().unwrap_or_default()
    }

    /// Reads a file that is not a pack: proves its name, decrypts and decompresses.
    pub(crate) fn load_unpacked(&self, kind: FileKind, id: Id) -> Result<Vec<u8>> {
        self.decode_unpacked(kind, id, &self.backend.read(kind, id)?)
    }

    /// The same for a file that is here already.
    pub(crate) fn decode_unpacked(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<Vec<u8>> {
        let damaged = |reason: String| Error::damaged(kind, id, reason);
        if Id::of(data) != id {
            return Err(damaged("its hash is not its name".into()));
        }
        let plain = self.key.open(data).map_err(|e| damaged(e.to_string()))?;
        match plain.first() {
            Some(b'{' | b'[') => Ok(plain),
            Some(2) => unpack(&plain[1..]).map_err(|e| damaged(e.to_string())),
            _ => Err(damaged("unknown encoding".into())),
        }
    }

    pub(crate) fn load_json<T: DeserializeOwned>(&self, kind: FileKind, id: Id) -> Result<T> {
        let json = self.load_unpacked(kind, id)?;
        serde_json::from_slice(&json).map_err(|e| Error::damaged(kind, id, e.to_string()))
    }

    pub(crate) fn save_json(&self, kind: FileKind, value: &impl Serialize) -> Result<Id> {
        let json = to_json(value)?;
        let compressed =
            zstd::bulk::compress(&json, 3).map_err(|source| Error::System { doing: "compress", source })?;
        let mut plain = Vec::with_capacity(compressed.len() + 1);
        plain.push(2);
        plain.extend_from_slice(&compressed);
        let sealed = self.key.seal(&plain);
        let id = Id::of(&sealed);
        self.backend.write(kind, id, &sealed)?;
        Ok(id)
    }

    /// Loads a snapshot by what it is called here, or was called in the repository that it was copied from.
    pub(crate) fn load_snapshot(&self, id: SnapshotFileId) -> Result<SnapshotFile> {
        match self.load_json(FileKind::Snapshot, id.0) {
            Err(Error::Backend(e)) if e.is_not_found() => {
                let copy = self.copy_of(id)?.ok_or_else(|| Error::NotFound { what: format!("snapshot {id}") })?;
                self.load_json(FileKind::Snapshot, copy.0)
            }
            other => other,
        }
    }

    /// What a snapshot is called here: a copy has another name than its original, by which others may know it.
    pub(crate) fn name_here(&self, id: SnapshotFileId) -> Result<SnapshotFileId> {
        match self.backend.size(FileKind::Snapshot, id.0)? {
            Some(_) => Ok(id),
            None => Ok(self.copy_of(id)?.unwrap_or(id)),
        }
    }

    /// Finds the copy of a snapshot that is not here itself. What cannot be read is no copy that could be used.
    fn copy_of(&self, original: SnapshotFileId) -> Result<Option<SnapshotFileId>> {
        let listed = self.refresh_copies()?;
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        // Of several that hold the same, it is the same one every time.
        let mut there =
            copies.by_original.get(&original.0).into_iter().flatten().filter(|(id, _)| listed.contains(*id));
        let Some((first, tree)) = there.next() else { return Ok(None) };
        if there.any(|(_, other)| other != tree) {
            let text = format!("different snapshots say that they are copies of {original}: name one of them");
            return Err(Error::InvalidRequest(text));
        }
        Ok(Some(SnapshotFileId(*first)))
    }

    /// What the copies of a snapshot are called here, as of the last [`Inner::refresh_copies`].
    pub(crate) fn copies_of(&self, original: Id) -> Vec<Id> {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.by_original.get(&original).into_iter().flatten().map(|(id, _)| *id).collect()
    }

    /// Looks at the snapshot files that are new since the last time, and lists all there are.
    pub(crate) fn refresh_copies(&self) -> Result<HashSet<Id>> {
        let listed: HashSet<Id> = self.backend.list(FileKind::Snapshot)?.into_iter().map(|info| info.id).collect();
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &listed {
            if copies.seen.contains(id) {
                continue;
            }
            match self.load_json::<SnapshotFile>(FileKind::Snapshot, *id) {
                Ok(file) => {
                    copies.seen.insert(*id);
                    if let Some(first) = file.original {
                        copies.by_original.entry(first).or_default().insert(*id, file.tree);
                    }
                }
                Err(Error::Damaged { .. }) => {}
                Err(Error::Backend(e)) if e.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(listed)
    }

    /// Lists the packs with their sizes.
    pub(crate) fn list_packs(&self) -> Result<IdMap<u64>> {
        Ok(self.backend.list(FileKind::Pack)?.into_iter().map(|info| (info.id, info.size)).collect())
    }

    /// A sketch of a repository, over a store that shows what is in this one.
    pub(crate) fn above(below: &Arc<Self>, backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            key: below.key.clone(),
            hostname: below.hostname.clone(),
            index: RwLock::default(),
            refreshing: Mutex::default(),
            unreadable_locks: Mutex::default(),
            unread: Mutex::default(),
            repository_id: below.repository_id.clone(),
            copies: Mutex::default(),
            locks: Locks::Nobody,
            effort: below.effort.clone(),
            below: Some(Arc::clone(below)),
        }
    }

    /// Whether only hashes are kept of the contents of files.
    pub(crate) const fn is_sketch(&self) -> bool {
        self.below.is_some()
    }

    /// Brings the index in memory up to what the store holds now.
    pub(crate) fn refresh_index(&self) -> Result<()> {
        if let Some(below) = &self.below {
            // Of its own a sketch has only what it wrote.
            return below.refresh_index();
        }
        let _one = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        // Index files first: whatever they name was there before them, so it is in the listing of packs, unless it
        // is gone.
        let files = self.backend.list(FileKind::Index)?;
        let packs = self.list_packs()?;
        let all_there = {
            let listed: HashSet<Id> = files.iter().map(|f| f.id).collect();
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            index.files.keys().all(|known| listed.contains(known))
                && index.packs().all(|(id, size)| packs.get(&id) == Some(&size))
        };
        let mut fresh = None;
        let known = if all_there {
            self.index.read().unwrap_or_else(PoisonError::into_inner).files.clone()
        } else {
            // Something we relied on is gone: forget everything and load what there is.
            fresh = Some(Index::default());
            HashMap::new()
        };
        for file in files.iter().filter(|f| !known.contains_key(&f.id)) {
            let content = match self.load_json::<IndexFile>(FileKind::Index, file.id) {
                Ok(content) => content,
                Err(Error::Backend(e)) if e.is_not_found() => continue,
                // One damaged file must not keep everything else from being restored. What only it names counts as
                // absent: the next archive stores it again, a check lists the file, a prune replaces it.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "pass over a damaged index file");
                    continue;
                }
                Err(e) => return Err(e),
            };
            match &mut fresh {
                Some(index) => index.add_file(file.id, Origin::Store, &content, &packs),
                None => {
                    let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
                    index.add_file(file.id, Origin::Store, &content, &packs);
                }
            }
        }
        if let Some(index) = fresh {
            *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        }
        Ok(())
    }

    pub(crate) fn find_blob(&self, kind: BlobKind, id: Id) -> Option<Found> {
        let own = self.index.read().unwrap_or_else(PoisonError::into_inner).find(kind, id);
        own.or_else(|| self.below.as_ref()?.find_blob(kind, id))
    }

    /// The size of a pack, as the index states it.
    pub(crate) fn pack_size(&self, pack: Id) -> Option<u64> {
        let own = self.index.read().unwrap_or_else(PoisonError::into_inner).pack_size(pack);
        own.or_else(|| self.below.as_ref()?.pack_size(pack))
    }

    /// Reads one blob, proven by its hash.
    pub(crate) fn load_blob(&self, kind: BlobKind, id: Id, needed_by: &str) -> Result<Vec<u8>> {
        match self.find_blob(kind, id).map(|found| self.read_blob(&found)) {
            Some(Err(Error::Backend(e))) if e.is_not_found() => {}
            None => {}
            Some(other) => return other,
        }
        // Somebody may have added it, or moved it to another pack, since the index was loaded.
        self.refresh_index()?;
        let found = self.find_blob(kind, id);
        let missing = || Err(Error::MissingBlob { blob: id, needed_by: needed_by.to_owned() });
        found.map_or_else(missing, |found| self.read_blob(&found))
    }

    /// Reads one blob from where it is said to be, proven by its hash.
    pub(crate) fn read_blob(&self, found: &Found) -> Result<Vec<u8>> {
        let (offset, len) = (u64::from(found.blob.offset), found.blob.length as usize);
        let mut sealed = self.backend.read_range(FileKind::Pack, found.pack, offset, len)?;
        let mut plain = Vec::new();
        let content = open_blob(&self.key, found.pack, &found.blob, &mut sealed, &mut plain)?;
        // Most are compressed, and then this is where they are already.
        Ok(if found.blob.uncompressed_length == 0 { content.to_vec() } else { plain })
    }

    pub(crate) fn load_tree(&self, id: Id, path: &str) -> Result<Vec<Node>> {
        decode_tree(id, &self.load_blob(BlobKind::Tree, id, path)?)
    }

    /// Finds the node at a slash path below a tree; the path "/" gives a node for the tree itself.
    pub(crate) fn resolve(&self, tree: Id, path: &[u8]) -> Result<Node> {
        let mut node = Node::new(Vec::new(), NodeKind::Dir);
        node.mode = 0o755;
        node.subtree = Some(tree);
        let shown = || String::from_utf8_lossy(path).into_owned();
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let missing = || Error::NotFound { what: format!("path {}", shown()) };
            let mut nodes = self.load_tree(node.subtree.ok_or_else(missing)?, &shown())?;
            let at = nodes.binary_search_by(|n| n.name.as_slice().cmp(part)).map_err(|_| missing())?;
            node = nodes.swap_remove(at);
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_cannot_make_us_use_all_memory() {
        let file = |n: u64, r: u32, p: u32| KeyFile {
            created: Timestamp::UNIX_EPOCH,
            username: String::new(),
            hostname: String::new(),
            kdf: "scrypt".into(),
            n,
            r,
            p,
            salt: vec![],
            data: vec![],
        };
        assert_eq!(affordable(&file(1 << 15, 8, 1)), Some(15), "restic's own numbers");
        // The table is small in each of the last two, and what it begins with is not.
        for (n, r, p) in [(3, 8, 1), (0, 8, 1), (1 << 24, 8, 1), (2, 1 << 22, 64), (1, 1 << 22, 3), (2, 8, 65)] {
            assert_eq!(affordable(&file(n, r, p)), None, "{n} {r} {p}");
        }
        assert_eq!(affordable(&KeyFile { kdf: "other".into(), ..file(2, 8, 1) }), None);
    }

    #[test]
    fn a_file_that_unpacks_to_more_than_memory_is_damaged() {
        let repository = Repository::at_far_end(Arc::new(crate::MemoryBackend::new()), Key::random());
        let opened = |size: u64| {
            let packed = zstd::encode_all(&vec![b' '; usize::try_from(size).expect("small")][..], 1).expect("packed");
            let sealed = repository.inner.key.seal(&[&[2][..], &packed].concat());
            repository.inner.decode_unpacked(FileKind::Index, Id::of(&sealed), &sealed)
        };
        assert!(opened(MAX_UNPACKED).is_ok());
        assert!(matches!(opened(MAX_UNPACKED + 1), Err(Error::Damaged { .. })));
    }
}
