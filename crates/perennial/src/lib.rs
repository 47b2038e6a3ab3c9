//! Pods whose data outlives everything they run on: server, command line and data mover.
//!
//! The binary is a thin shell around this library, so that tests can run the server in their own process.

pub mod api;
pub mod audit;
pub mod catalogue;
pub mod causes;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod fault;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod identity;
pub mod import;
pub mod keys;
pub mod library;
pub mod mover;
pub mod notify;
pub mod oidc;
pub mod reconcile;
pub mod serve;
pub mod service;
mod size;
pub mod store;
pub mod tasks;
