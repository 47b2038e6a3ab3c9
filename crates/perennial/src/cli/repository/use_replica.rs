//! Use-replica: the replicas take the place of repositories that are lost, with their keys.

use perennial_core::spec::TenantId;
use perennial_snapshots::Repository;

use crate::causes::describe;
use crate::cli::failure::{Exit, Failure};
use crate::config::{Config, ConfigError};
use crate::keys::KeyError;
use crate::serve::DataDir;

/// Has the keys of repositories and replicas change places, in one step, while no server uses them. Without `yes` it is only
/// said what there is. Blocks.
///
/// # Errors
/// When a replica does not open with its key: then nothing is changed.
pub fn use_replica(config: &Config, yes: bool) -> Result<String, Failure> {
    let Some(replication) = &config.replication else {
        let hint = "name the place of the replicas in [replication] of perennial.toml";
        return Err(Failure::new(Exit::Invalid, "no replica is configured", hint));
    };
    let keys = config.keys.keyring(&config.data_dir).map_err(|error| refused(&error))?;
    let replica_keys = keys.of_replicas();
    let unreadable = |error: KeyError| Failure::new(Exit::Failed, error.to_string(), error.hint());
    // No server may be using them meanwhile.
    let _directory = DataDir::open(&config.data_dir)
        .map_err(|error| Failure::new(Exit::Conflict, error.to_string(), error.hint()))?;
    let found = replica_keys.all().map_err(unreadable)?;
    if found.is_empty() {
        let hint = "the server makes replicas with the first snapshots that it copies";
        return Err(Failure::new(Exit::NotFound, "there is no key of any replica", hint));
    }
    let mut said = String::new();
    for (tenant, password) in &found {
        let place = replication.repository.of_tenant(tenant);
        let failed = |problem: String| {
            let hint = "nothing was changed; bring the replica back, or check [replication]";
            Failure::new(Exit::Failed, format!("{place} cannot take the place of the repository: {problem}"), hint)
        };
        let backend = replication.repository.connect(tenant).map_err(|error| refused(&error))?;
        let replica = Repository::open(backend, password).map_err(|error| failed(describe(&error)))?;
        let count = replica.snapshot_names().map_err(|error| failed(describe(&error)))?.len();
        said.push_str(&format!("{tenant}: {count} snapshots, images and layers are in {place}\n"));
    }
    let has_replica = |tenant: &TenantId| found.iter().any(|(other, _)| other == tenant);
    for (tenant, _) in keys.all().map_err(unreadable)?.iter().filter(|(tenant, _)| !has_replica(tenant)) {
        said.push_str(&format!("{tenant}: has no replica, and would begin with an empty repository\n"));
    }
    if !yes {
        said.push_str("Nothing was changed. Add --yes to have the keys of repositories and replicas change places.");
        return Ok(said);
    }
    keys.exchange_with_replicas().map_err(unreadable)?;
    said.push_str(&format!(
        "The keys of repositories and replicas have changed places; the same command again changes them back.\n\
         Now write what [replication] says into [repository] (location = {:?}), and remove [replication], or have it\n\
         name the old place or none that was used before; then start the server.",
        replication.repository.location
    ));
    Ok(said)
}

fn refused(error: &ConfigError) -> Failure {
    Failure::new(Exit::Invalid, error.to_string(), error.hint())
}
