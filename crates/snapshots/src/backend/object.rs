//! A repository in an object store: S3, Azure Blob, and whatever else speaks one of their protocols.
//!
//! Keys are those of restic's default layout below a prefix: `config`, `keys/<id>`, `data/<first two digits>/<id>`,
//! `index/<id>`, `snapshots/<id>`, `locks/<id>`. There are no directories, so nothing has to be made beforehand except
//! the bucket or container itself, which is its owner's business.
//!
//! The trait is blocking and the client is not: each backend owns a small runtime, on which its calls wait. So it may
//! be called from any thread that may block, and never from a task of another runtime.
//!
//! **Absent** is what a listing proves. A status of 404 alone is no proof: it is also what a missing bucket, a proxy or a
//! load balancer answers. So after each 404 the object's place is listed, and only a listing that succeeds and does not
//! have the object makes it absent. Time-outs and everything else mean "unknown".

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::limit::LimitStore;
use object_store::path::Path as StorePath;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use tokio::runtime::Runtime;

use super::local::ASIDE;
use super::problem::{Secret, describe};
use super::{Backend, BackendError, FileInfo, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;

/// Parts of one upload that are on their way at the same time.
const PARTS_AT_ONCE: usize = 3;
/// S3 takes no smaller part, except the last.
const MIN_PART: usize = 5 << 20;

/// How an object store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Requests that are on their way at the same time.
    pub connections: usize,
    /// Connecting may take so long.
    pub connect: Duration,
    /// One request may take so long, its body included.
    pub request: Duration,
    /// How often a request is repeated that failed for a passing reason.
    pub retries: usize,
    /// For how long after its first failure a request is still repeated.
    pub retry_for: Duration,
    /// Larger files are uploaded in parts of this size, in bytes; at least 5 MiB.
    pub part_size: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connections: 16,
            connect: Duration::from_secs(10),
            request: Duration::from_secs(5 * 60),
            retries: 10,
            retry_for: Duration::from_secs(3 * 60),
            part_size: 8 << 20,
        }
    }
}

/// Keeps the files of a repository as objects.
pub struct ObjectBackend {
    store: LimitStore<Arc<dyn ObjectStore>>,
    prefix: StorePath,
    /// What errors call the store.
    name: String,
    secrets: Vec<Secret>,
    part_size: usize,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl fmt::Debug for ObjectBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectBackend({})", self.name)
    }
}

