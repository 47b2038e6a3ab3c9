//! Images: values that are materialised once per id below `images/<id>/rootfs`.
//!
//! The id is a hash of everything in the image, so the same image has the same id on every engine, as with Docker.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use perennial_core::engine::EngineError;
use perennial_core::pod::PinnedImage;
use perennial_core::progress::Progress;
use perennial_core::volume::ImageLayout;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::faults::Fate;
use super::tree::{remove_any, set_mtime};
use super::{ImagePolicy, Shared, SimEngine, State, broken, not_found, rejected};

/// 1 January 2020: every file of an image has this time, so that the same image is the same tree everywhere.
const IMAGE_TIME: i64 = 1_577_836_800;
/// What an exported image holds of itself.
const CONFIGURATION: &str = "config.json";
/// The file beside `rootfs` that says what the image is.
const RECORD: &str = "image.json";

/// An image in the making, and what an exported one holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimImage {
    entries: BTreeMap<String, Entry>,
    declared: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
enum Entry {
    Directory { mode: u32, owner: u32 },
    File { mode: u32, hex: String },
    Link { target: String },
}

impl SimImage {
    /// An image with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The built-in image: the directories of a small Linux and one file in `/etc`.
    #[must_use]
    pub fn minimal() -> Self {
        ["/home", "/opt", "/root", "/srv", "/tmp", "/usr/local", "/var"]
            .into_iter()
            .fold(Self::new(), |image, path| image.directory(path))
            .file("/etc/os-release", "NAME=\"Perennial simulator\"\n")
    }

    /// An image with something in most places where a test may look.
    #[must_use]
    pub fn standard() -> Self {
        Self::minimal()
            .file("/bin/sh", "#!simulated\n")
            .file("/etc/motd", "from the image\n")
            .file("/etc/skel/profile", "from the image\n")
            .file("/usr/lib/data", "from the image\n")
            .file("/var/lib/seed/a", "from the image\n")
            .file("/var/lib/seed/b", "from the image\n")
            .directory_of("/home/user", 0o750, 1000)
    }

    /// Adds a directory, mode 755, and those above it.
    #[must_use]
    pub fn directory(self, path: &str) -> Self {
        self.directory_of(path, 0o755, 0)
    }

    /// Adds a directory with a mode and an owner.
    #[must_use]
    pub fn directory_of(mut self, path: &str, mode: u32, owner: u32) -> Self {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::Directory { mode, owner });
        self
    }

    /// Adds a file, mode 644, and the directories above it.
    #[must_use]
    pub fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::File { mode: 0o644, hex: hex::encode(content) });
        self
    }

    /// Adds a symbolic link, such as `/bin` to `usr/bin`.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::Link { target: target.to_owned() });
        self
    }

    /// Declares a `VOLUME`; the path is not made.
    #[must_use]
    pub fn volume(mut self, path: &str) -> Self {
        self.declared.push(path.to_owned());
        self
    }

    /// The id it will have: `sha256:…`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(self.encode())))
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').skip(1) {
            let parent = path[..at].to_owned();
            self.entries.entry(parent).or_insert(Entry::Directory { mode: 0o755, owner: 0 });
        }
    }

    /// The bytes that make up the image. A map of strings cannot fail to become JSON; if it did, the image is empty.
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn layout(&self) -> ImageLayout {
        let mut layout = ImageLayout { declared: self.declared.clone(), ..ImageLayout::default() };
        for (path, entry) in &self.entries {
            let Some(name) = path.strip_prefix('/').filter(|n| !n.contains('/')) else { continue };
            match entry {
                Entry::Directory { .. } => layout.directories.push(name.to_owned()),
                Entry::Link { .. } => layout.links.push(name.to_owned()),
                Entry::File { .. } => {}
            }
        }
        layout
    }

    fn materialise(&self, rootfs: &Path) -> io::Result<()> {
        fs::create_dir_all(rootfs)?;
        // Parents sort before what they hold; times are set in reverse, when nothing changes them any more.
        for (path, entry) in &self.entries {
            let target = rootfs.join(path.trim_start_matches('/'));
            match entry {
                Entry::Directory { mode, owner } => {
                    fs::create_dir(&target)?;
                    fs::set_permissions(&target, fs::Permissions::from_mode(*mode))?;
                    chown(&target, Some(*owner), Some(*owner))?;
                }
                Entry::File { mode, hex } => {
                    let bytes = hex::decode(hex).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                    fs::write(&target, bytes)?;
                    fs::set_permissions(&target, fs::Permissions::from_mode(*mode))?;
                }
                Entry::Link { target: to } => symlink(to, &target)?,
            }
        }
        for path in self.entries.keys().rev() {
            set_mtime(&rootfs.join(path.trim_start_matches('/')), IMAGE_TIME, 0)?;
        }
        set_mtime(rootfs, IMAGE_TIME, 0)
    }
}

