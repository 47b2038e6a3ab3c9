//! A snapshot as its pod would see it: the image's tree below, the changes above, volumes where they are mounted.
//!
//! ```text
//! /               the image, changed by /system of the snapshot, without what /removed/system names
//! <mount path>    an overlay volume: the image's directory, changed by /volumes/<name>, without /removed/<name>
//!                 one of the engine's own volumes: /volumes/<name> as it is
//! /tmp, /run …    never in a snapshot, and shown empty
//! ```
//! Without the image only what the snapshot itself holds is left: the changes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use perennial_core::snapshot::SnapshotVolume;
use perennial_core::volume::{NEVER_PERSISTED, SYSTEM_NAME};
use perennial_snapshots::removed::{self, Removal};
use perennial_snapshots::{Error as RepositoryError, Node, NodeKind, Repository, SnapshotFileId, TreeId};

use super::failure::Failure;
use super::image::{ImageEntry, ImageTree, Section};

/// Where an entry comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The pod never changed it.
    Image,
    /// This volume.
    Volume(Arc<str>),
    /// The system layer.
    System,
}

/// An entry as the pod sees it.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is.
    pub node: Node,
    /// Where it comes from; a directory that the pod changed comes from where the changes are.
    pub origin: Origin,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Directory(Box<Directory>),
    Stored,
    Image(ImageEntry),
}

/// A directory that may be put together from several.
#[derive(Debug, Clone)]
struct Directory {
    /// Where the pod sees it, without a slash at the end.
    path: Vec<u8>,
    /// Which root it belongs to.
    root: usize,
    /// Its path in that root.
    below: Vec<u8>,
    upper: Option<Node>,
    lower: Option<ImageEntry>,
}

/// One of the trees of a snapshot.
#[derive(Debug)]
struct Root {
    origin: Origin,
    /// Where the pod sees it, without a slash at the end.
    mount: Vec<u8>,
    tree: Option<Node>,
    /// What it removes from the image; `None` for a tree that is whole.
    removed: Option<Removals>,
}

/// A removed list, ready to be asked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Removals {
    whiteouts: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
}

