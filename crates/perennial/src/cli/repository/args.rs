//! What may be typed after `perennial repository`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use perennial_snapshots::Memory;

use crate::cli::retention::KeepArgs;
use crate::cli::values;
use crate::config::BucketLookup;

/// What to do with a repository.
#[derive(Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Prints the password of a tenant's repository, so that restic opens it without Perennial.
    Password {
        /// Whose.
        #[arg(default_value = "default")]
        tenant: String,
    },
    /// Gives a tenant's repository a new password, while no server uses its data directory.
    ChangePassword {
        /// Whose.
        #[arg(default_value = "default")]
        tenant: String,
        /// The server's configuration; without it perennial.toml in the data directory
        #[arg(long, env = "PERENNIAL_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Has the replicas take the place of repositories that are lost, while no server uses the data directory.
    ///
    /// Without --yes it says what is in the replicas and changes nothing.
    UseReplica {
        /// The server's configuration; without it perennial.toml in the data directory
        #[arg(long, env = "PERENNIAL_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        /// A tenant that has no replica, and whose snapshots are given up; once for each
        #[arg(long, value_name = "TENANT")]
        without: Vec<String>,
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
    /// Makes a repository, which any restic reads, too.
    Init(PlaceArgs),
    /// Takes a snapshot of directories and reads back what it wrote.
    Backup(BackupArgs),
    /// Restores a snapshot, or a directory of it, to an empty directory, or in place.
    Restore(RestoreArgs),
    /// Lists a directory of a snapshot.
    Ls(LsArgs),
    /// Lists the snapshots.
    Snapshots(SnapshotsArgs),
    /// Looks for damage.
    Check(CheckArgs),
    /// Removes snapshots; what they alone needed goes with the next prune.
    Forget(ForgetArgs),
    /// Deletes what no snapshot needs.
    Prune(PruneArgs),
    /// Copies snapshots to another repository, with everything they need that is not there yet.
    Copy(CopyArgs),
    /// Reads everything, salvages what is damaged as far as it can be, and says which snapshots are hurt.
    Repair(RepairArgs),
}

/// Arguments of `copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The snapshots: the beginnings of their ids, or latest; without any all of them
    #[arg(value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// The repository to copy from; limits of upload hold for the other one
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The repository to copy to, which exists: perennial repository init makes one
    #[arg(long, value_name = "URL", help_heading = "Repository to copy to")]
    pub to: String,
    /// A file that holds its password
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "to_password_command",
        conflicts_with = "to_password_command",
        help_heading = "Repository to copy to"
    )]
    pub to_password_file: Option<PathBuf>,
    /// A command of the shell that prints its password
    #[arg(long, value_name = "COMMAND", help_heading = "Repository to copy to")]
    pub to_password_command: Option<String>,
    /// A file with the variables that hold its credentials, NAME=value; without it the environment, as for the first
    #[arg(long, value_name = "FILE", help_heading = "Repository to copy to")]
    pub to_env_file: Option<PathBuf>,
    /// Where S3 finds its bucket's name
    #[arg(
        long,
        value_enum,
        default_value_t = BucketLookup::Auto,
        value_name = "HOW",
        help_heading = "Repository to copy to"
    )]
    pub to_bucket_lookup: BucketLookup,
}

/// Where a repository is, and how to open it.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The repository as restic writes it: /path, s3:https://host/bucket/prefix, azure:container:/prefix
    #[arg(long, env = "RESTIC_REPOSITORY", value_name = "URL", help_heading = "Repository")]
    pub repo: String,
    /// A file that holds the password; without it --password-command, else RESTIC_PASSWORD
    #[arg(
        long,
        env = "RESTIC_PASSWORD_FILE",
        value_name = "FILE",
        conflicts_with = "password_command",
        help_heading = "Repository"
    )]
    pub password_file: Option<PathBuf>,
    /// A command of the shell that prints the password
    #[arg(
        long,
        env = "RESTIC_PASSWORD_COMMAND",
        hide_env_values = true,
        value_name = "COMMAND",
        help_heading = "Repository"
    )]
    pub password_command: Option<String>,
    /// Speak http with other machines, too, where everybody on the way can read along
    #[arg(long, help_heading = "Repository")]
    pub allow_http: bool,
    /// Where S3 finds the bucket's name: auto is dns for Amazon's own service and path for others
    #[arg(long, value_enum, default_value_t = BucketLookup::Auto, value_name = "HOW", help_heading = "Repository")]
    pub bucket_lookup: BucketLookup,
    /// Send no more than so many KiB a second
    #[arg(long, value_name = "KIB", help_heading = "Repository")]
    pub limit_upload: Option<NonZeroU64>,
    /// Receive no more than so many KiB a second
    #[arg(long, value_name = "KIB", help_heading = "Repository")]
    pub limit_download: Option<NonZeroU64>,
    /// Work with no more than so many threads
    #[arg(long, value_name = "NUMBER", help_heading = "Repository")]
    pub threads: Option<NonZeroUsize>,
    /// Stand so far back behind other processes, at the processor and, where its scheduler goes by that, at the disk
    #[arg(long, value_name = "0-19", default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(u8).range(0..=19), help_heading = "Repository")]
    pub nice: u8,
    /// Keep no more than so much in flight, such as 256Mi; the index of the repository comes on top of it
    #[arg(long, value_name = "SIZE", value_parser = values::memory, help_heading = "Repository")]
    pub memory: Option<Memory>,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The directories, with everything below them on the same file system
    #[arg(required = true, value_name = "DIR")]
    pub directories: Vec<PathBuf>,
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// A tag for the snapshot; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// A path that is left out, with everything below it; may be repeated
    #[arg(long, value_name = "PATH")]
    pub exclude: Vec<PathBuf>,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot: the beginning of its id, or latest
    pub snapshot: String,
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The directory to restore to; it is made when missing, and must be empty without --in-place
    #[arg(long, value_name = "DIR")]
    pub target: PathBuf,
    /// The directory of the snapshot that becomes the target [default: /]
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Make the target what the directory in the snapshot was: only what differs is written, and what the snapshot does not
    /// have is removed
    #[arg(long, requires = "path")]
    pub in_place: bool,
    /// Keep what the snapshot does not have
    #[arg(long, requires = "in_place")]
    pub keep_extra: bool,
    /// Do it without asking
    #[arg(long, requires = "in_place")]
    pub yes: bool,
    /// Only say what would be removed and replaced
    #[arg(long, requires = "in_place")]
    pub dry_run: bool,
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The snapshot: the beginning of its id, or latest
    #[arg(default_value = "latest")]
    pub snapshot: String,
    /// The directory
    #[arg(default_value = "/")]
    pub path: String,
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Arguments of `snapshots`.
#[derive(Debug, Args)]
pub struct SnapshotsArgs {
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Only those that carry this tag; with several, all of them
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Read every byte, too
    #[arg(long)]
    pub read_data: bool,
}

/// Arguments of `forget`.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The snapshots: the beginnings of their ids, or latest
    #[arg(required_unless_present = "KeepArgs", conflicts_with = "KeepArgs", value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// Instead of snapshots, rules: those they do not keep, of each host and each set of paths by itself.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// The time zone that days and months are counted in, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "KeepArgs")]
    pub time_zone: Option<String>,
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Do it without asking
    #[arg(long)]
    pub yes: bool,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The repository.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}
