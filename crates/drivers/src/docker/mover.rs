//! A helper container that reads and writes volumes where this process cannot: `perennial mover` in an image made of
//! nothing but that executable, talking over its standard input and output.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use bollard::container::LogOutput;
use bollard::models::Mount;
use bollard::query_parameters::{AttachContainerOptionsBuilder, StartContainerOptions};
use futures::StreamExt;
use perennial_core::engine::{EngineError, MoverChannel, SetSpec};
use tokio::sync::mpsc;
use tokio_util::bytes::{Buf, Bytes};
use tokio_util::io::SyncIoBridge;

use super::client::{fail, rejected};
use super::scratch::{ScratchRun, Stdin, token};
use super::tiny::{Role, TinyFile};
use super::{DockerEngine, overlay};

impl DockerEngine {
    pub(super) async fn mover(&self, set: &SetSpec) -> Result<MoverChannel, EngineError> {
        let Some(binary) = self.config.mover_binary.clone() else {
            return Err(rejected("no static executable for helper containers is configured"));
        };
        let files = vec![TinyFile { host: binary, inside: PathBuf::from("/perennial") }];
        let image = self.tiny_image(Role::Mover, files).await?;
        let definitions = self.definitions(set).await?;
        // A definition that is missing would become an empty volume.
        self.define_volumes(&definitions).await?;
        let mounts = set.volumes.iter().zip(&definitions).map(|(volume, definition)| {
            let mut mount: Mount = overlay::Definition::mount(definition);
            mount.target = Some(format!("/volumes/{}", volume.name));
            mount
        });
        let name = format!("mover-{}", token());
        let run = ScratchRun {
            command: ["/perennial", "mover"].map(str::to_owned).to_vec(),
            runtime: self.info.runtimes.contains_key("runc").then(|| "runc".to_owned()),
            stdin: Stdin::Open,
            auto_remove: true,
        };
        let id = self.scratch_create(&name, &image, mounts.collect(), Some(run)).await?;
        match self.talk(&id).await {
            Ok(channel) => Ok(channel),
            Err(e) => {
                self.scratch_remove(&name).await?;
                Err(e)
            }
        }
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
        let writer = SyncIoBridge::new(attached.input);
        Ok(MoverChannel { reader: Box::new(reader), writer: Box::new(Closing(Some(writer))) })
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

/// Closes the helper's standard input when it is dropped.
struct Closing<W: tokio::io::AsyncWrite + Unpin>(Option<SyncIoBridge<W>>);

impl<W: tokio::io::AsyncWrite + Unpin> Write for Closing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Ok(0), |w| w.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl<W: tokio::io::AsyncWrite + Unpin> Drop for Closing<W> {
    fn drop(&mut self) {
        if let Some(mut writer) = self.0.take()
            && let Err(e) = writer.shutdown()
        {
            tracing::debug!(error = %e, "close the helper's input");
        }
    }
}
