//! Capturing a data set: live pass, final pass at one instant, read-back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use perennial_core::engine::{Presence, SetAccess, SetSpec, VolumePath};
use perennial_core::hook::Hook;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::progress::Progress;
use perennial_core::record::Record;
use perennial_core::snapshot::{Grade, Loss, Snapshot, SnapshotKind, SnapshotState, SnapshotVolume, WriterStamp};
use perennial_core::volume::{SetNumber, VolumeSet};
use perennial_snapshots::{
    ArchiveRequest, Archived, Held, Late, Layout, Loss as ByteLoss, Parent, Pass, Root, SnapshotFileId, Source,
    SpoolLimits, Verify, Writers,
};

use super::freeze::{self, Container, while_frozen};
use super::hooks::{Around, Told};
use super::images::blocking;
use super::layer::{LayerSource, layer_tag, parse_id};
use super::podfile::PodFile;
use super::step::{StepError, definite, retry};
use super::still::StillOf;
use super::worker::{Reconciler, View, current_operation, set_spec, unknown_set};
use crate::mover::Reach;
use crate::store::{Change, Page, SnapshotScope};

/// The tag that finds a snapshot in the repository.
pub(super) fn snapshot_tag(id: SnapshotId) -> String {
    format!("snapshot:{id}")
}

/// What was read while a pod was frozen waits for the repository in so much memory, and beyond that in a file without a
/// name in the scratch directory.
const SPOOL_MEMORY: usize = 64 << 20;
/// How often a capture is tried again for losses that were accepted.
const LOSSES_COME_UP: u32 = 2;
/// How often a capture is tried that runs hooks of the pod each time.
const HOOKED_TRIES: u32 = 5;
/// Where a snapshot says what it is.
const POD_FILE: &str = "/pod.json";
/// How engines call a set's missing marker among its missing volumes.
const MARKER: &str = "marker";

impl Reconciler {
    /// Uploads what is there while the pod runs, so that little is left for the final pass.
    pub(super) async fn live_pass(
        &self,
        view: &View,
        snapshot: SnapshotId,
        set: SetNumber,
        progress: &Progress,
    ) -> Result<(), StepError> {
        self.ensure_image_stored(view, progress).await?;
        self.note_begin(view.snapshot(snapshot).ok_or(StepError::Overtaken)?);
        let set = view.pod.set(set).ok_or_else(unknown_set)?;
        let (parents, expected) = self.parents(view, None).await?;
        progress.estimate(expected);
        let Reached { paths, mut reach } = self.reach(view, set).await?;
        let request = ArchiveRequest {
            pass: Pass::Live,
            parents,
            roots: volume_roots(&paths),
            ..self.request(view, snapshot, set)
        };
        let (repositories, tenant, progress) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        let archived =
            blocking(move || Ok(reach.archive(&repositories.open(&tenant)?, &request, None, &progress)?)).await?;
        self.memory().live.insert(snapshot, (archived.tree, archived.counts.bytes));
        Ok(())
    }

    /// Notes that a capture is tried for the first time, by this process and under the open repository.
    pub(super) fn note_begin(&self, row: &Snapshot) {
        if row.created_at > self.started_at {
            let opening = self.repositories.opening();
            self.memory().began.entry(row.id).or_insert(opening);
        }
    }

