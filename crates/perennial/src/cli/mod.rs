//! The command line: an HTTP client of the API, and the only place that prints.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::ServeArgs;

/// Runs pods whose data outlives everything they run on.
#[derive(Debug, Parser)]
#[command(name = "perennial", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do: everything that is not the server, its configuration or the mover talks to a server.
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
    /// Reads or writes volumes inside a helper container; started by the server.
    #[command(hide = true)]
    Mover,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Checks it and says nothing when it is good.
    Check(ServeArgs),
    /// Prints it as it would be used, with every default.
    Show(ServeArgs),
}

/// How a client finds its server.
#[derive(Debug, Clone, Default, Args)]
pub struct Connection {
    /// The server's address.
    #[arg(long, global = true, env = "PERENNIAL_SERVER", default_value = "http://127.0.0.1:7117")]
    pub server: String,
    /// A file that holds the bearer token.
    #[arg(long, global = true)]
    pub token_file: Option<PathBuf>,
}
