//! Pure decisions of Perennial: types, plan, permits and policies.
//!
//! Nothing here awaits, reads a clock, touches a disk, or knows a wire format.

pub mod access;
pub mod cleanup;
pub mod clock;
pub mod engine;
pub mod error;
pub mod fault;
pub mod health;
pub mod hook;
pub mod id;
pub mod operation;
pub mod orphans;
pub mod parts;
pub mod permit;
pub mod plan;
pub mod planned;
pub mod pod;
pub mod progress;
pub mod quota;
pub mod record;
pub mod replication;
pub mod retention;
pub mod schedule;
pub mod service;
pub mod snapshot;
pub mod spec;
pub mod subscription;
pub mod verbs;
pub mod volume;

pub use error::Error;
