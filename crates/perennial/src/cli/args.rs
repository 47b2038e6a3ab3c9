//! What may be typed: the commands that talk to a server, and the options they share.

mod access;
mod snapshot;
mod subscription;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::admin::AdminCommand;
use super::audit::AuditCommand;
use super::health::HealthArgs;
use super::hooks::HookArgs;
use super::human::parse_duration;
use super::pod_set::SetArgs;
use super::retention::RulesArgs;
use super::values;
use crate::api::wire::{Backend, Cpus, OnStop, Port, Size, VolumeDeclaration};

pub use access::{
    QuotaKind, RoleArg, ScopeArg, TenantCommand, TenantSetArgs, TokenCommand, TokenCreateArgs, UserCommand,
    UserCreateArgs,
};
pub use snapshot::{
    ExportArgs, ForgetArgs, ImportArgs, RestoreArgs as SnapshotRestoreArgs, SnapshotCommand, SnapshotListArgs,
};
pub use subscription::{RenewArgs, SubscribeArgs, SubscriptionCommand};

/// How a client finds its server, and how it answers.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The server's address
    #[arg(
        long,
        global = true,
        env = "PERENNIAL_SERVER",
        default_value = "http://127.0.0.1:7117",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub server: String,
    /// A file that holds the bearer token; without it PERENNIAL_TOKEN, else the admin token in the data directory
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
    /// The data directory of a server on this machine
    #[arg(long, global = true, env = "PERENNIAL_DATA_DIR", value_name = "DIR", help_heading = "Connection")]
    pub data_dir: Option<PathBuf>,
    /// Trust servers whose certificate one of these authorities made (PEM), and no others
    #[arg(long, global = true, env = "PERENNIAL_CA_FILE", value_name = "FILE", help_heading = "Connection")]
    pub ca_file: Option<PathBuf>,
    /// How answers are printed
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people: sizes and times are rounded.
    #[default]
    Table,
    /// As the API says it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Commands that talk to a server.