    /// Captures the data set at one instant and uploads it; the row becomes `uploaded`.
    pub(super) async fn capture(
        &self,
        view: &mut View,
        (id, number): (SnapshotId, SetNumber),
        grade: Grade,
        accepted: &[String],
        progress: &Progress,
    ) -> Result<(), StepError> {
        self.ensure_image_stored(view, progress).await?;
        let set = view.pod.set(number).ok_or_else(unknown_set)?.clone();
        let row = view.snapshot(id).ok_or(StepError::Overtaken)?.clone();
        self.note_begin(&row);
        let container = view.observed.container.as_ref().filter(|c| c.set == number);
        let writer = container.map(perennial_core::engine::ObservedContainer::stamp);
        let live = container.filter(|c| c.is_live()).map(|c| c.id.clone());
        if grade == Grade::Stopped && live.is_some() {
            return Err(StepError::Overtaken);
        }
        if let Some(found) = self.find_uploaded(view, (&set, id), (grade, accepted), writer.as_ref()).await? {
            return self.record_uploaded(view, row, (&set, grade, writer), found, &Told::default()).await;
        }
        let layer = self.layer_source(view, progress).await?;
        // A mover takes a while to come up: the pod is not frozen meanwhile.
        let (volumes, missing) = self.reach_with_losses(view, &set, accepted).await?;
        let spec = set_spec(&view.pod, &set);
        let makes_still = live.is_some() && missing.is_empty() && self.makes_stills(&spec).await;
        let still = makes_still.then_some(spec);
        let sources = Sources { volumes, missing, layer, accepted: accepted.to_vec(), still };
        let (stamp, live, told) = ((grade, writer.as_ref()), live.as_deref(), Arc::<Told>::default());
        if live.is_some() {
            self.owe_hook(view, (id, number), writer.as_ref(), &told).await?;
        }
        let uploaded = self.upload(view, (&set, &row), stamp, (live, &told), sources, progress).await;
        if matches!(&uploaded, Err(StepError::Definite(problem)) if problem.code == freeze::TOO_LONG) {
            // What changed since the live pass was too much: another try begins with another one.
            self.memory().live.remove(&id);
        }
        let uploaded = match uploaded {
            Ok(uploaded) => uploaded,
            Err(error) => {
                self.settle_hooks(view, id, &told).await;
                if makes_still {
                    self.sweep_stills().await;
                }
                return Err(once_too_often(error, &told, view.pod.retry.count));
            }
        };
        let grade = if told.is_hooked() { Grade::Hooked } else { grade };
        let recorded = self.record_uploaded(view, row, (&set, grade, writer), uploaded, &told).await;
        if recorded.is_err() {
            // Whatever becomes of the snapshot: what its hooks did is done.
            self.settle_hooks(view, id, &told).await;
        }
        if makes_still {
            self.sweep_stills().await;
        }
        recorded
    }

    async fn upload(
        &self,
        view: &View,
        (set, row): (&VolumeSet, &Snapshot),
        (grade, writer): (Grade, Option<&WriterStamp>),
        (live, told): (Option<&str>, &Arc<Told>),
        sources: Sources,
        progress: &Progress,
    ) -> Result<Uploaded, StepError> {
        let captured_at = self.now();
        let Sources { volumes: Reached { paths: volumes, mut reach }, missing, layer, accepted, still } = sources;
        let file = PodFile::new(&view.pod, set, row, (grade, writer), &volumes, captured_at).with_losses(&missing);
        let hook = view.pod.spec.hooks.before.clone().filter(|_| live.is_some());
        let pod_file = hooked_pod_file(hook, Arc::clone(told));
        let mut roots = vec![pod_file(file.clone())];
        roots.extend(volume_roots(&volumes));
        roots.extend(layer.root().cloned());
        let (parents, expected) = self.parents(view, Some(row.id)).await?;
        progress.estimate(expected);
        let mut request = ArchiveRequest { time: captured_at, parents, roots, ..self.request(view, row.id, set) };
        let (repositories, tenant, counted) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        let scratch = self.settings.scratch.clone();
        let work = move |writers: Option<&dyn Writers>| {
            let repository = repositories.open(&tenant)?;
            // Without the directory, what was read waits in memory only.
            let spool = std::fs::create_dir_all(&scratch).ok().map(|()| scratch);
            let spool = SpoolLimits { memory: SPOOL_MEMORY, directory: spool };
            let held = writers.map(|writers| Held { writers, spool });
            // What a mover loses and what this process does come up one after the other.
            for _ in 0..LOSSES_COME_UP {
                match reach.archive(&repository, &request, held.as_ref(), &counted) {
                    Err(perennial_snapshots::Error::Incomplete { losses }) if covers(&accepted, &losses) => {
                        request.accept_losses.extend(losses);
                        let file = file.clone().with_losses(&in_words(&request.accept_losses));
                        request.roots[0] = pod_file(file);
                    }
                    other => return Ok((other?, request.accept_losses)),
                }
            }
            Ok((reach.archive(&repository, &request, held.as_ref(), &counted)?, request.accept_losses))
        };
        let ((archived, mut losses), frozen) = match live {
            None => (blocking(move || work(None)).await?, None),
            Some(id) => {
                let limit = Duration::try_from(self.settings.policy.freeze_limit).unwrap_or_default();
                // Should the thaw fail, the next pass looks at once.
                self.memory().thawed.remove(&view.pod.id);
                let (pod, snapshot, told) = (&view.pod, row.id, Arc::clone(told));
                let around = Some(Around { reconciler: self, pod, container: id, snapshot, progress, told });
                let still = still.as_ref().map(|set| StillOf { set, volumes: &volumes });
                let container = Container { engine: &*self.engine, id, around, still };
                while_frozen(&container, limit, move |writers| work(Some(writers))).await?
            }
        };
        if live.is_some() && frozen.is_none() {
            return Err(retry("freeze-broken", "the running pod was captured without being frozen"));
        }
        losses.extend(archived.losses.iter().cloned());
        let mut losses = in_words(&losses);
        losses.extend(missing);
        losses.sort();
        losses.dedup();
        let repository_id = archived.snapshot.ok_or_else(|| retry("internal", "a commit pass made no snapshot"))?;
        Ok(Uploaded {
            repository_id,
            // What the hook took is no part of the age of what was read after it.
            captured_at: told.ready_at().unwrap_or(captured_at),
            frozen,
            volumes: summaries(&volumes, &archived),
            losses,
            counts: Some(archived.counts),
            new_bytes: Some(archived.new_bytes),
        })
    }

