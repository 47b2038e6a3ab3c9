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

/// A finding that nothing was done about for so long is no reason to end a run any more: it may have got well.
const FRESH: SignedDuration = SignedDuration::from_mins(5);
/// Shortest time between two health checks, in seconds: more often costs more than it tells.
const INTERVAL_MIN: u32 = 5;
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
const STARTING_EVERY: u32 = INTERVAL_MIN;

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
    /// It could not be asked this time, and why; the next time it may.
    Failed(String),
}

/// What was found out about a pod: recorded when it changes, so that it outlasts the server that found it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What.
    pub verdict: Verdict,
    /// The run it was found out about last.
    pub run: WriterStamp,
    /// When it was found out about that run.
    pub found_at: Timestamp,
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
    pub fn is_news(known: Option<&Self>, run: &WriterStamp, found: &Found, now: Timestamp) -> bool {
        let verdict = known.map(|health| health.verdict);
        match found {
            Found::Works => verdict != Some(Verdict::Healthy),
            // Of several servers one may reach it and another not: who reaches it knows more. What is known to be ill stays so.
            Found::Unknown(_) => match known {
                None => true,
                Some(health) => health.verdict == Verdict::Healthy && health.run != *run,
            },
            // Each run that does not answer is dealt with once, or once more where nothing was done about it.
            Found::Fails(_) => !known.is_some_and(|health| {
                health.run == *run && (health.verdict == Verdict::GivenUp || health.ends(run, now))
            }),
        }
    }

    /// Whether this run was found ill and has to end, so that another begins.
    #[must_use]
    pub fn ends(&self, run: &WriterStamp, now: Timestamp) -> bool {
        self.condemned(run) && now.duration_since(self.found_at).abs() < FRESH
    }

    /// Whether it was found that this run has to end, whenever that was.
    #[must_use]
    pub fn condemned(&self, run: &WriterStamp) -> bool {
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
    /// Good ones in a row.
    successes: u32,
    /// Questions in a row that could not be put.
    unput: u32,
    /// Whether this run ever gave a good one.
    answered: bool,
    /// How long this run has gone on, as far as it was seen to: a clock that jumps ends no start period.
    lived: SignedDuration,
    /// When it was seen to go on last.
    seen: Option<Timestamp>,
}

impl Tally {
    /// Notes that a run which began at `began` goes on now.
    pub fn see(&mut self, check: &HealthCheck, (began, now): (Timestamp, Timestamp)) {
        let most = SignedDuration::from_secs(i64::from(STARTING_EVERY.saturating_add(check.timeout)));
        let passed = match self.seen {
            None => now.duration_since(began),
            Some(seen) => now.duration_since(seen).min(most),
        };
        self.lived = self.lived.saturating_add(passed.max(SignedDuration::ZERO));
        self.seen = Some(now);
    }

    /// Counts an answer of a run that was seen just now; `None`: nothing is found out by it. One that is known to be ill is well
    /// only after as many good answers in a row as it takes bad ones to be ill.
    pub fn count(&mut self, check: &HealthCheck, is_ill: bool, answer: Answer) -> Option<Found> {
        self.unput = if matches!(answer, Answer::Failed(_)) { self.unput.saturating_add(1) } else { 0 };
        match answer {
            Answer::Good => {
                (self.failures, self.successes, self.answered) = (0, self.successes.saturating_add(1), true);
                (!is_ill || self.successes >= check.retries).then_some(Found::Works)
            }
            Answer::Unasked(why) => {
                self.interrupted();
                Some(Found::Unknown(why))
            }
            Answer::Failed(why) => {
                self.interrupted();
                (self.unput >= check.retries).then_some(Found::Unknown(why))
            }
            // Whoever answered once has started.
            Answer::Bad(_) if self.is_starting(check) => None,
            Answer::Bad(why) => {
                (self.failures, self.successes) = (self.failures.saturating_add(1), 0);
                (self.failures >= check.retries).then_some(Found::Fails(why))
            }
        }
    }

    /// Whether a failure means nothing yet.
    fn is_starting(&self, check: &HealthCheck) -> bool {
        !self.answered && self.lived < SignedDuration::from_secs(check.start_period.into())
    }

    /// Forgets how answers followed each other: somebody else asked meanwhile, or nobody did.
    pub fn interrupted(&mut self) {
        (self.failures, self.successes) = (0, 0);
    }

