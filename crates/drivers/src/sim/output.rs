//! What the program of a container says: lines in memory, which end with the server or the container.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use perennial_core::engine::{EngineError, LogEnd, LogRange, LogReader, LogStamps};
use tokio::sync::watch;

use super::{Shared, State};

/// Lines that are kept of one container.
const KEPT: usize = 1000;

/// What every container said.
#[derive(Default)]
pub(super) struct Said {
    containers: BTreeMap<String, Lines>,
    /// Counts whatever may interest a reader.
    told: watch::Sender<u64>,
}

#[derive(Default)]
struct Lines {
    /// How many are not kept any more.
    dropped: usize,
    lines: VecDeque<(Timestamp, String)>,
}

impl Said {
    pub(super) fn add(&mut self, id: &str, at: Timestamp, lines: impl IntoIterator<Item = String>) {
        let said = self.containers.entry(id.to_owned()).or_default();
        said.lines.extend(lines.into_iter().map(|line| (at, line)));
        while said.lines.len() > KEPT {
            said.lines.pop_front();
            said.dropped += 1;
        }
        self.tell();
    }

    /// Wakes the readers: what they read, or the container, is not what it was.
    pub(super) fn tell(&self) {
        self.told.send_modify(|count| *count += 1);
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.containers.remove(id);
        self.tell();
    }

    pub(super) fn forget_all(&mut self) {
        self.containers.clear();
        self.tell();
    }
}

/// A reader of one container.
pub(super) struct Output {
    shared: Arc<Shared>,
    id: String,
    range: LogRange,
    /// The run that is followed.
    run: Option<Timestamp>,
    /// The number of the next line, dropped ones included.
    next: usize,
    told: watch::Receiver<u64>,
}

impl Output {
    pub(super) fn open(shared: &Arc<Shared>, state: &State, id: &str, range: LogRange) -> Result<Self, EngineError> {
        let run = state.container(id)?.started_at;
        let next = match (range.tail, state.said.containers.get(id)) {
            (Some(lines), Some(said)) => {
                let since = said.lines.iter().filter(|(at, _)| range.since.is_none_or(|since| *at >= since)).count();
                let wanted = usize::try_from(lines).unwrap_or(usize::MAX).min(since);
                said.dropped + said.lines.len() - wanted
            }
            _ => 0,
        };
        Ok(Self { shared: Arc::clone(shared), id: id.to_owned(), range, run, next, told: state.said.told.subscribe() })
    }

    /// What was said since the last look, and whether there may be more.
    fn look(&mut self) -> (Vec<u8>, bool) {
        let state = self.shared.lock();
        let mut bytes = Vec::new();
        if let Some(said) = state.said.containers.get(&self.id) {
            for (at, line) in said.lines.iter().skip(self.next.saturating_sub(said.dropped)) {
                if self.range.since.is_none_or(|since| *at >= since) {
                    if self.range.stamps == LogStamps::With {
                        bytes.extend_from_slice(format!("{at} ").as_bytes());
                    }
                    bytes.extend_from_slice(line.as_bytes());
                    bytes.push(b'\n');
                }
            }
            self.next = said.dropped + said.lines.len();
        }
        let goes_on = state.containers.get(&self.id).is_some_and(|c| c.is_live() && c.started_at == self.run);
        (bytes, goes_on && self.range.until == LogEnd::Run)
    }
}

#[async_trait]
impl LogReader for Output {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, EngineError> {
        loop {
            // Before the look, so that nothing is missed between it and the wait.
            self.told.borrow_and_update();
            let (bytes, goes_on) = self.look();
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            if !goes_on || self.told.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
