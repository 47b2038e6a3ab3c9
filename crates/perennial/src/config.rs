//! Configuration: `perennial.toml`, then environment, then flags; the later wins.
//!
//! Unknown keys are refused by name and every value is checked before anything is touched. `perennial config show`
//! prints what would be used, secrets hidden.

mod args;
mod catalogue;
mod drills;
mod error;
mod imports;
mod keys;
mod limits;
mod notifications;
mod oidc;
mod replication;
mod repository;
mod server;
mod snapshots;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::{Deserialize, Serialize};

pub use args::{EngineKind, LogForm, ServeArgs, VolumeAccess};
pub use catalogue::CatalogueSection;
pub use drills::DrillSection;
pub use error::ConfigError;
pub(crate) use error::{secret_in, value};
pub use imports::ImportSection;
use keys::FileKeys;
pub use keys::KeysSection;
pub use limits::LimitSection;
pub use notifications::{MailSection, WebhookSection};
pub use oidc::OidcSection;
pub(crate) use oidc::is_private;
use replication::FileReplication;
pub use replication::ReplicationSection;
use repository::FileRepository;
pub use repository::{BucketLookup, RepositorySection, bandwidth, limited, read_variables};
use server::FileServer;
pub use server::{ServerSection, TlsFiles};
pub use snapshots::SnapshotSection;

/// Longest undelete window and delay of forgetting, in days: ten years; longer ones are typing mistakes.
const WINDOW_MAX_DAYS: i64 = 3653;

/// `perennial.toml`: every key may be left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    engine: Option<EngineKind>,
    log: Option<LogForm>,
    storage_root: Option<PathBuf>,
    database: Option<String>,
    docker_host: Option<String>,
    docker_ssh_options: Option<Vec<String>>,
    default_runtime: Option<String>,
    runtimes: Option<Vec<String>>,
    volume_access: Option<VolumeAccess>,
    volume_prefix: Option<String>,
    subnet_pool: Option<String>,
    undelete_window: Option<String>,
    allow_plaintext: Option<bool>,
    #[serde(default)]
    repository: FileRepository,
    replication: Option<FileReplication>,
    #[serde(default)]
    drills: DrillSection,
    #[serde(default)]
    keys: FileKeys,
    #[serde(default)]
    snapshots: SnapshotSection,
    #[serde(default)]
    imports: ImportSection,
    #[serde(default)]
    catalogue: CatalogueSection,
    #[serde(default)]
    limits: LimitSection,
    #[serde(default)]
    server: FileServer,
    #[serde(default)]
    oidc: OidcSection,
    #[serde(default)]
    mail: MailSection,
    #[serde(default)]
    webhooks: Vec<WebhookSection>,
}

