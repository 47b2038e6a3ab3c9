//! Flags and environment of `perennial serve`, and the words they take.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Flags of `perennial serve`. The data directory is the global option `--data-dir`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Configuration file; `perennial.toml` in the data directory when it exists
    #[arg(long, env = "PERENNIAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; port 0 picks a free one [default: 127.0.0.1:7117]
    #[arg(long, env = "PERENNIAL_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// What runs containers [default: docker]
    #[arg(long, env = "PERENNIAL_ENGINE", value_name = "ENGINE")]
    pub engine: Option<EngineKind>,
    /// Form of the log on standard error [default: text]
    #[arg(long, env = "PERENNIAL_LOG", value_name = "FORM")]
    pub log: Option<LogForm>,
    /// Where volumes and image trees live on the host [default: storage in the data directory]
    #[arg(long, env = "PERENNIAL_STORAGE_ROOT", value_name = "DIR")]
    pub storage_root: Option<PathBuf>,
    /// Database, sqlite:PATH or postgres://… [default: perennial.db in the data directory]
    #[arg(long, env = "PERENNIAL_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Option<String>,
    /// The place below which every tenant has its repository, as restic writes it: /path, s3:https://host/bucket/prefix,
    /// azure:container:/prefix [default: repositories in the data directory]
    #[arg(long, env = "PERENNIAL_REPOSITORY", value_name = "URL")]
    pub repository: Option<String>,
    /// A file with NAME=value lines that hold the credentials of that place [default: the server's environment]
    #[arg(long, env = "PERENNIAL_REPOSITORY_ENV_FILE", value_name = "FILE")]
    pub repository_env_file: Option<PathBuf>,
    /// Authorities that are trusted for that place, PEM [default: those of the system]
    #[arg(long, env = "PERENNIAL_REPOSITORY_CA_FILE", value_name = "FILE")]
    pub repository_ca_file: Option<PathBuf>,
    /// A file with the installation key, which the keys of repositories are kept wrapped with [default: not wrapped]
    #[arg(long, env = "PERENNIAL_INSTALLATION_KEY_FILE", value_name = "FILE")]
    pub installation_key_file: Option<PathBuf>,
    /// Address of the Docker Engine [default: DOCKER_HOST, else the local socket]
    #[arg(long, env = "PERENNIAL_DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
    /// An option for the ssh that reaches an engine at ssh://…, such as IdentityFile=PATH; repeatable
    #[arg(long = "docker-ssh-option", env = "PERENNIAL_DOCKER_SSH_OPTIONS", value_delimiter = ';', value_name = "OPT")]
    pub docker_ssh_options: Option<Vec<String>>,
    /// The runtime of pods that name none [default: the engine's]
    #[arg(long, env = "PERENNIAL_DEFAULT_RUNTIME", value_name = "NAME")]
    pub default_runtime: Option<String>,
    /// A runtime that pods may ask for; repeatable [default: all the engine has]
    #[arg(long = "runtime", env = "PERENNIAL_RUNTIMES", value_delimiter = ',', value_name = "NAME")]
    pub runtimes: Option<Vec<String>>,
    /// How the engine's own volumes are read and written [default: auto]
    #[arg(long, env = "PERENNIAL_VOLUME_ACCESS", value_name = "WAY")]
    pub volume_access: Option<VolumeAccess>,
    /// Prefix of volume names on the engine [default: perennial-vol-]
    #[arg(long, env = "PERENNIAL_VOLUME_PREFIX", value_name = "TEXT")]
    pub volume_prefix: Option<String>,
    /// Addresses the tenants' networks are cut from [default: 10.214.0.0/16]
    #[arg(long, env = "PERENNIAL_SUBNET_POOL", value_name = "CIDR")]
    pub subnet_pool: Option<String>,
    /// How long a deleted pod can be brought back, such as "7d" [default: 7d]
    #[arg(long, env = "PERENNIAL_UNDELETE_WINDOW", value_name = "TIME")]
    pub undelete_window: Option<String>,
    /// Certificate chain for TLS, PEM; read again when it changes and on SIGHUP
    #[arg(long, env = "PERENNIAL_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, env = "PERENNIAL_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Listen without TLS on an address that others can reach, because a proxy in front does TLS
    #[arg(long, env = "PERENNIAL_ALLOW_PLAINTEXT", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_plaintext: Option<bool>,
}

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A Docker Engine.
    #[default]
    Docker,
    /// The simulator: nothing runs, data is real.
    Sim,
}

/// How the engine's own volumes are read and written. Overlay volumes are always directories of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeAccess {
    /// As directories of this host where they are in reach, else by a mover.
    #[default]
    Auto,
    /// As directories of this host only.
    Direct,
    /// By a mover only.
    Mover,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}
