//! The router, and requests to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use perennial::api;
use perennial::catalogue::{Catalogue, Place};
use perennial::config::RepositorySection;
use perennial::import::{Limits, Spool};
use perennial::keys::Keyring;
use perennial::library::Library;
use perennial::oidc::Provider;
use perennial::reconcile::progress::ProgressBoard;
use perennial::reconcile::repositories::{MemoryRepositories, Repositories};
use perennial::service::{Access, App, AppSettings, Places, QuotaNews, SnapshotRemover};
use perennial::store::{Change, Store};
use perennial_core::clock::IdSource;
use perennial_core::fault::NoTap;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::OperationState;
use perennial_core::pod::{Desired, Phase, Pod};
use perennial_core::schedule::SnapshotRules;
use perennial_core::snapshot::{Snapshot, SnapshotKind, SnapshotState};
use perennial_core::volume::Origin;
use perennial_drivers::sim::{ImagePolicy, SimEngine, SimOptions, VirtualClock};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;

pub const TOKEN: &str = "the-token";

#[derive(Default)]
struct Ids(AtomicU64);

impl IdSource for Ids {
    fn random(&self) -> [u8; 10] {
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        random
    }
}

/// What the service asked of the rest of the program.
#[derive(Default)]
pub struct Asked {
    pub woken: Mutex<Vec<PodId>>,
    pub removed: Mutex<Vec<(OperationId, SnapshotId)>>,
}

impl SnapshotRemover for Asked {
    fn snapshot_remove(&self, operation: OperationId, snapshot: SnapshotId) {
        self.removed.lock().unwrap().push((operation, snapshot));
    }
}

