//! Configuration: `perennial.toml`, then environment, then flags; the later wins.

use std::path::PathBuf;

/// Flags of `perennial serve`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServeArgs {
    /// Where all state lives.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
}
