//! Quotas of tenants, checked by the commit that takes more.
//!
//! Two pods may be asked for at the same moment, and each alone would fit. So the commit itself adds up what there is, after it wrote its
//! pods and took the row of the event counter: whatever else takes more of the tenant's is committed before that or after it.

use perennial_core::pod::{Desired, Pod};
use perennial_core::quota::{Quota, Usage};
use perennial_core::spec::{Resources, TenantId};
use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use super::change::Change;
use super::read::{POD_COLUMNS, Select};
use super::rows::{corrupt, pod_from_row};
use super::{Store, StoreError, access};

/// The living pods of a tenant.
const LIVING: &str = "FROM pods p WHERE p.tenant = $1 AND p.hidden = 0";

/// How a quota is stored; versions to come may add kinds, and an older program refuses those.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    pods: Option<u32>,
    nano_cpus: Option<u64>,
    memory: Option<u64>,
    disk: Option<u64>,
}

/// How a quota is written into its column.
pub(super) fn to_text(quota: &Quota) -> Result<String, StoreError> {
    if *quota == Quota::default() {
        return Ok(String::new());
    }
    let Quota { pods, nano_cpus, memory, disk } = *quota;
    serde_json::to_string(&Stored { pods, nano_cpus, memory, disk }).map_err(|error| corrupt("quota", error))
}

/// What a column says.
pub(super) fn from_text(text: &str) -> Result<Quota, StoreError> {
    if text.is_empty() {
        return Ok(Quota::default());
    }
    let Stored { pods, nano_cpus, memory, disk } =
        serde_json::from_str(text).map_err(|error| corrupt("quota", error))?;
    Ok(Quota { pods, nano_cpus, memory, disk })
}

impl Store {
    /// Adds up what the living pods of a tenant may take.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn tenant_usage(&self, tenant: &TenantId) -> Result<Usage, StoreError> {
        let mut select = Select::new(format!("SELECT {POD_COLUMNS} FROM pods p"));
        select.text(" WHERE p.tenant = $", tenant.as_str()).raw(" AND p.hidden = 0");
        let pods = self.rows(select).await?.iter().map(pod_from_row).collect::<Result<Vec<_>, _>>()?;
        Ok(usage(&pods))
    }
}

fn usage(pods: &[Pod]) -> Usage {
    Usage::of(pods.iter().map(|pod| &pod.spec.resources))
}

const fn is_living(pod: &Pod) -> bool {
    !matches!(pod.desired, Desired::Archived | Desired::Deleted)
}

/// What the pods that a change writes could take before it; read before they are written.
pub(super) async fn before(tx: &mut AnyConnection, change: &Change) -> Result<Vec<Resources>, StoreError> {
    let mut found = Vec::new();
    for pod in written(change).filter(|pod| pod.version != 0) {
        let sql = format!("SELECT {POD_COLUMNS} FROM pods p WHERE p.id = $1 AND p.hidden = 0");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(pod.id.to_string()).fetch_optional(&mut *tx).await?;
        found.extend(row.as_ref().map(pod_from_row).transpose()?.map(|pod| pod.spec.resources));
    }
    Ok(found)
}

fn written(change: &Change) -> impl Iterator<Item = &Pod> {
    let bounded = change.bounded.as_ref();
    change.other_pod.iter().chain(&change.pod).filter(move |pod| bounded == Some(&pod.tenant))
}

/// Refuses a change that takes more than the tenant may have. The pods are written, and `before` is what they could take until then.
pub(super) async fn check(tx: &mut AnyConnection, change: &Change, before: Vec<Resources>) -> Result<(), StoreError> {
    let Some(tenant) = &change.bounded else { return Ok(()) };
    access::others_wait(tx).await?;
    let quota = sqlx::query("SELECT quota FROM tenants WHERE name = $1").bind(tenant.as_str().to_owned());
    let Some(quota) = quota.fetch_optional(&mut *tx).await? else { return Ok(()) };
    let quota = from_text(quota.try_get(0)?)?;
    if quota == Quota::default() {
        return Ok(());
    }
    let sql = format!("SELECT {POD_COLUMNS} {LIVING}");
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(tenant.as_str().to_owned()).fetch_all(tx).await?;
    let pods = rows.iter().map(pod_from_row).collect::<Result<Vec<_>, _>>()?;
    let is_written = |pod: &Pod| written(change).any(|own| own.id == pod.id);
    let others: Vec<Resources> = pods.iter().filter(|pod| !is_written(pod)).map(|pod| pod.spec.resources).collect();
    let own = written(change).filter(|pod| is_living(pod)).map(|pod| &pod.spec.resources);
    let (before, after) = (Usage::of(others.iter().chain(&before)), Usage::of(others.iter().chain(own)));
    match quota.exceeded(&before, &after) {
        Some(exceeded) => Err(StoreError::Quota(exceeded)),
        None => Ok(()),
    }
}
