//! A whole pod out of an archive: what is its volumes', and what of the rest differs from the image.
//!
//! A volume's tree is kept whole, as on the engine's own volumes: a restore to overlay volumes compares it with the image
//! by itself. What lies outside volumes is the system layer, which is always changes against the image: an entry stays out
//! when the image has the same (type, content, owner, mode, time, attributes), names of one inode stay out together or
//! not at all, and what the image has and the archive lacks is a removal. Top-level directories that never persist are
//! passed over, in the archive as in the image.

use std::io::Read;

use perennial_core::volume::{NEVER_PERSISTED, Volume};
use perennial_snapshots::removed::{Removal, Removed};
use perennial_snapshots::{Node, NodeKind};

use super::Broken;
use super::reader::Member;
use super::tree::{Entry, Number, Tree, same_xattrs};
use crate::library::image::{ImageEntry, ImageTree};

/// What an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    /// The system layer.
    System,
    /// The volume at this place of the list.
    Volume(usize),
    /// Nothing that persists.
    Nowhere,
}

/// A tree, divided.
#[derive(Debug)]
pub(crate) struct Division {
    /// What each entry belongs to; a volume's own directory belongs to the volume.
    pub(crate) regions: Vec<Region>,
    /// Which entries differ from the image; of volumes all.
    pub(crate) kept: Vec<bool>,
    /// What the image has outside volumes and the archive lacks.
    pub(crate) removed: Vec<Removed>,
    /// Where the volumes' directories are, in the order of the list.
    pub(crate) mounts: Vec<Number>,
    lower: Vec<Option<ImageEntry>>,
}

impl Division {
    /// What the image has of a directory, whatever it belongs to; the archive may leave it out.
    pub(crate) fn image_node(&self, image: &ImageTree, number: Number) -> Option<Node> {
        let node = image.node((*self.lower.get(number as usize)?)?);
        Some(Node { name: Vec::new(), ..node.clone() })
    }
}

/// The names of an absolute path.
pub(crate) fn names(path: &str) -> Vec<&[u8]> {
    path.split('/').filter(|n| !n.is_empty()).map(str::as_bytes).collect()
}

/// Where a path leads in the image; no link is followed.
fn in_image(image: &ImageTree, names: &[Vec<u8>]) -> Option<ImageEntry> {
    names.iter().try_fold(image.root(), |at, name| image.child(at, name))
}

fn never(name: &[u8]) -> bool {
    NEVER_PERSISTED.iter().any(|n| n.as_bytes() == name)
}

/// The image's file at this path, when it is the same but for names. Reads both contents where nothing else differs.
pub(crate) fn is_of_image(
    (image, volumes): (&ImageTree, &[Volume]),
    path: &[Vec<u8>],
    member: &Member,
    content: &mut dyn Read,
) -> Result<Option<ImageEntry>, Broken> {
    let below = |volume: &Volume| {
        let mount = names(&volume.mount_path);
        mount.len() <= path.len() && mount.iter().zip(path).all(|(a, b)| *a == b.as_slice())
    };
    if path.first().is_none_or(|top| never(top)) || volumes.iter().any(below) {
        return Ok(None);
    }
    let Some(entry) = in_image(image, path) else { return Ok(None) };
    let node = image.node(entry);
    let same = node.kind == NodeKind::File
        && (node.size, node.mode, node.uid, node.gid, node.mtime)
            == (member.size, member.mode, member.uid, member.gid, member.mtime)
        && same_xattrs(&node.xattrs, &member.xattrs);
    if !same {
        return Ok(None);
    }
    let (mut theirs, mut a, mut b) = (image.open(entry), vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let got =
            content.read(&mut a).map_err(|e| Broken::refused(format!("the archive is damaged or cut short: {e}")))?;
        if got == 0 {
            return Ok(Some(entry));
        }
        theirs.read_exact(&mut b[..got]).map_err(Broken::Io)?;
        if a[..got] != b[..got] {
            return Ok(None);
        }
    }
}

fn same_metadata(a: &Node, b: &Node) -> bool {
    (a.uid, a.gid, a.mtime) == (b.uid, b.gid, b.mtime)
        && (a.kind == NodeKind::Symlink || a.mode == b.mode)
        && same_xattrs(&a.xattrs, &b.xattrs)
}

/// The refusal of an archive that lacks a volume: taken for a whole pod, it would empty it.
pub(crate) fn incomplete(volume: &Volume) -> Broken {
    Broken::refused(format!("the archive has no directory {}, so it is not of a whole pod", volume.mount_path))
        .hint("say where it belongs, and all else stays as it was: into=/home/me, or --into /home/me")
}

/// Divides a tree between these volumes and the system layer.
pub(crate) fn divide(tree: &Tree, volumes: &[Volume], image: &ImageTree) -> Result<Division, Broken> {
    let mut mounts = Vec::new();
    for volume in volumes {
        let found = tree.find_directory(&names(&volume.mount_path));
        mounts.push(found.ok_or_else(|| incomplete(volume))?);
    }
    let count = tree.len() as usize;
    let mut walk = Walk {
        tree,
        image,
        mounts: &mounts,
        parents: vec![(0, &[]); count],
        lower: vec![None; count],
        regions: vec![Region::Nowhere; count],
        kept: vec![false; count],
        removed: Vec::new(),
        groups: vec![Group::default(); tree.inodes().len()],
    };
    walk.run();
    let Walk { regions, kept, removed, lower, .. } = walk;
    Ok(Division { regions, kept, removed, mounts, lower })
}

