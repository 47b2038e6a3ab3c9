//! A helper container that reads and writes volumes where this process cannot: `perennial mover` in an image made of
//! nothing but that executable, talking over its standard input and output.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use bollard::container::LogOutput;
use bollard::models::Mount;
use bollard::query_parameters::{AttachContainerOptionsBuilder, StartContainerOptions};
use futures::StreamExt;
use perennial_core::engine::{EngineError, MoverChannel, SetAccess, SetSpec, VolumePath};
use perennial_core::spec::Backend;
use perennial_core::volume::Volume;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::bytes::{Buf, Bytes};
use tokio_util::io::SyncIoBridge;

use super::client::{fail, found, rejected};
use super::overlay::Definition;
use super::scratch::{ScratchRun, Stdin};
use super::tiny::{Role, TinyFile};
use super::{DockerEngine, overlay};

/// Where a mover sees the volumes: `/volumes/<name>`.
fn inside(volume: &Volume) -> String {
    format!("/volumes/{}", volume.name)
}

/// One name for all movers of a set: an earlier one is found again, and two at a time cannot be.
fn mover_name(set: &SetSpec) -> String {
    format!("mover-{}-s{}", set.pod, set.number)
}

impl DockerEngine {
    pub(super) async fn mover(&self, set: &SetSpec) -> Result<MoverChannel, EngineError> {
        if set.backend == Backend::Overlay {
            return Err(rejected("overlay volumes are directories of this host and need no mover"));
        }
        self.end_movers(set).await?;
        let image = self.mover_image().await?;
        // Nothing is made here: a missing volume must not become an empty one.
        let mounts: Vec<Mount> = self
            .volumes_there(set)
            .await?
            .iter()
            .map(|(volume, definition)| Mount { target: Some(inside(volume)), ..definition.mount() })
            .collect();
        if mounts.is_empty() && !set.volumes.is_empty() {
            return Err(EngineError::NotFound { what: format!("set {} of pod {}", set.number, set.pod) });
        }
        let run = ScratchRun {
            command: ["/perennial", "mover"].map(str::to_owned).to_vec(),
            runtime: self.info.runtimes.contains_key("runc").then(|| "runc".to_owned()),
            stdin: Stdin::Open,
            auto_remove: true,
        };
        let name = mover_name(set);
        let id = self.scratch_create(&name, &image, mounts, Some(run)).await?;
        match self.talk(&id).await {
            Ok(channel) => Ok(channel),
            Err(e) => {
                self.scratch_remove(&name).await?;
                Err(e)
            }
        }
    }

    /// Ends the mover of this set, whoever opened it.
    pub(super) async fn end_movers(&self, set: &SetSpec) -> Result<(), EngineError> {
        match set.backend {
            Backend::Overlay => Ok(()),
            Backend::Engine => self.scratch_end(&mover_name(set)).await,
        }
    }

    /// How a mover reaches a set.
    pub(super) async fn mover_access(&self, set: &SetSpec) -> Result<SetAccess, EngineError> {
        let there = self.volumes_there(set).await?;
        let paths = there.into_iter().map(|(volume, _)| VolumePath {
            name: volume.name.clone(),
            mount_path: volume.mount_path.clone(),
            path: PathBuf::from(inside(&volume)),
            lower: None,
            exclude: overlay::excluded(set, &volume),
        });
        Ok(SetAccess::Mover(paths.collect()))
    }

    /// The volumes of a set that the engine has.
    async fn volumes_there(&self, set: &SetSpec) -> Result<Vec<(Volume, Definition)>, EngineError> {
        let present = self.set_volumes(set).await?;
        let wanted = set.volumes.iter().cloned().zip(self.definitions(set).await?);
        let is_there = |d: &Definition| present.iter().any(|v| v.name == d.name && d.matches(v));
        Ok(wanted.filter(|(_, definition)| is_there(definition)).collect())
    }

    /// The image that movers run; made once, and again when somebody removed it.
    async fn mover_image(&self) -> Result<String, EngineError> {
        let Some(binary) = self.config.mover_binary.clone() else {
            return Err(rejected("no static executable for helper containers is configured"));
        };
        let mut known = self.mover_image.lock().await;
        if let Some(image) = known.as_ref()
            && found("look at the helper image", self.docker.inspect_image(image).await)?.is_some()
        {
            return Ok(image.clone());
        }
        let files = vec![TinyFile { host: binary, inside: PathBuf::from("/perennial") }];
        let image = self.tiny_image(Role::Mover, files).await?;
        *known = Some(image.clone());
        Ok(image)
    }

    /// Attaches before the start, so that not one byte is missed.
    async fn talk(&self, id: &str) -> Result<MoverChannel, EngineError> {
        let options =
            AttachContainerOptionsBuilder::default().stream(true).stdin(true).stdout(true).stderr(true).build();
        let attached = self.docker.attach_container(id, Some(options)).await;
        let attached = attached.map_err(|e| fail("attach to the helper container", e))?;
        let started = self.docker.start_container(id, None::<StartContainerOptions>).await;
        started.map_err(|e| fail("start the helper container", e))?;
        let (sender, receiver) = mpsc::channel(16);
        let mut output = attached.output;
        tokio::spawn(async move {
            while let Some(piece) = output.next().await {
                let message = match piece {
                    Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => Ok(message),
                    Ok(LogOutput::StdErr { message }) => {
                        tracing::warn!(message = %String::from_utf8_lossy(&message).trim(), "helper container");
                        continue;
                    }
                    Ok(LogOutput::StdIn { .. }) => continue,
                    Err(e) => Err(io::Error::other(e)),
                };
                if sender.send(message).await.is_err() {
                    break;
                }
            }
        });
        let reader = Pieces { receiver, left: Bytes::new() };
        let writer = Closing { writer: Some(SyncIoBridge::new(attached.input)), runtime: Handle::current() };
        Ok(MoverChannel { reader: Box::new(reader), writer: Box::new(writer) })
    }
}

/// What the helper writes, for a blocking reader.
struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    left: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.left = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.left.len());
        self.left.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Closes the helper's standard input when it is dropped, on whatever thread that happens.
struct Closing<W: AsyncWrite + Unpin + Send + 'static> {
    writer: Option<SyncIoBridge<W>>,
    runtime: Handle,
}

impl<W: AsyncWrite + Unpin + Send + 'static> Write for Closing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writer.as_mut().map_or(Ok(0), |w| w.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl<W: AsyncWrite + Unpin + Send + 'static> Drop for Closing<W> {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let mut writer = writer.into_inner();
        self.runtime.spawn(async move {
            if let Err(e) = writer.shutdown().await {
                tracing::debug!(error = %e, "close the helper's input");
            }
        });
    }
}
