//! What is in snapshots, for people who look: directories, contents, archives. Nothing here changes anything.
//!
//! - `view`: a snapshot as its pod would see it, put together from volumes, system layer and image;
//! - `image`: the tree of a stored image;
//! - `stream`, `export`: contents and tars on their way to a client; `pax`: tars being read;
//! - `diff`: what differs between two snapshots; `live`: between one and what is in its pod,
//!   `looks`: for how long;
//! - `path`: paths of pods; `failure`: what can go wrong.
//!
//! It works on the repositories that the reconciler keeps open, on threads of its own, and takes no locks: see
//! `perennial_snapshots`, `browse`.

mod below;
mod diff;
mod export;
mod failure;
pub(crate) mod image;
mod live;
mod looks;
mod path;
mod pax;
mod stream;
pub(crate) mod view;

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use perennial_core::snapshot::SnapshotVolume;
use perennial_core::spec::TenantId;
use perennial_snapshots::{Node, NodeKind, SnapshotFileId, Time};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use below::ImageBelow;
pub use diff::Differs;
pub use failure::Failure;
pub use live::{Present, Sketch};
pub use path::PodPath;
pub(crate) use pax::{Extensions, RECORD_COST, records as pax_records, time as pax_time};
pub use stream::Download;
pub use view::Origin;

use crate::reconcile::repositories::Repositories;
use diff::Walk;
use image::{ImageTree, Section};
use live::Lost;
use looks::Looks;
use view::{Found, View};

/// Downloads at the same time; each holds a thread and some megabytes.
const DOWNLOADS: usize = 32;
/// Looks at the same time; each may hold a large directory in memory.
const LOOKS: usize = 8;
/// Entries of directories that are kept for the next page.
const LISTED_MAX: usize = 300_000;
/// Entries of images that are kept for the next question.
const IMAGE_ENTRIES_MAX: usize = 300_000;
/// zstd's fastest regular level: the client waits.
const ZSTD_LEVEL: i32 = 1;

/// Looks into snapshots. Clones share what is kept.
#[derive(Clone)]
pub struct Library {
    repositories: Repositories,
    shelf: Arc<Shelf>,
    downloads: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    pods: Arc<Looks>,
    /// For files without a name.
    scratch: Arc<Path>,
}

/// What was read lately; everything in it can be read again.
#[derive(Default)]
struct Shelf {
    listings: Mutex<Vec<(Source, PodPath, Arc<Listing>)>>,
    images: Mutex<Vec<(TenantId, StoredImage, Arc<ImageTree>)>>,
}

/// A snapshot to look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Whose repository.
    pub tenant: TenantId,
    /// The snapshot in it.
    pub snapshot: SnapshotFileId,
    /// The volumes it holds.
    pub volumes: Vec<SnapshotVolume>,
    /// The image its changes are relative to; `None`: only the changes are looked at.
    pub image: Option<StoredImage>,
}

/// An image in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// The engine's id of it.
    pub id: String,
    /// Its snapshot.
    pub snapshot: SnapshotFileId,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its name; bytes.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file.
    pub size: u64,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Target of a symbolic link; bytes.
    pub link_target: Vec<u8>,
    /// Names of the same inode; 0 when unknown.
    pub links: u64,
    /// Device number of a device.
    pub device: u64,
    /// Names of the extended attributes.
    pub xattrs: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
}

impl From<Found> for Item {
    fn from(Found { node, origin, .. }: Found) -> Self {
        let Node { name, kind, mode, uid, gid, size, mtime, link_target, links, device, xattrs, .. } = node;
        let xattrs = xattrs.into_iter().map(|x| x.name).collect();
        Self { name, kind, mode, uid, gid, size, mtime, link_target, links, device, xattrs, origin }
    }
}

/// An entry, and what is in it when it is a directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Listing {
    /// The entry itself.
    pub entry: Item,
    /// Its entries, sorted by name.
    pub items: Vec<Item>,
}

