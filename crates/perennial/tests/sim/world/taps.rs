//! Taps that make the world fail at a chosen point.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use perennial_core::fault::{Moment, Tap, Verdict};
use tokio::sync::Notify;

/// What happens at the chosen point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// Nothing; the points are counted.
    Count,
    /// The server dies before the effect.
    KillBefore,
    /// The server dies after the effect and before its record.
    KillAfter,
    /// The effect does not happen, and the server is told so.
    FailBefore,
    /// The effect happens, and its answer is lost.
    LoseAnswer,
    /// The call is never answered.
    Hang,
}

/// Where it happens.
#[derive(Debug)]
enum Point {
    /// At the call of this number.
    Number(usize),
    /// At the first call of this site.
    Site(&'static str),
}

/// Counts the calls that change something, and strikes at one of them.
#[derive(Debug)]
pub struct Striker {
    blow: Blow,
    at: Point,
    passed: Mutex<Vec<String>>,
    dead: AtomicBool,
    died: Notify,
}

impl Striker {
    pub fn new(blow: Blow, at: usize) -> Self {
        Self::at(blow, Point::Number(at))
    }

    /// One that strikes at the first call of a site.
    pub fn at_site(blow: Blow, site: &'static str) -> Self {
        Self::at(blow, Point::Site(site))
    }

    fn at(blow: Blow, at: Point) -> Self {
        Self { blow, at, passed: Mutex::default(), dead: AtomicBool::new(false), died: Notify::new() }
    }

    /// The points passed so far, by site.
    pub fn passed(&self) -> Vec<String> {
        self.passed.lock().unwrap().clone()
    }

    /// Ends when the server is dead.
    pub async fn death(&self) {
        while !self.dead.load(Ordering::SeqCst) {
            self.died.notified().await;
        }
    }

    fn die(&self) -> Verdict {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_one();
        Verdict::Die
    }
}

impl Tap for Striker {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if self.dead.load(Ordering::SeqCst) {
            return Verdict::Die;
        }
        let mut passed = self.passed.lock().unwrap();
        if moment == Moment::Before {
            passed.push(site.to_owned());
        }
        // Counted before the effect; the same number is asked again after it.
        let is_here = match self.at {
            Point::Number(at) => passed.len() == at + 1,
            Point::Site(at) => site == at && passed.iter().filter(|passed| *passed == at).count() == 1,
        };
        if !is_here {
            return Verdict::Go;
        }
        drop(passed);
        match (self.blow, moment) {
            (Blow::KillBefore, Moment::Before) | (Blow::KillAfter, Moment::After) => self.die(),
            (Blow::FailBefore, Moment::Before) | (Blow::LoseAnswer, Moment::After) => Verdict::Fail,
            (Blow::Hang, Moment::Before) => Verdict::Die,
            _ => Verdict::Go,
        }
    }
}
