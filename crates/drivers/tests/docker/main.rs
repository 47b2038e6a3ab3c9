//! The driver on a real Docker Engine, with runc and with gVisor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod conformance;
mod networks;
mod overlay_rules;
mod pods;
mod reach;
mod ssh;
mod storage;
mod support;
