//! Users, tenants and tokens.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::EraseArgs;
use crate::api::wire::{Cpus, Size};
use crate::cli::human::parse_duration;

/// What a user is to the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RoleArg {
    /// Works in the tenants they are a member of.
    #[default]
    User,
    /// Works in all tenants, and on the installation.
    Admin,
}

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    /// To look.
    Read,
    /// To change pods, snapshots and one's own tokens.
    Operate,
    /// To work on the installation.
    Admin,
}

/// What to do with users.
#[derive(Debug, Clone, Subcommand)]
pub enum UserCommand {
    /// Makes a user; they need a tenant (`tenant add`) and a token (`token create`) before they can do anything.
    Create(UserCreateArgs),
    /// Lists users.
    Ls,
    /// Shows a user.
    Show {
        /// The user's name.
        user: String,
    },
    /// Makes everything of a user good for nothing until they are enabled again.
    Disable {
        /// The user's name.
        user: String,
    },
    /// Enables a user again.
    Enable {
        /// The user's name.
        user: String,
    },
    /// Removes a user with all memberships and tokens; the name is not given to anybody else.
    Rm {
        /// The user's name.
        user: String,
    },
}

/// Makes a user.
#[derive(Debug, Clone, Args)]
pub struct UserCreateArgs {
    /// The name; an address may be one. It cannot be changed.
    pub name: String,
    /// Where they can be written to
    #[arg(long, value_name = "ADDRESS")]
    pub email: Option<String>,
    /// What they are to the installation
    #[arg(long, value_enum, default_value_t)]
    pub role: RoleArg,
    /// A file whose first line is their password
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// What to do with a tenant.
#[derive(Debug, Clone, Subcommand)]
pub enum TenantCommand {
    /// Makes a tenant.
    Create {
        /// Its name, which cannot be changed, and is not used again when it was erased.
        tenant: String,
    },
    /// Lists the tenants you may know of.
    Ls,
    /// Shows a tenant: its members, what its pods may take, and what they take of that.
    Show {
        /// The tenant's name.
        tenant: String,
    },
    /// Bounds what the pods of a tenant may take together, by their limits; what is not named stays.
    Set(TenantSetArgs),
    /// Lists the members of a tenant.
    Members {
        /// The tenant's name.
        tenant: String,
    },
    /// Makes a user a member of a tenant.
    Add {
        /// The tenant's name.
        tenant: String,
        /// The user's name.
        user: String,
    },
    /// Ends a membership.
    Remove {
        /// The tenant's name.
        tenant: String,
        /// The user's name.
        user: String,
    },
    /// Destroys the keys of a tenant without pods: nothing of it can be read again. There is no way back.
    Erase(EraseArgs),
    /// Shows how far the erasure of a tenant is, and what it means.
    Erasure {
        /// The tenant's name.
        tenant: String,
    },
}

/// A quota.
#[derive(Debug, Clone, Args)]
pub struct TenantSetArgs {
    /// The tenant's name.
    pub tenant: String,
    /// Pods that are neither archived nor deleted
    #[arg(long, value_name = "NUMBER")]
    pub pods: Option<u32>,
    /// Processors, such as 8
    #[arg(long, value_parser = Cpus::parse)]
    pub cpus: Option<Cpus>,
    /// Memory, such as 16Gi
    #[arg(long, value_parser = Size::parse, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// What their volumes may take, such as 200Gi
    #[arg(long, value_parser = Size::parse, value_name = "SIZE")]
    pub disk: Option<Size>,
    /// Bound this no more, once for each
    #[arg(long, value_enum, value_name = "KIND")]
    pub unset: Vec<QuotaKind>,
}

/// What a quota bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuotaKind {
    /// How many pods there are.
    Pods,
    /// Processors.
    Cpus,
    /// Memory.
    Memory,
    /// What volumes take.
    Disk,
}

/// What to do with tokens.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Makes a token and prints it, once. It gets at most what the one that you use has.
    Create(TokenCreateArgs),
    /// Lists your tokens; administrators see everybody's.
    Ls {
        /// Only this user's
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Makes a token good for nothing, at once and for ever.
    Revoke {
        /// Its id, as `token ls` shows it.
        token: String,
    },
}

/// Makes a token.
#[derive(Debug, Clone, Args)]
pub struct TokenCreateArgs {
    /// What it is for, in a few words
    #[arg(default_value = "")]
    pub name: String,
    /// Whose; yours when left out
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// What it may be used for; none includes another
    #[arg(long = "scope", value_enum, value_delimiter = ',', default_values = ["read", "operate"])]
    pub scopes: Vec<ScopeArg>,
    /// The only tenant it is good in
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// How long it is good, such as 12h; until it is revoked when left out
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub expires: Option<Duration>,
}
