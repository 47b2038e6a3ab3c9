//! Whether a pod works: what it is asked, what its answers mean, and what is done about a pod that does not answer.
//!
//! Engines only run containers (D17). The server asks, counts here ([`Tally`]), and records what changed; `plan` ends the run of
//! a pod that was found ill, and starts it again as after a crash, with the same delays. After [`RESTARTS_MAX`] of them in a row it is
//! left as it is: what did not help five times only loses what the pod's program was doing.
//!
//! A question that could not be put says nothing about the pod (law 5): it is never counted as a failure.

use jiff::{SignedDuration, Timestamp};

use crate::error::Error;
use crate::hook::check_command;
use crate::snapshot::WriterStamp;
use crate::spec::shown;

/// Seconds between two health checks when nobody says.
pub const HEALTH_INTERVAL: u32 = 30;
/// Seconds a health check may take when nobody says.
pub const HEALTH_TIMEOUT: u32 = 10;
/// Health checks in a row that have to fail when nobody says.
pub const HEALTH_RETRIES: u32 = 3;
/// Seconds after a start in which a failed health check means nothing, when nobody says.
pub const HEALTH_START_PERIOD: u32 = 60;
/// Restarts and crashes in a row after which a pod that does not answer is left as it is.
pub const RESTARTS_MAX: u32 = 5;

/// Longest time between two health checks, in seconds: one day.
const INTERVAL_MAX: u32 = 86_400;
/// Longest time an answer may take, in seconds: a question takes one of a few places as long as it waits.
const TIMEOUT_MAX: u32 = 60;
/// Most health checks in a row that have to fail.
const RETRIES_MAX: u32 = 100;
/// Longest time after a start in which a failed health check means nothing, in seconds: one hour.
const START_PERIOD_MAX: u32 = 3600;
/// Longest path of a page, in bytes.
const PATH_MAX: usize = 1024;
/// Characters that are kept of what went wrong.
const PROBLEM_MAX: usize = 300;
/// How often a pod that has only begun is asked, in seconds: people wait for it.
const STARTING_EVERY: u32 = 5;

/// How one finds out whether a pod works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Seconds between two questions.
    pub interval: u32,
    /// Seconds an answer may take.
    pub timeout: u32,
    /// Questions in a row that have to fail.
    pub retries: u32,
    /// Seconds after a start in which a failure means nothing.
    pub start_period: u32,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A page that answers with 200 to 399.
    Http {
        /// Port in the container.
        port: u16,
        /// Path with its query.
        path: String,
    },
    /// A port that takes a connection.
    Tcp {
        /// Port in the container.
        port: u16,
    },
    /// A program in the container that ends with 0.
    Exec {
        /// The program and its arguments; no shell is involved.
        command: Vec<String>,
    },
}

/// What a pod answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Good,
    /// It does not, and why, in a few words.
    Bad(String),
    /// It cannot be asked from here, and why. Nothing is known of it.
    Unasked(String),
}

/// What was found out about a pod: recorded when it changes, so that it outlasts the server that found it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What.
    pub verdict: Verdict,
    /// The run it was found out about last.
    pub run: WriterStamp,
    /// Since when it is so: while a pod is ill, since it was found ill first, whatever was tried since.
    pub since: Timestamp,
    /// What it answered last that was not good, or why it cannot be asked; `None` when it never did.
    pub problem: Option<String>,
}

/// What is known of a pod's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answers.
    Healthy,
    /// It did not answer often enough in a row: that run is ended, and another begun.
    Unhealthy,
    /// The same, and restarts did not help: it is left as it is.
    GivenUp,
    /// It cannot be asked.
    Unasked,
}

impl Health {
    /// Whether something about a run is new to whoever knows this of the pod.
    #[must_use]
    pub fn is_news(known: Option<&Self>, run: &WriterStamp, found: &Found) -> bool {
        let verdict = known.map(|health| health.verdict);
        match found {
            Found::Works => verdict != Some(Verdict::Healthy),
            Found::Unknown(_) => verdict != Some(Verdict::Unasked),
            // Each run that does not answer is dealt with once.
            Found::Fails(_) => !known.is_some_and(|health| health.verdict.is_ill() && health.run == *run),
        }
    }

    /// Whether this run was found ill and has to end, so that another begins.
    #[must_use]
    pub fn ends(&self, run: &WriterStamp) -> bool {
        self.verdict == Verdict::Unhealthy && self.run == *run
    }
}