    /// When the pod is asked again that was asked now.
    #[must_use]
    pub fn next(&self, check: &HealthCheck, now: Timestamp) -> Timestamp {
        let seconds = if self.is_starting(check) { check.interval.min(STARTING_EVERY) } else { check.interval };
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

    /// Whether a pod is to be asked that was to be asked at `due`: also when that is further away than it can be, because the clock
    /// was set back.
    #[must_use]
    pub fn is_due(&self, due: Timestamp, now: Timestamp) -> bool {
        due <= now || due > after(now, self.interval)
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
            ("interval", *interval, INTERVAL_MIN, INTERVAL_MAX),
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

    /// Answers of a run that began at second 0, asked at these seconds.
    struct Asked(HealthCheck, Tally);

    impl Asked {
        fn count(&mut self, second: i64, is_ill: bool, answer: Answer) -> Option<Found> {
            self.1.see(&self.0, (at(0), at(second)));
            self.1.count(&self.0, is_ill, answer)
        }
    }

    fn fails() -> Option<Found> {
        Some(Found::Fails("refused".to_owned()))
    }

    #[test]
    fn failures_count_in_a_row_and_after_the_start_only() {
        let mut asked = Asked(check(), Tally::default());
        for second in [0, 5, 10, 15, 19] {
            assert_eq!(asked.count(second, false, bad()), None, "it still starts");
        }
        assert_eq!(asked.count(20, false, bad()), None);
        assert_eq!(asked.count(50, false, bad()), None);
        assert_eq!(asked.count(80, false, Answer::Good), Some(Found::Works));
        assert_eq!(asked.count(110, false, bad()), None, "counted from the beginning");
        assert_eq!(asked.count(140, false, bad()), None);
        assert_eq!(asked.count(170, false, bad()), fails());
        assert_eq!(asked.count(200, true, bad()), fails(), "and it goes on failing");
    }

    #[test]
    fn one_that_was_ill_is_well_after_as_many_good_answers_as_bad_ones_made_it_ill() {
        let mut asked = Asked(check(), Tally::default());
        assert_eq!(asked.count(60, true, Answer::Good), None);
        assert_eq!(asked.count(90, true, Answer::Good), None);
        assert_eq!(asked.count(120, true, bad()), None, "in a row");
        assert_eq!(asked.count(150, true, Answer::Good), None);
        assert_eq!(asked.count(180, true, Answer::Good), None);
        assert_eq!(asked.count(210, true, Answer::Good), Some(Found::Works));
        assert_eq!(asked.count(240, false, Answer::Good), Some(Found::Works));
    }

    #[test]
    fn whoever_answered_has_started() {
        let mut asked = Asked(HealthCheck { retries: 1, ..check() }, Tally::default());
        assert_eq!(asked.1.next(&asked.0, at(1)), at(6), "asked often while it starts");
        assert_eq!(asked.count(1, false, Answer::Good), Some(Found::Works));
        assert_eq!(asked.1.next(&asked.0, at(1)), at(31));
        assert_eq!(asked.count(2, false, bad()), fails());
    }

    #[test]
    fn a_clock_that_is_set_ends_no_start_and_keeps_nobody_from_being_asked() {
        let mut asked = Asked(HealthCheck { retries: 1, start_period: 60, ..check() }, Tally::default());
        assert_eq!(asked.count(5, false, bad()), None);
        assert_eq!(asked.count(100_000, false, bad()), None, "forward");
        assert_eq!(asked.count(-100_000, false, bad()), None, "and back");
        for second in [-99_990, -99_980, -99_970] {
            assert_eq!(asked.count(second, false, bad()), None);
        }
        assert_eq!(asked.count(-99_960, false, bad()), fails(), "a minute is over all the same");
        let check = check();
        assert!(check.is_due(at(10), at(10)) && !check.is_due(at(11), at(10)) && !check.is_due(at(40), at(10)));
        assert!(check.is_due(at(41), at(10)), "the clock was set back");
    }

    #[test]
    fn what_cannot_be_asked_never_counts() {
        let mut asked = Asked(HealthCheck { start_period: 0, retries: 2, ..check() }, Tally::default());
        let unasked = || Answer::Unasked("elsewhere".to_owned());
        let failed = || Answer::Failed("no route".to_owned());
        for second in 0..10 {
            assert_eq!(asked.count(second, false, bad()), None);
            assert_eq!(asked.count(second, false, unasked()), Some(Found::Unknown("elsewhere".to_owned())));
            assert_eq!(asked.count(second, false, bad()), None);
            assert_eq!(asked.count(second, false, failed()), None, "once may be chance");
        }
        assert_eq!(asked.count(10, false, failed()), Some(Found::Unknown("no route".to_owned())));
    }

    #[test]
    fn what_was_found_is_news_once_and_ends_a_run_only_while_it_is_fresh() {
        let run = |container: &str| WriterStamp { container: container.to_owned(), started_at: None };
        let known = |verdict| Health { verdict, run: run("a"), found_at: at(1000), since: at(0), problem: None };
        let is_news = |verdict, of: &str, found: &Found, second| {
            Health::is_news(Some(&known(verdict)), &run(of), found, at(second))
        };
        let (works, unknown, fails) = (Found::Works, Found::Unknown(String::new()), Found::Fails(String::new()));
        assert!([&works, &unknown, &fails].iter().all(|found| Health::is_news(None, &run("a"), found, at(0))));
        assert!(!is_news(Verdict::Healthy, "a", &works, 1001) && is_news(Verdict::Unhealthy, "a", &works, 1001));
        for verdict in [Verdict::Unasked, Verdict::Unhealthy, Verdict::GivenUp] {
            assert!(!is_news(verdict, "a", &unknown, 1001) && !is_news(verdict, "b", &unknown, 1001), "{verdict:?}");
        }
        assert!(!is_news(Verdict::Healthy, "a", &unknown, 1001), "another server reaches it");
        assert!(is_news(Verdict::Healthy, "b", &unknown, 1001));
        assert!(is_news(Verdict::Healthy, "a", &fails, 1001));
        for (second, fresh) in [(1000, true), (1299, true), (1300, false), (701, true), (700, false)] {
            assert_eq!(known(Verdict::Unhealthy).ends(&run("a"), at(second)), fresh, "{second}");
            assert_eq!(is_news(Verdict::Unhealthy, "a", &fails, second), !fresh, "{second}");
            assert!(is_news(Verdict::Unhealthy, "b", &fails, second));
            assert!(!known(Verdict::Unhealthy).ends(&run("b"), at(second)));
            assert!(!known(Verdict::GivenUp).ends(&run("a"), at(second)));
            assert!(!is_news(Verdict::GivenUp, "a", &fails, second));
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
        assert_eq!(field(HealthCheck { interval: 4, timeout: 4, ..check() }), ["health.interval"]);
        assert_eq!(field(HealthCheck { interval: 5, timeout: 5, ..check() }), [""; 0]);
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
