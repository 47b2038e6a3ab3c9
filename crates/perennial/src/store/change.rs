//! Everything that is written, as one value: a [`Change`] is committed as a whole or not at all.

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use perennial_core::fault::{Moment, Verdict};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::operation::{NewEvent, Operation};
use perennial_core::pod::{Desired, Pod};
use perennial_core::snapshot::{Care, Snapshot};
use perennial_core::spec::TenantId;
use perennial_core::subscription::Subscription;
use sqlx::{AnyConnection, Row as _};

use super::access::Announcement;
use super::care::{care_note, drill_try_upsert};
use super::prunes::prune_wanted_upsert;
use super::recovery::export_upsert;
use super::replicas::replica_note;
use super::rows::{operation_to_body, snapshot_to_body, source_snapshot, spec_to_text, state_to_text, time};
use super::{
    AccessRequest, Asker, COMMIT_SITE, Committed, ErasureChange, Lease, OrphanChange, RecoveryExport, ReplicaNote,
    ServiceChange, Store, StoreError, access, audit, erasures, fence, orphans, quotas, services, subscriptions,
};

/// What one transaction writes.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Version 0 is inserted, any other replaces the row of exactly that version; stored with the next version.
    pub pod: Option<Pod>,
    /// A second pod, written like the first.
    pub other_pod: Option<Pod>,
    /// A pod that was purged; every snapshot of it has to go before or with it.
    pub pod_gone: Option<PodId>,
    /// Checked in the same transaction: nothing is written when it is no longer ours.
    pub lease: Option<Lease>,
    /// Snapshots that something is built on: nothing is written when one is gone, or its deletion has begun.
    pub uses: Vec<SnapshotId>,
    /// Snapshots whose deletion this begins: nothing is written when work or another pod has begun to need one.
    pub forgets: Vec<SnapshotId>,
    /// The same for all snapshots of a pod.
    pub forgets_all_of: Option<PodId>,
    /// Inserted or replaced.
    pub snapshots: Vec<Snapshot>,
    /// What was found out about snapshots; one that is gone meanwhile stays gone.
    pub cares: Vec<(SnapshotId, Care)>,
    /// Pods of which a drill is begun, and when.
    pub drill_tries: Vec<(PodId, Timestamp)>,
    /// Removed.
    pub snapshots_gone: Vec<SnapshotId>,
    /// Inserted or replaced; one that has ended stays as it ended.
    pub operations: Vec<Operation>,
    /// Added to the trail.
    pub events: Vec<NewEvent>,
    /// Images that are whole in the repository from now on.
    pub images: Vec<StoredImage>,
    /// Keys that are in a recovery kit from now on.
    pub recovery_exports: Vec<RecoveryExport>,
    /// What is known of copies in replicas from now on.
    pub replica_notes: Vec<ReplicaNote>,
    /// Tenants in whose repositories something was forgotten now, so that there is something to prune.
    pub prunes_wanted: Vec<(TenantId, Timestamp)>,
    /// What changes in the catalogue.
    pub service: Option<ServiceChange>,
    /// A subscription. Version 0 is inserted, any other replaces the row of exactly that version; stored with the next version.
    pub subscription: Option<Subscription>,
    /// What the pod was to be before this: nothing is written when its subscription forbids the way from there.
    pub moved_from: Option<Desired>,
    /// What becomes of orphaned pods.
    pub orphans: Vec<OrphanChange>,
    /// What changes in the erasure of a tenant.
    pub erasure: Option<ErasureChange>,
    /// Who asks, and with which rights; `None` for the server itself, and for the administrator's token, which nothing takes
    /// rights from.
    pub asker: Option<Asker>,
    /// Whose quota the pods are held to: for changes that may take more.
    pub bounded: Option<TenantId>,
    /// What changes of who may do what.
    pub access: Option<AccessRequest>,
    /// The answer to a request, so that its repetition is answered alike.
    pub idempotency: Option<IdempotencyRecord>,
}