impl Verdict {
    /// Whether the pod was found not to work.
    #[must_use]
    pub const fn is_ill(self) -> bool {
        matches!(self, Self::Unhealthy | Self::GivenUp)
    }
}

/// How a pod's health is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthState {
    /// It runs, or is about to, and has not answered yet.
    Starting,
    /// It answers.
    Healthy,
    /// It does not.
    Unhealthy,
    /// It does not run, or cannot be asked.
    Unknown,
}

/// What of a sequence of answers has to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It answers.
    Works,
    /// It failed as often in a row as it takes, last for this reason.
    Fails(String),
    /// It cannot be asked, for this reason.
    Unknown(String),
}

/// The answers of one run, counted. It is forgotten with the server: another one begins to count anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bad answers in a row that count.
    failures: u32,
    /// Whether this run ever gave a good one.
    answered: bool,
}

impl Tally {
    /// Counts an answer of a run that began at `began`; `None`: nothing is found out by it.
    pub fn count(
        &mut self,
        check: &HealthCheck,
        (began, now): (Timestamp, Timestamp),
        answer: Answer,
    ) -> Option<Found> {
        match answer {
            Answer::Good => {
                *self = Self { failures: 0, answered: true };
                Some(Found::Works)
            }
            Answer::Unasked(why) => {
                self.failures = 0;
                Some(Found::Unknown(why))
            }
            // Whoever answered once has started.
            Answer::Bad(_) if !self.answered && check.is_starting(began, now) => None,
            Answer::Bad(why) => {
                self.failures = self.failures.saturating_add(1);
                (self.failures >= check.retries).then_some(Found::Fails(why))
            }
        }
    }

    /// When the pod is asked again that was asked now.
    #[must_use]
    pub fn next(&self, check: &HealthCheck, (began, now): (Timestamp, Timestamp)) -> Timestamp {
        let starting = !self.answered && check.is_starting(began, now);
        let seconds = if starting { check.interval.min(STARTING_EVERY) } else { check.interval };
        after(now, seconds)
    }
}

/// What is wrong with a health check, by its place below `health`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The field, such as `health.http.path`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

impl HealthCheck {
    /// One that asks this, and as often as usual.
    #[must_use]
    pub const fn of(probe: Probe) -> Self {
        Self {
            probe,
            interval: HEALTH_INTERVAL,
            timeout: HEALTH_TIMEOUT,
            retries: HEALTH_RETRIES,
            start_period: HEALTH_START_PERIOD,
        }
    }

    /// Whether a failure means nothing yet for a run that began at `began`.
    fn is_starting(&self, began: Timestamp, now: Timestamp) -> bool {
        now < after(began, self.start_period)
    }

    /// Everything that is wrong with it; nothing, when a pod can be asked so.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Unfit> {
        let Self { probe, interval, timeout, retries, start_period } = self;
        let mut found = Vec::new();
        let mut wrong = |field: &str, problem: String, hint: String| {
            found.push(Unfit { field: format!("health.{field}"), problem, hint });
        };
        let port = match probe {
            Probe::Http { port, path } => {
                if !path.starts_with('/') || path.len() > PATH_MAX || !path.chars().all(|c| c.is_ascii_graphic()) {
                    let problem = format!("{} is no path of a page", shown(path));
                    wrong("http.path", problem, "write one that begins with /, such as /healthz".to_owned());
                }
                Some(("http.port", *port))
            }
            Probe::Tcp { port } => Some(("tcp.port", *port)),
            Probe::Exec { command } => {
                if let Err(Error::InvalidInput { problem, hint, .. }) = check_command("exec.command", command) {
                    wrong("exec.command", problem, hint);
                }
                None
            }
        };
        if let Some((field, 0)) = port {
            wrong(field, "0 is not a port".to_owned(), "use 1 to 65535".to_owned());
        }
        for (field, value, least, most) in [
            ("interval", *interval, 1, INTERVAL_MAX),
            ("timeout", *timeout, 1, TIMEOUT_MAX),
            ("retries", *retries, 1, RETRIES_MAX),
            ("startPeriod", *start_period, 0, START_PERIOD_MAX),
        ] {
            if !(least..=most).contains(&value) {
                let seconds = if field == "retries" { "" } else { " seconds" };
                wrong(field, format!("{value}{seconds} is out of range"), format!("use {least} to {most}{seconds}"));
            }
        }
        if timeout > interval {
            let problem = format!("{timeout} seconds is longer than the interval of {interval}");
            wrong("timeout", problem, "make it at most the interval, so that questions do not overlap".to_owned());
        }
        found
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the first field below `health`.
    pub fn validate(&self) -> Result<(), Error> {
        match self.mistakes().into_iter().next() {
            Some(Unfit { field, problem, hint }) => Err(Error::invalid(field, problem, hint)),
            None => Ok(()),
        }
    }
}

