//! The command line: an HTTP client of the API, and the only place that prints.
//!
//! `main` parses [`Cli`] and hands every [`ClientCommand`] to [`run`]; it keeps the commands that work on this machine
//! (`serve`, `config`, `repository`, `storage`, `mover`) and prints through [`Out`]. A command is a function that asks the
//! [`client::Client`], waits if there is an operation to wait for, and shows what came of it:
//!
//! | file | what it holds |
//! |---|---|
//! | `out` | standard output, error and input; colours; what happens when a pipe breaks |
//! | `failure` | every failure as message, hint and exit code |
//! | `client`, `target` | requests, retries, idempotency keys, pages; names or ids into pods |
//! | `args`, `values` | what may be typed |
//! | `wait`, `confirm` | progress lines, Ctrl-C, time-outs; saying what is destroyed before it is |
//! | `view`, `table`, `human` | how answers look |
//! | `repository` | commands on repositories, without a server |
//! | `files`, `unpack`, `compare` | what is in snapshots, how it comes onto this machine, what differs |
//! | `admin`, `pod`, `pod_set`, `logs`, `snapshot`, `operation`, `events`, `doctor`, `recovery_kit`, `replication`, `service`, `subscription`, `tenant`, `user`, `token` | the commands |
//!
//! Nothing is decided here that the server does not decide again: a confirmation typed on a terminal becomes the
//! `confirm` field of the request, and it is the server that compares it.

mod admin;
mod args;
mod audit;
mod client;
mod compare;
mod confirm;
mod doctor;
mod events;
mod failure;
mod files;
mod health;
mod hooks;
mod human;
mod import;
mod logs;
mod operation;
mod out;
mod pod;
mod pod_restore;
mod pod_set;
mod recovery_kit;
mod replication;
mod repository;
mod retention;
mod service;
mod session;
mod snapshot;
mod subscription;
mod table;
mod target;
mod tenant;
mod token;
mod unpack;
mod user;
mod values;
mod view;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum as _};

use crate::config::ServeArgs;
use args::ServiceCommand;

use self::audit::AuditCommand;

pub use args::{ClientCommand, Connection, Output};
pub use failure::{Exit, Failure};
pub use out::Out;
pub use repository::{RepositoryCommand, run as run_on_repository, use_replica};
pub use session::{Interrupt, Session, show};

/// What `--help` says at its end.
const AFTER_HELP: &str = "\
Exit codes:
    0  done
    1  the operation failed, or an internal error
    2  wrong usage, or a confirmation is missing
    3  not found
    4  conflict with the present state
    5  not allowed, or no valid token
    6  a value was refused
    7  a quota is reached
    8  the server, or something it needs, does not answer
    9  the time given by --timeout is over
  130  interrupted; an operation that was begun goes on";

/// Runs pods whose data outlives everything they run on.
#[derive(Debug, Parser)]
#[command(name = "perennial", version, propagate_version = true, arg_required_else_help = true,
    after_help = AFTER_HELP)]
pub struct Cli {
    /// How to reach a server, and how to answer.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do: everything that is not the server, its files or the mover talks to a server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the server.
    Serve(ServeArgs),
    /// Checks or shows the configuration of a server.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Works on repositories without a server: backup, restore, check.
    Repository {
        /// What to do with one.
        #[command(subcommand)]
        command: RepositoryCommand,
    },
    /// Works on the storage root of a data directory, without a server.
    Storage {
        /// What to do with it.
        #[command(subcommand)]
        command: StorageCommand,
    },
    /// Prints the version of this program; `doctor` compares it with the server's.
    Version,
    /// Reads or writes volumes inside a helper container; started by the server.
    #[command(hide = true)]
    Mover,
    /// Talks to a server.
    #[command(flatten)]
    Client(ClientCommand),
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Checks it, and the files it names.
    Check(ServeArgs),
    /// Prints it as it would be used, with every default.
    Show(ServeArgs),
}

/// What to do with the storage root.
#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// Forgets the storage root in use, because it is gone for good: the next start takes the one it finds, even an empty one.
    ///
    /// Pods that were not stopped are then shown as lost, and start again only from a snapshot.
    Claim {
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
}

