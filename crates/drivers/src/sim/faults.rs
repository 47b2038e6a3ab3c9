//! Seeded misfortune: what may go wrong with any call. All of it is off until a test asks for it.

use jiff::SignedDuration;
use perennial_core::engine::EngineError;

use super::{SimEngine, State, VirtualClock};

/// Probabilities, each from 0 to 1, asked once per call.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The call fails and did nothing: `Transient`.
    pub before: f64,
    /// The call did everything and its answer is lost: `OutcomeUnknown`.
    pub after: f64,
    /// A call of several steps stops in the middle of them: half a set prepared, copied or deleted, half an image written, a
    /// generation written without a start. `Transient` or `OutcomeUnknown`, like Docker would.
    pub halfway: f64,
    /// `set_prepare`, `set_snapshot`, `set_still`, `image_import` and `image_export` find the disk full: `Rejected` with nothing complete.
    pub disk_full: f64,
    /// Calls that take time; `None` when all are instant.
    pub delay: Option<Delay>,
}

/// How calls take time.
#[derive(Debug, Clone)]
pub struct Delay {
    /// How many do.
    pub probability: f64,
    /// The longest one.
    pub at_most: SignedDuration,
    /// The clock that passes meanwhile.
    pub clock: VirtualClock,
}

/// What one call will meet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fate {
    pub halfway: bool,
    pub disk_full: bool,
    pub answer_lost: bool,
}

/// A small generator of our own, so that a seed means the same history with every version of every library.
///
/// `SplitMix64`: <https://prng.di.unimi.it/splitmix64.c>
#[derive(Debug, Default)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether something of this probability happens now; an impossible thing does not use up randomness.
    pub(super) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && f64::from(u32::try_from(self.next() >> 32).unwrap_or(0)) < probability * 4_294_967_296.0
    }
}

impl State {
    /// Decides what happens to one call.
    fn enter(&mut self, site: &str) -> Result<(Fate, Option<(VirtualClock, SignedDuration)>), EngineError> {
        self.calls += 1;
        self.reachable()?;
        let Self { faults, dice, .. } = self;
        if dice.happens(faults.before) {
            return Err(EngineError::Transient { problem: format!("{site}: the simulated engine did not answer") });
        }
        let fate = Fate {
            halfway: dice.happens(faults.halfway),
            disk_full: dice.happens(faults.disk_full),
            answer_lost: dice.happens(faults.after),
        };
        let delay = match &faults.delay {
            Some(delay) if dice.happens(delay.probability) => {
                let limit = u64::try_from(delay.at_most.as_millis()).unwrap_or(0).max(1);
                let millis = i64::try_from(dice.next() % limit).unwrap_or(0);
                Some((delay.clock.clone(), SignedDuration::from_millis(millis)))
            }
            _ => None,
        };
        Ok((fate, delay))
    }

    fn reachable(&self) -> Result<(), EngineError> {
        if self.unreachable {
            return Err(EngineError::Transient { problem: "the simulated node is unreachable".to_owned() });
        }
        Ok(())
    }
}

impl SimEngine {
    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Makes the node vanish: every call fails, watches end, containers go on running unseen.
    pub fn node_vanishes(&self) {
        let mut state = self.lock();
        state.unreachable = true;
        state.watchers.clear();
    }

    /// Makes the node hang: calls are taken and never answered, not even when it is back. Whoever cannot wait has to give up.
    pub fn node_hangs(&self) {
        self.lock().hangs = true;
    }

    /// Brings the node back as it is by now.
    pub fn node_returns(&self) {
        let mut state = self.lock();
        (state.unreachable, state.hangs) = (false, false);
    }

    /// Does one call: fate first, then the effect, then whatever becomes of the answer.
    pub(super) async fn call<T: Send>(
        &self,
        site: &'static str,
        act: impl FnOnce(&mut State, Fate) -> Result<T, EngineError> + Send,
    ) -> Result<T, EngineError> {
        let (fate, delay, hangs) = {
            let mut state = self.lock();
            let (fate, delay) = state.enter(site)?;
            (fate, delay, state.hangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        if let Some((clock, by)) = delay {
            clock.advance(by);
            tokio::task::yield_now().await;
        }
        let answer = {
            let mut state = self.lock();
            state.reachable()?;
            act(&mut state, fate)
        };
        if fate.answer_lost {
            return Err(EngineError::OutcomeUnknown { problem: format!("{site}: the connection broke") });
        }
        answer
    }
}