    /// An upload of this snapshot that an earlier try finished without recording it, if it is of the same instant.
    async fn find_uploaded(
        &self,
        view: &View,
        (set, id): (&VolumeSet, SnapshotId),
        (grade, accepted): (Grade, &[String]),
        writer: Option<&WriterStamp>,
    ) -> Result<Option<Uploaded>, StepError> {
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let (set, writer, accepted) = (set.clone(), writer.cloned(), accepted.to_vec());
        // A frozen instant has passed: only what was captured after the last writer stopped can still be the same.
        let repeatable = grade == Grade::Stopped;
        // Captures of the layer that a crash kept from being forgotten are garbage, too.
        let (of_pod, of_layer) = (format!("pod:{}", view.pod.id), layer_tag(view));
        let needed: Vec<String> = view.pod.layers().into_iter().map(str::to_owned).collect();
        let (found, stale) = blocking(move || {
            let repository = repositories.open(&tenant)?;
            let (of_snapshot, mut stale) = (snapshot_tag(id), Vec::new());
            for found in repository.find(&[&of_pod])? {
                let has = |tag: &String| found.tags.contains(tag);
                if !has(&of_snapshot) {
                    // A copy, in the repository that took another's place, is known by its original's name.
                    let names = [Some(found.id), found.original].into_iter().flatten();
                    if has(&of_layer) && !names.map(|id| id.to_string()).any(|id| needed.contains(&id)) {
                        stale.push(found.id);
                    }
                    continue;
                }
                let file = repository.read_file(found.id, "/pod.json").ok().and_then(|b| PodFile::parse(&b));
                let same = |f: &PodFile| {
                    f.is_same_instant(&set, grade, writer.as_ref())
                        && f.losses().iter().all(|l| accepted.contains(&l.path))
                };
                if let Some(file) = file.filter(|f| repeatable && found.counts.is_some() && same(f)) {
                    let uploaded = Uploaded {
                        repository_id: found.id,
                        captured_at: found.time,
                        frozen: None,
                        volumes: file.volumes(),
                        losses: file.losses(),
                        counts: found.counts,
                        new_bytes: None,
                    };
                    return Ok((Some(uploaded), Vec::new()));
                }
                stale.push(found.id);
            }
            Ok((None, stale))
        })
        .await?;
        self.forget_stale(view, stale).await?;
        Ok(found)
    }

