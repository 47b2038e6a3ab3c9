//! What is refused, and that nothing of it is left.

use axum::body::{Body, Bytes};
use perennial_core::spec::Backend;
use tar::EntryType;

use super::send::{Tar, header, imported, is_clean, send, send_stream, taken};
use crate::browse::desk::Desk;
use crate::world::{World, small_spec};

/// Archives that no import takes, with a part of what is said about each.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let tar = Tar::new;
    let good = || tar().file("a", b"1").done();
    let link = |name, target| (EntryType::Symlink, name, target);
    let (kind, name, target) = link("etc", "/etc");
    let mut wrong_sum = good();
    wrong_sum[100] ^= 1;
    let mut follows = good();
    follows.extend_from_slice(&good());
    let cut = |at: usize| good()[..at].to_vec();
    let long = "x".repeat(300);
    let device_00 = tar().device(EntryType::Char, "whiteout", (0, 0)).done();
    let mut old_sparse = tar::Header::new_gnu();
    old_sparse.set_entry_type(EntryType::GNUSparse);
    old_sparse.set_size(1024);
    let gnu = old_sparse.as_gnu_mut().unwrap();
    for (at, offset) in [(0, b"00000001000\0"), (1, b"00000000400\0")] {
        gnu.sparse[at].offset = *offset;
        gnu.sparse[at].numbytes = *b"00000001000\0";
    }
    gnu.set_real_size(1 << 20);
    old_sparse.as_old_mut().name[..6].copy_from_slice(b"sparse");
    old_sparse.set_cksum();
    let sparse = |map: &str, size: &str, data: usize| {
        let records: [(&str, &[u8]); 2] = [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())];
        tar().records(&records).file("s", &vec![1; data]).done()
    };
    let mut unknown = header(EntryType::Regular, "a", 0);
    unknown.as_mut_bytes()[156] = b'D';
    unknown.set_cksum();
    let mut huge = header(EntryType::Regular, "a", 0);
    huge.as_old_mut().size = *b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    huge.set_cksum();
    let zeros = zstd::encode_all(&vec![0; 70 << 20][..], 1).unwrap();
    vec![
        ("absolute", tar().file("/etc/passwd", b"x").done(), "absolute"),
        ("dot dot", tar().file("a/../../b", b"x").done(), "out of the archive"),
        ("through a link", tar().link(kind, name, target).file("etc/passwd", b"x").done(), "through a link"),
        ("through a link within", tar().dir("d").link(kind, "l", "d").file("l/x", b"").done(), "through a link"),
        ("through a file", tar().file("a", b"").file("a/b", b"").done(), "two kinds"),
        ("hard link outside", tar().link(EntryType::Link, "a", "../b").done(), "out of the archive"),
        ("absolute hard link", tar().link(EntryType::Link, "a", "/etc/shadow").done(), "out of the archive"),
        ("hard link to nothing", tar().link(EntryType::Link, "a", "b").done(), "does not have"),
        ("hard link to itself", tar().link(EntryType::Link, "a", "a").done(), "does not have"),
        ("hard link to a directory", tar().dir("d").link(EntryType::Link, "a", "d").done(), "a directory"),
        (
            "hard link through a link",
            tar().dir("d").file("d/f", b"").link(kind, "l", "d").link(EntryType::Link, "a", "l/f").done(),
            "no directory",
        ),
        ("a device", tar().device(EntryType::Block, "sda", (8, 0)).done(), "a device"),
        ("a whiteout", device_00, "a device"),
        ("a file over a directory", tar().dir("a").file("a", b"").done(), "two kinds"),
        ("a directory over a file", tar().file("a", b"").dir("a").done(), "two kinds"),
        ("a link over a file", tar().file("a", b"").link(kind, "a", "b").done(), "two kinds"),
        ("nothing", Vec::new(), "cut short"),
        ("no entry", tar().done(), "empty"),
        ("text", b"hello, this is no archive at all".to_vec(), "cut short"),
        ("noise", vec![0xa5; 4096], "no number"),
        ("a wrong checksum", wrong_sum, "checksum"),
        ("cut in a header", cut(300), "cut short"),
        ("cut in the content", cut(512), "cut short"),
        ("no end", cut(1024), "cut short"),
        ("two archives", follows, "follows"),
        ("records that lie about a size", tar().records(&[("size", b"3")]).file("a", &[1; 600]).done(), "header"),
        ("a size beyond all", tar().raw(&huge, b"").done(), "more than"),
        ("records without an entry", tar().records(&[("path", b"a")]).done(), "ends"),
        (
            "broken records",
            tar().raw(&header(EntryType::XHeader, "x", 9), b"99 a=b\nxx").file("a", b"").done(),
            "broken",
        ),
        ("a size that is no number", tar().records(&[("size", b"-1")]).file("a", b"").done(), "no number"),
        ("an owner that nobody has", tar().records(&[("uid", b"4294967295")]).file("a", b"").done(), "owner"),
        ("a long name", tar().records(&[("path", long.as_bytes())]).file("a", b"").done(), "255"),
        ("a name with a zero", tar().records(&[("path", b"a\0b")]).file("a", b"").done(), "zero"),
        ("pieces that overlap", tar().raw(&old_sparse, &[1; 1024]).done(), "overlap"),
        ("pieces in a list that overlap", sparse("0,10,5,10", "20", 20), "overlap"),
        ("pieces outside", sparse("0,10,15,10", "20", 20), "outside"),
        ("pieces longer than their data", sparse("0,10,10,10", "20", 10), "not as long"),
        ("a trusted mark", tar().records(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]).dir("d").done(), "host"),
        (
            "an attribute no link has",
            tar().records(&[("SCHILY.xattr.user.a", b"")]).link(kind, "l", "x").done(),
            "user.a",
        ),
        ("an unknown type", tar().raw(&unknown, b"").done(), "not known"),
        ("a link with content", tar().raw(&header(EntryType::Symlink, "l", 5), b"12345").done(), "content"),
        ("a link without a target", tar().link(kind, "l", "").done(), "target"),
        ("bzip2", b"BZh91AY&SY".to_vec(), "bzip2"),
        ("xz", b"\xfd7zXZ\0\0\0".to_vec(), "xz"),
        ("zstd of nothing good", b"\x28\xb5\x2f\xfdnonsense".to_vec(), "damaged"),
        ("gzip of nothing good", b"\x1f\x8b\x08nonsense".to_vec(), "damaged"),
        ("cut zstd", zstd::encode_all(&good()[..], 1).unwrap()[..60].to_vec(), "cut short"),
        ("endless zeros", zeros, "zeros"),
        ("an archive of something else", tar().dir("home").dir("etc").done(), "no directory /srv"),
    ]
}

