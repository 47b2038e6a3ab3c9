//! The `perennial` program: reads arguments and hands over.

use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use perennial::causes::describe;
use perennial::cli::{self, Cli, Command, ConfigCommand, Exit, Failure, Out, RepositoryCommand, StorageCommand};
use perennial::config::{Config, ConfigError, LogForm, ServeArgs};
use perennial::keys::Keyring;
use perennial::serve;
use perennial_core::spec::TenantId;
use perennial_snapshots::{KeyCost, Repository};
use serde::Serialize;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> ExitCode {
    let mut out = Out::process();
    let Cli { connection, command } = match cli::parse(std::env::args_os(), &mut out) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let data_dir = connection.data_dir.as_deref();
    let done = match command {
        Command::Client(command) => return cli::run(&connection, command),
        Command::Serve(args) => run_server(&args, data_dir, &mut out),
        Command::Config { command: ConfigCommand::Check(args) } => check(&args, data_dir)
            .and_then(|checked| cli::show(connection.output, &mut out, &checked, |checked, _| checked.to_string())),
        Command::Config { command: ConfigCommand::Show(args) } => load(&args, data_dir)
            .and_then(|config| cli::show(connection.output, &mut out, &config.shown(), |config, _| config.show())),
        Command::Version => {
            let version = Version { version: env!("CARGO_PKG_VERSION") };
            cli::show(connection.output, &mut out, &version, |version, _| format!("perennial {}", version.version))
        }
        Command::Repository { command: RepositoryCommand::Password { tenant } } => {
            password(&tenant, data_dir).and_then(|password| out.line(&password))
        }
        Command::Repository { command: RepositoryCommand::ChangePassword { tenant, config } } => {
            let args = ServeArgs { config, ..ServeArgs::default() };
            change_password(&tenant, &args, data_dir).and_then(|told| out.line(&told))
        }
        Command::Repository { command: RepositoryCommand::UseReplica { config, without, yes } } => {
            let args = ServeArgs { config, ..ServeArgs::default() };
            let said = load(&args, data_dir).and_then(|config| cli::use_replica(&config, &without, yes));
            said.and_then(|said| out.line(&said))
        }
        Command::Repository { command } => cli::run_on_repository(&connection, command, &mut out),
        Command::Storage { command: StorageCommand::Claim { yes } } => {
            forget_storage(yes, data_dir).and_then(|said| out.line(&said))
        }
        Command::Mover => {
            log_to_stderr(LogForm::Text);
            perennial::mover::run().map_err(|error| Failure::internal(format!("talk to the server: {error}")))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out.failure(&failure);
            failure.exit.into()
        }
    }
}

fn load(args: &ServeArgs, data_dir: Option<&Path>) -> Result<Config, Failure> {
    Config::load(args, data_dir).map_err(|error| refused(&error))
}

/// What `version` answers.
#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// A configuration that is good.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    /// The file that was read; null when there is none.
    file: Option<PathBuf>,
    /// The data directory it leads to.
    data_dir: PathBuf,
}

impl Display for Checked {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{} is good", file.display())?,
            None => write!(f, "there is no configuration file; the defaults, flags and environment are good")?,
        }
        write!(f, " (data in {})", self.data_dir.display())
    }
}

/// Checks the configuration, and the files it names.
fn check(args: &ServeArgs, data_dir: Option<&Path>) -> Result<Checked, Failure> {
    let file = Config::file(args, data_dir);
    let config = load(args, data_dir)?;
    config.repository.connect(&TenantId::default_tenant()).map_err(|error| refused(&error))?;
    if let Some(replication) = &config.replication {
        replication.repository.connect(&TenantId::default_tenant()).map_err(|error| refused(&error))?;
    }
    match config.server.tls.map(serve::Certificate::load) {
        Some(Err(error)) => Err(Failure::new(Exit::Invalid, error.to_string(), error.hint())),
        Some(Ok(_)) | None => Ok(Checked { file, data_dir: config.data_dir }),
    }
}

fn refused(error: &ConfigError) -> Failure {
    Failure::new(Exit::Invalid, error.to_string(), error.hint())
}

