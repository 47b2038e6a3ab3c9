//! Removed lists: what an overlay's upper layer deletes from the layer below, kept beside the tree.
//!
//! Overlayfs marks a deletion with a character device 0/0 (a whiteout) and a directory that hides everything below it
//! with the extended attribute `trusted.overlay.opaque=y`. Neither belongs in a tree for people, and both would make
//! a real device or a file called `.wh.x` ambiguous. So a root captured with
//! [`Layout::OverlayUpper`](crate::Layout::OverlayUpper) gets a list in a file of the snapshot:
//!
//! - `/volumes/home` → `/removed/home`, `/system` → `/removed/system` (see [`list_path`]);
//! - each entry is a path relative to the root, raw bytes, ended by one zero byte; entries are sorted;
//! - `a/b` was deleted; `a/b/` (slash at the end) is an opaque directory that is in the tree as well; the root itself
//!   being opaque is the entry `/`;
//! - the file is there, empty, when nothing was removed: its presence says that the root is an overlay's upper layer.
//!
//! Attributes in `trusted.overlay.` with `index=off,redirect_dir=nofollow,metacopy=off`: `origin` (which lower file a
//! copy came from), `impure` (a directory holds such copies) and `uuid` (identity of the mount, on the root) are the
//! kernel's bookkeeping about one particular lower layer; they are not captured and the kernel does without them.
//! Anything else (`redirect`, `metacopy`, `whiteout(s)`, an opaque mark other than `y` …) changes what the
//! directory means in ways a tree cannot say: the archive fails with the path.

use crate::error::{Error, Result};

pub(crate) const PREFIX: &str = "trusted.overlay.";
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// What the entry of an upper layer's attribute means for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverlayMark {
    /// An attribute like any other.
    Ordinary,
    /// The directory hides the one below.
    Opaque,
    /// The kernel's bookkeeping.
    Bookkeeping,
    /// Something a snapshot cannot keep.
    Unknown,
}

pub(crate) fn classify(name: &str, value: &[u8]) -> OverlayMark {
    let Some(rest) = name.strip_prefix(PREFIX) else { return OverlayMark::Ordinary };
    match (rest, value) {
        ("opaque", b"y") => OverlayMark::Opaque,
        ("origin" | "impure" | "uuid", _) => OverlayMark::Bookkeeping,
        _ => OverlayMark::Unknown,
    }
}

/// The directory of a snapshot that holds its removed lists.
pub const LISTS: &str = "/removed";

/// Returns where the removed list of an overlay root is in the snapshot.
#[must_use]
pub fn list_path(at: &str) -> String {
    let name = at.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    format!("{LISTS}/{name}")
}

/// One entry of a removed list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Removed {
    /// The path relative to the root, without slashes at either end; empty for the root itself.
    pub path: Vec<u8>,
    /// What happened to it.
    pub how: Removal,
}

/// How something below was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Removal {
    /// It was deleted.
    Whiteout,
    /// It is a directory that shows nothing of the one below.
    Opaque,
}

/// Writes the list in its file form.
#[must_use]
pub fn encode(mut entries: Vec<Removed>) -> Vec<u8> {
    entries.sort_unstable();
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(&entry.path);
        if entry.how == Removal::Opaque {
            out.push(b'/');
        }
        out.push(0);
    }
    out
}

/// Reads a list and refuses paths that would leave the root.
///
/// # Errors
/// [`Error::InvalidContent`] for anything [`encode`] does not write.
pub fn decode(list: &[u8]) -> Result<Vec<Removed>> {
    let invalid = |reason: &str| Error::invalid("a removed list", reason);
    let Some((last, body)) = list.split_last() else { return Ok(Vec::new()) };
    if *last != 0 {
        return Err(invalid("the last path has no end"));
    }
    let mut entries = Vec::new();
    for entry in body.split(|b| *b == 0) {
        let (path, how) = match entry.strip_suffix(b"/") {
            Some(path) => (path, Removal::Opaque),
            None => (entry, Removal::Whiteout),
        };
        let is_root = path.is_empty() && how == Removal::Opaque;
        if !is_root {
            for name in path.split(|b| *b == b'/') {
                crate::node::check_name(name).map_err(invalid)?;
            }
        }
        entries.push(Removed { path: path.to_vec(), how });
    }
    Ok(entries)
}

/// The entries that concern one directory, relative to it. One that was deleted as a whole shows nothing of the one
/// below.
#[must_use]
pub fn below(list: Vec<Removed>, directory: &[u8]) -> Vec<Removed> {
    let relative = |entry: Removed| {
        let rest = entry.path.strip_prefix(directory)?;
        match rest.split_first() {
            None => Some(Removed { path: Vec::new(), how: Removal::Opaque }),
            Some((b'/', rest)) => Some(Removed { path: rest.to_vec(), how: entry.how }),
            Some(_) => None,
        }
    };
    list.into_iter().filter_map(relative).collect()
}

/// The same entries, relative to the directory that holds this one; the inverse of [`below`] for what is in the list.
#[must_use]
pub fn above(list: Vec<Removed>, directory: &[u8]) -> Vec<Removed> {
    let absolute = |entry: Removed| {
        let path = if entry.path.is_empty() { directory.to_vec() } else { [directory, b"/", &entry.path].concat() };
        Removed { path, how: entry.how }
    };
    list.into_iter().map(absolute).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_move_with_their_directory() {
        let entry = |path: &str, how| Removed { path: path.into(), how };
        let list = vec![
            entry("usr/a", Removal::Whiteout),
            entry("usr/b/c", Removal::Opaque),
            entry("usrlocal", Removal::Whiteout),
            entry("opt", Removal::Whiteout),
            entry("", Removal::Opaque),
        ];
        let usr = vec![entry("a", Removal::Whiteout), entry("b/c", Removal::Opaque)];
        assert_eq!(below(list.clone(), b"usr"), usr);
        assert_eq!(above(usr, b"usr"), list[..2]);
        // A deleted directory that becomes a root has to hide what is below.
        assert_eq!(below(list, b"opt"), [entry("", Removal::Opaque)]);
        assert_eq!(above(vec![entry("", Removal::Opaque)], b"usr"), [entry("usr", Removal::Opaque)]);
    }

    #[test]
    fn lists_round_trip_and_hostile_ones_are_refused() {
        let entries = vec![
            Removed { path: Vec::new(), how: Removal::Opaque },
            Removed { path: b"a/b".to_vec(), how: Removal::Whiteout },
            Removed { path: b"c\xff".to_vec(), how: Removal::Opaque },
        ];
        assert_eq!(decode(&encode(entries.clone())).expect("valid"), entries);
        assert_eq!(decode(b"").expect("empty"), vec![]);
        for bad in [&b"a"[..], b"\0", b"../x\0", b"/x\0", b"a//b\0", b"a/../b/\0", b"./\0"] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
        assert_eq!(list_path("/volumes/home"), "/removed/home");
        assert_eq!(list_path("/system"), "/removed/system");
    }
}
