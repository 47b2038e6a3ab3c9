//! Everything that is looked up. Lists are pages: a cursor and a limit.

use std::collections::BTreeSet;

use jiff::Timestamp;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{Event, NewEvent, Operation};
use perennial_core::pod::{Phase, Pod};
use perennial_core::snapshot::{Snapshot, SnapshotKind, SnapshotState};
use perennial_core::spec::{PodName, TenantId};
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe, Row as _};

use super::rows::{
    operation_from_row, parse, parse_tenant, parse_time, phase_text, pod_from_row, snapshot_from_body,
    snapshot_state_text, time,
};
use super::{IdempotencyRecord, Store, StoreError, StoredImage};

/// What `pod_from_row` reads.
pub(super) const POD_COLUMNS: &str =
    "p.id, p.tenant, p.name, p.desired, p.phase, p.version, p.created_at, p.updated_at, p.spec, p.state";
/// The newest verified snapshot of the pod `p`.
pub(super) const LATEST_SNAPSHOT: &str = "(SELECT s.body FROM snapshots s WHERE s.pod = p.id AND s.state = 'verified' \
     AND s.body NOT LIKE '%\"kind\":\"imported\"%' ORDER BY s.id DESC LIMIT 1)";

/// Leaves out events of the installation, which are written under a tenant only because each event is.
const OF_TENANTS: &str = " AND kind NOT LIKE 'user.%' AND kind NOT LIKE 'token.%' AND kind NOT LIKE 'recovery-kit.%' \
     AND kind NOT LIKE 'service.%' AND kind NOT LIKE 'catalogue.%'";

/// Which pods are meant, by whether they are archived or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Living pods only.
    #[default]
    Living,
    /// Archived and deleted pods only.
    Hidden,
    /// All.
    All,
}

/// Which pods a list holds.
#[derive(Debug, Clone, Default)]
pub struct PodFilter {
    /// Only this tenant's; `None`: everybody's.
    pub tenant: Option<TenantId>,
    /// Only of these tenants, which are those that exist for who asks; `None`: all do.
    pub within: Option<BTreeSet<TenantId>>,
    /// Living, hidden, or both.
    pub visibility: Visibility,
    /// Only in this phase.
    pub phase: Option<Phase>,
    /// Only of this name.
    pub name: Option<PodName>,
}

/// Which part of a list is wanted.
#[derive(Debug, Clone)]
pub struct Page {
    /// Id of the last item of the page before; `None` for the first page.
    pub after: Option<String>,
    /// At most so many.
    pub limit: u32,
}

impl Page {
    /// The first `limit` items.
    #[must_use]
    pub const fn first(limit: u32) -> Self {
        Self { after: None, limit }
    }
}

/// Whose snapshots a list holds.
#[derive(Debug, Clone)]
pub enum SnapshotScope {
    /// One pod's.
    Pod(PodId),
    /// One tenant's.
    Tenant(TenantId),
}

/// Which snapshots a list over all pods holds.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    /// Only this tenant's; `None`: everybody's.
    pub tenant: Option<TenantId>,
    /// Only of these tenants, which are those that exist for who asks; `None`: all do.
    pub within: Option<BTreeSet<TenantId>>,
    /// Only of this pod.
    pub pod: Option<PodId>,
    /// Only in this state.
    pub state: Option<SnapshotState>,
    /// Only of this kind.
    pub kind: Option<SnapshotKind>,
}

/// Which events a list holds.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only of this pod.
    pub pod: Option<PodId>,
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only of these tenants, which are those that exist for who asks, and nothing of the installation; `None`: all do.
    pub within: Option<BTreeSet<TenantId>>,
}

/// A SELECT that is put together from fixed fragments; every value is bound.
pub(super) struct Select {
    sql: String,
    values: Vec<Value>,
}

enum Value {
    Text(String),
    Number(i64),
}

