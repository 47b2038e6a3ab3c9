//! Limits of what a set of overlay volumes takes (D13).
//!
//! On btrfs every set is a subvolume, and its quota group of level 0 counts all that it refers to. That is limited, and nothing
//! else: neither the image's tree nor the container's own layer is in there. Elsewhere a limit is advice. What is limited is
//! asked of the file system once and then remembered, because nobody else is expected to change it; a server that died
//! in between finds what is really so.
//!
//! A file system whose quota groups are full refuses small files and new directories too, and overlay mounts need one. So a
//! start lifts the limit, and it is set again when the pod runs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use perennial_core::engine::{Effect, EngineError, SetLimit, SetSpec};
use perennial_core::id::PodId;
use perennial_core::volume::SetNumber;

use super::btrfs::{btrfs, is_btrfs, is_subvolume};
use super::client::transient;
use super::storage::{Storage, is_there};

type Known = HashMap<(PodId, SetNumber), SetLimit>;

/// What every set is limited to.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<Option<Known>>);

impl Limits {
    /// What the set is limited to now.
    pub(super) fn of(&self, storage: &Storage, set: &SetSpec) -> SetLimit {
        self.known(storage).as_ref().and_then(|k| k.get(&(set.pod, set.number))).copied().unwrap_or_default()
    }

    /// Limits the set, or takes its limit away; where the file system cannot, the limit is noted as advice.
    pub(super) fn set(&self, storage: &Storage, set: &SetSpec, bytes: Option<u64>) -> Result<Effect, EngineError> {
        storage.check()?;
        let directory = storage.set(set.pod, set.number);
        if !is_there(&directory)? {
            return Err(EngineError::NotFound { what: format!("set {} of pod {}", set.number, set.pod) });
        }
        let before = self.of(storage, set);
        let enforced = apply(storage.root(), &directory, bytes)?;
        let after = SetLimit { bytes, enforced };
        if let Some(known) = self.known(storage).as_mut() {
            known.insert((set.pod, set.number), after);
        }
        Ok(if before == after { Effect::Unchanged } else { Effect::Updated })
    }

    /// Makes room for a start.
    pub(super) fn lift(&self, storage: &Storage, set: &SetSpec) -> Result<(), EngineError> {
        if self.of(storage, set).bytes.is_some() {
            self.set(storage, set, None)?;
        }
        Ok(())
    }

    /// Forgets a set that is gone.
    pub(super) fn forget(&self, storage: &Storage, set: &SetSpec) {
        if let Some(known) = self.known(storage).as_mut() {
            known.remove(&(set.pod, set.number));
        }
    }

    fn known(&self, storage: &Storage) -> MutexGuard<'_, Option<Known>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = Some(read(storage));
        }
        known
    }
}

/// What the file system limits.
fn read(storage: &Storage) -> Known {
    if !is_btrfs(storage.root()) {
        return Known::new();
    }
    match btrfs(&["qgroup", "show", "-r", "--raw"], storage.root()) {
        Ok(listed) => listed_limits(&listed.stdout),
        // Nothing is limited as long as quotas are off, which is how every file system begins.
        Err(problem) => {
            tracing::debug!(problem, "no quota groups");
            Known::new()
        }
    }
}

/// Limits of sets in the table of `btrfs qgroup show -r --raw`: id, referenced, exclusive, limit, path.
fn listed_limits(table: &[u8]) -> Known {
    let limit = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, limit, path] = columns[..] else { return None };
        let mut names = path.rsplit('/');
        let number = names.next()?.strip_prefix('s')?.parse().ok()?;
        let pod = names.next()?.parse().ok()?;
        (names.next()? == "pods").then_some(())?;
        Some(((pod, number), SetLimit { bytes: Some(limit.parse().ok()?), enforced: true }))
    };
    String::from_utf8_lossy(table).lines().filter_map(limit).collect()
}

/// Takes the limit away that a snapshot of a subvolume has from its source: that of the source's set, which is not yet this one's.
pub(super) fn lift_inherited(root: &Path, copy: &Path) -> Result<(), EngineError> {
    apply(root, copy, None).map(|_| ())
}

/// Whether the limit is enforced now. Taking one away always works where none can be.
fn apply(root: &Path, directory: &Path, bytes: Option<u64>) -> Result<bool, EngineError> {
    if !is_subvolume(directory) {
        return Ok(false);
    }
    let amount = bytes.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string());
    let limit = || btrfs(&["qgroup", "limit", &amount], directory);
    let quotas = || btrfs(&["qgroup", "show"], root);
    if quotas().is_err() {
        if bytes.is_none() {
            return Ok(false);
        }
        tracing::info!(root = %root.display(), "turning on the quotas of the storage root's file system");
        if let Err(problem) = btrfs(&["quota", "enable"], root).and_then(|_| btrfs(&["quota", "rescan", "-w"], root)) {
            tracing::warn!(problem, "the storage root's file system has no quotas: disk limits are advice");
            return Ok(false);
        }
    }
    limit().map_err(|problem| transient(format!("limit {}: {problem}", directory.display())))?;
    Ok(bytes.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_the_table() {
        let pod = PodId::from_parts(1, [2; 10]);
        let table = format!(
            "Qgroupid    Referenced    Exclusive  Max referenced   Path \n\
             --------    ----------    ---------  --------------   ---- \n\
             0/5              16384        16384            none   <toplevel>\n\
             0/256            20480        20480        20971520   root/pods/{pod}/s1\n\
             0/257            20480        20480            none   root/pods/{pod}/s2\n\
             0/258            20480        20480            4096   elsewhere/{pod}/s3\n\
             0/259            20480        20480            4096   <stale>\n\
             1/1              20480        20480            4096   \n"
        );
        let expected = SetLimit { bytes: Some(20_971_520), enforced: true };
        assert_eq!(listed_limits(table.as_bytes()), Known::from([((pod, 1), expected)]));
        assert_eq!(listed_limits(b"\xff\nERROR: none"), Known::new());
    }
}
