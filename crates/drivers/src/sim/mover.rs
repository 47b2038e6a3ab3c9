//! Movers without containers: a thread that reaches the volumes of one set.
//!
//! As with a real engine, a mover of an earlier life of the server may still be there, and is ended before anything
//! happens to its set. What the thread does is not the simulator's business: whoever makes the simulator says it.

use std::fmt;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use perennial_core::engine::{EngineError, MoverChannel, Presence, SetSpec};
use perennial_core::id::PodId;
use perennial_core::spec::Backend;
use perennial_core::volume::SetNumber;

use super::{Shared, State, broken, not_found, rejected};

/// What a mover does with its input and output until its input ends.
#[derive(Clone)]
pub struct SimMover(Arc<dyn Fn(UnixStream, UnixStream) + Send + Sync>);

impl SimMover {
    /// A mover that does this.
    pub fn new(run: impl Fn(UnixStream, UnixStream) + Send + Sync + 'static) -> Self {
        Self(Arc::new(run))
    }
}

impl fmt::Debug for SimMover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimMover")
    }
}

/// A mover that was opened.
pub(super) struct Running {
    pod: PodId,
    set: SetNumber,
    ends: [UnixStream; 2],
    thread: JoinHandle<()>,
}

impl Running {
    /// Ends it as SIGKILL does, and waits until it is gone.
    fn end(self) {
        for end in &self.ends {
            // Closed already when it ended by itself.
            let _ = end.shutdown(Shutdown::Both);
        }
        // What it died of, if anything, was its own affair.
        let _ = self.thread.join();
    }
}

impl State {
    /// Ends the movers of one set.
    pub(super) fn end_movers(&mut self, pod: PodId, set: SetNumber) {
        let (these, others) = std::mem::take(&mut self.movers).into_iter().partition(|m| m.pod == pod && m.set == set);
        self.movers = others;
        let these: Vec<Running> = these;
        these.into_iter().for_each(Running::end);
    }
}

impl Shared {
    /// Whether only a mover reaches sets of this backend.
    pub(super) const fn needs_mover(&self, backend: Backend) -> bool {
        self.options.mover.is_some() && matches!(backend, Backend::Engine)
    }

    pub(super) fn mover_open(&self, state: &mut State, set: &SetSpec) -> Result<MoverChannel, EngineError> {
        let Some(mover) = self.options.mover.clone().filter(|_| self.needs_mover(set.backend)) else {
            return Err(rejected("these volumes are directories of this host and need no mover"));
        };
        state.end_movers(set.pod, set.number);
        if self.observe_set(set)?.presence == Presence::Absent {
            return Err(not_found(format!("set {} of pod {}", set.number, set.pod)));
        }
        let open = || -> std::io::Result<(Running, MoverChannel)> {
            let (input, writer) = UnixStream::pair()?;
            let (reader, output) = UnixStream::pair()?;
            let ends = [input.try_clone()?, output.try_clone()?];
            let (last_input, last_output) = (input.try_clone()?, output.try_clone()?);
            let thread = std::thread::Builder::new().name("sim-mover".to_owned()).spawn(move || {
                (mover.0)(input, output);
                for end in [last_input, last_output] {
                    // The end of a process closes everything it had open.
                    let _ = end.shutdown(Shutdown::Both);
                }
            })?;
            let channel = MoverChannel { reader: Box::new(reader), writer: Box::new(writer) };
            Ok((Running { pod: set.pod, set: set.number, ends, thread }, channel))
        };
        let (running, channel) = open().map_err(|e| broken("start a mover", &e))?;
        state.movers.push(running);
        Ok(channel)
    }
}