impl Select {
    pub(super) fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), values: Vec::new() }
    }

    /// Adds a fragment whose `$` is the place of one bound value.
    fn with(&mut self, fragment: &'static str, value: Value) -> &mut Self {
        self.values.push(value);
        let place = format!("${}", self.values.len());
        self.sql.push_str(&fragment.replace('$', &place));
        self
    }

    pub(super) fn text(&mut self, fragment: &'static str, value: impl Into<String>) -> &mut Self {
        self.with(fragment, Value::Text(value.into()))
    }

    pub(super) fn number(&mut self, fragment: &'static str, value: i64) -> &mut Self {
        self.with(fragment, Value::Number(value))
    }

    pub(super) fn raw(&mut self, fragment: &'static str) -> &mut Self {
        self.sql.push_str(fragment);
        self
    }

    /// Adds a condition on one of these tenants; none for `None`, and one that nothing meets when there is no tenant.
    pub(super) fn among(&mut self, fragment: &'static str, tenants: Option<&BTreeSet<TenantId>>) -> &mut Self {
        let Some(tenants) = tenants else { return self };
        let mut all = tenants.iter();
        let Some(first) = all.next() else { return self.raw(" AND 1 = 0") };
        self.raw(fragment).text("$", first.as_str());
        for tenant in all {
            self.text(", $", tenant.as_str());
        }
        self.raw(")")
    }

    /// Adds a list of these ids, of which there is one at least.
    pub(super) fn any_of<T: ToString>(&mut self, ids: &[T]) -> &mut Self {
        let mut before = "($";
        for id in ids {
            self.text(before, id.to_string());
            before = ", $";
        }
        self.raw(")")
    }

    pub(super) fn limit(&mut self, limit: u32) -> &mut Self {
        self.with(" LIMIT $", Value::Number(i64::from(limit)))
    }

    fn query(self) -> Query<'static, Any, AnyArguments> {
        let mut query = sqlx::query(AssertSqlSafe(self.sql));
        for value in self.values {
            query = match value {
                Value::Text(text) => query.bind(text),
                Value::Number(number) => query.bind(number),
            };
        }
        query
    }
}

impl Store {
    pub(super) async fn rows(&self, select: Select) -> Result<Vec<AnyRow>, StoreError> {
        Ok(select.query().fetch_all(&self.read).await?)
    }

    pub(super) async fn row(&self, select: Select) -> Result<Option<AnyRow>, StoreError> {
        Ok(select.query().fetch_optional(&self.read).await?)
    }

