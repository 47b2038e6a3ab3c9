//! Restores: what of a snapshot is put back, and what that would change.

use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::parts::{self, Extra, Layer, Parts, Selection};
use perennial_core::pod::Pod;
use perennial_core::snapshot::Snapshot;
use perennial_core::verbs;

use super::act::{Outcome, Request};
use super::library::Shown;
use super::pods::{Confirmation, Consent};
use super::{App, Caller};
use crate::library::{Difference, Failure, PodPath};

/// Differences that a preview shows.
const SHOWN_MAX: usize = 1000;
/// Differences that are looked at for it, also those of other parts.
const LOOKED_MAX: usize = 50_000;
/// Differences asked for at a time.
const BATCH: usize = 1000;

/// What a restore would change, as far as the snapshots tell.
#[derive(Debug)]
pub struct Preview {
    /// The pod's newest snapshot, which stands for its data now; `None` when it has none, and nothing can be told.
    pub compared_with: Option<Snapshot>,
    /// What would change, in the order of paths. Before is what the pod has, after is what it would have.
    pub changes: Vec<Difference>,
    /// Whether these are all.
    pub complete: bool,
}

impl App {
    /// Replaces the data set, or parts of it, by a snapshot.
    ///
    /// # Errors
    /// See [`verbs::restore`]; [`Error::InvalidInput`] without the confirmation, and for paths that are nowhere in the
    /// snapshot.
    pub async fn restore(
        &self,
        request: Request<'_>,
        pod: PodId,
        (snapshot, parts): (SnapshotId, Option<Parts>),
        consent: &Consent,
    ) -> Result<Outcome, Error> {
        let row = self.snapshot(request.caller, snapshot).await?;
        self.refuse_deleting(snapshot).await?;
        let (record, _) = self.pod(request.caller, pod).await?;
        if row.pod != pod {
            self.refuse_lapsed(request.caller, row.pod).await?;
        }
        consent.check(&record, Confirmation::Always)?;
        self.check_parts(&record, &row, parts.as_ref(), request.caller).await?;
        self.consented(request, pod, (consent, Confirmation::Always), |pod, accepted, order| {
            verbs::restore(pod, (&row, parts.clone()), accepted, order)
        })
        .await
    }

    /// Says what a restore would change, and does nothing.
    ///
    /// # Errors
    /// Those of [`App::restore`], the confirmation excepted.
    pub async fn restore_preview(
        &self,
        caller: &Caller,
        pod: PodId,
        (snapshot, parts): (SnapshotId, Option<Parts>),
    ) -> Result<Preview, Error> {
        let row = self.snapshot(caller, snapshot).await?;
        self.refuse_deleting(snapshot).await?;
        let (record, latest) = self.pod(caller, pod).await?;
        self.check_parts(&record, &row, parts.as_ref(), caller).await?;
        let Some(latest) = latest else {
            return Ok(Preview { compared_with: None, changes: Vec::new(), complete: false });
        };
        let before = self.source_of(&latest, Shown::Everything).await?;
        let after = self.source_of(&row, Shown::Everything).await?;
        let scope = Scope::new(&record, &row, parts.as_ref())?;
        let mut preview = Preview { compared_with: Some(latest), changes: Vec::new(), complete: true };
        let mut looked = 0;
        for path in scope.paths() {
            let mut seen = None;
            loop {
                let sources = (before.clone(), after.clone());
                let found = match self.library.diff(sources, PodPath::parse(path.as_bytes())?, seen, BATCH).await {
                    Err(Failure::NotFound { .. }) => Vec::new(),
                    other => other?,
                };
                looked += found.len();
                let is_last = found.len() < BATCH;
                seen = found.last().map(|difference| difference.path.clone());
                preview.changes.extend(found.into_iter().filter(|difference| scope.changes(difference)));
                if preview.changes.len() > SHOWN_MAX || looked > LOOKED_MAX {
                    preview.changes.truncate(SHOWN_MAX);
                    preview.complete = false;
                    return Ok(preview);
                }
                if is_last {
                    break;
                }
            }
        }
        Ok(preview)
    }

