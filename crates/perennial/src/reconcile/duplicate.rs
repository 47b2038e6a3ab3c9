//! A clone's first data set, copied from its source's on the same host.
//!
//! All of it is one step of the clone, from nothing after any failure: until the set is marked complete and recorded it is
//! nobody's data. Meanwhile nothing else is done to the source: its own passes wait, and its lease is held. Where the storage
//! cannot copy a whole set at one instant, most is copied while the source runs, and in the freeze only what changed since.
//! What cannot be copied here is made by a snapshot of the source instead.

use std::path::{Path, PathBuf};
use std::time::Duration;

use perennial_core::engine::{
    ContainerState, Copying, Fill, ObservedContainer, Presence, SetAccess, SetSpec, VolumePath,
};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::pod::{Fork, Identity, LayerCapture, Pod, Task, Work};
use perennial_core::progress::Progress;
use perennial_core::record::Record;
use perennial_core::spec::is_at_or_below;
use perennial_core::verbs::{self, Answer, ForkSource, Order};
use perennial_core::volume::{SetNumber, VolumeSet};
use perennial_snapshots::{
    Duplicate, Duplicated, Replacement, Root, Source, Tree, Unsynced, file_names, read_file, replace_file,
};

use tokio::time::Instant;

use super::freeze::{Container, TOO_LONG, while_still};
use super::images::{Scratch, blocking};
use super::layer::{LayerSource, layer_root};
use super::step::{StepError, definite, retry};
use super::worker::{Reconciler, View, current_operation, set_spec};
use crate::identity::{self, Known, Renewed};
use crate::store::{Change, Page, SnapshotScope};

/// Copies at one instant that may fail before one is made file by file.
const INSTANT_TRIES: u32 = 2;
/// How often it is tried to archive the layer of a copy that is made.
const LAYER_TRIES: u32 = 5;
/// Half of the delay before the second try; doubles with each.
const LAYER_AGAIN: Duration = Duration::from_millis(50);
/// How often it is looked whether somebody wants something of a pod that is copied.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So often may something have failed that a copy still gives way to.
const GIVES_WAY: u32 = 3;
/// The capture of what was released or replaced lately is among so many of a pod's newest snapshots.
const RECENT: u32 = 1000;

/// The system layer as a clone gets it: where it was read from is no longer needed.
enum Layer {
    Nothing,
    /// Its tree is in this directory; captured then, when it was not copied now.
    There(Root, Scratch, Option<jiff::Timestamp>),
}

impl Reconciler {
    /// Makes the clone's set a copy of its source's and records it, or that it has to be made in another way.
    pub(super) async fn copy_set(
        &self,
        view: &mut View,
        set: &VolumeSet,
        (source, of): (PodId, SetNumber),
        progress: &Progress,
    ) -> Result<(), StepError> {
        // Whoever waits keeps others from being worked on: the controller looks again.
        let (Some(_alone), Ok(_place)) = (self.take(source), self.copies.try_acquire()) else {
            return Err(StepError::Occupied);
        };
        if self.lease(source).await?.is_none() {
            return Err(retry("clone-source-busy", "another server works on the pod that is cloned"));
        }
        self.with_lease_kept(source, self.copy_from(view, set, (source, of), progress)).await
    }

