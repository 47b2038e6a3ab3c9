//! What a run of the command line depends on besides its arguments: the clock, Ctrl-C, patience.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::args::Output;
use super::client::Client;
use super::failure::Failure;
use super::out::{Out, clean};

/// What a run depends on besides its arguments.
pub struct Session {
    /// How answers are printed.
    pub output: Output,
    /// The client's clock.
    pub now: fn() -> Timestamp,
    /// `PERENNIAL_TOKEN`; empty or `None` when it is not set.
    pub token: Option<String>,
    /// Pause between questions that were answered at once, and before a broken connection is tried again.
    pub pause: Duration,
    /// Longest silence of a server that was reached; above the longest `?wait=` that is asked for.
    pub silence: Duration,
    /// How often in a row a connection that worked before is tried again.
    pub tries: u32,
    /// What ends waiting.
    pub interrupt: Interrupt,
}

/// What ends waiting.
#[derive(Clone)]
pub enum Interrupt {
    /// Ctrl-C, or whoever asks the process to end.
    Process,
    /// A test.
    Notify(Arc<Notify>),
}

impl Session {
    /// This process's: the real clock, Ctrl-C, and two minutes of patience with a server that restarts.
    #[must_use]
    pub fn process() -> Self {
        Self {
            output: Output::Table,
            now: Timestamp::now,
            token: std::env::var("PERENNIAL_TOKEN").ok(),
            pause: Duration::from_millis(500),
            silence: Duration::from_secs(90),
            tries: 240,
            interrupt: Interrupt::Process,
        }
    }
}

impl Interrupt {
    /// Ends when waiting is to end. From the call on, and for good, a signal does not end the process by itself any more.
    pub fn wait(&self) -> BoxFuture<'static, ()> {
        match self {
            Self::Process => {
                // Without a handler a signal ends the process, which is the next best thing.
                let [typed, asked] =
                    [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| one(signal(kind).ok()));
                futures::future::select(typed.boxed(), asked.boxed()).map(drop).boxed()
            }
            Self::Notify(notify) => {
                let notify = Arc::clone(notify);
                async move { notify.notified().await }.boxed()
            }
        }
    }
}

/// Ends with the first signal; never where there is none to wait for.
async fn one(signal: Option<Signal>) {
    let first = match signal {
        Some(mut signal) => signal.recv().await,
        None => None,
    };
    if first.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Everything a command works with.
pub struct Context<'a> {
    /// The API.
    pub client: Client,
    /// The clock and the like.
    pub session: Session,
    /// The terminal.
    pub out: &'a mut Out,
}

impl Context<'_> {
    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.session.now)()
    }

    /// Prints an answer: exactly for JSON and YAML, by `table` for people.
    pub fn show<T: Serialize>(
        &mut self,
        answer: &T,
        table: impl FnOnce(&T, &Out, Timestamp) -> String,
    ) -> Result<(), Failure> {
        let now = self.now();
        show(self.session.output, self.out, answer, |answer, out| table(answer, out, now))
    }
}

impl Context<'_> {
    /// Prints ids alone, one on a line; nothing when there are none.
    pub fn show_ids<'b>(&mut self, ids: impl Iterator<Item = &'b str>) -> Result<(), Failure> {
        let ids: Vec<&str> = ids.collect();
        if ids.is_empty() && self.session.output == Output::Table {
            return Ok(());
        }
        self.show(&ids, |ids, _, _| ids.iter().map(|id| clean(id)).collect::<Vec<_>>().join("\n"))
    }
}

/// Prints an answer: exactly for JSON and YAML, by `table` for people.
pub fn show<T: Serialize>(
    output: Output,
    out: &mut Out,
    answer: &T,
    table: impl FnOnce(&T, &Out) -> String,
) -> Result<(), Failure> {
    let text = match output {
        Output::Table => table(answer, out),
        Output::Json => serde_json::to_string_pretty(answer)
            .map_err(|error| Failure::internal(format!("write the answer as JSON: {error}")))?,
        Output::Yaml => serde_yaml_ng::to_string(answer)
            .map_err(|error| Failure::internal(format!("write the answer as YAML: {error}")))?,
    };
    out.line(text.trim_end())
}
