//! What callers ask for and what they get back.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::graft::Composition;
use crate::id::{Id, SnapshotFileId, TreeId};
use crate::node::{NodeKind, Time};

/// What to capture, and how it is to be called.
#[derive(Debug, Clone)]
pub struct ArchiveRequest {
    /// The snapshot's time; also the times of the directories made up above the roots.
    pub time: Timestamp,
    /// The snapshot's host.
    pub hostname: String,
    /// The snapshot's tags. A comma in one would be two to restic and is refused.
    pub tags: Vec<String>,
    /// Trees to compare with: a file that is unchanged in any of them is not read again. Trees that are not (or no
    /// longer) complete in the repository are left out of the comparison.
    pub parents: Vec<Parent>,
    /// What to capture and where it goes. Roots do not lie inside each other.
    pub roots: Vec<Root>,
    /// Whether this makes a snapshot.
    pub pass: Pass,
    /// Losses that somebody agreed to beforehand; any other keeps the snapshot from being written.
    pub accept_losses: Vec<Loss>,
}

/// A tree to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The tree that an earlier pass returned.
    Tree(TreeId),
    /// The tree of a snapshot.
    Snapshot(SnapshotFileId),
}

/// One thing to capture.
#[derive(Debug, Clone)]
pub struct Root {
    /// Where it goes in the snapshot: an absolute slash path such as `/volumes/home`. Parents are made.
    pub at: String,
    /// What goes there.
    pub source: Source,
}

/// Where the bytes of a [`Root`] come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory and everything below it on the same mount.
    Directory {
        /// The directory. Its last component must not be a symbolic link.
        path: PathBuf,
        /// Whether the directory is the upper layer of an overlay.
        layout: Layout,
        /// Paths relative to the directory that are left out, with everything below them.
        exclude: Vec<PathBuf>,
    },
    /// What a snapshot of the same repository holds: nothing is read or stored again.
    Stored {
        /// The snapshot.
        snapshot: SnapshotFileId,
        /// A file or directory in it.
        path: String,
    },
    /// A directory of a snapshot of the same repository with other entries: nothing is read or stored again.
    Rearranged {
        /// The snapshot.
        snapshot: SnapshotFileId,
        /// The directory; an empty one of root's when the snapshot has none there.
        directory: String,
        /// Names in it that are left out.
        omit: Vec<String>,
        /// Names that it gets instead or in addition, each with what it becomes: a path in the snapshot.
        add: Vec<(String, String)>,
    },
    /// A tree of a snapshot of the same repository with parts of others: no file is read or stored again.
    Composed(Composition),
    /// What an earlier pass stored: nothing is read or stored again.
    Passed {
        /// The tree that the pass returned.
        tree: TreeId,
        /// A file or directory in it.
        path: String,
    },
    /// A small file that exists only in the snapshot and is written when every directory was read: it may tell of that.
    Late {
        /// Its content.
        data: Late,
        /// Its permission bits.
        mode: u32,
    },
    /// A small file that exists only in the snapshot.
    Bytes {
        /// Its content.
        data: Vec<u8>,
        /// Its permission bits.
        mode: u32,
    },
}

/// Bytes that are asked for when they are written.
#[derive(Clone)]
pub struct Late(Arc<dyn Fn() -> Vec<u8> + Send + Sync>);

impl Late {
    /// What this returns then.
    pub fn new(data: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self(Arc::new(data))
    }

    pub(crate) fn now(&self) -> Vec<u8> {
        (self.0)()
    }
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Late")
    }
}

/// What the entries of a source directory mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Everything is what it looks like.
    Plain,
    /// The upper layer of an overlayfs: whiteouts and opaque marks leave the tree and are listed beside it, see
    /// [`removed`](crate::removed).
    OverlayUpper,
}