    /// Reads a pod; `None` when there is none.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn pod_fetch(&self, pod: PodId) -> Result<Option<Pod>, StoreError> {
        let mut select = Select::new(format!("SELECT {POD_COLUMNS} FROM pods p"));
        select.text(" WHERE p.id = $", pod.to_string());
        self.row(select).await?.as_ref().map(pod_from_row).transpose()
    }

    /// Reads a pod by its name; of several hidden ones the newest.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn pod_fetch_by_name(
        &self,
        tenant: &TenantId,
        name: &PodName,
        visibility: Visibility,
    ) -> Result<Option<Pod>, StoreError> {
        let mut select = Select::new(format!("SELECT {POD_COLUMNS} FROM pods p"));
        select.text(" WHERE p.tenant = $", tenant.as_str()).text(" AND p.name = $", name.as_str());
        select.raw(visible(visibility)).raw(" ORDER BY p.hidden, p.id DESC LIMIT 1");
        self.row(select).await?.as_ref().map(pod_from_row).transpose()
    }

    /// Reads a pod and its newest verified snapshot.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_fetch_with_latest(&self, pod: PodId) -> Result<Option<(Pod, Option<Snapshot>)>, StoreError> {
        let mut select = Select::new(format!("SELECT {POD_COLUMNS}, {LATEST_SNAPSHOT} FROM pods p"));
        select.text(" WHERE p.id = $", pod.to_string());
        self.row(select).await?.as_ref().map(pod_and_latest).transpose()
    }

    /// Lists pods, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_list(&self, filter: &PodFilter, page: &Page) -> Result<Vec<Pod>, StoreError> {
        let mut select = Select::new(format!("SELECT {POD_COLUMNS} FROM pods p"));
        filter.apply(&mut select, page);
        self.rows(select).await?.iter().map(pod_from_row).collect()
    }

    /// Lists the ids of all pods, hidden ones included, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_ids(&self) -> Result<Vec<PodId>, StoreError> {
        let rows = self.rows(Select::new("SELECT id FROM pods ORDER BY id")).await?;
        rows.iter().map(|row| parse("pod id", row.try_get(0)?)).collect()
    }

    /// Lists pods whose undelete window ended by `now`.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_ids_to_purge(&self, now: Timestamp) -> Result<Vec<PodId>, StoreError> {
        let mut select = Select::new("SELECT id FROM pods");
        select.text(" WHERE purge_at IS NOT NULL AND purge_at <= $", time(now)).raw(" ORDER BY id");
        self.rows(select).await?.iter().map(|row| parse("pod id", row.try_get(0)?)).collect()
    }

    /// Lists pods whose data has to come from this snapshot.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_ids_from_snapshot(&self, snapshot: SnapshotId) -> Result<Vec<PodId>, StoreError> {
        let mut select = Select::new("SELECT id FROM pods");
        select.text(" WHERE source_snapshot = $", snapshot.to_string()).raw(" ORDER BY id");
        self.rows(select).await?.iter().map(|row| parse("pod id", row.try_get(0)?)).collect()
    }

    /// Tells whether a snapshot was put together, is complete, and nobody's data comes or is about to come from it.
    ///
    /// # Errors
    /// Why that could not be read.
    pub async fn snapshot_is_unused_composition(&self, row: &Snapshot) -> Result<bool, StoreError> {
        Ok(row.kind == SnapshotKind::Composed
            && matches!(row.state, SnapshotState::Uploaded | SnapshotState::Verified)
            && self.pod_ids_from_snapshot(row.id).await?.is_empty()
            && self.operations_of_snapshot(row.id).await?.is_empty())
    }

    /// Lists other pods whose data has to come from a snapshot of this one.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_ids_depending_on(&self, pod: PodId) -> Result<Vec<PodId>, StoreError> {
        let mut select = Select::new("SELECT p.id FROM pods p JOIN snapshots s ON s.id = p.source_snapshot");
        select.text(" WHERE s.pod = $", pod.to_string()).raw(" AND p.id <> s.pod ORDER BY p.id");
        self.rows(select).await?.iter().map(|row| parse("pod id", row.try_get(0)?)).collect()
    }

    /// Reads a snapshot; `None` when there is none.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn snapshot_fetch(&self, snapshot: SnapshotId) -> Result<Option<Snapshot>, StoreError> {
        let mut select = Select::new("SELECT body FROM snapshots");
        select.text(" WHERE id = $", snapshot.to_string());
        self.row(select).await?.map(|row| snapshot_from_body(row.try_get(0)?)).transpose()
    }

    /// Reads those of these snapshots that exist, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn snapshots_fetch(&self, ids: &[SnapshotId]) -> Result<Vec<Snapshot>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut select = Select::new("SELECT body FROM snapshots WHERE id IN ");
        select.any_of(ids).raw(" ORDER BY id");
        self.rows(select).await?.iter().map(|row| snapshot_from_body(row.try_get(0)?)).collect()
    }

    /// Lists snapshots, newest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn snapshot_list(&self, scope: &SnapshotScope, page: &Page) -> Result<Vec<Snapshot>, StoreError> {
        let mut select = Select::new("SELECT body FROM snapshots");
        match scope {
            SnapshotScope::Pod(pod) => select.text(" WHERE pod = $", pod.to_string()),
            SnapshotScope::Tenant(tenant) => select.text(" WHERE tenant = $", tenant.as_str()),
        };
        if let Some(after) = &page.after {
            select.text(" AND id < $", after.as_str());
        }
        select.raw(" ORDER BY id DESC").limit(page.limit);
        self.rows(select).await?.iter().map(|row| snapshot_from_body(row.try_get(0)?)).collect()
    }

    /// Lists snapshots of all pods, newest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn snapshot_search(&self, filter: &SnapshotFilter, page: &Page) -> Result<Vec<Snapshot>, StoreError> {
        let wanted = usize::try_from(page.limit).unwrap_or(usize::MAX);
        let (mut found, mut after) = (Vec::new(), page.after.clone());
        loop {
            let mut select = Select::new("SELECT body, id FROM snapshots WHERE 1 = 1");
            if let Some(tenant) = &filter.tenant {
                select.text(" AND tenant = $", tenant.as_str());
            }
            select.among(" AND tenant IN (", filter.within.as_ref());
            if let Some(pod) = filter.pod {
                select.text(" AND pod = $", pod.to_string());
            }
            if let Some(state) = filter.state {
                select.text(" AND state = $", snapshot_state_text(state));
            }
            if let Some(after) = &after {
                select.text(" AND id < $", after.as_str());
            }
            select.raw(" ORDER BY id DESC").limit(page.limit);
            let rows = self.rows(select).await?;
            for row in &rows {
                // The kind is in the document only, so that a page may take several looks.
                let snapshot = snapshot_from_body(row.try_get(0)?)?;
                if found.len() < wanted && filter.kind.is_none_or(|kind| snapshot.kind == kind) {
                    found.push(snapshot);
                }
            }
            if found.len() >= wanted || rows.len() < wanted {
                return Ok(found);
            }
            after = rows.last().map(|row| row.try_get(1)).transpose()?;
        }
    }

    /// Reads an operation; `None` when there is none.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn operation_fetch(&self, operation: OperationId) -> Result<Option<Operation>, StoreError> {
        let mut select = Select::new("SELECT body FROM operations");
        select.text(" WHERE id = $", operation.to_string());
        self.row(select).await?.map(|row| operation_from_row(row.try_get(0)?)).transpose()
    }

    /// Lists a pod's operations, newest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn operation_list(&self, pod: PodId, page: &Page) -> Result<Vec<Operation>, StoreError> {
        let mut select = Select::new("SELECT body FROM operations");
        select.text(" WHERE pod = $", pod.to_string());
        if let Some(after) = &page.after {
            select.text(" AND id < $", after.as_str());
        }
        select.raw(" ORDER BY id DESC").limit(page.limit);
        self.rows(select).await?.iter().map(|row| operation_from_row(row.try_get(0)?)).collect()
    }

    /// Lists a pod's operations that have not ended, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn operations_unfinished(&self, pod: PodId) -> Result<Vec<Operation>, StoreError> {
        let mut select = Select::new("SELECT body FROM operations");
        select.text(" WHERE pod = $", pod.to_string()).raw(" AND state IN ('pending', 'running') ORDER BY id");
        self.rows(select).await?.iter().map(|row| operation_from_row(row.try_get(0)?)).collect()
    }

    /// Lists operations that have not ended and take, restore or delete this snapshot, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn operations_of_snapshot(&self, snapshot: SnapshotId) -> Result<Vec<Operation>, StoreError> {
        let mut select = Select::new("SELECT body FROM operations");
        select
            .text(" WHERE snapshot = $", snapshot.to_string())
            .raw(" AND state IN ('pending', 'running') ORDER BY id");
        self.rows(select).await?.iter().map(|row| operation_from_row(row.try_get(0)?)).collect()
    }

    /// Lists operations of all pods that have not ended and take, restore or delete a snapshot, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn operations_of_snapshots(&self) -> Result<Vec<Operation>, StoreError> {
        let sql =
            "SELECT body FROM operations WHERE state IN ('pending', 'running') AND snapshot IS NOT NULL ORDER BY id";
        self.rows(Select::new(sql)).await?.iter().map(|row| operation_from_row(row.try_get(0)?)).collect()
    }

    /// Lists events after number `after`, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn event_list(&self, after: i64, filter: &EventFilter, limit: u32) -> Result<Vec<Event>, StoreError> {
        let mut select = Select::new("SELECT id, at, actor, tenant, pod, operation, kind, message FROM events");
        select.with(" WHERE id > $", Value::Number(after));
        if let Some(pod) = filter.pod {
            select.text(" AND pod = $", pod.to_string());
        }
        if let Some(tenant) = &filter.tenant {
            select.text(" AND tenant = $", tenant.as_str());
        }
        select.among(" AND tenant IN (", filter.within.as_ref());
        if filter.within.is_some() {
            select.raw(OF_TENANTS);
        }
        select.raw(" ORDER BY id").limit(limit);
        self.rows(select).await?.iter().map(event_from_row).collect()
    }

    /// The number of the newest event; 0 before the first.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn event_last(&self) -> Result<i64, StoreError> {
        let row = self.row(Select::new("SELECT value FROM counters WHERE name = 'event'")).await?;
        row.map_or(Ok(0), |row| Ok(row.try_get(0)?))
    }

    /// Where a tenant's repository holds this image; `None` while it does not.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn image_fetch(&self, tenant: &TenantId, image: &str) -> Result<Option<StoredImage>, StoreError> {
        let mut select = Select::new("SELECT repository_id, stored_at FROM images");
        select.text(" WHERE tenant = $", tenant.as_str()).text(" AND image = $", image);
        let Some(row) = self.row(select).await? else { return Ok(None) };
        Ok(Some(StoredImage {
            tenant: tenant.clone(),
            image: image.to_owned(),
            repository_id: row.try_get(0)?,
            stored_at: parse_time("image", row.try_get(1)?)?,
        }))
    }

    /// The recorded answer to a request; `None` when the key is new.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn idempotency_fetch(&self, owner: &str, key: &str) -> Result<Option<IdempotencyRecord>, StoreError> {
        let mut select = Select::new("SELECT request_hash, status, body, at, about FROM idempotency");
        select.text(" WHERE tenant = $", owner).text(" AND key = $", key);
        let Some(row) = self.row(select).await? else { return Ok(None) };
        let status: i64 = row.try_get(1)?;
        let about: &str = row.try_get(4)?;
        let about = (!about.is_empty()).then(|| parse_tenant("idempotency", about)).transpose()?;
        Ok(Some(IdempotencyRecord {
            owner: owner.to_owned(),
            about,
            key: key.to_owned(),
            request_hash: row.try_get(0)?,
            status: u16::try_from(status).unwrap_or(500),
            body: row.try_get(2)?,
            at: parse_time("idempotency", row.try_get(3)?)?,
        }))
    }
}