/// An image that is whole in a tenant's repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Whose repository.
    pub tenant: TenantId,
    /// The engine's image id.
    pub image: String,
    /// The repository snapshot that holds it.
    pub repository_id: String,
    /// Since when.
    pub stored_at: Timestamp,
}

/// The recorded answer to a request that carried an `Idempotency-Key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// Who asked; keys of different people do not meet.
    pub owner: String,
    /// The tenant of what was answered; `None`: not recorded, as by versions before users.
    pub about: Option<TenantId>,
    /// The key.
    pub key: String,
    /// Hash of method, path and body: the same key with another request is a mistake.
    pub request_hash: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Body of the answer.
    pub body: String,
    /// When it was answered.
    pub at: Timestamp,
}

impl Store {
    /// Writes everything of `change` in one transaction, or nothing.
    ///
    /// # Errors
    /// [`StoreError::OutcomeUnknown`] when it may have been committed; with every other error nothing was written.
    pub fn commit(&self, change: Change) -> BoxFuture<'_, Result<(), StoreError>> {
        // On the heap: whoever awaits it would have room for all of it, and whoever awaits that.
        Box::pin(self.write_whole(change))
    }

    async fn write_whole(&self, change: Change) -> Result<(), StoreError> {
        match self.tap.at(COMMIT_SITE, Moment::Before) {
            Verdict::Go => {}
            Verdict::Fail => return Err(StoreError::Unavailable(None)),
            Verdict::Die => std::future::pending().await,
        }
        let mut held = self.write.acquire().await?;
        let announced = Announcement::of(&change, &self.access);
        let mut transaction = held.begin().await?;
        let event = match change.write(&mut transaction).await {
            Ok(event) => event,
            Err(error) => {
                if transaction.rollback().await.is_ok() {
                    held.done();
                }
                return Err(error);
            }
        };
        transaction.commit().await.map_err(|e| StoreError::OutcomeUnknown(Some(e)))?;
        held.done();
        drop(announced);
        // Nobody may listen: that is fine.
        let _ = self.committed.send(Arc::new(Committed {
            pod: change.pod.as_ref().map(|p| p.id).or(change.pod_gone),
            operations: change.operations.iter().map(|o| o.id).collect(),
            event,
        }));
        match self.tap.at(COMMIT_SITE, Moment::After) {
            Verdict::Go => Ok(()),
            Verdict::Fail => Err(StoreError::OutcomeUnknown(None)),
            Verdict::Die => std::future::pending().await,
        }
    }

    /// Forgets answers to requests that are older than `before`.
    ///
    /// # Errors
    /// Why the database did not do it.
    pub async fn idempotency_prune(&self, before: Timestamp) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM idempotency WHERE at < $1").bind(time(before)).execute(&self.write).await?;
        Ok(done.rows_affected())
    }
}

