//! Snapshots of directories in restic repositories (format version 2): archive, verify, restore.
//!
//! This crate moves bytes and knows directories; it knows nothing of pods. Its repositories are restic's: any restic
//! can list, check and restore what is written here, and what restic wrote can be restored here. How to use it is in its
//! README, the choices in `docs/adr` of the workspace, what it costs in `docs/benchmarks.md`.
//!
//! `examples/first.rs` makes a repository, takes two snapshots, and restores one.
//!
//! The layers, from the bottom:
//!
//! | module | what it is |
//! |---|---|
//! | [`backend`] | the only way bytes reach a store |
//! | `crypto`, `pack`, `wire`, `node`, `quote`, `polynomial` | the format, one structure each |
//! | `index`, `lock`, `password`, `repository` | an open repository, shared with other programs |
//! | `reader` | many blobs with few reads |
//! | `fsdir` | directories that somebody hostile rearranges while we are in them |
//! | `chunker`, `spool`, `uploader`, `archive` | from directories to a snapshot |
//! | `effort`, `memory` | what work may take from its machine |
//! | `graft` | a snapshot made of parts of others |
//! | `verify` | nothing counts before it was read back |
//! | `restore` | from a snapshot to directories |
//! | `drill` | a snapshot is proven by restoring it |
//! | `browse` | looking into a snapshot without restoring it |
//! | `duplicate`, `edit` | directory trees copied on this host, and single files in them replaced |
//! | `copy` | snapshots into another repository |
//! | `trees` | trees of what is no directory |
//! | `maintenance` | forget, prune, check, repair |
//! | `sketch` | directories looked at as a snapshot would show them, without one |
//! | [`remote`] | archive and restore where this process cannot reach the directories |
//!
//! Everything blocks; threads are used inside. Nothing here prints, and nothing that callers see is asynchronous.

pub mod backend;
pub mod remote;
pub mod removed;

mod archive;
mod browse;
mod chunker;
mod copy;
mod crypto;
mod drill;
mod duplicate;
mod durable;
mod edit;
mod effort;
mod error;
mod fsdir;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod graft;
mod id;
mod index;
mod lock;
mod maintenance;
mod medium;
mod memory;
mod node;
mod pack;
mod password;
mod polynomial;
mod pool;
mod quote;
mod reader;
mod repository;
mod request;
mod restore;
mod sketch;
mod spool;
mod trees;
mod uploader;
mod verify;
mod wire;

pub use archive::{Copies, Held, Writers};
pub use backend::{Backend, BackendError, FileInfo, FileKind, LocalBackend, MemoryBackend};
pub use browse::FileReader;
pub use copy::{Copied, CopyOutcome, CopyStep};
pub use drill::{DrillPart, Drilled, Room};
pub use duplicate::{Duplicate, Duplicated, Tree, sync};
pub use durable::Unsynced;
pub use edit::{Replacement, file_names, read_file, replace_file};
pub use effort::Effort;
pub use error::{Error, Result};
pub use graft::{Composition, Extra, Graft, Lower, With};
pub use id::{Id, InvalidId, SnapshotFileId, TreeId};
pub use maintenance::{
    CheckReport, DamagedPack, Depth, DoomedPack, Fate, HurtSnapshot, Mode, Problem, PruneReason, PruneReport,
    PruneRequest, Raze, Razed, RepairReport, RepairRequest, Seen, raze,
};
pub use memory::{Memory, TooLittleMemory};
pub use node::{Node, NodeKind, Time, Xattr};
pub use password::{KeyCost, Password};
pub use repository::Repository;
pub use request::{
    ArchiveRequest, Archived, Counts, Entry, Late, Layout, Loss, LossReason, Parent, Pass, Root, RootSummary,
    SnapshotInfo, Source,
};
pub use restore::{Existing, Lost, Removals, RestorePreview, RestoreRequest, Restored, WhyLost};
pub use spool::SpoolLimits;
pub use trees::{TreeWriter, WrittenTrees};
pub use verify::{Verified, Verify};
