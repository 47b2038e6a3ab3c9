//! What may be typed after `perennial snapshot`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{AcceptArgs, DestroyOptions, PartsArgs, WaitArgs};
use crate::cli::retention::KeepArgs;

/// What to do with snapshots.
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotCommand {
    /// Takes a snapshot of a pod.
    Create(AcceptArgs),
    /// Lists the snapshots of a pod, or of all pods, newest first; or the files in a snapshot.
    #[command(visible_alias = "list")]
    Ls(SnapshotListArgs),
    /// Writes a file of a snapshot to standard output.
    Cat {
        /// The snapshot's id; POD or POD@latest for the newest of a pod that is verified and was not imported.
        snapshot: String,
        /// The file as the pod sees it, such as /home/me/notes.txt.
        path: OsString,
        /// Do not look into the image
        #[arg(long)]
        changes: bool,
    },
    /// Lists the versions of a file in the snapshots of a pod, newest first.
    Find {
        /// The pod's name or id.
        pod: String,
        /// The file as the pod sees it, such as /home/me/notes.txt.
        path: OsString,
        /// Every snapshot, also those that have it as the one before has it
        #[arg(long)]
        all: bool,
        /// Do not look into the image
        #[arg(long)]
        changes: bool,
    },
    /// Lists what differs between two snapshots, or a snapshot and its pod: exits with 0 when nothing does, and with 1 when
    /// something does or could not be compared.
    Diff {
        /// The earlier snapshot: its id, or POD@latest.
        before: String,
        /// The later snapshot: its id, POD@latest, or `live` for what is in the pod now.
        after: String,
        /// A directory or file, as the pod sees it.
        #[arg(default_value = "/")]
        path: OsString,
        /// Only what the pod changed, without its image
        #[arg(long)]
        changes: bool,
    },
    /// Copies a directory or a file of a snapshot into a new directory, or an archive.
    Export(ExportArgs),
    /// Makes a snapshot of a pod out of an archive, or of a snapshot of another restic repository; the pod stays as it is.
    Import(Box<ImportArgs>),
    /// Shows a snapshot.
    Show {
        /// Its id; POD or POD@latest for the newest of a pod that is verified and was not imported.
        snapshot: String,
    },
    /// Proves a snapshot: the server restores it into scratch and compares all of it.
    Drill {
        /// Its id; POD or POD@latest for the newest of a pod that is verified and was not imported.
        snapshot: String,
        /// Waiting.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Replaces the data of the snapshot's pod, or parts of it, by the snapshot, after a safety snapshot: pod restore.
    Restore(RestoreArgs),
    /// Deletes the snapshots of a pod that its rules do not keep.
    Forget(ForgetArgs),
    /// Deletes a snapshot.
    #[command(visible_aliases = ["delete", "remove"])]
    Rm {
        /// Its id.
        snapshot: String,
        /// Do not ask for a confirmation; the last verified snapshot of a pod needs --last as well
        #[arg(long, short)]
        yes: bool,
        /// Delete it even when the pod has no other verified snapshot
        #[arg(long, requires = "yes")]
        last: bool,
        /// Say what would be done and why, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Waiting.
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// A restore of the pod that the snapshot is of.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// Its id; POD or POD@latest for the newest of a pod that is verified and was not imported.
    pub snapshot: String,
    /// What of it.
    #[command(flatten)]
    pub parts: PartsArgs,
    /// Shared options.
    #[command(flatten)]
    pub options: DestroyOptions,
}

/// Lets snapshots go.
#[derive(Debug, Clone, Args)]
pub struct ForgetArgs {
    /// The pod's name or id.
    pub pod: String,
    /// Rules for this once, instead of the pod's.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Do not ask for a confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Say what would go and why, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What becomes a snapshot of which pod.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
pub struct ImportArgs {
    /// The pod's name or id.
    pub pod: String,
    /// An archive (tar, tar.gz or tar.zst), or - for standard input.
    #[arg(group = "source")]
    pub file: Option<PathBuf>,
    /// Put the archive below this path, all else being as in the pod's newest verified snapshot; without it the archive
    /// is of the whole pod
    #[arg(long, value_name = "PATH")]
    pub into: Option<String>,
    /// What to say about the snapshot
    #[arg(long)]
    pub comment: Option<String>,
    /// Take devices, too
    #[arg(long)]
    pub allow_devices: bool,
    /// Take a snapshot of this repository, as restic writes it; this machine opens it, not the server
    #[arg(long, value_name = "URL", group = "source", requires_all = ["snapshot", "into"], help_heading = "Repository")]
    pub repo: Option<String>,
    /// A file that holds its password; without it --password-command, else RESTIC_PASSWORD
    #[arg(
        long,
        value_name = "FILE",
        requires = "repo",
        conflicts_with = "password_command",
        help_heading = "Repository"
    )]
    pub password_file: Option<PathBuf>,
    /// A command of the shell that prints its password
    #[arg(long, value_name = "COMMAND", requires = "repo", help_heading = "Repository")]
    pub password_command: Option<String>,
    /// The snapshot in it: the beginning of its id, or latest
    #[arg(long, value_name = "ID", requires = "repo", help_heading = "Repository")]
    pub snapshot: Option<String>,
    /// What of that snapshot
    #[arg(long, value_name = "PATH", default_value = "/", help_heading = "Repository")]
    pub path: OsString,
    /// Speak http with other machines, too, where everybody on the way can read along
    #[arg(long, requires = "repo", help_heading = "Repository")]
    pub allow_http: bool,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What of a snapshot goes where.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub struct ExportArgs {
    /// The snapshot's id; POD or POD@latest for the newest of a pod that is verified and was not imported.
    pub snapshot: String,
    /// What the pod sees there, such as /home/me.
    #[arg(default_value = "/")]
    pub path: OsString,
    /// A directory that does not exist yet, or is empty; it is closed to others, for a pod's files may be setuid
    #[arg(long, value_name = "DIR", group = "target")]
    pub to: Option<PathBuf>,
    /// An archive that does not exist yet: FILE.tar.zst, FILE.tar.gz or FILE.tar
    #[arg(long, value_name = "FILE", group = "target")]
    pub tar: Option<PathBuf>,
    /// Only what the pod changed, without its image
    #[arg(long)]
    pub changes: bool,
    /// Make the devices that are among the files, which takes root
    #[arg(long, requires = "to")]
    pub devices: bool,
}

/// Which snapshots, or which files of one.
#[derive(Debug, Clone, Args)]
pub struct SnapshotListArgs {
    /// A pod's name or id, to list its snapshots; a snapshot's id or POD@latest, to list its files; all pods when left out.
    #[arg(value_name = "POD|SNAPSHOT")]
    pub pod: Option<String>,
    /// A directory or file in that snapshot, or in the newest of that pod, as the pod sees it.
    #[arg(conflicts_with_all = ["state", "kind", "tenant", "quiet"])]
    pub path: Option<OsString>,
    /// Files with modes, owners, sizes, times and where they come from
    #[arg(long, short)]
    pub long: bool,
    /// Only files that the pod changed, without its image
    #[arg(long)]
    pub changes: bool,
    /// Only in this state
    #[arg(long, value_parser = ["pending", "uploaded", "verified", "failed"])]
    pub state: Option<String>,
    /// Only of this kind
    #[arg(long, value_parser = ["manual", "scheduled", "final", "safety", "imported"])]
    pub kind: Option<String>,
    /// Only this tenant's
    #[arg(long, conflicts_with = "pod")]
    pub tenant: Option<String>,
    /// Ids of snapshots alone, one on a line
    #[arg(long, short, conflicts_with_all = ["long", "changes"])]
    pub quiet: bool,
}
