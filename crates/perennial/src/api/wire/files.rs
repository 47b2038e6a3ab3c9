//! What is in snapshots.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::Loss;
use super::names::{FileChange, FileKind, FileOrigin, SnapshotKind};

/// An entry of a directory in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Its name; what is not UTF-8 in it is replaced, and then `nameBytes` is the name.
    pub name: String,
    /// The name's bytes in base64; null when `name` is exact.
    pub name_bytes: Option<String>,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-user-id, set-group-id and sticky, as a number.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file.
    pub size: u64,
    /// Time of the last change of the content; null when it is no time of this calendar.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub modified_at: Option<Timestamp>,
    /// Target of a symbolic link; what is not UTF-8 in it is replaced. Null for everything else.
    pub target: Option<String>,
    /// The target's bytes in base64; null when `target` is exact.
    pub target_bytes: Option<String>,
    /// Names of the same inode in its volume; 0 when unknown.
    pub links: u64,
    /// Major and minor number of a device; null for everything else.
    pub device: Option<Device>,
    /// Names of the extended attributes.
    pub xattrs: Vec<String>,
    /// Where it comes from. A directory that the pod changed comes from where the changes are.
    pub origin: FileOrigin,
    /// The volume it is in; null outside of volumes.
    pub volume: Option<String>,
}

/// The numbers of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

/// What is at a path of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileList {
    /// The entry at the path itself.
    pub entry: FileEntry,
    /// What is in it, when it is a directory; sorted by the names' bytes.
    pub items: Vec<FileEntry>,
    /// Pass it as `after` for the next page; null on the last.
    pub next: Option<String>,
}

/// What one snapshot has at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileVersion {
    /// The snapshot.
    pub snapshot_id: String,
    /// Why it was taken.
    pub snapshot_kind: SnapshotKind,
    /// The instant it shows; null when nobody recorded it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub captured_at: Option<Timestamp>,
    /// What is there; null when there is nothing, or nobody can tell.
    pub entry: Option<FileEntry>,
    /// How it differs from the snapshot before that can be looked into; null when nobody can tell.
    pub change: Option<FileChange>,
    /// Why nobody can tell; null otherwise.
    pub problem: Option<String>,
}

/// What a restore would change, as far as snapshots tell: nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestorePreview {
    /// Always true.
    pub dry_run: bool,
    /// The snapshot that would be restored.
    pub snapshot_id: String,
    /// The pod's newest verified snapshot, which stands for its data now; null when it has none, and nothing can be told.
    pub compared_with: Option<String>,
    /// When that was taken: what changed since is not seen.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub compared_at: Option<Timestamp>,
    /// What would change, in the order of paths; what would be removed among it. At most 1000.
    pub changes: Vec<FileDifference>,
    /// Whether these are all.
    pub complete: bool,
}

/// What differs between a snapshot and what is in its pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveDiff {
    /// The paths that differ, in their order; `before` is the snapshot's, `after` the pod's.
    pub items: Vec<FileDifference>,
    /// Cursor of the next page of the same look; null at the end.
    pub next: Option<String>,
    /// When the look began; a running pod may have changed since.
    #[schema(value_type = String, format = DateTime)]
    pub looked_at: Timestamp,
    /// What of the path was not compared, and why; nothing at or below it is among the items.
    pub not_compared: Vec<Loss>,
}

/// One path that differs between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileDifference {
    /// The path as the pod sees it; what is not UTF-8 in it is replaced, and then `pathBytes` is the path.
    pub path: String,
    /// The path's bytes in base64; null when `path` is exact.
    pub path_bytes: Option<String>,
    /// What happened to it: `added`, `removed`, `content` or `metadata`.
    pub change: FileChange,
    /// Whether owner, mode, time of change or attributes differ.
    pub metadata: bool,
    /// What was there; null when it was added.
    pub before: Option<FileEntry>,
    /// What is there; null when it was removed.
    pub after: Option<FileEntry>,
}