const fn visible(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Living => " AND p.hidden = 0",
        Visibility::Hidden => " AND p.hidden = 1",
        Visibility::All => "",
    }
}

impl PodFilter {
    pub(super) fn apply(&self, select: &mut Select, page: &Page) {
        select.text(" WHERE p.id > $", page.after.clone().unwrap_or_default()).raw(visible(self.visibility));
        if let Some(tenant) = &self.tenant {
            select.text(" AND p.tenant = $", tenant.as_str());
        }
        select.among(" AND p.tenant IN (", self.within.as_ref());
        if let Some(phase) = self.phase {
            select.text(" AND p.phase = $", phase_text(phase));
        }
        if let Some(name) = &self.name {
            select.text(" AND p.name = $", name.as_str());
        }
        select.raw(" ORDER BY p.id").limit(page.limit);
    }
}

fn pod_and_latest(row: &AnyRow) -> Result<(Pod, Option<Snapshot>), StoreError> {
    let body: Option<&str> = row.try_get(10)?;
    Ok((pod_from_row(row)?, body.map(snapshot_from_body).transpose()?))
}

fn event_from_row(row: &AnyRow) -> Result<Event, StoreError> {
    let id: i64 = row.try_get(0)?;
    let what = format!("event {id}");
    let pod: Option<&str> = row.try_get(4)?;
    let operation: Option<&str> = row.try_get(5)?;
    Ok(Event {
        id,
        line: NewEvent {
            at: parse_time(&what, row.try_get(1)?)?,
            actor: row.try_get(2)?,
            tenant: parse_tenant(&what, row.try_get(3)?)?,
            pod: pod.map(|p| parse(&what, p)).transpose()?,
            operation: operation.map(|o| parse(&what, o)).transpose()?,
            kind: row.try_get(6)?,
            message: row.try_get(7)?,
        },
    })
}
