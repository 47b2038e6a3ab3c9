//! A running pod that stands still while its data is read, and for no longer.
//!
//! The blocking work says when it has everything it needs ([`Writers::hold`]) and when it has read everything
//! ([`Writers::release`]); this side freezes and thaws. Where the storage copies a set at once, it makes a still meanwhile
//! ([`Writers::copies`]), and what is in that is read after the thaw. It also thaws when the work ends in any other way, and when the
//! freeze lasts longer than the policy allows, whatever the work is waiting for: a frozen pod is an outage. A server that
//! dies meanwhile leaves a frozen container, which the next one thaws before it does anything else.

use std::sync::mpsc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{Fuse, FusedFuture as _};
use perennial_core::engine::{Effect, Engine, EngineError};
use perennial_core::progress::Progress;
use perennial_snapshots::{Copies, Error, Writers};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::hooks::Around;
use super::images::blocking;
use super::step::{StepError, definite};
use super::still::StillOf;

/// The code of the problem of a freeze that was given up.
pub(super) const TOO_LONG: &str = "freeze-too-long";
/// How often a container that does not thaw is told again at once; after that the next pass does it.
const THAW_TRIES: u32 = 6;
/// How long one such call may take.
const THAW_WITHIN: Duration = Duration::from_secs(5);
/// Delay before the second try; doubles with each.
const THAW_AGAIN: Duration = Duration::from_millis(50);
/// How long what makes the pod go on is waited for once everything is stored: after that the snapshot is recorded without it.
const AFTER: Duration = Duration::from_secs(5);

/// The part of a freeze that a still may take; what is left is for reading when there is none after all.
const STILL_SHARE: u32 = 4;

/// What the work wants of the one who freezes; answered when it is done.
enum Ask {
    Hold(mpsc::Sender<Result<(), Error>>),
    Copies(mpsc::Sender<Option<Copies>>),
    Release(mpsc::Sender<Result<(), Error>>),
}

/// The pod's processes, as the work sees them.
pub(super) struct Processes(UnboundedSender<Ask>);

impl Processes {
    fn ask(&self, ask: impl FnOnce(mpsc::Sender<Result<(), Error>>) -> Ask) -> Result<(), Error> {
        let (answer, answered) = mpsc::channel();
        let gone = || Error::NotHeld { problem: "the server stopped working on the pod".to_owned() };
        self.0.send(ask(answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    /// Has them stand still, for work that waits and does not block.
    pub(super) async fn hold_still(&self) -> Result<(), StepError> {
        let asks = Self(self.0.clone());
        blocking(move || Ok(asks.hold()?)).await
    }

    /// Lets them go on, as [`Processes::hold_still`].
    pub(super) async fn go_on(&self) -> Result<(), StepError> {
        let asks = Self(self.0.clone());
        blocking(move || Ok(asks.release()?)).await
    }
}

impl Writers for Processes {
    fn hold(&self) -> Result<(), Error> {
        self.ask(Ask::Hold)
    }

    fn copies(&self) -> Option<Copies> {
        let (answer, answered) = mpsc::channel();
        self.0.send(Ask::Copies(answer)).ok()?;
        answered.recv().ok()?
    }

    fn release(&self) -> Result<(), Error> {
        self.ask(Ask::Release)
    }
}

/// A container that can be frozen, and what its pod runs before and after that.
pub(super) struct Container<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) id: &'a str,
    /// The pod's hooks, when they are run around it.
    pub(super) around: Option<Around<'a>>,
    /// What its still is made of, where the storage copies sets at once.
    pub(super) still: Option<StillOf<'a>>,
}

/// What a freeze is done to.
trait Freezes {
    async fn freeze(&self) -> Result<Effect, EngineError>;
    async fn thaw(&self) -> Result<Effect, EngineError>;
    /// Copies at once what it writes in, within this time, if that can be.
    async fn copies(&self, within: Duration) -> Option<Copies>;
    /// Makes it ready; an error when it is not to be frozen.
    async fn before(&self) -> Result<(), StepError>;
    /// Undoes that, once it goes on; does nothing when there is nothing to undo. May be given up in the middle.
    async fn after(&self);
}

impl Freezes for Container<'_> {
    async fn freeze(&self) -> Result<Effect, EngineError> {
        self.engine.container_freeze(self.id).await
    }

