//! The tree that an archive describes, in memory, and the rules that an archive has to keep.
//!
//! Names are entries of maps here and nothing else. Still an archive that would mean something else to whoever unpacks it
//! is refused, not bent: absolute names and `..`, names that go through a link or a file, hard links to what the archive
//! does not have, one name for things of two kinds, devices that were not asked for. A second entry of the same kind
//! replaces the first, as in every tar. A hard link to a symbolic link is another name of the link, never of its target:
//! trees copied with `cp -al` are full of them.

use std::collections::BTreeMap;
use std::io::Read;

use perennial_snapshots::{Node, NodeKind, Xattr};

use super::reader::{Member, TarReader, What};
use super::{Broken, Devices, Limits, attributes};
use crate::library::image::ImageEntry;

/// The longest name, as every file system has it.
const NAME_MAX: usize = 255;
/// The longest path, in bytes, as the system has it: deeper trees exist, but nobody can name what is in them.
const PATH_MAX: usize = 4096;
/// The most directories that are in one another. Whatever walks a tree keeps something for each of them.
const LEVELS_MAX: usize = 1024;
/// The longest target of a symbolic link, as the system has it.
const TARGET_MAX: usize = 4095;
/// Bytes of names, targets and attributes.
const TEXT_MAX: usize = 512 << 20;

/// An entry of the tree, by its place in the order in which entries came: a directory comes before what is in it.
pub(crate) type Number = u32;

/// All entries.
#[derive(Debug)]
pub(crate) struct Tree {
    entries: Vec<Entry>,
    inodes: Vec<Inode>,
    text: usize,
    limits: Limits,
}

/// One name.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A directory.
    Dir(Dir),
    /// Everything else, by its inode.
    Leaf(usize),
}

/// A directory.
#[derive(Debug, Default)]
pub(crate) struct Dir {
    /// What it is; `None` when the archive only has what is in it.
    pub(crate) node: Option<Box<Node>>,
    /// Its entries, sorted.
    pub(crate) children: BTreeMap<Vec<u8>, Number>,
}

/// What one or more names stand for.
#[derive(Debug)]
pub(crate) struct Inode {
    /// Without a name; a regular file's content comes later.
    pub(crate) node: Node,
    /// Names that it has.
    pub(crate) names: u64,
    /// Which entry of the archive holds its content.
    pub(crate) member: u64,
    /// What [`Look`] said of its content. Of the image's other files nothing is proven, whatever names this has.
    pub(crate) known: Option<ImageEntry>,
}

/// Looks at a regular file's content while it comes by; tells which file of the image is the same.
pub(crate) type Look<'a> = dyn FnMut(&[Vec<u8>], &Member, &mut dyn Read) -> Result<Option<ImageEntry>, Broken> + 'a;

impl Tree {
    /// Reads an archive to its end. It belongs below `at`, a path without a slash.
    pub(crate) fn read<R: Read>(
        reader: &mut TarReader<R>,
        at: &[Vec<u8>],
        (devices, limits): (Devices, Limits),
        look: &mut Look<'_>,
    ) -> Result<Self, Broken> {
        let root = Entry::Dir(Dir::default());
        let mut tree = Self { entries: vec![root], inodes: Vec::new(), text: 0, limits };
        tree.directory(at, b"")?;
        let mut member_number = 0;
        let mut empty = true;
        while let Some(member) = reader.next()? {
            empty = false;
            let mut names = at.to_vec();
            names.extend(names_of(&member.path)?);
            if names.len() > LEVELS_MAX {
                return Err(Broken::entry(&member.path, format!("it is below more than {LEVELS_MAX} directories")));
            }
            let known = match member.what {
                What::Node(NodeKind::File) => look(&names, &member, &mut reader.content())?,
                _ => None,
            };
            tree.add(&names, at, member, (member_number, known), devices)?;
            member_number += 1;
        }
        if empty {
            return Err(Broken::refused("the archive is empty"));
        }
        Ok(tree)
    }

