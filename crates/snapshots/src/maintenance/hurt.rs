//! Which snapshots suffer from damage, and which of their files.
//!
//! Snapshots share most of their trees. One that was found whole, with everything below it, is not looked at again; a
//! problem counts for every snapshot that has it.

use std::collections::HashSet;

use perennial_core::progress::Progress;

use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::Found;
use crate::node::{Node, NodeKind};
use crate::verify::plain_length;

/// How trees are read and blobs of data are found.
pub(super) type Source<'a> = (&'a dyn Fn(Id, &str) -> Result<Vec<Node>>, &'a dyn Fn(Id) -> Option<Found>);

/// Looks through snapshots, one after the other.
#[derive(Default)]
pub(super) struct Walk {
    whole: HashSet<Id>,
}

enum Step {
    Enter(Id, String),
    /// Everything below was looked at; so many problems were known before.
    Leave(Id, u64),
}

impl Walk {
    /// Looks at everything a snapshot needs; `note` is told of each problem and may end it all.
    ///
    /// # Errors
    /// What `note` makes of a problem; cancellation.
    pub(super) fn snapshot(
        &mut self,
        (load, find): Source<'_>,
        tree: Id,
        progress: &Progress,
        note: &mut dyn FnMut(Error) -> Result<()>,
    ) -> Result<()> {
        let mut problems = 0_u64;
        let mut steps = vec![Step::Enter(tree, String::new())];
        let mut note = |problems: &mut u64, error| {
            *problems += 1;
            note(error)
        };
        while let Some(step) = steps.pop() {
            progress.check()?;
            let (tree, path) = match step {
                Step::Enter(tree, _) if self.whole.contains(&tree) => continue,
                Step::Enter(tree, path) => (tree, path),
                Step::Leave(tree, before) => {
                    if before == problems {
                        self.whole.insert(tree);
                    }
                    continue;
                }
            };
            steps.push(Step::Leave(tree, problems));
            let nodes = match load(tree, &format!("directory {path}/")) {
                Ok(nodes) => nodes,
                Err(error) => {
                    note(&mut problems, error)?;
                    continue;
                }
            };
            for node in nodes {
                let at = || format!("{path}/{}", String::from_utf8_lossy(&node.name));
                if let Some(subtree) = node.subtree {
                    steps.push(Step::Enter(subtree, at()));
                    continue;
                }
                let mut size = 0;
                let mut missing = false;
                for blob in &node.content {
                    match find(*blob) {
                        Some(found) => size += plain_length(&found.blob),
                        None => {
                            missing = true;
                            note(&mut problems, Error::MissingBlob { blob: *blob, needed_by: at() })?;
                        }
                    }
                }
                if node.kind == NodeKind::File && !missing && size != node.size {
                    let what = format!("bytes of {}", at());
                    note(&mut problems, Error::Mismatch { what, expected: node.size, found: size })?;
                }
            }
        }
        Ok(())
    }
}