#[tokio::test]
async fn sim_hostile_archives_are_refused_by_name_and_leave_nothing() {
    let world = World::new(1);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    // What an import needs of the repository is there, so that anything more is left by one.
    imported(&desk, pod, "?into=/srv", &Tar::new().file("a", b"1").done()).await;
    let (rows, packs) = (desk.server.snapshots(pod).await.len(), world.packs());
    for (what, archive, said) in hostile() {
        // All but the last are refused wherever they belong.
        let query = if what == "an archive of something else" { "" } else { "?into=/srv" };
        let answer = send(&desk, pod, query, &archive).await;
        let text = String::from_utf8(answer.body.clone().unwrap()).unwrap();
        assert_eq!(answer.status, 400, "{what}: {text}");
        assert_eq!((answer.problem().as_str(), answer.json()["field"].as_str()), ("invalid-input", Some("archive")));
        assert!(text.contains(said), "{what}: {text}");
        assert!(is_clean(&world), "{what}");
    }
    assert_eq!((desk.server.snapshots(pod).await.len(), world.packs()), (rows, packs));
    assert!(desk.server.pod(pod).await.tasks.is_empty());
}

#[tokio::test]
async fn sim_devices_are_taken_when_that_is_asked_for_and_a_whiteout_never() {
    let world = World::new(2);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Engine)).await;
    let archive = Tar::new().device(EntryType::Char, "null", (1, 3)).done();
    let snapshot = imported(&desk, pod, "?into=/srv&allowDevices=true", &archive).await;
    let found = desk.walk(snapshot, "").await;
    assert_eq!(found["/srv/null"]["device"], serde_json::json!({"major": 1, "minor": 3}));
    let archive = Tar::new().device(EntryType::Char, "x", (0, 0)).done();
    let answer = send(&desk, pod, "?into=/srv&allowDevices=true", &archive).await;
    assert!(String::from_utf8(answer.body.unwrap()).unwrap().contains("0/0"));
}

