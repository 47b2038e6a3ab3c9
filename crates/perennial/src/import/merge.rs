//! An archive below a path of a pod, everything else being as in a snapshot.
//!
//! Entries are added or take the place of those of the same name and kind; nothing goes. Where the snapshot holds changes
//! against the image, the same is done to the changes: directories that only the image has get into them with the image's
//! own metadata, and one that takes the place of what the pod had deleted hides what the image has there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use perennial_core::snapshot::SnapshotVolume;
use perennial_core::volume::{NEVER_PERSISTED, SYSTEM_NAME};
use perennial_snapshots::removed::{self, Removal, Removed};
use perennial_snapshots::{Error, Id, Node, NodeKind, Repository, Root, Source, TreeId, TreeWriter};

use super::Broken;
use super::compose::{Marks, leaf};
use super::layer::names;
use super::tree::{Entry, Number, Tree};
use crate::library::view::{Found, View};

/// What stays as it is.
pub(crate) struct Base<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) tree: TreeId,
    pub(crate) volumes: &'a [SnapshotVolume],
    /// The same as its pod sees it, with the image.
    pub(crate) view: &'a View,
}

/// One of the trees of the base.
struct Target {
    /// Where it is in a snapshot.
    at: String,
    mount: Vec<Vec<u8>>,
    node: Option<Node>,
    /// What it removes from the image; `None` for a whole tree.
    removed: Option<BTreeMap<Vec<u8>, Removal>>,
    touched: bool,
}

/// A directory being put together.
struct Frame {
    node: Node,
    /// The directory as the pod sees it now.
    found: BTreeMap<Vec<u8>, Found>,
    /// What is stored of it.
    entries: BTreeMap<Vec<u8>, Node>,
    target: usize,
    children: std::vec::IntoIter<(Vec<u8>, Number)>,
    /// Whether it becomes an entry of the frame below; otherwise it is its target's own directory, or only on the way to one.
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Entry,
    Target,
    /// The directory above a volume has nothing to say itself.
    Way,
}

fn stored<T>(result: Result<T, Error>) -> Result<Option<T>, Broken> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Puts a tree into the base; what the new snapshot is made of is returned.
pub(crate) fn merge(
    base: &Base<'_>,
    tree: &Tree,
    contents: &HashMap<usize, Vec<Id>>,
    marks: Marks,
    writer: &mut TreeWriter<'_>,
) -> Result<Vec<Root>, Broken> {
    let mut merge = Merge { base, tree, contents, marks, targets: targets(base)? };
    merge.run(writer)?;
    let mut nodes = Vec::new();
    let mut lists = Vec::new();
    for target in merge.targets.iter().filter(|t| t.touched) {
        let name = names(&target.at).concat();
        let node = target.node.clone().ok_or_else(|| Broken::refused("a directory was not made"))?;
        nodes.push(Node { name, ..node });
        if let Some(removed) = &target.removed {
            let entries = removed.iter().map(|(path, how)| Removed { path: path.clone(), how: *how }).collect();
            lists.push((removed::list_path(&target.at), removed::encode(entries)));
        }
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let top = writer.top(&nodes)?;
    let mut roots = Vec::new();
    for target in &merge.targets {
        let list = removed::list_path(&target.at);
        let (passed, name) = if target.touched {
            (top, format!("/{}", String::from_utf8_lossy(&names(&target.at).concat())))
        } else {
            (base.tree, target.at.clone())
        };
        if target.node.is_some() {
            roots.push(Root { at: target.at.clone(), source: Source::Passed { tree: passed, path: name } });
        }
        match lists.iter().find(|(path, _)| *path == list) {
            Some((_, data)) => roots.push(Root { at: list, source: Source::Bytes { data: data.clone(), mode: 0o600 } }),
            None if target.removed.is_some() => {
                roots.push(Root { at: list.clone(), source: Source::Passed { tree: base.tree, path: list } });
            }
            None => {}
        }
    }
    Ok(roots)
}

fn targets(base: &Base<'_>) -> Result<Vec<Target>, Broken> {
    let mut targets = Vec::new();
    let system = std::iter::once((format!("/{SYSTEM_NAME}"), "/"));
    let volumes = base.volumes.iter().map(|v| (format!("/volumes/{}", v.name), v.mount_path.as_str()));
    for (at, mount) in system.chain(volumes) {
        let node = stored(base.repository.entry(base.tree, at.as_bytes()))?;
        let removed = match stored(base.repository.entry(base.tree, removed::list_path(&at).as_bytes()))? {
            None => None,
            Some(file) => {
                let mut list = Vec::new();
                std::io::Read::read_to_end(&mut base.repository.open_file(&file)?, &mut list).map_err(Broken::Io)?;
                Some(removed::decode(&list)?.into_iter().map(|r| (r.path, r.how)).collect())
            }
        };
        let mount = names(mount).into_iter().map(<[u8]>::to_vec).collect();
        targets.push(Target { at, mount, node, removed, touched: false });
    }
    Ok(targets)
}

struct Merge<'a> {
    base: &'a Base<'a>,
    tree: &'a Tree,
    contents: &'a HashMap<usize, Vec<Id>>,
    marks: Marks,
    targets: Vec<Target>,
}