    async fn copy_from(
        &self,
        view: &mut View,
        set: &VolumeSet,
        (source, of): (PodId, SetNumber),
        progress: &Progress,
    ) -> Result<(), StepError> {
        let Some(pod) = self.store.pod_fetch(source).await? else {
            return Err(source_failed("the pod that is cloned was purged"));
        };
        if has_work(&pod) {
            return Err(StepError::Occupied);
        }
        let from = self.look(pod).await?;
        let Some(there) = from.pod.current_set().filter(|there| there.number == of && is_alike(there, set)).cloned()
        else {
            return self.fork_elsewhere(view, &from.pod, of).await;
        };
        if from.pod.spec.hooks.before.is_some() || from.pod.hook.is_some() {
            // It got one since: what that writes is part of the data, and a snapshot runs it. One that is owed comes before that.
            return self.fork_elsewhere(view, &from.pod, of).await;
        }
        let (of_source, of_clone) = (set_spec(&from.pod, &there), set_spec(&view.pod, set));
        let seen = from.observed.set(there.number).map(|s| &s.presence);
        let others = self.others_with(&from, &of_source).await?;
        if seen != Some(&Presence::Whole) || others || of_source.image != of_clone.image {
            return Err(retry(
                "clone-source-unsound",
                "the data of the pod that is cloned is not whole, or others use it",
            ));
        }
        let began = Instant::now();
        let copying = match self.engine.set_copying(&of_source).await? {
            None => return self.fork_elsewhere(view, &from.pod, of).await,
            // What it promises it does not do: each try more would make the source stand still for nothing.
            Some(Copying::Instant) if view.pod.retry.count >= INSTANT_TRIES => Copying::Shared,
            Some(copying) => copying,
        };
        self.engine.set_prepare(&of_clone, Fill::Image).await?;
        let (SetAccess::Local(sources), SetAccess::Local(targets)) =
            (self.engine.set_access(&of_source).await?, self.engine.set_access(&of_clone).await?)
        else {
            return self.fork_elsewhere(view, &from.pod, of).await;
        };
        let unsynced = Unsynced::open(targets.iter().map(|volume| volume.path.as_path()))?;
        let mut trees = match copying {
            Copying::Instant => Vec::new(),
            Copying::Shared | Copying::Bytes => pairs(&sources, &targets)?,
        };
        let layer = match self.layer_source(&from, progress).await? {
            LayerSource::Nothing => Layer::Nothing,
            LayerSource::Unpacked(root, scratch) => {
                Layer::There(root, scratch, from.pod.layer.as_ref().map(|layer| layer.captured_at))
            }
            LayerSource::Root(root) => self.stage(root, &mut trees)?,
        };
        let copy = Copy { of: (of_source.clone(), of_clone), copying, sources, trees };
        let captured_at = self.now();
        if copying != Copying::Instant {
            // To look at everything beforehand would take as long as it takes to share it.
            let newest = self.newest_of(source).await?;
            progress.estimate(newest.and_then(|newest| newest.bytes).unwrap_or_default());
        }
        // What ends the copy in a freeze that was too long does not end the clone.
        let part = progress.part();
        let copied = self.unless_wanted(source, &part, self.copy_at_one_instant(&from, copy, &part));
        let (done, frozen) = match copied.await {
            Err(StepError::Definite(problem)) if problem.code == TOO_LONG => {
                return self.fork_elsewhere(view, &from.pod, of).await;
            }
            copied => copied?,
        };
        self.check_left_alone(&from, &of_source).await?;
        let told = match view.pod.fork {
            Some(Fork { identity: Identity::Renewed, .. }) => blocking(move || renew(&targets)).await?,
            Some(Fork { identity: Identity::Kept, .. }) | None => None,
        };
        // What could not be written while it was copied is told to who had the file system open meanwhile.
        blocking(move || unsynced.sync().map_err(no_room)).await?;
        self.engine.set_complete(&set_spec(&view.pod, set)).await?;
        let layer = match layer {
            Layer::There(root, _scratch, before) => {
                self.layer_of_copy(view, root.clone(), before.unwrap_or(captured_at), progress).await?
            }
            Layer::Nothing => None,
        };
        let times = Times { took: began.elapsed(), frozen };
        let message = words(source, copying, &done, &times, told);
        let event = self.event(&view.pod, current_operation(&view.pod), "pod.copied", message);
        let change = Change { events: vec![event], ..Change::default() };
        self.record_with(view, Record::SetCompleted { set: set.number, layer, gap: from.pod.layer_gap.clone() }, change)
            .await
    }