#[tokio::test]
async fn sim_what_an_import_is_asked_for_is_checked_before_anything_is_sent() {
    let world = World::new(3);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let archive = Tar::new().file("a", b"1").done();
    for (query, field) in [
        ("?into=home", "into"),
        ("?into=/home/../etc", "into"),
        ("?into=/tmp/x", "into"),
        ("?into=/proc", "into"),
        ("?comment=a%0Ab", "comment"),
        ("?colour=red", "colour"),
        ("?allowDevices=maybe", "allowDevices"),
    ] {
        let answer = send(&desk, pod, query, &archive).await;
        assert_eq!(answer.status, 400, "{query}");
        assert_eq!(answer.json()["field"], field, "{query}: {:?}", answer.json());
    }
    // Where the pod has something else, nothing is guessed.
    let file = Tar::new().file("srv", b"").done();
    let (_, operation) = taken(&desk, pod, "?into=/", &file).await;
    desk.server.settle(pod).await;
    let operation = desk.server.operation(operation).await;
    let problem = operation.error.unwrap();
    assert_eq!(problem.code, "archive-refused");
    assert!(problem.message.contains("the pod has a directory there"), "{}", problem.message);
    assert!(is_clean(&world));
    assert!(desk.server.pod(pod).await.failed.is_none(), "the pod itself has not failed");
    let through = Tar::new().file("x", b"").done();
    let (_, operation) = taken(&desk, pod, "?into=/etc", &through).await;
    desk.server.settle(pod).await;
    let problem = desk.server.operation(operation).await.error.unwrap();
    assert!(problem.message.contains("link"), "{}", problem.message);
    desk.server.succeed(desk.server.delete(pod).await).await;
    assert_eq!(send(&desk, pod, "?into=/srv", &through).await.problem(), "pod-deleted");
}

