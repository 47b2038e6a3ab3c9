//! Tenants that are erased: which, how far, and that nothing of theirs begins again.
//!
//! A row stays for good. Whether a tenant has pods and whether it is erased is looked at in the transaction that changes one
//! of both, after it took the row of the event counter: of two such transactions the second sees what the first did.

use std::collections::BTreeMap;

use jiff::Timestamp;
use perennial_core::id::OperationId;
use perennial_core::spec::TenantId;
use perennial_snapshots::Seen;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use super::change::Change;
use super::read::Select;
use super::rows::{found_from_text, found_to_text, parse, parse_tenant, parse_time, time};
use super::{Store, StoreError, access};

/// Who has the replicas of erased tenants, and until when.
const HOLDER: &str = "erasure";
const FOR_EVER: &str = "9999";

/// A tenant that is erased, or being erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// What its progress is shown under.
    pub id: OperationId,
    /// Whose.
    pub tenant: TenantId,
    /// Who asked for it.
    pub actor: String,
    /// When.
    pub asked_at: Timestamp,
    /// Whether the files of the repositories are deleted as well.
    pub delete_data: bool,
    /// What was there when it was asked for, and what became of it.
    pub found: FoundPlaces,
    /// What each server did with its copies of the keys, by its name.
    pub servers: BTreeMap<String, ServerKeys>,
    /// When the keys were destroyed; `None`: not yet.
    pub keys_at: Option<Timestamp>,
    /// When everything was done; `None`: not yet.
    pub done_at: Option<Timestamp>,
    /// Why a place is not dealt with yet, as it was tried last.
    pub problem: Option<String>,
}

/// Where a tenant's snapshots are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPlaces {
    /// The repository.
    pub repository: FoundPlace,
    /// Its replica; `None` where none is configured.
    pub replica: Option<FoundPlace>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The repository.
    Repository,
    /// Its replica.
    Replica,
}

/// What was found in one place, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPlace {
    /// Where it is, as restic writes it; empty for a replica that the configuration no longer named.
    pub location: String,
    /// What was there, when the tenant's key opened it and it was looked at to the end; `None`: nothing in it is ever touched.
    pub seen: Option<Seen>,
    /// What the key files are told by; others are not destroyed.
    pub prints: Vec<String>,
    /// Snapshots of pods, layers and images; `None`: that could not be told.
    pub snapshots: Option<u64>,
    /// Bytes of ciphertext; `None`: that could not be told.
    pub bytes: Option<u64>,
    /// What became of it; `None`: nobody has dealt with it yet.
    pub became: Option<Became>,
}

/// What became of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Became {
    /// All files are deleted, so many when it was tried last.
    Emptied {
        /// Files.
        files: u64,
        /// Bytes in them.
        bytes: u64,
    },
    /// The copies of the master key are gone, the files stay.
    KeysGone,
    /// Nothing was there when it was looked at.
    Absent,
    /// Somebody gave it up before it was dealt with: nobody knows what is left in it.
    GivenUp,
    /// Nobody could prove that what is there is the tenant's: it is left as it is.
    Untouched,
}

/// What a server did with its copies of a tenant's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerKeys {
    /// Key files that it destroyed.
    pub files: u64,
    /// Why some may be left.
    pub problem: Option<String>,
}

/// What is asked for, beside the end of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The files stay.
    Keys,
    /// The files go, too.
    KeysAndFiles,
}

impl FoundPlaces {
    /// The one or two that there are.
    pub fn all(&self) -> impl Iterator<Item = &FoundPlace> {
        [Some(&self.repository), self.replica.as_ref()].into_iter().flatten()
    }

    /// One of them; `None`: there is no replica.
    #[must_use]
    pub const fn one(&self, which: Which) -> Option<&FoundPlace> {
        match which {
            Which::Repository => Some(&self.repository),
            Which::Replica => self.replica.as_ref(),
        }
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut FoundPlace> {
        [Some(&mut self.repository), self.replica.as_mut()].into_iter().flatten()
    }
}

impl Erasure {
    /// What is asked for.
    #[must_use]
    pub const fn asked(&self) -> Asked {
        if self.delete_data { Asked::KeysAndFiles } else { Asked::Keys }
    }

    /// Whether there was a key anywhere that is to be destroyed.
    #[must_use]
    pub fn had_keys(&self) -> bool {
        self.found.all().any(|place| !place.prints.is_empty())
    }

