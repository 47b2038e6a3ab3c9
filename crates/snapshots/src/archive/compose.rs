//! A tree of one snapshot with parts of others: only trees are read and written, no file's content.
//!
//! An upper layer is changed so that what its overlay shows is exchanged: at and below a chosen path it shows what the
//! other snapshot shows, everywhere else what it did. That a part comes from the lower layer, or is deleted from it, is
//! carried over, too. Directories above a chosen path are copied up from the lower layer, as the kernel would do it.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::layers::{Layers, Look, above, child, not_composable, split};
use super::{Shared, read};
use crate::error::Result;
use crate::graft::{Composition, Extra, Graft, With};
use crate::id::Id;
use crate::node::{Node, NodeKind, Time, encode_tree};
use crate::pack::Sealer;
use crate::removed::Removed;
use crate::wire::BlobKind;

/// A tree and its removed list, composed and saved.
pub(super) struct Composed {
    pub(super) node: Node,
    pub(super) removed: Vec<Removed>,
}

pub(super) fn compose(shared: &Shared<'_>, of: &Composition, time: Time, sealer: &mut Sealer) -> Result<Composed> {
    let base = Layers::load(shared.inner, of, of.base)?;
    let mut composer = Composer { shared, sealer, base, salt: of.salt, time, rekeyed: BTreeMap::new() };
    for Graft { path, with } in &of.grafts {
        shared.check()?;
        for name in path.split(|b| *b == b'/').filter(|_| !path.is_empty()) {
            crate::node::check_name(name).map_err(|reason| not_composable(path, reason))?;
        }
        match with {
            With::Nothing => composer.remove(path)?,
            With::Content(data) => composer.fill(path, data)?,
            With::Taken { snapshot, extra } => {
                let mut wanted = Layers::load(shared.inner, of, *snapshot)?;
                match extra {
                    Extra::Removed => composer.take(&mut wanted, path)?,
                    Extra::Kept => composer.merge(&mut wanted, path)?,
                }
            }
        }
    }
    composer.save()
}

struct Composer<'a, 's> {
    shared: &'a Shared<'s>,
    sealer: &'a mut Sealer,
    base: Layers<'a>,
    salt: [u8; 16],
    time: Time,
    /// Trees whose hard links got other keys, and what they became.
    rekeyed: BTreeMap<Id, Id>,
}

impl Composer<'_, '_> {
    /// Exchanges a path for what the other snapshot shows there.
    fn take(&mut self, wanted: &mut Layers<'_>, path: &[u8]) -> Result<()> {
        let want = wanted.look(path)?;
        let Some((directory, name)) = split(path) else {
            self.base.node = self.rekey(want.upper.unwrap_or_else(|| wanted.node.clone()))?;
            self.base.marks = wanted.marks.clone();
            self.base.open.clear();
            return Ok(());
        };
        if want.seen().is_none() {
            return self.remove(path);
        }
        let have = self.base.look(path).ok();
        if have.is_some_and(|have| have.upper.is_none() && have.lower.is_some() && want.upper.is_none()) {
            return Ok(());
        }
        self.make_parents(wanted, path)?;
        if want.lower.is_some() {
            self.expose(path)?;
        }
        let shows_below = self.shows_lower(path)?;
        self.clear(path)?;
        if let Some(upper) = want.upper {
            self.base.marks.extend(wanted.marks.below(path));
            let is_dir = upper.kind == NodeKind::Dir;
            let hidden = shows_below.is_some_and(|lower| lower.kind == NodeKind::Dir) && want.lower.is_none();
            if is_dir && (hidden || wanted.marks.opaque.contains(path)) {
                self.base.marks.opaque.insert(path.to_vec());
            }
            let node = Node { name: name.to_vec(), ..self.rekey(upper)? };
            self.directory(directory)?.insert(name.to_vec(), node);
        }
        Ok(())
    }