    /// A path outside the volumes of a pod that keeps no system layer is nowhere in its snapshots, and not deleted.
    async fn check_same_profile(&self, pod: &Pod, row: &Snapshot) -> Result<(), Error> {
        let other = if row.pod == pod.id { None } else { self.store.pod_fetch(row.pod).await? };
        if other.is_none_or(|other| other.keeps_layer() == pod.keeps_layer()) {
            return Ok(());
        }
        Err(Error::conflict(
            "snapshot-of-other-volumes",
            format!("of the pod and that of snapshot {} one keeps its system layer and the other does not", row.id),
            "leave out volumes and paths to restore everything, or fetch the files: perennial snapshot export",
        ))
    }

    /// Refuses what could not be done, before anything is asked for.
    async fn check_parts(
        &self,
        pod: &Pod,
        row: &Snapshot,
        parts: Option<&Parts>,
        caller: &Caller,
    ) -> Result<(), Error> {
        // A decision that is thrown away: it makes the same refusals.
        verbs::restore(pod, (row, parts.cloned()), None, &self.order(caller))?;
        if parts.is_some() {
            self.check_same_profile(pod, row).await?;
        }
        let Some(parts) = parts.filter(|parts| !parts.paths.is_empty()) else { return Ok(()) };
        let source = self.source_of(row, Shown::Everything).await?;
        for path in &parts.paths {
            match self.library.entry(source.clone(), PodPath::parse(path.as_bytes())?).await {
                Ok(_) => {}
                Err(Failure::NotFound { instead, .. }) => {
                    let why = if instead.is_empty() { "is nowhere in the snapshot".to_owned() } else { instead };
                    let hint = "see what it has: perennial snapshot ls SNAPSHOT PATH; to delete what it lacks, choose the directory";
                    return Err(Error::invalid("paths", format!("{path:?} cannot be restored: {why}"), hint));
                }
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }
}

/// Which paths of a pod a restore touches.
struct Scope<'a> {
    volumes: Vec<(&'a str, &'a str)>,
    layer: Layer,
    /// `None`: everything.
    selected: Option<Vec<Selection>>,
    extra: Extra,
}

impl<'a> Scope<'a> {
    fn new(pod: &Pod, row: &'a Snapshot, parts: Option<&Parts>) -> Result<Self, Error> {
        let selected = match parts {
            Some(parts) => Some(verbs::select(pod, row, parts)?),
            None => None,
        };
        Ok(Self {
            volumes: row.volumes.iter().map(|v| (v.name.as_str(), v.mount_path.as_str())).collect(),
            layer: if pod.keeps_layer() { Layer::Kept } else { Layer::None },
            selected,
            extra: parts.map(|parts| parts.extra).unwrap_or_default(),
        })
    }

    /// Where differences are looked for; a path within another is looked at with it.
    fn paths(&self) -> Vec<String> {
        let Some(selected) = &self.selected else { return vec!["/".to_owned()] };
        let mount = |name: &String| self.volumes.iter().find(|(known, _)| known == name).map_or("/", |(_, at)| at);
        let path = |part: &Selection| {
            let root = part.volume.as_ref().map_or("/", mount).trim_end_matches('/');
            if part.path.is_empty() && root.is_empty() { "/".to_owned() } else { format!("{root}/{}", part.path) }
        };
        let mut paths: Vec<String> =
            selected.iter().map(path).map(|p| if p == "/" { p } else { p.trim_end_matches('/').to_owned() }).collect();
        paths.sort_unstable();
        paths.dedup();
        let all = paths.clone();
        let within = |p: &String| all.iter().any(|o| o != p && (o == "/" || p.starts_with(&format!("{o}/"))));
        paths.retain(|path| !within(path));
        paths
    }

    fn changes(&self, difference: &Difference) -> bool {
        let Some(selected) = &self.selected else { return true };
        if self.extra == Extra::Keep && difference.after.is_none() {
            return false;
        }
        let path = format!("/{}", String::from_utf8_lossy(&difference.path.join(&b'/')));
        let stored = parts::place(&self.volumes, self.layer, &path).map(|place| place.stored());
        stored.is_some_and(|stored| selected.iter().any(|part| part.holds(&stored)))
    }
}