/// The configuration of a server, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Where all state lives.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What runs containers.
    pub engine: EngineKind,
    /// Form of the log.
    pub log: LogForm,
    /// Where volumes and image trees live.
    pub storage_root: PathBuf,
    /// The database's URL; may hold a password.
    pub database: String,
    /// Address of the Docker Engine; `None` for `DOCKER_HOST`, else the local socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_host: Option<String>,
    /// Options for the `ssh` that reaches an engine at `ssh://…`.
    pub docker_ssh_options: Vec<String>,
    /// The runtime of pods that name none; `None` for the engine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_runtime: Option<String>,
    /// Runtimes that pods may ask for; empty for all.
    pub runtimes: Vec<String>,
    /// How the engine's own volumes are read and written.
    pub volume_access: VolumeAccess,
    /// Prefix of volume names.
    pub volume_prefix: String,
    /// Addresses the tenants' networks are cut from.
    pub subnet_pool: String,
    /// How long a deleted pod can be brought back, as written.
    pub undelete_window: String,
    /// Whether plaintext is allowed on addresses others can reach.
    pub allow_plaintext: bool,
    /// Where the repositories are. From here on, because they are tables in TOML.
    pub repository: RepositorySection,
    /// Where every verified snapshot is copied to; `None`: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationSection>,
    /// What their keys are wrapped with.
    #[serde(skip_serializing_if = "KeysSection::is_empty")]
    pub keys: KeysSection,
    /// When snapshots are taken and which are kept, where a pod says nothing.
    #[serde(skip_serializing_if = "SnapshotSection::is_empty")]
    pub snapshots: SnapshotSection,
    /// When snapshots are proven by restoring them.
    #[serde(skip_serializing_if = "DrillSection::is_empty")]
    pub drills: DrillSection,
    /// How much an archive may be that becomes a snapshot.
    #[serde(skip_serializing_if = "ImportSection::is_empty")]
    pub imports: ImportSection,
    /// Where the services come from that can be ordered.
    #[serde(skip_serializing_if = "CatalogueSection::is_empty")]
    pub catalogue: CatalogueSection,
    /// What the server's own work takes from its machine.
    #[serde(skip_serializing_if = "LimitSection::is_empty")]
    pub limits: LimitSection,
    /// How the server is reached.
    #[serde(skip_serializing_if = "ServerSection::is_empty")]
    pub server: ServerSection,
    /// Who vouches for people that sign in.
    #[serde(skip_serializing_if = "OidcSection::is_empty")]
    pub oidc: OidcSection,
    /// How people are written to.
    #[serde(skip_serializing_if = "MailSection::is_empty")]
    pub mail: MailSection,
    /// Programs that are told of events.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookSection>,
}

impl Config {
    /// The file that is read; `None` when there is none.
    #[must_use]
    pub fn file(args: &ServeArgs, data_dir: Option<&Path>) -> Option<PathBuf> {
        let usual = || data_dir.map(Path::to_owned).or_else(default_data_dir).map(|home| home.join("perennial.toml"));
        args.config.clone().or_else(|| usual().filter(|file| file.exists()))
    }