    /// The entry of this number.
    pub(crate) fn entry(&self, number: Number) -> &Entry {
        &self.entries[number as usize]
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> Number {
        // Checked when they were added.
        Number::try_from(self.entries.len()).unwrap_or(Number::MAX)
    }

    /// All inodes.
    pub(crate) fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// Finds a directory by the names on the way.
    pub(crate) fn find_directory(&self, names: &[&[u8]]) -> Option<Number> {
        let mut at = 0;
        for name in names {
            let Entry::Dir(dir) = self.entry(at) else { return None };
            at = *dir.children.get(*name)?;
        }
        matches!(self.entry(at), Entry::Dir(_)).then_some(at)
    }

    fn add(
        &mut self,
        names: &[Vec<u8>],
        at: &[Vec<u8>],
        member: Member,
        (number, known): (u64, Option<ImageEntry>),
        devices: Devices,
    ) -> Result<(), Broken> {
        let path = member.path.clone();
        let refuse = |problem: String| Broken::entry(&path, problem);
        self.count_text(attributes::cost(&member.xattrs) + member.target.len())?;
        let What::Node(kind) = member.what else {
            return self.link(names, at, &member);
        };
        let node = node_of(kind, member, devices)?;
        if kind == NodeKind::Dir {
            let number = self.directory(names, &path)?;
            if let Entry::Dir(dir) = &mut self.entries[number as usize] {
                dir.node = Some(Box::new(node));
            }
            return Ok(());
        }
        let Some((name, parents)) = names.split_last() else {
            return Err(refuse("it stands for the directory that the archive is of, and is none".to_owned()));
        };
        let parent = self.directory(parents, &path)?;
        let inode = self.inodes.len();
        self.inodes.push(Inode { node, names: 0, member: number, known });
        self.put(parent, name, inode, &path)
    }

    fn link(&mut self, names: &[Vec<u8>], at: &[Vec<u8>], member: &Member) -> Result<(), Broken> {
        let path = &member.path;
        let refuse = |problem: &str| Broken::entry(path, problem);
        let mut to = at.to_vec();
        to.extend(names_of(&member.target).map_err(|_| refuse("its hard link leads out of the archive"))?);
        let mut found = 0;
        for name in &to {
            let Entry::Dir(dir) = self.entry(found) else {
                return Err(refuse("its hard link leads through something that is no directory"));
            };
            found = *dir
                .children
                .get(name)
                .ok_or_else(|| refuse("its hard link leads to what the archive does not have before it"))?;
        }
        let Entry::Leaf(inode) = *self.entry(found) else {
            return Err(refuse("its hard link leads to a directory"));
        };
        let Some((name, parents)) = names.split_last() else {
            return Err(refuse("it stands for the directory that the archive is of, and is a link"));
        };
        let parent = self.directory(parents, path)?;
        self.put(parent, name, inode, path)
    }

    /// Gives an inode a name.
    fn put(&mut self, parent: Number, name: &[u8], inode: usize, path: &[u8]) -> Result<(), Broken> {
        let old = match self.entry(parent) {
            Entry::Dir(dir) => dir.children.get(name).copied(),
            Entry::Leaf(_) => None,
        };
        let kind = self.inodes[inode].node.kind;
        self.inodes[inode].names += 1;
        let Some(old) = old else {
            return self.push(parent, name, Entry::Leaf(inode)).map(drop);
        };
        let before = match *self.entry(old) {
            Entry::Dir(_) => NodeKind::Dir,
            Entry::Leaf(old) => {
                self.inodes[old].names -= 1;
                self.inodes[old].node.kind
            }
        };
        if before != kind {
            return Err(Broken::entry(path, "the archive has this name twice, for things of two kinds"));
        }
        self.entries[old as usize] = Entry::Leaf(inode);
        Ok(())
    }

    /// The directory of these names, made when the archive has not told of it.
    fn directory(&mut self, names: &[Vec<u8>], path: &[u8]) -> Result<Number, Broken> {
        let mut at = 0;
        for name in names {
            let Entry::Dir(dir) = self.entry(at) else { return Err(Broken::entry(path, "it is below no directory")) };
            at = match dir.children.get(name).copied() {
                Some(number) => number,
                None => self.push(at, name, Entry::Dir(Dir::default()))?,
            };
            if let Entry::Leaf(inode) = *self.entry(at) {
                let what = match self.inodes[inode].node.kind {
                    NodeKind::Symlink => "its name goes through a link of the archive",
                    _ => "the archive has a part of its name twice, for things of two kinds",
                };
                return Err(Broken::entry(path, what));
            }
        }
        Ok(at)
    }

    fn push(&mut self, parent: Number, name: &[u8], entry: Entry) -> Result<Number, Broken> {
        self.count_text(name.len())?;
        let number = Number::try_from(self.entries.len()).ok();
        let number = number.filter(|n| u64::from(*n) <= self.limits.entries).ok_or_else(|| {
            Broken::refused(format!(
                "the archive has more than {} entries, directories counted in",
                self.limits.entries
            ))
            .hint("the server takes as many as imports.max_entries of its configuration says")
        })?;
        self.entries.push(entry);
        if let Entry::Dir(dir) = &mut self.entries[parent as usize] {
            dir.children.insert(name.to_vec(), number);
        }
        Ok(number)
    }

    fn count_text(&mut self, bytes: usize) -> Result<(), Broken> {
        self.text = self.text.saturating_add(bytes);
        if self.text > TEXT_MAX {
            return Err(Broken::refused("the names and attributes of the archive are too large"));
        }
        Ok(())
    }
}

/// The names on the way to an entry; what could mean anything else is refused.
pub(crate) fn names_of(path: &[u8]) -> Result<Vec<Vec<u8>>, Broken> {
    let refuse = |problem: &str| Err(Broken::entry(path, problem));
    if path.is_empty() {
        return refuse("an entry has no name");
    }
    if path.first() == Some(&b'/') {
        return Err(Broken::entry(path, "its name is absolute")
            .hint("pack with names relative to one directory: tar -C / -c ."));
    }
    if path.contains(&0) {
        return refuse("its name contains a zero byte");
    }
    if path.len() > PATH_MAX {
        return refuse("its name is too long");
    }
    let names: Vec<Vec<u8>> =
        path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").map(<[u8]>::to_vec).collect();
    if names.iter().any(|n| n == b"..") {
        return refuse("its name leads out of the archive");
    }
    if names.iter().any(|n| n.len() > NAME_MAX) {
        return refuse("a part of its name is longer than 255 bytes");
    }
    Ok(names)
}

fn node_of(kind: NodeKind, member: Member, devices: Devices) -> Result<Node, Broken> {
    let refuse = |problem: &str| Err(Broken::entry(&member.path, problem));
    let mut node = Node::new(Vec::new(), kind);
    if matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice) {
        if devices == Devices::Refused {
            return Err(Broken::entry(&member.path, "it is a device")
                .hint("leave it out, or allow devices: allowDevices=true, or --allow-devices"));
        }
        if member.device == (0, 0) && kind == NodeKind::CharDevice {
            return refuse("the device 0/0 marks a deletion on overlay volumes, and cannot be kept");
        }
        node.device = rustix::fs::makedev(member.device.0, member.device.1);
    }
    if kind == NodeKind::Symlink {
        if member.target.is_empty() || member.target.len() > TARGET_MAX || member.target.contains(&0) {
            return refuse("no link can have its target");
        }
        node.link_target = member.target;
    }
    // A link's own mode is always this, whatever an archive says.
    node.mode = if kind == NodeKind::Symlink { 0o777 } else { member.mode };
    (node.uid, node.gid, node.mtime, node.atime) = (member.uid, member.gid, member.mtime, member.mtime);
    node.size = member.size;
    node.xattrs = member.xattrs;
    Ok(node)
}

/// Nothing is known of any content.
pub(crate) fn unknown(_: &[Vec<u8>], _: &Member, _: &mut dyn Read) -> Result<Option<ImageEntry>, Broken> {
    Ok(None)
}

/// The attributes of two entries, whatever their order.
pub(crate) fn same_xattrs(a: &[Xattr], b: &[Xattr]) -> bool {
    a.len() == b.len() && a.iter().all(|x| b.contains(x))
}
