//! The specification document of a pod.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use perennial_core::health::{HealthCheck, Probe};
use perennial_core::hook::{Hook, Hooks, OnHookFailure};
use perennial_core::planned::{PlanOf, PlanPath, SecretText};
use perennial_core::retention::{Keep, Manual};
use perennial_core::schedule::SnapshotRules;
use perennial_core::spec::{
    Backend, DeclaredVolume, OnStop, PodSpec, PortSpec, PrivilegeEscalation, Profile, Resources,
};
use serde::{Deserialize, Serialize};

use super::{RowError, Stored, stored_enum, stored_struct};

stored_struct!(ResourcesRow = Resources {
    nano_cpus: Option<u64>,
    memory: Option<u64>,
    memory_swap: Option<u64>,
    memory_reservation: Option<u64>,
    pids: Option<u32>,
    disk: Option<u64>,
});
stored_struct!(DeclaredVolumeRow = DeclaredVolume { name: String, mount_path: String, size: Option<u64> });
stored_struct!(PortRow = PortSpec { container: u16, host: Option<u16> });
stored_enum!(OnStopRow = OnStop { Release = "release", Pause = "pause" });
stored_enum!(BackendRow = Backend { Overlay = "overlay", Engine = "docker" });
stored_enum!(PrivilegeRow = PrivilegeEscalation { Denied = "denied", Allowed = "allowed" });

/// What persists.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ProfileRow {
    /// Everything.
    Universal,
    /// Exactly these.
    Declared(Vec<DeclaredVolumeRow>),
}

impl Stored for Profile {
    type Row = ProfileRow;
    fn to_row(&self) -> ProfileRow {
        match self {
            Self::Universal => ProfileRow::Universal,
            Self::Declared(volumes) => ProfileRow::Declared(volumes.to_row()),
        }
    }
    fn from_row(row: ProfileRow) -> Result<Self, RowError> {
        Ok(match row {
            ProfileRow::Universal => Self::Universal,
            ProfileRow::Declared(volumes) => Self::Declared(Stored::from_row(volumes)?),
        })
    }
}

stored_enum!(ManualRow = Manual { Kept = "kept", Rotated = "rotated" });
stored_struct!(KeepRow = Keep {
    last: u32,
    hourly: u32,
    daily: u32,
    weekly: u32,
    monthly: u32,
    yearly: u32,
    within: Option<SignedDuration>,
    minimum: u32,
    manual: Manual,
});
stored_struct!(SnapshotRulesRow = SnapshotRules {
    schedule: Option<String>,
    time_zone: Option<String>,
    keep: Option<Keep>,
});

stored_enum!(OnHookFailureRow = OnHookFailure { Fail = "fail", Continue = "continue" });
stored_struct!(HookRow = Hook { command: Vec<String>, user: Option<String>, timeout: u32 });
stored_struct!(HooksRow = Hooks { before: Option<Hook>, after: Option<Hook>, on_failure: OnHookFailure });

/// What is asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum ProbeRow {
    /// A page.
    Http { port: u16, path: String },
    /// A port.
    Tcp { port: u16 },
    /// A program.
    Exec { command: Vec<String> },
}

impl Stored for Probe {
    type Row = ProbeRow;
    fn to_row(&self) -> ProbeRow {
        match self {
            Self::Http { port, path } => ProbeRow::Http { port: *port, path: path.clone() },
            Self::Tcp { port } => ProbeRow::Tcp { port: *port },
            Self::Exec { command } => ProbeRow::Exec { command: command.clone() },
        }
    }
    fn from_row(row: ProbeRow) -> Result<Self, RowError> {
        Ok(match row {
            ProbeRow::Http { port, path } => Self::Http { port, path },
            ProbeRow::Tcp { port } => Self::Tcp { port },
            ProbeRow::Exec { command } => Self::Exec { command },
        })
    }
}

stored_struct!(
    HealthCheckRow = HealthCheck { probe: Probe, interval: u32, timeout: u32, retries: u32, start_period: u32 }
);

fn no_hooks() -> HooksRow {
    Hooks::default().to_row()
}

fn no_rules() -> SnapshotRulesRow {
    SnapshotRules::default().to_row()
}

impl Stored for BTreeMap<String, SecretText> {
    type Row = BTreeMap<String, String>;
    fn to_row(&self) -> Self::Row {
        self.iter().map(|(name, value)| (name.clone(), value.reveal().to_owned())).collect()
    }
    fn from_row(row: Self::Row) -> Result<Self, RowError> {
        Ok(row.into_iter().map(|(name, value)| (name, SecretText::new(value))).collect())
    }
}

impl Stored for PlanPath {
    type Row = String;
    fn to_row(&self) -> String {
        self.to_string()
    }
    fn from_row(row: String) -> Result<Self, RowError> {
        Self::parse(&row).map_err(|error| RowError(error.to_string()))
    }
}

stored_struct!(PlanRow = PlanOf { path: PlanPath, revision: String, env: BTreeSet<String> });

stored_struct!(SpecRow = PodSpec {
    image: String,
    command: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    runtime: Option<String>,
    resources: Resources,
    env: BTreeMap<String, String>,
    /// Missing from rows of pods without a plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    secrets: BTreeMap<String, SecretText>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<PlanOf>,
    working_dir: Option<String>,
    user: Option<String>,
    profile: Profile,
    ports: Vec<PortSpec>,
    stop_signal: Option<String>,
    stop_timeout: u32,
    on_stop: OnStop,
    backend: Option<Backend>,
    privilege_escalation: PrivilegeEscalation,
    #[serde(default = "no_rules")]
    snapshots: SnapshotRules,
    /// Missing from rows of before migration 7.
    #[serde(default = "no_hooks")]
    hooks: Hooks,
    /// Missing from rows of pods that nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health: Option<HealthCheck>,
});