    async fn thaw(&self) -> Result<Effect, EngineError> {
        self.engine.container_unfreeze(self.id).await
    }

    async fn copies(&self, within: Duration) -> Option<Copies> {
        let still = self.still.as_ref()?;
        still.make(self.engine, within).await
    }

    async fn before(&self) -> Result<(), StepError> {
        match &self.around {
            Some(around) => around.before().await,
            None => Ok(()),
        }
    }

    async fn after(&self) {
        if let Some(around) = &self.around {
            around.after().await;
        }
    }
}

/// A call that does not answer in time has an unknown outcome.
async fn within(
    limit: Duration,
    call: impl Future<Output = Result<Effect, EngineError>>,
) -> Result<Effect, EngineError> {
    let late = || EngineError::OutcomeUnknown { problem: format!("no answer within {} s", limit.as_secs_f32()) };
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}

/// Thaws; a call whose answer was lost is repeated. Answers whether it is proven that it had been frozen until now: one
/// that runs after a lost answer may have been let go on by somebody else.
async fn thaw(what: &impl Freezes) -> Result<bool, EngineError> {
    let mut delay = THAW_AGAIN;
    for _ in 1..THAW_TRIES {
        match within(THAW_WITHIN, what.thaw()).await {
            Ok(effect) => return Ok(effect != Effect::Unchanged),
            Err(error @ (EngineError::Transient { .. } | EngineError::OutcomeUnknown { .. })) => {
                tracing::warn!(%error, "thaw the container");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(delay).await;
        delay *= 2;
    }
    Ok(within(THAW_WITHIN, what.thaw()).await? != Effect::Unchanged)
}

fn millis(lasted: Duration) -> u64 {
    u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX)
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The freeze.
    freeze: Duration,
    /// What undoes the preparation, once the work is done.
    after: Duration,
}

/// What one side knows of the other.
struct Session<'a, F> {
    what: &'a F,
    limits: Limits,
    /// Of work that is of no use once the freeze was given up.
    progress: Option<Progress>,
    /// Since when it is frozen.
    since: Option<Instant>,
    /// How long it was, the last time.
    lasted: Option<Duration>,
    failure: Option<StepError>,
}

