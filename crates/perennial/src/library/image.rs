//! The tree of a stored image, read out of the archive that the engine saved it as.
//!
//! An image is in the repository as `docker save` wrote it: a tar of layers, each a tar of its own. The layers' headers
//! are read once, with everything between them passed over, and give a tree in memory whose files are ranges of the
//! archive. Whiteouts of the layers are applied on the way.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Seek, SeekFrom};

use perennial_snapshots::{FileReader, Node, NodeKind, Repository, SnapshotFileId, Xattr};
use serde::Deserialize;
use tar::{Archive, EntryType};

use super::failure::Failure;
use super::pax::Extensions;
use crate::reconcile::stored_image_path;

/// More entries than any image has, deletions counted in; each takes some 400 bytes of memory.
const ENTRIES_MAX: usize = 1_000_000;
/// More bytes of names, link targets and attributes than any image has.
const BYTES_MAX: usize = 256 << 20;
/// Longest path, in bytes: no system makes longer ones by name. It bounds how deep the tree is as well.
const PATH_MAX: usize = 4096;
/// Largest `manifest.json` that is read.
const MANIFEST_MAX: u64 = 4 << 20;
/// What marks a deletion in a layer.
const WHITEOUT: &[u8] = b".wh.";
/// What marks a directory that hides the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// An entry of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageEntry(u32);

/// All entries of an image.
#[derive(Debug)]
pub(crate) struct ImageTree {
    archive: FileReader,
    items: Vec<Item>,
    /// Bytes of names, link targets and attributes.
    bytes: usize,
    /// Directories that hide the layers below the one that is read: what is in them is of this layer.
    hidden: HashSet<u32>,
}

#[derive(Debug)]
struct Item {
    node: Node,
    /// Where a file's content begins in the archive.
    offset: u64,
    /// The layer it is of.
    layer: usize,
    children: BTreeMap<Vec<u8>, u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    layers: Vec<String>,
}

fn unreadable(reason: impl Into<String>) -> Failure {
    Failure::ImageUnreadable(reason.into())
}

fn too_many() -> Failure {
    unreadable(format!("it has more than {ENTRIES_MAX} entries"))
}

fn broken(error: io::Error) -> Failure {
    Failure::of_io(error, |error| unreadable(format!("its archive cannot be read: {error}")))
}

impl ImageTree {
    /// Reads the tree of an image that is in this snapshot of the repository.
    pub(crate) fn load(repository: &Repository, snapshot: SnapshotFileId, image: &str) -> Result<Self, Failure> {
        let tree = repository.snapshot(snapshot)?.tree;
        let file = repository.entry(tree, stored_image_path(image).as_bytes())?;
        let mut archive = repository.open_file(&file)?;
        let layers = layers(&mut archive)?;
        let mut root = Node::new(Vec::new(), NodeKind::Dir);
        root.mode = 0o755;
        let root = Item { node: root, offset: 0, layer: 0, children: BTreeMap::new() };
        let mut image = Self { archive, items: vec![root], bytes: 0, hidden: HashSet::new() };
        for (number, (start, length)) in layers.into_iter().enumerate() {
            image.hidden.clear();
            image.add_layer(number, start, length)?;
        }
        image.hidden = HashSet::new();
        Ok(image)
    }

    /// The image's root directory.
    #[expect(clippy::unused_self, reason = "an entry means something only with its image")]
    pub(crate) const fn root(&self) -> ImageEntry {
        ImageEntry(0)
    }

