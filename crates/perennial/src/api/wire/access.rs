//! Users, tenants and tokens.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::Secret;
use super::names::{Role, Scope};
use super::request::{given, given_object};
use super::size::{Cpus, Size};

/// Makes a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateUser {
    /// The name: it never changes, and is not given to anybody else when the user is removed.
    #[schema(max_length = 64, pattern = "^[a-z0-9]([-_.+@a-z0-9]*[a-z0-9])?$")]
    pub name: String,
    /// Where they can be written to.
    #[serde(default)]
    pub email: Option<String>,
    /// What they are to the installation; `user` when left out.
    #[serde(default)]
    pub role: Option<Role>,
    /// Their password, 12 characters or more; none when left out.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub password: Option<Secret>,
}

/// Changes what is known of a user; what is left out stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PatchUser {
    /// Where they can be written to; null: nowhere.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub email: Option<Option<String>>,
    /// What they are to the installation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Their password, 12 characters or more; null: none.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub password: Option<Option<Secret>>,
    /// Whether nothing of theirs is good for now: tokens are refused, and good again when this ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The name.
    pub name: String,
    /// Where they can be written to; null: nobody said.
    pub email: Option<String>,
    /// What they are to the installation.
    pub role: Role,
    /// Whether a password is set.
    pub has_password: bool,
    /// Whether nothing of theirs is good for now.
    pub disabled: bool,
    /// The tenants they are a member of, by name.
    pub tenants: Vec<String>,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Makes a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateTenant {
    /// The name: it never changes, and is not used again after the tenant was erased.
    #[schema(max_length = 40, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    pub name: String,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// The name.
    pub name: String,
    /// The users that work in it, by name; null in lists.
    pub members: Option<Vec<String>>,
    /// What its living pods may take together.
    #[serde(default)]
    pub quota: Quota,
    /// What they take of that, by the limits they have; null in lists.
    #[serde(default)]
    pub usage: Option<TenantUsage>,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// What the living pods of a tenant may take together, by the limits they have; what is null is not bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Quota {
    /// Pods that are neither archived nor deleted, whether they run or not.
    #[schema(maximum = 1_000_000)]
    pub pods: Option<u32>,
    /// Processors, such as 1.5.
    pub cpus: Option<Cpus>,
    /// Memory.
    pub memory: Option<Size>,
    /// What their volumes may take.
    pub disk: Option<Size>,
}

/// Changes a tenant; what is left out stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PatchTenant {
    /// What its living pods may take together, as a whole; null: no bound. What is beyond that already stays.
    #[serde(deserialize_with = "given_object", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Quota>)]
    pub quota: Option<Option<Quota>>,
}

/// What the living pods of a tenant take of its quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantUsage {
    /// How many there are.
    pub pods: u32,
    /// Processors that they are limited to together.
    pub cpus: Cpus,
    /// Memory, likewise.
    pub memory: Size,
    /// What their volumes are limited to, likewise.
    pub disk: Size,
    /// How many have no limit of CPU time, memory or disk, and may take all there is.
    pub unlimited: u32,
}

/// Makes a token, which never exceeds the one that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for, in a few words.
    #[serde(default)]
    #[schema(max_length = 100)]
    pub name: String,
    /// Whose; of who asks when left out. Administrators make tokens for others.
    #[serde(default)]
    pub user: Option<String>,
    /// What it may be used for, at least one.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// The only tenant it is good in; when left out, as the token that asks.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Until when; when left out, as long as the token that asks.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Which.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Whose.
    pub user: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// The only tenant it is good in; null: all of its user's.
    pub tenant: Option<String>,
    /// Who made it.
    pub created_by: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Until when; null: until it is revoked.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// When it was used last, within ten minutes or so; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
    /// Since when it is good for nothing; null: it is not revoked.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Timestamp>,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedToken {
    /// What is kept of it.
    pub token: Token,
    /// The token as it is sent, as `Authorization: Bearer …`. It is shown now and never again.
    #[schema(value_type = String)]
    pub secret: Secret,
}

/// Who asks, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Me {
    /// The name in events.
    pub actor: String,
    /// The user; null for the administrator's token, which is no user's.
    pub user: Option<String>,
    /// What they are to the installation.
    pub role: Role,
    /// What the token may be used for.
    pub scopes: Vec<Scope>,
    /// The tenants whose things exist for them, by name; null: all.
    pub tenants: Option<Vec<String>>,
    /// The token; null for the administrator's.
    pub token: Option<Token>,
}