    /// Copies for as long as nobody wants anything of the source: whoever does need not wait for all of it.
    async fn unless_wanted<T>(
        &self,
        source: PodId,
        progress: &Progress,
        copy: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        let wanted = async {
            let is_wanted = |pod: Pod| is_wanted(&pod, self.now());
            while !self.store.pod_fetch(source).await.is_ok_and(|pod| pod.is_some_and(is_wanted)) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let mut copy = std::pin::pin!(copy);
        tokio::select! {
            // Before it begins, too.
            biased;
            () = wanted => {
                progress.cancel();
                match copy.await {
                    Err(StepError::Cancelled) => Err(StepError::Occupied),
                    ended => ended,
                }
            }
            copied = &mut copy => copied,
        }
    }

    /// Whether anything but the pod's own container may write into the set.
    async fn others_with(&self, from: &View, set: &SetSpec) -> Result<bool, StepError> {
        let lives = from.observed.container.as_ref().is_some_and(ObservedContainer::is_live);
        // A process can outlive its container; of one that runs, its engine knows.
        let lingering = if lives { Vec::new() } else { self.engine.lingering(std::slice::from_ref(set)).await? };
        Ok(!from.observed.foreign.is_empty() || !lingering.is_empty())
    }

    /// Fails when anybody may have written into the set since it was looked at: nobody here does, but others may.
    async fn check_left_alone(&self, from: &View, set: &SetSpec) -> Result<(), StepError> {
        let again = self.look(from.pod.clone()).await?;
        let run = |view: &View| view.observed.container.as_ref().map(ObservedContainer::stamp);
        let lives = |view: &View| view.observed.container.as_ref().is_some_and(ObservedContainer::is_live);
        // One that ran stood still, which its thaw proves; it may have ended after that.
        let started = !lives(from) && (lives(&again) || run(&again) != run(from));
        if started || self.others_with(&again, set).await? {
            return Err(retry("clone-source-busy", "somebody else started the pod that is cloned, or uses its data"));
        }
        Ok(())
    }

    /// Has the layer copied together with the volumes.
    fn stage(&self, root: Root, trees: &mut Vec<Tree>) -> Result<Layer, StepError> {
        let Source::Directory { path, exclude, .. } = root.source else { return Ok(Layer::Nothing) };
        let scratch = self.scratch()?;
        trees.push(Tree { from: path, to: scratch.path().to_owned(), exclude });
        Ok(Layer::There(layer_root(scratch.path().to_owned(), Vec::new()), scratch, None))
    }

    /// Copies while nothing writes: a running source stands still for it, at the end.
    async fn copy_at_one_instant(
        &self,
        from: &View,
        copy: Copy,
        progress: &Progress,
    ) -> Result<(Duplicated, Option<Duration>), StepError> {
        let Copy { of: (of_source, of_clone), copying, sources, trees } = copy;
        let mut duplicate = Duplicate::new(trees);
        let container = from.observed.container.as_ref().filter(|c| c.set == of_source.number && c.is_live());
        let finish = |mut duplicate: Duplicate| {
            let progress = progress.clone();
            async move {
                if copying == Copying::Instant {
                    self.engine.set_snapshot(&of_source, &of_clone).await?;
                }
                blocking(move || duplicate.finish(&progress).map_err(no_room)).await
            }
        };
        let Some(container) = container else {
            return Ok((finish(duplicate).await?, None));
        };
        if container.state == ContainerState::Frozen {
            // A server that died left it so.
            self.engine.container_unfreeze(&container.id).await?;
        }
        let ahead = progress.clone();
        let duplicate = blocking(move || {
            // What is written back now is not written back in the freeze.
            perennial_snapshots::sync(sources.iter().map(|v| v.path.as_path()))?;
            duplicate.ahead(&ahead).map_err(no_room)?;
            Ok(duplicate)
        })
        .await?;
        let limit = Duration::try_from(self.settings.policy.freeze_limit).unwrap_or_default();
        // Should the thaw fail, the next pass looks at once.
        self.memory().thawed.remove(&from.pod.id);
        let container = Container { engine: &*self.engine, id: &container.id, around: None, still: None };
        while_still(&container, limit, progress, |processes| async move {
            processes.hold_still().await?;
            let done = finish(duplicate).await?;
            processes.go_on().await?;
            Ok(done)
        })
        .await
    }

    /// The copied layer, as a capture of the clone's own.
    async fn layer_of_copy(
        &self,
        view: &View,
        root: Root,
        captured_at: jiff::Timestamp,
        progress: &Progress,
    ) -> Result<Option<LayerCapture>, StepError> {
        let mut tries = 1;
        let repository_id = loop {
            match self.archive_copied_layer(view, root.clone(), progress).await {
                // The copy is made: it is not given up for an outage that is short.
                Err(StepError::Retry(problem)) if tries < LAYER_TRIES => {
                    tracing::warn!(pod = %view.pod.id, code = problem.code, problem = problem.message, "archive the layer");
                    tokio::time::sleep(LAYER_AGAIN * (1 << tries)).await;
                    progress.check().map_err(|_| StepError::Cancelled)?;
                    tries += 1;
                }
                archived => break archived?,
            }
        };
        Ok(repository_id.map(|id| LayerCapture {
            repository_id: Some(id),
            captured_at,
            writer: None,
            after_stop: true,
        }))
    }

    /// Records by which snapshot the clone is made instead; one that has to be taken of the source is asked for.
    async fn fork_elsewhere(&self, view: &mut View, source: &Pod, of: SetNumber) -> Result<(), StepError> {
        let now = self.now();
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let operation = OperationId::from_parts(millis, self.ids.random());
        let of_clone = match current_operation(&view.pod) {
            Some(id) => self.store.operation_fetch(id).await?,
            None => None,
        };
        let actor = of_clone.map_or_else(|| "system".to_owned(), |o| o.actor);
        let order = Order { operation, actor, now };
        let id = SnapshotId::from_parts(millis, self.ids.random());
        let captured = self.store.snapshot_list(&SnapshotScope::Pod(source.id), &Page::first(RECENT)).await?;
        let from =
            verbs::fork_source_elsewhere((source, of), &captured, id, &order).map_err(|refused| match refused {
                perennial_core::Error::Conflict { code: "pod-being-purged", .. } => {
                    source_failed("its source is being purged")
                }
                perennial_core::Error::Conflict { code: verbs::REPLACED, problem, hint } => {
                    definite(verbs::REPLACED, problem, &hint)
                }
                // What is in work ends, and leaves a snapshot.
                other => retry("clone-source-busy", other.to_string()),
            })?;
        let mut change = Change::default();
        let snapshot = match from {
            ForkSource::Stored(id) => {
                change.uses.push(id);
                id
            }
            ForkSource::Taken(id, decision) => {
                change.snapshots.extend(decision.snapshot);
                if let Answer::New(taking) = decision.answer {
                    change.events.push(self.news(&decision.pod, &taking));
                    change.operations.push(*taking);
                }
                change.other_pod = Some(decision.pod);
                id
            }
            ForkSource::Host(..) => return Err(retry("internal", "a copy on the host was decided on elsewhere")),
        };
        self.record_with(view, Record::ForkedElsewhere(snapshot), change).await?;
        // It may have something to do now.
        self.memory().woken.push(source.id);
        Ok(())
    }
}

/// Everything that one copy is made from.
struct Copy {
    of: (SetSpec, SetSpec),
    copying: Copying,
    sources: Vec<VolumePath>,
    trees: Vec<Tree>,
}

/// Whether a set can be what the other is copied from.
fn is_alike(source: &VolumeSet, clone: &VolumeSet) -> bool {
    source.backend == clone.backend && source.volumes == clone.volumes
}

/// Whether something is to be done to the pod. What failed and waits for its time is not kept waiting.
fn has_work(pod: &Pod) -> bool {
    (pod.goal.is_some() || !pod.tasks.is_empty()) && pod.retry.count == 0
}

/// Whether somebody waits for something of the pod: not for a snapshot, which a schedule may want more often than a copy takes.
/// What failed a few times is waited for when it is due; what goes on failing would keep every copy from being made.
fn is_wanted(pod: &Pod, now: jiff::Timestamp) -> bool {
    let waits = |task: &Task| !matches!(task.work, Work::Snapshot { .. } | Work::Import { .. });
    let is_due = pod.retry.count <= GIVES_WAY && pod.retry.not_before.is_none_or(|at| at <= now);
    is_due && (pod.goal.is_some() || pod.tasks.iter().any(waits))
}

fn source_failed(why: &str) -> StepError {
    definite("clone-source-failed", why, "delete this pod (perennial pod rm), and clone another")
}

/// A full disk is no outage that passes: the clone ends, and leaves nothing.
fn no_room(error: perennial_snapshots::Error) -> StepError {
    match error {
        perennial_snapshots::Error::Io { source, path, .. }
            if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) =>
        {
            let message = format!("there is no room for a copy of the data: {source}, at {}", path.display());
            definite("no-space", message, "make room in the storage root and clone again")
        }
        other => other.into(),
    }
}

