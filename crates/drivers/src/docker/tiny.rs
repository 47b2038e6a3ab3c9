//! Images made of a few files of this host, so that helper containers need no registry.

use std::io;
use std::path::{Path, PathBuf};

use bollard::query_parameters::RemoveImageOptions;
use perennial_core::engine::EngineError;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::client::{blocking, found, transient};
use super::{DockerEngine, labels};

/// A file of this host and its path in the image.
#[derive(Debug, Clone)]
pub(super) struct TinyFile {
    pub(super) host: PathBuf,
    pub(super) inside: PathBuf,
}

impl DockerEngine {
    /// Loads an image with these files and returns its id. The same files make the same image, which is kept; the one
    /// that had the name before goes.
    pub(super) async fn tiny_image(&self, role: Role, files: Vec<TinyFile>) -> Result<String, EngineError> {
        let packed = blocking(move || pack(role, &files).map_err(|e| transient(format!("pack a helper image: {e}"))));
        let (id, archive) = packed.await?;
        if found("look at the helper image", self.docker.inspect_image(&id).await)?.is_some() {
            return Ok(id);
        }
        let before = found("look at the helper image", self.docker.inspect_image(role.name()).await)?;
        self.load(futures::stream::iter([Ok(archive.into())])).await?;
        if let Some(old) = before.and_then(|i| i.id)
            && old != id
            // Not forced: another installation's container may be using it.
            && let Err(e) = self.docker.remove_image(&old, None::<RemoveImageOptions>, None).await
        {
            tracing::debug!(image = old, error = %e, "an old helper image stays");
        }
        // An engine with another image store gives another id; the name finds it.
        match found("look at the helper image", self.docker.inspect_image(&id).await)? {
            Some(_) => Ok(id),
            None => Ok(role.name().to_owned()),
        }
    }
}

/// What a helper image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Probe,
    Mover,
}

impl Role {
    /// Names below `perennial-internal/` can be no pod's image (D39).
    const fn name(self) -> &'static str {
        match self {
            Self::Probe => "perennial-internal/probe:1",
            Self::Mover => "perennial-internal/mover:1",
        }
    }
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// The archive that `docker load` reads, and the image's id: the hash of its configuration.
fn pack(role: Role, files: &[TinyFile]) -> io::Result<(String, Vec<u8>)> {
    let mut layer = Builder::new(Vec::new());
    let mut made: Vec<PathBuf> = Vec::new();
    for file in files {
        let inside = file.inside.strip_prefix("/").unwrap_or(&file.inside);
        let parents: Vec<&Path> = inside.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if !made.iter().any(|m| m == parent) {
                layer.append_data(&mut header(EntryType::Directory, 0, 0o755), parent, io::empty())?;
                made.push(parent.to_owned());
            }
        }
        let content = std::fs::read(&file.host)?;
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        layer.append_data(&mut header(EntryType::Regular, size, 0o755), inside, content.as_slice())?;
    }
    let layer = layer.into_inner()?;
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {"Labels": {labels::SCRATCH: "helper"}},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "perennial"}],
    })
    .to_string();
    let id = format!("sha256:{}", hex::encode(Sha256::digest(config.as_bytes())));
    let manifest = json!([{"Config": "config.json", "RepoTags": [role.name()], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = Builder::new(Vec::new());
    let parts = [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("layer.tar", &layer[..])];
    for (name, content) in parts {
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        archive.append_data(&mut header(EntryType::Regular, size, 0o644), name, content)?;
    }
    Ok((id, archive.into_inner()?))
}