/// One path that differs between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The names on the way to it.
    pub path: Vec<Vec<u8>>,
    /// What was there; `None`: nothing.
    pub before: Option<Item>,
    /// What is there; `None`: nothing.
    pub after: Option<Item>,
    /// In which respect they differ.
    pub what: Differs,
}

/// What one snapshot has at a path.
#[derive(Debug)]
pub struct Version {
    /// What is there; `None`: nothing.
    pub item: Option<Item>,
    /// In which respect it differs from the snapshot before; `None` for the first.
    pub differs: Option<Differs>,
    /// Whether the snapshot before has something there.
    pub existed: bool,
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// By zstd.
    Zstd,
    /// By gzip.
    Gzip,
}

/// A regular file, ready to be read.
pub struct OpenFile {
    /// What it is.
    pub item: Item,
    content: Section,
    permit: OwnedSemaphorePermit,
}

impl OpenFile {
    /// Reads a part of it. What cannot be read at all is a failure here; what breaks later breaks the download.
    ///
    /// # Errors
    /// Why the first piece cannot be read.
    pub async fn download(self, start: u64, length: u64) -> Result<Download, Failure> {
        let Self { mut content, permit, .. } = self;
        Download::begin(move |sink| {
            let _permit = permit;
            content.seek(SeekFrom::Start(start))?;
            let copied = io::copy(&mut content.take(length), sink)?;
            if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        })
        .await
    }
}