impl Merge<'_> {
    fn run(&mut self, writer: &mut TreeWriter<'_>) -> Result<(), Broken> {
        // Directories that lead to a volume and hold nothing else are not the system layer's business.
        let ways = self.ways();
        let root = self.base.view.root_directory();
        // The way to the frame on top. There is one for all frames: one in each would be the square of a deep tree's depth.
        let mut path: Vec<Vec<u8>> = Vec::new();
        let mut stack = vec![self.frame(0, &path, (0, None), Some(root), &ways)?];
        while let Some(frame) = stack.last_mut() {
            if let Some((name, child)) = frame.children.next() {
                let (found, entry) = (frame.found.get(&name).cloned(), self.tree.entry(child));
                let shown = || path.iter().chain([&name]).map(Vec::as_slice).collect::<Vec<_>>().join(&b'/');
                if path.is_empty() && NEVER_PERSISTED.iter().any(|n| n.as_bytes() == name) {
                    return Err(Broken::entry(&shown(), "nothing below this directory is ever kept"));
                }
                let is_here =
                    |t: &Target| t.mount.split_last().is_some_and(|(last, way)| *last == name && *way == path[..]);
                let mounted = self.targets.iter().position(is_here);
                match entry {
                    Entry::Dir(_) => {
                        if let Some(other) = found.as_ref().filter(|f| f.node.kind != NodeKind::Dir) {
                            let what = match other.node.kind {
                                NodeKind::Symlink => "the pod has a link there, and the archive a directory",
                                _ => "the pod has something else than a directory there",
                            };
                            return Err(Broken::entry(&shown(), what));
                        }
                        let stored = frame.entries.get(&name).cloned();
                        let place = mounted.map_or((frame.target, stored), |target| (target, None));
                        path.push(name);
                        let next = self.frame(child, &path, place, found, &ways)?;
                        stack.push(next);
                    }
                    Entry::Leaf(inode) => {
                        if mounted.is_some() || found.is_some_and(|f| f.node.kind == NodeKind::Dir) {
                            return Err(Broken::entry(&shown(), "the pod has a directory there, and the archive none"));
                        }
                        let target = &mut self.targets[frame.target];
                        if let Some(removed) = &mut target.removed {
                            removed.remove(&below(path.get(target.mount.len()..).unwrap_or_default(), &name));
                        }
                        let node = leaf(self.tree, *inode, self.contents, self.marks);
                        frame.entries.insert(name.clone(), Node { name, ..node });
                    }
                }
                continue;
            }
            let Some(frame) = stack.pop() else { break };
            path.pop();
            if frame.end == End::Way {
                continue;
            }
            let entries: Vec<Node> = frame.entries.into_values().collect();
            let node = Node { subtree: Some(writer.directory(&entries)?), ..frame.node };
            match (frame.end, stack.last_mut()) {
                (End::Entry, Some(parent)) => {
                    parent.entries.insert(node.name.clone(), node);
                }
                _ => {
                    let target = &mut self.targets[frame.target];
                    target.node = Some(node);
                    target.touched = true;
                }
            }
        }
        Ok(())
    }

    /// Directories of the tree that are only on the way to volumes, and say nothing of themselves.
    fn ways(&self) -> HashSet<Number> {
        let mut only = HashSet::new();
        let prefixes: BTreeSet<&[Vec<u8>]> =
            self.targets.iter().flat_map(|t| (0..t.mount.len()).map(|n| &t.mount[..n])).collect();
        let mounts: BTreeSet<&[Vec<u8>]> = self.targets.iter().skip(1).map(|t| &t.mount[..]).collect();
        // The longest first: a directory is only a way when everything in it is one, or a volume.
        for prefix in prefixes.into_iter().rev() {
            let names: Vec<&[u8]> = prefix.iter().map(Vec::as_slice).collect();
            let Some(number) = self.tree.find_directory(&names) else { continue };
            let Entry::Dir(dir) = self.tree.entry(number) else { continue };
            let leads = |(name, child): (&Vec<u8>, &Number)| {
                let path: Vec<Vec<u8>> = prefix.iter().cloned().chain([name.clone()]).collect();
                mounts.contains(&path[..]) || only.contains(child)
            };
            if dir.node.is_none() && dir.children.iter().all(leads) && !dir.children.is_empty() {
                only.insert(number);
            }
        }
        only
    }

    fn frame(
        &mut self,
        number: Number,
        path: &[Vec<u8>],
        (target, stored): (usize, Option<Node>),
        found: Option<Found>,
        ways: &HashSet<Number>,
    ) -> Result<Frame, Broken> {
        let Entry::Dir(dir) = self.tree.entry(number) else { return Err(Broken::refused("a file is no directory")) };
        let repository = self.base.repository;
        let it = &mut self.targets[target];
        let below = path.get(it.mount.len()..).unwrap_or_default();
        let is_root = below.is_empty();
        let end = match (ways.contains(&number), is_root) {
            (true, _) => End::Way,
            (false, true) => End::Target,
            (false, false) => End::Entry,
        };
        if end != End::Way && it.node.is_none() && target == 0 {
            return Err(Broken::entry(
                &path.join(&b'/'),
                "it is in no volume of the pod, and nothing else of it is kept",
            ));
        }
        let upper = match end {
            End::Way => None,
            End::Target => it.node.clone(),
            End::Entry => stored,
        };
        let upper = upper.filter(|n| n.kind == NodeKind::Dir);
        let name = path.last().cloned().unwrap_or_default();
        let seen = found.as_ref().map(|f| f.node.clone());
        let node = match (&dir.node, &upper, seen) {
            (Some(said), ..) => (**said).clone(),
            // The system layer's own root is made up by captures.
            (None, Some(upper), _) if is_root => upper.clone(),
            (None, _, Some(seen)) => seen,
            (None, Some(upper), None) => upper.clone(),
            (None, None, None) => self.marks.made_up(),
        };
        let node = Node { name, content: Vec::new(), subtree: None, ..node };
        // What the pod had deleted does not shine through what takes its place.
        if let Some(how @ Removal::Whiteout) =
            it.removed.as_mut().and_then(|removed| removed.get_mut(&below.join(&b'/')))
        {
            *how = Removal::Opaque;
        }
        let entries = match &upper {
            Some(upper) => repository.entries(upper)?.into_iter().map(|n| (n.name.clone(), n)).collect(),
            None => BTreeMap::new(),
        };
        let found = match &found {
            Some(found) => self.base.view.list(found)?.into_iter().map(|f| (f.node.name.clone(), f)).collect(),
            None => BTreeMap::new(),
        };
        let children: Vec<(Vec<u8>, Number)> = dir.children.iter().map(|(n, c)| (n.clone(), *c)).collect();
        Ok(Frame { node, found, entries, target, children: children.into_iter(), end })
    }
}

fn below(way: &[Vec<u8>], name: &[u8]) -> Vec<u8> {
    way.iter().map(Vec::as_slice).chain([name]).collect::<Vec<_>>().join(&b'/')
}