    async fn record_uploaded(
        &self,
        view: &mut View,
        row: Snapshot,
        (set, grade, writer): (&VolumeSet, Grade, Option<WriterStamp>),
        uploaded: Uploaded,
        told: &Told,
    ) -> Result<(), StepError> {
        let counts = uploaded.counts;
        let row = Snapshot {
            state: SnapshotState::Uploaded,
            set: Some(set.number),
            generation: set.attached.unwrap_or_default(),
            backend: Some(set.backend),
            grade: Some(grade),
            writer,
            captured_at: Some(uploaded.captured_at),
            frozen_millis: uploaded.frozen.map(|lasted| u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX)),
            bytes: counts.map(|c| c.bytes),
            new_bytes: uploaded.new_bytes,
            files: counts.map(|c| c.files),
            volumes: uploaded.volumes,
            image: view.pod.image.as_ref().map(|i| i.id.clone()),
            losses: uploaded.losses,
            repository_id: Some(uploaded.repository_id.to_string()),
            ..row
        };
        let event = self.event(
            &view.pod,
            current_operation(&view.pod),
            "snapshot.uploaded",
            format!("snapshot {} is in the repository, not yet read back", row.id),
        );
        self.commit_hooked(view, row, event, told).await
    }

    /// Reads back what the capture wrote; the row becomes `verified`, or `failed` when it is proven bad.
    pub(super) async fn verify(&self, view: &mut View, id: SnapshotId, progress: &Progress) -> Result<(), StepError> {
        let row = view.snapshot(id).ok_or(StepError::Overtaken)?.clone();
        let repository_id = parse_id(row.repository_id.as_deref().unwrap_or_default())?;
        let opening = self.repositories.opening();
        let ours = self.memory().began.get(&id) == Some(&opening);
        // What another process wrote for this snapshot, nobody knows: then everything it needs is read.
        let scope = if ours { Verify::Written { packs: Vec::new() } } else { Verify::Everything };
        let (repositories, tenant, reading) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        let verdict = blocking(move || {
            let repository = repositories.open(&tenant)?;
            match repository.verify(repository_id, &scope, &reading) {
                Ok(verified) => Ok(Ok(verified)),
                Err(error) if error.is_retryable() => Err(error.into()),
                Err(perennial_snapshots::Error::Cancelled) => Err(StepError::Cancelled),
                Err(error) => Ok(Err(crate::causes::describe(&error))),
            }
        })
        .await?;
        self.memory().began.remove(&id);
        self.memory().live.remove(&id);
        let operation = current_operation(&view.pod);
        match verdict {
            Ok(_) => {
                let event =
                    self.event(&view.pod, operation, "snapshot.verified", format!("snapshot {id} was read back"));
                let layer = match row.kind {
                    SnapshotKind::Manual | SnapshotKind::Scheduled => {
                        self.layer_by_snapshot(view, &row, progress).await?
                    }
                    SnapshotKind::Final | SnapshotKind::Safety | SnapshotKind::Composed | SnapshotKind::Imported => {
                        None
                    }
                };
                let row = Snapshot { state: SnapshotState::Verified, ..row };
                match layer {
                    Some(layer) => {
                        let change = Change { snapshots: vec![row], events: vec![event], ..Change::default() };
                        self.record_with(view, Record::LayerCaptured(layer), change).await
                    }
                    None => self.commit_snapshot(view, row, event).await,
                }
            }
            Err(found) => {
                let message = format!("snapshot {id} does not read back: {found}");
                let event = self.event(&view.pod, operation, "snapshot.failed", message.clone());
                let row = Snapshot { state: SnapshotState::Failed, error: Some(message), ..row };
                self.commit_snapshot(view, row, event).await
            }
        }
    }

    pub(super) async fn commit_snapshot(
        &self,
        view: &mut View,
        row: Snapshot,
        event: perennial_core::operation::NewEvent,
    ) -> Result<(), StepError> {
        let change = Change {
            pod: Some(view.pod.clone()),
            lease: view.lease.clone(),
            snapshots: vec![row],
            events: vec![event],
            ..Change::default()
        };
        self.store.commit(change).await?;
        Ok(())
    }

    // ---- what passes have in common ------------------------------------------------------------------------------

    fn request(&self, view: &View, id: SnapshotId, set: &VolumeSet) -> ArchiveRequest {
        ArchiveRequest {
            time: self.now(),
            hostname: self.settings.installation.clone(),
            tags: vec![
                format!("pod:{}", view.pod.id),
                snapshot_tag(id),
                format!("generation:{}", set.attached.unwrap_or_default()),
            ],
            parents: Vec::new(),
            roots: Vec::new(),
            pass: Pass::Commit,
            accept_losses: Vec::new(),
        }
    }

    /// Trees whose unchanged files need not be read again, the live pass and the pod's newest snapshot; and the bytes that
    /// are to be expected by them.
    async fn parents(&self, view: &View, live_of: Option<SnapshotId>) -> Result<(Vec<Parent>, u64), StepError> {
        let (mut parents, mut expected) = (Vec::new(), 0);
        if let Some((tree, bytes)) = live_of.and_then(|id| self.memory().live.get(&id).copied()) {
            parents.push(Parent::Tree(tree));
            expected = bytes;
        }
        if let Some(newest) = self.newest_of(view.pod.id).await? {
            expected = expected.max(newest.bytes.unwrap_or_default());
            if let Some(id) = newest.repository_id.as_deref() {
                parents.push(Parent::Snapshot(parse_id(id)?));
            }
        }
        Ok((parents, expected))
    }

    /// A pod's newest snapshot that its data could be brought back from.
    pub(super) async fn newest_of(&self, pod: PodId) -> Result<Option<Snapshot>, StepError> {
        let newest = self.store.snapshot_list(&SnapshotScope::Pod(pod), &Page { after: None, limit: 5 }).await?;
        Ok(newest.into_iter().find(|s| s.is_restorable() && s.kind != SnapshotKind::Imported))
    }

    /// The volumes of a set that are there, and a mover where they need one.
    pub(super) async fn reach(&self, view: &View, set: &VolumeSet) -> Result<Reached, StepError> {
        let spec = set_spec(&view.pod, set);
        let (mut paths, channel) = match self.engine.set_access(&spec).await? {
            SetAccess::Local(paths) => (paths, None),
            SetAccess::Mover(paths) => (paths, Some(self.engine.mover_open(&spec).await?)),
        };
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        blocking(move || {
            let mut reach = Reach::open(&repositories.open(&tenant)?, channel)?;
            let directories: Vec<PathBuf> = paths.iter().map(|v| v.path.clone()).collect();
            let mut there = reach.directories(&directories)?.into_iter();
            paths.retain(|_| there.next() == Some(true));
            Ok(Reached { paths, reach })
        })
        .await
    }

    /// The volumes that are there, and a loss for each part that is not; the losses have to be accepted.
    async fn reach_with_losses(
        &self,
        view: &View,
        set: &VolumeSet,
        accepted: &[String],
    ) -> Result<(Reached, Vec<Loss>), StepError> {
        let presence = view.observed.set(set.number).map(|s| &s.presence);
        let present = match presence {
            Some(Presence::Absent) => Reached { paths: Vec::new(), reach: Reach::Here },
            _ => self.reach(view, set).await?,
        };
        let is_there = |name: &str| present.paths.iter().any(|v| v.name == name);
        let mut missing: Vec<Loss> = set
            .volumes
            .iter()
            .filter(|v| !is_there(&v.name))
            .map(|v| Loss { path: format!("/volumes/{}", v.name), reason: "the volume is missing".to_owned() })
            .collect();
        let marker = matches!(presence, Some(Presence::Partial { missing }) if missing.iter().any(|m| m == MARKER));
        if marker && set.volumes.iter().all(|v| v.name != MARKER) {
            missing
                .push(Loss { path: format!("/{MARKER}"), reason: "nothing tells whether the set is whole".to_owned() });
        }
        let refused: Vec<&Loss> = missing.iter().filter(|l| !accepted.contains(&l.path)).collect();
        if refused.is_empty() {
            return Ok((present, missing));
        }
        let refused: Vec<String> = refused.iter().map(|l| format!("{}: {}", l.path, l.reason)).collect();
        Err(definite(
            "snapshot-incomplete",
            format!("these could not be captured: {}", refused.join("; ")),
            "bring them back, or accept exactly these paths with acceptLoss",
        ))
    }
}

