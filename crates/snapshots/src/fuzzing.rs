//! What reads bytes that somebody else wrote, for the fuzz targets in `fuzz/`, and seeds for them out of real data.
//!
//! Everything in a repository but key files is authenticated, so a target seals its input first: it plays somebody who
//! has the key, or a program with a defect. Each function tells whether the input was taken.

use std::io;

use crate::backend::FileKind;
use crate::crypto::Key;
use crate::id::Id;
use crate::index::{IdSet, Index, Origin};
use crate::node::{decode_tree, encode_tree};
use crate::pack::{PackBuilder, Sealer, open_blob, parse_header};
use crate::remote::fuzzing as channel;
use crate::repository::keys;
use crate::wire::{BlobKind, Config, IndexFile, KeyFile, LockFile, MasterKey, SnapshotFile};
use crate::{Backend as _, KeyCost, LocalBackend, MemoryBackend, Password, Repository};
use crate::{quote, removed};

pub use channel::frames;

fn key() -> Key {
    Key::new([7; 32], [8; 16], [9; 16])
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// An empty repository in memory.
#[must_use]
pub fn repository() -> Repository {
    Repository::at_far_end(std::sync::Arc::new(MemoryBackend::new()), key())
}

/// The small files of a repository; the first byte says which.
#[must_use]
pub fn files(input: &[u8]) -> bool {
    let Some((kind, bytes)) = input.split_first() else { return false };
    match kind % 7 {
        0 => json::<Config>(bytes).is_some(),
        1 => json::<KeyFile>(bytes).is_some_and(|file| keys::affordable(&file).is_some()),
        2 => json::<MasterKey>(bytes).is_some_and(|master| keys::key_of(master).is_some()),
        3 => json::<IndexFile>(bytes).is_some_and(|file| {
            let mut index = Index::default();
            index.add_written(Id::of(bytes), Origin::Store, &file);
            // Of a pack that is named twice the first entry counts: what it holds is fixed by its name.
            let mut named = IdSet::default();
            for pack in file.packs.iter().filter(|pack| named.insert(pack.id)) {
                for blob in &pack.blobs {
                    assert!(index.find(blob.kind, blob.id).is_some());
                }
            }
            true
        }),
        4 => json::<SnapshotFile>(bytes).is_some(),
        5 => json::<LockFile>(bytes).is_some(),
        _ => {
            // As it is stored: sealed, and packed or not.
            let sealed = key().seal(bytes);
            repository().inner.decode_unpacked(FileKind::Index, Id::of(&sealed), &sealed).is_ok()
        }
    }
}

/// A pack: header and blobs. The input is a header's length (2 bytes), the header as it is before it is sealed, and what
/// lies before it.
#[must_use]
pub fn pack(input: &[u8]) -> bool {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return false };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (header, body) = rest.split_at(length);
    let mut pack = body.to_vec();
    let start = pack.len();
    key().seal_into(header, &mut pack);
    let sealed = u32::try_from(pack.len() - start).unwrap_or(u32::MAX);
    pack.extend_from_slice(&sealed.to_le_bytes());
    let id = Id::of(&pack);
    let Ok(blobs) = parse_header(&key(), id, &pack) else { return parse_header(&key(), id, input).is_ok() };
    assert_eq!(blobs.iter().map(|b| b.length as usize).sum::<usize>(), body.len());
    let mut plain = Vec::new();
    let mut good = true;
    for blob in &blobs {
        let sealed = &mut pack[blob.offset as usize..][..blob.length as usize];
        good &= open_blob(&key(), id, blob, sealed, &mut plain).is_ok();
    }
    good
}

/// A blob whose content lies about itself: the packed bytes, and what they are said to unpack to.
#[must_use]
pub fn blob(input: &[u8]) -> bool {
    let Some((length, packed)) = input.split_first_chunk::<4>() else { return false };
    let mut sealed = key().seal(packed);
    let blob = crate::wire::IndexBlob {
        id: Id::of(b""),
        kind: BlobKind::Data,
        offset: 0,
        length: u32::try_from(sealed.len()).unwrap_or(u32::MAX),
        uncompressed_length: u32::from_le_bytes(*length),
    };
    open_blob(&key(), Id::of(input), &blob, &mut sealed, &mut Vec::new()).is_ok()
}

/// A directory; what was read is written as it was read.
#[must_use]
pub fn tree(input: &[u8]) -> bool {
    let Ok(nodes) = decode_tree(Id::of(input), input) else { return false };
    let again = encode_tree(&nodes).expect("what was read can be written");
    assert_eq!(decode_tree(Id::of(&again), &again).expect("what was written can be read"), nodes);
    true
}

/// A removed list; what was read is written as it was read, and moves to another directory and back.
#[must_use]
pub fn removed_list(input: &[u8]) -> bool {
    let Ok(list) = removed::decode(input) else { return false };
    let mut sorted = list.clone();
    sorted.sort_unstable();
    assert_eq!(removed::decode(&removed::encode(list.clone())).expect("what was written can be read"), sorted);
    let below: Vec<_> = list.into_iter().filter(|entry| !entry.path.is_empty()).collect();
    assert_eq!(removed::below(removed::above(below.clone(), b"d"), b"d"), below);
    true
}

