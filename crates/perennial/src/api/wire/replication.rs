//! How far the replicas are.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The server's own replication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replication {
    /// How long a replica keeps what was deleted, as it is written in the configuration; null: nothing is replicated.
    pub forget_after: Option<String>,
    /// The replicas, by tenant.
    pub replicas: Vec<ReplicaStatus>,
}

/// One tenant's replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Whose.
    pub tenant: String,
    /// Where it is, as restic writes it.
    pub location: String,
    /// When everything was looked at last; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub looked_at: Option<Timestamp>,
    /// Why the last turn did not get to its end; null when it did.
    pub problem: Option<String>,
    /// Snapshots that are in it, proven, with their images.
    pub copied: u64,
    /// Copies whose originals were deleted; they go when `forgetAfter` is over.
    pub going: u64,
    /// Verified snapshots that are not in it.
    pub missing: u64,
    /// When the oldest of them was taken; null when none is missing.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub missing_since: Option<Timestamp>,
    /// What is being copied now; null when nothing is, and when another server does it.
    #[serde(default)]
    pub copying: Option<ReplicaCopying>,
    /// What could not be copied, the first hundred.
    pub failed: Vec<ReplicaFailure>,
}

/// What is being copied to a replica, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaCopying {
    /// What it is.
    pub part: ReplicaPart,
    /// Which: the id of the snapshot, of the image, or of the pod whose layer it is.
    pub id: String,
    /// The snapshot; null when it is an image or a layer.
    pub snapshot_id: Option<String>,
    /// Bytes finished, as they are stored; what the replica has already is not sent.
    pub bytes_done: u64,
    /// Bytes in all: at most so many until everything was looked for, and then exactly; 0 while nobody knows.
    pub bytes_total: u64,
    /// Bytes a second since this began; null in its first second.
    pub bytes_per_second: Option<u64>,
    /// Seconds that the rest takes at that rate; null while nobody knows.
    pub seconds_left: Option<u64>,
}

/// Something that could not be copied to a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaFailure {
    /// What it is.
    pub part: ReplicaPart,
    /// Which: the id of the snapshot, of the image, or of the pod whose layer it is.
    pub id: String,
    /// Why.
    pub problem: String,
    /// When it was tried last; it is tried again about an hour later.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// What is copied to replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ReplicaPart {
    /// An image.
    Image,
    /// A snapshot of a pod.
    Snapshot,
    /// The newest capture of a pod's system layer.
    Layer,
}
