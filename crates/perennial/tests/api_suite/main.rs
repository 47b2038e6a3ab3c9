//! The API, asked in process: a store in memory, the simulated engine, no reconciler; verbs are only recorded.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod access;
mod actions;
mod admin;
mod audit;
mod contract;
mod erase;
mod health;
mod hooks;
mod input;
mod matrix;
mod oidc;
mod planned;
mod quotas;
mod retention;
mod rights;
mod server;
mod services;
mod sessions;
mod slow;
mod stream;
mod subscriptions;