#[derive(Debug, Clone, Subcommand)]
pub enum ClientCommand {
    /// Creates, runs, stops and deletes pods.
    Pod {
        /// What to do.
        #[command(subcommand)]
        command: PodCommand,
    },
    /// Takes, lists and deletes snapshots.
    Snapshot {
        /// What to do.
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Shows, awaits and cancels operations.
    #[command(visible_alias = "operation")]
    Op {
        /// What to do.
        #[command(subcommand)]
        command: OpCommand,
    },
    /// Shows the audit trail.
    Events(EventsArgs),
    /// Checks everything the installation needs, and says how to mend what is broken.
    Doctor,
    /// Writes a file with everything that is needed to read the repositories without this host.
    RecoveryKit {
        /// Where to write it, `-` for standard output [default: perennial-recovery-kit-TIME.txt]
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Shows all pods, compares the database with the engine, and shows what people were told.
    Admin {
        /// What to do.
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Lists, verifies and exports who changed what.
    Audit {
        /// What to do.
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Shows how far the replicas of the repositories are, and what could not be copied.
    Replication,
    /// Makes, lists and erases tenants, and says who works in them.
    Tenant {
        /// What to do.
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Makes, lists, disables and removes users.
    User {
        /// What to do.
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Makes, lists and revokes tokens.
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Shows who you are to the server, and what you may do.
    Whoami,
    /// Shows and changes the catalogue: services and their plans.
    Service {
        /// What to do.
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Subscribes to a plan: a pod of it is made and started.
    Subscribe(SubscribeArgs),
    /// Shows, ends, renews and changes subscriptions.
    Subscription {
        /// What to do.
        #[command(subcommand)]
        command: SubscriptionCommand,
    },
    /// Prints a completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// What to do with the catalogue.
#[derive(Debug, Clone, Subcommand)]
pub enum ServiceCommand {
    /// Lists the services that can be ordered.
    #[command(visible_alias = "list")]
    Ls,
    /// Shows a service and its plans.
    Show {
        /// The service's name.
        service: String,
        /// Print it as a file that `service apply` takes
        #[arg(long)]
        toml: bool,
    },
    /// Tells everything that is wrong with files that describe services; needs no server.
    Validate {
        /// TOML files, or JSON files that end with .json.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Puts services into the server's database, where they win over its files; pods that exist stay as they are.
    Apply {
        /// TOML files, or JSON files that end with .json.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Only if the service is at this revision
        #[arg(long, value_name = "REVISION")]
        if_match: Option<String>,
    },
    /// Removes a service from the server's database; one of a file is in force again.
    Rm {
        /// The service's name.
        service: String,
        /// Only if it is at this revision
        #[arg(long, value_name = "REVISION")]
        if_match: Option<String>,
    },
}

/// Erases a tenant.
#[derive(Debug, Clone, Args)]
pub struct EraseArgs {
    /// The tenant's name.
    pub tenant: String,
    /// Delete the files of its repository and replica, too
    #[arg(long)]
    pub delete_data: bool,
    /// Erase although it cannot be told what all would be lost; the dry run says why, and what to repeat here
    #[arg(long, value_name = "WORD")]
    pub accept_unknown: Option<String>,
    /// Give up what could not be dealt with since it was asked for, and is gone for good: nothing in it is taken away
    #[arg(long, conflicts_with = "delete_data")]
    pub give_up: bool,
    /// Do not ask for a confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Say what it would mean and what stands against it, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return as soon as the server has recorded it
    #[arg(long)]
    pub no_wait: bool,
}

/// What to do with a pod.
#[derive(Debug, Clone, Subcommand)]
pub enum PodCommand {
    /// Creates a pod and starts it.
    Create(Box<CreateArgs>),
    /// Lists pods.
    #[command(visible_alias = "list")]
    Ls(PodListArgs),
    /// Shows a pod.
    Show(PodArgs),
    /// Shows how a pod stands: what runs, what is being done, what went wrong.
    Status(PodArgs),
    /// Lists a pod's volumes.
    Volumes(PodArgs),
    /// Shows what was made for a pod alone, as its plan says: passwords and keys in its environment.
    Secrets(PodArgs),
    /// Shows what a pod's program wrote, output and error output in one.
    Logs(LogsArgs),
    /// Shows a pod's part of the audit trail.
    Events {
        /// The pod's name or id.
        pod: String,
        /// Which part.
        #[command(flatten)]
        args: EventRange,
    },
    /// Changes a pod's specification; a restart applies it.
    Set(Box<SetArgs>),
    /// Starts a paused or stopped pod with the data it had.
    Start(ActionArgs),
    /// Takes and verifies a final snapshot, then removes the container and the volumes from the host.
    Stop(AcceptArgs),
    /// Stops the container and keeps everything on the host.
    Pause(ActionArgs),
    /// Stops and starts the container; the data stays.
    Restart(ActionArgs),
    /// Replaces the pod's data by what its image holds, after a safety snapshot.
    Reset(DestroyArgs),
    /// Replaces the pod's data, or parts of it, by a snapshot, after a safety snapshot.
    Restore(RestoreArgs),
    /// Makes a pod that is a copy of another, with a machine identity of its own.
    #[command(visible_alias = "fork")]
    Clone(CloneArgs),
    /// Stops a pod and hides it; its final snapshot is kept without a clock.
    Archive(AcceptArgs),
    /// Deletes a pod: final snapshot, then an undelete window, then purge.
    #[command(visible_aliases = ["delete", "remove"])]
    Rm(DestroyArgs),
    /// Brings an archived or deleted pod back to stopped.
    Undelete(ActionArgs),
    /// Destroys a pod and all its snapshots. There is no way back.
    Purge(PurgeArgs),
}

/// One pod.
#[derive(Debug, Clone, Args)]
pub struct PodArgs {
    /// The pod's name or id.
    pub pod: String,
}

/// What of a pod's log.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// The pod's name or id.
    pub pod: String,
    /// Go on until the container ends
    #[arg(long, short)]
    pub follow: bool,
    /// Only so many lines at the end
    #[arg(long, short = 'n', visible_alias = "last", value_name = "NUMBER")]
    pub tail: Option<u32>,
    /// Only what was written since then, such as 10m, 2d or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Each line with the time it was written
    #[arg(long, short)]
    pub timestamps: bool,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct WaitArgs {
    /// Return as soon as the server has recorded the work
    #[arg(long, conflicts_with = "timeout")]
    pub no_wait: bool,
    /// Wait at most this long, such as 90s or 5m; the work goes on afterwards
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
}

/// An action that destroys nothing.
#[derive(Debug, Clone, Args)]
pub struct ActionArgs {
    /// The pod's name or id.
    pub pod: String,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// An action that takes a snapshot, which may lack what its owner says it may lack.
#[derive(Debug, Clone, Args)]
pub struct AcceptArgs {
    /// The pod's name or id.
    pub pod: String,
    /// Losses, and the confirmation they need.
    #[command(flatten)]
    pub accept: AcceptLoss,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Losses a person accepts.
#[derive(Debug, Clone, Default, Args)]
pub struct AcceptLoss {
    /// Go on although exactly these paths cannot be captured, such as /volumes/home/broken
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub accept_loss: Vec<String>,
    /// Do not ask for a confirmation
    #[arg(long, short)]
    pub yes: bool,
}

/// An action that replaces or removes data.
#[derive(Debug, Clone, Args)]
pub struct DestroyArgs {
    /// The pod's name or id.
    pub pod: String,
    /// Shared options.
    #[command(flatten)]
    pub options: DestroyOptions,
}

/// A restore.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The pod's name or id.
    pub pod: String,
    /// The snapshot's id, or `latest`.
    pub snapshot: String,
    /// What of it.
    #[command(flatten)]
    pub parts: PartsArgs,
    /// Shared options.
    #[command(flatten)]
    pub options: DestroyOptions,
}

/// Parts of a pod's data.
#[derive(Debug, Clone, Default, Args)]
#[command(group(ArgGroup::new("chosen").args(["volumes", "paths"]).multiple(true)))]
pub struct PartsArgs {
    /// Only this volume (`system`: what no volume holds); everything else stays as it is. May be repeated
    #[arg(long = "volume", value_name = "NAME")]
    pub volumes: Vec<String>,
    /// Only this file or directory, as the pod sees it; everything else stays as it is. May be repeated
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<String>,
    /// Keep files in them that the snapshot lacks, instead of removing them
    #[arg(long, requires = "chosen")]
    pub keep_extra: bool,
}

/// A copy of a pod.
#[derive(Debug, Clone, Args)]
pub struct CloneArgs {
    /// The name or id of the pod that is copied.
    pub pod: String,
    /// The name of the copy: lower-case letters, digits and hyphens.
    pub name: String,
    /// Copy this snapshot of the pod (its id, or `latest`) instead of the pod as it is now
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// Keep machine-id and ssh host keys of the pod instead of making new ones
    #[arg(long)]
    pub keep_identity: bool,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Options of actions that replace or remove data.
#[derive(Debug, Clone, Args)]
pub struct DestroyOptions {
    /// Losses, and the confirmation.
    #[command(flatten)]
    pub accept: AcceptLoss,
    /// Say what would be done and why, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Destroys a pod.
#[derive(Debug, Clone, Args)]
pub struct PurgeArgs {
    /// The pod's name or id.
    pub pod: String,
    /// Do not ask for a confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Say what would be done and why, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Which pods.
#[derive(Debug, Clone, Args)]
pub struct PodListArgs {
    /// Archived and deleted ones too
    #[arg(long, short)]
    pub all: bool,
    /// Only this tenant's
    #[arg(long)]
    pub tenant: Option<String>,
    /// Ids alone, one on a line
    #[arg(long, short)]
    pub quiet: bool,
}

/// What `pod create` and `pod set` say of a pod alike.
#[derive(Debug, Clone, Default, Args)]
pub struct SpecArgs {
    /// What is limited.
    #[command(flatten)]
    pub limits: Limits,
    /// Container runtime, such as runc or runsc
    #[arg(long)]
    pub runtime: Option<String>,
    /// An environment variable, once for each; others stay as they are
    #[arg(long, short, value_parser = values::env, value_name = "NAME=VALUE")]
    pub env: Vec<(String, String)>,
    /// A port published on the host's loopback, once for each; these are all
    #[arg(long = "port", short, value_parser = values::port, value_name = "[HOST:]CONTAINER")]
    pub ports: Vec<Port>,
    /// User in the container
    #[arg(long)]
    pub user: Option<String>,
    /// Working directory in the container
    #[arg(long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Signal that asks the pod to stop, such as SIGTERM
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Time between that signal and SIGKILL, such as 10s
    #[arg(long, value_parser = values::seconds, value_name = "TIME")]
    pub stop_timeout: Option<u32>,
    /// What stop does with the data on the host: release it, or only pause
    #[arg(long, value_parser = values::on_stop, value_name = "release|pause")]
    pub on_stop: Option<OnStop>,
    /// Let setuid programs such as sudo work
    #[arg(long)]
    pub allow_privilege_escalation: bool,
    /// When snapshots are taken, and which are kept.
    #[command(flatten)]
    pub snapshots: RulesArgs,
    /// What the pod runs around the freeze of a snapshot.
    #[command(flatten)]
    pub hooks: HookArgs,
    /// How one finds out whether the pod works.
    #[command(flatten)]
    pub health: HealthArgs,
    /// Replaces the image's entry point (one word)
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Replaces the image's command.
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// A new pod.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// The image; may be left out with --plan and --from-snapshot
    #[arg(long, required_unless_present_any = ["plan", "from_snapshot"])]
    pub image: Option<String>,
    /// Make a pod of this plan: variables may be added, everything else comes with it
    #[arg(long, value_name = "SERVICE/PLAN", conflicts_with = "from_snapshot")]
    pub plan: Option<String>,
    /// What it is like.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Where the volumes live [default: the best that works]
    #[arg(long, value_parser = values::backend, value_name = "overlay|docker")]
    pub backend: Option<Backend>,
    /// Persist exactly this directory instead of everything, once for each
    #[arg(long = "volume", value_parser = values::volume, value_name = "NAME:PATH[:SIZE]")]
    pub volumes: Vec<VolumeDeclaration>,
    /// Persist nothing
    #[arg(long, conflicts_with = "volumes")]
    pub no_volumes: bool,
    /// Make the pod from this snapshot, or the newest of this pod (POD@latest)
    #[arg(long, value_name = "ID")]
    pub from_snapshot: Option<String>,
    /// Whose it is; needed only by whoever has several tenants
    #[arg(long)]
    pub tenant: Option<String>,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Limits of a pod.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Limits {
    /// Processors, such as 1.5
    #[arg(long, value_parser = Cpus::parse)]
    pub cpus: Option<Cpus>,
    /// Memory, such as 512Mi
    #[arg(long, value_parser = Size::parse, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Swap beyond the memory limit, such as 1Gi
    #[arg(long, value_parser = Size::parse, value_name = "SIZE")]
    pub memory_swap: Option<Size>,
    /// Soft memory limit
    #[arg(long, value_parser = Size::parse, value_name = "SIZE")]
    pub memory_reservation: Option<Size>,
    /// Processes and threads
    #[arg(long, value_name = "NUMBER")]
    pub pids: Option<u32>,
    /// What all its volumes may take, such as 20Gi; a change needs no restart
    #[arg(long, value_parser = Size::parse, value_name = "SIZE")]
    pub disk: Option<Size>,
}

/// What to do with operations.
#[derive(Debug, Clone, Subcommand)]
pub enum OpCommand {
    /// Lists the operations of a pod, or of all pods.
    #[command(visible_alias = "list")]
    Ls {
        /// The pod's name or id; all pods when left out.
        pod: Option<String>,
        /// Only those that have not ended
        #[arg(long)]
        unfinished: bool,
        /// Ids alone, one on a line
        #[arg(long, short)]
        quiet: bool,
    },
    /// Shows an operation.
    Show {
        /// Its id.
        operation: String,
    },
    /// Waits until an operation ends, and fails when it fails.
    Wait {
        /// Its id.
        operation: String,
        /// Wait at most this long, such as 90s or 5m
        #[arg(long, value_parser = parse_duration, value_name = "TIME")]
        timeout: Option<Duration>,
    },
    /// Cancels an operation where that is safe.
    Cancel {
        /// Its id.
        operation: String,
    },
}

/// Which part of the audit trail of which pod.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Only this pod's
    #[arg(long)]
    pub pod: Option<String>,
    /// Which part.
    #[command(flatten)]
    pub range: EventRange,
}

/// Which part of the audit trail.
#[derive(Debug, Clone, Args)]
pub struct EventRange {
    /// Go on showing events as they happen
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last so many of what there is
    #[arg(long, short = 'n', default_value_t = 100, value_name = "NUMBER")]
    pub last: usize,
    /// Only those after this id
    #[arg(long, default_value_t = 0, value_name = "ID")]
    pub after: i64,
}
