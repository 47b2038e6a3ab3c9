//! Who may ask for what: the one table of routes and what each of them takes (law 10).
//!
//! A route without a row is never reached, and a server whose rows and routes are not the same does not start. A row decides
//! before anything is looked up, so that what it refuses says nothing of what there is. Whose an object is is decided where it is
//! read: `service` finds nothing that the caller may not know of.

use axum::http::{Method, StatusCode};
use perennial_core::access::{Rights, Scope};
use utoipa::openapi::OpenApi;

use super::problem::ApiError;

/// What a route is about, and so who may ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Nobody's: it answers without a token.
    Open,
    /// Of whoever asks: their own, and lists of what they may see. Any scope will do where none is named.
    Own(Option<Scope>),
    /// A tenant's: it exists for who may see that tenant, and answers everybody else as if it did not.
    Tenant(Scope),
    /// The installation's: for administrators with a token that has their scope and is not confined to a tenant.
    Platform,
}

use Scope::{Operate, Read};
use Whose::{Open, Own, Platform, Tenant};

/// A method of a path.
type Row = (Method, &'static str, Whose);

const ROWS: &[Row] = &[
    (Method::GET, "/healthz", Open),
    (Method::GET, "/readyz", Open),
    (Method::GET, "/docs", Own(None)),
    (Method::GET, "/openapi.json", Own(None)),
    (Method::POST, "/api/v1/pods", Tenant(Operate)),
    (Method::GET, "/api/v1/pods", Own(Some(Read))),
    (Method::GET, "/api/v1/pods/{id}", Tenant(Read)),
    (Method::PATCH, "/api/v1/pods/{id}", Tenant(Operate)),
    (Method::DELETE, "/api/v1/pods/{id}", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/start", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/stop", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/pause", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/restart", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/reset", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/restore", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/clone", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/archive", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/undelete", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/purge", Tenant(Operate)),
    (Method::GET, "/api/v1/pods/{id}/status", Tenant(Read)),
    (Method::GET, "/api/v1/pods/{id}/secrets", Tenant(Operate)),
    (Method::GET, "/api/v1/pods/{id}/volumes", Tenant(Read)),
    (Method::GET, "/api/v1/pods/{id}/logs", Tenant(Read)),
    (Method::GET, "/api/v1/pods/{id}/events", Tenant(Read)),
    (Method::GET, "/api/v1/pods/{id}/operations", Tenant(Read)),
    (Method::GET, "/api/v1/pods/{id}/snapshots", Tenant(Read)),
    (Method::POST, "/api/v1/pods/{id}/snapshots", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/snapshots/forget", Tenant(Operate)),
    (Method::POST, "/api/v1/pods/{id}/snapshots/import", Tenant(Operate)),
    (Method::GET, "/api/v1/pods/{id}/files/versions", Tenant(Read)),
    (Method::GET, "/api/v1/snapshots", Own(Some(Read))),
    (Method::GET, "/api/v1/snapshots/{id}", Tenant(Read)),
    (Method::DELETE, "/api/v1/snapshots/{id}", Tenant(Operate)),
    (Method::POST, "/api/v1/snapshots/{id}/drill", Tenant(Operate)),
    (Method::GET, "/api/v1/snapshots/{id}/files", Tenant(Read)),
    (Method::GET, "/api/v1/snapshots/{id}/files/content", Tenant(Read)),
    (Method::GET, "/api/v1/snapshots/{id}/archive", Tenant(Read)),
    (Method::GET, "/api/v1/snapshots/{id}/diff", Tenant(Read)),
    (Method::GET, "/api/v1/snapshots/{id}/diff/live", Tenant(Read)),
    (Method::GET, "/api/v1/operations/{id}", Tenant(Read)),
    (Method::POST, "/api/v1/operations/{id}/cancel", Tenant(Operate)),
    (Method::GET, "/api/v1/events", Own(Some(Read))),
    (Method::GET, "/api/v1/events/stream", Own(Some(Read))),
    (Method::POST, "/api/v1/sessions", Open),
    (Method::DELETE, "/api/v1/sessions", Own(None)),
    (Method::GET, "/api/v1/sessions/oidc", Open),
    (Method::GET, "/api/v1/sessions/oidc/callback", Open),
    (Method::GET, "/api/v1/me", Own(None)),
    (Method::GET, "/api/v1/tokens", Own(Some(Read))),
    (Method::POST, "/api/v1/tokens", Own(Some(Operate))),
    (Method::DELETE, "/api/v1/tokens/{id}", Own(Some(Operate))),
    (Method::GET, "/api/v1/tenants", Own(Some(Read))),
    (Method::POST, "/api/v1/tenants", Platform),
    (Method::GET, "/api/v1/tenants/{id}", Tenant(Read)),
    (Method::PATCH, "/api/v1/tenants/{id}", Platform),
    (Method::PUT, "/api/v1/tenants/{id}/members/{user}", Platform),
    (Method::DELETE, "/api/v1/tenants/{id}/members/{user}", Platform),
    (Method::POST, "/api/v1/tenants/{id}/erase", Platform),
    (Method::GET, "/api/v1/tenants/{id}/erasure", Platform),
    (Method::GET, "/api/v1/services", Own(Some(Read))),
    (Method::GET, "/api/v1/services/{id}", Own(Some(Read))),
    (Method::PUT, "/api/v1/services/{id}", Platform),
    (Method::DELETE, "/api/v1/services/{id}", Platform),
    (Method::POST, "/api/v1/subscriptions", Tenant(Operate)),
    (Method::GET, "/api/v1/subscriptions", Own(Some(Read))),
    (Method::GET, "/api/v1/subscriptions/{id}", Tenant(Read)),
    (Method::POST, "/api/v1/subscriptions/{id}/cancel", Tenant(Operate)),
    (Method::POST, "/api/v1/subscriptions/{id}/expire", Platform),
    (Method::POST, "/api/v1/subscriptions/{id}/renew", Tenant(Operate)),
    (Method::POST, "/api/v1/subscriptions/{id}/change-plan", Tenant(Operate)),
    (Method::POST, "/api/v1/subscriptions/{id}/restart-pod", Tenant(Operate)),
    (Method::POST, "/api/v1/subscriptions/{id}/reset-pod", Tenant(Operate)),
    (Method::GET, "/api/v1/users", Platform),
    (Method::POST, "/api/v1/users", Platform),
    (Method::GET, "/api/v1/users/{id}", Platform),
    (Method::PATCH, "/api/v1/users/{id}", Platform),
    (Method::DELETE, "/api/v1/users/{id}", Platform),
    (Method::GET, "/api/v1/admin/audit", Platform),
    (Method::GET, "/api/v1/admin/pods", Platform),
    (Method::GET, "/api/v1/admin/pods/debug", Platform),
    (Method::POST, "/api/v1/admin/pods/cleanup-orphaned", Platform),
    (Method::POST, "/api/v1/admin/pods/{id}/reset", Platform),
    (Method::POST, "/api/v1/admin/pods/{id}/action", Platform),
    (Method::GET, "/api/v1/admin/deliveries", Platform),
    (Method::GET, "/api/v1/system", Platform),
    (Method::GET, "/api/v1/replication", Platform),
    (Method::POST, "/api/v1/recovery-kit", Platform),
];

/// What the table says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nobody has to say who they are.
    Open,
    /// Somebody has to, and has to have rights that [`Rule::check`] is content with.
    Of(Needs),
    /// The path is known, and takes other methods.
    OtherMethods,
}

/// What rights a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs(Whose);

impl Needs {
    /// Refuses who has not the rights: the same way whatever the request names.
    ///
    /// # Errors
    /// 403, saying what is missing.
    pub fn check(self, rights: &Rights) -> Result<(), ApiError> {
        match self.0 {
            Open | Own(None) => Ok(()),
            Own(Some(scope)) | Tenant(scope) => {
                if rights.scopes.contains(&scope) {
                    return Ok(());
                }
                Err(forbidden(&format!("this takes a token with the scope {}", scope.as_str())))
            }
            Platform if rights.is_platform() => Ok(()),
            Platform => Err(forbidden("this takes an administrator, and a token with the scope admin for all tenants")),
        }
    }
}

fn forbidden(what: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", format!("not allowed: {what}"))
        .hint("perennial whoami shows who you are and what your token may be used for")
}

/// Looks up a request: its method, and the path as the routes write it.
pub fn rule(method: &Method, path: &str) -> Rule {
    // The router answers HEAD as it answers GET.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    match ROWS.iter().find(|(of, at, _)| of == method && *at == path) {
        Some((_, _, Open)) => Rule::Open,
        Some((_, _, whose)) => Rule::Of(Needs(*whose)),
        None => Rule::OtherMethods,
    }
}