impl Change {
    /// Runs every statement; returns the number of the newest event.
    async fn write(&self, tx: &mut AnyConnection) -> Result<Option<i64>, StoreError> {
        if let Some(lease) = &self.lease {
            lease_check(tx, lease).await?;
        }
        let mut before = audit::Before::read(tx, self).await?;
        let could_take = quotas::before(tx, self).await?;
        for pod in self.other_pod.iter().chain(&self.pod) {
            if pod.version == 0 { pod_insert(tx, pod).await? } else { pod_update(tx, pod).await? }
        }
        fence::check(tx, self).await?;
        for snapshot in &self.snapshots {
            snapshot_upsert(tx, snapshot).await?;
        }
        for (snapshot, care) in &self.cares {
            care_note(tx, *snapshot, care).await?;
        }
        for (pod, at) in &self.drill_tries {
            drill_try_upsert(tx, *pod, *at).await?;
        }
        for operation in &self.operations {
            operation_upsert(tx, operation).await?;
        }
        for image in &self.images {
            image_upsert(tx, image).await?;
        }
        for export in &self.recovery_exports {
            export_upsert(tx, export).await?;
        }
        for note in &self.replica_notes {
            replica_note(tx, note).await?;
        }
        for (tenant, at) in &self.prunes_wanted {
            prune_wanted_upsert(tx, tenant, *at).await?;
        }
        if let Some(record) = &self.idempotency {
            idempotency_insert(tx, record).await?;
        }
        before.read_objects(tx, self).await?;
        if let Some(change) = &self.service {
            services::apply(tx, change).await?;
        }
        if let Some(subscription) = &self.subscription {
            subscriptions::apply(tx, subscription).await?;
        }
        for snapshot in &self.snapshots_gone {
            sqlx::query("DELETE FROM snapshots WHERE id = $1").bind(snapshot.to_string()).execute(&mut *tx).await?;
        }
        if let Some(pod) = &self.pod_gone {
            sqlx::query("DELETE FROM pods WHERE id = $1").bind(pod.to_string()).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM leases WHERE pod = $1").bind(pod.to_string()).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM proofs WHERE pod = $1").bind(pod.to_string()).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM drill_tries WHERE pod = $1").bind(pod.to_string()).execute(&mut *tx).await?;
        }
        // Last, because on Postgres the counter's row is locked from here to the commit.
        let event = events_insert(tx, &self.events).await?;
        access::check(tx, self).await?;
        quotas::check(tx, self, could_take).await?;
        subscriptions::check(tx, self).await?;
        erasures::apply(tx, self).await?;
        orphans::apply(tx, self).await?;
        access::apply(tx, self).await?;
        audit::write(tx, self, before).await?;
        Ok(event)
    }
}

/// Proves that the lease is ours, and keeps it so until the commit: on Postgres the update locks the row.
async fn lease_check(tx: &mut AnyConnection, lease: &Lease) -> Result<(), StoreError> {
    let held = sqlx::query("UPDATE leases SET epoch = epoch WHERE pod = $1 AND holder = $2 AND epoch = $3")
        .bind(lease.pod.to_string())
        .bind(lease.holder.as_str())
        .bind(lease.epoch)
        .execute(tx)
        .await?;
    if held.rows_affected() == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
}

fn hidden(pod: &Pod) -> i64 {
    i64::from(matches!(pod.desired, Desired::Archived | Desired::Deleted))
}

/// The only unique constraint a pod's row can violate beside its key is the name's.
fn name_taken(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) if database.is_unique_violation() => StoreError::NameTaken,
        _ => error.into(),
    }
}

