//! From an archive to what a snapshot is made of.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use perennial_core::progress::Progress;
use perennial_core::snapshot::SnapshotVolume;
use perennial_core::spec::Backend;
use perennial_core::volume::{SYSTEM_NAME, Volume};
use perennial_snapshots::removed::{self, list_path};
use perennial_snapshots::{Id, Node, NodeKind, Repository, Root, Source, Time, TreeId, TreeWriter};

use super::layer::{self, Region};
use super::merge::{self, Base};
use super::reader::TarReader;
use super::tree::{self, Entry, Tree};
use super::{Broken, Devices, Limits, packing};
use crate::library::image::ImageTree;
use crate::library::view::View;

/// Opens the archive, from its beginning each time.
pub(crate) type Open<'a> = dyn Fn() -> std::io::Result<Box<dyn Read>> + 'a;

/// What entries get that an archive does not say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    /// The time of directories that it leaves out.
    pub(crate) time: Time,
    /// The device that names of one inode share; no other inode in the repository is on it.
    pub(crate) device: u64,
}

impl Marks {
    /// A directory that the archive leaves out and nobody knows.
    pub(crate) fn made_up(self) -> Node {
        Node { mode: 0o755, mtime: self.time, atime: self.time, ..Node::new(Vec::new(), NodeKind::Dir) }
    }
}

/// An archive to be composed.
pub(crate) struct Import<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) open: &'a Open<'a>,
    pub(crate) rules: (Devices, Limits),
    pub(crate) marks: Marks,
    pub(crate) image: (String, Arc<ImageTree>),
    pub(crate) progress: &'a Progress,
}

/// What the snapshot is made of.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) roots: Vec<Root>,
    pub(crate) backend: Backend,
    pub(crate) volumes: Vec<SnapshotVolume>,
    pub(crate) new_bytes: u64,
}

/// The node of an inode, with its content.
pub(crate) fn leaf(tree: &Tree, inode: usize, contents: &HashMap<usize, Vec<Id>>, marks: Marks) -> Node {
    let it = &tree.inodes()[inode];
    let mut node = it.node.clone();
    node.content = contents.get(&inode).cloned().unwrap_or_default();
    node.links = it.names;
    if it.names > 1 {
        node.inode = inode as u64 + 1;
        node.device_id = marks.device;
    }
    node
}

/// A volume as a snapshot's row has it.
pub(crate) fn row(volume: &Volume) -> SnapshotVolume {
    SnapshotVolume { name: volume.name.clone(), mount_path: volume.mount_path.clone(), files: None, bytes: None }
}

