//! Enums of names: the same in JSON, in `as_str` and in the OpenAPI document.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Makes an enum of names that are the same in JSON, in `as_str` and in the OpenAPI document.
///
/// The schema is written here, because utoipa's own derive does not see the names through this macro.
macro_rules! names {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)*
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let names = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([$($text),*]));
                names.description(Some(concat!($($doc, "\n"),*).trim())).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }

        impl $name {
            /// The name in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

names! {
    /// What was asked for.
    Desired {
        /// The container runs.
        Running = "running",
        /// Stopped, everything stays on the host.
        Paused = "paused",
        /// Captured, verified, released.
        Stopped = "stopped",
        /// Stopped and hidden.
        Archived = "archived",
        /// Stopped and hidden, purged when the undelete window ends.
        Deleted = "deleted",
    }
}

names! {
    /// What an administrator does with somebody's pod.
    AdminAction {
        /// Stops and starts it.
        Restart = "restart",
        /// Stops it.
        Stop = "stop",
        /// Starts it.
        Start = "start",
        /// Replaces its data by what its image holds, after a safety snapshot.
        Reset = "reset",
        /// Deletes it, with an undelete window.
        Delete = "delete",
    }
}

names! {
    /// What carries this installation's labels.
    OrphanKind {
        /// A container.
        Container = "container",
        /// A volume set.
        Set = "set",
    }
}

names! {
    /// What a clean-up does about an orphaned pod.
    CleanupStep {
        /// It stays as it is.
        Keep = "keep",
        /// From then on it is kept only until a time.
        Quarantine = "quarantine",
        /// It goes.
        Delete = "delete",
    }
}

names! {
    /// What is recorded of a volume set.
    SetRecord {
        /// It is being made.
        Preparing = "preparing",
        /// It is data.
        Complete = "complete",
        /// It may go.
        Retired = "retired",
        /// It stays: nothing proves a copy of it.
        Quarantined = "quarantined",
    }
}

names! {
    /// How far a message is.
    DeliveryState {
        /// On its way.
        Pending = "pending",
        /// Its receiver took it.
        Sent = "sent",
        /// It was given up.
        Failed = "failed",
    }
}

names! {
    /// Whether a subscription holds.
    SubscriptionState {
        /// It holds.
        Active = "active",
        /// Its time is over.
        Expired = "expired",
        /// Its owner ended it.
        Cancelled = "cancelled",
    }
}

names! {
    /// What is seen.
    Phase {
        /// Being made.
        Creating = "creating",
        /// On its way to running.
        Starting = "starting",
        /// Running.
        Running = "running",
        /// On its way to paused.
        Pausing = "pausing",
        /// Stopped, everything on the host.
        Paused = "paused",
        /// On its way to stopped.
        Stopping = "stopping",
        /// Released; the data is in the repository.
        Stopped = "stopped",
        /// Data being replaced by a snapshot.
        Restoring = "restoring",
        /// Data being replaced by a fresh set.
        Resetting = "resetting",
        /// Released and hidden.
        Archived = "archived",
        /// On its way to deleted.
        Deleting = "deleting",
        /// Waiting for the end of the undelete window.
        Deleted = "deleted",
        /// Needs a person; the conditions say what.
        Error = "error",
    }
}

names! {
    /// Whether a volume's data is there.
    VolumeState {
        /// Nothing on the host, and nothing should be.
        Absent = "absent",
        /// Being filled.
        Seeding = "seeding",
        /// Whole.
        Complete = "complete",
        /// It should be there and is not.
        Lost = "lost",
        /// Some of the set is there and some is not.
        Partial = "partial",
    }
}

names! {
    /// What an operation does.
    OperationKind {
        /// Makes a pod and starts it.
        Create = "create",
        /// Makes a pod that is a copy of another and starts it.
        Clone = "clone",
        /// Starts a paused or stopped pod.
        Start = "start",
        /// Captures, verifies, releases the host.
        Stop = "stop",
        /// Stops the container and keeps everything.
        Pause = "pause",
        /// Stops and starts.
        Restart = "restart",
        /// Replaces the data set by a fresh one.
        Reset = "reset",
        /// Replaces the data set by a snapshot.
        Restore = "restore",
        /// Takes a snapshot.
        Snapshot = "snapshot",
        /// Makes a snapshot of an archive.
        SnapshotImport = "snapshot-import",
        /// Deletes a snapshot.
        SnapshotDelete = "snapshot-delete",
        /// Restores a snapshot into scratch and compares.
        SnapshotDrill = "snapshot-drill",
        /// Stops and hides.
        Archive = "archive",
        /// Stops and starts the undelete window.
        Delete = "delete",
        /// Brings an archived or deleted pod back to stopped.
        Undelete = "undelete",
        /// Destroys everything.
        Purge = "purge",
    }
}

names! {
    /// How an operation stands.
    OperationState {
        /// Recorded, not begun.
        Pending = "pending",
        /// Being worked on, or waiting for the next try.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Ended without success.
        Failed = "failed",
        /// Ended on request or superseded.
        Cancelled = "cancelled",
    }
}

impl OperationState {
    /// Whether it has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

names! {
    /// How far a snapshot has come.
    SnapshotState {
        /// Not complete in the repository.
        Pending = "pending",
        /// Complete, not yet read back.
        Uploaded = "uploaded",
        /// Read back and checked.
        Verified = "verified",
        /// Not usable.
        Failed = "failed",
    }
}

names! {
    /// Why a snapshot was taken.
    SnapshotKind {
        /// Somebody asked.
        Manual = "manual",
        /// A schedule asked.
        Scheduled = "scheduled",
        /// A stop, archive or delete depends on it.
        Final = "final",
        /// What a reset or restore replaced.
        Safety = "safety",
        /// Put together out of others, for a restore of parts or a clone.
        Composed = "composed",
        /// Made of an archive that somebody sent; says nothing of the pod's own data.
        Imported = "imported",
    }
}

names! {
    /// How consistent the captured instant is.
    Grade {
        /// The last writer had stopped.
        Stopped = "stopped",
        /// All writers were frozen.
        Frozen = "frozen",
        /// All writers were frozen, after the pod's own hook had made them ready for it.
        Hooked = "hooked",
    }
}

names! {
    /// How a pod's health is.
    HealthState {
        /// It runs, or is about to, and has not answered yet.
        Starting = "starting",
        /// It answers.
        Healthy = "healthy",
        /// It does not answer.
        Unhealthy = "unhealthy",
        /// It does not run, or cannot be asked.
        Unknown = "unknown",
    }
}

names! {
    /// What becomes of a snapshot whose `before` hook failed.
    OnHookFailure {
        /// It fails.
        Fail = "fail",
        /// It is taken all the same, and is no more than `frozen`.
        Continue = "continue",
    }
}

names! {
    /// What an entry of a directory is.
    FileKind {
        /// A regular file.
        File = "file",
        /// A directory.
        Dir = "dir",
        /// A symbolic link.
        Symlink = "symlink",
        /// A block device.
        BlockDevice = "blockDevice",
        /// A character device.
        CharDevice = "charDevice",
        /// A named pipe.
        Fifo = "fifo",
        /// A socket.
        Socket = "socket",
    }
}

names! {
    /// Where an entry of a snapshot comes from.
    FileOrigin {
        /// The pod's image: the pod never changed it.
        Image = "image",
        /// A volume.
        Volume = "volume",
        /// The system layer.
        System = "system",
    }
}

names! {
    /// How one version of a path differs from the one before.
    FileChange {
        /// It is the first that is looked at: nothing is before it.
        First = "first",
        /// Not at all.
        Same = "same",
        /// There was nothing.
        Added = "added",
        /// There is nothing any more.
        Removed = "removed",
        /// In its content: type, bytes, target or device; for a directory anything below it. Perhaps in its metadata as well.
        Content = "content",
        /// Only in owner, mode, time of change or attributes.
        Metadata = "metadata",
    }
}

names! {
    /// How an archive is packed.
    ArchiveFormat {
        /// A tar, packed by zstd.
        TarZst = "tar.zst",
        /// A tar, packed by gzip.
        TarGz = "tar.gz",
        /// A tar as it is.
        Tar = "tar",
    }
}

names! {
    /// How a check went.
    CheckStatus {
        /// Good.
        Ok = "ok",
        /// Works, with a drawback.
        Warning = "warning",
        /// Does not work.
        Failed = "failed",
    }
}

names! {
    /// What a user is to the installation.
    Role {
        /// Works in the tenants they are a member of.
        User = "user",
        /// Works in all tenants, and on the installation.
        Admin = "admin",
    }
}

names! {
    /// What a token may be used for. None includes another.
    Scope {
        /// To look.
        Read = "read",
        /// To change pods, snapshots and one's own tokens.
        Operate = "operate",
        /// To work on the installation; of use to administrators only.
        Admin = "admin",
    }
}
