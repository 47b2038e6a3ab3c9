//! Requests to the API of a world, and snapshots made by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::response::Parts;
use axum::http::{HeaderMap, Request, StatusCode};
use futures::StreamExt as _;
use perennial::api;
use perennial::reconcile::repositories::MEMORY_PASSWORD;
use perennial::store::Change;
use perennial_core::fault::{NoTap, Tap};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::progress::Progress;
use perennial_core::snapshot::{Snapshot, SnapshotKind, SnapshotState, SnapshotVolume};
use perennial_core::spec::{Backend, TenantId};
use perennial_snapshots::{ArchiveRequest, Archived, KeyCost, Layout, Pass, Password, Repository, Root, Source, Time};
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::world::{Server, World, small_spec};

pub const TOKEN: &str = "the-token";

/// A server with an API.
pub struct Desk {
    pub server: Server,
    pub router: Router,
    /// Whether the server is asked to stop.
    pub stop: watch::Sender<bool>,
}

/// An answer. A body that broke off is an error.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Result<Vec<u8>, String>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.bytes()).unwrap()
    }

    pub fn bytes(&self) -> &[u8] {
        self.body.as_ref().unwrap()
    }

    /// Checks that this is a failure in its proper form.
    pub fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let body = self.json();
        assert_eq!(body["status"], self.status.as_u16());
        body["code"].as_str().unwrap().to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// Percent-encodes every byte: what a client has to send for names that are not UTF-8.
pub fn encoded(path: &[u8]) -> String {
    path.iter().fold(String::new(), |mut text, byte| {
        write!(text, "%{byte:02x}").unwrap();
        text
    })
}

impl Desk {
    pub async fn new(world: &World) -> Self {
        Self::with(world, Arc::new(NoTap)).await
    }

    pub async fn with(world: &World, tap: Arc<dyn Tap>) -> Self {
        let server = world.server_with(tap).await;
        let (stop, stopping) = watch::channel(false);
        let router = api::router(server.app.clone(), server.board.clone(), stopping).unwrap();
        Self { server, router, stop }
    }

    /// Asks, and leaves the body to be read.
    pub async fn open(&self, path: &str, headers: &[(&str, &str)]) -> (Parts, BodyDataStream) {
        self.open_as(TOKEN, path, headers).await
    }