async fn pod_insert(tx: &mut AnyConnection, pod: &Pod) -> Result<(), StoreError> {
    let (desired, phase, state) = state_to_text(pod)?;
    let done = sqlx::query(
        "INSERT INTO pods (id, tenant, name, desired, phase, hidden, version, created_at, updated_at, purge_at, \
         source_snapshot, spec, state) VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(pod.id.to_string())
    .bind(pod.tenant.as_str())
    .bind(pod.name.as_str())
    .bind(desired)
    .bind(phase)
    .bind(hidden(pod))
    .bind(time(pod.created_at))
    .bind(time(pod.updated_at))
    .bind(pod.trash.as_ref().and_then(|t| t.purge_at).map(time))
    .bind(source_snapshot(pod))
    .bind(spec_to_text(&pod.spec)?)
    .bind(state)
    .execute(tx)
    .await
    .map_err(name_taken)?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

async fn pod_update(tx: &mut AnyConnection, pod: &Pod) -> Result<(), StoreError> {
    let (desired, phase, state) = state_to_text(pod)?;
    let done = sqlx::query(
        "UPDATE pods SET name = $3, desired = $4, phase = $5, hidden = $6, version = version + 1, updated_at = $7, \
         purge_at = $8, source_snapshot = $9, spec = $10, state = $11 WHERE id = $1 AND version = $2",
    )
    .bind(pod.id.to_string())
    .bind(pod.version)
    .bind(pod.name.as_str())
    .bind(desired)
    .bind(phase)
    .bind(hidden(pod))
    .bind(time(pod.updated_at))
    .bind(pod.trash.as_ref().and_then(|t| t.purge_at).map(time))
    .bind(source_snapshot(pod))
    .bind(spec_to_text(&pod.spec)?)
    .bind(state)
    .execute(tx)
    .await
    .map_err(name_taken)?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

async fn snapshot_upsert(tx: &mut AnyConnection, snapshot: &Snapshot) -> Result<(), StoreError> {
    let (state, body) = snapshot_to_body(snapshot)?;
    sqlx::query(
        "INSERT INTO snapshots (id, pod, tenant, state, body) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body",
    )
    .bind(snapshot.id.to_string())
    .bind(snapshot.pod.to_string())
    .bind(snapshot.tenant.as_str())
    .bind(state)
    .bind(body)
    .execute(tx)
    .await?;
    Ok(())
}

/// A late report of progress must not revive an operation that was cancelled meanwhile, hence the condition.
async fn operation_upsert(tx: &mut AnyConnection, operation: &Operation) -> Result<(), StoreError> {
    let (state, body) = operation_to_body(operation)?;
    sqlx::query(
        "INSERT INTO operations (id, tenant, pod, state, snapshot, body) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, snapshot = excluded.snapshot, body = excluded.body \
         WHERE operations.state IN ('pending', 'running')",
    )
    .bind(operation.id.to_string())
    .bind(operation.tenant.as_str())
    .bind(operation.pod.to_string())
    .bind(state)
    .bind(operation.snapshot.map(|s| s.to_string()))
    .bind(body)
    .execute(tx)
    .await?;
    Ok(())
}

async fn image_upsert(tx: &mut AnyConnection, image: &StoredImage) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO images (tenant, image, repository_id, stored_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (tenant, image) DO UPDATE SET repository_id = excluded.repository_id, stored_at = excluded.stored_at",
    )
    .bind(image.tenant.as_str())
    .bind(image.image.as_str())
    .bind(image.repository_id.as_str())
    .bind(time(image.stored_at))
    .execute(tx)
    .await?;
    Ok(())
}

async fn idempotency_insert(tx: &mut AnyConnection, record: &IdempotencyRecord) -> Result<(), StoreError> {
    let done = sqlx::query(
        "INSERT INTO idempotency (tenant, key, request_hash, status, body, at, about) VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (tenant, key) DO NOTHING",
    )
    .bind(record.owner.as_str())
    .bind(record.key.as_str())
    .bind(record.request_hash.as_str())
    .bind(i64::from(record.status))
    .bind(record.body.as_str())
    .bind(time(record.at))
    .bind(record.about.as_ref().map(|tenant| tenant.as_str().to_owned()).unwrap_or_default())
    .execute(tx)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::IdempotencyTaken) }
}

async fn events_insert(tx: &mut AnyConnection, events: &[NewEvent]) -> Result<Option<i64>, StoreError> {
    let Ok(count @ 1..) = i64::try_from(events.len()) else { return Ok(None) };
    let last: i64 = sqlx::query("UPDATE counters SET value = value + $1 WHERE name = 'event' RETURNING value")
        .bind(count)
        .fetch_one(&mut *tx)
        .await?
        .try_get(0)?;
    for (id, event) in (last - count + 1..).zip(events) {
        sqlx::query(
            "INSERT INTO events (id, at, actor, tenant, pod, operation, kind, message) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(id)
        .bind(time(event.at))
        .bind(event.actor.as_str())
        .bind(event.tenant.as_str())
        .bind(event.pod.map(|p| p.to_string()))
        .bind(event.operation.map(|o| o.to_string()))
        .bind(event.kind.as_str())
        .bind(event.message.as_str())
        .execute(&mut *tx)
        .await?;
    }
    Ok(Some(last))
}