/// The methods that a path takes, as `Allow` says it.
pub fn allowed(path: &str) -> String {
    let of_path = ROWS.iter().filter(|(_, at, _)| *at == path);
    let names: Vec<&str> = of_path
        .flat_map(|(method, ..)| if method == Method::GET { vec!["GET", "HEAD"] } else { vec![method.as_str()] })
        .collect();
    names.join(",")
}

/// The rows and the routes are not the same.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody decided who may ask for {0}")]
pub struct Undecided(String);

/// Checks that every route has exactly one row, and every row its route.
///
/// # Errors
/// [`Undecided`] with everything that lacks the other.
pub fn check(document: &OpenApi) -> Result<(), Undecided> {
    let mut routes: Vec<(&str, &str)> = Vec::new();
    for (path, item) in &document.paths.paths {
        let all = [
            ("GET", &item.get),
            ("PUT", &item.put),
            ("POST", &item.post),
            ("DELETE", &item.delete),
            ("OPTIONS", &item.options),
            ("HEAD", &item.head),
            ("PATCH", &item.patch),
            ("TRACE", &item.trace),
        ];
        routes.extend(all.into_iter().filter(|(_, route)| route.is_some()).map(|(method, _)| (method, path.as_str())));
    }
    let mut rows: Vec<(&str, &str)> = ROWS.iter().map(|(method, path, _)| (method.as_str(), *path)).collect();
    routes.sort_unstable();
    rows.sort_unstable();
    if routes == rows {
        return Ok(());
    }
    let count = |list: &[(&str, &str)], one: &(&str, &str)| list.iter().filter(|other| *other == one).count();
    let mut wrong: Vec<&(&str, &str)> =
        routes.iter().chain(&rows).filter(|one| count(&routes, one) != 1 || count(&rows, one) != 1).collect();
    wrong.dedup();
    let wrong: Vec<String> = wrong.iter().map(|(method, path)| format!("{method} {path}")).collect();
    Err(Undecided(wrong.join(", ")))
}

#[cfg(test)]
mod tests {
    use utoipa::openapi::path::{HttpMethod, OperationBuilder, PathItem};

    use super::*;

    #[test]
    fn a_route_without_a_row_is_noticed() {
        let mut document = super::super::described();
        assert_eq!(check(&document), Ok(()));
        let more = PathItem::new(HttpMethod::Put, OperationBuilder::new());
        document.paths.paths.insert("/api/v1/forgotten".to_owned(), more);
        assert_eq!(check(&document), Err(Undecided("PUT /api/v1/forgotten".to_owned())));
        document.paths.paths.remove("/api/v1/forgotten");
        document.paths.paths.remove("/api/v1/system");
        assert_eq!(check(&document), Err(Undecided("GET /api/v1/system".to_owned())));
    }

    #[test]
    fn what_has_no_row_is_not_let_through() {
        assert_eq!(rule(&Method::GET, "/api/v1/forgotten"), Rule::OtherMethods);
        assert_eq!(rule(&Method::PUT, "/api/v1/pods"), Rule::OtherMethods);
        assert_eq!(rule(&Method::HEAD, "/healthz"), Rule::Open);
        assert_eq!(allowed("/api/v1/pods"), "POST,GET,HEAD");
    }
}
