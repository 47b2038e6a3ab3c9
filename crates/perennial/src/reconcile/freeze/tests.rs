use std::sync::{Arc, Mutex};

use super::*;

#[derive(Default, PartialEq)]
enum Copy {
    #[default]
    Never,
    AtOnce,
    /// For ever.
    Hangs,
}

/// A container that notes what is done to it, and answers what a test wants.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<&'static str>>,
    frozen: Mutex<bool>,
    /// How its data is copied at once.
    still: Copy,
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

    async fn copies(&self, within: Duration) -> Option<Copies> {
        if self.still == Copy::Never {
            return None;
        }
        self.calls.lock().expect("alone").push("copy");
        if self.still == Copy::Hangs {
            return tokio::time::timeout(within, std::future::pending()).await.ok();
        }
        Some(Copies { places: Vec::new(), keep: Box::new(()) })
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
async fn a_still_is_made_in_the_freeze_and_one_that_hangs_leaves_time_to_read() {
    let read = |writers: &dyn Writers| {
        writers.hold()?;
        let copies = writers.copies();
        writers.release()?;
        Ok(copies.is_some())
    };
    let fake = Arc::new(Fake { still: Copy::AtOnce, hooks: true, ..Fake::default() });
    let (copied, _) = freezing(&fake, LONG, read).await.expect("done");
    assert!(copied);
    assert_eq!(fake.calls(), ["before", "freeze", "copy", "thaw", "after"]);
    let fake = Arc::new(Fake { still: Copy::Hangs, ..Fake::default() });
    let limits = Limits { freeze: Duration::from_secs(2), ..LONG };
    let (copied, _) = freezing(&fake, limits, read).await.expect("done");
    assert!(!copied);
    assert_eq!(fake.calls(), ["freeze", "copy", "thaw"]);
    // Nothing is copied that is not frozen.
    let fake = Arc::new(Fake { still: Copy::AtOnce, ..Fake::default() });
    let (copied, _) = freezing(&fake, LONG, |writers| Ok(writers.copies().is_some())).await.expect("done");
    assert!(!copied && fake.calls().is_empty());
}

#[tokio::test]
async fn a_still_of_a_freeze_that_somebody_ended_is_of_no_instant() {
    let fake = Arc::new(Fake { still: Copy::AtOnce, ..Fake::default() });
    let other = Arc::clone(&fake);
    let result = freezing(&fake, LONG, move |writers| {
        writers.hold()?;
        *other.frozen.lock().expect("alone") = false;
        let copies = writers.copies();
        writers.release()?;
        Ok(copies.is_some())
    });
    assert!(matches!(result.await, Err(StepError::Retry(problem)) if problem.code == "freeze-broken"));
    // Nor one that took all the time there was.
    let fake = Arc::new(Fake { still: Copy::AtOnce, ..Fake::default() });
    let result = freezing(&fake, Limits { freeze: Duration::ZERO, ..LONG }, |writers| {
        writers.hold()?;
        let copies = writers.copies();
        writers.release()?;
        Ok(copies.is_some())
    });
    assert!(matches!(result.await, Err(StepError::Definite(problem)) if problem.code == TOO_LONG));
    assert_eq!(fake.calls().iter().filter(|call| **call == "thaw").count(), 1);
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
    assert!(matches!(result, Err(StepError::Retry(problem)) if problem.code == "freeze-broken"), "nothing proves it");
    assert_eq!(fake.calls(), ["freeze", "thaw", "thaw", "thaw"]);
}

#[tokio::test]
async fn p12_an_engine_that_does_not_answer_to_the_freeze_is_told_to_thaw() {
    let fake = Arc::new(Fake { silent: true, ..Fake::default() });
    let result = freezing(&fake, SHORT, read_all).await;
    assert!(matches!(result, Err(StepError::Retry(problem)) if problem.code == "engine-outcome-unknown"));
    assert_eq!(fake.calls(), ["freeze", "thaw"]);
}