/// Names of one inode.
#[derive(Debug, Clone, Default)]
struct Group {
    names: Vec<Number>,
    /// The inode in the image that the first of them is.
    lower: Option<Option<(u64, u64)>>,
    differs: bool,
}

struct Walk<'a> {
    tree: &'a Tree,
    image: &'a ImageTree,
    mounts: &'a [Number],
    parents: Vec<(Number, &'a [u8])>,
    /// The directory of the image that a directory lies above, in volumes as well.
    lower: Vec<Option<ImageEntry>>,
    regions: Vec<Region>,
    kept: Vec<bool>,
    removed: Vec<Removed>,
    groups: Vec<Group>,
}

impl<'a> Walk<'a> {
    fn run(&mut self) {
        self.regions[0] = Region::System;
        self.lower[0] = Some(self.image.root());
        self.keep(0);
        // A directory comes before what is in it.
        for number in 0..self.tree.len() {
            if let Entry::Dir(dir) = self.tree.entry(number) {
                for (name, child) in &dir.children {
                    self.parents[*child as usize] = (number, name);
                    self.enter(number, name, *child);
                }
                self.find_removed(number);
            }
        }
        for group in std::mem::take(&mut self.groups) {
            if group.differs {
                group.names.into_iter().for_each(|name| self.keep(name));
            }
        }
    }

    fn enter(&mut self, parent: Number, name: &[u8], child: Number) {
        let region = match (self.mounts.iter().position(|m| *m == child), self.regions[parent as usize]) {
            (Some(volume), _) => Region::Volume(volume),
            (None, Region::System) if parent == 0 && never(name) => Region::Nowhere,
            (None, region) => region,
        };
        self.regions[child as usize] = region;
        if let Entry::Dir(_) = self.tree.entry(child) {
            let below = self.lower[parent as usize].and_then(|lower| self.image.child(lower, name));
            self.lower[child as usize] = below.filter(|entry| self.image.node(*entry).kind == NodeKind::Dir);
        }
        match region {
            Region::Volume(_) => self.kept[child as usize] = true,
            Region::Nowhere => {}
            Region::System => self.compare(parent, name, child),
        }
    }

    fn compare(&mut self, parent: Number, name: &[u8], child: Number) {
        let below = self.lower[parent as usize].and_then(|lower| self.image.child(lower, name));
        let node = below.map(|entry| self.image.node(entry));
        match self.tree.entry(child) {
            Entry::Dir(dir) => {
                let is_dir = self.lower[child as usize].is_some();
                let same = match (&dir.node, node) {
                    (Some(ours), Some(theirs)) => is_dir && same_metadata(ours, theirs),
                    // The archive says nothing of it, so it is what the image has.
                    (None, Some(_)) => is_dir,
                    (_, None) => false,
                };
                if !same {
                    self.keep(child);
                }
            }
            Entry::Leaf(inode) => {
                let it = &self.tree.inodes()[*inode];
                let same = node.is_some_and(|theirs| {
                    theirs.kind == it.node.kind
                        && same_metadata(&it.node, theirs)
                        && match it.node.kind {
                            NodeKind::File => it.known.is_some_and(|known| self.is_one_file(known, below)),
                            NodeKind::Symlink => theirs.link_target == it.node.link_target,
                            NodeKind::CharDevice | NodeKind::BlockDevice => theirs.device == it.node.device,
                            _ => true,
                        }
                });
                if it.names == 1 {
                    if !same {
                        self.keep(child);
                    }
                    return;
                }
                let lower = node.and_then(Node::link_key);
                let group = &mut self.groups[*inode];
                let first = *group.lower.get_or_insert(lower);
                // The content of one name alone was compared: the others have to be the very same inode.
                group.differs |= !same || lower.is_none() || first != lower;
                group.names.push(child);
            }
        }
    }

    /// Whether a name of the image stands for the file whose content was compared.
    fn is_one_file(&self, known: ImageEntry, other: Option<ImageEntry>) -> bool {
        let key = |entry: ImageEntry| self.image.node(entry).link_key();
        other.is_some_and(|other| known == other || key(known).is_some_and(|k| key(other) == Some(k)))
    }

    fn find_removed(&mut self, number: Number) {
        let (Region::System, Some(lower)) = (self.regions[number as usize], self.lower[number as usize]) else {
            return;
        };
        let Entry::Dir(dir) = self.tree.entry(number) else { return };
        let path = self.path(number);
        let gone: Vec<Vec<u8>> = (self.image.children(lower))
            .filter(|(name, _)| !(dir.children.contains_key(*name) || number == 0 && never(name)))
            .map(|(name, _)| if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() })
            .collect();
        if !gone.is_empty() {
            self.keep(number);
            self.removed.extend(gone.into_iter().map(|path| Removed { path, how: Removal::Whiteout }));
        }
    }

    fn path(&self, mut number: Number) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        while number != 0 {
            let (parent, name) = self.parents[number as usize];
            names.push(name);
            number = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Marks an entry and the directories above it.
    fn keep(&mut self, mut number: Number) {
        while !std::mem::replace(&mut self.kept[number as usize], true) {
            number = self.parents[number as usize].0;
        }
    }
}
