//! Archives that become snapshots, through the API: a simulated engine, real snapshots, real archives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod cli;
#[path = "../sim_browse/desk.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
mod desk;
mod faults;
mod foreign;
mod refusals;
mod round_trip;
mod send;
#[path = "../sim_browse/shell.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
mod shell;
#[path = "../world/mod.rs"]
mod world;
