//! What the program of a pod's container wrote, as the engine's logging driver keeps it.

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::errors::Error as Bollard;
use bollard::query_parameters::LogsOptionsBuilder;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use perennial_core::engine::{EngineError, LogEnd, LogRange, LogReader, LogStamps};

use super::DockerEngine;
use super::client::{look, rejected};

/// The one driver that keeps nothing which can be read: for every other one the engine keeps a copy (since 20.10).
const NOTHING_KEPT: &str = "none";

struct Logs {
    pieces: BoxStream<'static, Result<LogOutput, Bollard>>,
    /// Read already: what is wrong with a request shows only there.
    first: Option<Result<LogOutput, Bollard>>,
}

impl DockerEngine {
    pub(super) async fn logs(&self, id: &str, range: LogRange) -> Result<Box<dyn LogReader>, EngineError> {
        let seen = self.ours(id).await?;
        let driver = seen.inspected.host_config.as_ref().and_then(|host| host.log_config.as_ref()?.typ.as_deref());
        if driver == Some(NOTHING_KEPT) {
            return Err(rejected(format!(
                "the engine keeps nothing of what container {id} writes (logging driver none)"
            )));
        }
        let mut options = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(range.until == LogEnd::Run);
        options = options.timestamps(range.stamps == LogStamps::With);
        if let Some(lines) = range.tail {
            options = options.tail(&lines.to_string());
        }
        if let Some(since) = range.since {
            let second = since.as_second().max(0);
            // Later than the engine can be told is later than anything it keeps.
            options = options.since(i32::try_from(second).unwrap_or(i32::MAX));
        }
        let mut pieces = self.docker.logs(&seen.id, Some(options.build())).boxed();
        // A pod that is followed may be silent for hours.
        let first = match range.until {
            LogEnd::Now => pieces.next().await,
            LogEnd::Run => None,
        };
        if let Some(Err(error)) = first {
            return Err(look("read what the container wrote", error));
        }
        Ok(Box::new(Logs { pieces, first }))
    }
}

#[async_trait]
impl LogReader for Logs {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, EngineError> {
        let piece = match self.first.take() {
            Some(first) => Some(first),
            None => self.pieces.next().await,
        };
        match piece.transpose() {
            Ok(piece) => Ok(piece.map(|piece| piece.into_bytes().to_vec())),
            Err(error) => Err(look("read what the container wrote", error)),
        }
    }
}
