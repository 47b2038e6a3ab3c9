//! The simulated engine: what every engine has to keep, and what only a simulation can be asked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod conformance;
mod engine;