    /// Exchanges what the other snapshot has at and below a path, and leaves what it lacks.
    fn merge(&mut self, wanted: &mut Layers<'_>, path: &[u8]) -> Result<()> {
        let mut paths = vec![path.to_vec()];
        while let Some(path) = paths.pop() {
            self.shared.check()?;
            let want = wanted.look(&path)?;
            let have = self.base.look(&path).unwrap_or_default();
            if want.seen().is_none() {
                continue;
            }
            if !(want.is_dir() && have.is_dir()) {
                self.take(wanted, &path)?;
                continue;
            }
            if self.is_same(&have, wanted, &want, &path) {
                continue;
            }
            self.adopt(wanted, &want, &path)?;
            for name in wanted.names(&path, &want)? {
                let below = child(&path, &name);
                let its = wanted.look_in(&path, &want, &below, &name)?;
                if its.is_dir() {
                    paths.push(below);
                } else if !self.has_same(&below, &its) {
                    self.take(wanted, &below)?;
                }
            }
        }
        Ok(())
    }

    /// Whether this very entry is there already. One of several hard links is taken all the same: the others may differ.
    fn has_same(&mut self, path: &[u8], its: &Look) -> bool {
        let upper = its.upper.as_ref().filter(|node| node.link_key().is_none());
        upper.is_some() && self.base.look(path).is_ok_and(|have| have.upper.as_ref() == upper)
    }