    /// The same with another token.
    pub async fn open_as(&self, token: &str, path: &str, headers: &[(&str, &str)]) -> (Parts, BodyDataStream) {
        let mut request = Request::get(format!("/api/v1/{path}")).header("authorization", format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts, body.into_data_stream())
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let (parts, mut stream) = self.open(path, headers).await;
        let mut body: Result<Vec<u8>, String> = Ok(Vec::new());
        while let Some(piece) = stream.next().await {
            let piece: Result<Bytes, _> = piece;
            match (piece, &mut body) {
                (Ok(piece), Ok(body)) => body.extend_from_slice(&piece),
                (Ok(_), Err(_)) => {}
                (Err(error), body) => *body = Err(error.to_string()),
            }
        }
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    /// A directory of a snapshot, all pages of it.
    pub async fn list(&self, snapshot: SnapshotId, path: &[u8], more: &str) -> Vec<Value> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let query = format!("snapshots/{snapshot}/files?limit=1000&path={}{more}{after}", encoded(path));
            let page = self.get(&query).await;
            assert_eq!(page.status, StatusCode::OK, "{:?}", page.body.map(String::from_utf8));
            let page = page.json();
            items.extend(page["items"].as_array().unwrap().clone());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return items,
            }
        }
    }

    pub async fn content(&self, snapshot: SnapshotId, path: &[u8]) -> Answer {
        self.get(&format!("snapshots/{snapshot}/files/content?path={}", encoded(path))).await
    }

    /// Every entry at and below a directory, by its path.
    pub async fn walk(&self, snapshot: SnapshotId, more: &str) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        let mut directories = vec![String::new()];
        while let Some(directory) = directories.pop() {
            for item in self.list(snapshot, format!("{directory}/").as_bytes(), more).await {
                let path = format!("{directory}/{}", item["name"].as_str().unwrap());
                if item["kind"] == "dir" {
                    directories.push(path.clone());
                }
                found.insert(path, item);
            }
        }
        found
    }

    /// What differs between two snapshots, all pages of this size.
    pub async fn diff(&self, (before, after): (SnapshotId, SnapshotId), path: &str, limit: usize) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let query = format!("snapshots/{before}/diff?with={after}&path={path}&limit={limit}{cursor}");
            let page = self.get(&query).await;
            assert_eq!(page.status, StatusCode::OK, "{:?}", page.body.map(String::from_utf8));
            let page = page.json();
            assert!(page["items"].as_array().unwrap().len() <= limit);
            items.extend(page["items"].as_array().unwrap().clone());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&after={next}"),
                None => return items,
            }
        }
    }

    /// The newest snapshot of a pod.
    pub async fn snapshot(&self, pod: PodId) -> SnapshotId {
        let outcome = self.server.snapshot(pod).await;
        self.server.succeed(outcome).await;
        self.server.snapshots(pod).await[0].id
    }

    /// Records a snapshot whose one volume, at /home, is this directory as it is; without an image.
    pub async fn by_hand(&self, world: &World, home: &Path) -> SnapshotId {
        self.by_hand_as(world, home, 1).await
    }

    /// The same for another number, which a snapshot and its pod are known by.
    pub async fn by_hand_as(&self, world: &World, home: &Path, n: u8) -> SnapshotId {
        let pod = self.server.running(&format!("by-hand-{n}"), small_spec(Backend::Engine)).await;
        let archived = archive(world, home);
        let record = self.server.pod(pod).await;
        let id = SnapshotId::from_parts(1, [n; 10]);
        let mut row = Snapshot::pending(id, pod, record.tenant, SnapshotKind::Manual, record.created_at);
        row.state = SnapshotState::Verified;
        row.repository_id = Some(archived.snapshot.unwrap().to_string());
        row.volumes =
            vec![SnapshotVolume { name: "home".into(), mount_path: "/home".into(), files: None, bytes: None }];
        self.change(row).await;
        id
    }

    pub async fn change(&self, row: Snapshot) {
        self.server.app.store.commit(Change { snapshots: vec![row], ..Change::default() }).await.unwrap();
    }
}

/// The default tenant's repository, opened beside the server.
pub fn repository(world: &World) -> Repository {
    let backend = Arc::new(world.repositories.backend(&TenantId::default_tenant()));
    let password = Password::new(MEMORY_PASSWORD);
    match Repository::exists(&*backend).unwrap() {
        true => Repository::open(backend, &password).unwrap(),
        false => Repository::init(backend, &password, KeyCost::Test).unwrap(),
    }
}

/// Takes a snapshot of a directory into the default tenant's repository.
fn archive(world: &World, home: &Path) -> Archived {
    let directory = Source::Directory { path: home.to_owned(), layout: Layout::Plain, exclude: Vec::new() };
    let request = ArchiveRequest {
        time: "2026-01-02T03:04:05Z".parse().unwrap(),
        hostname: "test".into(),
        tags: vec!["by-hand".into()],
        parents: Vec::new(),
        roots: vec![Root { at: "/volumes/home".into(), source: directory }],
        pass: Pass::Commit,
        accept_losses: Vec::new(),
    };
    repository(world).archive(&request, &Progress::default()).unwrap()
}

/// Waits until a snapshot holds the time of change of the file that was written last.
///
/// One that is too fresh to detect later changes by it is left out, so the next snapshot differs in it.
pub fn until_settled(world: &World, home: &Path, last: &str) {
    let at = format!("/volumes/home/{last}");
    loop {
        let tree = archive(world, home).tree;
        if repository(world).entry(tree, at.as_bytes()).unwrap().ctime != Time::default() {
            return;
        }
    }
}
