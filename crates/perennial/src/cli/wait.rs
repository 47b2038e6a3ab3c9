//! Waiting for an operation: a live line on a terminal, plain lines elsewhere, and never the impression that ending
//! the wait ends the work.

use std::pin::pin;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::args::WaitArgs;
use super::client::Client;
use super::failure::{Exit, Failure};
use super::out::{Out, clean};
use super::session::Context;
use super::view;
use crate::api::wire::{Operation, OperationState};

/// Waits until the operation ends, unless it was asked not to wait; `what` names it, such as `stop of dev`.
///
/// # Errors
/// When the time is over, on Ctrl-C, and when the server stays away. That the operation itself failed is no error here:
/// [`outcome`] tells.
pub async fn wait(
    context: &mut Context<'_>,
    mut operation: Operation,
    args: WaitArgs,
    what: &str,
) -> Result<Operation, Failure> {
    if args.no_wait {
        return Ok(operation);
    }
    // Far enough away to be never.
    let deadline = Instant::now() + args.timeout.unwrap_or(Duration::from_secs(366 * 86_400));
    let mut interrupt = pin!(context.session.interrupt.wait());
    let mut line = Line::new(context.out, what);
    let mut broken = 0;
    loop {
        line.show(&operation, context.out);
        if operation.state.is_terminal() {
            return Ok(operation);
        }
        let question = ask(&context.client, &operation.id, context.session.pause);
        let answer = tokio::select! {
            biased;
            () = &mut interrupt => return Err(interrupted(&operation, what)),
            answer = tokio::time::timeout_at(deadline, question) => answer,
        };
        match answer {
            Err(_) => return Err(timed_out(&operation, what)),
            Ok(Ok(newer)) => {
                broken = 0;
                operation = newer;
            }
            Ok(Err(failure)) if failure.exit == Exit::Unavailable && broken < context.session.tries => {
                if broken == 0 {
                    line.note(&format!("{}; trying again", failure.message), context.out);
                }
                broken += 1;
            }
            Ok(Err(failure)) => return Err(goes_on(failure, &operation)),
        }
    }
}

/// Asks once; pauses when the answer came sooner than was asked for and the operation has not ended.
async fn ask(client: &Client, id: &str, pause: Duration) -> Result<Operation, Failure> {
    let next = Instant::now() + pause;
    let answer: Result<Operation, Failure> = client.get(&["operations", id], &[("wait", "1s")]).await;
    if !answer.as_ref().is_ok_and(|operation| operation.state.is_terminal()) {
        tokio::time::sleep_until(next).await;
    }
    answer
}

/// Turns an operation that ended badly into a failure.
///
/// # Errors
/// That failure.
pub fn outcome(operation: &Operation, what: &str) -> Result<(), Failure> {
    let error = operation.error.as_ref();
    let detail = error.map(|error| error.detail.as_str()).filter(|detail| !detail.is_empty());
    let hint = error.and_then(|error| error.hint.clone()).unwrap_or_default();
    let failed = |message: String, hint: String| {
        Err(Failure { problem: operation.error.clone().map(Box::new), ..Failure::new(Exit::Failed, message, hint) })
    };
    match operation.state {
        OperationState::Failed => failed(
            format!("{what} failed: {}", detail.unwrap_or("the server does not say why")),
            if hint.is_empty() { format!("perennial op show {}", operation.id) } else { hint },
        ),
        OperationState::Cancelled => failed(
            match detail {
                Some(detail) => format!("{what} was cancelled: {detail}"),
                None => format!("{what} was cancelled"),
            },
            hint,
        ),
        OperationState::Pending | OperationState::Running | OperationState::Succeeded => Ok(()),
    }
}

fn follow(operation: &Operation) -> String {
    format!("follow it: perennial op wait {0}; cancel it: perennial op cancel {0}", operation.id)
}

fn interrupted(operation: &Operation, what: &str) -> Failure {
    let message = format!("interrupted: {what} goes on (operation {})", operation.id);
    Failure::new(Exit::Interrupted, message, follow(operation))
}

fn timed_out(operation: &Operation, what: &str) -> Failure {
    let step = view::step(operation).unwrap_or_else(|| operation.state.to_string());
    let message = format!("the time is over: {what} goes on (operation {}, {step})", operation.id);
    Failure::new(Exit::Timeout, message, follow(operation))
}

fn goes_on(mut failure: Failure, operation: &Operation) -> Failure {
    failure.message = format!("{}\noperation {} goes on when the server runs", failure.message, operation.id);
    failure.hint = match failure.hint.as_str() {
        "" => follow(operation),
        hint => format!("{hint}\n{}", follow(operation)),
    };
    failure
}

/// Where progress is shown.
enum Line {
    /// One line that is drawn again and again.
    Live { bar: ProgressBar, what: String },
    /// A line for every step.
    Plain { step: String, trouble: String },
}

impl Line {
    fn new(out: &Out, what: &str) -> Self {
        if !out.is_live() {
            return Self::Plain { step: String::new(), trouble: String::new() };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::Live { bar, what: what.to_owned() }
    }

    fn show(&mut self, operation: &Operation, out: &mut Out) {
        let failure = operation.error.as_ref().filter(|_| !operation.state.is_terminal());
        let failure = failure.map(|error| clean(&error.detail)).unwrap_or_default();
        match self {
            Self::Live { bar, what } => {
                let mut text = format!("{what}: {}", view::step(operation).unwrap_or("waiting its turn".to_owned()));
                if !failure.is_empty() {
                    text = format!("{text} (trying again: {failure})");
                }
                bar.set_message(text);
            }
            Self::Plain { step, trouble } => {
                if !operation.progress.step.is_empty() && *step != operation.progress.step {
                    step.clone_from(&operation.progress.step);
                    out.note(&format!("step {}", clean(step)));
                }
                if *trouble != failure {
                    if !failure.is_empty() {
                        out.note(&format!("trying again: {failure}"));
                    }
                    *trouble = failure;
                }
            }
        }
    }

    fn note(&self, text: &str, out: &mut Out) {
        match self {
            Self::Live { bar, .. } => bar.suspend(|| out.note(text)),
            Self::Plain { .. } => out.note(text),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Self::Live { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}
