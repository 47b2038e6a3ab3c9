//! The system layer: what a pod changed where no volume is.
//!
//! It is always whole against the pinned image, because it is put back by writing it into the new container's own
//! changes directory before the first start: what is captured later is again everything (docs/adr).

use perennial_core::engine::{LayerAccess, ObservedContainer};
use perennial_core::pod::LayerCapture;
use perennial_core::progress::Progress;
use perennial_core::record::Record;
use perennial_core::snapshot::{Grade, Snapshot};
use perennial_core::volume::VolumeSet;
use perennial_snapshots::{
    ArchiveRequest, Error, Existing, Layout as TreeLayout, Parent, Pass, Removals, Repository, RestoreRequest, Root,
    SnapshotFileId, Source, Verify, removed,
};

use super::images::{Scratch, blocking};
use super::placement::Placement;
use super::step::{StepError, definite, retry};
use super::worker::{Reconciler, View};

/// Where the layer is in a snapshot, and the list of what the pod deleted from the image.
pub(super) const SYSTEM: &str = "/system";
/// See [`SYSTEM`].
pub(super) const SYSTEM_REMOVED: &str = "/removed/system";

/// Where a capture reads the system layer from.
pub(super) enum LayerSource {
    /// There is none, or none can be reached.
    Nothing,
    /// The container's own changes.
    Root(Root),
    /// The last capture, because the container is gone; unpacked for as long as this lives.
    Unpacked(Root, Scratch),
}

impl LayerSource {
    pub(super) const fn root(&self) -> Option<&Root> {
        match self {
            Self::Nothing => None,
            Self::Root(root) | Self::Unpacked(root, _) => Some(root),
        }
    }
}

/// The system layer as a capture reads it.
pub(crate) fn layer_root(path: std::path::PathBuf, exclude: Vec<String>) -> Root {
    let exclude = exclude.into_iter().map(|p| p.trim_start_matches('/').into()).collect();
    Root { at: SYSTEM.to_owned(), source: Source::Directory { path, layout: TreeLayout::OverlayUpper, exclude } }
}

/// The tag of captures of the layer alone.
pub(super) fn layer_tag(view: &View) -> String {
    format!("layer:{}", view.pod.id)
}

pub(super) fn parse_id(text: &str) -> Result<SnapshotFileId, StepError> {
    text.parse().map_err(|_| retry("repository-id-invalid", format!("{text:?} is not a snapshot of a repository")))
}

impl Reconciler {
    /// Where the layer of the pod is now: in its container, or else in its newest capture.
    pub(super) async fn layer_source(&self, view: &View, progress: &Progress) -> Result<LayerSource, StepError> {
        if !view.pod.keeps_layer() {
            return Ok(LayerSource::Nothing);
        }
        // A container that was made and did not get ready has no layer yet: its pod's layer is the captured one.
        let holds_layer = |c: &ObservedContainer| {
            c.started_at.is_some() || view.pod.container.as_ref().is_some_and(|ready| ready.id == c.id)
        };
        if let Some(container) = &view.observed.container
            && view.pod.current == Some(container.set)
            && holds_layer(container)
        {
            return Ok(match self.engine.layer_access(&container.id).await? {
                LayerAccess::Local { path, exclude } => LayerSource::Root(layer_root(path, exclude)),
                LayerAccess::Unreachable { .. } => self.unpacked_layer(view, progress).await?,
            });
        }
        self.unpacked_layer(view, progress).await
    }

    async fn unpacked_layer(&self, view: &View, progress: &Progress) -> Result<LayerSource, StepError> {
        let Some(id) = view.pod.layer.as_ref().and_then(|l| l.repository_id.clone()) else {
            return Ok(LayerSource::Nothing);
        };
        let scratch = self.scratch()?;
        let target = scratch.path().to_owned();
        self.restore_layer(view, &id, target.clone(), progress).await?;
        Ok(LayerSource::Unpacked(layer_root(target, Vec::new()), scratch))
    }

