//! `perennial repository …` on any repository, without a server: plain directories in and out.
//!
//! | file | what it holds |
//! |---|---|
//! | `args` | what may be typed |
//! | `open` | place, password and progress; errors of the engine as failures of the command line |
//! | `write` | init, backup |
//! | `restore` | restore, to an empty directory and in place |
//! | `read` | snapshots, ls, check, and which snapshot is meant |
//! | `clean` | forget and prune |
//! | `copy` | copy |
//! | `repair` | repair |
//! | `use_replica` | replicas take the place of lost repositories |

mod args;
mod clean;
mod copy;
mod open;
mod read;
mod repair;
mod restore;
mod use_replica;
mod write;

use perennial_snapshots::{Repository, SnapshotFileId};

use super::args::{Connection, ImportArgs};
use super::failure::Failure;
use super::out::Out;
use crate::config::BucketLookup;

pub use args::RepositoryCommand;
pub use use_replica::use_replica;

/// Opens a repository that a snapshot is imported from, and finds the snapshot. Blocks.
///
/// # Errors
/// What went wrong, with an exit code.
pub fn open_for_import(connection: &Connection, args: &ImportArgs) -> Result<(Repository, SnapshotFileId), Failure> {
    let place = args::PlaceArgs {
        repo: args.repo.clone().unwrap_or_default(),
        password_file: args.password_file.clone(),
        password_command: args.password_command.clone(),
        allow_http: args.allow_http,
        bucket_lookup: BucketLookup::Auto,
        limit_upload: None,
        limit_download: None,
        threads: None,
        nice: 0,
        memory: None,
    };
    let (place, repository) = open::open(connection, &place)?;
    let found = read::find(&repository, &place.name, args.snapshot.as_deref().unwrap_or("latest"))?;
    Ok((repository, found.id))
}

/// Runs a command on a repository. Blocks.
///
/// # Errors
/// What went wrong, with an exit code.
pub fn run(connection: &Connection, command: RepositoryCommand, out: &mut Out) -> Result<(), Failure> {
    let mut desk = open::Desk { connection, out };
    match command {
        RepositoryCommand::Password { .. }
        | RepositoryCommand::ChangePassword { .. }
        | RepositoryCommand::UseReplica { .. } => {
            Err(Failure::usage("this command reads a data directory", "run it directly"))
        }
        RepositoryCommand::Init(place) => write::init(&mut desk, &place),
        RepositoryCommand::Backup(args) => write::backup(&mut desk, &args),
        RepositoryCommand::Restore(args) => restore::restore(&mut desk, &args),
        RepositoryCommand::Ls(args) => read::ls(&mut desk, &args),
        RepositoryCommand::Snapshots(args) => read::snapshots(&mut desk, &args),
        RepositoryCommand::Check(args) => read::check(&mut desk, &args),
        RepositoryCommand::Forget(args) => clean::forget(&mut desk, &args),
        RepositoryCommand::Prune(args) => clean::prune(&mut desk, &args),
        RepositoryCommand::Copy(args) => copy::copy(&mut desk, &args),
        RepositoryCommand::Repair(args) => repair::repair(&mut desk, &args),
    }
}