/// An image the engine has.
pub(super) struct Image {
    pub content: SimImage,
    pub pinned: PinnedImage,
}

impl Image {
    /// Mode and owner of a directory of the image; `None` when the image has no directory there.
    pub(super) fn directory(&self, path: &str) -> Option<(u32, u32)> {
        match self.content.entries.get(path) {
            Some(Entry::Directory { mode, owner }) => Some((*mode, *owner)),
            _ => None,
        }
    }

    /// Where a link of the image at the top leads.
    pub(super) fn link(&self, path: &str) -> Option<&str> {
        match self.content.entries.get(path) {
            Some(Entry::Link { target }) => Some(target),
            _ => None,
        }
    }
}

/// What lies beside `rootfs`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    references: Vec<String>,
    image: SimImage,
}

/// Finds the images that an earlier process left.
pub(super) fn load(root: &Path, state: &mut State) -> io::Result<()> {
    for entry in fs::read_dir(root.join("images"))? {
        let path = entry?.path().join(RECORD);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let record: Record = serde_json::from_slice(&bytes)?;
        let id = record.image.id();
        state.references.extend(record.references.into_iter().map(|r| (r, id.clone())));
        let pinned = PinnedImage { id: id.clone(), digest: None, layout: record.image.layout() };
        state.images.insert(id, Image { content: record.image, pinned });
    }
    Ok(())
}

impl Shared {
    fn image_directory(&self, id: &str) -> PathBuf {
        self.root.join("images").join(id.trim_start_matches("sha256:"))
    }

    /// The tree of an image.
    pub(super) fn rootfs(&self, id: &str) -> PathBuf {
        self.image_directory(id).join("rootfs")
    }

    /// What an overlay volume has below it where the image has no directory.
    pub(super) fn empty_lower(&self) -> PathBuf {
        self.root.join("images/empty")
    }

    /// Adds an image, under a reference if there is one.
    fn image_store(&self, state: &mut State, reference: Option<&str>, image: &SimImage) -> Result<String, EngineError> {
        let id = image.id();
        let directory = self.image_directory(&id);
        if !state.images.contains_key(&id) {
            remove_any(&directory).map_err(|e| broken("clear image", &e))?;
            image.materialise(&directory.join("rootfs")).map_err(|e| broken("write image", &e))?;
        }
        if let Some(reference) = reference {
            state.references.insert(reference.to_owned(), id.clone());
        }
        let references = state.references.iter().filter(|(_, i)| **i == id).map(|(r, _)| r.clone()).collect();
        let record = Record { references, image: image.clone() };
        let bytes = serde_json::to_vec(&record).map_err(|e| rejected(format!("write image: {e}")))?;
        fs::write(directory.join(RECORD), bytes).map_err(|e| broken("write image", &e))?;
        let pinned = PinnedImage { id: id.clone(), digest: None, layout: image.layout() };
        state.images.insert(id.clone(), Image { content: image.clone(), pinned });
        Ok(id)
    }

    pub(super) fn image_resolve(&self, state: &mut State, reference: &str) -> Result<Option<PinnedImage>, EngineError> {
        let known = state.references.get(reference).map_or(reference, String::as_str);
        if let Some(image) = state.images.get(known) {
            return Ok(Some(image.pinned.clone()));
        }
        if self.options.images == ImagePolicy::OnlyAdded || reference.starts_with("sha256:") {
            return Ok(None);
        }
        // The reference is not remembered: thousands of pods may each name another.
        let builtin = SimImage::minimal();
        let id = builtin.id();
        if !state.images.contains_key(&id) {
            self.image_store(state, None, &builtin)?;
        }
        Ok(state.images.get(&id).map(|i| i.pinned.clone()))
    }

    pub(super) fn image_offered(&self, state: &mut State, reference: &str) -> Result<(), EngineError> {
        if state.registry.contains_key(reference) || self.image_resolve(state, reference)?.is_some() {
            return Ok(());
        }
        Err(not_found(format!("image {reference}, here or in the registry")))
    }

    pub(super) fn image_pull(&self, state: &mut State, reference: &str) -> Result<(), EngineError> {
        if let Some(image) = state.registry.get(reference).cloned() {
            self.image_store(state, Some(reference), &image)?;
            return Ok(());
        }
        match self.image_resolve(state, reference)? {
            // As with Docker: what is only here cannot be pulled, but a name that anything answers to can.
            Some(_) if self.options.images == ImagePolicy::AcceptAny => Ok(()),
            _ => Err(not_found(format!("image {reference} in the registry"))),
        }
    }