    /// Everything that is wrong, in words.
    #[must_use]
    pub fn problems(&self) -> Option<String> {
        let servers = self.servers.iter();
        let servers =
            servers.filter_map(|(server, keys)| Some(format!("on server {server}: {}", keys.problem.as_ref()?)));
        let all: Vec<String> = self.problem.clone().into_iter().chain(servers).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Whether it is done, and all of it was: nothing is left that could not be dealt with.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let is_left = |place: &FoundPlace| matches!(place.became, None | Some(Became::GivenUp | Became::Untouched));
        self.done_at.is_some() && self.problems().is_none() && !self.found.all().any(is_left)
    }

    /// Asks for the files, too. Places of which only the keys went are to be dealt with again; a key that is there by then is of
    /// somebody who uses it since.
    #[must_use]
    pub fn with_files(mut self) -> Self {
        if !self.delete_data {
            self.delete_data = true;
            self.done_at = None;
            self.problem = None;
            for place in self.found.all_mut().filter(|place| place.became == Some(Became::KeysGone)) {
                place.became = None;
                place.seen.iter_mut().for_each(|seen| seen.keys.clear());
            }
        }
        self
    }

    /// Gives up what was not dealt with: places, the config of one in which nothing else is left, and keys that no server has. What
    /// servers say of their keys is forgotten; those that run say it again.
    pub fn give_up(&mut self, at: Timestamp) {
        for place in self.found.all_mut() {
            if let Became::Emptied { .. } = place.became.get_or_insert(Became::GivenUp) {
                place.seen = None;
            }
        }
        self.servers.values_mut().for_each(|keys| keys.problem = None);
        self.keys_at.get_or_insert(at);
        self.problem = None;
    }
}

/// What changes in an erasure.
#[derive(Debug, Clone)]
pub enum ErasureChange {
    /// It is asked for, or asked for again with more to do. Nothing is written while the tenant has pods or work.
    Begun(Box<Erasure>),
    /// A server looked at its keys at this time. With the first that destroyed some, or when there were none, what the database
    /// knows of the repositories goes as well.
    Server(TenantId, String, ServerKeys, Timestamp),
    /// A place was dealt with, as far as this was asked for. Nothing is written when something else is asked for now, or that was
    /// recorded before.
    Became(TenantId, Which, Became, Asked),
    /// See [`Erasure::give_up`]. Nothing is written when something else is asked for now.
    GivenUp(TenantId, Timestamp, Asked),
    /// Everything was done at this time that was asked for. Nothing is written when something else is asked for now, a place is
    /// not dealt with, or another server was quicker.
    Done(TenantId, Timestamp, Asked),
    /// The places were tried and this is in the way; `None`: somebody may have mended it.
    Problem(TenantId, Option<String>),
}

impl ErasureChange {
    pub(super) const fn tenant(&self) -> &TenantId {
        match self {
            Self::Begun(erasure) => &erasure.tenant,
            Self::Server(tenant, ..)
            | Self::Became(tenant, ..)
            | Self::GivenUp(tenant, ..)
            | Self::Done(tenant, ..)
            | Self::Problem(tenant, _) => tenant,
        }
    }
}

const COLUMNS: &str = "SELECT tenant, id, actor, asked_at, delete_data, found, keys_at, done_at, problem FROM erasures";

impl Store {
    /// Reads a tenant's erasure; `None` when nobody asked for one.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn erasure_fetch(&self, tenant: &TenantId) -> Result<Option<Erasure>, StoreError> {
        let mut select = Select::new(COLUMNS);
        select.text(" WHERE tenant = $", tenant.as_str());
        self.row(select).await?.as_ref().map(erasure).transpose()
    }