/// Runs a command that talks to a server, on this process's terminal.
#[must_use]
pub fn run(connection: &Connection, command: ClientCommand) -> ExitCode {
    let mut out = Out::process();
    out.tell_failures(connection.output);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return finish(&mut out, Err(Failure::internal(format!("start the client's runtime: {error}")))).into();
        }
    };
    let session = Session::process();
    runtime.block_on(execute(connection, command, session, &mut out)).into()
}

/// Reads the arguments of a process; what is wrong with them, and help, is shown.
///
/// # Errors
/// What the process answers, when there is nothing to run.
pub fn parse<T: Into<OsString>>(arguments: impl IntoIterator<Item = T>, out: &mut Out) -> Result<Cli, Exit> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    match Cli::try_parse_from(&arguments) {
        Ok(cli) => {
            out.tell_failures(cli.connection.output);
            Ok(cli)
        }
        Err(error) => {
            out.tell_failures(asked_for(&arguments));
            Err(usage(&without_environment(error, &arguments), out))
        }
    }
}

/// The same error with a usage line of what was typed: the parser takes options that the environment sets for typed ones.
fn without_environment(error: clap::Error, arguments: &[OsString]) -> clap::Error {
    let told = |error: &clap::Error| {
        let text = error.render().to_string();
        text.split_once("Usage:").map_or(text.clone(), |(before, _)| before.to_owned())
    };
    match typed_only(Cli::command()).try_get_matches_from(arguments) {
        Err(typed) if told(&typed) == told(&error) => typed,
        _ => error,
    }
}

fn typed_only(command: clap::Command) -> clap::Command {
    let typed = |arg: clap::Arg| arg.env(clap::builder::Resettable::Reset);
    command.mut_args(typed).mut_subcommands(typed_only)
}

/// The form that was asked for in arguments that are not understood otherwise.
fn asked_for(arguments: &[OsString]) -> Output {
    let words: Vec<&str> = arguments.iter().map_while(|word| word.to_str().filter(|word| *word != "--")).collect();
    let separate = words.windows(2).rev().find(|pair| matches!(pair[0], "-o" | "--output")).map(|pair| pair[1]);
    let joined = words.iter().rev().find_map(|word| word.strip_prefix("--output=").or(word.strip_prefix("-o")));
    let form = separate.or(joined.filter(|form| !form.is_empty())).map(|form| form.trim_start_matches('='));
    form.and_then(|form| Output::from_str(form, false).ok()).unwrap_or_default()
}

/// Reads arguments and runs a command that talks to a server, with everything it touches passed in.
pub async fn run_from(arguments: &[&str], session: Session, out: &mut Out) -> Exit {
    let cli = match parse(arguments.iter().copied(), out) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let Command::Client(command) = cli.command else {
        return finish(out, Err(Failure::usage("this command does not talk to a server", "run it directly")));
    };
    execute(&cli.connection, command, session, out).await
}

async fn execute(connection: &Connection, command: ClientCommand, session: Session, out: &mut Out) -> Exit {
    let result = dispatch(connection, command, session, out).await;
    finish(out, result)
}

async fn dispatch(
    connection: &Connection,
    command: ClientCommand,
    mut session: Session,
    out: &mut Out,
) -> Result<(), Failure> {
    session.output = connection.output;
    let client = match command {
        ClientCommand::Completions { shell } => return completions(shell, out),
        ClientCommand::Service { command: ServiceCommand::Validate { files } } => {
            return service::validate(&files, session.output, out);
        }
        ClientCommand::Doctor => return doctor::run(connection, &session, out).await,
        ClientCommand::Audit { command: AuditCommand::Verify(args) } if args.offline => {
            return Box::pin(audit::verify_offline(connection, &args, out)).await;
        }
        _ => connection.client(&session)?,
    };
    let mut context = session::Context { client, session, out };
    match command {
        ClientCommand::Pod { command } => Box::pin(pod::run(&mut context, command)).await,
        ClientCommand::Snapshot { command } => Box::pin(snapshot::run(&mut context, connection, command)).await,
        ClientCommand::Op { command } => Box::pin(operation::run(&mut context, command)).await,
        ClientCommand::Events(args) => Box::pin(events::run(&mut context, &args, None)).await,
        ClientCommand::Replication => Box::pin(replication::run(&mut context)).await,
        ClientCommand::Service { command } => Box::pin(service::run(&mut context, command)).await,
        ClientCommand::Subscribe(args) => Box::pin(subscription::subscribe(&mut context, args)).await,
        ClientCommand::Subscription { command } => Box::pin(subscription::run(&mut context, command)).await,
        ClientCommand::Admin { command } => Box::pin(admin::run(&mut context, command)).await,
        ClientCommand::Audit { command } => Box::pin(audit::run(&mut context, command)).await,
        ClientCommand::Tenant { command } => Box::pin(tenant::run(&mut context, command)).await,
        ClientCommand::User { command } => Box::pin(user::run(&mut context, command)).await,
        ClientCommand::Token { command } => Box::pin(token::run(&mut context, command)).await,
        ClientCommand::Whoami => Box::pin(user::whoami(&mut context)).await,
        ClientCommand::RecoveryKit { file } => Box::pin(recovery_kit::run(&mut context, file)).await,
        ClientCommand::Completions { .. } | ClientCommand::Doctor => Ok(()),
    }
}