/// A snapshot, ready to be looked at.
#[derive(Debug)]
pub struct View {
    repository: Repository,
    image: Option<(String, Arc<ImageTree>)>,
    /// The system layer first.
    roots: Vec<Root>,
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// The node of a directory that only has to be there.
fn made_up(name: &[u8]) -> Node {
    let mut node = Node::new(name, NodeKind::Dir);
    node.mode = 0o755;
    node
}

fn absent<T>(result: Result<T, RepositoryError>) -> Result<Option<T>, RepositoryError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(RepositoryError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn removals(repository: &Repository, tree: TreeId, at: &str) -> Result<Option<Removals>, Failure> {
    let Some(file) = absent(repository.entry(tree, removed::list_path(at).as_bytes()))? else { return Ok(None) };
    let mut list = Vec::new();
    let mut reader = repository.open_file(&file)?;
    std::io::Read::read_to_end(&mut reader, &mut list)
        .map_err(|e| Failure::of_io(e, |e| Failure::WrongKind { problem: format!("a removed list: {e}"), hint: "" }))?;
    let mut removals = Removals::default();
    for entry in removed::decode(&list)? {
        match entry.how {
            Removal::Whiteout => removals.whiteouts.insert(entry.path),
            Removal::Opaque => removals.opaque.insert(entry.path),
        };
    }
    Ok(Some(removals))
}

impl View {
    /// Opens a snapshot of these volumes. Without an image only the changes are seen.
    pub(super) fn open(
        repository: Repository,
        snapshot: SnapshotFileId,
        volumes: &[SnapshotVolume],
        image: Option<(String, Arc<ImageTree>)>,
    ) -> Result<Self, Failure> {
        let tree = repository.snapshot(snapshot)?.tree;
        Self::of_tree(repository, tree, volumes, image)
    }

    /// The same for the tree of a snapshot, which there need not be yet.
    pub(crate) fn of_tree(
        repository: Repository,
        tree: TreeId,
        volumes: &[SnapshotVolume],
        image: Option<(String, Arc<ImageTree>)>,
    ) -> Result<Self, Failure> {
        // A volume of this name, which none gets any more, has its list where the layer's would be.
        let is_of_layer = volumes.iter().all(|volume| volume.name != SYSTEM_NAME);
        let of_layer = if is_of_layer { removals(&repository, tree, "/system")? } else { None };
        let mut roots = vec![Root {
            origin: Origin::System,
            mount: Vec::new(),
            tree: absent(repository.entry(tree, b"/system"))?,
            removed: Some(of_layer.unwrap_or_default()),
        }];
        for volume in volumes {
            let at = format!("/volumes/{}", volume.name);
            roots.push(Root {
                origin: Origin::Volume(volume.name.as_str().into()),
                mount: volume.mount_path.trim_end_matches('/').as_bytes().to_vec(),
                tree: Some(repository.entry(tree, at.as_bytes())?),
                removed: removals(&repository, tree, &at)?,
            });
        }
        Ok(Self { repository, image, roots })
    }

    /// Opens a snapshot that need not be of a pod: its tree as it is.
    pub(crate) fn plain(repository: Repository, snapshot: SnapshotFileId) -> Result<Self, Failure> {
        let tree = repository.entry(repository.snapshot(snapshot)?.tree, b"/")?;
        let removed = Some(Removals::default());
        let roots = vec![Root { origin: Origin::System, mount: Vec::new(), tree: Some(tree), removed }];
        Ok(Self { repository, image: None, roots })
    }

    /// The pod's root directory.
    pub(crate) fn root_directory(&self) -> Found {
        self.root(0, Vec::new(), b"")
    }

    /// Finds the entry at a path that [`super::PodPath`] has checked.
    pub fn find(&self, path: &super::PodPath) -> Result<Found, Failure> {
        let mut found = self.root(0, Vec::new(), b"");
        let mut walked: Vec<u8> = Vec::new();
        for name in path.names() {
            let Place::Directory(directory) = &found.place else {
                let shown = String::from_utf8_lossy(&walked).into_owned();
                let instead = match found.node.kind {
                    NodeKind::Symlink => {
                        format!("{shown} is a link to {}", String::from_utf8_lossy(&found.node.link_target))
                    }
                    _ => format!("{shown} is no directory"),
                };
                return Err(Failure::NotFound { path: path.to_string(), instead });
            };
            let mut entries = self.entries(directory)?;
            let missing = || Failure::NotFound { path: path.to_string(), instead: String::new() };
            found = entries.remove(name).ok_or_else(missing)?;
            walked = [&walked[..], b"/", name].concat();
        }
        Ok(found)
    }

    /// The entries of a directory, sorted by name.
    pub fn list(&self, directory: &Found) -> Result<Vec<Found>, Failure> {
        match &directory.place {
            Place::Directory(directory) => Ok(self.entries(directory)?.into_values().collect()),
            _ => Err(Failure::WrongKind { problem: "is no directory".to_owned(), hint: "name a directory" }),
        }
    }

    /// A regular file's content.
    pub(super) fn open_file(&self, file: &Found) -> Result<Section, Failure> {
        match (&file.place, &self.image) {
            (Place::Image(entry), Some((_, image))) if file.node.kind == NodeKind::File => Ok(image.open(*entry)),
            _ if file.node.kind == NodeKind::File => Ok(Section::whole(self.repository.open_file(&file.node)?)),
            _ => Err(Failure::WrongKind {
                problem: "is no regular file".to_owned(),
                hint: "download a directory as an archive: GET …/archive, or perennial snapshot export",
            }),
        }
    }

    /// The root of a tree where it is mounted.
    fn root(&self, root: usize, path: Vec<u8>, name: &[u8]) -> Found {
        let it = &self.roots[root];
        let overlaid = it.removed.as_ref().is_some_and(|r| !r.opaque.contains(&b""[..]));
        let lower = self.image.as_ref().filter(|_| overlaid).and_then(|(_, image)| directory_of(image, &path));
        let below = lower.and_then(|lower| Some(self.image.as_ref()?.1.node(lower).clone()));
        let origin = if it.tree.is_none() && below.is_some() { Origin::Image } else { it.origin.clone() };
        // The system layer's own root is made up by the capture; the image knows the owner and mode of `/`.
        let node = if root == 0 { below.or_else(|| it.tree.clone()) } else { it.tree.clone() };
        let node = Node { name: name.to_vec(), ..node.unwrap_or_else(|| made_up(name)) };
        let directory = Directory { path, root, below: Vec::new(), upper: it.tree.clone(), lower };
        Found { node, origin, place: Place::Directory(Box::new(directory)) }
    }

    fn entries(&self, directory: &Directory) -> Result<BTreeMap<Vec<u8>, Found>, Failure> {
        let root = &self.roots[directory.root];
        let mut entries: BTreeMap<Vec<u8>, Found> = BTreeMap::new();
        let place = |name: &[u8], upper, lower| {
            Place::Directory(Box::new(Directory {
                path: [&directory.path[..], b"/", name].concat(),
                root: directory.root,
                below: join(&directory.below, name),
                upper,
                lower,
            }))
        };
        if let (Some(lower), Some((_, image))) = (directory.lower, &self.image) {
            for (name, child) in image.children(lower) {
                let removed =
                    root.removed.as_ref().is_some_and(|r| r.whiteouts.contains(&join(&directory.below, name)));
                if removed {
                    continue;
                }
                let node = image.node(child).clone();
                let place = match node.kind {
                    NodeKind::Dir => place(name, None, Some(child).filter(|_| !is_never_kept(directory, name))),
                    _ => Place::Image(child),
                };
                entries.insert(name.to_vec(), Found { node, origin: Origin::Image, place });
            }
        }
        if let Some(upper) = &directory.upper {
            for node in self.repository.entries(upper)? {
                let place = match node.kind {
                    NodeKind::Dir => {
                        let below = join(&directory.below, &node.name);
                        let hides = root.removed.as_ref().is_some_and(|r| r.opaque.contains(&below));
                        let lower = match entries.get(&node.name).map(|e| &e.place) {
                            Some(Place::Directory(lower)) if !hides => lower.lower,
                            _ => None,
                        };
                        place(&node.name, Some(node.clone()), lower)
                    }
                    _ => Place::Stored,
                };
                entries.insert(node.name.clone(), Found { node, origin: root.origin.clone(), place });
            }
        }
        for (number, mounted) in self.roots.iter().enumerate().skip(1) {
            let rest = mounted.mount.strip_prefix(&directory.path[..]).and_then(|rest| rest.strip_prefix(b"/"));
            let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { continue };
            let name = rest.split(|b| *b == b'/').next().unwrap_or(rest);
            if name.len() == rest.len() {
                entries.insert(name.to_vec(), self.root(number, mounted.mount.clone(), name));
            } else if !matches!(entries.get(name).map(|e| &e.place), Some(Place::Directory(_))) {
                // The engine makes the directories on the way to a mount.
                let found = Found { node: made_up(name), origin: root.origin.clone(), place: place(name, None, None) };
                entries.insert(name.to_vec(), found);
            }
        }
        Ok(entries)
    }
}

/// What two snapshots have in common, told without reading.
impl View {
    fn is_same_lower(&self, entry: Option<ImageEntry>, other: &Self, its: Option<ImageEntry>) -> bool {
        let image = |view: &Self| view.image.as_ref().map(|(id, _)| id.clone());
        match (entry, its) {
            (None, None) => true,
            (Some(a), Some(b)) => a == b && image(self) == image(other),
            _ => false,
        }
    }

    /// Whether two regular files of the same size have the same content for certain.
    pub(super) fn is_same_content(&self, file: &Found, other: &Self, its: &Found) -> bool {
        match (&file.place, &its.place) {
            (Place::Image(a), Place::Image(b)) => self.is_same_lower(Some(*a), other, Some(*b)),
            (Place::Stored, Place::Stored) => file.node.content == its.node.content,
            // Nothing can be said without reading, unless there is nothing to read.
            _ => file.node.size == 0,
        }
    }

    /// Whether two directories are put together from the same trees, so that nothing below them differs.
    pub(super) fn is_same_directory(&self, directory: &Found, other: &Self, its: &Found) -> bool {
        let (Place::Directory(a), Place::Directory(b)) = (&directory.place, &its.place) else { return false };
        let subtree = |d: &Directory| d.upper.as_ref().and_then(|n| n.subtree);
        self.holds_no_mount(&a.path)
            && other.holds_no_mount(&b.path)
            && subtree(a) == subtree(b)
            && self.is_same_lower(a.lower, other, b.lower)
            // What is removed matters only where there is something to remove it from.
            && (a.lower.is_none() || self.roots[a.root].removed == other.roots[b.root].removed)
            && a.below == b.below
    }

    fn holds_no_mount(&self, path: &[u8]) -> bool {
        let holds = |mount: &[u8]| mount.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        !self.roots.iter().skip(1).any(|root| holds(&root.mount))
    }
}

/// Whether nothing of this directory is ever in a snapshot: the pod sees an empty one of the engine's there.
fn is_never_kept(directory: &Directory, name: &[u8]) -> bool {
    directory.path.is_empty() && NEVER_PERSISTED.iter().any(|n| n.as_bytes() == name)
}

/// A directory of the image at a path; no link is followed, as none is by the engine.
fn directory_of(image: &ImageTree, path: &[u8]) -> Option<ImageEntry> {
    let mut at = image.root();
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
        at = image.child(at, name)?;
    }
    (image.node(at).kind == NodeKind::Dir).then_some(at)
}
