//! Any value of every stored type, from a seed.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use perennial_core::health::{Health, HealthCheck, Probe, Verdict};
use perennial_core::hook::{Hook, HookReport, HookRun, Hooks, OnHookFailure, OwedHook};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{NewEvent, Operation, OperationKind, OperationState, Problem};
use perennial_core::parts::{Extra, Parts};
use perennial_core::planned::{PlanOf, PlanPath, SecretText};
use perennial_core::pod::{
    Acceptance, Composed, Condition, ConditionKind, CrashLoop, Desired, Fork, Goal, Identity, LayerCapture, LayerGap,
    Phase, PinnedImage, Pod, ReadyContainer, RefusedLimits, Retry, Task, Trash, Work,
};
use perennial_core::progress::ProgressReading;
use perennial_core::retention::{Keep, Manual};
use perennial_core::schedule::SnapshotRules;
use perennial_core::snapshot::{Grade, Loss, Snapshot, SnapshotKind, SnapshotState, SnapshotVolume, WriterStamp};
use perennial_core::spec::{
    Backend, DeclaredVolume, OnStop, PodName, PodSpec, PortSpec, PrivilegeEscalation, Profile, Resources, TenantId,
};
use perennial_core::volume::{ImageLayout, Origin, SetState, Volume, VolumeSet};

/// A source of values; the same seed gives the same ones (xorshift64*).
pub struct Any(u64);