impl<F: Freezes> Session<'_, F> {
    async fn answer(&mut self, ask: Ask) {
        let (answer, result) = match ask {
            Ask::Hold(answer) => (answer, self.hold().await),
            Ask::Copies(answer) => {
                let _ = answer.send(self.copies().await);
                return;
            }
            Ask::Release(answer) => (answer, self.release().await),
        };
        // Who no longer waits has ended, which is noticed.
        let _ = answer.send(result);
    }

    fn failed(&mut self, error: StepError, problem: &str) -> Error {
        self.failure.get_or_insert(error);
        Error::NotHeld { problem: problem.to_owned() }
    }

    async fn hold(&mut self) -> Result<(), Error> {
        if let Err(error) = self.what.before().await {
            return Err(self.failed(error, "the pod was not made ready to be frozen"));
        }
        let began = Instant::now();
        // Also when the call fails: nobody knows then whether it did anything.
        self.since = Some(began);
        match within(self.limits.freeze, self.what.freeze()).await {
            Ok(_) => {
                tracing::debug!(millis = millis(began.elapsed()), "the engine froze the container");
                Ok(())
            }
            Err(error) => {
                let problem = error.to_string();
                self.go_on().await;
                Err(self.failed(error.into(), &problem))
            }
        }
    }

    async fn copies(&mut self) -> Option<Copies> {
        let since = self.since?;
        let began = Instant::now();
        let left = self.limits.freeze.saturating_sub(began - since);
        let copies = self.what.copies(left.min(self.limits.freeze / STILL_SHARE)).await?;
        tracing::debug!(millis = millis(began.elapsed()), "the data was copied at once");
        Some(copies)
    }

    async fn release(&mut self) -> Result<(), Error> {
        // Whoever is ready as the time ends came too late, whichever of both is noticed first.
        if self.since.is_some_and(|since| since.elapsed() >= self.limits.freeze) {
            self.give_up().await;
            return Err(Error::NotHeld { problem: "it was frozen for as long as it may be".to_owned() });
        }
        if self.since.is_none() {
            return Err(Error::NotHeld { problem: "the freeze was given up before everything was read".to_owned() });
        }
        if self.go_on().await {
            return Ok(());
        }
        Err(Error::NotHeld { problem: "somebody else let the container go on".to_owned() })
    }

    /// Thaws; answers whether it had been frozen until now.
    async fn go_on(&mut self) -> bool {
        let Some(since) = self.since.take() else { return false };
        let read = since.elapsed();
        let thawed = thaw(self.what).await;
        let lasted = since.elapsed();
        tracing::debug!(millis = millis(lasted), thaw = millis(lasted - read), "the container was frozen");
        self.lasted = Some(lasted);
        thawed.unwrap_or_else(|error| {
            self.failure.get_or_insert(error.into());
            false
        })
    }

    async fn give_up(&mut self) {
        self.go_on().await;
        if let Some(progress) = &self.progress {
            progress.cancel();
        }
        self.failure.get_or_insert_with(|| {
            definite(
                TOO_LONG,
                format!("the pod was frozen for {} s and not everything was read", self.limits.freeze.as_secs_f32()),
                "take the snapshot when less changes at once (a hook before it that writes a dump may be what does), or of a paused \
                 pod: perennial pod pause",
            )
        });
    }

    async fn run<T>(
        &mut self,
        mut asked: UnboundedReceiver<Ask>,
        work: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        let mut work = std::pin::pin!(work);
        // What was read is being stored meanwhile.
        let what = self.what;
        let mut after = std::pin::pin!(Fuse::terminated());
        let result = loop {
            let until = self.since.map(|since| since + self.limits.freeze);
            let over = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ask) = asked.recv() => {
                    if matches!(ask, Ask::Hold(_)) && !after.is_terminated() {
                        // It is not made ready again while it is being let go on.
                        after.as_mut().await;
                    }
                    self.answer(ask).await;
                    if self.since.is_none() && after.is_terminated() {
                        after.set(what.after().fuse());
                    }
                }
                () = over => {
                    self.give_up().await;
                    after.set(what.after().fuse());
                }
                () = &mut after => {}
                result = &mut work => break result,
            }
        };
        if self.since.is_some() {
            self.go_on().await;
            after.set(what.after().fuse());
        }
        if !after.is_terminated() && tokio::time::timeout(self.limits.after, after).await.is_err() {
            tracing::info!("what was read is stored; what the pod still needs is a step of its own");
        }
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => result,
        }
    }
}

/// Runs blocking work that may have the container frozen, and tells how long it was.
pub(super) async fn while_frozen<T: Send + 'static>(
    container: &Container<'_>,
    limit: Duration,
    work: impl FnOnce(&dyn Writers) -> Result<T, StepError> + Send + 'static,
) -> Result<(T, Option<Duration>), StepError> {
    freezing(container, Limits { freeze: limit, after: AFTER }, work).await
}

/// The same for work that waits and does not block. Its progress is cancelled when the freeze was given up: what it copies
/// from then on is of no instant.
pub(super) async fn while_still<T, F: Future<Output = Result<T, StepError>>>(
    container: &Container<'_>,
    limit: Duration,
    progress: &Progress,
    work: impl FnOnce(Processes) -> F,
) -> Result<(T, Option<Duration>), StepError> {
    standing_still(container, limit, progress, work).await
}

async fn standing_still<T, F: Future<Output = Result<T, StepError>>>(
    what: &impl Freezes,
    limit: Duration,
    progress: &Progress,
    work: impl FnOnce(Processes) -> F,
) -> Result<(T, Option<Duration>), StepError> {
    let (asks, asked) = unbounded_channel();
    let (progress, limits) = (Some(progress.clone()), Limits { freeze: limit, after: AFTER });
    let mut session = Session { what, limits, progress, since: None, lasted: None, failure: None };
    let result = session.run(asked, work(Processes(asks))).await?;
    Ok((result, session.lasted))
}

async fn freezing<T: Send + 'static>(
    what: &impl Freezes,
    limits: Limits,
    work: impl FnOnce(&dyn Writers) -> Result<T, StepError> + Send + 'static,
) -> Result<(T, Option<Duration>), StepError> {
    let (asks, asked) = unbounded_channel();
    let work = blocking(move || work(&Processes(asks)));
    let mut session = Session { what, limits, progress: None, since: None, lasted: None, failure: None };
    let result = session.run(asked, work).await?;
    Ok((result, session.lasted))
}

#[cfg(test)]
mod tests;
