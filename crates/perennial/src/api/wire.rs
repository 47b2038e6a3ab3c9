//! The JSON of the API: what requests may say and what answers look like (the contract in ARCHITECTURE.md).
//!
//! Names are camelCase, times RFC 3339 UTC, sizes bytes as numbers; requests also take `"512Mi"`. Requests refuse
//! unknown fields by name; answers may gain fields, so a client must not. The command line uses these same types.

mod access;
mod admin;
mod answer;
mod audit;
mod erase;
mod files;
mod health;
mod hooks;
mod names;
mod replication;
mod request;
mod retention;
mod services;
mod sessions;
mod size;
mod subscriptions;

pub use access::*;
pub use admin::*;
pub use answer::*;
pub use audit::*;
pub use erase::*;
pub use files::*;
pub use health::*;
pub use hooks::*;
pub use names::*;
pub use replication::*;
pub use request::*;
pub use retention::*;
pub use services::*;
pub use sessions::*;
pub use size::{Cpus, Size};
pub use subscriptions::*;