impl Library {
    /// Looks into these repositories. What comparisons with pods need for a while goes to this directory.
    #[must_use]
    pub fn new(repositories: Repositories, scratch: &Path) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            repositories,
            shelf: Arc::default(),
            downloads: semaphore(DOWNLOADS),
            looks: semaphore(LOOKS),
            pods: Arc::default(),
            scratch: scratch.into(),
        }
    }

    /// Forgets everything that was read of a tenant's snapshots.
    pub fn close(&self, tenant: &TenantId) {
        let unpoisoned = PoisonError::into_inner;
        self.shelf.listings.lock().unwrap_or_else(unpoisoned).retain(|(source, ..)| source.tenant != *tenant);
        self.shelf.images.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, ..)| of != tenant);
    }

    /// Lists what is at a path.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn list(&self, source: Source, path: PodPath) -> Result<Arc<Listing>, Failure> {
        if let Some(known) = self.shelf.listing(&source, &path) {
            return Ok(known);
        }
        self.look(move |library| {
            let view = library.view(&source)?;
            let found = view.find(&path)?;
            let items = if found.node.kind == NodeKind::Dir { view.list(&found)? } else { Vec::new() };
            let items = items.into_iter().map(Item::from).collect();
            let listing = Arc::new(Listing { entry: found.into(), items });
            library.shelf.keep_listing(source, path, &listing);
            Ok(listing)
        })
        .await
    }

    /// Tells what is at a path.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn entry(&self, source: Source, path: PodPath) -> Result<Item, Failure> {
        self.look(move |library| Ok(library.view(&source)?.find(&path)?.into())).await
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn open_file(&self, source: Source, path: PodPath) -> Result<OpenFile, Failure> {
        let permit = self.permit()?;
        self.look(move |library| {
            let view = library.view(&source)?;
            let found = view.find(&path)?;
            let content = view.open_file(&found)?;
            Ok(OpenFile { item: found.into(), content, permit })
        })
        .await
    }

    /// Packs what is at a path.
    ///
    /// # Errors
    /// See [`Failure`]; what breaks after the first piece breaks the download.
    pub async fn archive(&self, source: Source, path: PodPath, packing: Packing) -> Result<(Item, Download), Failure> {
        let permit = self.permit()?;
        let (view, found) = self
            .look(move |library| {
                let view = library.view(&source)?;
                let found = view.find(&path)?;
                Ok((view, found))
            })
            .await?;
        let item = Item::from(found.clone());
        let download = Download::begin(move |sink| {
            let _permit = permit;
            match packing {
                Packing::Plain => export::write(&view, &found, sink),
                Packing::Zstd => {
                    let mut packed = zstd::stream::write::Encoder::new(sink, ZSTD_LEVEL)?;
                    export::write(&view, &found, &mut packed)?;
                    packed.finish().map(drop)
                }
                Packing::Gzip => {
                    let mut packed = flate2::write::GzEncoder::new(sink, flate2::Compression::fast());
                    match export::write(&view, &found, &mut packed) {
                        Ok(()) => packed.try_finish(),
                        Err(error) => {
                            // Dropped, it would write the end of a stream that broke off.
                            packed.get_mut().spoil();
                            Err(error)
                        }
                    }
                }
            }
        })
        .await?;
        Ok((item, download))
    }

    /// Lists what differs at and below a path, in the order of paths, at most this many and behind the path `after`.
    ///
    /// # Errors
    /// See [`Failure`]; [`Failure::NotFound`] when neither has the path.
    pub async fn diff(
        &self,
        (before, after): (Source, Source),
        path: PodPath,
        seen: Option<Vec<Vec<u8>>>,
        most: usize,
    ) -> Result<Vec<Difference>, Failure> {
        self.look(move |library| {
            let (before, after) = (library.view(&before)?, library.view(&after)?);
            differences((&before, &after), &path, &Lost::new(), (seen, most))
        })
        .await
    }

    /// Tells what each of these snapshots, newest first, has at a path. One that cannot be looked into is a failure of its
    /// own, and not of the others.
    ///
    /// # Errors
    /// When the thread that looks ended.
    pub async fn versions(
        &self,
        sources: Vec<Source>,
        path: PodPath,
    ) -> Result<Vec<Result<Version, Failure>>, Failure> {
        self.look(move |library| {
            let mut versions = Vec::with_capacity(sources.len());
            let mut before: Option<(View, Option<Found>)> = None;
            for source in sources.iter().rev() {
                let looked = library.view(source).and_then(|view| {
                    let found = match view.find(&path) {
                        Ok(found) => Some(found),
                        Err(Failure::NotFound { .. }) => None,
                        Err(other) => return Err(other),
                    };
                    let differs = match &before {
                        None => None,
                        Some((old, was)) => Some(differs((old, was.as_ref()), (&view, found.as_ref()), &path)?),
                    };
                    Ok((view, found, differs))
                });
                versions.push(looked.map(|(view, found, differs)| {
                    let item = found.clone().map(Item::from);
                    let old = before.replace((view, found));
                    Version { item, differs, existed: old.is_some_and(|(_, found)| found.is_some()) }
                }));
            }
            versions.reverse();
            Ok(versions)
        })
        .await
    }

    /// Looks at something on a thread of its own, when it is its turn.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = Arc::clone(&self.looks).acquire_owned().await.map_err(|e| ended(&e))?;
        let library = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&library)
        });
        looked.await.map_err(|e| ended(&e))?
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.downloads)
            .try_acquire_owned()
            .map_err(|_| Failure::Busy("too many downloads from snapshots go on at the same time"))
    }

    fn view(&self, source: &Source) -> Result<View, Failure> {
        let repository = self.repositories.read(&source.tenant).map_err(Failure::Closed)?;
        let image = self.image(&repository, source)?;
        View::open(repository, source.snapshot, &source.volumes, image)
    }

    fn image(
        &self,
        repository: &perennial_snapshots::Repository,
        source: &Source,
    ) -> Result<Option<(String, Arc<ImageTree>)>, Failure> {
        let Some(image) = &source.image else { return Ok(None) };
        let images = || self.shelf.images.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |(tenant, known, _): &(TenantId, StoredImage, _)| *tenant == source.tenant && known == image;
        let known = images().iter().find(|kept| is_it(kept)).map(|(.., tree)| Arc::clone(tree));
        let tree = match known {
            Some(tree) => tree,
            // Without the lock: a slow repository of one tenant keeps no other waiting.
            None => Arc::new(ImageTree::load(repository, image.snapshot, &image.id)?),
        };
        // What was asked for last stays longest.
        let mut images = images();
        images.retain(|kept| !is_it(kept));
        images.push((source.tenant.clone(), image.clone(), Arc::clone(&tree)));
        while images.len() > 1 && images.iter().map(|(_, _, tree)| tree.len()).sum::<usize>() > IMAGE_ENTRIES_MAX {
            images.remove(0);
        }
        Ok(Some((image.id.clone(), tree)))
    }
}