fn run_server(args: &ServeArgs, data_dir: Option<&Path>, out: &mut Out) -> Result<(), Failure> {
    let config = load(args, data_dir)?;
    log_to_stderr(config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(serve::STACK)
        .build()
        .map_err(|error| Failure::internal(format!("start the runtime: {error}")))?;
    let ready = |url: &str| {
        // A supervisor that closed our output does not want to know.
        let _ = out.line(&format!("{{\"listening\":\"{url}\"}}"));
    };
    let done = runtime.block_on(serve::run(&config, ready));
    // A thread may be in a call that never returns, as on a mount whose server is gone.
    runtime.shutdown_timeout(serve::THREADS);
    done.map_err(|error| {
        let exit = match &error {
            serve::ServeError::Config(_) | serve::ServeError::Tls(_) | serve::ServeError::Keys(_) => Exit::Invalid,
            serve::ServeError::Directory(serve::DirectoryError::Locked(_)) => Exit::Conflict,
            _ => Exit::Unavailable,
        };
        Failure::new(exit, describe(&error), error.hint())
    })
}

/// `RUST_LOG` selects what is logged; without it, everything from info on. What the client of the engine says below that is never
/// logged: it writes out requests and answers, in which the secrets of pods are.
fn log_to_stderr(form: LogForm) {
    let asked = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let told = filter_fn(|line| *line.level() <= Level::INFO || !line.target().starts_with("bollard"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(asked)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match form {
        LogForm::Text => builder.finish().with(told).init(),
        LogForm::Json => builder.json().flatten_event(true).finish().with(told).init(),
    }
}

/// Reads the password of a tenant's repository, which needs no server.
fn password(tenant: &str, data_dir: Option<&Path>) -> Result<String, Failure> {
    let tenant = tenant_of(tenant)?;
    let config = load(&ServeArgs::default(), data_dir)?;
    let keys = config.keys.keyring(&config.data_dir).map_err(|error| refused(&error))?;
    match keys.read(&tenant) {
        Ok(Some(password)) => Ok(String::from_utf8_lossy(password.reveal()).into_owned()),
        Ok(None) => Err(no_key(&keys, &tenant)),
        Err(error) => Err(Failure::new(Exit::Failed, error.to_string(), error.hint())),
    }
}

fn tenant_of(text: &str) -> Result<TenantId, Failure> {
    TenantId::parse(text).map_err(|error| Failure::new(Exit::Invalid, error.to_string(), ""))
}

fn no_key(keys: &Keyring, tenant: &TenantId) -> Failure {
    let hint = "a repository gets its key with its first snapshot; --data-dir chooses the directory";
    Failure::new(Exit::NotFound, format!("there is no key {}", keys.path(tenant).display()), hint)
}

/// Gives a tenant's repository a new password, while no server uses it.
fn change_password(tenant: &str, args: &ServeArgs, data_dir: Option<&Path>) -> Result<String, Failure> {
    let tenant = tenant_of(tenant)?;
    let config = load(args, data_dir)?;
    let keys = config.keys.keyring(&config.data_dir).map_err(|error| refused(&error))?;
    if !keys.path(&tenant).exists() {
        return Err(no_key(&keys, &tenant));
    }
    let _directory = serve::DataDir::open(&config.data_dir)
        .map_err(|error| Failure::new(Exit::Conflict, error.to_string(), error.hint()))?;
    let backend = config.repository.connect(&tenant).map_err(|error| refused(&error))?;
    keys.change(&tenant, KeyCost::Interactive, |password| Repository::open(Arc::clone(&backend), password)).map_err(
        |error| {
            let hint = "the password in use still opens the repository; run it again when the cause is mended";
            Failure::new(Exit::Failed, format!("{}: {}", config.repository.of_tenant(&tenant), describe(&error)), hint)
        },
    )?;
    Ok(format!(
        "The repository of {tenant} has a new password. Recovery kits made before do not open it: make a new one with\n\
         `perennial recovery-kit`. Copies of the repository made before still open with the old password."
    ))
}

/// Forgets which storage root belongs to a data directory that no server uses.
fn forget_storage(yes: bool, data_dir: Option<&Path>) -> Result<String, Failure> {
    let config = load(&ServeArgs::default(), data_dir)?;
    let record = serve::storage_record(&config.data_dir);
    if !record.exists() {
        return Ok("no storage root is on record: the next start takes the one it finds".to_owned());
    }
    if !yes {
        let message = "this gives up everything on the storage root in use";
        return Err(Failure::new(Exit::Usage, message, "mount it instead; add --yes when it is gone for good"));
    }
    // No server may be using it meanwhile.
    let _directory = serve::DataDir::open(&config.data_dir)
        .map_err(|error| Failure::new(Exit::Conflict, error.to_string(), error.hint()))?;
    std::fs::remove_file(&record)
        .map_err(|error| Failure::internal(format!("remove {}: {error}", record.display())))?;
    Ok("forgotten: the next start takes the storage root it finds".to_owned())
}
