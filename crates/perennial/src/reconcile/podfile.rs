//! `/pod.json` at the root of every snapshot: what the trees beside it are, readable without Perennial.

use jiff::Timestamp;
use perennial_core::engine::VolumePath;
use perennial_core::hook::{Hook, HookRun};
use perennial_core::id::SnapshotId;
use perennial_core::pod::Pod;
use perennial_core::snapshot::{Grade, Loss, Snapshot, SnapshotVolume, WriterStamp};
use perennial_core::spec::Backend;
use perennial_core::volume::{Origin, SetState, VolumeSet};
use serde::{Deserialize, Serialize};

/// Version of this document.
const VERSION: u32 = 1;
/// The grade of what was captured nowhere.
const IMPORTED: &str = "imported";

/// What a snapshot says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodFile {
    version: u32,
    perennial: String,
    pod: String,
    name: String,
    tenant: String,
    snapshot: String,
    captured_at: Timestamp,
    pub(super) data_generation: u64,
    pub(super) set: u32,
    /// `overlay`: the trees are the changes over the image; `docker`: they are whole.
    backend: String,
    pub(super) grade: String,
    /// What the pod's own hook did before the freeze; left out when it has none. What follows the freeze is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hook: Option<BeforeHook>,
    pub(super) writer: Option<Writer>,
    image: Image,
    command: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    runtime: Option<String>,
    env: std::collections::BTreeMap<String, String>,
    volumes: Vec<Volume>,
    /// Where it came from; `None` for a capture of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    imported: Option<Imported>,
    /// What its owner accepted to lose; a snapshot with losses proves nothing (D34).
    #[serde(default)]
    losses: Vec<Lost>,
    /// What it was put together out of; left out when it is of one instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    composed: Option<ComposedOf>,
}

/// What a snapshot was put together out of (law 3: no mixing of two points in time without saying so).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ComposedOf {
    /// The snapshot it is, but for what is exchanged.
    base: String,
    /// The snapshot that parts were taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parts_of: Option<String>,
    /// Which parts, as they are stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<String>,
    /// Files of the machine's identity that are new, or were removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) identity: Vec<String>,
}

impl ComposedOf {
    pub(super) fn new(base: SnapshotId) -> Self {
        Self { base: base.to_string(), parts_of: None, parts: Vec::new(), identity: Vec::new() }
    }
}

/// What an import was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Imported {
    /// The path it belongs below; `None` for an archive of the whole pod.
    pub(super) into: Option<String>,
    /// The snapshot that everything else is of; `None` when nothing else was changed.
    pub(super) base: Option<String>,
    /// What its owner says about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) comment: String,
}

/// Something that could not be captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Lost {
    path: String,
    reason: String,
}

/// The run that wrote last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Writer {
    container: String,
    started_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Image {
    reference: String,
    id: String,
    digest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: String,
    mount_path: String,
}

/// What a hook did before the freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BeforeHook {
    command: Vec<String>,
    exit_code: Option<i64>,
    millis: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// The grade of this name; one that is not known is the least.
pub(super) fn grade_named(name: &str) -> Grade {
    let known = [Grade::Stopped, Grade::Hooked];
    known.into_iter().find(|grade| grade_name(*grade) == name).unwrap_or(Grade::Frozen)
}

/// The grade's name in `pod.json`, in the API and in the database.
pub(super) const fn grade_name(grade: Grade) -> &'static str {
    match grade {
        Grade::Stopped => "stopped",
        Grade::Frozen => "frozen",
        Grade::Hooked => "hooked",
    }
}

impl From<&WriterStamp> for Writer {
    fn from(stamp: &WriterStamp) -> Self {
        Self { container: stamp.container.clone(), started_at: stamp.started_at }
    }
}

