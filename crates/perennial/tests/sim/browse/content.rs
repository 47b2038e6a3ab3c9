//! Downloads: ranges, archives, and what becomes of them when the repository is damaged.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use axum::http::StatusCode;
use perennial_core::spec::{Backend, TenantId};
use perennial_snapshots::FileKind;
use perennial_snapshots::backend::Backend as _;

use super::corpus::make;
use super::desk::{Desk, encoded};
use crate::world::{World, files, universal_spec};

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn sim_contents_are_downloaded_whole_and_in_ranges() {
    let world = World::new(1);
    let home = tempfile::tempdir_in(world.directory.path()).unwrap();
    let data = noise(3 << 20);
    std::fs::write(home.path().join("große \"datei\""), &data).unwrap();
    std::fs::write(home.path().join("empty"), b"").unwrap();
    let desk = Desk::new(&world).await;
    let id = desk.by_hand(&world, home.path()).await;
    let path = format!("snapshots/{id}/files/content?path={}", encoded("/home/große \"datei\"".as_bytes()));
    let whole = desk.get(&path).await;
    assert_eq!(whole.status, StatusCode::OK);
    assert!(whole.bytes() == data);
    assert_eq!(whole.header("content-length"), data.len().to_string());
    assert_eq!(whole.header("content-type"), "application/octet-stream");
    assert_eq!(whole.header("x-content-type-options"), "nosniff");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let disposition = whole.header("content-disposition");
    assert!(
        disposition.starts_with("attachment; filename=\"gro__e _datei_\"; filename*=UTF-8''gro%C3%9Fe"),
        "{disposition}"
    );
    let size = data.len();
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1048570-1048590", 1_048_570, 1_048_591),
        ("bytes=-5", size - 5, size),
        ("bytes=3000000-", 3_000_000, size),
    ] {
        let part = desk.get_with(&path, &[("range", range)]).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {start}-{}/{size}", end - 1));
        assert_eq!(part.header("content-length"), (end - start).to_string());
        assert!(part.bytes() == &data[start..end], "{range}");
    }
    let beyond = desk.get_with(&path, &[("range", "bytes=9999999-")]).await;
    assert_eq!(
        (beyond.status, beyond.problem().as_str()),
        (StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable")
    );
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    let several = desk.get_with(&path, &[("range", "bytes=0-1,4-5")]).await;
    assert_eq!((several.status, several.bytes().len()), (StatusCode::OK, size));
    let empty = desk.content(id, b"/home/empty").await;
    assert_eq!((empty.status, empty.header("content-length"), empty.bytes()), (StatusCode::OK, "0", &b""[..]));
}

/// Breaks every pack of the default tenant that is larger than this.
fn damage(world: &World, larger_than: u64) {
    let backend = world.repositories.backend(&TenantId::default_tenant());
    for pack in backend.list(FileKind::Pack).unwrap().into_iter().filter(|p| p.size > larger_than) {
        let mut bytes = backend.read(FileKind::Pack, pack.id).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        backend.remove(FileKind::Pack, pack.id).unwrap();
        backend.write(FileKind::Pack, pack.id, &bytes).unwrap();
    }
}

#[tokio::test]
async fn sim_damage_breaks_a_download_and_never_shortens_it() {
    let world = World::new(2);
    let home = tempfile::tempdir_in(world.directory.path()).unwrap();
    let data = noise(6 << 20);
    std::fs::write(home.path().join("a"), b"small").unwrap();
    std::fs::write(home.path().join("large"), &data).unwrap();
    let desk = Desk::new(&world).await;
    let id = desk.by_hand(&world, home.path()).await;
    damage(&world, 1 << 20);
    let path = format!("snapshots/{id}/files/content?path=/home/large");
    let broken = desk.get(&path).await;
    assert_eq!(broken.status, StatusCode::OK, "the damage is behind what was sent by then");
    assert!(broken.body.unwrap_err().contains("damaged"));
    // What is whole before and behind the damage can still be had.
    let start = desk.get_with(&path, &[("range", "bytes=0-99")]).await;
    assert!(start.bytes() == &data[..100]);
    let end = desk.get_with(&path, &[("range", "bytes=-100")]).await;
    assert!(end.bytes() == &data[data.len() - 100..]);
    // Where the first byte that is asked for is damaged, the answer says so.
    let middle = desk.get_with(&path, &[("range", &format!("bytes={}-", data.len() / 2 - 1000))]).await;
    assert_eq!((middle.status, middle.problem().as_str()), (StatusCode::CONFLICT, "repository-damaged"));
    for format in ["tar", "tar.gz", "tar.zst"] {
        let answer = desk.get(&format!("snapshots/{id}/archive?format={format}")).await;
        assert!(answer.body.is_err(), "{format}");
    }
}

