//! Use-replica: the replicas take the place of repositories that are lost, with their keys.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use perennial_core::fault::NoTap;
use perennial_core::spec::TenantId;
use perennial_snapshots::Repository;

use crate::causes::describe;
use crate::cli::failure::{Exit, Failure};
use crate::config::{Config, ConfigError};
use crate::keys::KeyError;
use crate::serve::DataDir;
use crate::store::{Backlog, Store};

/// Has the keys of repositories and replicas change places, in one step, while no server uses them. Without `yes` it is only
/// said what there is. All tenants change over together: one that has snapshots and no replica has to be named in `without`. Blocks.
///
/// # Errors
/// When a replica does not open with its key, or a tenant without one is not named: then nothing is changed.
pub fn use_replica(config: &Config, without: &[String], yes: bool) -> Result<String, Failure> {
    let Some(replication) = &config.replication else {
        let hint = "name the place of the replicas in [replication] of perennial.toml";
        return Err(Failure::new(Exit::Invalid, "no replica is configured", hint));
    };
    let given_up = without.iter().map(|text| TenantId::parse(text)).collect::<Result<Vec<TenantId>, _>>();
    let given_up = given_up.map_err(|error| Failure::new(Exit::Invalid, format!("--without: {error}"), ""))?;
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
    let mut places = Vec::new();
    for (tenant, password) in &found {
        let place = replication.repository.of_tenant(tenant);
        let failed = |problem: String| {
            let hint = "nothing was changed; bring the replica back, or check [replication]";
            Failure::new(Exit::Failed, format!("{place} cannot take the place of the repository: {problem}"), hint)
        };
        let backend = replication.repository.connect(tenant).map_err(|error| refused(&error))?;
        let replica = Repository::open(backend, password).map_err(|error| failed(describe(&error)))?;
        let count = replica.snapshot_names().map_err(|error| failed(describe(&error)))?.len();
        places.push((
            tenant.clone(),
            replica.id().to_owned(),
            format!("{count} snapshots, images and layers are in {place}"),
        ));
    }
    let has_replica = |tenant: &TenantId| found.iter().any(|(other, _)| other == tenant);
    let firsts = keys.all().map_err(unreadable)?.into_iter().map(|(tenant, _)| tenant);
    let lonely: Vec<TenantId> = firsts.filter(|tenant| !has_replica(tenant)).collect();
    let ids = places.iter().map(|(tenant, id, _)| (tenant.clone(), id.clone()));
    let backlogs =
        missing(&config.database, ids.chain(lonely.iter().map(|tenant| (tenant.clone(), String::new()))).collect());
    let mut said = String::new();
    if let Err(problem) = &backlogs {
        said.push_str(&format!("What is missing is not known: {problem}\n"));
    }
    let backlog = |tenant: &TenantId| backlogs.as_ref().ok().and_then(|all| all.get(tenant));
    for (tenant, _, what) in &places {
        said.push_str(&format!("{tenant}: {what}"));
        if let Some(Backlog { count, oldest: Some(oldest) }) = backlog(tenant) {
            said.push_str(&format!(
                "; {count} verified snapshots are not, the oldest of them {oldest}: pods that need one of them do not start"
            ));
        }
        said.push('\n');
    }
    let mut kept = Vec::new();
    for tenant in &lonely {
        let known = backlog(tenant).map(|backlog| backlog.count);
        let has = known.map_or_else(
            || "its snapshots, if it has any,".to_owned(),
            |count| format!("its {count} verified snapshots"),
        );
        if known == Some(0) {
            said.push_str(&format!("{tenant}: has neither a replica nor a verified snapshot\n"));
            continue;
        }
        said.push_str(&format!(
            "{tenant}: has no replica, and would begin with an empty repository: {has} would be out of reach\n"
        ));
        if !given_up.contains(tenant) {
            kept.push(tenant.as_str());
        }
    }
    if yes && !kept.is_empty() {
        let message = format!(
            "{said}nothing was changed: tenants without a replica would lose their snapshots: {}",
            kept.join(", ")
        );
        let hint = "all change over together: have their repositories copied first (`perennial repository copy`), or give them up with \
                    --without TENANT";
        return Err(Failure::new(Exit::Conflict, message, hint));
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

/// How far each replica is behind, by the database; of a tenant without one, with everything.
fn missing(url: &str, replicas: Vec<(TenantId, String)>) -> Result<HashMap<TenantId, Backlog>, String> {
    // One that is not there would be made.
    if let Some(path) =
        url.strip_prefix("sqlite:").filter(|path| !Path::new(path.strip_prefix("//").unwrap_or(path)).exists())
    {
        return Err(format!("there is no database {path}"));
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let store = Store::open(url, Arc::new(NoTap)).await.map_err(|error| describe(&error))?;
        let mut all = HashMap::new();
        for (tenant, id) in replicas {
            let backlog = store.replica_backlog(&tenant, &id).await.map_err(|error| describe(&error))?;
            all.insert(tenant, backlog);
        }
        store.close().await;
        Ok(all)
    })
}

fn refused(error: &ConfigError) -> Failure {
    Failure::new(Exit::Invalid, error.to_string(), error.hint())
}