/// A pod is not made ready for a freeze again and again: what fails so often ends the snapshot.
fn once_too_often(error: StepError, told: &Told, failed_before: u32) -> StepError {
    match error {
        StepError::Retry(found) if told.has_run() && failed_before + 1 >= HOOKED_TRIES => definite(
            &found.code,
            format!("{}; the snapshot was tried {HOOKED_TRIES} times, each time with the pod's hooks", found.message),
            "mend the cause and take another",
        ),
        other => other,
    }
}

/// The volumes of a set that are there, and who reaches them.
pub(super) struct Reached {
    pub(super) paths: Vec<VolumePath>,
    pub(super) reach: Reach,
}

/// What a capture reads.
struct Sources {
    volumes: Reached,
    /// Volumes that are not there, accepted as losses.
    missing: Vec<Loss>,
    layer: LayerSource,
    /// Paths whose loss was accepted.
    accepted: Vec<String>,
    /// The set, when a still can be made of it.
    still: Option<SetSpec>,
}

/// What an upload produced.
struct Uploaded {
    repository_id: SnapshotFileId,
    captured_at: jiff::Timestamp,
    /// How long the pod stood still.
    frozen: Option<Duration>,
    volumes: Vec<SnapshotVolume>,
    losses: Vec<Loss>,
    counts: Option<perennial_snapshots::Counts>,
    /// `None` for an upload found again: only its own pass knew.
    new_bytes: Option<u64>,
}