fn pairs(sources: &[VolumePath], targets: &[VolumePath]) -> Result<Vec<Tree>, StepError> {
    let pair = |target: &VolumePath| {
        let source = sources.iter().find(|source| source.name == target.name);
        let source =
            source.ok_or_else(|| retry("clone-source-unsound", format!("volume {} is missing", target.name)))?;
        let exclude = source.exclude.iter().map(|p| PathBuf::from(p.trim_start_matches('/'))).collect();
        Ok(Tree { from: source.path.clone(), to: target.path.clone(), exclude })
    };
    targets.iter().map(pair).collect()
}

/// How long a copy took.
struct Times {
    /// Until its set was complete.
    took: Duration,
    /// How long of that the source stood still; `None` when nothing ran.
    frozen: Option<Duration>,
}

/// What the trail says of a copy.
fn words(source: PodId, copying: Copying, done: &Duplicated, times: &Times, told: Option<String>) -> String {
    let how = match copying {
        Copying::Instant => "at once".to_owned(),
        Copying::Shared | Copying::Bytes => {
            format!("in {} entries, {} bytes shared and {} written", done.entries, done.shared, done.written)
        }
    };
    let still = times.frozen.map_or_else(String::new, |f| format!("; it stood still for {} ms", f.as_millis()));
    let told = told.map_or_else(String::new, |told| format!("; {told}"));
    let took = times.took.as_millis();
    format!("the data set of pod {source} was copied on the host within {took} ms, {how}{still}{told}")
}

