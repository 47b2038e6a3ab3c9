//! Every failure of the command line: a message, a hint and an exit code.

use std::process::ExitCode;

use crate::api::wire::Problem;

/// What the exit code says. Scripts rely on the numbers: they are listed in `perennial --help` and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; also when whoever read our output went away.
    Done,
    /// The operation failed, something `doctor` looked at is broken, or an internal error.
    Failed,
    /// Wrong usage, or a confirmation is missing.
    Usage,
    /// Not found.
    NotFound,
    /// Conflict with the present state.
    Conflict,
    /// Not allowed, or no valid token.
    Forbidden,
    /// A value was refused.
    Invalid,
    /// A quota is reached.
    Quota,
    /// The server, or something it needs, does not answer.
    Unavailable,
    /// The time to wait is over.
    Timeout,
    /// Interrupted by the person.
    Interrupted,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Forbidden => 5,
            Self::Invalid => 6,
            Self::Quota => 7,
            Self::Unavailable => 8,
            Self::Timeout => 9,
            Self::Interrupted => 130,
        }
    }

    /// The HTTP status, the code and the title of a failure that no server told.
    const fn as_problem(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Done | Self::Failed => (500, "failed", "Failed"),
            Self::Usage => (400, "usage", "Wrong usage"),
            Self::NotFound => (404, "not-found", "Not found"),
            Self::Conflict => (409, "conflict", "Conflict"),
            Self::Forbidden => (403, "forbidden", "Not allowed"),
            Self::Invalid => (422, "invalid-input", "Invalid value"),
            Self::Quota => (429, "quota-exceeded", "Quota reached"),
            Self::Unavailable => (503, "unavailable", "No answer"),
            Self::Timeout => (504, "timeout", "The time is over"),
            Self::Interrupted => (499, "interrupted", "Interrupted"),
        }
    }

    /// What an answer of the API means: by its code where it is more exact than the HTTP status.
    #[must_use]
    pub fn of_problem(problem: &Problem) -> Self {
        if problem.code.starts_with("quota") {
            return Self::Quota;
        }
        match problem.status {
            401 | 403 => Self::Forbidden,
            404 | 410 => Self::NotFound,
            409 | 412 => Self::Conflict,
            400 | 405 | 406 | 411 | 413..=418 | 422 | 428 | 431 => Self::Invalid,
            402 | 429 => Self::Quota,
            408 | 502..=504 => Self::Unavailable,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A failure as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process answers.
    pub exit: Exit,
    /// What happened; empty when nothing is to be said.
    pub message: String,
    /// How to go on; empty when there is nothing to advise.
    pub hint: String,
    /// The request's id in the server's log; empty when no server was involved or there is nothing in its log.
    pub request: String,
    /// What the server said; `None` when it was not the server that refused.
    pub problem: Option<Box<Problem>>,
}

impl Failure {
    /// A failure with an exit code of its own.
    pub fn new(exit: Exit, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: hint.into(), request: String::new(), problem: None }
    }

    /// Something that was typed cannot be done.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message, hint)
    }

    /// A defect, or a broken environment of the client.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message, "")
    }

    /// Nobody reads our output any more: there is nobody to tell, and nothing failed.
    #[must_use]
    pub const fn broken_pipe() -> Self {
        Self { exit: Exit::Done, message: String::new(), hint: String::new(), request: String::new(), problem: None }
    }

    /// The failure as the API says failures: the server's own words, or what it would say.
    #[must_use]
    pub fn to_problem(&self) -> Problem {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        if let Some(problem) = &self.problem {
            let problem = (**problem).clone();
            let is_all = Self::from(problem.clone()).message == self.message;
            // What the command line knows beyond them, such as what goes on all the same.
            let detail = if is_all { problem.detail.clone() } else { self.message.clone() };
            return Problem { detail, hint: some(&self.hint), ..problem };
        }
        let (status, code, title) = self.exit.as_problem();
        Problem {
            kind: format!("urn:perennial:problem:{code}"),
            title: title.to_owned(),
            status,
            code: code.to_owned(),
            detail: self.message.clone(),
            field: None,
            hint: some(&self.hint),
            mistakes: Vec::new(),
            request_id: some(&self.request),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let exit = Exit::of_problem(&problem);
        let whole = Box::new(problem.clone());
        let mut message = if problem.detail.is_empty() { problem.title } else { problem.detail };
        if let Some(field) = &problem.field
            && !message.starts_with(field.as_str())
        {
            message = format!("{field}: {message}");
        }
        for mistake in &problem.mistakes {
            let place = mistake.line.zip(mistake.column).map(|(line, column)| format!("{line}:{column}: "));
            let field = mistake.field.as_ref().map(|field| format!("{field}: "));
            let parts = [place.unwrap_or_default(), field.unwrap_or_default(), mistake.problem.clone()];
            message = format!("{message}\n  {}", parts.concat());
        }
        // A person needs the id only to find what the server would not say.
        let request = if exit == Exit::Failed { problem.request_id.unwrap_or_default() } else { String::new() };
        let mut hint = problem.hint.unwrap_or_default();
        if hint.is_empty() && problem.status == 401 {
            "pass a valid token with --token-file FILE or PERENNIAL_TOKEN".clone_into(&mut hint);
        }
        Self { exit, message, hint, request, problem: Some(whole) }
    }
}
