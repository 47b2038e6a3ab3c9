//! Workers: write regular files and their further names.

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ftruncate, linkat, openat, renameat, unlinkat};
use rustix::io::{Errno, ReadWriteFlags};

use super::meta;
use super::plan::{Shared, Task, complete, lock};
use super::remove::{remove_entry, temporary_name};
use crate::archive::ZEROS;
use crate::error::{Error, Result};
use crate::fsdir::{self, Stat, proc_path};
use crate::id::Id;
use crate::memory::{Charge, make_room};
use crate::node::{Node, NodeKind};
use crate::reader::{KEPT, Scratch};
use crate::repository::Inner;
use crate::verify::plain_length;
use crate::wire::BlobKind;

/// Blocks of zeros of this size and alignment are not written: they stay holes.
const BLOCK: usize = 4096;
/// Small blobs of a larger file are written together, this much at a time.
const GATHER: usize = 1 << 20;
/// Linux' `RWF_DONTCACHE`: what is written goes to the disk at once, and its memory is given back when it is there. A
/// restore would otherwise drive everything else out of memory, and fetching so much costs more than writing.
const UNCACHED: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Smaller pieces are left to the system, which gathers them on their way to the disk.
const UNCACHED_FROM: usize = 128 << 10;

/// Where an entry goes, and what was there.
pub(crate) struct Place {
    pub(crate) task: Arc<Task>,
    pub(crate) name: Vec<u8>,
    pub(crate) existing: Option<Stat>,
}

/// A regular file to write.
pub(crate) struct Job {
    pub(crate) place: Place,
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) node: Node,
}

/// The first name of an inode that has several.
#[derive(Clone)]
pub(crate) struct Source {
    place: Arc<Place>,
    inode: u64,
}

/// Inodes with several names, by the snapshot's device and inode number.
#[derive(Default)]
pub(crate) struct Links(HashMap<(u64, u64), Link>);

enum Link {
    Writing(Vec<Place>),
    Known(Source),
}

/// What to do with one more name.
pub(crate) enum LinkState {
    /// It is the first: make it and report with [`Links::resolve`].
    First,
    /// A worker writes the inode and will make the name.
    Waiting,
    /// Link to it.
    Known(Source),
}

impl Links {
    pub(crate) fn meet(&mut self, key: (u64, u64), place: impl FnOnce() -> Place) -> LinkState {
        match self.0.get_mut(&key) {
            None => {
                self.0.insert(key, Link::Writing(Vec::new()));
                LinkState::First
            }
            Some(Link::Writing(waiting)) => {
                waiting.push(place());
                LinkState::Waiting
            }
            Some(Link::Known(source)) => LinkState::Known(source.clone()),
        }
    }

    /// Records the inode and returns it with the names that waited for it.
    pub(crate) fn resolve(&mut self, key: (u64, u64), place: Place, inode: u64) -> (Source, Vec<Place>) {
        let source = Source { place: Arc::new(place), inode };
        match self.0.insert(key, Link::Known(source.clone())) {
            Some(Link::Writing(waiting)) => (source, waiting),
            _ => (source, Vec::new()),
        }
    }
}

/// One worker, with the memory that it uses for every file.
#[derive(Default)]
pub(crate) struct Writer {
    scratch: Scratch,
    gathered: Vec<u8>,
    /// For what is gathered.
    charge: Charge,
}

impl Writer {
    pub(crate) fn run(&mut self, shared: &Shared<'_>, job: Job) -> Result<()> {
        let Job { place, fd, node } = job;
        let inode = write_file(self, shared, &place, &fd, &node)?;
        self.charge.begin(&shared.inner.account);
        self.charge.set(self.gathered.capacity());
        self.scratch.trim();
        if self.gathered.capacity() > KEPT {
            self.gathered = Vec::new();
            self.charge.set(0);
        }
        shared.count(&node);
        let task = Arc::clone(&place.task);
        if let Some(key) = node.link_key() {
            let (source, waiting) = lock(&shared.links).resolve(key, place, inode);
            for place in waiting {
                link_to(shared, &source, &place)?;
                shared.count(&node);
                complete(shared, &place.task)?;
            }
        }
        complete(shared, &task)
    }
}

/// Gives an inode another name.
pub(crate) fn link_to(shared: &Shared<'_>, source: &Source, place: &Place) -> Result<()> {
    if place.existing.is_some_and(|stat| stat.ino == source.inode) {
        return Ok(());
    }
    let dir = &place.task.dir;
    let error = shared.error("link", dir, &place.name);
    let from = source.place.task.dir.fd_once().map_err(&error)?;
    let inode = fsdir::open_path(&from, &source.place.name).map_err(&error)?;
    if fsdir::stat_fd(&inode).map_err(&error)?.ino != source.inode {
        // Somebody else's file has taken the name since.
        return Err(error(Errno::STALE));
    }
    let fd = dir.fd_once().map_err(&error)?;
    if place.existing.is_some_and(|stat| stat.kind() == Some(NodeKind::Dir)) {
        remove_entry(dir, &fd, &place.name).map_err(&error)?;
        shared.done.removed.fetch_add(1, Ordering::Relaxed);
    }
    let temporary = place.existing.map(|_| temporary_name());
    let name = temporary.as_deref().unwrap_or(&place.name);
    linkat(CWD, proc_path(&inode), &*fd, name, AtFlags::SYMLINK_FOLLOW).map_err(&error)?;
    temporary.map_or(Ok(()), |temporary| rename_over(&fd, &temporary, &place.name)).map_err(&error)
}

