//! The command line against a scripted server: what is printed, what is sent, what the exit code is.
//!
//! The commands run in this process with their streams, clock and Ctrl-C passed in; the server is a real one on the
//! loopback that answers from a script and remembers what it was asked.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod act;
mod audit;
mod confirm;
mod exits;
mod export;
mod fake;
mod follow;
mod hooks;
mod live;
mod logs;
mod program;
mod retention;
mod service;
mod show;
mod tenant;