    /// Whether two directories show the same for certain.
    fn is_same(&self, have: &Look, wanted: &Layers<'_>, want: &Look, path: &[u8]) -> bool {
        let opened = self.base.open.contains_key(path);
        let same_upper = match (&have.upper, &want.upper) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                !opened && Node { name: Vec::new(), ..a.clone() } == Node { name: Vec::new(), ..b.clone() }
            }
            _ => false,
        };
        same_upper && have.lower.is_some() == want.lower.is_some() && self.base.marks.is_same_below(&wanted.marks, path)
    }

    /// Gives a directory that both have the other's owner, mode, times and attributes.
    fn adopt(&mut self, wanted: &mut Layers<'_>, want: &Look, path: &[u8]) -> Result<()> {
        let Some(seen) = want.seen() else { return Ok(()) };
        let meta = |node: &Node| Node { name: node.name.clone(), subtree: node.subtree, ..seen.clone() };
        let Some((directory, name)) = split(path) else {
            self.base.node = meta(&self.base.node);
            return Ok(());
        };
        let have = self.base.look(path)?;
        if have.upper.is_none() && want.upper.is_none() {
            return Ok(());
        }
        self.make_parents(wanted, path)?;
        if have.upper.is_none() {
            self.copy_up(path, seen)?;
        }
        if let Some(node) = self.directory(directory)?.get_mut(name) {
            *node = meta(node);
        }
        Ok(())
    }

    /// Deletes what is at a path.
    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let Some(_) = split(path) else {
            return Err(not_composable(path, "is the root of a tree, which cannot go"));
        };
        let Ok(have) = self.base.look(path) else { return Ok(()) };
        if have.seen().is_none() {
            return Ok(());
        }
        self.copy_up_parents(path)?;
        let hides = self.shows_lower(path)?.is_some();
        self.clear(path)?;
        if hides {
            self.base.marks.whiteouts.insert(path.to_vec());
        }
        Ok(())
    }

    /// Gives a regular file of the tree another content.
    fn fill(&mut self, path: &[u8], data: &[u8]) -> Result<()> {
        let upper = self.base.look(path)?.upper.filter(|node| node.kind == NodeKind::File);
        let (Some(mut node), Some((directory, name))) = (upper, split(path)) else {
            return Err(not_composable(path, "is no regular file of the snapshot"));
        };
        node.content = read::save_bytes(self.shared, self.sealer, data)?;
        node.size = data.len() as u64;
        (node.mtime, node.ctime) = (self.time, self.time);
        // Other names of the inode keep what they had.
        (node.inode, node.device_id, node.links) = (0, 0, 1);
        self.directory(directory)?.insert(name.to_vec(), node);
        Ok(())
    }

    // ---- directories above ---------------------------------------------------------------------------------------

    /// Makes every directory above a path one of the tree: copied up, or like the other snapshot's where there is none.
    fn make_parents(&mut self, wanted: &mut Layers<'_>, path: &[u8]) -> Result<()> {
        for at in above(path).into_iter().skip(1) {
            let have = self.base.look(at)?;
            match (have.upper.is_some(), have.seen()) {
                (_, Some(seen)) if seen.kind != NodeKind::Dir => {
                    let reason = "is no directory now: choose it instead, or leave out what is below";
                    return Err(not_composable(at, reason));
                }
                (true, _) => {}
                (false, Some(lower)) => self.copy_up(at, &lower.clone())?,
                (false, None) => {
                    let want = wanted.look(at)?;
                    let like = want.seen().ok_or_else(|| not_composable(at, "is not in the snapshot"))?;
                    self.copy_up(at, &like.clone())?;
                    // It was deleted, with everything the lower layer has there.
                    self.base.marks.whiteouts.remove(at);
                    if self.shows_lower(at)?.is_some_and(|lower| lower.kind == NodeKind::Dir) {
                        self.base.marks.opaque.insert(at.to_vec());
                    }
                }
            }
        }
        Ok(())
    }

    /// The same where all of them are there.
    fn copy_up_parents(&mut self, path: &[u8]) -> Result<()> {
        for at in above(path).into_iter().skip(1) {
            let have = self.base.look(at)?;
            if let (None, Some(lower)) = (&have.upper, &have.lower) {
                self.copy_up(at, lower)?;
            }
        }
        Ok(())
    }

    /// Puts an empty directory with this one's metadata into the tree.
    fn copy_up(&mut self, path: &[u8], like: &Node) -> Result<()> {
        let Some((directory, name)) = split(path) else { return Ok(()) };
        let mut node = Node { name: name.to_vec(), subtree: None, content: Vec::new(), size: 0, ..like.clone() };
        (node.inode, node.device_id, node.links) = (0, 0, 0);
        self.directory(directory)?.insert(name.to_vec(), node);
        self.base.open.insert(path.to_vec(), super::layers::Entries::new());
        Ok(())
    }

    /// What the lower layer would show at a path if the tree had nothing there.
    fn shows_lower(&mut self, path: &[u8]) -> Result<Option<Node>> {
        let Some((directory, _)) = split(path) else { return Ok(None) };
        let parent = self.base.look(directory)?;
        Ok(parent.lower.filter(|lower| lower.kind == NodeKind::Dir).and_then(|_| self.base.lower_entry(path)))
    }

    /// Lets the lower layer show at a path whose directories hide it, and nothing else of it.
    fn expose(&mut self, path: &[u8]) -> Result<()> {
        let mut names = path.split(|b| *b == b'/');
        for at in above(path) {
            let Some(next) = names.next() else { break };
            if !self.base.marks.opaque.remove(at) {
                continue;
            }
            let own = self.directory(at)?.clone();
            for name in self.base.lower_names(at) {
                let below = child(at, &name);
                if below == path {
                    continue;
                }
                match own.get(&name) {
                    None => drop(self.base.marks.whiteouts.insert(below)),
                    // The next one on the way is opened in its turn.
                    Some(node) if node.kind == NodeKind::Dir => {
                        let both = self.base.lower_entry(&below).is_some_and(|lower| lower.kind == NodeKind::Dir);
                        if both {
                            self.base.marks.opaque.insert(below);
                        }
                    }
                    Some(_) => {}
                }
            }
            debug_assert!(own.contains_key(next) || child(at, next) == path, "parents are made before");
        }
        Ok(())
    }

    // ---- the tree ------------------------------------------------------------------------------------------------

    /// The entries of a directory that the tree has.
    fn directory(&mut self, path: &[u8]) -> Result<&mut super::layers::Entries> {
        let mut tree = self.base.node.subtree;
        for at in above(path).into_iter().chain([path]).skip(1) {
            let (directory, name) = split(at).unwrap_or_default();
            let node = self.base.entries(directory, tree)?.get(name).cloned();
            let node = node.filter(|node| node.kind == NodeKind::Dir);
            tree = node.ok_or_else(|| not_composable(at, "is no directory of the tree"))?.subtree;
        }
        self.base.entries(path, tree)
    }

    /// Takes the tree's entry at a path out, with everything below it and what is said of it.
    fn clear(&mut self, path: &[u8]) -> Result<()> {
        let Some((directory, name)) = split(path) else { return Ok(()) };
        self.directory(directory)?.remove(name);
        let below = [path, b"/"].concat();
        let opened = self.base.open.range(below.clone()..).map(|(at, _)| at).take_while(|at| at.starts_with(&below));
        for at in opened.cloned().collect::<Vec<_>>() {
            self.base.open.remove(&at);
        }
        self.base.open.remove(path);
        self.base.marks.clear(path);
        Ok(())
    }

    /// The same entry with keys of hard links that nothing of the base has.
    ///
    /// Files that were one inode in the other snapshot stay one. One of it and one of the base never become one,
    /// although the inode may have been the same: their contents differ.
    fn rekey(&mut self, mut node: Node) -> Result<Node> {
        if let Some(tree) = node.subtree {
            node.subtree = Some(self.rekey_tree(tree)?);
        }
        self.rekey_entry(&mut node);
        Ok(node)
    }

    fn rekey_entry(&self, node: &mut Node) {
        if node.link_key().is_some() {
            let key = [&self.salt[..], &node.device_id.to_be_bytes()].concat();
            let hash: [u8; 32] = Sha256::digest(key).into();
            node.device_id = hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        }
    }

    /// Without recursion: a tenant decides how deep a tree is.
    fn rekey_tree(&mut self, root: Id) -> Result<Id> {
        struct Frame {
            tree: Id,
            nodes: Vec<Node>,
            next: usize,
            changed: bool,
        }
        let enter = |shared: &Shared<'_>, tree: Id| -> Result<Frame> {
            shared.check()?;
            Ok(Frame { tree, nodes: shared.inner.load_tree(tree, "a chosen directory")?, next: 0, changed: false })
        };
        let mut stack = vec![enter(self.shared, root)?];
        loop {
            let Some(frame) = stack.last_mut() else { return Ok(root) };
            if let Some(node) = frame.nodes.get_mut(frame.next) {
                if let Some(tree) = node.subtree {
                    match self.rekeyed.get(&tree) {
                        None => {
                            stack.push(enter(self.shared, tree)?);
                            continue;
                        }
                        Some(became) => {
                            frame.changed |= *became != tree;
                            node.subtree = Some(*became);
                        }
                    }
                } else if node.link_key().is_some() {
                    self.rekey_entry(node);
                    frame.changed = true;
                }
                frame.next += 1;
                continue;
            }
            let Some(done) = stack.pop() else { return Ok(root) };
            let became = if done.changed {
                self.shared.uploader.save(self.sealer, BlobKind::Tree, &encode_tree(&done.nodes)?)?
            } else {
                done.tree
            };
            self.rekeyed.insert(done.tree, became);
            if stack.is_empty() {
                return Ok(became);
            }
        }
    }

    /// Writes every directory that was opened, the deepest first.
    fn save(mut self) -> Result<Composed> {
        let mut node = std::mem::replace(&mut self.base.node, Node::new(Vec::new(), NodeKind::Dir));
        if node.subtree.is_none() {
            // There was none: an empty one is made. Any other that was not looked into stays as it is saved.
            self.base.entries(b"", None)?;
        }
        let mut paths: Vec<Vec<u8>> = self.base.open.keys().cloned().collect();
        paths.sort_by_key(|path| std::cmp::Reverse(above(path).len()));
        for path in paths {
            let entries: Vec<Node> = self.base.open.remove(&path).unwrap_or_default().into_values().collect();
            let tree = self.shared.uploader.save(self.sealer, BlobKind::Tree, &encode_tree(&entries)?)?;
            let Some((directory, name)) = split(&path) else {
                node.subtree = Some(tree);
                continue;
            };
            if let Some(entry) = self.base.open.get_mut(directory).and_then(|entries| entries.get_mut(name)) {
                entry.subtree = Some(tree);
            }
        }
        Ok(Composed { node, removed: self.base.marks.list() })
    }
}