impl Any {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.u64() % n
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.below(list.len() as u64)).unwrap()]
    }

    fn bool(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Numbers near the ends matter most.
    fn number(&mut self) -> u64 {
        let any = self.u64();
        self.of(&[0, 1, 42, u64::from(u32::MAX) + 1, (1 << 53) + 1, u64::MAX, any])
    }

    fn u32(&mut self) -> u32 {
        let any = u32::try_from(self.below(1 << 32)).unwrap();
        self.of(&[0, 1, u32::MAX, any])
    }

    fn option<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bool().then(|| make(self))
    }

    fn list<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(4)).map(|_| make(self)).collect()
    }

    fn text(&mut self) -> String {
        let pieces = ["", "a", "ß", "\"", "\\", "\n", "\u{0}", "🌱", " ", "'; DROP TABLE pods; --", "$1", "null"];
        // Postgres' TEXT takes no NUL; JSON documents escape it.
        (0..self.below(4)).map(|_| self.of(&pieces)).collect()
    }

    fn plain(&mut self) -> String {
        self.text().replace('\0', "")
    }

    pub fn time(&mut self) -> Timestamp {
        let seconds = i64::try_from(self.below(7_000_000_000)).unwrap();
        let nanos = self.of(&[0, 1, 500_000_000, 999_999_999]);
        Timestamp::new(seconds, nanos).unwrap()
    }

    fn parts(&mut self) -> (u64, [u8; 10]) {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.u64().to_be_bytes());
        (self.below(1 << 47), random)
    }

    pub fn pod_id(&mut self) -> PodId {
        let (millis, random) = self.parts();
        PodId::from_parts(millis, random)
    }

    fn composed(&mut self) -> Composed {
        Composed { snapshot: self.snapshot_id(), base: self.snapshot_id() }
    }

    pub fn snapshot_id(&mut self) -> SnapshotId {
        let (millis, random) = self.parts();
        SnapshotId::from_parts(millis, random)
    }

    pub fn operation_id(&mut self) -> OperationId {
        let (millis, random) = self.parts();
        OperationId::from_parts(millis, random)
    }

    fn name(&mut self) -> PodName {
        PodName::parse(&format!("p{}", self.u64())).unwrap()
    }

    pub fn tenant(&mut self) -> TenantId {
        TenantId::parse(self.of(&["default", "acme", "a-1"])).unwrap()
    }

    fn backend(&mut self) -> Backend {
        self.of(&[Backend::Overlay, Backend::Engine])
    }

    fn resources(&mut self) -> Resources {
        Resources {
            nano_cpus: self.option(Self::number),
            memory: self.option(Self::number),
            memory_swap: self.option(Self::number),
            memory_reservation: self.option(Self::number),
            pids: self.option(Self::u32),
            disk: self.option(Self::number),
        }
    }

    fn spec(&mut self) -> PodSpec {
        let declared =
            |a: &mut Self| DeclaredVolume { name: a.text(), mount_path: a.text(), size: a.option(Self::number) };
        let universal = self.bool();
        let profile = if universal { Profile::Universal } else { Profile::Declared(self.list(declared)) };
        PodSpec {
            image: self.text(),
            command: self.option(|a| a.list(Self::text)),
            entrypoint: self.option(|a| a.list(Self::text)),
            runtime: self.option(Self::text),
            resources: self.resources(),
            env: self.list(|a| (a.text(), a.text())).into_iter().collect::<BTreeMap<_, _>>(),
            secrets: self.list(|a| (a.text(), SecretText::new(a.text()))).into_iter().collect(),
            plan: self.option(|a| PlanOf {
                path: PlanPath::parse(a.of(&["n8n/plus", "dev/small"])).unwrap(),
                revision: a.text(),
                env: a.list(Self::text).into_iter().collect(),
            }),
            working_dir: self.option(Self::text),
            user: self.option(Self::text),
            profile,
            ports: self.list(|a| PortSpec {
                container: a.of(&[1, 80, u16::MAX]),
                host: a.option(|a| a.of(&[1, 80, u16::MAX])),
            }),
            stop_signal: self.option(Self::text),
            stop_timeout: self.u32(),
            on_stop: self.of(&[OnStop::Release, OnStop::Pause]),
            backend: self.option(Self::backend),
            privilege_escalation: self.of(&[PrivilegeEscalation::Denied, PrivilegeEscalation::Allowed]),
            snapshots: SnapshotRules {
                schedule: self.option(Self::text),
                time_zone: self.option(Self::text),
                keep: self.option(Self::keep),
            },
            health: self.option(|a| HealthCheck {
                probe: match a.below(3) {
                    0 => Probe::Http { port: 80, path: a.text() },
                    1 => Probe::Tcp { port: 1 },
                    _ => Probe::Exec { command: a.list(Self::text) },
                },
                interval: a.u32(),
                timeout: a.u32(),
                retries: a.u32(),
                start_period: a.u32(),
            }),
            hooks: Hooks {
                before: self.option(Self::hook),
                after: self.option(Self::hook),
                on_failure: self.of(&[OnHookFailure::Fail, OnHookFailure::Continue]),
            },
        }
    }

    fn hook(&mut self) -> Hook {
        Hook { command: self.list(Self::text), user: self.option(Self::text), timeout: self.u32() }
    }

    fn hook_run(&mut self) -> HookRun {
        HookRun {
            exit: self.option(|a| a.of(&[0, -1, 137, i64::MAX])),
            millis: self.number(),
            problem: self.option(Self::text),
        }
    }

    fn count(&mut self) -> u32 {
        u32::try_from(self.u64() >> 32).unwrap()
    }

    fn keep(&mut self) -> Keep {
        Keep {
            last: self.count(),
            hourly: self.count(),
            daily: self.count(),
            weekly: self.count(),
            monthly: self.count(),
            yearly: self.count(),
            within: self.option(|any| SignedDuration::new(i64::from(any.count()), 1234)),
            minimum: self.count(),
            manual: self.of(&[Manual::Kept, Manual::Rotated]),
        }
    }

    fn problem(&mut self) -> Problem {
        Problem { code: self.text(), message: self.text(), hint: self.text() }
    }

    fn stamp(&mut self) -> WriterStamp {
        WriterStamp { container: self.text(), started_at: self.option(Self::time) }
    }

    fn origin(&mut self) -> Origin {
        match self.below(3) {
            0 => Origin::Image,
            1 => Origin::Snapshot(self.snapshot_id()),
            _ => Origin::Pod { pod: self.pod_id(), set: self.u32() },
        }
    }

    fn acceptance(&mut self) -> Acceptance {
        Acceptance { paths: self.list(Self::text), actor: self.text() }
    }

    fn work(&mut self) -> Work {
        match self.below(4) {
            0 => Work::Restart { before: self.option(Self::stamp) },
            1 => Work::Replace {
                parts: self.option(|a| Parts {
                    volumes: a.list(Self::text),
                    paths: a.list(Self::text),
                    extra: a.of(&[Extra::Remove, Extra::Keep]),
                }),
                composed: self.option(Self::composed),
                origin: self.origin(),
                safety: self.option(Self::snapshot_id),
                old: self.option(Self::u32),
                new: self.option(Self::u32),
                layer: self.option(Self::layer_capture),
                switched: self.bool(),
                accepted: self.option(Self::acceptance),
            },
            2 => Work::Snapshot { snapshot: self.snapshot_id(), accepted: self.option(Self::acceptance) },
            _ => Work::Purge { actor: self.text(), at: self.time() },
        }
    }

    fn layer_capture(&mut self) -> LayerCapture {
        LayerCapture {
            repository_id: self.option(Self::text),
            captured_at: self.time(),
            writer: self.option(Self::stamp),
            after_stop: self.bool(),
        }
    }

    fn set(&mut self) -> VolumeSet {
        VolumeSet {
            number: self.u32(),
            backend: self.backend(),
            origin: self.origin(),
            state: self.of(&[SetState::Preparing, SetState::Complete, SetState::Retired, SetState::Quarantined]),
            attached: self.option(Self::number),
            marked: self.option(Self::number),
            proof: self.option(Self::snapshot_id),
            volumes: self.list(|a| Volume { name: a.text(), mount_path: a.text() }),
        }
    }

    fn kind(&mut self) -> OperationKind {
        use OperationKind as K;
        self.of(&[
            K::Create,
            K::Start,
            K::Stop,
            K::Pause,
            K::Restart,
            K::Reset,
            K::Restore,
            K::Snapshot,
            K::SnapshotDelete,
            K::Archive,
            K::Delete,
            K::Undelete,
            K::Purge,
        ])
    }

    fn desired(&mut self) -> Desired {
        self.of(&[Desired::Running, Desired::Paused, Desired::Stopped, Desired::Archived, Desired::Deleted])
    }

    fn phase(&mut self) -> Phase {
        use Phase as P;
        self.of(&[
            P::Creating,
            P::Starting,
            P::Running,
            P::Pausing,
            P::Paused,
            P::Stopping,
            P::Stopped,
            P::Restoring,
            P::Resetting,
            P::Archived,
            P::Deleting,
            P::Deleted,
            P::Error,
        ])
    }

    fn condition(&mut self) -> Condition {
        use ConditionKind as C;
        let kinds = [
            C::DataLost,
            C::DataPartial,
            C::GenerationMismatch,
            C::CrashLoop,
            C::RestartRequired,
            C::SystemLayerStale,
            C::SystemLayerNotCaptured,
            C::Retrying,
            C::Failed,
            C::ForeignWriter,
            C::Quarantined,
            C::SnapshotFailed,
            C::DiskLimitAdvisory,
            C::HookFailed,
            C::Unhealthy,
            C::HealthUnknown,
            C::LimitsRefused,
        ];
        Condition { kind: self.of(&kinds), reason: self.text(), message: self.text(), since: self.time() }
    }

    /// A pod that was never stored.
    pub fn pod(&mut self) -> Pod {
        Pod {
            spec_generation: self.number(),
            data_generation: self.number(),
            desired: self.desired(),
            goal: self.option(|a| Goal {
                operation: a.operation_id(),
                kind: a.kind(),
                previous: a.desired(),
                accepted: a.option(Self::acceptance),
            }),
            tasks: self.list(|a| Task { operation: a.operation_id(), work: a.work() }),
            image: self.option(|a| PinnedImage {
                id: a.text(),
                digest: a.option(Self::text),
                layout: ImageLayout {
                    directories: a.list(Self::text),
                    links: a.list(Self::text),
                    declared: a.list(Self::text),
                },
            }),
            sets: self.list(Self::set),
            current: self.option(Self::u32),
            last_set: self.u32(),
            source: self.option(Self::origin),
            fork: self.option(|a| Fork {
                identity: a.of(&[Identity::Renewed, Identity::Kept]),
                composed: a.option(Self::composed),
            }),
            capture: self.option(Self::snapshot_id),
            layer: self.option(Self::layer_capture),
            health: self.option(|a| Health {
                verdict: a.of(&[Verdict::Healthy, Verdict::Unhealthy, Verdict::GivenUp, Verdict::Unasked]),
                run: a.stamp(),
                found_at: a.time(),
                since: a.time(),
                problem: a.option(Self::text),
            }),
            layer_gap: self.option(|a| LayerGap { captured_at: a.option(Self::time), lost_at: a.time() }),
            container: self.option(|a| ReadyContainer {
                id: a.text(),
                set: a.u32(),
                spec_generation: a.number(),
                limits: a.option(Self::resources),
                refused: a.option(|a| RefusedLimits {
                    wanted: a.resources(),
                    problem: a.text(),
                    at: a.time(),
                    live: a.bool(),
                    anew: a.bool(),
                }),
            }),
            crash: CrashLoop {
                count: self.u32(),
                last: self.option(Self::stamp),
                exit_code: self.option(|a| a.of(&[0, -1, 137, i64::MIN, i64::MAX])),
                oom: self.bool(),
                not_before: self.option(Self::time),
            },
            trash: self.option(|a| Trash { deleted_at: a.time(), purge_at: a.option(Self::time), actor: a.text() }),
            retry: Retry {
                count: self.u32(),
                not_before: self.option(Self::time),
                problem: self.option(Self::problem),
            },
            failed: self.option(Self::problem),
            data_seen_at: self.option(Self::time),
            scheduled_until: self.option(Self::time),
            snapshot_failed: self.option(Self::problem),
            hook: self.option(|a| OwedHook {
                snapshot: a.snapshot_id(),
                set: a.u32(),
                run: a.stamp(),
                before: a.hook(),
                after: a.hook(),
                tries: a.u32(),
            }),
            hook_failed: self.option(Self::problem),
            phase: self.phase(),
            conditions: self.list(Self::condition),
            updated_at: self.time(),
            ..Pod::new(self.pod_id(), self.tenant(), self.name(), self.spec(), self.operation_id(), self.time())
        }
    }

    /// A living pod of the default tenant.
    pub fn living(&mut self, name: &str) -> Pod {
        Pod {
            desired: Desired::Running,
            tenant: TenantId::default_tenant(),
            name: PodName::parse(name).unwrap(),
            source: None,
            fork: None,
            trash: None,
            ..self.pod()
        }
    }

    pub fn snapshot(&mut self, pod: &Pod) -> Snapshot {
        Snapshot {
            id: self.snapshot_id(),
            pod: pod.id,
            tenant: pod.tenant.clone(),
            kind: self.of(&[
                SnapshotKind::Manual,
                SnapshotKind::Scheduled,
                SnapshotKind::Final,
                SnapshotKind::Composed,
            ]),
            state: self.of(&[
                SnapshotState::Pending,
                SnapshotState::Uploaded,
                SnapshotState::Verified,
                SnapshotState::Failed,
            ]),
            set: self.option(Self::u32),
            generation: self.number(),
            backend: self.option(Self::backend),
            grade: self.option(|a| a.of(&[Grade::Stopped, Grade::Frozen, Grade::Hooked])),
            writer: self.option(Self::stamp),
            created_at: self.time(),
            captured_at: self.option(Self::time),
            bytes: self.option(Self::number),
            frozen_millis: self.option(Self::number),
            hooks: self.option(|a| HookReport { before: a.option(Self::hook_run), after: a.option(Self::hook_run) }),
            new_bytes: self.option(Self::number),
            files: self.option(Self::number),
            volumes: self.list(|a| SnapshotVolume {
                name: a.text(),
                mount_path: a.text(),
                files: a.option(Self::number),
                bytes: a.option(Self::number),
            }),
            image: self.option(Self::text),
            losses: self.list(|a| Loss { path: a.text(), reason: a.text() }),
            repository_id: self.option(Self::text),
            error: self.option(Self::text),
            proven_at: self.option(Self::time),
            drilled_at: self.option(Self::time),
            damage: self.option(Self::text),
            replicated_at: self.option(Self::time),
            replica_problem: self.option(Self::text),
        }
    }

    pub fn operation(&mut self, pod: &Pod) -> Operation {
        use OperationState as S;
        Operation {
            id: self.operation_id(),
            tenant: pod.tenant.clone(),
            pod: pod.id,
            kind: self.kind(),
            state: self.of(&[S::Pending, S::Running, S::Succeeded, S::Failed, S::Cancelled]),
            step: self.text(),
            progress: ProgressReading {
                bytes_done: self.number(),
                bytes_total: self.number(),
                files_done: self.number(),
            },
            snapshot: self.option(Self::snapshot_id),
            error: self.option(Self::problem),
            actor: self.text(),
            created_at: self.time(),
            finished_at: self.option(Self::time),
        }
    }

    pub fn event(&mut self, pod: &Pod) -> NewEvent {
        NewEvent {
            at: self.time(),
            actor: self.plain(),
            tenant: pod.tenant.clone(),
            pod: self.option(|_| pod.id),
            operation: self.option(Self::operation_id),
            kind: self.plain(),
            message: self.plain(),
        }
    }
}