/// Whether a pass makes a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// While writers run: stores blobs, so that the final pass has little left to do. Files that change while they
    /// are read are fine.
    Live,
    /// Makes the snapshot, complete or not at all.
    Commit,
    /// Complete or not at all like [`Commit`](Self::Commit), but leaves the snapshot to another pass, which takes this
    /// one's tree in as [`Source::Passed`].
    Detached,
}

/// One entry that a pass could not capture faithfully.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Loss {
    /// The path in the snapshot.
    pub path: PathBuf,
    /// What happened.
    pub reason: LossReason,
}

/// Why an entry is missing from a snapshot or in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// It could not be opened or read; the error number of the system.
    Unreadable(i32),
    /// It was listed and then gone (or had become something else).
    Vanished,
    /// It changed each time it was read; the snapshot would hold a mixture.
    Changed,
    /// Something is mounted there.
    Mount,
    /// It is a subvolume of its own, which the copy that was read does not have.
    Subvolume,
    /// It is larger than the format's lists of blobs can reasonably say (16 TiB), holes included.
    TooLarge,
    /// An attribute's name is not Unicode, or the file's type is unknown.
    Unrepresentable,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
            Self::Vanished => f.write_str("vanished"),
            Self::Changed => f.write_str("changed while it was read"),
            Self::Mount => f.write_str("something is mounted there"),
            Self::Subvolume => f.write_str("a subvolume of its own, which the copy that was read does not have"),
            Self::TooLarge => f.write_str("too large"),
            Self::Unrepresentable => f.write_str("cannot be represented"),
        }
    }
}

impl Loss {
    pub(crate) fn new(path: &[u8], reason: LossReason) -> Self {
        Self { path: PathBuf::from(OsStr::from_bytes(path)), reason }
    }
}

/// Files, directories and bytes of a tree, counted in the same way by archive, verify and restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Entries that are neither directories nor sockets.
    pub files: u64,
    /// Directories, the root's own among them.
    pub dirs: u64,
    /// Sum of the sizes of regular files; each hard link counts.
    pub bytes: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, kind: NodeKind, size: u64) {
        match kind {
            NodeKind::Dir => self.dirs += 1,
            NodeKind::Socket => {}
            NodeKind::File => {
                self.files += 1;
                self.bytes += size;
            }
            _ => self.files += 1,
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.files += other.files;
        self.dirs += other.dirs;
        self.bytes += other.bytes;
    }
}

/// What one root contributed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootSummary {
    /// The root's place in the snapshot.
    pub at: String,
    /// What is there.
    pub counts: Counts,
}

/// What a pass did.
#[derive(Debug, Clone)]
pub struct Archived {
    /// The snapshot; none after a live pass.
    pub snapshot: Option<SnapshotFileId>,
    /// The root tree; a parent for later passes.
    pub tree: TreeId,
    /// Everything in the tree, the made-up directories and removed lists included.
    pub counts: Counts,
    /// Bytes this pass added to packs, compressed and encrypted.
    pub new_bytes: u64,
    /// Bytes of files that this pass read; the rest was unchanged.
    pub read_bytes: u64,
    /// Everything that was lost; after a commit all of it was accepted beforehand.
    pub losses: Vec<Loss>,
    /// What each root contributed, in the order of the request.
    pub per_root: Vec<RootSummary>,
    /// Packs this pass wrote, to be verified.
    pub written_packs: Vec<Id>,
}

/// A snapshot as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotFileId,
    /// What it was called in the repository that it was copied from at first; none when it is no copy.
    pub original: Option<SnapshotFileId>,
    /// When it was taken, as the one who took it said.
    pub time: Timestamp,
    /// Where.
    pub hostname: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its root tree.
    pub tree: TreeId,
    /// The paths it was taken of.
    pub paths: Vec<String>,
    /// Everything in the tree; none when somebody else than this crate wrote the snapshot.
    pub counts: Option<Counts>,
}

/// One entry of a directory in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name; bytes.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file.
    pub size: u64,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Target of a symbolic link; bytes.
    pub link_target: Vec<u8>,
}
