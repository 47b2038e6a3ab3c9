//! The system layer: the container's own changes, where the engine's graph driver keeps them on this host.
//!
//! With overlay2 that is a plain directory. Before the first start nothing has it mounted, so the layer of an earlier
//! container is put back by writing into it; the engine shows it at the start like anything a container wrote itself.

use std::path::PathBuf;

use perennial_core::engine::{EngineError, LayerAccess};

use super::DockerEngine;
use super::client::{blocking, transient};
use super::container::Seen;

/// What the engine and the runtime make in every container's root.
const MADE_BY_ENGINE: [&str; 10] =
    [".dockerenv", "dev", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "proc", "run", "sys", "tmp"];
/// Where gVisor keeps memory-backed files of a container; one for each mount, named after the sandbox.
const GVISOR_FILES: &str = ".gvisor.filestore.";

impl DockerEngine {
    pub(super) async fn layer(&self, id: &str) -> Result<LayerAccess, EngineError> {
        let seen = self.look_at(id).await?.ok_or_else(|| EngineError::NotFound { what: format!("container {id}") })?;
        let runtime = seen.inspected.host_config.as_ref().and_then(|h| h.runtime.as_deref());
        let capabilities = self.capabilities_probed().await?;
        if capabilities.runtime(runtime).is_some_and(|r| !r.root_changes) {
            return Ok(unreachable("the runtime keeps changes outside volumes to itself"));
        }
        self.layer_of(&seen).await
    }

    /// The same whatever the runtime does.
    pub(super) async fn layer_of(&self, seen: &Seen) -> Result<LayerAccess, EngineError> {
        let Some(driver) = seen.inspected.graph_driver.as_ref() else {
            return Ok(unreachable("the engine's image store does not tell where a container's changes are"));
        };
        let Some(upper) = driver.data.get("UpperDir").filter(|_| driver.name == "overlay2") else {
            return Ok(unreachable(&format!("the engine's storage driver is {}, not overlay2", driver.name)));
        };
        if !self.shares_files().await? {
            return Ok(unreachable("the engine's files are on another host"));
        }
        let mut exclude: Vec<String> = MADE_BY_ENGINE.map(str::to_owned).to_vec();
        let mounts = seen.inspected.mounts.iter().flatten().filter_map(|m| m.destination.as_deref());
        exclude.extend(mounts.map(|m| m.trim_matches('/').to_owned()));
        let path = PathBuf::from(upper);
        blocking(move || {
            let entries =
                std::fs::read_dir(&path).map_err(|e| transient(format!("list the container's layer: {e}")))?;
            for entry in entries {
                let name = entry.map_err(|e| transient(format!("list the container's layer: {e}")))?.file_name();
                if let Some(name) = name.to_str().filter(|n| n.starts_with(GVISOR_FILES)) {
                    exclude.push(name.to_owned());
                }
            }
            exclude.sort();
            exclude.dedup();
            Ok(LayerAccess::Local { path, exclude })
        })
        .await
    }
}

fn unreachable(reason: &str) -> LayerAccess {
    LayerAccess::Unreachable { reason: reason.to_owned() }
}