    /// How many entries it has.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    fn item(&self, entry: ImageEntry) -> &Item {
        &self.items[entry.0 as usize]
    }

    /// What an entry is.
    pub(crate) fn node(&self, entry: ImageEntry) -> &Node {
        &self.item(entry).node
    }

    /// The entries of a directory, sorted by name.
    pub(crate) fn children(&self, directory: ImageEntry) -> impl Iterator<Item = (&[u8], ImageEntry)> {
        self.item(directory).children.iter().map(|(name, item)| (name.as_slice(), ImageEntry(*item)))
    }

    /// The entry of this name.
    pub(crate) fn child(&self, directory: ImageEntry, name: &[u8]) -> Option<ImageEntry> {
        self.item(directory).children.get(name).copied().map(ImageEntry)
    }

    /// A file's content.
    pub(crate) fn open(&self, file: ImageEntry) -> Section {
        let item = self.item(file);
        Section { reader: self.archive.clone(), start: item.offset, length: item.node.size, position: 0 }
    }

    fn add_layer(&mut self, layer: usize, start: u64, length: u64) -> Result<(), Failure> {
        let mut section = Section { reader: self.archive.clone(), start, length, position: 0 };
        let mut magic = [0; 4];
        let read = section.read(&mut magic).map_err(broken)?;
        if magic[..read].starts_with(&[0x1f, 0x8b]) || magic[..read] == [0x28, 0xb5, 0x2f, 0xfd] {
            return Err(unreadable("its layers are compressed"));
        }
        section.seek(SeekFrom::Start(0)).map_err(broken)?;
        let mut tar = Archive::new(section);
        let mut extensions = Extensions::default();
        let mut deletions = 0;
        for entry in tar.entries_with_seek().map_err(broken)?.raw(true) {
            let mut entry = entry.map_err(broken)?;
            if extensions.take_in(&mut entry).map_err(broken)? {
                continue;
            }
            let said = std::mem::take(&mut extensions);
            // Where a size is said beside the header, the header's is none to go on by.
            let is_size = |text: &[u8]| text == entry.size().to_string().as_bytes();
            if said.get("size").is_some_and(|size| !is_size(size)) {
                return Err(unreadable("it holds a file that is too large"));
            }
            let path = said.path(&entry);
            if path.len() > PATH_MAX {
                return Err(unreadable(format!("a path in it is longer than {PATH_MAX} bytes")));
            }
            let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
            if names.contains(&&b".."[..]) {
                return Err(unreadable("a name in it leads out of its directory"));
            }
            let Some(name) = names.pop() else {
                let node = described(&entry, &said, Vec::new())?.unwrap_or_else(|| self.items[0].node.clone());
                self.items[0].node = node;
                continue;
            };
            let parent = self.directory(&names, layer)?;
            if name.starts_with(WHITEOUT) {
                deletions += 1;
                if deletions > ENTRIES_MAX {
                    return Err(too_many());
                }
            }
            if name == OPAQUE {
                self.hide(parent, layer);
            } else if let Some(name) = name.strip_prefix(WHITEOUT) {
                self.remove_below(parent, name, layer);
            } else if entry.header().entry_type() == EntryType::Link {
                self.link(parent, name, &said.target(&entry), layer)?;
            } else if let Some(node) = described(&entry, &said, name.to_vec())? {
                let offset = start + entry.raw_file_position();
                self.put(parent, Item { node, offset, layer, children: BTreeMap::new() })?;
            }
        }
        Ok(())
    }

    /// The directory of these names; made when a layer leaves it out.
    fn directory(&mut self, names: &[&[u8]], layer: usize) -> Result<u32, Failure> {
        let mut at = 0;
        for name in names {
            let known = self.items[at as usize].children.get(*name).copied();
            at = match known.filter(|k| self.items[*k as usize].node.kind == NodeKind::Dir) {
                Some(known) => known,
                None => {
                    let mut node = Node::new(*name, NodeKind::Dir);
                    node.mode = 0o755;
                    self.put(at, Item { node, offset: 0, layer, children: BTreeMap::new() })?
                }
            };
        }
        Ok(at)
    }

    /// Adds an entry; a directory over a directory keeps what is in it.
    fn put(&mut self, parent: u32, mut item: Item) -> Result<u32, Failure> {
        let attributes = item.node.xattrs.iter().map(|x| x.name.len() + x.value.len());
        self.bytes += item.node.name.len() + item.node.link_target.len() + attributes.sum::<usize>();
        if self.bytes > BYTES_MAX {
            return Err(unreadable(format!("its names and attributes are more than {} MiB", BYTES_MAX >> 20)));
        }
        let number = u32::try_from(self.items.len()).ok().filter(|_| self.items.len() < ENTRIES_MAX);
        let number = number.ok_or_else(too_many)?;
        let name = item.node.name.clone();
        if let Some(old) = self.items[parent as usize].children.insert(name, number)
            && item.node.kind == NodeKind::Dir
        {
            item.children = std::mem::take(&mut self.items[old as usize].children);
            if self.hidden.contains(&old) {
                self.hidden.insert(number);
            }
        }
        self.items.push(item);
        Ok(number)
    }

    fn link(&mut self, parent: u32, name: &[u8], target: &[u8], layer: usize) -> Result<(), Failure> {
        let mut at = 0_u32;
        for part in target.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".") {
            let found = self.items[at as usize].children.get(part).copied();
            at = found.ok_or_else(|| unreadable("a hard link in it leads nowhere"))?;
        }
        let inode = u64::from(at);
        let original = &mut self.items[at as usize];
        if original.node.kind == NodeKind::Dir {
            return Err(unreadable("a hard link in it leads to a directory"));
        }
        // A link to a link leads to the first of them.
        if original.node.inode == 0 {
            original.node.inode = inode;
        }
        original.node.links = 2;
        let node = Node { name: name.to_vec(), ..original.node.clone() };
        let offset = original.offset;
        self.put(parent, Item { node, offset, layer, children: BTreeMap::new() }).map(drop)
    }

    /// Removes what layers below have under a name.
    fn remove_below(&mut self, parent: u32, name: &[u8], layer: usize) {
        let Some(child) = self.items[parent as usize].children.get(name).copied() else { return };
        if self.items[child as usize].layer < layer {
            self.items[parent as usize].children.remove(name);
        } else {
            self.hide(child, layer);
        }
    }

    /// Leaves in a directory only what this layer has; once for each, for all that comes later is of this layer.
    fn hide(&mut self, directory: u32, layer: usize) {
        if !self.hidden.insert(directory) {
            return;
        }
        let children = std::mem::take(&mut self.items[directory as usize].children);
        let (keep, _): (BTreeMap<_, _>, BTreeMap<_, _>) =
            children.into_iter().partition(|(_, item)| self.items[*item as usize].layer >= layer);
        let below: Vec<u32> = keep.values().copied().collect();
        self.items[directory as usize].children = keep;
        below.into_iter().for_each(|item| self.hide(item, layer));
    }
}

