//! Every route of the OpenAPI document, asked by everybody: nobody, a member of another tenant, members with one scope each, and
//! administrators.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::access::{Access, ROUTES};
use crate::server::{Answer, Server, TOKEN, read};

/// A server with a tenant in which there is one of everything, and tokens of all kinds.
struct Scene {
    server: Server,
    pod: String,
    snapshot: String,
    operation: String,
    subscription: String,
    /// A token of Ann's that nobody uses.
    spare: String,
    /// Ann, a member, with one scope each.
    reads: String,
    operates: String,
    /// Bob, a member of another tenant, with both.
    foreign: String,
    /// An administrator: with all scopes, with that of administrators alone, and without it.
    root: String,
    admin_only: String,
    no_admin: String,
}

impl Scene {
    async fn new() -> Self {
        let server = Server::start().await;
        server.user("ann", "user", &["acme"]).await;
        server.user("bob", "user", &["other"]).await;
        server.user("root", "admin", &[]).await;
        let pod = server.pod_of("acme", "dev").await;
        let snapshot = server.snapshot(pod, 1).await.to_string();
        let subscription = server.subscription_of("acme", "rented").await;
        let operations = server.get(&format!("/api/v1/pods/{pod}/operations")).await.json();
        let token = async |user: &str, scopes: &[&str]| server.token(user, scopes).await;
        Self {
            pod: pod.to_string(),
            subscription,
            snapshot,
            operation: operations["items"][0]["id"].as_str().unwrap().to_owned(),
            spare: token("ann", &["read"]).await.0,
            reads: token("ann", &["read"]).await.1,
            operates: token("ann", &["operate"]).await.1,
            foreign: token("bob", &["read", "operate"]).await.1,
            root: token("root", &["read", "operate", "admin"]).await.1,
            admin_only: token("root", &["admin"]).await.1,
            no_admin: token("root", &["read", "operate"]).await.1,
            server,
        }
    }

    /// What the route is about here, or what is not there.
    fn object(&self, path: &str, exists: bool) -> (String, String) {
        const ABSENT: &str = "00000000000000000000000000";
        let of = |there: &str, absent: &str| if exists { there.to_owned() } else { absent.to_owned() };
        let kind = path.trim_start_matches("/api/v1/").split('/').next().unwrap();
        let id = match kind {
            "pods" => of(&self.pod, ABSENT),
            "snapshots" => of(&self.snapshot, ABSENT),
            "operations" => of(&self.operation, ABSENT),
            "tokens" => of(&self.spare, ABSENT),
            "subscriptions" => of(&self.subscription, ABSENT),
            "tenants" => of("acme", "nosuch"),
            "users" => of("ann", "nosuch"),
            "services" => of("n8n", "nosuch"),
            "admin" => of(&self.pod, ABSENT),
            _ => String::new(),
        };
        let query = match path.rsplit('/').next().unwrap() {
            "diff" => format!("?with={id}"),
            "content" | "versions" => "?path=/etc/hosts".to_owned(),
            _ => String::new(),
        };
        (path.replace("{id}", &id).replace("{user}", "ann") + &query, id)
    }

    /// A body that the route takes.
    fn body(&self, method: &str, path: &str, exists: bool) -> Value {
        let (pod, snapshot) = if exists { (&self.pod, &self.snapshot) } else { (&self.spare, &self.spare) };
        let tenant = if exists { "acme" } else { "nosuch" };
        match (method, path.trim_start_matches("/api/v1/")) {
            ("POST", "pods") => json!({"name": "new", "image": "debian:12", "tenant": tenant}),
            ("POST", "pods/{id}/clone") => json!({"name": "copy"}),
            ("POST", "pods/{id}/restore") => json!({"snapshotId": snapshot, "confirm": "dev"}),
            ("POST", "admin/pods/{id}/action") => json!({"action": "restart"}),
            ("POST", "pods/{id}/reset" | "pods/{id}/purge" | "admin/pods/{id}/reset") => json!({"confirm": pod}),
            ("POST", "subscriptions") => json!({"name": "new", "plan": "n8n/plus", "tenant": tenant}),
            ("POST", "subscriptions/{id}/reset-pod") => json!({"confirm": "rented"}),
            ("POST", "subscriptions/{id}/change-plan") => json!({"plan": "pro"}),
            ("POST", "users") => json!({"name": "carl"}),
            ("POST", "tenants") => json!({"name": "new"}),
            ("POST", "tokens") => json!({"scopes": ["operate"]}),
            ("POST", "tenants/{id}/erase") => json!({"dryRun": true}),
            _ => json!({}),
        }
    }

