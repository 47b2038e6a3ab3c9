//! Images: resolved, moved as files, and flattened once into a tree that overlay volumes have below them (rule 1).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::ImageInspect;
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder};
use futures::{Stream, StreamExt, TryStreamExt};
use perennial_core::engine::EngineError;
use perennial_core::pod::PinnedImage;
use perennial_core::progress::Progress;
use perennial_core::spec::Backend;
use perennial_core::volume::ImageLayout;
use tokio::io::AsyncWriteExt;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::client::{LONG, blocking, fail, found, io, look, rejected, transient, unknown};
use super::{DockerEngine, scratch, tree, trees, untar};

/// How long somebody who makes a pod waits for a registry's answer about its image.
const REGISTRY: Duration = Duration::from_secs(10);

/// One lock for each image that is being flattened: whoever comes second waits for the first.
#[derive(Debug, Default)]
pub(super) struct FlattenLocks(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl FlattenLocks {
    fn of(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(image.to_owned()).or_default())
    }
}

impl DockerEngine {
    pub(super) async fn resolve(&self, reference: &str) -> Result<Option<PinnedImage>, EngineError> {
        let inspected = self.docker.inspect_image(reference).await;
        let Some(image) = found("look at the image", inspected)? else { return Ok(None) };
        let id = image.id.clone().ok_or_else(|| rejected("the engine's image has no id"))?;
        let mut layout = self.layout(&id).await?;
        layout.declared = declared(&image);
        let digest = image.repo_digests.unwrap_or_default().into_iter().next();
        let digest = digest.and_then(|d| d.split_once('@').map(|(_, digest)| digest.to_owned()));
        Ok(Some(PinnedImage { id, digest, layout }))
    }

    /// Top-level directories and links: from the flattened tree where there is one, else from the names in an export.
    async fn layout(&self, image: &str) -> Result<ImageLayout, EngineError> {
        if self.capabilities_probed().await?.backends.contains(&Backend::Overlay) {
            let rootfs = self.flatten(image).await?;
            return blocking(move || layout_of_tree(&rootfs)).await;
        }
        let name = format!("layout-{}", scratch::token());
        let id = self.scratch_create(&name, image, Vec::new(), None).await?;
        let stream = self.export_stream(&id);
        let layout = blocking(move || layout_of_export(stream)).await;
        self.scratch_remove(&name).await?;
        layout
    }

