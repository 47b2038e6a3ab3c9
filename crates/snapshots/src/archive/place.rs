//! Where roots are in a snapshot: the directories above them, which exist only there.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::id::Id;
use crate::node::{Node, NodeKind, Time, encode_tree};
use crate::pack::Sealer;
use crate::request::Counts;
use crate::uploader::Uploader;
use crate::wire::BlobKind;

pub(super) fn made_up(mut node: Node, time: Time) -> Node {
    node.mtime = time;
    node.atime = time;
    node.ctime = time;
    node
}

/// The directories above the roots, which exist only in the snapshot.
#[derive(Default)]
pub(super) struct Virtual(BTreeMap<Vec<u8>, Place>);

enum Place {
    Dir(Virtual),
    Root(Box<Node>, Counts),
}

impl Virtual {
    /// Puts a root's node into its place and returns its counts.
    pub(super) fn place(&mut self, at: &str, mut node: Node, counts: Option<Counts>) -> Result<Counts> {
        let conflict = || Error::InvalidRequest(format!("two roots meet at {at}"));
        let counts = counts.unwrap_or_else(|| {
            let mut counts = Counts::default();
            counts.add(node.kind, node.size);
            counts
        });
        let mut parts: Vec<&[u8]> = at.as_bytes().split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
        let name = parts.pop().ok_or_else(conflict)?;
        let mut dir = self;
        for part in parts {
            match dir.0.entry(part.to_vec()).or_insert_with(|| Place::Dir(Self::default())) {
                Place::Dir(next) => dir = next,
                Place::Root(..) => return Err(conflict()),
            }
        }
        if dir.0.contains_key(name) {
            return Err(conflict());
        }
        node.name = name.to_vec();
        dir.0.insert(name.to_vec(), Place::Root(Box::new(node), counts));
        Ok(counts)
    }

    pub(super) fn save(self, uploader: &Uploader<'_>, sealer: &mut Sealer, time: Time) -> Result<(Id, Counts)> {
        let mut total = Counts { dirs: 1, ..Counts::default() };
        let mut nodes = Vec::new();
        for (name, place) in self.0 {
            match place {
                Place::Root(node, counts) => {
                    total.merge(counts);
                    nodes.push(*node);
                }
                Place::Dir(dir) => {
                    let (tree, counts) = dir.save(uploader, sealer, time)?;
                    total.merge(counts);
                    let mut node = made_up(Node::new(name, NodeKind::Dir), time);
                    node.mode = 0o755;
                    node.subtree = Some(tree);
                    nodes.push(node);
                }
            }
        }
        Ok((uploader.save(sealer, BlobKind::Tree, &encode_tree(&nodes)?)?, total))
    }
}