/// A server without a reconciler.
pub struct Server {
    pub router: Router,
    pub store: Store,
    pub asked: Arc<Asked>,
    pub stop: watch::Sender<bool>,
    pub engine: SimEngine,
    pub clock: Arc<VirtualClock>,
    pub directory: tempfile::TempDir,
    pub repositories: Repositories,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Checks that this is a failure in its proper form, and returns `code` and `field`.
    pub fn problem(&self) -> (String, Option<String>) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], self.status.as_u16(), "{self:?}");
        assert_eq!(body["requestId"], self.headers["x-request-id"].to_str().unwrap());
        for key in ["type", "title", "detail"] {
            assert!(body[key].as_str().is_some_and(|t| !t.is_empty()), "{key}: {self:?}");
        }
        (body["code"].as_str().unwrap().to_owned(), body["field"].as_str().map(ToOwned::to_owned))
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::on(Store::open("sqlite::memory:", Arc::new(NoTap)).await.unwrap()).await
    }

    /// A server on this database.
    pub async fn on(store: Store) -> Self {
        Self::vouched_by(store, None).await
    }

    /// A server on this database, to which somebody vouches for people.
    pub async fn vouched_by(store: Store, provider: Option<Provider>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(VirtualClock::new("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap()));
        let options = SimOptions { images: ImagePolicy::AcceptAny, ..SimOptions::default() };
        let engine = SimEngine::open(directory.path().join("engine"), Arc::clone(&clock) as _, options).unwrap();
        let asked = Arc::new(Asked::default());
        let keys = Keyring::new(directory.path(), None, None);
        let repositories =
            Repositories::in_memory_with_keys(MemoryRepositories::default(), keys.clone(), Arc::new(NoTap));
        let app = App {
            access: Access::new(store.clone(), Arc::clone(&clock) as _, TOKEN),
            store: store.clone(),
            engine: Arc::new(engine.clone()),
            clock: Arc::clone(&clock) as _,
            ids: Arc::new(Ids::default()),
            waker: Arc::new({
                let asked = Arc::clone(&asked);
                move |pod| asked.woken.lock().unwrap().push(pod)
            }),
            remover: Arc::clone(&asked) as _,
            places: Places { repositories: repositories.clone(), replicas: None },
            library: Library::new(repositories.clone(), &directory.path().join("scratch")),
            catalogue: Catalogue::new(Place::Usual(directory.path().join("catalogue"))),
            imports: Spool::new(directory.path(), Limits::default()),
            provider: provider.map(Arc::new),
            quota_news: QuotaNews::default(),
            settings: Arc::new(AppSettings {
                undelete_window: SignedDuration::from_hours(7 * 24),
                data_dir: directory.path().to_owned(),
                storage_root: directory.path().to_owned(),
                repository: RepositorySection::in_directory(&directory.path().join("repositories")),
                replication: None,
                keys,
                volume_prefix: "perennial-vol-".to_owned(),
                runtimes: Vec::new(),
                snapshots: SnapshotRules::default(),
            }),
        };
        let (stop, stopping) = watch::channel(false);
        let router = api::router(app, ProgressBoard::default(), stopping).unwrap();
        Self { router, store, asked, stop, engine, clock, directory, repositories }
    }

    pub async fn send(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Sends a request with the token and these headers.
    pub async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.ask_as(TOKEN, method, path, headers, body).await
    }

    /// The same with another token.
    pub async fn ask_as(
        &self,
        token: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(self.send(request.body(body.into()).unwrap()).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.ask(Method::DELETE, path, &[], Body::empty()).await
    }

    pub async fn patch(&self, path: &str, etag: Option<&str>, body: Value) -> Answer {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(etag.map(|tag| ("if-match", tag)));
        self.ask(Method::PATCH, path, &headers, body.to_string()).await
    }

    pub async fn get_as(&self, token: &str, path: &str) -> Answer {
        self.ask_as(token, Method::GET, path, &[], Body::empty()).await
    }

    pub async fn post_as(&self, token: &str, path: &str, body: Value) -> Answer {
        self.ask_as(token, Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn patch_as(&self, token: &str, path: &str, body: Value) -> Answer {
        self.ask_as(token, Method::PATCH, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn delete_as(&self, token: &str, path: &str) -> Answer {
        self.ask_as(token, Method::DELETE, path, &[], Body::empty()).await
    }

    /// Makes a user of this role, who is a member of these tenants, which are made where they are missing.
    pub async fn user(&self, name: &str, role: &str, tenants: &[&str]) {
        let made = self.post("/api/v1/users", json!({"name": name, "role": role})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
        for tenant in tenants {
            self.post("/api/v1/tenants", json!({"name": tenant})).await;
            let path = format!("/api/v1/tenants/{tenant}/members/{name}");
            let added = self.ask(Method::PUT, &path, &[], Body::empty()).await;
            assert_eq!(added.status, StatusCode::OK, "{added:?}");
        }
    }

    /// Makes a token for a user: its id and its secret.
    pub async fn token(&self, user: &str, scopes: &[&str]) -> (String, String) {
        let made = self.post("/api/v1/tokens", json!({"user": user, "scopes": scopes})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
        let made = made.json();
        (made["token"]["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
    }

    /// Makes a pod of a tenant and returns its id; it is recorded and not yet running.
    pub async fn pod_of(&self, tenant: &str, name: &str) -> PodId {
        let answer = self.post("/api/v1/pods", json!({"name": name, "image": "debian:12", "tenant": tenant})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        answer.json()["pod"]["id"].as_str().unwrap().parse().unwrap()
    }

    /// Makes a pod and returns its id; it is recorded and not yet running.
    /// Subscribes a tenant to a plan that is shipped; answers the id.
    pub async fn subscription_of(&self, tenant: &str, name: &str) -> String {
        let body = json!({"name": name, "plan": "n8n/plus", "tenant": tenant});
        let answer = self.post("/api/v1/subscriptions", body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        answer.json()["subscription"]["id"].as_str().unwrap().to_owned()
    }

    pub async fn pod(&self, name: &str) -> PodId {
        let answer = self.post("/api/v1/pods", json!({"name": name, "image": "debian:12"})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        answer.json()["pod"]["id"].as_str().unwrap().parse().unwrap()
    }

    /// Changes a pod as a reconciler would; the operations that waited have succeeded.
    pub async fn settle(&self, id: PodId, change: impl FnOnce(&mut Pod)) {
        let mut pod = self.store.pod_fetch(id).await.unwrap().unwrap();
        pod.goal = None;
        change(&mut pod);
        let mut operations = self.store.operations_unfinished(id).await.unwrap();
        for operation in &mut operations {
            operation.state = OperationState::Succeeded;
            operation.finished_at = Some(pod.updated_at);
        }
        self.store.commit(Change { pod: Some(pod), operations, ..Change::default() }).await.unwrap();
    }

    /// A pod that runs.
    pub async fn running(&self, name: &str) -> PodId {
        let id = self.pod(name).await;
        self.runs(id).await;
        id
    }

    /// Has a pod that was asked for run.
    pub async fn runs(&self, id: PodId) {
        self.settle(id, |pod| {
            pod.phase = Phase::Running;
            pod.data_generation = 1;
            pod.source = None;
            pod.current = Some(1);
        })
        .await;
    }

    /// A pod that was stopped, and the snapshot its data is in.
    pub async fn stopped(&self, name: &str) -> (PodId, SnapshotId) {
        let id = self.running(name).await;
        let snapshot = self.snapshot(id, 1).await;
        self.settle(id, |pod| {
            pod.desired = Desired::Stopped;
            pod.phase = Phase::Stopped;
            pod.current = None;
            pod.source = Some(Origin::Snapshot(snapshot));
        })
        .await;
        (id, snapshot)
    }

    /// A verified snapshot of a pod.
    pub async fn snapshot(&self, pod: PodId, n: u8) -> SnapshotId {
        let pod = self.store.pod_fetch(pod).await.unwrap().unwrap();
        let mut random = [n; 10];
        random[..4].copy_from_slice(&pod.id.to_string().as_bytes()[22..26]);
        let id = SnapshotId::from_parts(u64::from(n), random);
        let mut row = Snapshot::pending(id, pod.id, pod.tenant.clone(), SnapshotKind::Final, pod.created_at);
        row.state = SnapshotState::Verified;
        row.repository_id = Some("abc".into());
        self.store.commit(Change { snapshots: vec![row], ..Change::default() }).await.unwrap();
        id
    }

    /// Everything that a refused request must not change.
    pub async fn footprint(&self) -> (usize, i64) {
        (self.store.pod_ids().await.unwrap().len(), self.store.event_last().await.unwrap())
    }
}

pub async fn read(response: axum::response::Response) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 16 << 20).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}