/// The words of somebody else, as they are recorded: one line, bounded.
#[must_use]
pub fn told(problem: &str) -> String {
    let line = problem.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(PROBLEM_MAX).collect()
}

fn after(at: Timestamp, seconds: u32) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn check() -> HealthCheck {
        HealthCheck { start_period: 20, ..HealthCheck::of(Probe::Tcp { port: 80 }) }
    }

    fn bad() -> Answer {
        Answer::Bad("refused".to_owned())
    }

    #[test]
    fn failures_count_in_a_row_and_after_the_start_only() {
        let (check, mut tally) = (check(), Tally::default());
        let mut count = |second, answer| tally.count(&check, (at(0), at(second)), answer);
        for second in [0, 5, 10, 15, 19] {
            assert_eq!(count(second, bad()), None, "it still starts");
        }
        assert_eq!(count(20, bad()), None);
        assert_eq!(count(50, bad()), None);
        assert_eq!(count(80, Answer::Good), Some(Found::Works));
        assert_eq!(count(110, bad()), None, "counted from the beginning");
        assert_eq!(count(140, bad()), None);
        assert_eq!(count(170, bad()), Some(Found::Fails("refused".to_owned())));
        assert_eq!(count(200, bad()), Some(Found::Fails("refused".to_owned())), "and it goes on failing");
    }

    #[test]
    fn whoever_answered_has_started() {
        let (check, mut tally) = (HealthCheck { retries: 1, ..check() }, Tally::default());
        assert_eq!(tally.next(&check, (at(0), at(1))), at(6), "asked often while it starts");
        assert_eq!(tally.count(&check, (at(0), at(1)), Answer::Good), Some(Found::Works));
        assert_eq!(tally.next(&check, (at(0), at(1))), at(31));
        assert_eq!(tally.count(&check, (at(0), at(2)), bad()), Some(Found::Fails("refused".to_owned())));
    }

    #[test]
    fn what_cannot_be_asked_never_counts() {
        let (check, mut tally) = (HealthCheck { start_period: 0, retries: 2, ..check() }, Tally::default());
        let unasked = || Answer::Unasked("elsewhere".to_owned());
        for second in 0..10 {
            let mut count = |answer| tally.count(&check, (at(0), at(second)), answer);
            assert_eq!(count(bad()), None);
            assert_eq!(count(unasked()), Some(Found::Unknown("elsewhere".to_owned())));
        }
    }

    #[test]
    fn bad_checks_are_named() {
        let field = |check: HealthCheck| check.mistakes().into_iter().map(|unfit| unfit.field).collect::<Vec<_>>();
        assert_eq!(check().validate(), Ok(()));
        let exec = |words: &[&str]| Probe::Exec { command: words.iter().map(|w| (*w).to_owned()).collect() };
        let of = HealthCheck::of;
        assert_eq!(field(of(Probe::Tcp { port: 0 })), ["health.tcp.port"]);
        for path in ["", "x", "/a b", "/a\r\nHost: x", "/é"] {
            assert_eq!(field(of(Probe::Http { port: 0, path: path.into() })), ["health.http.path", "health.http.port"]);
        }
        assert_eq!(field(of(exec(&[]))), ["health.exec.command"]);
        assert_eq!(field(of(exec(&["a\0"]))), ["health.exec.command"]);
        assert_eq!(field(HealthCheck { timeout: 31, ..check() }), ["health.timeout"]);
        assert_eq!(field(HealthCheck { timeout: 61, interval: 100, ..check() }), ["health.timeout"]);
        assert_eq!(field(HealthCheck { retries: 0, ..check() }), ["health.retries"]);
        assert!(
            matches!(of(exec(&[])).validate(), Err(Error::InvalidInput { field, .. }) if field == "health.exec.command")
        );
    }

    #[test]
    fn words_of_others_are_one_short_line() {
        assert_eq!(told(" a\n\tb\u{7} "), "a b");
        assert_eq!(told(&"x".repeat(1000)).len(), PROBLEM_MAX);
    }
}