fn rename_over(fd: &OwnedFd, temporary: &[u8], name: &[u8]) -> Result<(), Errno> {
    renameat(fd, temporary, fd, name).inspect_err(|_| {
        let _ = unlinkat(fd, temporary, AtFlags::empty());
    })
}

/// Writes a file, or finds it as it must be; returns its inode number.
fn write_file(writer: &mut Writer, shared: &Shared<'_>, place: &Place, fd: &OwnedFd, node: &Node) -> Result<u64> {
    let dir = &place.task.dir;
    let error = shared.error("write", dir, &node.name);
    let overlay = place.task.overlay_of_entries();
    if let Some(stat) = place.existing {
        // A file with more names than it should have shares its inode with something else.
        let alone = stat.nlink == 1 || node.link_key().is_some();
        let same = same_content((shared.inner, &mut writer.gathered), fd, node, &stat, &|| shared.check());
        let same = same.map_err(|e| e.into_error(&error))?;
        if let Some((file, stat)) = same.filter(|_| alone) {
            meta::apply(&file, &stat, node, overlay).map_err(&error)?;
            shared.done.unchanged.fetch_add(1, Ordering::Relaxed);
            shared.progress.add_bytes(node.size);
            return Ok(stat.ino);
        }
        if stat.kind() == Some(NodeKind::Dir) {
            remove_entry(dir, fd, &node.name).map_err(&error)?;
            shared.done.removed.fetch_add(1, Ordering::Relaxed);
        }
    }
    let temporary = place.existing.map(|_| temporary_name());
    let name = temporary.as_deref().unwrap_or(&node.name);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(fd, name, flags, first_mode(shared, node)).map_err(&error)?;
    let written = write_content(writer, shared, &file, node, &error).and_then(|()| {
        let stat = fsdir::stat_fd(&file).map_err(&error)?;
        meta::apply(&file, &stat, node, overlay).map_err(&error)?;
        Ok(stat.ino)
    });
    match (written, &temporary) {
        (Ok(inode), None) => Ok(inode),
        (Ok(inode), Some(temporary)) => rename_over(fd, temporary, &node.name).map(|()| inode).map_err(&error),
        (Err(e), temporary) => {
            if let Some(temporary) = temporary {
                let _ = unlinkat(fd, temporary.as_slice(), AtFlags::empty());
            }
            Err(e)
        }
    }
}

/// The mode a file is made with: its own saves a call when its owner is who makes it. Until it has its group as well,
/// the group it happens to get may do no more than everybody.
fn first_mode(shared: &Shared<'_>, node: &Node) -> Mode {
    let own = Mode::RUSR | Mode::WUSR;
    let group_like_others = node.mode >> 3 & 0o7 & !node.mode == 0;
    if shared.uid == node.uid && group_like_others { own | Mode::from_raw_mode(node.mode & 0o777) } else { own }
}

fn write_content(
    writer: &mut Writer,
    shared: &Shared<'_>,
    file: &OwnedFd,
    node: &Node,
    error: &impl Fn(Errno) -> Error,
) -> Result<()> {
    let Writer { scratch, gathered, .. } = writer;
    gathered.clear();
    let mut end = 0;
    let mut write = |data: &[u8], offset: u64| -> Result<()> {
        let written = write_sparse(file, data, offset).map_err(error)?;
        shared.done.written.fetch_add(written.bytes, Ordering::Relaxed);
        end = written.end.unwrap_or(end);
        Ok(())
    };
    // Where the file is known up to; what was gathered ends there.
    let mut offset = 0_u64;
    for blob in &node.content {
        shared.check()?;
        if *blob == ZEROS.1 {
            write(gathered, offset - gathered.len() as u64)?;
            gathered.clear();
            offset += ZEROS.0.len() as u64;
            shared.progress.add_bytes(ZEROS.0.len() as u64);
            continue;
        }
        let name = String::from_utf8_lossy(&node.name);
        let data = shared.reader.load(BlobKind::Data, *blob, &name, scratch)?;
        shared.progress.add_bytes(data.len() as u64);
        offset += data.len() as u64;
        if node.content.len() == 1 {
            write(data, 0)?;
            continue;
        }
        make_room(gathered, data.len(), GATHER);
        gathered.extend_from_slice(data);
        if gathered.len() >= GATHER {
            // Ends with a block, so that none is written twice.
            let rest = usize::try_from(offset % BLOCK as u64).unwrap_or(0);
            let whole = gathered.len() - rest;
            write(&gathered[..whole], offset - gathered.len() as u64)?;
            gathered.drain(..whole);
        }
    }
    write(gathered, offset - gathered.len() as u64)?;
    // A hole at the end exists only by the size.
    if end != node.size {
        ftruncate(file, node.size).map_err(error)?;
    }
    if offset == node.size {
        Ok(())
    } else {
        let what = format!("bytes of {}", String::from_utf8_lossy(&node.name));
        Err(Error::Mismatch { what, expected: node.size, found: offset })
    }
}