/// Packs what a snapshot of any repository has at a path, as zstd's tar; without an image, for it need not be of a pod.
///
/// # Errors
/// See [`Failure`]; what breaks after the first piece breaks the download.
pub async fn pack(
    repository: perennial_snapshots::Repository,
    snapshot: SnapshotFileId,
    path: PodPath,
) -> Result<Download, Failure> {
    let looked = tokio::task::spawn_blocking(move || {
        let view = View::plain(repository, snapshot)?;
        let found = view.find(&path)?;
        Ok::<_, Failure>((view, found))
    });
    let (view, found) = looked.await.map_err(|e| Failure::Broken(io::Error::other(e.to_string())))??;
    Download::begin(move |sink| {
        let mut packed = zstd::stream::write::Encoder::new(sink, ZSTD_LEVEL)?;
        export::write(&view, &found, &mut packed)?;
        packed.finish().map(drop)
    })
    .await
}

fn ended(error: &dyn std::error::Error) -> Failure {
    Failure::Broken(io::Error::other(error.to_string()))
}

/// Lists what differs, except at and below what is lost: what is not known does not differ.
fn differences(
    (before, after): (&View, &View),
    path: &PodPath,
    lost: &Lost,
    (seen, most): (Option<Vec<Vec<u8>>>, usize),
) -> Result<Vec<Difference>, Failure> {
    let is_lost = |path: &[Vec<u8>]| !lost.is_empty() && (0..=path.len()).any(|n| lost.contains(&path[..n]));
    let mut walk = Walk::new((before, after), path, seen)?;
    let mut found = Vec::new();
    while found.len() < most {
        let Some(diff::Difference { path, before, after, what }) = walk.next()? else { break };
        if is_lost(&path) {
            continue;
        }
        found.push(Difference { path, before: before.map(Item::from), after: after.map(Item::from), what });
    }
    Ok(found)
}

/// In which respect what is at a path differs; a directory with everything below it.
fn differs(
    (old, was): (&View, Option<&Found>),
    (new, is): (&View, Option<&Found>),
    path: &PodPath,
) -> Result<Differs, Failure> {
    match (was, is) {
        (None, None) => Ok(Differs::default()),
        (Some(was), Some(is)) => {
            let mut differs = diff::compare((was, old), (is, new));
            if was.node.kind == NodeKind::Dir && is.node.kind == NodeKind::Dir {
                let mut walk = Walk::new((old, new), path, Some(path.names().map(<[u8]>::to_vec).collect()))?;
                differs.content = walk.next()?.is_some();
            }
            Ok(differs)
        }
        _ => Ok(Differs { content: true, metadata: true }),
    }
}

impl Shelf {
    fn listing(&self, source: &Source, path: &PodPath) -> Option<Arc<Listing>> {
        let listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        listings.iter().find(|(s, p, _)| s == source && p == path).map(|(_, _, listing)| Arc::clone(listing))
    }

    fn keep_listing(&self, source: Source, path: PodPath, listing: &Arc<Listing>) {
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        listings.retain(|(s, p, _)| (s, p) != (&source, &path));
        listings.push((source, path, Arc::clone(listing)));
        // An empty directory counts as well.
        while listings.len() > 1 && listings.iter().map(|(_, _, l)| l.items.len() + 100).sum::<usize>() > LISTED_MAX {
            listings.remove(0);
        }
    }
}
