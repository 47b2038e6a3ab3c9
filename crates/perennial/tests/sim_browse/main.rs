//! Looking into snapshots, through the API and the command line: a simulated engine, real snapshots, real HTTP.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod cli;
mod compare;
mod content;
mod corpus;
mod desk;
mod live;
mod logs;
mod progress;
mod shell;
mod tree;
#[path = "../world/mod.rs"]
mod world;