    async fn restore_layer(
        &self,
        view: &View,
        id: &str,
        target: std::path::PathBuf,
        progress: &Progress,
    ) -> Result<(), StepError> {
        let (repositories, tenant, progress) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        let id = parse_id(id)?;
        blocking(move || {
            let repository = repositories.open(&tenant)?;
            // A snapshot that is gone is a loss, and an error: the pod would start older than it was.
            repository.snapshot(id)?;
            // A snapshot of a pod that changed nothing outside its volumes has no layer.
            match repository.ls(id, SYSTEM) {
                Err(Error::NotFound { .. }) => return Ok(()),
                other => other.map(drop)?,
            }
            let request = RestoreRequest {
                subtree: SYSTEM.to_owned(),
                target,
                existing: Existing::Keep,
                removals: Removals::Whiteouts { list: SYSTEM_REMOVED.to_owned() },
                against_lower: None,
            };
            repository.restore(id, &request, &progress)?;
            Ok(())
        })
        .await
    }

    /// Puts the captured layer into a container that was never started.
    pub(super) async fn put_layer_back(
        &self,
        view: &View,
        container: &str,
        progress: &Progress,
    ) -> Result<(), StepError> {
        let Some(id) = view.pod.layer.as_ref().and_then(|l| l.repository_id.clone()) else { return Ok(()) };
        match self.engine.layer_access(container).await? {
            LayerAccess::Local { path, .. } => self.restore_layer(view, &id, path, progress).await,
            LayerAccess::Unreachable { .. } if self.layer_is_empty(view, &id).await? => Ok(()),
            LayerAccess::Unreachable { reason } => Err(definite(
                "system-layer-unreachable",
                format!("the system layer cannot be put back: {reason}"),
                "use a runtime and a storage driver that keep changes outside volumes on the host",
            )),
        }
    }

    /// Whether a snapshot holds no change outside volumes.
    async fn layer_is_empty(&self, view: &View, id: &str) -> Result<bool, StepError> {
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let id = parse_id(id)?;
        blocking(move || snapshot_lacks_layer(&repositories.open(&tenant)?, id)).await
    }