    pub(super) fn image_export(
        state: &State,
        fate: Fate,
        image: &str,
        into: &Path,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let id = state.references.get(image).map_or(image, String::as_str);
        let found = state.images.get(id).ok_or_else(|| not_found(format!("image {image}")))?;
        let bytes = saved(&found.content).map_err(|e| broken("pack image", &e))?;
        let half = fate.halfway || fate.disk_full;
        let bytes = if half { &bytes[..bytes.len() / 2] } else { &bytes[..] };
        let mut file = fs::File::create(into).map_err(|e| broken("write image file", &e))?;
        file.write_all(bytes).map_err(|e| broken("write image file", &e))?;
        progress.add_bytes(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if fate.disk_full {
            return Err(rejected("no space left for the image file"));
        }
        if half {
            return Err(EngineError::OutcomeUnknown { problem: "the connection broke during the export".to_owned() });
        }
        file.sync_all().map_err(|e| broken("sync image file", &e))
    }

    pub(super) fn image_import(
        &self,
        state: &mut State,
        fate: Fate,
        from: &Path,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let bytes = fs::read(from).map_err(|e| broken("read image file", &e))?;
        if fate.disk_full {
            return Err(rejected("no space left for the image"));
        }
        let image = loaded(&bytes).map_err(|e| rejected(format!("not a whole image file: {e}")))?;
        progress.add_bytes(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.image_store(state, None, &image).map(drop)
    }
}

/// An image as `docker save` writes one: a layer for each top-level directory, a configuration, and a manifest last.
fn saved(image: &SimImage) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        archive.append_data(&mut header, name, bytes)
    };
    let mut layers: BTreeMap<&str, tar::Builder<Vec<u8>>> = BTreeMap::new();
    for (path, entry) in &image.entries {
        let name = path.trim_start_matches('/');
        let top = name.split('/').next().unwrap_or(name);
        let layer = layers.entry(top).or_insert_with(|| tar::Builder::new(Vec::new()));
        let mut header = tar::Header::new_ustar();
        header.set_mtime(u64::try_from(IMAGE_TIME).unwrap_or_default());
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match entry {
            Entry::Directory { mode, owner } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_uid(u64::from(*owner));
                header.set_gid(u64::from(*owner));
                layer.append_data(&mut header, name, io::empty())?;
            }
            Entry::File { mode, hex } => {
                let bytes = hex::decode(hex).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                header.set_mode(*mode);
                header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                layer.append_data(&mut header, name, &bytes[..])?;
            }
            Entry::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                layer.append_link(&mut header, name, target)?;
            }
        }
    }
    let mut names = Vec::new();
    for (number, layer) in layers.into_values().enumerate() {
        names.push(format!("{number}/layer.tar"));
        add(&names[number], &layer.into_inner()?)?;
    }
    add(CONFIGURATION, &image.encode())?;
    let manifest = serde_json::json!([{"Config": CONFIGURATION, "RepoTags": null, "Layers": names}]);
    add("manifest.json", manifest.to_string().as_bytes())?;
    archive.into_inner()
}

/// The image in such a file; the manifest comes last, so that one without it was cut off.
fn loaded(bytes: &[u8]) -> io::Result<SimImage> {
    let missing = || io::Error::new(io::ErrorKind::UnexpectedEof, "it ends too early");
    let (mut image, mut whole) = (None, false);
    for entry in tar::Archive::new(bytes).entries()? {
        let entry = entry?;
        match entry.path_bytes().as_ref() {
            b"manifest.json" => whole = true,
            name if name == CONFIGURATION.as_bytes() => image = Some(serde_json::from_reader(entry)?),
            _ => {}
        }
    }
    image.filter(|_| whole).ok_or_else(missing)
}

impl SimEngine {
    /// Adds an image under a reference, as a build on the host would; returns its id.
    ///
    /// # Errors
    /// What the file system said.
    pub fn add_image(&self, reference: &str, image: &SimImage) -> Result<String, EngineError> {
        let mut state = self.lock();
        self.shared.image_store(&mut state, Some(reference), image)
    }

    /// Puts an image into the registry that `image_pull` takes it from.
    pub fn publish_image(&self, reference: &str, image: SimImage) {
        self.lock().registry.insert(reference.to_owned(), image);
    }

    /// Removes an image with its tree, as `docker rmi -f` would; containers of it cannot start any more.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove_image(&self, id: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.images.remove(id);
        state.references.retain(|_, i| i != id);
        remove_any(&self.shared.image_directory(id))
    }
}