    /// Reads the file, puts environment and flags over it, and checks everything.
    ///
    /// `data_dir` is the global option, which the environment may have set.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn load(args: &ServeArgs, data_dir: Option<&Path>) -> Result<Self, ConfigError> {
        let home = data_dir.map(Path::to_owned).or_else(default_data_dir);
        let file = Self::file(args, data_dir).map(|path| read(&path)).transpose()?.unwrap_or_default();
        let data_dir = data_dir.map(Path::to_owned).or(file.data_dir).or(home);
        let data_dir = data_dir.ok_or_else(|| value("data_dir", "HOME is not set", "pass --data-dir DIR"))?;
        let data_dir =
            std::path::absolute(&data_dir).map_err(|e| value("data_dir", e.to_string(), "pass --data-dir DIR"))?;
        let storage_root = args.storage_root.clone().or(file.storage_root);
        let storage_root = storage_root.unwrap_or_else(|| data_dir.join("storage"));
        let database = args.database.clone().or(file.database);
        let repository = RepositorySection::load(args, file.repository, &data_dir)?;
        let replication = file.replication.map(|table| ReplicationSection::load(table, &repository)).transpose()?;
        let config = Self {
            listen: args.listen.or(file.listen).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7117))),
            engine: args.engine.or(file.engine).unwrap_or_default(),
            log: args.log.or(file.log).unwrap_or_default(),
            storage_root: std::path::absolute(&storage_root)
                .map_err(|e| value("storage_root", e.to_string(), "pass --storage-root DIR"))?,
            database: database.unwrap_or_else(|| format!("sqlite:{}", data_dir.join("perennial.db").display())),
            docker_host: args.docker_host.clone().or(file.docker_host),
            docker_ssh_options: args.docker_ssh_options.clone().or(file.docker_ssh_options).unwrap_or_default(),
            default_runtime: args.default_runtime.clone().or(file.default_runtime),
            runtimes: args.runtimes.clone().or(file.runtimes).unwrap_or_default(),
            volume_access: args.volume_access.or(file.volume_access).unwrap_or_default(),
            volume_prefix: args
                .volume_prefix
                .clone()
                .or(file.volume_prefix)
                .unwrap_or_else(|| "perennial-vol-".to_owned()),
            subnet_pool: args.subnet_pool.clone().or(file.subnet_pool).unwrap_or_else(|| "10.214.0.0/16".to_owned()),
            undelete_window: args.undelete_window.clone().or(file.undelete_window).unwrap_or_else(|| "7d".to_owned()),
            allow_plaintext: args.allow_plaintext.or(file.allow_plaintext).unwrap_or_default(),
            repository,
            replication,
            keys: KeysSection::load(args, file.keys)?,
            snapshots: file.snapshots,
            drills: file.drills,
            imports: file.imports,
            catalogue: file.catalogue,
            limits: file.limits,
            server: ServerSection {
                tls: TlsFiles::both(
                    args.tls_cert.clone().or(file.server.tls.cert),
                    args.tls_key.clone().or(file.server.tls.key),
                )?,
            },
            oidc: file.oidc,
            mail: file.mail,
            webhooks: file.webhooks,
            data_dir,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !self.listen.ip().is_loopback() && !self.allow_plaintext && self.server.tls.is_none() {
            return Err(value(
                "listen",
                format!("{} can be reached by others, and there is no TLS", self.listen),
                "give a certificate and its key with --tls-cert and --tls-key (server.tls in perennial.toml), listen \
                 on 127.0.0.1, or say --allow-plaintext when a proxy in front does TLS",
            ));
        }
        let known = ["sqlite:", "postgres://", "postgresql://"];
        if !known.iter().any(|scheme| self.database.starts_with(scheme)) {
            return Err(value("database", "is neither SQLite nor Postgres", "write sqlite:PATH or postgres://…"));
        }
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_' || c == '.';
        let prefix = &self.volume_prefix;
        if prefix.is_empty()
            || prefix.len() > 40
            || !prefix.chars().all(good)
            || !prefix.starts_with(|c: char| c.is_ascii_lowercase())
        {
            return Err(value(
                "volume_prefix",
                format!("{prefix:?} cannot begin a volume name"),
                "use 1 to 40 lower-case letters, digits, - _ and ., beginning with a letter",
            ));
        }
        if let Some(runtime) = &self.default_runtime
            && !self.runtimes.is_empty()
            && !self.runtimes.contains(runtime)
        {
            return Err(value("default_runtime", format!("{runtime:?} is not among runtimes"), "add it to runtimes"));
        }
        self.snapshots.rules()?;
        self.drills.rules()?;
        self.limits.check()?;
        self.oidc.check()?;
        self.mail.check()?;
        self.webhooks.iter().try_for_each(|webhook| webhook.check(&self.webhooks))?;
        self.undelete_window().map(drop)
    }

    /// The undelete window.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when it is not a time, negative, or longer than ten years.
    pub fn undelete_window(&self) -> Result<SignedDuration, ConfigError> {
        days_and_hours("undelete_window", &self.undelete_window)
    }

    /// As it may be shown: the password of the database is hidden.
    #[must_use]
    pub fn shown(&self) -> Self {
        Self { database: hide_password(&self.database), ..self.clone() }
    }

    /// As TOML, with the password of the database hidden.
    #[must_use]
    pub fn show(&self) -> String {
        toml::to_string(&self.shown()).unwrap_or_default()
    }
}

/// Reads a time of up to ten years.
fn days_and_hours(key: &'static str, text: &str) -> Result<SignedDuration, ConfigError> {
    let wrong = |problem: String| value(key, problem, "write days and hours, such as \"7d\" or \"12h\"");
    let span: Span = text.parse().map_err(|e: jiff::Error| wrong(e.to_string()))?;
    let time = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|e| wrong(e.to_string()))?;
    if time.is_negative() || time > SignedDuration::from_hours(24 * WINDOW_MAX_DAYS) {
        return Err(wrong(format!("{text} is out of range")));
    }
    Ok(time)
}