    async fn ask(&self, token: Option<&str>, method: &str, path: &str, exists: bool) -> Answer {
        let (uri, id) = self.object(path, exists);
        let mut request = Request::builder().method(method).uri(uri).header("x-request-id", "same");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = match method {
            "POST" | "PATCH" if path.ends_with("/import") => Body::from("no archive"),
            "POST" | "PATCH" => {
                request = request.header("content-type", "application/json");
                Body::from(self.body(method, path, exists).to_string())
            }
            _ => Body::empty(),
        };
        let response = self.server.send(request.body(body).unwrap()).await;
        if path.ends_with("/stream") && response.status().is_success() {
            return Answer { status: response.status(), headers: response.headers().clone(), text: String::new() };
        }
        let mut answer = read(response).await;
        let tenant = if exists { "acme" } else { "nosuch" };
        for name in [id.as_str(), tenant, &self.snapshot, &self.spare].into_iter().filter(|name| !name.is_empty()) {
            answer.text = answer.text.replace(name, "IT");
        }
        answer
    }
}

/// Whether an answer says that the rights were good: whatever else is wrong.
fn is_let_in(answer: &Answer) -> bool {
    !matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

async fn row(method: &str, path: &str, access: Access) {
    let scene = Scene::new().await;
    let what = format!("{method} {path}");
    let before = scene.server.footprint().await;
    let anonymous = scene.ask(None, method, path, true).await;
    assert_eq!(anonymous.status == StatusCode::UNAUTHORIZED, access != Access::Open, "{what}: {anonymous:?}");
    let (denied, granted): (Vec<&String>, Vec<&String>) = match access {
        Access::Open => return,
        Access::Any => (vec![], vec![&scene.reads, &scene.operates, &scene.admin_only, &scene.no_admin, &scene.root]),
        Access::Own("read") | Access::Tenant("read") => {
            (vec![&scene.operates, &scene.admin_only], vec![&scene.reads, &scene.no_admin, &scene.root])
        }
        Access::Own(_) | Access::Tenant(_) => {
            (vec![&scene.reads, &scene.admin_only], vec![&scene.operates, &scene.no_admin, &scene.root])
        }
        Access::Platform => {
            let denied = vec![&scene.reads, &scene.operates, &scene.foreign, &scene.no_admin];
            let is_right = path.ends_with("/members/{user}") && method == "PUT";
            (denied, if is_right { vec![&scene.root] } else { vec![&scene.admin_only, &scene.root] })
        }
    };
    for token in denied {
        let there = scene.ask(Some(token), method, path, true).await;
        let absent = scene.ask(Some(token), method, path, false).await;
        assert_eq!(there.status, StatusCode::FORBIDDEN, "{what}: {there:?}");
        assert_eq!(there.problem().0, "forbidden", "{what}");
        assert_eq!(there.text, absent.text, "{what}: what is refused says nothing of what there is");
    }
    if let Access::Tenant(_) = access {
        let there = scene.ask(Some(&scene.foreign), method, path, true).await;
        let absent = scene.ask(Some(&scene.foreign), method, path, false).await;
        assert_eq!(there.status, StatusCode::NOT_FOUND, "{what}: {there:?}");
        assert_eq!((there.status, &there.text), (absent.status, &absent.text), "{what}");
    }
    if what == "DELETE /api/v1/tokens/{id}" {
        let there = scene.ask(Some(&scene.foreign), method, path, true).await;
        let absent = scene.ask(Some(&scene.foreign), method, path, false).await;
        assert_eq!((there.status, &there.text), (StatusCode::NOT_FOUND, &absent.text), "{what}");
    }
    assert_eq!(scene.server.footprint().await, before, "{what}: a refusal does nothing");
    for token in granted.into_iter().map(String::as_str).chain([TOKEN]) {
        let answer = scene.ask(Some(token), method, path, true).await;
        assert!(is_let_in(&answer), "{what}: {answer:?}");
    }
}

/// The first of everybody who may finds the object; what follows may find it gone.
#[tokio::test]
async fn every_route_lets_in_whom_it_should_and_nobody_else() {
    for (method, path, access) in ROUTES {
        row(method, path, *access).await;
    }
}

#[tokio::test]
async fn members_find_what_is_theirs() {
    let scene = Scene::new().await;
    for (method, path, access) in ROUTES {
        // What is in the snapshot of this scene nobody can read: it has none.
        let is_of_repository = ["files", "content", "archive", "diff", "live", "versions"];
        if *access == Access::Tenant("read") && !is_of_repository.contains(&path.rsplit('/').next().unwrap()) {
            let answer = scene.ask(Some(&scene.reads), method, path, true).await;
            assert!(is_let_in(&answer) && answer.status != StatusCode::NOT_FOUND, "{method} {path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn lists_hold_only_what_is_ones_own() {
    let scene = Scene::new().await;
    let server = &scene.server;
    let pod = server.pod_of("other", "theirs").await;
    server.snapshot(pod, 2).await;
    let count = async |token: &str, path: &str| {
        let list = server.get_as(token, &format!("/api/v1/{path}")).await.json();
        list["items"].as_array().unwrap_or_else(|| panic!("{path}: {list}")).len()
    };
    server.subscription_of("other", "theirs-too").await;
    for (path, own, all) in [("pods", 2, 4), ("subscriptions", 1, 2), ("snapshots", 1, 2), ("tenants", 1, 3)] {
        let counts = (count(&scene.reads, path).await, count(&scene.foreign, path).await, count(TOKEN, path).await);
        assert_eq!(counts, (own, own, all), "{path}");
    }
    assert_eq!(count(&scene.reads, "tokens").await, 3);
    assert_eq!(count(&scene.foreign, "tokens").await, 1);
    assert_eq!(count(&scene.no_admin, "tokens").await, 3, "without the scope of administrators they are like anybody");
    let unread = server.get_as(&scene.admin_only, "/api/v1/tenants").await;
    assert_eq!(unread.status, StatusCode::FORBIDDEN, "and the other way round nothing is read");
}

#[tokio::test]
async fn the_trail_shows_what_is_of_ones_tenants_and_nothing_of_the_installation() {
    let scene = Scene::new().await;
    scene.server.pod_of("default", "theirs").await;
    scene.server.user("dan", "user", &["default"]).await;
    let dan = scene.server.token("dan", &["read"]).await.1;
    for (token, tenant) in [(&scene.reads, "acme"), (&scene.foreign, "other"), (&dan, "default")] {
        let events = scene.server.get_as(token, "/api/v1/events?limit=1000").await.json();
        let events = events["items"].as_array().unwrap();
        assert!(!events.is_empty());
        for event in events {
            assert_eq!(event["tenant"], tenant, "{event}");
            let kind = event["type"].as_str().unwrap();
            assert!(!kind.starts_with("user.") && !kind.starts_with("token."), "{event}");
        }
    }
    let refused = scene.server.get_as(&scene.reads, "/api/v1/events?tenant=other").await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    let of_pod = scene.server.get_as(&scene.foreign, &format!("/api/v1/events?pod={}", scene.pod)).await;
    assert_eq!(of_pod.json()["items"], json!([]));
    let all = scene.server.get("/api/v1/events?limit=1000").await.json();
    assert!(all["items"].as_array().unwrap().iter().any(|event| event["type"] == "token.created"));
}

#[tokio::test]
async fn a_route_is_asked_with_the_methods_it_has() {
    let scene = Scene::new().await;
    let answer = scene.server.ask_as(&scene.reads, Method::PUT, "/api/v1/pods", &[], Body::empty()).await;
    assert_eq!(answer.problem().0, "method-not-allowed");
    let answer = scene.server.ask_as(&scene.reads, Method::HEAD, "/api/v1/pods", &[], Body::empty()).await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, ""));
}
