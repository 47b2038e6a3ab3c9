//! Archives of images: put together as an engine does, and refused with the reason.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use perennial_core::progress::Progress;
use perennial_snapshots::{
    ArchiveRequest, KeyCost, Layout, MemoryBackend, Pass, Password, Root, Source as ArchiveSource,
};

use super::*;

/// Entries of a layer: a name, and a file's content, a directory, or a link with a type and a target.
enum Made {
    File(&'static str),
    Dir,
    Link(EntryType, &'static str),
}

fn layer(entries: &[(&str, Made)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, made) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        match made {
            Made::File(text) => {
                header.set_size(text.len() as u64);
                tar.append_data(&mut header, name, text.as_bytes()).unwrap();
            }
            Made::Dir => {
                header.set_entry_type(EntryType::Directory);
                tar.append_data(&mut header, name, io::empty()).unwrap();
            }
            Made::Link(kind, target) => {
                header.set_entry_type(*kind);
                tar.append_link(&mut header, name, target).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// Stores an archive of these files as an image and reads it.
fn image(files: &[(&str, Vec<u8>)]) -> Result<ImageTree, Failure> {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(std::fs::File::create(directory.path().join("image.tar")).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        if let Some(target) = bytes.strip_prefix(b"-> ") {
            header.set_size(0);
            header.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut header, name, std::str::from_utf8(target).unwrap()).unwrap();
        } else {
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
    }
    tar.finish().unwrap();
    let password = Password::new("test");
    let repository = Repository::init(Arc::new(MemoryBackend::new()), &password, KeyCost::Test).unwrap();
    let at = stored_image_path("sha256:x").strip_suffix("/image.tar").unwrap().to_owned();
    let path = directory.path().to_owned();
    let request = ArchiveRequest {
        time: jiff::Timestamp::UNIX_EPOCH,
        hostname: "test".into(),
        tags: Vec::new(),
        parents: Vec::new(),
        roots: vec![Root { at, source: ArchiveSource::Directory { path, layout: Layout::Plain, exclude: Vec::new() } }],
        pass: Pass::Commit,
        accept_losses: Vec::new(),
    };
    let snapshot = repository.archive(&request, &Progress::default()).unwrap().snapshot.unwrap();
    ImageTree::load(&repository, snapshot, "sha256:x")
}

fn manifest(layers: &[&str]) -> (&'static str, Vec<u8>) {
    ("manifest.json", serde_json::json!([{"Config": "c", "Layers": layers}]).to_string().into_bytes())
}

/// Every path, with a file's content.
fn shown(image: &ImageTree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut stack = vec![(String::new(), image.root())];
    while let Some((path, directory)) = stack.pop() {
        for (name, entry) in image.children(directory) {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            match image.node(entry).kind {
                NodeKind::Dir => {
                    lines.push(format!("{path}/"));
                    stack.push((path, entry));
                }
                NodeKind::File => {
                    let mut text = String::new();
                    image.open(entry).read_to_string(&mut text).unwrap();
                    lines.push(format!("{path}={text}"));
                }
                _ => lines.push(path),
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn layers_are_put_together_as_an_engine_does() {
    use Made::{Dir, File, Link};
    let one = layer(&[
        ("etc/", Dir),
        ("etc/keep", File("1")),
        ("etc/gone", File("1")),
        ("etc/replaced", File("1")),
        ("var/", Dir),
        ("var/lib/", Dir),
        ("var/lib/a", File("1")),
        ("opt/", Dir),
        ("opt/old", File("1")),
        ("bin", Link(EntryType::Symlink, "usr/bin")),
        ("becomes-dir", File("1")),
        ("becomes-file/", Dir),
        ("becomes-file/x", File("1")),
    ]);
    let two = layer(&[
        ("etc/.wh.gone", File("")),
        ("etc/replaced", File("two")),
        ("etc/hard", Link(EntryType::Link, "etc/replaced")),
        ("etc/harder", Link(EntryType::Link, "etc/hard")),
        // Whatever the order, an opaque directory shows what its own layer has.
        ("opt/new", File("2")),
        ("opt/.wh..wh..opq", File("")),
        ("var/.wh.lib", File("")),
        ("./srv/", Dir),
        ("becomes-dir/", Dir),
        ("becomes-dir/y", File("2")),
        ("becomes-file", File("2")),
    ]);
    let three = layer(&[("var/lib/", Dir), ("var/lib/b", File("3"))]);
    let files = [
        ("a/layer.tar", one),
        ("b/layer.tar", two),
        ("c/layer.tar", three),
        // The same layer twice is there once.
        ("d/layer.tar", b"-> ../c/layer.tar".to_vec()),
        manifest(&["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"]),
    ];
    let found = image(&files).unwrap();
    let expected = [
        "/becomes-dir/",
        "/becomes-dir/y=2",
        "/becomes-file=2",
        "/bin",
        "/etc/",
        "/etc/hard=two",
        "/etc/harder=two",
        "/etc/keep=1",
        "/etc/replaced=two",
        "/opt/",
        "/opt/new=2",
        "/srv/",
        "/var/",
        "/var/lib/",
        "/var/lib/b=3",
    ];
    assert_eq!(shown(&found), expected);
    let etc = found.child(found.root(), b"etc").unwrap();
    let key = |name: &str| found.node(found.child(etc, name.as_bytes()).unwrap()).link_key();
    assert!(key("replaced").is_some() && key("replaced") == key("hard") && key("hard") == key("harder"));
    assert_eq!(key("keep"), None);
}

#[test]
fn names_and_attributes_are_bytes_of_any_length() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    let mut one = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 3] =
        [("path", long.as_bytes()), ("SCHILY.xattr.user.x", b"a\n\0=\n"), ("mtime", b"-1.5")];
    one.append_pax_extensions(records).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(2);
    header.set_cksum();
    one.append(&header, &b"hi"[..]).unwrap();
    let found = image(&[("l", one.into_inner().unwrap()), manifest(&["l"])]).unwrap();
    assert_eq!(shown(&found), [format!("/{}/", "d".repeat(120)), format!("/{long}=hi")]);
    let directory = found.child(found.root(), "d".repeat(120).as_bytes()).unwrap();
    let node = found.node(found.child(directory, "f".repeat(150).as_bytes()).unwrap());
    assert_eq!(node.xattrs, [Xattr { name: "user.x".into(), value: b"a\n\0=\n".to_vec() }]);
    assert_eq!((node.mtime.seconds, node.mtime.nanoseconds), (-2, 500_000_000));
}

#[test]
fn images_that_cannot_be_read_say_why() {
    use Made::{File, Link};
    let good = layer(&[("a", File("1"))]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut packed, &good).unwrap();
    let out = |mut bytes: Vec<u8>, name: &[u8]| {
        bytes[..100].fill(0);
        bytes[..name.len()].copy_from_slice(name);
        let sum: u32 = bytes[..512]
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    };
    for (files, reason) in [
        (vec![("l", good.clone())], "no manifest"),
        (vec![manifest(&["l"])], "layer l is not in its archive"),
        (vec![("l", packed.finish().unwrap()), manifest(&["l"])], "compressed"),
        (vec![("l", zstd::encode_all(&good[..], 1).unwrap()), manifest(&["l"])], "compressed"),
        (vec![("l", out(good.clone(), b"../a")), manifest(&["l"])], "leads out"),
        (vec![("l", layer(&[("a", Link(EntryType::Link, "none"))])), manifest(&["l"])], "leads nowhere"),
        (vec![("l", vec![b'x'; 2048]), manifest(&["l"])], "cannot be read"),
        (vec![("manifest.json", b"{".to_vec())], "its manifest"),
    ] {
        match image(&files) {
            Err(Failure::ImageUnreadable(found)) => assert!(found.contains(reason), "{found}"),
            other => panic!("{reason}: {:?}", other.map(|i| shown(&i))),
        }
    }
}

#[test]
fn images_made_to_exhaust_memory_or_time_are_refused() {
    use Made::{Dir, File};
    let deep = "d/".repeat(PATH_MAX);
    let mut long = tar::Builder::new(Vec::new());
    long.append_pax_extensions([("path", deep.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o600);
    header.set_size(0);
    header.set_cksum();
    long.append(&header, io::empty()).unwrap();
    let said = |layer: Vec<u8>| match image(&[("l", layer), manifest(&["l"])]) {
        Err(Failure::ImageUnreadable(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(said(long.into_inner().unwrap()).contains("longer than"));
    let mut many = tar::Builder::new(Vec::new());
    for _ in 0..3 {
        many.append_pax_extensions([("comment", &vec![b'x'; 4 << 20][..])]).unwrap();
    }
    many.append(&header, io::empty()).unwrap();
    assert!(said(many.into_inner().unwrap()).contains("extension headers"));

    // A directory that is opaque again and again is looked at once, and again where it is made anew.
    let one = layer(&[("d/", Dir), ("d/old", File("1"))]);
    let two = layer(&[
        ("d/new", File("2")),
        ("d/.wh..wh..opq", File("")),
        ("d/", Dir),
        ("d/.wh..wh..opq", File("")),
        ("d/newer", File("2")),
        ("d/.wh..wh..opq", File("")),
    ]);
    let found = image(&[("a", one), ("b", two), manifest(&["a", "b"])]).unwrap();
    assert_eq!(shown(&found), ["/d/", "/d/new=2", "/d/newer=2"]);
}