/// Names as trees hold them, and addresses of repositories.
#[must_use]
pub fn names(input: &[u8]) -> bool {
    assert_eq!(quote::unquote(&quote::quote(input)).as_deref(), Some(input));
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let unquoted = quote::unquote(text);
    let location = crate::backend::Location::parse(text, |_| None);
    unquoted.is_some() || location.is_ok()
}

/// Inputs that the targets take, out of a repository with one small snapshot: the target's name, and the bytes.
///
/// # Errors
/// What the system says about the scratch directory.
pub fn seeds(scratch: &std::path::Path) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let wrong = |error: crate::Error| io::Error::other(error.to_string());
    let data = scratch.join("data");
    std::fs::create_dir_all(data.join("dir"))?;
    std::fs::write(data.join("text"), "some text that shrinks ".repeat(50))?;
    std::fs::write(data.join("dir/b\"ytes\\"), [0, 1, 2, 254])?;
    std::os::unix::fs::symlink("text", data.join("link"))?;
    std::fs::hard_link(data.join("text"), data.join("dir/other name"))?;
    let backend = std::sync::Arc::new(LocalBackend::new(scratch.join("repository")));
    let repository = Repository::init(backend.clone(), &Password::new("p"), KeyCost::Test).map_err(wrong)?;
    let request = crate::ArchiveRequest {
        time: jiff::Timestamp::UNIX_EPOCH,
        hostname: "host".into(),
        tags: vec!["tag".into()],
        parents: vec![],
        roots: vec![crate::Root {
            at: "/volumes/home".into(),
            source: crate::Source::Directory { path: data, layout: crate::Layout::OverlayUpper, exclude: vec![] },
        }],
        pass: crate::Pass::Commit,
        accept_losses: vec![],
    };
    let archived = repository.archive(&request, &perennial_core::progress::Progress::default()).map_err(wrong)?;
    let mut seeds = Vec::new();
    let mut file = |kind: u8, bytes: Vec<u8>| seeds.push(("files", [vec![kind], bytes].concat()));
    let listed = |kind| backend.list(kind).map_err(io::Error::other);
    let read = |kind, id| backend.read(kind, id).map_err(io::Error::other);
    file(0, repository.inner.key.open(&read(FileKind::Config, FileKind::CONFIG_ID)?).map_err(io::Error::other)?);
    for info in listed(FileKind::Key)? {
        file(1, read(FileKind::Key, info.id)?);
    }
    file(2, br#"{"mac":{"k":"CAgICAgICAgICAgICAgICA==","r":"CQkJCQkJCQkJCQkJCQkJCQ=="},"encrypt":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}"#.to_vec());
    for (kind, number) in [(FileKind::Index, 3), (FileKind::Snapshot, 4)] {
        for info in listed(kind)? {
            let plain = repository.inner.load_unpacked(kind, info.id).map_err(wrong)?;
            file(6, [vec![2], zstd::encode_all(&plain[..], 1)?].concat());
            file(6, plain.clone());
            file(number, plain);
        }
    }
    file(
        5,
        br#"{"time":"2026-01-01T00:00:00Z","exclusive":true,"hostname":"h","username":"u","pid":1,"uid":2,"gid":3}"#
            .to_vec(),
    );
    // A pack under the targets' own key.
    let (mut sealer, mut builder) = (Sealer::new().map_err(wrong)?, PackBuilder::default());
    for content in [&b"short"[..], &b"the same again and ".repeat(50), b""] {
        sealer.add(&mut builder, &key(), BlobKind::Data, Id::of(content), content).map_err(wrong)?;
    }
    let pack = builder.finish(&key()).data;
    let (rest, length) = pack.split_last_chunk::<4>().ok_or(io::ErrorKind::InvalidData)?;
    let (body, header) = rest.split_at(rest.len() - u32::from_le_bytes(*length) as usize);
    let header = key().open(header).map_err(io::Error::other)?;
    let length = u16::try_from(header.len()).map_err(io::Error::other)?;
    seeds.push(("pack", [&length.to_le_bytes()[..], &header, body].concat()));
    let empty = zstd::bulk::compress(b"", 1)?;
    seeds.push(("blob", [&1_u32.to_le_bytes()[..], &empty].concat()));
    let mut trees = vec![archived.tree.0];
    while let Some(id) = trees.pop() {
        let json = repository.inner.load_blob(BlobKind::Tree, id, "a seed").map_err(wrong)?;
        trees.extend(decode_tree(id, &json).map_err(wrong)?.iter().filter_map(|node| node.subtree));
        seeds.push(("tree", json));
    }
    seeds.push(("removed_list", b"/\0a/b\0c/\0".to_vec()));
    seeds.push(("names", b"s3:https://host/bucket/prefix".to_vec()));
    seeds.push(("names", b"a\\xff\\u00e4\\n".to_vec()));
    seeds.extend(channel::seeds()?.into_iter().map(|bytes| ("frames", bytes)));
    Ok(seeds)
}
