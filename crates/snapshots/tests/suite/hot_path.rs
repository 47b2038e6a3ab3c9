//! What makes archives and restores cheap, and that nothing is lost by it.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "tests")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::faulty::{Fault, FaultyBackend};
use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// A directory on a disk, or none where the system has only memory for temporary files.
fn on_disk() -> Option<tempfile::TempDir> {
    let place = std::env::var_os("PERENNIAL_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    fs::create_dir_all(&place).unwrap();
    // The magic number of tmpfs.
    if rustix::fs::statfs(&place).unwrap().f_type == 0x0102_1994 {
        assert!(std::env::var_os("PERENNIAL_TEST_REQUIRE").is_none(), "{} is not on a disk", place.display());
        eprintln!("skipped: {} is not on a disk", place.display());
        return None;
    }
    Some(tempfile::tempdir_in(place).unwrap())
}

/// Bytes of files that are in the page cache.
fn cached(files: &[PathBuf]) -> u64 {
    let output = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).args(files).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().parse::<u64>().unwrap()).sum()
}

fn packs(repository: &Path) -> Vec<PathBuf> {
    let dirs = fs::read_dir(repository.join("data")).unwrap().map(|dir| dir.unwrap().path());
    dirs.flat_map(|dir| fs::read_dir(dir).unwrap().map(|pack| pack.unwrap().path())).collect()
}

/// Many small files that do not compress, in several directories, and one with the contents of some of them.
fn many_files(path: &Path) {
    for n in 0..400_u64 {
        let dir = path.join(format!("dir{}", n / 50));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file{n}")), corpus::noise(8000, n)).unwrap();
    }
    fs::create_dir(path.join("copies")).unwrap();
    for n in (0..400).step_by(37) {
        fs::write(path.join(format!("copies/{n}")), corpus::noise(8000, n)).unwrap();
    }
}

#[test]
fn a_restore_reads_packs_in_large_pieces() {
    let dir = scratch();
    let source = dir.path().join("source");
    many_files(&source);
    let (backend, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let counting = FaultyBackend::new(Arc::new(backend), Fault::Error, false);
    let repo = Repository::open(counting.clone(), &password()).unwrap();
    let before = counting.reads.load(Ordering::SeqCst);
    restore(&repo, snapshot, &dir.path().join("target"));
    let reads = counting.reads.load(Ordering::SeqCst) - before;
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&dir.path().join("target")));
    // 3.2 MB, blobs that other threads took out of turn, and a few files of the repository; not one for each of 420 blobs.
    assert!(reads < 100, "{reads} reads");
}

#[test]
fn a_blob_is_read_alone_when_its_neighbours_cannot_be_read() {
    let dir = scratch();
    let source = dir.path().join("source");
    many_files(&source);
    let (backend, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let torn = FaultyBackend::new(Arc::new(backend), Fault::Error, false);
    torn.longest_piece.store(20_000, Ordering::SeqCst);
    let repo = Repository::open(torn.clone(), &password()).unwrap();
    restore(&repo, snapshot, &dir.path().join("target"));
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&dir.path().join("target")));
    assert!(torn.reads.load(Ordering::SeqCst) > 400);
    torn.longest_piece.store(1000, Ordering::SeqCst);
    let target = dir.path().join("none");
    assert!(repo.restore(snapshot, &restore_request(&target), &Progress::default()).is_err());
}

#[test]
fn packs_do_not_stay_in_the_page_cache() {
    let Some(dir) = on_disk() else { return };
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), corpus::noise(24 << 20, 1)).unwrap();
    many_files(&source);
    let (path, repo) = local(dir.path());
    let done = archive(&repo, &source);
    let packs = packs(&path);
    let size: u64 = packs.iter().map(|pack| fs::metadata(pack).unwrap().len()).sum();
    assert!(size > 24 << 20, "{size}");
    let few = size / 8;
    assert!(cached(&packs) < few, "after writing: {} of {size}", cached(&packs));
    let written = Verify::Written { packs: done.written_packs };
    repo.verify(done.snapshot.unwrap(), &written, &Progress::default()).unwrap();
    assert!(cached(&packs) < few, "after reading back: {} of {size}", cached(&packs));
    // Proof that it would show.
    for pack in &packs {
        fs::read(pack).unwrap();
    }
    assert!(cached(&packs) > size / 2, "after somebody else read them: {} of {size}", cached(&packs));
}

#[test]
fn large_files_come_back_to_a_disk_with_holes_and_odd_ends() {
    let Some(dir) = on_disk() else { return };
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("noise"), corpus::noise((5 << 20) + 3, 1)).unwrap();
    let database = [b"SQLite format 3\0", &corpus::noise((3 << 20) + 12_345, 2)[..]].concat();
    fs::write(source.join("state.db"), &database).unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len((40 << 20) + 77).unwrap();
    // Data that begins and ends within blocks, between holes that are stored as such and zeros that are not.
    sparse.write_all_at(&corpus::noise(3 << 20, 3), (9 << 20) + 1001).unwrap();
    sparse.write_all_at(&corpus::noise(100, 4), (30 << 20) - 50).unwrap();
    sparse.write_all_at(&vec![0; 300_000], 35 << 20).unwrap();
    let (_, repo) = local(dir.path());
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let target = dir.path().join("target");
    let restored = restore(&repo, snapshot, &target);
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
    let data = (5 << 20) + 3 + database.len() as u64 + (3 << 20) + 100;
    // Zeros around the pieces fill their blocks.
    assert!((data..data + 6 * 4096).contains(&restored.written_bytes), "{} of {data}", restored.written_bytes);
}

#[test]
fn progress_counts_every_file_and_corrects_what_was_expected() {
    let dir = scratch();
    let source = dir.path().join("source");
    many_files(&source);
    // Other names of a file count as often as they are there, as in the counts of a snapshot.
    fs::hard_link(source.join("dir0/file0"), source.join("other")).unwrap();
    let (_, repo) = memory();
    let mut parent = None;
    for round in ["new", "unchanged", "partly changed"] {
        if round == "partly changed" {
            fs::write(source.join("dir1/file50"), vec![5; 100_000]).unwrap();
        }
        let request = ArchiveRequest { parents: Vec::from_iter(parent.map(Parent::Snapshot)), ..request(&source) };
        for estimate in [0, 1, 50_000_000] {
            let progress = Progress::default();
            progress.estimate(estimate);
            let archived = repo.archive(&request, &progress).unwrap();
            let read = progress.read();
            // What is made up needs no looking for.
            let there = archived.per_root.iter().map(|root| root.counts).max_by_key(|counts| counts.files).unwrap();
            assert_eq!((read.bytes_done, read.files_done), (there.bytes, there.files), "{round}");
            let total = if estimate == 1 { there.bytes } else { estimate };
            assert_eq!(read.bytes_total, total, "{round}, expected {estimate}");
            parent = archived.snapshot;
        }
    }
}
