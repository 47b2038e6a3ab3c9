//! What the snapshot says was removed, by directory.

use std::collections::{BTreeMap, HashSet};

use crate::removed::{Removal, Removed};

/// The removed list, ready to be asked per directory.
#[derive(Default)]
pub(crate) struct Lists {
    pub(crate) whiteouts: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    pub(crate) opaque: HashSet<Vec<u8>>,
}

impl Lists {
    pub(crate) fn new(list: Vec<Removed>) -> Self {
        let mut lists = Self::default();
        for entry in list {
            match entry.how {
                Removal::Opaque => drop(lists.opaque.insert(entry.path)),
                Removal::Whiteout => {
                    let at = entry.path.iter().rposition(|b| *b == b'/');
                    let (dir, name) =
                        at.map_or((&[][..], &entry.path[..]), |i| (&entry.path[..i], &entry.path[i + 1..]));
                    lists.whiteouts.entry(dir.to_vec()).or_default().push(name.to_vec());
                }
            }
        }
        lists
    }
}