/// The same in a directory that is made.
pub fn make_under(home: &Path) {
    std::fs::create_dir(home).unwrap();
    make(home);
}

/// As [`described`], without the directory itself.
pub fn described_below(directory: &Path) -> String {
    described(directory).lines().filter(|line| !line.starts_with("|d|")).collect::<Vec<_>>().join("\n")
}

/// What GNU tar makes of an archive, and what was packed, described in the same way by `find`.
fn described(directory: &Path) -> String {
    let output = std::process::Command::new("find")
        .args([".", "-printf", "%P|%y|%m|%U:%G|%T@|%n|%l|"])
        .args(["-type", "f", "-exec", "sha256sum", "{}", ";", "-o", "-printf", "\\n"])
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[tokio::test]
async fn sim_archives_hold_everything_that_gnu_tar_can_restore() {
    let world = World::new(3);
    let base = tempfile::tempdir().unwrap();
    let home = base.path().join("home");
    std::fs::create_dir(&home).unwrap();
    make(&home);
    let desk = Desk::new(&world).await;
    let id = desk.by_hand(&world, &home).await;
    for format in ["tar", "tar.gz", "tar.zst"] {
        let answer = desk.get(&format!("snapshots/{id}/archive?path=/home&format={format}")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("content-disposition"), format!("attachment; filename=\"home.{format}\""));
        let target = base.path().join(format);
        std::fs::create_dir(&target).unwrap();
        let file = base.path().join(format!("{format}.archive"));
        let plain = match format {
            "tar.zst" => zstd::decode_all(answer.bytes()).unwrap(),
            "tar.gz" => {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(answer.bytes()).read_to_end(&mut plain).unwrap();
                plain
            }
            _ => answer.bytes().to_vec(),
        };
        std::fs::write(&file, plain).unwrap();
        let tar = std::process::Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
            .arg(&file)
            .arg("-C")
            .arg(&target)
            .output()
            .unwrap();
        assert!(tar.status.success(), "{format}: {}", String::from_utf8_lossy(&tar.stderr));
        assert_eq!(described(&target), described(&home), "{format}");
        let note = |path: &Path| {
            let mut value = [0; 16];
            let length = rustix::fs::lgetxattr(path.join("small"), "trusted.note", &mut value[..]).unwrap();
            value[..length].to_vec()
        };
        assert_eq!(note(&target), note(&home));
        let device = rustix::fs::lstat(target.join("null")).unwrap();
        assert_eq!(device.st_rdev, rustix::fs::makedev(1, 3));
    }
    // One file alone.
    let answer = desk.get(&format!("snapshots/{id}/archive?path=/home/small&format=tar")).await;
    let mut archive = tar::Archive::new(answer.bytes());
    let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path_bytes().into_owned()).collect();
    assert_eq!(names, [b"small"]);
}

#[tokio::test]
async fn sim_an_archive_of_everything_is_what_the_pod_saw() {
    for backend in [Backend::Overlay, Backend::Engine] {
        let world = World::new(4);
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", universal_spec(backend)).await;
        world.engine.write(pod, "/home/a", "mine").unwrap();
        world.engine.write(pod, "/tools/b", "mine").unwrap();
        assert!(world.engine.remove(pod, "/var/lib/seed/a").unwrap());
        let snapshot = desk.snapshot(pod).await;
        let answer = desk.get(&format!("snapshots/{snapshot}/archive?format=tar")).await;
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(answer.bytes()).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                found.insert(path.strip_prefix('.').unwrap().to_owned(), bytes);
            }
        }
        assert_eq!(found, files(&world, pod), "{backend:?}");
    }
}