impl Drop for ObjectBackend {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it is forbidden where the last owner may be: on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

impl ObjectBackend {
    /// Uses a client for the objects below a prefix; nothing is asked before the first call. `name` is what errors call
    /// the store, and `secrets` are kept out of them.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] when the prefix cannot be part of a key; [`Error::System`] when no threads can be
    /// started.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        name: impl Into<String>,
        patience: &Patience,
        secrets: Vec<Secret>,
    ) -> Result<Self> {
        let prefix = StorePath::parse(prefix)
            .map_err(|e| Error::InvalidRequest(format!("the prefix {prefix:?} cannot be part of a key: {e}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("object-store")
            .enable_all()
            .build()
            .map_err(|source| Error::System { doing: "start the threads of the object store", source })?;
        Ok(Self {
            store: LimitStore::new(store, patience.connections.max(1)),
            prefix,
            name: name.into(),
            secrets,
            part_size: patience.part_size.max(MIN_PART),
            runtime: Some(runtime),
        })
    }

    fn wait<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(io::Error::other("the object store was closed")),
        }
    }

    fn place(&self, kind: FileKind) -> StorePath {
        let name = match kind {
            FileKind::Config => return self.prefix.clone(),
            FileKind::Key => "keys",
            FileKind::Pack => "data",
            FileKind::Index => "index",
            FileKind::Snapshot => "snapshots",
            FileKind::Lock => "locks",
        };
        self.prefix.clone().join(name)
    }

    /// Where the object's neighbours are.
    fn directory(&self, kind: FileKind, id: Id) -> StorePath {
        match kind {
            FileKind::Pack => self.place(kind).join(&id.to_string()[..2]),
            _ => self.place(kind),
        }
    }

    /// Where damaged files of a kind go.
    fn aside(&self, kind: FileKind) -> StorePath {
        let place = self.place(kind);
        self.prefix.clone().join(ASIDE).join(place.filename().unwrap_or_default())
    }

    fn object(&self, kind: FileKind, id: Id) -> StorePath {
        match kind {
            FileKind::Config => self.prefix.clone().join("config"),
            _ => self.directory(kind, id).join(id.to_string()),
        }
    }

    /// An error that is no proof of absence, whatever the store called it.
    fn unknown(&self, error: &StoreError) -> io::Error {
        describe(&self.name, error, &self.secrets)
    }

    /// What a failed look at an object means: `NotFound` only when a listing of its place proves it.
    async fn failed_look(&self, kind: FileKind, id: Id, error: StoreError) -> io::Error {
        if !matches!(error, StoreError::NotFound { .. }) {
            return self.unknown(&error);
        }
        let (directory, object) = (self.directory(kind, id), self.object(kind, id));
        match self.store.list_with_delimiter(Some(&directory)).await {
            Ok(found) if found.objects.iter().any(|meta| meta.location == object) => {
                let text = format!("{}: the store lists the object and does not find it", self.name);
                io::Error::other(text)
            }
            Ok(_) => io::Error::new(io::ErrorKind::NotFound, format!("{}: there is no such object", self.name)),
            Err(error) => self.unknown(&error),
        }
    }

    async fn read_all(&self, kind: FileKind, id: Id) -> io::Result<Vec<u8>> {
        let got = match self.store.get(&self.object(kind, id)).await {
            Ok(got) => got,
            Err(error) => return Err(self.failed_look(kind, id, error).await),
        };
        let size = got.meta.size;
        let data = got.bytes().await.map_err(|error| self.unknown(&error))?;
        if data.len() as u64 != size {
            return Err(self.short(data.len(), size));
        }
        Ok(data.into())
    }

    fn short(&self, found: usize, expected: u64) -> io::Error {
        let text = format!("{}: {found} bytes came instead of {expected}", self.name);
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }

    async fn stat(&self, kind: FileKind, id: Id) -> io::Result<u64> {
        match self.store.head(&self.object(kind, id)).await {
            Ok(meta) => Ok(meta.size),
            Err(error) => Err(self.failed_look(kind, id, error).await),
        }
    }

    async fn upload(&self, kind: FileKind, id: Id, data: &[u8]) -> io::Result<()> {
        let object = self.object(kind, id);
        if kind == FileKind::Config {
            return self.create(&object, data).await;
        }
        let result = if data.len() > self.part_size {
            self.upload_parts(&object, data).await
        } else {
            self.store.put(&object, PutPayload::from(data.to_vec())).await.map(drop)
        };
        result.map_err(|error| self.unknown(&error))
    }

    /// Of two that make a repository here at the same time one has to lose, where the store can see to that.
    async fn create(&self, object: &StorePath, data: &[u8]) -> io::Result<()> {
        let payload = PutPayload::from(data.to_vec());
        match self.store.put_opts(object, payload.clone(), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            // Perhaps it is ours, and only the answer was lost.
            Err(exists @ StoreError::AlreadyExists { .. }) => {
                match self.read_all(FileKind::Config, FileKind::CONFIG_ID).await {
                    Ok(found) if found == data => Ok(()),
                    Ok(_) => Err(self.unknown(&exists)),
                    Err(error) => Err(error),
                }
            }
            Err(error) => {
                let error = match &error {
                    StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => None,
                    // Servers that know nothing of conditions say so with this status.
                    other if other.to_string().contains("501 Not Implemented") => None,
                    _ => Some(error),
                };
                let result = match error {
                    None => self.store.put(object, payload).await.map(drop),
                    Some(error) => Err(error),
                };
                result.map_err(|error| self.unknown(&error))
            }
        }
    }

    async fn upload_parts(&self, object: &StorePath, data: &[u8]) -> object_store::Result<()> {
        let mut upload = self.store.put_multipart(object).await?;
        let parts: Vec<_> =
            data.chunks(self.part_size).map(|part| upload.put_part(PutPayload::from(part.to_vec()))).collect();
        let mut result = futures::stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect::<()>().await;
        if result.is_ok() {
            result = upload.complete().await.map(drop);
        }
        if result.is_err()
            && let Err(error) = upload.abort().await
        {
            // What stays behind is no object; a lifecycle rule of the bucket removes unfinished uploads.
            tracing::debug!(%object, error = %self.unknown(&error), "abort an upload in parts");
        }
        result
    }

    async fn all_of(&self, kind: FileKind) -> io::Result<Vec<FileInfo>> {
        let mut files = Vec::new();
        if kind == FileKind::Config {
            match self.stat(kind, FileKind::CONFIG_ID).await {
                Ok(size) => files.push(FileInfo { id: FileKind::CONFIG_ID, size }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            return Ok(files);
        }
        let place = self.place(kind);
        let mut listing = self.store.list(Some(&place));
        while let Some(meta) = listing.try_next().await.map_err(|error| self.unknown(&error))? {
            let id = meta.location.filename().and_then(|name| name.parse::<Id>().ok());
            // An object somewhere else with such a name is not one of the repository's.
            if let Some(id) = id.filter(|id| self.object(kind, *id) == meta.location) {
                files.push(FileInfo { id, size: meta.size });
            }
        }
        Ok(files)
    }
}

fn wrap(doing: &'static str, kind: FileKind, id: Option<Id>) -> impl FnOnce(io::Error) -> BackendError {
    move |source| BackendError { doing, kind, id, source }
}

impl Backend for ObjectBackend {
    /// Makes nothing: it only proves that the bucket or container is there and that we may list it.
    fn prepare(&self) -> Result<(), BackendError> {
        let look = async {
            let place = self.place(FileKind::Key);
            self.store.list_with_delimiter(Some(&place)).await.map(drop).map_err(|error| self.unknown(&error))
        };
        self.wait(look).map_err(wrap("prepare", FileKind::Config, None))
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.wait(self.all_of(kind)).map_err(wrap("list", kind, None))
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.wait(self.read_all(kind, id)).map_err(wrap("read", kind, Some(id)))
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        let read = async {
            let end = offset.checked_add(len as u64).ok_or_else(|| self.short(0, len as u64))?;
            if len == 0 {
                // No request can ask for nothing.
                let size = self.stat(kind, id).await?;
                return if offset <= size { Ok(Vec::new()) } else { Err(self.short(0, 0)) };
            }
            let data = match self.store.get_range(&self.object(kind, id), offset..end).await {
                Ok(data) => data,
                Err(error @ StoreError::NotFound { .. }) => return Err(self.failed_look(kind, id, error).await),
                Err(error) => {
                    let error = self.unknown(&error);
                    // A range outside of the object is refused in as many words as there are stores.
                    return match error.kind() {
                        io::ErrorKind::Other if self.stat(kind, id).await.is_ok_and(|size| size < end) => {
                            Err(self.short(0, len as u64))
                        }
                        _ => Err(error),
                    };
                }
            };
            if data.len() == len { Ok(data.into()) } else { Err(self.short(data.len(), len as u64)) }
        };
        self.wait(read).map_err(wrap("read", kind, Some(id)))
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.wait(self.upload(kind, id, data)).map_err(wrap("write", kind, Some(id)))
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let remove = async {
            match self.store.delete(&self.object(kind, id)).await {
                Ok(()) => Ok(()),
                Err(error) => match self.failed_look(kind, id, error).await {
                    absent if absent.kind() == io::ErrorKind::NotFound => Ok(()),
                    unknown => Err(unknown),
                },
            }
        };
        self.wait(remove).map_err(wrap("remove", kind, Some(id)))
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let set_aside = async {
            let (from, to) = (self.object(kind, id), self.aside(kind).join(id.to_string()));
            if let Err(error) = self.store.copy(&from, &to).await {
                return match self.failed_look(kind, id, error).await {
                    absent if absent.kind() == io::ErrorKind::NotFound => Ok(()),
                    unknown => Err(unknown),
                };
            }
            // The copy is looked at before the original goes.
            let there = self.stat(kind, id).await?;
            match self.store.head(&to).await {
                Ok(meta) if meta.size == there => {}
                Ok(meta) => return Err(self.short(usize::try_from(meta.size).unwrap_or(usize::MAX), there)),
                Err(error) => return Err(self.unknown(&error)),
            }
            self.store.delete(&from).await.map_err(|error| self.unknown(&error))
        };
        self.wait(set_aside).map_err(wrap("set aside", kind, Some(id)))
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        let list = async {
            let found = self.store.list_with_delimiter(Some(&self.aside(kind))).await;
            let found = found.map_err(|error| self.unknown(&error))?;
            let info = |meta: object_store::ObjectMeta| {
                Some(FileInfo { id: meta.location.filename()?.parse().ok()?, size: meta.size })
            };
            Ok(found.objects.into_iter().filter_map(info).collect())
        };
        self.wait(list).map_err(wrap("list what was set aside of", kind, None))
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        match self.wait(self.stat(kind, id)) {
            Ok(size) => Ok(Some(size)),
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(unknown) => Err(wrap("stat", kind, Some(id))(unknown)),
        }
    }

    /// There is no cache on this side; the object is only looked at.
    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.wait(self.stat(kind, id)).map(drop).map_err(wrap("stat", kind, Some(id)))
    }
}