    /// Forgets captures of layers that the pod no longer needs, as a commit has just said.
    ///
    /// What fails is left to the next capture of the data set: it costs space and nothing else.
    pub(super) async fn forget_layers(&self, view: &View, dropped: Vec<String>) {
        if dropped.is_empty() {
            return;
        }
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let forgotten = blocking(move || {
            let repository = repositories.open(&tenant)?;
            let mut ids = Vec::new();
            for id in dropped {
                // In a repository that took another's place it is called otherwise.
                match repository.snapshot(parse_id(&id)?) {
                    Ok(info) => ids.push(info.id),
                    Err(perennial_snapshots::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(repository.forget(&ids)?)
        });
        if let Err(error) = forgotten.await {
            tracing::debug!(pod = %view.pod.id, ?error, "forget a capture of the system layer");
        }
    }

    /// Captures the layer alone: every few minutes while the pod runs, and before its container is removed.
    pub(super) async fn capture_layer(
        &self,
        view: &mut View,
        container: &str,
        progress: &Progress,
    ) -> Result<(), StepError> {
        let observed = view.observed.container.as_ref().filter(|c| c.id == container);
        let Some(observed) = observed else { return Err(StepError::Overtaken) };
        let (stamp, live) = (observed.stamp(), observed.is_live());
        self.memory().layers.insert(view.pod.id, self.now());
        let captured_at = self.now();
        let previous = view.pod.layer.as_ref().and_then(|l| l.repository_id.clone());
        let repository_id = match self.engine.layer_access(container).await? {
            LayerAccess::Local { path, exclude } => {
                let roots = From::Container(layer_root(path, exclude));
                match self.archive_layer(view, roots, previous.clone(), progress).await {
                    Ok(captured) => captured,
                    // A running pod rewrote something while it was read: the next round, or the stop, gets it.
                    Err(StepError::Definite(_)) if live => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            // What the runtime hides cannot be captured; the pod's conditions say so.
            LayerAccess::Unreachable { .. } => Layer::Same,
        };
        let repository_id = match repository_id {
            Layer::Same if live => return Ok(()),
            Layer::Same => previous,
            Layer::Empty => None,
            Layer::New(id) => Some(id),
        };
        let layer = LayerCapture { repository_id, captured_at, writer: Some(stamp), after_stop: !live };
        self.record(view, Record::LayerCaptured(layer)).await
    }

    /// The layer that belongs to the data of a snapshot, as a capture of the pod's own; `None` when it keeps none.
    pub(super) async fn layer_of_snapshot(
        &self,
        view: &View,
        row: &Snapshot,
        set: &VolumeSet,
        progress: &Progress,
    ) -> Result<Option<LayerCapture>, StepError> {
        if !view.pod.keeps_layer() {
            return Ok(None);
        }
        let id = parse_id(row.repository_id.as_deref().unwrap_or_default())?;
        let from = match Placement::new(row, set)? {
            same if same.is_same_layer() => From::Snapshot(id),
            placement => From::Rearranged(id, placement),
        };
        let repository_id = match self.archive_layer(view, from, None, progress).await? {
            Layer::New(id) => Some(id),
            Layer::Same | Layer::Empty => None,
        };
        let captured_at = row.captured_at.unwrap_or(row.created_at);
        Ok(Some(LayerCapture { repository_id, captured_at, writer: None, after_stop: true }))
    }

    /// What a snapshot of the pod's present run says about its layer; `None` when something newer is known.
    pub(super) async fn layer_by_snapshot(
        &self,
        view: &View,
        row: &Snapshot,
        progress: &Progress,
    ) -> Result<Option<LayerCapture>, StepError> {
        let Some(captured_at) = row.captured_at else { return Ok(None) };
        let writer = view.observed.container.as_ref().map(ObservedContainer::stamp);
        let newer = view.pod.layer.as_ref().is_some_and(|l| l.captured_at >= captured_at);
        let of_this_run = row.set.is_some() && row.set == view.pod.current && writer.is_some() && row.writer == writer;
        if !view.pod.keeps_layer() || view.layer_hidden || newer || !of_this_run {
            return Ok(None);
        }
        let id = parse_id(row.repository_id.as_deref().unwrap_or_default())?;
        let previous = view.pod.layer.as_ref().and_then(|l| l.repository_id.clone());
        let repository_id = match self.archive_layer(view, From::Snapshot(id), previous.clone(), progress).await? {
            Layer::Same => previous,
            Layer::Empty => None,
            Layer::New(id) => Some(id),
        };
        let after_stop = row.grade == Some(Grade::Stopped);
        Ok(Some(LayerCapture { repository_id, captured_at, writer, after_stop }))
    }

    /// Archives a layer that was copied for this pod; `None` when there is nothing in it.
    pub(super) async fn archive_copied_layer(
        &self,
        view: &View,
        root: Root,
        progress: &Progress,
    ) -> Result<Option<String>, StepError> {
        // Without a change outside volumes, no repository is asked for anything.
        if is_empty(&root)? {
            return Ok(None);
        }
        Ok(match self.archive_layer(view, From::Container(root), None, progress).await? {
            Layer::New(id) => Some(id),
            Layer::Same | Layer::Empty => None,
        })
    }

    async fn archive_layer(
        &self,
        view: &View,
        from: From,
        previous: Option<String>,
        progress: &Progress,
    ) -> Result<Layer, StepError> {
        let (repositories, tenant, progress) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        let mut request = ArchiveRequest {
            time: self.now(),
            hostname: self.settings.installation.clone(),
            tags: vec![layer_tag(view), format!("pod:{}", view.pod.id)],
            parents: Vec::new(),
            roots: Vec::new(),
            pass: Pass::Commit,
            accept_losses: Vec::new(),
        };
        blocking(move || {
            let repository = repositories.open(&tenant)?;
            request.roots = from.roots(&repository)?;
            if request.roots.is_empty() {
                return Ok(if previous.is_none() { Layer::Same } else { Layer::Empty });
            }
            let mut before = None;
            if let Some(previous) = &previous {
                let id = parse_id(previous)?;
                before = repository.snapshot(id).ok();
                request.parents = vec![Parent::Snapshot(id)];
            }
            // The live pass only uploads. When its tree is the last capture's, made-up directories with the same times
            // included, there is nothing to record.
            let time = before.as_ref().map_or(request.time, |s| s.time);
            let live = repository.archive(&ArchiveRequest { pass: Pass::Live, time, ..request.clone() }, &progress)?;
            if before.is_some_and(|s| s.tree == live.tree) {
                return Ok(Layer::Same);
            }
            request.parents.push(Parent::Tree(live.tree));
            let archived = repository.archive(&request, &progress)?;
            let id = archived.snapshot.ok_or_else(|| retry("internal", "a commit pass made no snapshot"))?;
            let packs = live.written_packs.into_iter().chain(archived.written_packs).collect();
            repository.verify(id, &Verify::Written { packs }, &progress)?;
            Ok(Layer::New(id.to_string()))
        })
        .await
    }
}

/// Where a capture of the layer alone comes from.
enum From {
    /// The container's own changes.
    Container(Root),
    /// A snapshot of the whole data set.
    Snapshot(SnapshotFileId),
    /// A snapshot of a data set with other volumes.
    Rearranged(SnapshotFileId, Placement),
}

impl From {
    /// What to archive; nothing when the pod changed nothing outside its volumes.
    fn roots(self, repository: &Repository) -> Result<Vec<Root>, StepError> {
        match self {
            Self::Container(root) if is_empty(&root)? => Ok(Vec::new()),
            Self::Container(root) => Ok(vec![root]),
            Self::Snapshot(id) if snapshot_lacks_layer(repository, id)? => Ok(Vec::new()),
            Self::Snapshot(snapshot) => {
                let stored = |path: &str| Source::Stored { snapshot, path: path.to_owned() };
                Ok([SYSTEM, SYSTEM_REMOVED].map(|path| Root { at: path.to_owned(), source: stored(path) }).into())
            }
            Self::Rearranged(snapshot, placement) => rearranged(repository, snapshot, &placement),
        }
    }
}

/// The layer of a snapshot as it is in a set with other volumes; nothing when it has no change.
fn rearranged(
    repository: &Repository,
    snapshot: SnapshotFileId,
    placement: &Placement,
) -> Result<Vec<Root>, StepError> {
    repository.snapshot(snapshot)?;
    let omit = placement.omitted();
    let is_omitted = |name: &[u8]| omit.iter().any(|o| o.as_bytes() == name);
    let kept = match repository.ls(snapshot, SYSTEM) {
        Ok(entries) => entries.iter().any(|e| !is_omitted(&e.name)),
        Err(Error::NotFound { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    let mut list = layer_removals(repository, snapshot)?;
    list.retain(|entry| !entry.path.split(|b| *b == b'/').next().is_some_and(is_omitted));
    let mut add = Vec::new();
    for (volume, directory) in placement.added() {
        let path = format!("/volumes/{volume}");
        let removals = removed::decode(&repository.read_file(snapshot, &removed::list_path(&path))?)?;
        list.extend(removed::above(removals, directory.as_bytes()));
        add.push((directory.clone(), path));
    }
    if !kept && add.is_empty() && list.is_empty() {
        return Ok(Vec::new());
    }
    let tree = Source::Rearranged { snapshot, directory: SYSTEM.to_owned(), omit, add };
    let list = Source::Bytes { data: removed::encode(list), mode: 0o600 };
    Ok(vec![Root { at: SYSTEM.to_owned(), source: tree }, Root { at: SYSTEM_REMOVED.to_owned(), source: list }])
}

/// What the pod of a snapshot deleted from the image outside its volumes.
pub(super) fn layer_removals(
    repository: &Repository,
    snapshot: SnapshotFileId,
) -> Result<Vec<removed::Removed>, StepError> {
    match repository.read_file(snapshot, SYSTEM_REMOVED) {
        Ok(list) => Ok(removed::decode(&list)?),
        Err(Error::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a snapshot holds no change outside volumes.
fn snapshot_lacks_layer(repository: &Repository, id: SnapshotFileId) -> Result<bool, StepError> {
    // A snapshot that is gone is a loss, and an error: the pod would start older than it was.
    repository.snapshot(id)?;
    let entries = match repository.ls(id, SYSTEM) {
        Err(Error::NotFound { .. }) => return Ok(true),
        other => other?,
    };
    Ok(entries.is_empty() && repository.read_file(id, SYSTEM_REMOVED)?.is_empty())
}

/// What a capture of the layer found.
enum Layer {
    /// What the last capture has, or nothing again.
    Same,
    /// Nothing where there was something.
    Empty,
    /// A new capture.
    New(String),
}

/// Whether the pod changed nothing at all outside its volumes.
fn is_empty(root: &Root) -> Result<bool, StepError> {
    let Source::Directory { path, exclude, .. } = &root.source else { return Ok(false) };
    let unreadable = |e: std::io::Error| retry("system-layer-unreadable", format!("{}: {e}", path.display()));
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if !exclude.iter().any(|e| e.as_os_str() == name) {
            return Ok(false);
        }
    }
    Ok(true)
}