impl PodFile {
    pub(super) fn new(
        pod: &Pod,
        set: &VolumeSet,
        snapshot: &Snapshot,
        (grade, writer): (Grade, Option<&WriterStamp>),
        volumes: &[VolumePath],
        captured_at: Timestamp,
    ) -> Self {
        let image = pod.image.as_ref();
        Self {
            version: VERSION,
            perennial: env!("CARGO_PKG_VERSION").to_owned(),
            pod: pod.id.to_string(),
            name: pod.name.to_string(),
            tenant: pod.tenant.to_string(),
            snapshot: snapshot.id.to_string(),
            captured_at,
            data_generation: set.attached.unwrap_or_default(),
            set: set.number,
            backend: set.backend.as_str().to_owned(),
            grade: grade_name(grade).to_owned(),
            hook: None,
            writer: writer.map(Writer::from),
            image: Image {
                reference: pod.spec.image.clone(),
                id: image.map(|i| i.id.clone()).unwrap_or_default(),
                digest: image.and_then(|i| i.digest.clone()),
            },
            command: pod.spec.command.clone(),
            entrypoint: pod.spec.entrypoint.clone(),
            runtime: pod.spec.runtime.clone(),
            env: pod.spec.env.clone(),
            volumes: volumes
                .iter()
                .map(|v| Volume { name: v.name.clone(), mount_path: v.mount_path.clone() })
                .collect(),
            imported: None,
            losses: Vec::new(),
            composed: None,
        }
    }

    /// What a snapshot says that is this one but for what was exchanged, and belongs to this pod.
    pub(super) fn composed(self, pod: &Pod, snapshot: &Snapshot, at: Timestamp, of: ComposedOf) -> Self {
        Self {
            perennial: env!("CARGO_PKG_VERSION").to_owned(),
            pod: pod.id.to_string(),
            name: pod.name.to_string(),
            tenant: pod.tenant.to_string(),
            snapshot: snapshot.id.to_string(),
            captured_at: at,
            data_generation: 0,
            set: 0,
            writer: None,
            losses: Vec::new(),
            composed: Some(of),
            ..self
        }
    }

    /// The file of a snapshot that is no capture.
    pub(super) fn imported(
        pod: &Pod,
        snapshot: &Snapshot,
        (backend, volumes): (Backend, &[SnapshotVolume]),
        imported: Imported,
        now: Timestamp,
    ) -> Self {
        let nothing = VolumeSet {
            number: 0,
            backend,
            origin: Origin::Image,
            state: SetState::Complete,
            attached: None,
            marked: None,
            proof: None,
            volumes: Vec::new(),
        };
        let volumes = volumes.iter().map(|v| Volume { name: v.name.clone(), mount_path: v.mount_path.clone() });
        Self {
            grade: IMPORTED.to_owned(),
            volumes: volumes.collect(),
            imported: Some(imported),
            ..Self::new(pod, &nothing, snapshot, (Grade::Stopped, None), &[], now)
        }
    }

    /// The same with parts of another snapshot: nothing made those ready together with the rest, so it is not `hooked`.
    pub(super) fn mixed(self) -> Self {
        let was_hooked = self.grade == grade_name(Grade::Hooked);
        let grade = if was_hooked { grade_name(Grade::Frozen).to_owned() } else { self.grade };
        Self { grade, hook: None, ..self }
    }

    /// The same after this hook did that before the freeze, which was then.
    pub(super) fn hooked(self, hook: &Hook, run: Option<&HookRun>, at: Option<Timestamp>) -> Self {
        let Some(run) = run else { return self };
        let captured_at = at.unwrap_or(self.captured_at);
        let grade = if run.problem.is_none() { grade_name(Grade::Hooked).to_owned() } else { self.grade };
        let hook = BeforeHook {
            command: hook.command.clone(),
            exit_code: run.exit,
            millis: run.millis,
            problem: run.problem.clone(),
        };
        Self { grade, captured_at, hook: Some(hook), ..self }
    }

    /// The same with these losses added.
    pub(super) fn with_losses(mut self, losses: &[Loss]) -> Self {
        self.losses.extend(losses.iter().map(|l| Lost { path: l.path.clone(), reason: l.reason.clone() }));
        self
    }

    pub(super) fn losses(&self) -> Vec<Loss> {
        self.losses.iter().map(|l| Loss { path: l.path.clone(), reason: l.reason.clone() }).collect()
    }

    /// The volumes the snapshot holds; their sizes were only known to the pass that made it.
    pub(super) fn volumes(&self) -> Vec<SnapshotVolume> {
        let row = |v: &Volume| SnapshotVolume {
            name: v.name.clone(),
            mount_path: v.mount_path.clone(),
            files: None,
            bytes: None,
        };
        self.volumes.iter().map(row).collect()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Whether an upload that carries this file captured exactly what a capture now would.
    pub(super) fn is_same_instant(&self, set: &VolumeSet, grade: Grade, writer: Option<&WriterStamp>) -> bool {
        self.set == set.number
            && Some(self.data_generation) == set.attached
            && self.grade == grade_name(grade)
            && self.writer == writer.map(Writer::from)
    }
}
