//! The layer that adds requests which were refused to the audit, and no more of them than somebody could read.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use perennial_core::access::Reach;
use perennial_core::spec::TenantId;

use super::auth::Caller;
use super::problem::ApiError;
use crate::audit::{Refusal, Row, request};
use crate::service::App;

/// Refusals of one user that are written within [`WINDOW`], beside the first for each reason: the audit is never shortened, so nobody may
/// fill it at will, and nobody may hide what they try next behind what they tried before.
const MOST: u32 = 60;
/// How long they are counted together.
const WINDOW: Duration = Duration::from_secs(60);

/// What the layer works with.
#[derive(Clone)]
pub struct Audited {
    app: App,
    meter: Arc<Mutex<Meter>>,
}

impl Audited {
    pub fn new(app: App) -> Self {
        Self { app, meter: Arc::default() }
    }
}

/// How many refusals each user met lately.
#[derive(Debug, Default)]
struct Meter(HashMap<String, Window>);

#[derive(Debug)]
struct Window {
    began: Instant,
    count: u32,
    left_out: u32,
    /// Methods and codes of those that are written.
    seen: HashSet<(Method, String)>,
}

/// What is written of one more refusal.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    /// It is, behind a word of how many were not in the window before.
    Whole { left_out: u32 },
    /// That there are more than are written.
    Omission,
    /// Nothing.
    Nothing,
}

impl Meter {
    fn count(&mut self, owner: &str, what: (Method, String), now: Instant) -> Written {
        let is_over = |window: &Window| now.duration_since(window.began) >= WINDOW;
        // Those that left nothing out say nothing any more.
        self.0.retain(|of, window| of == owner || window.left_out > 0 || !is_over(window));
        let before = self.0.remove(owner);
        let left_out = before.as_ref().filter(|window| is_over(window)).map_or(0, |window| window.left_out);
        let fresh = || Window { began: now, count: 0, left_out: 0, seen: HashSet::new() };
        let mut window = before.filter(|window| !is_over(window)).unwrap_or_else(fresh);
        window.count = window.count.saturating_add(1);
        let is_new = window.seen.insert(what);
        let written = if window.count <= MOST || is_new {
            Written::Whole { left_out }
        } else {
            window.left_out = window.left_out.saturating_add(1);
            if window.left_out == 1 { Written::Omission } else { Written::Nothing }
        };
        self.0.insert(owner.to_owned(), window);
        written
    }
}

/// Adds what somebody asked to be changed and was refused, for want of rights too. Who has no token is nobody: `auth` says in the
/// answer who asked.
pub async fn audit(State(audited): State<Audited>, request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let (caller, error) = (response.extensions().get::<Caller>(), response.extensions().get::<ApiError>());
    if let (true, Some(caller), Some(error)) = (changes, caller, error) {
        let rows = rows(&audited.meter, caller, error, (method, &path));
        if !rows.is_empty() {
            let app = audited.app;
            let write = async move {
                if let Err(error) = app.store.audit_refused(app.clock.now(), rows).await {
                    tracing::error!(%error, "add a refused request to the audit");
                }
            };
            // Also when whoever asked hangs up meanwhile.
            if let Err(error) = tokio::spawn(write).await {
                tracing::error!(%error, "add a refused request to the audit");
            }
        }
    }
    response
}

fn rows(meter: &Mutex<Meter>, Caller(caller): &Caller, error: &ApiError, (method, path): (Method, &str)) -> Vec<Row> {
    let tenant = match &caller.rights.reach {
        Reach::Only(tenants) if tenants.len() == 1 => tenants.first().map(TenantId::as_str),
        Reach::Only(_) | Reach::All => None,
    };
    let actor = caller.actor.as_str();
    // A user with many tokens is one, and what is left out was asked for with any of them.
    let owner = caller.owner();
    let note = |message: String| Row {
        actor: caller.user.as_ref().map_or_else(|| actor.to_owned(), |user| format!("user:{user}")),
        tenant: tenant.map(str::to_owned),
        request: request(),
        action: "refusals.left-out".to_owned(),
        message,
        result: "refused".to_owned(),
        code: Some("too-many-refusals".to_owned()),
        ..Row::default()
    };
    let what = (method.clone(), error.code().to_owned());
    let written = meter.lock().unwrap_or_else(PoisonError::into_inner).count(&owner, what, Instant::now());
    match written {
        Written::Whole { left_out } => {
            let refusal =
                Refusal { actor, tenant, method: method.as_str(), path, status: error.status(), code: error.code() };
            let before =
                (left_out > 0).then(|| note(format!("{left_out} requests before this were refused and are not here")));
            before.into_iter().chain([refusal.row()]).collect()
        }
        Written::Omission => {
            let seconds = WINDOW.as_secs();
            vec![note(format!(
                "more than {MOST} requests were refused within {seconds} seconds; those that follow are not here"
            ))]
        }
        Written::Nothing => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_beyond_the_most_are_counted_and_not_written() {
        let mut meter = Meter::default();
        let began = Instant::now();
        let what = |code: &str| (Method::POST, code.to_owned());
        let mut count =
            |owner: &str, code: &str, after: u64| meter.count(owner, what(code), began + Duration::from_secs(after));
        let whole = |left_out| Written::Whole { left_out };
        for _ in 0..MOST {
            assert_eq!(count("user:ann", "invalid-input", 1), whole(0));
        }
        assert_eq!(count("user:ann", "invalid-input", 2), Written::Omission);
        assert_eq!(count("user:ann", "invalid-input", 3), Written::Nothing);
        assert_eq!(count("user:ann", "forbidden", 3), whole(0), "what is new is not hidden behind it");
        assert_eq!(count("user:ann", "forbidden", 60), Written::Nothing);
        assert_eq!(count("user:bob", "forbidden", 60), whole(0), "another one's do not count");
        assert_eq!(count("user:ann", "invalid-input", 61), whole(3));
        assert_eq!(count("user:ann", "invalid-input", 61), whole(0));
        assert_eq!(count("user:bob", "forbidden", 200), whole(0));
        assert_eq!(meter.0.len(), 1, "what says nothing any more is forgotten");
    }
}