/// Replaces the password in `scheme://user:password@host/…`.
fn hide_password(url: &str) -> String {
    let hidden = || {
        let (scheme, rest) = url.split_once("://")?;
        let (credentials, host) = rest.rsplit_once('@')?;
        let (user, _) = credentials.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    };
    hidden().unwrap_or_else(|| url.to_owned())
}

/// Whether others than its owner may do anything with a file.
fn is_open_to_others(path: &Path) -> std::io::Result<bool> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: shown.clone(), source })?;
    toml::from_str(&text).map_err(|error| ConfigError::File { path: shown, problem: error.to_string() })
}

/// Where a server keeps its state when nobody says otherwise; the command line looks there for the token.
#[must_use]
pub fn default_data_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("perennial"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, args: &ServeArgs) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("make a directory");
        let path = directory.path().join("perennial.toml");
        std::fs::write(&path, text).expect("write the file");
        Config::load(&ServeArgs { config: Some(path), ..args.clone() }, Some(Path::new("/data")))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let args = ServeArgs { engine: Some(EngineKind::Sim), ..ServeArgs::default() };
        let config = load("engine = \"docker\"\nlisten = \"127.0.0.1:1\"\n", &args).expect("load");
        assert_eq!((config.engine, config.listen.port()), (EngineKind::Sim, 1));
        assert_eq!(config.storage_root, Path::new("/data/storage"));
        assert_eq!(config.database, "sqlite:/data/perennial.db");
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_by_name() {
        let bad = [
            ("lisen = \"127.0.0.1:1\"", "lisen"),
            ("listen = \"0.0.0.0:7117\"", "listen"),
            ("listen = \"nonsense\"", "listen"),
            ("engine = \"podman\"", "engine"),
            ("database = \"mysql://x\"", "database"),
            ("volume_access = \"ssh\"", "volume_access"),
            ("volume_prefix = \"../x\"", "volume_prefix"),
            ("undelete_window = \"-1d\"", "undelete_window"),
            ("undelete_window = \"soon\"", "undelete_window"),
            ("[repository]\nlocation = \"ftp:x\"", "repository.location"),
            ("[repository]\nlocation = \"some/where\"", "relative"),
            ("[repository]\nlocation = \"s3:https://key:secret@h/bucket\"", "credentials do not belong"),
            ("[repository]\nbucket_lookup = \"host\"", "bucket_lookup"),
            ("[repository]\nlimit_upload = 0", "limit_upload"),
            ("[replication]\nlimit_upload = 1", "replication.location"),
            ("[replication]\nlocation = \"some/where\"", "replication.location"),
            ("[replication]\nlocation = \"/data/repositories\"", "replication.location"),
            ("[replication]\nlocation = \"s3:https://key:secret@h/bucket\"", "replication.location"),
            ("[replication]\nlocation = \"/r\"\nforget_after = \"soon\"", "replication.forget_after"),
            ("[replication]\nlocation = \"/r\"\npassword = \"x\"", "password"),
            ("[drills]\nschedule = \"sometimes\"", "drills.schedule"),
            ("[drills]\ntime_zone = \"Mars\"", "drills.time_zone"),
            ("[drills]\nshare = 101", "drills.share"),
            ("[drills]\nshare = 0", "share"),
            ("[keys]\nfile = \"/k\"\ncommand = [\"kms\"]", "keys.command"),
            ("[oidc]\nissuer = \"https://h\"", "oidc.public_url"),
            ("[oidc]\nissuer = \"http://h\"", "oidc.issuer"),
            ("[oidc]\nclient_id = \"p\"", "oidc.issuer"),
            ("[oidc]\nissuer = \"https://h\"\npublic_url = \"https://p/x\"", "oidc.public_url"),
            ("[oidc]\nissuer = \"https://h\"\npublic_url = \"https://u:p@p\"", "oidc.public_url"),
            ("[oidc]\nissuer = \"https://h\"\npublic_url = \"https://p\"", "oidc.client_id"),
            ("[mail]\nfrom = \"a@b.org\"", "mail.server"),
            ("[mail]\nserver = \"smtp://h\"", "mail.from"),
            ("[mail]\nserver = \"http://h\"\nfrom = \"a@b.org\"", "mail.server"),
            ("[mail]\nserver = \"smtp://u:p@h\"\nfrom = \"a@b.org\"", "credentials"),
            ("[mail]\nserver = \"smtp://h\"\nfrom = \"nobody\"", "mail.from"),
            ("[mail]\nserver = \"smtps://h\"\nfrom = \"a@b.org\"\nuser = \"u\"", "mail.password_file"),
            (
                "[mail]\nserver = \"smtp://h\"\nfrom = \"a@b.org\"\nuser = \"u\"\npassword_file = \"/p\"",
                "without encryption",
            ),
            ("[[webhooks]]\nname = \"Bad Name\"\nurl = \"https://h\"\nsecret_file = \"/s\"", "webhooks.name"),
            ("[[webhooks]]\nname = \"a\"\nurl = \"http://h\"\nsecret_file = \"/s\"", "webhooks.url"),
            ("[[webhooks]]\nname = \"a\"\nurl = \"https://u:p@h\"\nsecret_file = \"/s\"", "webhooks.url"),
            ("[server.tls]\ncert = \"c.pem\"", "server.tls.key"),
            ("[server.tls]\nkey = \"k.pem\"", "server.tls.cert"),
            ("[server.tls]\ncertificate = \"c.pem\"", "certificate"),
            ("[snapshots]\nschedule = \"61 * * * *\"", "snapshots.schedule"),
            ("[snapshots]\ntime_zone = \"Mars\"", "snapshots.time_zone"),
            ("[snapshots.keep]\ndaily = 999999", "snapshots.keep"),
            ("[snapshots.keep]\ndailies = 1", "dailies"),
            ("runtimes = [\"runc\"]\ndefault_runtime = \"runsc\"", "default_runtime"),
        ];
        for (text, key) in bad {
            let error = load(text, &ServeArgs::default()).expect_err(text).to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn plaintext_for_others_needs_a_word() {
        let text = "listen = \"0.0.0.0:7117\"\nallow_plaintext = true";
        assert!(load(text, &ServeArgs::default()).is_ok());
    }

    #[test]
    fn tls_is_enough_for_others_and_wins_by_flag() {
        let text = "listen = \"0.0.0.0:7117\"\n[server.tls]\ncert = \"/c.pem\"\nkey = \"/k.pem\"";
        let args = ServeArgs { tls_key: Some("/other.pem".into()), ..ServeArgs::default() };
        let tls = load(text, &args).expect("load").server.tls.expect("both files");
        assert_eq!((tls.cert.as_path(), tls.key.as_path()), (Path::new("/c.pem"), Path::new("/other.pem")));
    }

    #[test]
    fn the_example_shows_every_key_and_loads() {
        let example = include_str!("../../../perennial.example.toml");
        let text: String = example
            .lines()
            .map(|l| l.strip_prefix("# ").filter(|l| l.contains(" = ") || l.starts_with('[')).unwrap_or(l))
            .fold(String::new(), |mut all, line| {
                all.push_str(line);
                all.push('\n');
                all
            });
        load(&text, &ServeArgs::default()).expect("every key of the example is known");
        let shown = load(&text, &ServeArgs::default()).expect("load").show();
        for line in shown.lines() {
            let key = line.split(" = ").next().unwrap_or_default();
            let is_there = |l: &str| l == line || l.starts_with(&format!("{key} = "));
            assert!(text.lines().any(is_there), "{key} is missing from the example");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let args = ServeArgs { database: Some("postgres://p:secret@host/db".into()), ..ServeArgs::default() };
        let shown = load("", &args).expect("load").show();
        assert!(shown.contains("postgres://p:***@host/db") && !shown.contains("secret"), "{shown}");
    }
}
