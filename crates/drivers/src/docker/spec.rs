//! A pod's container as the engine's API wants it.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountTmpfsOptions, MountType, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use perennial_core::engine::{ContainerSpec, EngineError};
use perennial_core::id::InstallationId;
use perennial_core::spec::{PodSpec, PrivilegeEscalation, is_at_or_below};

use super::client::rejected;
use super::labels;
use super::limits::Numbers;
use super::overlay::Definition;

/// What of Docker's default capabilities a pod does not get: device nodes and forged packets.
const DROPPED: [&str; 2] = ["MKNOD", "NET_RAW"];
/// Temporary directories. Programs are run from them (installers, language tools), so they are not `noexec`.
const TEMPORARY: [(&str, &str); 2] =
    [("/tmp", "rw,exec,nosuid,nodev,mode=1777"), ("/run", "rw,exec,nosuid,nodev,mode=755")];

/// What a container is made from, besides its specification.
pub(super) struct Surroundings<'a> {
    pub(super) installation: InstallationId,
    /// Name of the tenant's network.
    pub(super) network: &'a str,
    pub(super) volumes: &'a [Definition],
    /// Paths that the image declares as `VOLUME`.
    pub(super) declared: &'a [String],
    /// The engine's own logging driver.
    pub(super) logging: Option<&'a str>,
}

/// The body of the create request.
pub(super) fn body(container: &ContainerSpec, around: &Surroundings<'_>) -> Result<ContainerCreateBody, EngineError> {
    let spec = &container.spec;
    let mut labels = labels::of_set(around.installation, &container.tenant, container.pod, container.set.number);
    labels.insert(labels::GENERATION.to_owned(), container.spec_generation.to_string());
    // An image's own labels must not make a pod look like scratch.
    labels.insert(labels::SCRATCH.to_owned(), String::new());
    let ports: Vec<String> = spec.ports.iter().map(|p| format!("{}/tcp", p.container)).collect();
    Ok(ContainerCreateBody {
        hostname: Some(container.name.to_string()),
        user: spec.user.clone(),
        exposed_ports: (!ports.is_empty()).then_some(ports),
        env: Some(environment(spec)),
        cmd: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        image: Some(container.set.image.clone()),
        working_dir: spec.working_dir.clone(),
        labels: Some(labels),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: Some(i64::from(spec.stop_timeout)),
        host_config: Some(host_config(container, around)?),
        ..ContainerCreateBody::default()
    })
}

fn environment(spec: &PodSpec) -> Vec<String> {
    let chosen = spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    let made = spec.secrets.iter().map(|(name, value)| format!("{name}={}", value.reveal()));
    chosen.chain(made).collect()
}

fn host_config(container: &ContainerSpec, around: &Surroundings<'_>) -> Result<HostConfig, EngineError> {
    let spec = &container.spec;
    let mut mounts: Vec<Mount> = around.volumes.iter().map(Definition::mount).collect();
    mounts.extend(unowned_mounts(around)?);
    let limits = Numbers::of(&spec.resources)?;
    let ports = spec.ports.iter().map(|p| {
        let host_port = p.host.map(|h| h.to_string()).or_else(|| Some(String::new()));
        let binding = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port };
        (format!("{}/tcp", p.container), Some(vec![binding]))
    });
    let no_new_privileges = match spec.privilege_escalation {
        PrivilegeEscalation::Denied => vec!["no-new-privileges".to_owned()],
        PrivilegeEscalation::Allowed => Vec::new(),
    };
    // Logs of a pod that talks too much must not fill the host; another logging driver is its admin's choice.
    let bounded = HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([
            ("max-size".to_owned(), "10m".to_owned()),
            ("max-file".to_owned(), "3".to_owned()),
        ])),
    };
    Ok(HostConfig {
        mounts: Some(mounts),
        tmpfs: Some(TEMPORARY.iter().map(|(path, options)| ((*path).to_owned(), (*options).to_owned())).collect()),
        nano_cpus: limits.nano_cpus,
        memory: limits.memory,
        memory_swap: limits.memory_and_swap,
        memory_reservation: limits.memory_reservation,
        pids_limit: limits.pids,
        network_mode: Some(around.network.to_owned()),
        port_bindings: Some(ports.collect()),
        // Perennial restarts what is to run (D28).
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        cap_drop: Some(DROPPED.map(str::to_owned).to_vec()),
        security_opt: Some(no_new_privileges),
        log_config: (around.logging == Some("json-file")).then_some(bounded),
        runtime: spec.runtime.clone(),
        ..HostConfig::default()
    })
}

/// Mounts for declared paths that no volume of the pod holds: the engine would make an anonymous volume for each.
///
/// Below a temporary directory it becomes temporary too. Anywhere else it would be a mount that nobody owns, whose
/// content no snapshot sees: the container is not made.
fn unowned_mounts(around: &Surroundings<'_>) -> Result<Vec<Mount>, EngineError> {
    let mut mounts = Vec::new();
    for path in around.declared {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
        let path = format!("/{}", parts.join("/"));
        let temporary = TEMPORARY.iter().any(|(t, _)| is_at_or_below(&path, t));
        if around.volumes.iter().any(|v| v.target == path) || TEMPORARY.iter().any(|(t, _)| *t == path) {
            continue;
        }
        if !temporary {
            return Err(rejected(format!("the image declares a volume at {path} that is none of the pod's")));
        }
        mounts.push(Mount {
            target: Some(path),
            typ: Some(MountType::TMPFS),
            tmpfs_options: Some(MountTmpfsOptions { mode: Some(0o1777), ..MountTmpfsOptions::default() }),
            ..Mount::default()
        });
    }
    Ok(mounts)
}
