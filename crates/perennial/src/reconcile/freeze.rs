//! A running pod that stands still while its data is read, and for no longer.
//!
//! The blocking work says when it has everything it needs ([`Writers::hold`]) and when it has read everything
//! ([`Writers::release`]); this side freezes and thaws. It also thaws when the work ends in any other way, and when the
//! freeze lasts longer than the policy allows, whatever the work is waiting for: a frozen pod is an outage. A server that
//! dies meanwhile leaves a frozen container, which the next one thaws before it does anything else.

use std::sync::mpsc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{Fuse, FusedFuture as _};
use perennial_core::engine::{Effect, Engine, EngineError};
use perennial_core::progress::Progress;
use perennial_snapshots::{Error, Writers};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::hooks::Around;
use super::images::blocking;
use super::step::{StepError, definite};

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

/// What the work wants of the one who freezes; answered when it is done.
enum Ask {
    Hold(mpsc::Sender<Result<(), Error>>),
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
}

/// What a freeze is done to.
trait Freezes {
    async fn freeze(&self) -> Result<Effect, EngineError>;
    async fn thaw(&self) -> Result<Effect, EngineError>;
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
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A container that notes what is done to it, and answers what a test wants.
    #[derive(Default)]
    struct Fake {
        calls: Mutex<Vec<&'static str>>,
        frozen: Mutex<bool>,
        /// Answers of the next calls to thaw that fail.
        lost: Mutex<u32>,
        refuses: bool,
        /// It freezes, and never says so.
        silent: bool,
        /// It has hooks.
        hooks: bool,
        /// The first of them fails.
        unready: bool,
        ready: Mutex<bool>,
        thawed: Mutex<Option<mpsc::Sender<()>>>,
        /// The second hook never ends.
        endless: bool,
    }

