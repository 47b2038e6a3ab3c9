//! Lists of pods that are mostly known already: their heads tell which of them have to be read.

use std::collections::HashMap;

use perennial_core::id::{PodId, SnapshotId};
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

/// A snapshot's row as it is stored: compared more often than it is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SnapshotBody(String);

impl From<String> for SnapshotBody {
    fn from(body: String) -> Self {
        Self(body)
    }
}

impl SnapshotBody {
    /// The snapshot.
    ///
    /// # Errors
    /// What is stored is no snapshot.
    pub fn read(&self) -> Result<Snapshot, StoreError> {
        snapshot_from_body(&self.0)
    }
}

impl Store {
    /// Lists the heads of pods, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_heads(&self, filter: &PodFilter, page: &Page) -> Result<Vec<PodHead>, StoreError> {
        let line = ["p.id || ' ' || p.version || ' ' || COALESCE(", LATEST_SNAPSHOT, ", '')"];
        self.lines(&line, filter, page, head).await
    }

    /// Lists pods with the versions of their rows, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pod_versions(&self, filter: &PodFilter, page: &Page) -> Result<Vec<(PodId, i64)>, StoreError> {
        let version = |line: &str| head(line).map(|head| (head.id, head.version));
        self.lines(&["p.id || ' ' || p.version"], filter, page, version).await
    }

    /// A line of text about each pod `p` of a page, oldest first.
    async fn lines<T>(
        &self,
        line: &[&'static str],
        filter: &PodFilter,
        page: &Page,
        read: impl Fn(&str) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        // One row for the whole page: a row costs more than what is in it. No document holds a line feed.
        let mut select = Select::new("SELECT string_agg(h.line");
        select.text(", $) FROM (SELECT ", "\n");
        for fragment in line {
            select.raw(fragment);
        }
        select.raw(" AS line FROM pods p");
        filter.apply(&mut select, page);
        select.raw(") h");
        let Some(row) = self.row(select).await? else { return Ok(Vec::new()) };
        let text: Option<&str> = row.try_get(0)?;
        // An aggregate promises no order. Ids come first, and are as long as each other.
        let mut lines: Vec<&str> = text.unwrap_or_default().lines().collect();
        lines.sort_unstable();
        lines.into_iter().map(read).collect()
    }

    /// Reads those of these pods that exist, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pods_fetch(&self, pods: &[PodId]) -> Result<Vec<Pod>, StoreError> {
        if pods.is_empty() {
            return Ok(Vec::new());
        }
        let mut select = Select::new(format!("SELECT {POD_COLUMNS} FROM pods p WHERE p.id IN "));
        select.any_of(pods).raw(" ORDER BY p.id");
        self.rows(select).await?.iter().map(pod_from_row).collect()
    }

    /// Reads the rows of those of these snapshots that exist.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn snapshot_bodies(&self, ids: &[SnapshotId]) -> Result<HashMap<SnapshotId, SnapshotBody>, StoreError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut select = Select::new("SELECT id, body FROM snapshots WHERE id IN ");
        select.any_of(ids);
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| Ok((parse("snapshot id", row.try_get(0)?)?, row.try_get::<String, _>(1)?.into())))
            .collect()
    }

    /// Reads those of these pods that exist, with the newest verified snapshot of each.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn pods_fetch_with_latest(&self, pods: &[PodId]) -> Result<Vec<HeadedPod>, StoreError> {
        if pods.is_empty() {
            return Ok(Vec::new());
        }
        let mut select = Select::new(format!("SELECT {POD_COLUMNS}, {LATEST_SNAPSHOT} FROM pods p WHERE p.id IN "));
        select.any_of(pods).raw(" ORDER BY p.id");
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
