//! The end of a tenant.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::Progress;

/// Asks what it means to erase a tenant, or does it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EraseRequest {
    /// Say what it would mean and what stands against it, and do nothing.
    pub dry_run: bool,
    /// The tenant's name; needed unless it is a dry run.
    pub confirm: Option<String>,
    /// Delete the files of its repositories, too. Without it they stay, unreadable; this can be asked for later.
    pub delete_data: bool,
    /// Erase although it cannot be told what all would be lost, which is what `doubts` says: the `acceptUnknown` of the answer that
    /// says so. Snapshots that nobody knows of are destroyed then; a place that could not be looked at is left as it is.
    pub accept_unknown: Option<String>,
    /// Give up what was not dealt with: places that are gone for good, and keys of servers that are. Only for an erasure that was
    /// asked for before.
    pub give_up: bool,
}

/// A tenant that is erased, is being erased, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Erasure {
    /// Whose.
    pub tenant: String,
    /// How far it is.
    pub state: ErasureState,
    /// Whether the files of its repositories are deleted, too.
    pub delete_data: bool,
    /// What is in its repository, or was when the erasure was asked for.
    pub repository: ErasedPlace,
    /// The same of its replica; null: none is configured.
    pub replica: Option<ErasedPlace>,
    /// What stands against it; empty once it was begun.
    pub blockers: Vec<String>,
    /// What stands against it unless `acceptUnknown` says that it does not matter.
    pub doubts: Vec<String>,
    /// What `acceptUnknown` has to say to accept these doubts; null: there are none.
    pub accept_unknown: Option<String>,
    /// What it means, in sentences.
    pub meaning: Vec<String>,
    /// Who asked for it; null: nobody did.
    pub actor: Option<String>,
    /// When; null: nobody did.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub asked_at: Option<Timestamp>,
    /// When its keys were destroyed; null: not yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub keys_destroyed_at: Option<Timestamp>,
    /// When everything was done; null: not yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub erased_at: Option<Timestamp>,
    /// Why it is not done yet, or which servers still have a key of it, as it was tried last; it is tried again. Null when nothing
    /// is wrong.
    pub problem: Option<String>,
    /// How far the deletion of files is; null when nothing works on it now.
    pub progress: Option<Progress>,
}

/// How far the erasure of a tenant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ErasureState {
    /// Nobody asked for it: this is what it would be.
    Planned,
    /// Its keys are being destroyed.
    DestroyingKeys,
    /// Its keys are destroyed; what is in the places of its repositories is being taken away.
    Emptying,
    /// It is done, as far as `became` says of each place.
    Erased,
}

/// What became of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PlaceBecame {
    /// All files are deleted.
    Emptied,
    /// The copies of the master key are gone: nobody can read the files, which stay.
    KeysGone,
    /// Nothing was there.
    Absent,
    /// It was given up before it was dealt with: nobody knows what is left in it.
    GivenUp,
    /// It could not be looked at, or proven to be the tenant's: it is left as it is.
    Untouched,
}

/// One place of a tenant's snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErasedPlace {
    /// Where it is, as restic writes it.
    pub location: String,
    /// Snapshots, layers and images in it; null: that could not be told.
    pub snapshots: Option<u64>,
    /// Bytes of them, encrypted; null: that could not be told.
    pub bytes: Option<u64>,
    /// What became of it; in a plan `absent` and `untouched` are known already. Null: it is to be dealt with.
    pub became: Option<PlaceBecame>,
}