/// Where the layers are in the archive, lowest first.
fn layers(archive: &mut FileReader) -> Result<Vec<(u64, u64)>, Failure> {
    let mut files: HashMap<String, (u64, u64)> = HashMap::new();
    let mut links: HashMap<String, String> = HashMap::new();
    let mut manifest = None;
    archive.seek(SeekFrom::Start(0)).map_err(broken)?;
    let mut tar = Archive::new(&mut *archive);
    for entry in tar.entries_with_seek().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type() == EntryType::Symlink {
            // Layers that are the same are there once.
            let target = String::from_utf8_lossy(&entry.link_name_bytes().unwrap_or_default()).into_owned();
            links.insert(name, target.trim_start_matches("../").to_owned());
            continue;
        }
        if name == "manifest.json" {
            let mut text = Vec::new();
            entry.by_ref().take(MANIFEST_MAX).read_to_end(&mut text).map_err(broken)?;
            let parsed: Vec<Manifest> =
                serde_json::from_slice(&text).map_err(|e| unreadable(format!("its manifest: {e}")))?;
            manifest = parsed.into_iter().next();
            continue;
        }
        files.insert(name, (entry.raw_file_position(), entry.size()));
    }
    let manifest = manifest.ok_or_else(|| unreadable("its archive has no manifest"))?;
    let place = |name: &String| {
        let found = files.get(name).or_else(|| files.get(links.get(name)?));
        found.copied().ok_or_else(|| unreadable(format!("layer {name} is not in its archive")))
    };
    manifest.layers.iter().map(place).collect()
}

/// An entry's metadata; `None` for what is no entry of a directory.
fn described<R: Read>(entry: &tar::Entry<'_, R>, said: &Extensions, name: Vec<u8>) -> Result<Option<Node>, Failure> {
    let kind = match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => NodeKind::File,
        EntryType::Directory => NodeKind::Dir,
        EntryType::Symlink => NodeKind::Symlink,
        EntryType::Block => NodeKind::BlockDevice,
        EntryType::Char => NodeKind::CharDevice,
        EntryType::Fifo => NodeKind::Fifo,
        EntryType::GNUSparse => return Err(unreadable("it holds sparse files")),
        _ => return Ok(None),
    };
    if said.get("GNU.sparse.major").is_some() || said.get("GNU.sparse.map").is_some() {
        return Err(unreadable("it holds sparse files"));
    }
    let mut node = Node::new(name, kind);
    let header = entry.header();
    node.mode = header.mode().map_err(broken)? & 0o7777;
    (node.uid, node.gid) = said.owner(entry).map_err(broken)?;
    node.mtime = said.mtime(entry).map_err(broken)?;
    if let (Ok(Some(major)), Ok(Some(minor))) = (header.device_major(), header.device_minor()) {
        node.device = rustix::fs::makedev(major, minor);
    }
    if kind == NodeKind::Symlink {
        node.link_target = said.target(entry);
    }
    if kind == NodeKind::File {
        node.size = entry.size();
        node.links = 1;
    }
    for (name, value) in said.xattrs() {
        node.xattrs.push(Xattr { name: String::from_utf8_lossy(name).into_owned(), value: value.to_vec() });
    }
    node.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(node))
}

/// A part of a file as a file of its own.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    reader: FileReader,
    start: u64,
    length: u64,
    position: u64,
}

impl Section {
    /// The whole of a file.
    pub(crate) fn whole(reader: FileReader) -> Self {
        let length = reader.size();
        Self { reader, start: 0, length, position: 0 }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.length.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let most = buffer.len().min(rest);
        if most == 0 {
            return Ok(0);
        }
        self.reader.seek(SeekFrom::Start(self.start + self.position))?;
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the content is shorter than its entry says"));
        }
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
