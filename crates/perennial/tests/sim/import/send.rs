//! Archives, and sending them.

use axum::body::{Body, Bytes};
use axum::http::Request;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{Operation, OperationState};
use perennial_core::snapshot::{SnapshotKind, SnapshotState};
use serde_json::Value;
use tar::{Builder, EntryType, Header};
use tower::ServiceExt as _;

use crate::browse::desk::{Answer, Desk, TOKEN};

/// Sends a body as it is, in small pieces.
pub async fn send_stream(desk: &Desk, pod: PodId, query: &str, body: Body) -> Answer {
    let request = Request::post(format!("/api/v1/pods/{pod}/snapshots/import{query}"))
        .header("authorization", format!("Bearer {TOKEN}"));
    let response = desk.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.map(|b| b.to_vec()).map_err(|e| e.to_string());
    Answer { status: parts.status, headers: parts.headers, body }
}

pub async fn send(desk: &Desk, pod: PodId, query: &str, archive: &[u8]) -> Answer {
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        archive.chunks(10_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    send_stream(desk, pod, query, Body::from_stream(futures::stream::iter(pieces))).await
}

/// Sends an archive that is taken; its snapshot and its operation.
pub async fn taken(desk: &Desk, pod: PodId, query: &str, archive: &[u8]) -> (SnapshotId, OperationId) {
    let answer = send(desk, pod, query, archive).await;
    assert_eq!(answer.status, 202, "{:?}", answer.body.map(String::from_utf8));
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    let answer = answer.json();
    (id(&answer["snapshot"]).parse().unwrap(), id(&answer["operation"]).parse().unwrap())
}

/// The same, and waits until it is a snapshot.
pub async fn imported(desk: &Desk, pod: PodId, query: &str, archive: &[u8]) -> SnapshotId {
    let (snapshot, operation) = taken(desk, pod, query, archive).await;
    desk.server.settle(pod).await;
    let operation: Operation = desk.server.operation(operation).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let row = desk.server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap();
    assert_eq!((row.state, row.kind), (SnapshotState::Verified, SnapshotKind::Imported));
    snapshot
}

/// Whether nothing is left of any archive.
pub fn is_clean(world: &crate::world::World) -> bool {
    std::fs::read_dir(world.directory.path().join("imports")).map_or(0, Iterator::count) == 0
}

pub fn header(kind: EntryType, name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(1000);
    header.set_gid(1000);
    header.set_mtime(1_600_000_000);
    header.set_size(size);
    // As it is: what a library would refuse to write is wanted here.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    header
}

/// An archive made by hand.
pub struct Tar(pub Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub fn file(mut self, name: &str, content: &[u8]) -> Self {
        self.0.append(&header(EntryType::Regular, name, content.len() as u64), content).unwrap();
        self
    }

    pub fn dir(mut self, name: &str) -> Self {
        self.0.append(&header(EntryType::Directory, name, 0), std::io::empty()).unwrap();
        self
    }

    pub fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = header(kind, name, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, std::io::empty()).unwrap();
        self
    }

    pub fn device(mut self, kind: EntryType, name: &str, (major, minor): (u32, u32)) -> Self {
        let mut header = header(kind, name, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.0.append(&header, std::io::empty()).unwrap();
        self
    }

    /// A header with content that need not fit it, filled up to a block.
    pub fn raw(mut self, header: &Header, content: &[u8]) -> Self {
        use std::io::Write as _;
        let into = self.0.get_mut();
        into.write_all(header.as_bytes()).unwrap();
        into.write_all(content).unwrap();
        let padding = content.len().next_multiple_of(512) - content.len();
        into.write_all(&vec![0; padding]).unwrap();
        self
    }

    pub fn records(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}