fn completions(shell: clap_complete::Shell, out: &mut Out) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "perennial", &mut script);
    out.data(&script)
}

/// Shows what the argument parser has to say: help on standard output, everything else on standard error.
fn usage(error: &clap::Error, out: &mut Out) -> Exit {
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if error.use_stderr() && !is_help && out.tells_problems() {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let (message, hint) = text.split_once("\n\n").unwrap_or((text, ""));
        return finish(out, Err(Failure::usage(message.trim(), hint.trim())));
    }
    let text = if error.use_stderr() { out.render_error(&error.render()) } else { out.render_data(&error.render()) };
    let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
    let written = if error.use_stderr() {
        out.note(text.trim_end());
        Ok(())
    } else {
        out.data(text.as_bytes())
    };
    match written {
        Ok(()) => exit,
        Err(failure) => failure.exit,
    }
}

/// Shows a failure and tells the exit code.
fn finish(out: &mut Out, result: Result<(), Failure>) -> Exit {
    match result {
        Ok(()) => Exit::Done,
        Err(failure) => {
            out.failure(&failure);
            failure.exit
        }
    }
}

/// Unpacks for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(crate) fn unpacks(packed: &[u8], into: &std::path::Path) -> bool {
    unpack::unpack(packed, into, false).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    /// What is on a command line, everybody on the machine can read.
    #[test]
    fn p40_no_option_takes_a_secret() {
        fn look(command: &clap::Command, found: &mut BTreeSet<String>) {
            for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
                let name = argument.get_long().unwrap_or_default();
                let is_about = ["password", "secret", "token", "key"].iter().any(|word| name.contains(word));
                if is_about && !["-file", "-command"].iter().any(|end| name.ends_with(end)) {
                    found.insert(name.to_owned());
                }
            }
            command.get_subcommands().for_each(|command| look(command, found));
        }
        let mut found = BTreeSet::new();
        look(&Cli::command(), &mut found);
        // The path of a file.
        assert_eq!(found, BTreeSet::from(["tls-key".to_owned()]));
    }

    #[test]
    fn options_of_the_client_and_of_the_server_do_not_collide() {
        let cli = Cli::try_parse_from(["perennial", "serve", "--data-dir", "/srv/p"]).unwrap();
        assert!(matches!(cli.command, Command::Serve(_)));
        assert_eq!(cli.connection.data_dir.as_deref(), Some(std::path::Path::new("/srv/p")));
        let cli =
            Cli::try_parse_from(["perennial", "pod", "ls", "--server", "http://h:1", "--data-dir", "/d"]).unwrap();
        assert_eq!((cli.connection.server.as_str(), cli.connection.data_dir.is_some()), ("http://h:1", true));
    }

    #[test]
    fn extra_files_are_kept_of_parts_only() {
        let restore = |more: &[&str]| {
            let all = ["perennial", "pod", "restore", "dev", "latest", "--keep-extra"].into_iter();
            Cli::try_parse_from(all.chain(more.iter().copied())).map(drop)
        };
        // A restore of everything removes them, so it must not be taken for one that does not.
        let refused = restore(&[]).unwrap_err();
        assert_eq!(refused.kind(), clap::error::ErrorKind::MissingRequiredArgument);
        assert!(refused.to_string().contains("--volume <NAME>"), "{refused}");
        for parts in [&["--volume", "home"][..], &["--path", "/a"], &["--volume", "home", "--path", "/a"]] {
            restore(parts).unwrap();
        }
    }
}
