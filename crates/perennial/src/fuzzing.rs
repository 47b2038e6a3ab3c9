//! What reads archives and paths that somebody else wrote, for the fuzz targets in `fuzz/`, and seeds for them.

use std::io::{self, Read};
use std::path::Path;

use perennial_core::progress::Progress;
use perennial_snapshots::{ArchiveRequest, Node, NodeKind, Pass, Repository, Root, Source};

use crate::catalogue::{SHIPPED, definition, read_json, read_toml, write_toml};
use crate::import::reader::TarReader;
use crate::import::tree::{Entry, Tree};
use crate::import::{Devices, Limits, packing};
use crate::library::image::ImageTree;
use crate::library::{PodPath, pax_records, pax_time};
use crate::reconcile::stored_image_path;

const IMAGE: &str = "sha256:fuzz";

/// An archive that is to become a snapshot. What is taken keeps the rules, whatever it was.
#[must_use]
pub fn archive(input: &[u8]) -> bool {
    let limits = Limits { entries: 5_000, bytes: 32 << 20 };
    let Ok(input) = packing::unpacked(input) else { return false };
    let mut reader = TarReader::new(input, limits);
    let tree = Tree::read(&mut reader, &[b"at".to_vec()], (Devices::Allowed, limits), &mut |names, member, content| {
        assert!(names.iter().all(|name| !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/')));
        // An archive that is cut short in a content is refused by the next header.
        let read = io::copy(content, &mut io::sink());
        assert!(read.is_err() || read.is_ok_and(|read| read == member.size), "{member:?}");
        Ok(None)
    });
    let Ok(tree) = tree else { return false };
    for number in 0..tree.len() {
        match tree.entry(number) {
            Entry::Dir(dir) => assert!(dir.children.values().all(|child| *child > number && *child < tree.len())),
            Entry::Leaf(inode) => assert!(tree.inodes()[*inode].names > 0),
        }
    }
    true
}

/// An image as an engine saves it.
#[must_use]
pub fn image(input: &[u8]) -> bool {
    let Some(repository) = stored(input) else { return false };
    let (repository, snapshot) = repository;
    let Ok(image) = ImageTree::load(&repository, snapshot, IMAGE) else { return false };
    let mut directories = vec![image.root()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for (name, entry) in image.children(directory) {
            assert_eq!(image.child(directory, name), Some(entry));
            seen += 1;
            // A directory is in one other at most.
            assert!(seen <= image.len());
            match image.node(entry).kind {
                NodeKind::Dir => directories.push(entry),
                NodeKind::File => {
                    let mut content = image.open(entry).take(1 << 20);
                    let _ = io::copy(&mut content, &mut io::sink());
                }
                _ => {}
            }
        }
    }
    true
}

/// Puts bytes where an image's archive is.
fn stored(bytes: &[u8]) -> Option<(Repository, perennial_snapshots::SnapshotFileId)> {
    let (repository, progress) = (perennial_snapshots::fuzzing::repository(), Progress::default());
    let written = repository.write_trees::<_, perennial_snapshots::Error>(&progress, |writer| {
        let size = bytes.len() as u64;
        let content = writer.file(&mut &bytes[..], size)?;
        writer.top(&[Node { content, size, ..Node::new("image.tar", NodeKind::File) }])
    });
    let source = Source::Passed { tree: written.ok()?.value, path: "/image.tar".to_owned() };
    let request = ArchiveRequest {
        time: jiff::Timestamp::UNIX_EPOCH,
        hostname: String::new(),
        tags: Vec::new(),
        parents: Vec::new(),
        roots: vec![Root { at: stored_image_path(IMAGE), source }],
        pass: Pass::Commit,
        accept_losses: Vec::new(),
    };
    let snapshot = repository.archive(&request, &progress).ok()?.snapshot?;
    Some((repository, snapshot))
}

/// An archive of a snapshot that is unpacked below a directory, as `snapshot export --to` does.
#[must_use]
pub fn unpack(input: &[u8], into: &Path) -> bool {
    let Ok(packed) = zstd::encode_all(input, 1) else { return false };
    crate::cli::unpacks(&packed, into)
}

/// What a snapshot says about itself. What is taken says the same when it is written again.
#[must_use]
pub fn pod_file(input: &[u8]) -> bool {
    crate::reconcile::pod_file_is_kept(input)
}

/// A service as somebody describes it, as TOML or as JSON. What is taken becomes pods, and is the same when it is written and read
/// again.
#[must_use]
pub fn service(input: &[u8]) -> bool {
    let toml = std::str::from_utf8(input).ok().and_then(|text| read_toml(text).ok());
    let Some(service) = toml.or_else(|| read_json(input).ok()) else { return false };
    assert!(service.plans.iter().all(|plan| plan.pod_spec().validate().is_ok()), "{service:?}");
    let written = write_toml(&service);
    assert_eq!(read_toml(&written), Ok(service), "{written}");
    true
}

/// Paths, and what records of an archive say; the first byte says which.
#[must_use]
pub fn paths(input: &[u8]) -> bool {
    let Some((kind, rest)) = input.split_first() else { return false };
    match kind % 3 {
        0 => PodPath::parse(rest).is_ok_and(|path| {
            assert!(path.names().all(|name| name != b"." && name != b".." && !name.contains(&b'/')));
            let again = PodPath::parse(&[b"/".to_vec(), path.names().collect::<Vec<_>>().join(&b'/')].concat());
            assert_eq!(again.ok(), Some(path));
            true
        }),
        1 => pax_records(rest).is_ok(),
        _ => std::str::from_utf8(rest).ok().and_then(pax_time).is_some(),
    }
}

/// Such a file, with everything that may be left out.
const POD_FILE: &[u8] = br#"{"version":1,"perennial":"0.1.0","pod":"p","name":"dev","tenant":"default","snapshot":"s","capturedAt":
"2026-01-02T03:04:05Z","dataGeneration":3,"set":2,"backend":"overlay","grade":"hooked","hook":{"command":["sync"],"exitCode":0,"millis":5},
"writer":{"container":"c","startedAt":null},"image":{"reference":"a","id":"b","digest":null},"command":null,"entrypoint":["x"],"runtime":null,
"env":{"A":"1"},"volumes":[{"name":"home","mountPath":"/home"}],"imported":{"into":"/srv","base":null,"comment":"c"},"losses":[{"path":"/a",
"reason":"gone"}],"composed":{"base":"s","partsOf":"t","parts":["/volumes/home"],"identity":["/etc/machine-id"]}}"#;

/// An archive as a server makes it of a directory.
fn plain_tree(header: impl Fn(tar::EntryType, &str, u64) -> io::Result<tar::Header>) -> io::Result<Vec<u8>> {
    let mut tree = tar::Builder::new(Vec::new());
    tree.append(&header(tar::EntryType::Directory, "dir/", 0)?, io::empty())?;
    tree.append(&header(tar::EntryType::Regular, "dir/file", 7)?, &b"content"[..])?;
    for (kind, name, target) in
        [(tar::EntryType::Symlink, "link", "dir/file"), (tar::EntryType::Link, "hard", "dir/file")]
    {
        let mut header = header(kind, name, 0)?;
        header.set_link_name(target)?;
        header.set_cksum();
        tree.append(&header, io::empty())?;
    }
    tree.append(&header(tar::EntryType::Fifo, "pipe", 0)?, io::empty())?;
    tree.into_inner()
}

/// Inputs that the targets take: the target's name, and the bytes.
///
/// # Errors
/// None that a system with memory has.
pub fn seeds() -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let header = |kind: tar::EntryType, name: &str, size: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(name)?;
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_size(size);
        header.set_cksum();
        io::Result::Ok(header)
    };
    let mut whole = tar::Builder::new(Vec::new());
    whole.append(&header(tar::EntryType::Directory, "dir/", 0)?, io::empty())?;
    whole.append_pax_extensions([("mtime", &b"-1.5"[..]), ("SCHILY.xattr.user.a", b"b\n")])?;
    whole.append(&header(tar::EntryType::Regular, "dir/file", 7)?, &b"content"[..])?;
    for (kind, name, target) in
        [(tar::EntryType::Symlink, "link", "dir/file"), (tar::EntryType::Link, "hard", "dir/file")]
    {
        let mut header = header(kind, name, 0)?;
        header.set_link_name(target)?;
        header.set_cksum();
        whole.append(&header, io::empty())?;
    }
    whole.append_pax_extensions([("GNU.sparse.map", &b"0,3,10,3"[..]), ("GNU.sparse.size", b"20")])?;
    whole.append(&header(tar::EntryType::Regular, "sparse", 6)?, &b"abcdef"[..])?;
    let major: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse too"),
        ("GNU.sparse.realsize", b"2048"),
    ];
    let mut map = b"1\n512\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abc");
    whole.append_pax_extensions(major)?;
    whole.append(&header(tar::EntryType::Regular, "GNUSparseFile/x", map.len() as u64)?, &map[..])?;
    let whole = whole.into_inner()?;
    let mut layer = tar::Builder::new(Vec::new());
    layer.append(&header(tar::EntryType::Regular, "etc/.wh.gone", 0)?, io::empty())?;
    layer.append(&header(tar::EntryType::Regular, "etc/motd", 2)?, &b"hi"[..])?;
    let layer = layer.into_inner()?;
    let manifest = br#"[{"Config":"c.json","RepoTags":null,"Layers":["a.tar","b.tar"]}]"#;
    let mut image = tar::Builder::new(Vec::new());
    let plain = {
        let mut plain = tar::Builder::new(Vec::new());
        plain.append(&header(tar::EntryType::Directory, "etc/", 0)?, io::empty())?;
        plain.append(&header(tar::EntryType::Regular, "etc/gone", 1)?, &b"x"[..])?;
        plain.into_inner()?
    };
    for (name, bytes) in [("a.tar", &plain), ("b.tar", &layer), ("manifest.json", &manifest.to_vec())] {
        image.append(&header(tar::EntryType::Regular, name, bytes.len() as u64)?, &bytes[..])?;
    }
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut zipped, &whole)?;
    let services = SHIPPED.iter().flat_map(|(_, text)| {
        let json = read_toml(text).ok().and_then(|service| serde_json::to_vec(&definition(&service)).ok());
        [Some(text.as_bytes().to_vec()), json].into_iter().flatten().map(|document| ("service", document))
    });
    let others = vec![
        ("archive", zstd::encode_all(&whole[..], 1)?),
        ("archive", zipped.finish()?),
        ("archive", whole),
        ("image", image.into_inner()?),
        ("unpack", plain_tree(header)?),
        ("pod_file", POD_FILE.to_vec()),
        ("paths", b"\0/home/me".to_vec()),
        ("paths", b"\x0112 path=a/b\n9 size=1\n".to_vec()),
        ("paths", b"\x02-1.25".to_vec()),
    ];
    Ok(others.into_iter().chain(services).collect())
}
