//! Pods on a real Docker Engine, by the real program: one server, one engine, real data, real faults.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

/// One test on each runtime.
macro_rules! on_both {
    ($($name:ident => $runc:ident, $runsc:ident;)*) => { $(
        #[test]
        fn $runc() { $name("runc"); }
        #[test]
        fn $runsc() { $name("runsc"); }
    )* };
}

mod clone;
mod database;
mod database_copy;
mod engine_restart;
mod faults;
mod hooks;
mod host;
mod hostile;
mod import;
mod installation;
mod instant;
mod lifecycle;
mod limits;
mod mover;
mod packages;
mod parts;
mod planned;
mod service;
mod ssh;
#[path = "../../../drivers/tests/docker/support/sshd.rs"]
mod sshd;
mod tenants;
