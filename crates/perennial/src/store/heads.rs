//! Lists of pods that are mostly known already: their heads tell which of them have to be read.

use perennial_core::id::PodId;
use perennial_core::pod::Pod;
use perennial_core::snapshot::Snapshot;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::read::{LATEST_SNAPSHOT, POD_COLUMNS, Page, PodFilter, Select};
use super::rows::{corrupt, parse, pod_from_row, snapshot_from_body};
use super::{Store, StoreError};

/// What changes whenever anything that is shown of a pod changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodHead {
    /// Which pod.
    pub id: PodId,
    /// The version of its row.
    pub version: i64,
    /// Its newest verified snapshot as it is stored; empty when there is none.
    pub latest: String,
}

/// A pod with its head and its newest verified snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadedPod {
    /// Its head, of the same moment.
    pub head: PodHead,
    /// The pod.
    pub pod: Pod,
    /// `None` when there is none.
    pub latest: Option<Snapshot>,
}

impl Store {
    /// Lists the heads of pods, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_heads(&self, filter: &PodFilter, page: &Page) -> Result<Vec<PodHead>, StoreError> {
        // One row for the whole page: a row costs more than what is in it. No document holds a line feed.
        let mut select = Select::new("SELECT string_agg(h.line");
        select.text(", $) FROM (SELECT p.id || ' ' || p.version || ' ' || COALESCE(", "\n");
        select.raw(LATEST_SNAPSHOT).raw(", '') AS line FROM pods p");
        filter.apply(&mut select, page);
        select.raw(") h");
        let Some(row) = self.row(select).await? else { return Ok(Vec::new()) };
        let text: Option<&str> = row.try_get(0)?;
        let mut heads: Vec<PodHead> = text.unwrap_or_default().lines().map(head).collect::<Result<_, _>>()?;
        // An aggregate promises no order.
        heads.sort_unstable_by_key(|h| h.id);
        Ok(heads)
    }

    /// Reads those of these pods that exist, with the newest verified snapshot of each.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pods_fetch_with_latest(&self, pods: &[PodId]) -> Result<Vec<HeadedPod>, StoreError> {
        let Some((first, others)) = pods.split_first() else { return Ok(Vec::new()) };
        let mut select = Select::new(format!("SELECT {POD_COLUMNS}, {LATEST_SNAPSHOT} FROM pods p"));
        select.text(" WHERE p.id IN ($", first.to_string());
        for pod in others {
            select.text(", $", pod.to_string());
        }
        select.raw(") ORDER BY p.id");
        self.rows(select).await?.iter().map(headed).collect()
    }
}

fn head(line: &str) -> Result<PodHead, StoreError> {
    let mut fields = line.splitn(3, ' ');
    let mut next = || fields.next().unwrap_or_default();
    let id = parse("pod id", next())?;
    let version = next().parse().map_err(|e| corrupt("version of a pod", e))?;
    Ok(PodHead { id, version, latest: next().to_owned() })
}

fn headed(row: &AnyRow) -> Result<HeadedPod, StoreError> {
    let body: Option<&str> = row.try_get(10)?;
    let pod = pod_from_row(row)?;
    let head = PodHead { id: pod.id, version: pod.version, latest: body.unwrap_or_default().to_owned() };
    Ok(HeadedPod { head, pod, latest: body.map(snapshot_from_body).transpose()? })
}