/// Volumes as a capture reads them.
pub(crate) fn volume_roots(volumes: &[VolumePath]) -> Vec<Root> {
    let root = |v: &VolumePath| Root {
        at: format!("/volumes/{}", v.name),
        source: Source::Directory {
            path: v.path.clone(),
            layout: if v.lower.is_some() { Layout::OverlayUpper } else { Layout::Plain },
            exclude: v.exclude.iter().map(|p| p.trim_start_matches('/').into()).collect(),
        },
    };
    volumes.iter().map(root).collect()
}

pub(super) fn pod_file_root(file: &PodFile) -> Root {
    Root { at: POD_FILE.to_owned(), source: Source::Bytes { data: file.to_bytes(), mode: 0o600 } }
}

/// How a capture's `pod.json` is made: with a hook, once it is known what that did.
fn hooked_pod_file(hook: Option<Hook>, told: Arc<Told>) -> impl Fn(PodFile) -> Root {
    move |file| match hook.clone() {
        None => pod_file_root(&file),
        Some(hook) => {
            let told = Arc::clone(&told);
            let data = Late::new(move || {
                file.clone().hooked(&hook, told.report().before.as_ref(), told.ready_at()).to_bytes()
            });
            Root { at: POD_FILE.to_owned(), source: Source::Late { data, mode: 0o600 } }
        }
    }
}

fn in_words(losses: &[ByteLoss]) -> Vec<Loss> {
    losses.iter().map(|l| Loss { path: l.path.display().to_string(), reason: l.to_string() }).collect()
}

fn covers(accepted: &[String], losses: &[ByteLoss]) -> bool {
    losses.iter().all(|l| accepted.iter().any(|a| std::path::Path::new(a) == l.path))
}

fn volume_row(name: &str, mount_path: &str, counts: Option<perennial_snapshots::Counts>) -> SnapshotVolume {
    SnapshotVolume {
        name: name.to_owned(),
        mount_path: mount_path.to_owned(),
        files: counts.map(|c| c.files),
        bytes: counts.map(|c| c.bytes),
    }
}

fn summaries(volumes: &[VolumePath], archived: &Archived) -> Vec<SnapshotVolume> {
    let counts =
        |v: &VolumePath| archived.per_root.iter().find(|r| r.at == format!("/volumes/{}", v.name)).map(|r| r.counts);
    volumes.iter().map(|v| volume_row(&v.name, &v.mount_path, counts(v))).collect()
}