    /// Lists all of them by tenant.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn erasure_list(&self) -> Result<Vec<Erasure>, StoreError> {
        self.rows(Select::new(format!("{COLUMNS} ORDER BY tenant"))).await?.iter().map(erasure).collect()
    }

    /// Says what keeps a tenant from being erased, in words: work on it that has not ended.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn tenant_work(&self, tenant: &TenantId, now: Timestamp) -> Result<Vec<String>, StoreError> {
        let mut select = Select::new("SELECT id FROM operations");
        select.text(" WHERE tenant = $", tenant.as_str()).raw(" AND state IN ('pending', 'running') ORDER BY id");
        let operations = self.rows(select).await?;
        let mut work = Vec::new();
        for row in operations {
            work.push(format!("operation {} is not finished", row.try_get::<&str, _>(0)?));
        }
        let mut select = Select::new("SELECT busy_until FROM replicas");
        select.text(" WHERE tenant = $", tenant.as_str()).text(" AND busy_until > $", time(now));
        select.text(" AND holder <> $", HOLDER);
        if self.row(select).await?.is_some() {
            work.push("a server copies to its replica".to_owned());
        }
        Ok(work)
    }

    /// Whether anything was ever recorded of a tenant's repository.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn tenant_known(&self, tenant: &TenantId) -> Result<bool, StoreError> {
        for from in [
            "SELECT 1 FROM pods",
            "SELECT 1 FROM images",
            "SELECT 1 FROM prunes",
            "SELECT 1 FROM replicas",
            "SELECT 1 FROM recovery_exports",
            "SELECT 1 FROM erasures",
            "SELECT 1 FROM (SELECT name AS tenant FROM tenants) t",
        ] {
            let mut select = Select::new(from);
            select.text(" WHERE tenant = $ LIMIT 1", tenant.as_str());
            if self.row(select).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn erasure(row: &AnyRow) -> Result<Erasure, StoreError> {
    let what = "erasure";
    let when = |text: &str| if text.is_empty() { Ok(None) } else { parse_time(what, text).map(Some) };
    let problem: String = row.try_get(8)?;
    let (found, servers) = found_from_text(row.try_get(5)?)?;
    Ok(Erasure {
        tenant: parse_tenant(what, row.try_get(0)?)?,
        id: parse(what, row.try_get(1)?)?,
        actor: row.try_get(2)?,
        asked_at: parse_time(what, row.try_get(3)?)?,
        delete_data: row.try_get::<i64, _>(4)? != 0,
        found,
        servers,
        keys_at: when(row.try_get(6)?)?,
        done_at: when(row.try_get(7)?)?,
        problem: Some(problem).filter(|text| !text.is_empty()),
    })
}

/// Writes what a change says of erasures, and refuses a new pod of a tenant that has one.
pub(super) async fn apply(tx: &mut AnyConnection, change: &Change) -> Result<(), StoreError> {
    let made = || change.other_pod.iter().chain(&change.pod).filter(|pod| pod.version == 0);
    if made().next().is_none() && change.erasure.is_none() {
        return Ok(());
    }
    sqlx::query("UPDATE counters SET value = value WHERE name = 'event'").execute(&mut *tx).await?;
    for pod in made() {
        access::tenant_ensure(tx, &pod.tenant, pod.created_at).await?;
    }
    let Some(change) = &change.erasure else { return Ok(()) };
    if let ErasureChange::Begun(asked) = change {
        return begin(tx, asked).await;
    }
    let tenant = change.tenant();
    let row = row_of(tx, tenant).await?.ok_or(StoreError::Stale)?;
    let before = erasure(&row)?;
    let after = changed(before.clone(), change)?;
    write(tx, &after).await?;
    if before.keys_at.is_none() && after.keys_at.is_some() { forget(tx, tenant).await } else { Ok(()) }
}

/// What an erasure is after a change.
fn changed(mut erasure: Erasure, change: &ErasureChange) -> Result<Erasure, StoreError> {
    match change {
        ErasureChange::Begun(more) if more.delete_data => return Ok(erasure.with_files()),
        ErasureChange::Begun(_) => {}
        ErasureChange::Server(_, server, keys, at) => {
            let is_destroyed = keys.problem.is_none() && (keys.files > 0 || !erasure.had_keys());
            erasure.servers.insert(server.clone(), keys.clone());
            if is_destroyed {
                erasure.keys_at.get_or_insert(*at);
            }
        }
        ErasureChange::Became(_, which, became, asked) => {
            let is_stale = erasure.done_at.is_some() || erasure.asked() != *asked;
            let place = match which {
                Which::Repository => Some(&mut erasure.found.repository),
                Which::Replica => erasure.found.replica.as_mut(),
            };
            match place.filter(|place| !is_stale && place.became.is_none()) {
                Some(place) => place.became = Some(*became),
                None => return Err(StoreError::Stale),
            }
        }
        ErasureChange::GivenUp(_, at, asked) if erasure.asked() == *asked => erasure.give_up(*at),
        ErasureChange::GivenUp(..) => return Err(StoreError::Stale),
        ErasureChange::Done(_, at, asked) => {
            let is_dealt_with = erasure.found.all().all(|place| place.became.is_some());
            let is_due = erasure.done_at.is_none() && erasure.keys_at.is_some() && erasure.asked() == *asked;
            if !is_due || !is_dealt_with {
                return Err(StoreError::Stale);
            }
            erasure.done_at = Some(*at);
            erasure.problem = None;
            // Many names, of which only those are needed again that files may be asked for of.
            for place in erasure.found.all_mut().filter(|place| place.became != Some(Became::KeysGone)) {
                place.seen = None;
            }
        }
        // Another server may have done it meanwhile.
        ErasureChange::Problem(_, problem) if erasure.done_at.is_none() => erasure.problem.clone_from(problem),
        ErasureChange::Problem(..) => {}
    }
    Ok(erasure)
}

async fn row_of(tx: &mut AnyConnection, tenant: &TenantId) -> Result<Option<AnyRow>, StoreError> {
    let sql = format!("{COLUMNS} WHERE tenant = $1");
    Ok(sqlx::query(AssertSqlSafe(sql)).bind(tenant.as_str()).fetch_optional(tx).await?)
}

/// Writes all that may change.
async fn write(tx: &mut AnyConnection, erasure: &Erasure) -> Result<(), StoreError> {
    let when = |at: Option<Timestamp>| at.map(time).unwrap_or_default();
    sqlx::query(
        "UPDATE erasures SET delete_data = $2, found = $3, keys_at = $4, done_at = $5, problem = $6 WHERE tenant = $1",
    )
    .bind(erasure.tenant.as_str())
    .bind(i64::from(erasure.delete_data))
    .bind(found_to_text(&erasure.found, &erasure.servers)?)
    .bind(when(erasure.keys_at))
    .bind(when(erasure.done_at))
    .bind(erasure.problem.clone().unwrap_or_default())
    .execute(tx)
    .await?;
    Ok(())
}

async fn begin(tx: &mut AnyConnection, erasure: &Erasure) -> Result<(), StoreError> {
    let tenant = erasure.tenant.as_str();
    let refuse = |why: &str| Err(StoreError::TenantInUse(erasure.tenant.clone(), why.to_owned()));
    let any = async |tx: &mut AnyConnection, sql: &'static str| {
        sqlx::query(sql).bind(tenant.to_owned()).fetch_optional(tx).await.map(|row| row.is_some())
    };
    if any(tx, "SELECT 1 FROM pods WHERE tenant = $1 LIMIT 1").await? {
        return refuse("it has pods");
    }
    if any(tx, "SELECT 1 FROM operations WHERE tenant = $1 AND state IN ('pending', 'running') LIMIT 1").await? {
        return refuse("an operation is not finished");
    }
    // Nobody copies there from now on; on Postgres this waits for whoever is about to claim it.
    let held = sqlx::query(
        "UPDATE replicas SET holder = $2, busy_until = $3 WHERE tenant = $1 AND (busy_until <= $4 OR holder = $2)",
    )
    .bind(tenant)
    .bind(HOLDER)
    .bind(FOR_EVER)
    .bind(time(erasure.asked_at))
    .execute(&mut *tx)
    .await?;
    if held.rows_affected() == 0 && any(tx, "SELECT 1 FROM replicas WHERE tenant = $1").await? {
        return refuse("a server copies to its replica");
    }
    let asked = match row_of(tx, &erasure.tenant).await? {
        Some(row) => changed(self::erasure(&row)?, &ErasureChange::Begun(Box::new(erasure.clone())))?,
        None => {
            let sql = "INSERT INTO erasures (tenant, id, actor, asked_at, delete_data, found, keys_at, done_at, problem) \
                       VALUES ($1, $2, $3, $4, 0, '', '', '', '')";
            let query = sqlx::query(sql).bind(tenant).bind(erasure.id.to_string()).bind(erasure.actor.as_str());
            query.bind(time(erasure.asked_at)).execute(&mut *tx).await?;
            erasure.clone()
        }
    };
    access::tenant_gone(tx, &erasure.tenant, erasure.asked_at).await?;
    write(tx, &asked).await
}

/// Forgets what the database knows of the repositories.
async fn forget(tx: &mut AnyConnection, tenant: &TenantId) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM images WHERE tenant = $1",
        "DELETE FROM prunes WHERE tenant = $1",
        "DELETE FROM replicated WHERE tenant = $1",
        "DELETE FROM replicas WHERE tenant = $1",
        "DELETE FROM recovery_exports WHERE tenant = $1",
        "DELETE FROM replica_exports WHERE tenant = $1",
    ] {
        sqlx::query(sql).bind(tenant.as_str()).execute(&mut *tx).await?;
    }
    Ok(())
}