/// The volume that holds a path, and the path in it.
fn place<'a>(volumes: &'a [VolumePath], path: &str) -> Option<(&'a VolumePath, PathBuf)> {
    let holds = |v: &&VolumePath| is_at_or_below(path, &v.mount_path);
    let volume = volumes.iter().filter(holds).max_by_key(|v| v.mount_path.len())?;
    Some((volume, PathBuf::from(path[volume.mount_path.len()..].trim_start_matches('/'))))
}

/// Gives the copy an identity of its own; tells what was done.
fn renew(volumes: &[VolumePath]) -> Result<Option<String>, StepError> {
    let mut paths: Vec<String> = identity::MACHINE_IDS.map(str::to_owned).to_vec();
    if let Some((volume, directory)) = place(volumes, identity::SSH_DIRECTORY)
        && let Some(names) = file_names(&volume.path, &directory)?
    {
        let names = names.into_iter().filter(|name| identity::is_host_key(name));
        let keys = names.filter_map(|name| String::from_utf8(name).ok());
        let keys: Vec<String> = keys.map(|name| format!("{}/{name}", identity::SSH_DIRECTORY)).collect();
        if let Some(last) = keys.get(identity::HOST_KEYS_MAX) {
            return Err(super::compose::too_many_keys(last));
        }
        paths.extend(keys);
    }
    let mut known = Vec::new();
    for path in paths {
        let Some((volume, within)) = place(volumes, &path) else { continue };
        if let Some(content) = read_file(&volume.path, &within, identity::SIZE_MAX)? {
            known.push(Known { path, content });
        }
    }
    let renewed =
        identity::renew(&known).map_err(|e| retry("identity-not-made", format!("make ssh host keys: {e}")))?;
    for Renewed { path, content } in &renewed {
        let Some((volume, within)) = place(volumes, path) else { continue };
        let below = |lower: &PathBuf| is_below(lower, &within);
        let with = match content {
            Some(content) => Replacement::Content(content),
            None if volume.lower.as_ref().is_some_and(below) => Replacement::Whiteout,
            None => Replacement::Removed,
        };
        replace_file(&volume.path, &within, with).map_err(no_room)?;
    }
    Ok(identity::told(&renewed))
}

/// Whether the image has anything at this path; the image's tree is ours, and what it says is not followed.
fn is_below(lower: &Path, within: &Path) -> bool {
    lower.join(within).symlink_metadata().is_ok()
}