    /// The image's tree on this host, made when it is not there yet. `None` of it counts until it is marked complete.
    pub(super) async fn flatten(&self, image: &str) -> Result<PathBuf, EngineError> {
        let hex = trees::tree_name(image);
        if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(rejected(format!("{image} is not an image id")));
        }
        let dir = self.storage.images().join(hex);
        let (rootfs, complete) = (dir.join("rootfs"), dir.join(trees::COMPLETE));
        let lock = self.flattening.of(hex);
        let _held = lock.lock().await;
        self.storage.check()?;
        if complete.exists() {
            trees::note_use(&complete);
            return Ok(rootfs);
        }
        // Another process of this installation may be at it.
        let (storage, of) = (self.storage.clone(), image.to_owned());
        let _lock_file = blocking(move || storage.lock_tree(&of)).await?;
        if complete.exists() {
            return Ok(rootfs);
        }
        let (storage, half) = (self.storage.clone(), dir.clone());
        let fresh = rootfs.clone();
        blocking(move || {
            if half.exists() {
                storage.discard_tree(&half)?;
            }
            tree::make_private_dir(&half).map_err(io("make the image's directory"))?;
            std::fs::create_dir(&fresh).map_err(io("make the image's tree"))
        })
        .await?;
        let name = format!("flatten-{}", scratch::token());
        let id = self.scratch_create(&name, image, Vec::new(), None).await?;
        let stream = self.export_stream(&id);
        let into = rootfs.clone();
        let extracted = blocking(move || {
            let mut stream = stream;
            untar::extract(&mut stream, &into).map_err(io("flatten the image"))?;
            tree::sync_all(&into).map_err(io("sync the image's tree"))?;
            tree::write_durably(&dir, trees::COMPLETE, b"").map_err(io("mark the image's tree complete"))
        })
        .await;
        self.scratch_remove(&name).await?;
        extracted?;
        tracing::info!(image, "image flattened");
        Ok(rootfs)
    }

    /// The file system of a container as a tar stream, for a blocking reader.
    fn export_stream(&self, container: &str) -> impl std::io::Read + Send + 'static + use<> {
        let docker = self.docker.clone().with_timeout(LONG);
        let container = container.to_owned();
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            let mut stream = docker.export_container(&container);
            while let Some(piece) = stream.next().await {
                if sender.send(piece.map_err(std::io::Error::other)).await.is_err() {
                    break;
                }
            }
        });
        SyncIoBridge::new(StreamReader::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }

    /// A registry that does not answer soon says nothing.
    pub(super) async fn offered(&self, reference: &str) -> Result<(), EngineError> {
        if found("look at the image", self.docker.inspect_image(reference).await)?.is_some() {
            return Ok(());
        }
        if reference.starts_with("sha256:") {
            return Err(EngineError::NotFound { what: format!("image {reference}") });
        }
        let asked = self.docker.inspect_registry_image(reference, None);
        match tokio::time::timeout(REGISTRY, asked).await {
            Ok(answer) => answer.map(drop).map_err(|e| look("ask the registry for the image", e)),
            Err(_) => Err(transient(format!("ask the registry for the image: no answer in {} s", REGISTRY.as_secs()))),
        }
    }

    pub(super) async fn pull(&self, reference: &str, progress: &Progress) -> Result<(), EngineError> {
        let options = CreateImageOptionsBuilder::default().from_image(reference).build();
        let docker = self.docker.clone().with_timeout(LONG);
        let mut stream = docker.create_image(Some(options), None, None);
        let mut layers: HashMap<String, (u64, u64)> = HashMap::new();
        let mut reported = 0;
        while let Some(message) = stream.next().await {
            let message = message.map_err(|e| fail("pull the image", e))?;
            progress.check().map_err(|e| transient(format!("pull the image: {e}")))?;
            let (Some(layer), Some(detail)) = (message.id, message.progress_detail) else { continue };
            let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            let seen = layers.entry(layer).or_default();
            // A layer reports its download and then its extraction: the larger count is the one that only grows.
            *seen = (seen.0.max(bytes(detail.current)), seen.1.max(bytes(detail.total)));
            let done: u64 = layers.values().map(|l| l.0).sum();
            progress.set_total(layers.values().map(|l| l.1).sum());
            progress.add_bytes(done - reported);
            reported = done;
        }
        Ok(())
    }

    pub(super) async fn export(&self, image: &str, into: &Path, progress: &Progress) -> Result<(), EngineError> {
        let inspected = found("look at the image", self.docker.inspect_image(image).await)?;
        let size = inspected.ok_or_else(|| EngineError::NotFound { what: format!("image {image}") })?.size;
        progress.set_total(size.and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
        let docker = self.docker.clone().with_timeout(LONG);
        let mut file = tokio::fs::File::create(into).await.map_err(io("make the image file"))?;
        let mut stream = Box::pin(docker.export_image(image));
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|e| look("save the image", e))?;
            progress.check().map_err(|e| transient(format!("save the image: {e}")))?;
            file.write_all(&piece).await.map_err(io("write the image file"))?;
            progress.add_bytes(u64::try_from(piece.len()).unwrap_or(0));
        }
        file.flush().await.map_err(io("write the image file"))?;
        file.sync_all().await.map_err(io("sync the image file"))?;
        let parent = into.parent().unwrap_or(Path::new("/")).to_owned();
        blocking(move || tree::sync_dir(&parent).map_err(io("sync the image file's directory"))).await
    }

    pub(super) async fn import(&self, from: &Path, progress: &Progress) -> Result<(), EngineError> {
        let file = tokio::fs::File::open(from).await.map_err(io("open the image file"))?;
        let length = file.metadata().await.map_err(io("look at the image file"))?.len();
        progress.set_total(length);
        let counted = progress.clone();
        let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10).inspect_ok(move |piece| {
            counted.add_bytes(u64::try_from(piece.len()).unwrap_or(0));
        });
        self.load(stream).await
    }

    /// Loads images from a tar stream.
    pub(super) async fn load<S>(&self, stream: S) -> Result<(), EngineError>
    where
        S: Stream<Item = std::io::Result<tokio_util::bytes::Bytes>> + Send + 'static,
    {
        let docker = self.docker.clone().with_timeout(LONG);
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let mut answers = docker.import_image_stream(options, stream, None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(_) => {}
                Err(e) => return Err(fail("load the image", e)),
            }
        }
        Ok(())
    }

    /// Which paths an image declares as `VOLUME`.
    pub(super) async fn declared_volumes(&self, image: &str) -> Result<Vec<String>, EngineError> {
        let inspected = found("look at the image", self.docker.inspect_image(image).await)?;
        let image = inspected.ok_or_else(|| EngineError::NotFound { what: format!("image {image}") })?;
        Ok(declared(&image))
    }
}

fn declared(image: &ImageInspect) -> Vec<String> {
    let mut paths = image.config.as_ref().and_then(|c| c.volumes.clone()).unwrap_or_default();
    paths.sort();
    paths
}

/// Characters that mean nothing in overlay's options.
pub(super) fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-+@=".contains(c)
}

fn layout_of_tree(rootfs: &Path) -> Result<ImageLayout, EngineError> {
    let mut layout = ImageLayout::default();
    for entry in std::fs::read_dir(rootfs).map_err(io("list the image's tree"))? {
        let entry = entry.map_err(io("list the image's tree"))?;
        let kind = entry.file_type().map_err(io("list the image's tree"))?;
        // A name that cannot stand in a mount option stays in the system layer.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if kind.is_symlink() {
            layout.links.push(name);
        } else if kind.is_dir() && name.chars().all(is_plain) {
            layout.directories.push(name);
        }
    }
    layout.directories.sort();
    layout.links.sort();
    Ok(layout)
}

pub(super) fn layout_of_export(stream: impl std::io::Read) -> Result<ImageLayout, EngineError> {
    let mut layout = ImageLayout::default();
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries().map_err(io("read the export"))? {
        let entry = entry.map_err(io("read the export"))?;
        let bytes = entry.path_bytes();
        let Ok(path) = std::str::from_utf8(&bytes) else { continue };
        let name = path.trim_start_matches("./").trim_matches('/');
        if name.is_empty() || name.contains('/') {
            continue;
        }
        match entry.header().entry_type() {
            tar::EntryType::Directory => layout.directories.push(name.to_owned()),
            tar::EntryType::Symlink => layout.links.push(name.to_owned()),
            _ => {}
        }
    }
    if layout.directories.is_empty() && layout.links.is_empty() {
        return Err(unknown("the export of the image is empty"));
    }
    layout.directories.sort();
    layout.links.sort();
    Ok(layout)
}
