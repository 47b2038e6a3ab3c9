//! Looking into snapshots, through the API and the command line: a simulated engine, real snapshots, real HTTP.

mod cli;
mod compare;
mod content;
pub mod corpus;
pub mod desk;
mod live;
mod logs;
mod progress;
pub mod shell;
mod tree;