    impl Fake {
        fn calls(&self) -> Vec<&'static str> {
            self.calls.lock().expect("alone").clone()
        }
    }

    impl Freezes for Arc<Fake> {
        async fn freeze(&self) -> Result<Effect, EngineError> {
            self.calls.lock().expect("alone").push("freeze");
            if self.refuses {
                return Err(EngineError::Rejected { problem: "it cannot".to_owned() });
            }
            *self.frozen.lock().expect("alone") = true;
            if self.silent {
                std::future::pending::<()>().await;
            }
            Ok(Effect::Updated)
        }

        async fn thaw(&self) -> Result<Effect, EngineError> {
            self.calls.lock().expect("alone").push("thaw");
            let was = std::mem::replace(&mut *self.frozen.lock().expect("alone"), false);
            let mut lost = self.lost.lock().expect("alone");
            if *lost > 0 {
                *lost -= 1;
                return Err(EngineError::OutcomeUnknown { problem: "the connection broke".to_owned() });
            }
            if let Some(tell) = self.thawed.lock().expect("alone").take() {
                tell.send(()).expect("the test waits");
            }
            Ok(if was { Effect::Updated } else { Effect::Unchanged })
        }

        async fn before(&self) -> Result<(), StepError> {
            if !self.hooks {
                return Ok(());
            }
            self.calls.lock().expect("alone").push("before");
            *self.ready.lock().expect("alone") = true;
            if self.unready { Err(StepError::Cancelled) } else { Ok(()) }
        }

        async fn after(&self) {
            if std::mem::take(&mut *self.ready.lock().expect("alone")) {
                self.calls.lock().expect("alone").push("after");
                if self.endless {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    const LONG: Limits = Limits { freeze: Duration::from_secs(600), after: Duration::from_secs(600) };
    const SHORT: Limits = Limits { freeze: Duration::from_millis(5), ..LONG };

    fn read_all(writers: &dyn Writers) -> Result<(), StepError> {
        writers.hold()?;
        writers.release()?;
        Ok(())
    }

    #[tokio::test]
    async fn a_container_is_frozen_from_hold_to_release() {
        let fake = Arc::new(Fake::default());
        let ((), lasted) = freezing(&fake, LONG, read_all).await.expect("done");
        assert!(lasted.is_some());
        assert_eq!(fake.calls(), ["freeze", "thaw"]);
        // Work that needs no freeze gets none.
        let ((), lasted) = freezing(&fake, LONG, |_| Ok(())).await.expect("done");
        assert_eq!((lasted, fake.calls().len()), (None, 2));
    }

    #[tokio::test]
    async fn whoever_is_ready_as_the_time_ends_came_too_late_whatever_is_noticed_first() {
        // Both are ready at every moment.
        for _ in 0..100 {
            let fake = Arc::new(Fake::default());
            let result = freezing(&fake, Limits { freeze: Duration::ZERO, ..LONG }, read_all).await;
            assert!(matches!(&result, Err(StepError::Definite(problem)) if problem.code == TOO_LONG), "{result:?}");
            assert_eq!(fake.calls(), ["freeze", "thaw"]);
        }
    }

    #[tokio::test]
    async fn p21_hooks_are_around_every_freeze_and_the_second_follows_whatever_ends_it() {
        let hooked = || Fake { hooks: true, ..Fake::default() };
        let fake = Arc::new(hooked());
        freezing(&fake, LONG, read_all).await.expect("done");
        assert_eq!(fake.calls(), ["before", "freeze", "thaw", "after"]);
        // Losses that come up make a capture begin anew.
        let twice = |writers: &dyn Writers| read_all(writers).and_then(|()| read_all(writers));
        freezing(&fake, LONG, twice).await.expect("done");
        assert_eq!(fake.calls()[4..], ["before", "freeze", "thaw", "after", "before", "freeze", "thaw", "after"]);
        let fake = Arc::new(hooked());
        let failed = freezing(&fake, LONG, |writers| {
            writers.hold()?;
            Err::<(), _>(StepError::Cancelled)
        });
        assert!(failed.await.is_err());
        assert_eq!(fake.calls(), ["before", "freeze", "thaw", "after"]);
        // It is not frozen when it is not ready.
        let fake = Arc::new(Fake { unready: true, ..hooked() });
        assert!(matches!(freezing(&fake, LONG, read_all).await, Err(StepError::Cancelled)));
        assert_eq!(fake.calls(), ["before", "after"]);
        let fake = Arc::new(Fake { refuses: true, ..hooked() });
        assert!(freezing(&fake, LONG, read_all).await.is_err());
        assert_eq!(fake.calls(), ["before", "freeze", "thaw", "after"]);
        // A freeze that lasts too long.
        let (tell, thawed) = mpsc::channel();
        let fake = Arc::new(Fake { thawed: Mutex::new(Some(tell)), ..hooked() });
        let result = freezing(&fake, SHORT, move |writers| {
            writers.hold()?;
            thawed.recv().expect("it is thawed");
            Ok(())
        });
        assert!(result.await.is_err());
        assert_eq!(fake.calls(), ["before", "freeze", "thaw", "after"]);
        // Work that needs no freeze needs no hooks.
        let fake = Arc::new(hooked());
        freezing(&fake, LONG, |_| Ok(())).await.expect("done");
        assert_eq!(fake.calls(), [] as [&str; 0]);
    }

    #[tokio::test]
    async fn p21_a_hook_that_does_not_end_costs_no_snapshot() {
        let fake = Arc::new(Fake { hooks: true, endless: true, ..Fake::default() });
        let limits = Limits { after: Duration::from_millis(5), ..LONG };
        let (read, lasted) = freezing(&fake, limits, |writers| read_all(writers).map(|()| 7)).await.expect("done");
        assert_eq!((read, lasted.is_some()), (7, true));
        assert_eq!(fake.calls(), ["before", "freeze", "thaw", "after"]);
    }

    #[tokio::test]
    async fn work_that_ends_in_any_way_leaves_nothing_frozen() {
        let fake = Arc::new(Fake::default());
        let failed = freezing(&fake, LONG, |writers| {
            writers.hold()?;
            Err::<(), _>(StepError::Cancelled)
        });
        assert!(matches!(failed.await, Err(StepError::Cancelled)));
        assert_eq!(fake.calls(), ["freeze", "thaw"]);
        let panicked = freezing(&fake, LONG, |writers| {
            writers.hold()?;
            // As any defect would.
            let number: u32 = "none".parse().expect("a defect");
            Ok(number)
        });
        assert!(matches!(panicked.await, Err(StepError::Retry(_))));
        assert_eq!(fake.calls(), ["freeze", "thaw", "freeze", "thaw"]);
        // One that could not be frozen may have been all the same.
        let fake = Arc::new(Fake { refuses: true, ..Fake::default() });
        assert!(matches!(freezing(&fake, LONG, read_all).await, Err(StepError::Definite(_))));
        assert_eq!(fake.calls(), ["freeze", "thaw"]);
    }

    #[tokio::test]
    async fn p12_a_freeze_has_an_end_whatever_the_work_waits_for() {
        let (tell, thawed) = mpsc::channel();
        let fake = Arc::new(Fake { thawed: Mutex::new(Some(tell)), ..Fake::default() });
        let result = freezing(&fake, SHORT, move |writers| {
            writers.hold()?;
            // As a reader or a store that hangs, until the container was thawed.
            thawed.recv().expect("it is thawed");
            writers.release()?;
            Ok(())
        });
        let Err(StepError::Definite(problem)) = result.await else { panic!("it counted") };
        assert_eq!(problem.code, "freeze-too-long");
        assert_eq!(fake.calls(), ["freeze", "thaw"]);
    }

    #[tokio::test]
    async fn p12_a_copy_in_a_freeze_that_was_given_up_ends_at_once() {
        let fake = Arc::new(Fake::default());
        let whole = Progress::default();
        let progress = whole.part();
        let copying = progress.clone();
        let result = standing_still(&fake, Duration::from_millis(5), &progress, |processes| async move {
            processes.hold_still().await?;
            // As a copy of a large file, which looks between its pieces.
            while copying.check().is_ok() {
                tokio::task::yield_now().await;
            }
            Err::<(), _>(StepError::Cancelled)
        });
        assert!(matches!(result.await, Err(StepError::Definite(problem)) if problem.code == TOO_LONG));
        assert_eq!((fake.calls(), whole.check()), (vec!["freeze", "thaw"], Ok(())));
    }

    #[tokio::test]
    async fn p12_a_freeze_that_somebody_ended_is_of_no_instant_and_a_lost_answer_is_asked_again() {
        let fake = Arc::new(Fake::default());
        let other = Arc::clone(&fake);
        let result = freezing(&fake, LONG, move |writers| {
            writers.hold()?;
            *other.frozen.lock().expect("alone") = false;
            writers.release()?;
            Ok(())
        });
        assert!(matches!(result.await, Err(StepError::Retry(problem)) if problem.code == "freeze-broken"));
        let fake = Arc::new(Fake { lost: Mutex::new(2), ..Fake::default() });
        let result = freezing(&fake, LONG, read_all).await;
        assert!(
            matches!(result, Err(StepError::Retry(problem)) if problem.code == "freeze-broken"),
            "nothing proves it"
        );
        assert_eq!(fake.calls(), ["freeze", "thaw", "thaw", "thaw"]);
    }

    #[tokio::test]
    async fn p12_an_engine_that_does_not_answer_to_the_freeze_is_told_to_thaw() {
        let fake = Arc::new(Fake { silent: true, ..Fake::default() });
        let result = freezing(&fake, SHORT, read_all).await;
        assert!(matches!(result, Err(StepError::Retry(problem)) if problem.code == "engine-outcome-unknown"));
        assert_eq!(fake.calls(), ["freeze", "thaw"]);
    }
}