#[tokio::test]
async fn sim_bombs_meet_limits_of_entries_and_bytes() {
    let mut world = World::new(4);
    world.import_limits = perennial::import::Limits { entries: 50, bytes: 5 << 18 };
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let many = (0..60).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b"")).done();
    let deep = Tar::new().records(&[("path", vec![b"d/".as_slice(); 100].concat().as_slice())]).dir("x").done();
    let large = zstd::encode_all(&Tar::new().file("f", &vec![0; 2 << 20]).done()[..], 1).unwrap();
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.map", b""), ("GNU.sparse.size", b"999999999999")];
    let hole = Tar::new().records(&records).file("f", b"").done();
    let records =
        |kind, records: &[u8]| Tar::new().raw(&header(kind, "r", records.len() as u64), records).file("f", b"").done();
    let empty_keys = records(EntryType::XHeader, &b"4 =\n".repeat(100));
    let short = records(EntryType::XHeader, &b"5 a=\n".repeat(150_000));
    let global: String = (1000..2000).map(|n| format!("9 {n}=x\n")).collect();
    let globals = records(EntryType::XGlobalHeader, global.as_bytes());
    let values = vec![b'x'; 60_000];
    let names: Vec<String> = (0..20).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let attributes = Tar::new().records(&names.iter().map(|n| (n.as_str(), &values[..])).collect::<Vec<_>>());
    let comment = vec![b'x'; 300_000];
    let headers =
        (0..5).fold(Tar::new(), |tar, n| tar.records(&[("comment", comment.as_slice())]).file(&format!("f{n}"), b""));
    let labels = (0..400).fold(Tar::new(), |tar, _| tar.raw(&header(EntryType::new(b'V'), "v", 0), b"")).done();
    for (what, archive, said) in [
        ("entries", many, "50 entries"),
        ("directories in one name", deep, "50 entries"),
        ("bytes", large, "bytes"),
        ("a hole", hole, "bytes"),
        ("labels", labels, "50 entries"),
        ("records without a key", empty_keys, "broken"),
        ("short records", short, "too many records"),
        ("records about all", globals, "about all entries"),
        ("attributes of one entry", attributes.file("f", b"").done(), "attributes are too many"),
        ("records of many entries", headers.done(), "bytes"),
    ] {
        let answer = send(&desk, pod, "?into=/srv", &archive).await;
        let text = String::from_utf8(answer.body.clone().unwrap()).unwrap();
        assert!(answer.status == 400 && text.contains(said), "{what}: {text}");
    }
    assert!(is_clean(&world));
}

#[tokio::test]
async fn sim_bombs_of_depth_are_refused_and_deep_trees_are_taken() {
    let world = World::new(7);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let path = |levels: usize| b"a/".repeat(levels);
    // Each is some kilobytes, and would be the square of its depth in memory when each directory knew its whole way.
    for (levels, said) in [(32_768, "too long"), (2_049, "too long"), (1_500, "more than 1024 directories")] {
        let archive = Tar::new().records(&[("path", &path(levels))]).dir("a").done();
        let answer = send(&desk, pod, "?into=/srv", &archive).await;
        let text = String::from_utf8(answer.body.clone().unwrap()).unwrap();
        assert!(answer.status == 400 && text.contains(said), "{levels}: {text}");
    }
    assert!(is_clean(&world));
    let deep = String::from_utf8(path(500)).unwrap();
    for file in ["f", "g"] {
        let name = format!("{deep}{file}");
        let archive = Tar::new().records(&[("path", name.as_bytes())]).file("a", file.as_bytes()).done();
        // The second goes into all the directories of the first.
        let snapshot = imported(&desk, pod, "?into=/srv", &archive).await;
        let answer = desk.get(&format!("snapshots/{snapshot}/files/content?path=/srv/{deep}f")).await;
        assert_eq!(answer.body.unwrap(), b"f");
    }
}

#[tokio::test]
async fn p13_an_archive_that_breaks_off_is_no_snapshot_and_leaves_nothing() {
    let world = World::new(5);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let archive = Tar::new().file("a", &[1; 100_000]).done();
    for at in [0, 511, 512, 50_000, archive.len() - 512] {
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            vec![Ok(Bytes::copy_from_slice(&archive[..at])), Err(std::io::ErrorKind::ConnectionReset.into())];
        let body = Body::from_stream(futures::stream::iter(pieces));
        let answer = send_stream(&desk, pod, "?into=/srv", body).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "invalid-input"), "{at}");
        assert!(is_clean(&world), "{at}");
    }
    assert!(desk.server.snapshots(pod).await.is_empty());
}

#[tokio::test]
async fn p14_a_part_of_a_pod_is_never_taken_for_the_whole() {
    let world = World::new(6);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    // All of one volume and nothing of the other: restored, it would look like a pod and have lost half of it.
    let archive = Tar::new().file("home/seed", b"mine").done();
    let answer = send(&desk, pod, "", &archive).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "invalid-input"));
    assert!(answer.json()["hint"].as_str().unwrap().contains("--into"), "{:?}", answer.json());
    assert!(is_clean(&world) && desk.server.snapshots(pod).await.is_empty());
}
