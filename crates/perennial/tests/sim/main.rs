//! The server on a simulated engine with a virtual clock: the whole life of pods, and a death at every step of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(clippy::print_stdout, reason = "the report says what was swept")]

mod breaker;
mod browse;
mod care;
mod clone;
mod crash;
#[allow(dead_code, reason = "the tests of the store use all of it")]
#[path = "../store_suite/databases.rs"]
mod databases;
mod edits;
mod erase;
mod freeze;
mod health;
mod hooks;
mod import;
mod incidents;
mod lifecycle;
mod limits;
mod model;
mod mover;
mod notify;
mod orphans;
mod parts;
mod postgres;
mod processor;
mod replica;
mod retention;
mod still;
mod subscriptions;
mod trail;
mod watch;
mod world;