/// What became of a piece of a file.
struct Written {
    bytes: u64,
    /// Where the last of them ends in the file.
    end: Option<u64>,
}

/// Writes all but blocks of zeros.
fn write_sparse(file: &OwnedFd, data: &[u8], offset: u64) -> Result<Written, Errno> {
    let mut written = Written { bytes: 0, end: None };
    let mut at = 0;
    while at < data.len() {
        let end = block_end(data.len(), at, offset);
        if is_zero(&data[at..end]) {
            at = end;
            continue;
        }
        let start = at;
        at = end;
        while at < data.len() {
            let end = block_end(data.len(), at, offset);
            if is_zero(&data[at..end]) {
                break;
            }
            at = end;
        }
        write_all_at(file, &data[start..at], offset + start as u64)?;
        written.bytes += (at - start) as u64;
        written.end = Some(offset + at as u64);
    }
    Ok(written)
}

/// The end of the block that `at` lies in, blocks being aligned in the file and not in the data.
fn block_end(len: usize, at: usize, offset: u64) -> usize {
    let within = usize::try_from((offset + at as u64) % BLOCK as u64).unwrap_or(0);
    (at + BLOCK - within).min(len)
}

fn is_zero(block: &[u8]) -> bool {
    // Nearly every block shows it at once; a whole one is compared in large steps.
    block.first() == Some(&0) && block == &[0; BLOCK][..block.len()]
}

fn write_all_at(file: &OwnedFd, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        let flags = if data.len() >= UNCACHED_FROM { UNCACHED } else { ReadWriteFlags::empty() };
        let written = match rustix::io::pwritev2(file, &[IoSlice::new(data)], offset, flags) {
            // Kernels before 6.14, and file systems that cannot.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => rustix::io::pwrite(file, data, offset),
            other => other,
        };
        match written {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                data = &data[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Why two files could not be compared.
pub(crate) enum CompareError {
    Errno(Errno),
    Error(Error),
}

impl CompareError {
    pub(crate) fn into_error(self, wrap: &impl Fn(Errno) -> Error) -> Error {
        match self {
            Self::Errno(e) => wrap(e),
            Self::Error(e) => e,
        }
    }
}

/// Opens an existing file when it is the node's already: compared by content, because times can be set by anybody. What
/// the buffer held is gone.
pub(crate) fn same_content(
    (inner, buffer): (&Inner, &mut Vec<u8>),
    dir: &OwnedFd,
    node: &Node,
    seen: &Stat,
    check: &dyn Fn() -> Result<()>,
) -> Result<Option<(OwnedFd, Stat)>, CompareError> {
    let fits = |stat: &Stat| stat.kind() == Some(NodeKind::File) && stat.size == node.size;
    if !fits(seen) {
        return Ok(None);
    }
    let path_fd = fsdir::open_path(dir, &node.name).map_err(CompareError::Errno)?;
    let stat = fsdir::stat_fd(&path_fd).map_err(CompareError::Errno)?;
    if !fits(&stat) {
        return Ok(None);
    }
    let file = fsdir::open_readable(&path_fd).map_err(CompareError::Errno)?;
    for blob in &node.content {
        check().map_err(CompareError::Error)?;
        let Some(found) = inner.find_blob(BlobKind::Data, *blob) else { return Ok(None) };
        buffer.resize(usize::try_from(plain_length(&found.blob)).unwrap_or(0), 0);
        if !read_exact(&file, buffer).map_err(CompareError::Errno)? || Id::of(buffer) != *blob {
            return Ok(None);
        }
    }
    Ok(Some((file, stat)))
}

fn read_exact(file: &OwnedFd, mut buffer: &mut [u8]) -> Result<bool, Errno> {
    while !buffer.is_empty() {
        match rustix::io::read(file, &mut *buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => buffer = &mut buffer[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Reports whether a link, device or pipe is the node's already.
pub(crate) fn same_special(fd: &OwnedFd, node: &Node, stat: &Stat) -> rustix::io::Result<bool> {
    let alone = stat.nlink == 1 || node.link_key().is_some();
    if stat.kind() != Some(node.kind) || !alone {
        return Ok(false);
    }
    match node.kind {
        NodeKind::Symlink => Ok(rustix::fs::readlinkat(fd, &node.name, Vec::new())?.as_bytes() == node.link_target),
        NodeKind::Fifo => Ok(true),
        _ => Ok(stat.rdev == node.device),
    }
}