impl Import<'_> {
    fn read(&self) -> Result<TarReader<Box<dyn Read>>, Broken> {
        let packed = (self.open)().map_err(Broken::Io)?;
        let watched = Watched { input: packed, progress: self.progress.clone() };
        Ok(TarReader::new(packing::unpacked(watched).map_err(Broken::Io)?, self.rules.1))
    }

    /// The whole of a pod that has these volumes.
    pub(crate) fn whole(&self, volumes: &[Volume], keeps_layer: bool) -> Result<Made, Broken> {
        let image = &*self.image.1;
        let tree = Tree::read(&mut self.read()?, &[], self.rules, &mut |names, member, content| {
            if keeps_layer { layer::is_of_image((image, volumes), names, member, content) } else { Ok(None) }
        })?;
        let division = layer::divide(&tree, volumes, image)?;
        let persists = |number: usize| match division.regions[number] {
            Region::Nowhere => false,
            Region::System => keeps_layer && division.kept[number],
            Region::Volume(_) => true,
        };
        let mut wanted = HashMap::new();
        for number in 0..tree.len() {
            if let Entry::Leaf(inode) = tree.entry(number)
                && persists(number as usize)
            {
                wanted.insert(tree.inodes()[*inode].member, *inode);
            }
        }
        self.expect(&tree, &wanted);
        let written = self.repository.write_trees::<_, Broken>(self.progress, |writer| {
            let contents = self.contents(writer, &wanted)?;
            let mut stored: Vec<Option<Node>> = vec![None; tree.len() as usize];
            let empty = writer.directory(&[])?;
            // What is in a directory comes after it, so from the end everything is known when it is needed.
            for number in (0..tree.len()).rev() {
                let Entry::Dir(dir) = tree.entry(number) else { continue };
                let region = division.regions[number as usize];
                let mut nodes = Vec::new();
                for (name, child) in &dir.children {
                    let at = *child as usize;
                    let elsewhere = division.regions[at] != region;
                    // A volume within a volume leaves its place there; the system layer has nothing to say of it.
                    if !persists(at) || (elsewhere && !matches!(region, Region::Volume(_))) {
                        continue;
                    }
                    let node = match tree.entry(*child) {
                        Entry::Leaf(inode) => leaf(&tree, *inode, &contents, self.marks),
                        Entry::Dir(_) => {
                            let node =
                                stored[at].clone().ok_or_else(|| Broken::refused("a directory was not stored"))?;
                            if elsewhere { Node { subtree: Some(empty), ..node } } else { node }
                        }
                    };
                    nodes.push(Node { name: name.clone(), ..node });
                }
                let node = match &dir.node {
                    Some(said) => (**said).clone(),
                    None => division.image_node(image, number).unwrap_or_else(|| self.marks.made_up()),
                };
                stored[number as usize] = Some(Node { subtree: Some(writer.directory(&nodes)?), ..node });
            }
            let mut tops = Vec::new();
            for (at, number) in division.mounts.iter().enumerate() {
                let node =
                    stored[*number as usize].clone().ok_or_else(|| Broken::refused("a volume was not stored"))?;
                tops.push(Node { name: format!("v{at:06}").into_bytes(), ..node });
            }
            if let Some(system) = stored[0].clone().filter(|_| keeps_layer) {
                tops.insert(0, Node { name: SYSTEM_NAME.into(), ..system });
            }
            Ok(writer.top(&tops)?)
        })?;
        let passed = |at: String, path: String| Root { at, source: Source::Passed { tree: written.value, path } };
        let mut roots: Vec<Root> = (volumes.iter().enumerate())
            .map(|(at, volume)| passed(format!("/volumes/{}", volume.name), format!("/v{at:06}")))
            .collect();
        if keeps_layer {
            let at = format!("/{SYSTEM_NAME}");
            let list = removed::encode(division.removed.clone());
            roots.push(Root { at: list_path(&at), source: Source::Bytes { data: list, mode: 0o600 } });
            roots.push(passed(at.clone(), at));
        }
        let volumes = volumes.iter().map(row).collect();
        Ok(Made { roots, backend: Backend::Engine, volumes, new_bytes: written.new_bytes })
    }

    /// Below a path, everything else being as in the base.
    pub(crate) fn below(
        &self,
        at: &[Vec<u8>],
        (base, volumes): (TreeId, &[SnapshotVolume]),
        backend: Backend,
    ) -> Result<Made, Broken> {
        let tree = Tree::read(&mut self.read()?, at, self.rules, &mut tree::unknown)?;
        let image = Some((self.image.0.clone(), Arc::clone(&self.image.1)));
        let view = View::of_tree(self.repository.clone(), base, volumes, image)?;
        let mut wanted = HashMap::new();
        for (number, inode) in tree.inodes().iter().enumerate().filter(|(_, inode)| inode.names > 0) {
            wanted.insert(inode.member, number);
        }
        self.expect(&tree, &wanted);
        let written = self.repository.write_trees::<_, Broken>(self.progress, |writer| {
            let contents = self.contents(writer, &wanted)?;
            let base = Base { repository: self.repository, tree: base, volumes, view: &view };
            merge::merge(&base, &tree, &contents, self.marks, writer)
        })?;
        let volumes = volumes.iter().map(|v| SnapshotVolume { files: None, bytes: None, ..v.clone() }).collect();
        Ok(Made { roots: written.value, backend, volumes, new_bytes: written.new_bytes })
    }

    /// A base in which nothing of these volumes and of the system layer was changed.
    pub(crate) fn unchanged(&self, volumes: &[Volume], keeps_layer: bool) -> Result<TreeId, Broken> {
        let image = &self.image.1;
        let written = self.repository.write_trees::<_, Broken>(self.progress, |writer| {
            let empty = writer.directory(&[])?;
            let directory = |name: &str, node: Node| Node { name: name.into(), subtree: Some(empty), ..node };
            let list = |name: &str| Node { mode: 0o600, ..Node::new(name, NodeKind::File) };
            let (mut trees, mut lists) = (Vec::new(), Vec::new());
            for volume in volumes {
                let found = layer::names(&volume.mount_path)
                    .into_iter()
                    .try_fold(image.root(), |at, name| image.child(at, name));
                let node = found.map(|entry| image.node(entry)).filter(|node| node.kind == NodeKind::Dir);
                trees.push(directory(&volume.name, node.cloned().unwrap_or_else(|| self.marks.made_up())));
                lists.push(list(&volume.name));
            }
            if keeps_layer {
                lists.push(list(SYSTEM_NAME));
            }
            trees.sort_by(|a, b| a.name.cmp(&b.name));
            lists.sort_by(|a, b| a.name.cmp(&b.name));
            let above =
                |name: &str, subtree| Node { name: name.into(), subtree: Some(subtree), ..self.marks.made_up() };
            let mut top = vec![above("removed", writer.directory(&lists)?)];
            if keeps_layer {
                top.push(directory(SYSTEM_NAME, self.marks.made_up()));
            }
            top.push(above("volumes", writer.directory(&trees)?));
            Ok(writer.top(&top)?)
        })?;
        Ok(written.value)
    }

    /// Tells how much there is to store.
    fn expect(&self, tree: &Tree, wanted: &HashMap<u64, usize>) {
        self.progress.set_total(wanted.values().map(|inode| tree.inodes()[*inode].node.size).sum());
    }

    /// Stores the contents of these entries, by their numbers in the archive; returns them by inode.
    fn contents(
        &self,
        writer: &mut TreeWriter<'_>,
        wanted: &HashMap<u64, usize>,
    ) -> Result<HashMap<usize, Vec<Id>>, Broken> {
        let mut contents = HashMap::new();
        let mut reader = self.read()?;
        let mut number = 0;
        while let Some(member) = reader.next()? {
            if let Some(inode) = wanted.get(&number)
                && member.size > 0
            {
                contents.insert(*inode, writer.file(&mut reader.content(), member.size)?);
            }
            number += 1;
        }
        Ok(contents)
    }
}

/// Stops for a cancellation, wherever in an archive that is.
struct Watched<R> {
    input: R,
    progress: Progress,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.progress.check().map_err(|c| {
            std::io::Error::new(std::io::ErrorKind::ConnectionAborted, perennial_snapshots::Error::from(c))
        })?;
        self.input.read(buffer)
    }
}
