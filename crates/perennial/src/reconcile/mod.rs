//! Brings every pod to what was asked for: observe → plan → execute → record, one pod at a time.
//!
//! * [`controller`]: which pod is looked at when; leases, backoff, wake-ups.
//! * [`worker`]: one pass over one pod, under one of its [`leases`], written down by [`records`]; [`glance`]: which pods need one.
//! * [`execute`]: carries out one action of the plan; has no opinion.
//! * [`capture`], [`fill`], [`layer`], [`images`]: the actions that move bytes; [`forget`]: those that let them go.
//! * [`duplicate`]: a clone's data set, copied from its source's on the host.
//! * [`freeze`]: a running pod that stands still while a capture reads or a copy is made; [`hooks`]: what it runs around that,
//!   [`hooking`]: for how long.
//! * [`health`]: running pods are asked whether they work.
//! * [`drill`]: proofs that a snapshot can be restored.
//! * [`replicate`]: copies into replicas.
//! * [`placement`]: where the parts of a snapshot go in a set with other volumes.
//! * [`repositories`]: the tenants' repositories, kept open.
//! * [`progress`]: how far running operations are, for people.
//!
//! Nothing here decides anything: every decision is in `perennial_core::plan`.

pub mod controller;
pub mod progress;
pub mod repositories;
pub mod worker;

mod capture;
mod compose;
mod drill;
mod duplicate;
mod execute;
mod fill;
mod forget;
mod freeze;
mod glance;
mod health;
mod hooking;
mod hooks;
mod images;
mod import;
mod layer;
mod leases;
mod placement;
mod podfile;
mod records;
mod replicate;
mod step;
mod still;

pub(crate) use capture::volume_roots;
pub(crate) use images::stored_image_path;
pub(crate) use layer::layer_root;

pub use controller::{Controller, ControllerHandle};
pub use drill::Unproven;
pub use forget::Going;
pub(crate) use records::SNAPSHOT_DELAYED;
pub use replicate::{LOCKED, SeenReplica};
pub use worker::{Reconciler, Settings};

/// Reads what a snapshot says about itself for the fuzz targets: whether it is taken, and then says the same again.
#[cfg(feature = "fuzzing")]
pub(crate) fn pod_file_is_kept(bytes: &[u8]) -> bool {
    podfile::PodFile::parse(bytes).is_some_and(|file| {
        assert_eq!(podfile::PodFile::parse(&file.to_bytes()).as_ref(), Some(&file));
        let _ = (file.volumes(), file.losses(), podfile::grade_named(&file.grade));
        true
    })
}
