//! Workers: read a file, cut it, and save what the repository lacks.
//!
//! A file is looked at before and after it is read, by descriptor. In a commit pass one that changed meanwhile is read
//! again a few times and then given up as a loss; in a live pass whatever was read will do, for it is only a start.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::build::{Slot, complete};
use super::held::CopyOf;
use super::{Shared, lock};
use crate::chunker::{self, Grain};
use crate::error::{Error, Result};
use crate::fsdir::{self, Stat, XattrError};
use crate::id::Id;
use crate::memory::{Charge, make_room};
use crate::node::{Node, NodeKind, Time, Xattr};
use crate::pack::Sealer;
use crate::removed::{OverlayMark, classify};
use crate::request::{Layout, Loss, LossReason, Pass};
use crate::wire::BlobKind;

const ATTEMPTS: u32 = 4;
/// How much is read at a time.
const READ: usize = 2 << 20;
/// Files this sparse and large are asked for their holes; for smaller ones reading zeros is quicker.
const SEEK_HOLES_FROM: u64 = 2 * ZERO_CHUNK;
const ZERO_CHUNK: u64 = chunker::MAX as u64;
/// See [`LossReason::TooLarge`].
const MAX_FILE: u64 = 16 << 40;

/// The chunk that long holes are made of, and its id.
pub(crate) static ZEROS: LazyLock<(Vec<u8>, Id)> = LazyLock::new(|| {
    let zeros = vec![0; chunker::MAX];
    let id = Id::of(&zeros);
    (zeros, id)
});

/// A file to read.
pub(crate) struct Job {
    pub(crate) parent: Arc<OwnedFd>,
    pub(crate) slot: Slot,
    pub(crate) layout: Layout,
    /// Changed at or after this: later changes might not show in the inode, so the node must never count as known.
    pub(crate) racy_from: Time,
    /// Set when it is read from a copy.
    pub(crate) copy: Option<CopyOf>,
    /// The inode has several names.
    pub(crate) link: Option<(u64, u64)>,
    /// What we compare with shows that the file changes in place.
    pub(crate) in_place: bool,
}

pub(crate) struct Worker<'a> {
    shared: &'a Shared<'a>,
    sealer: Sealer,
    buffer: Vec<u8>,
    /// For what is read and what is compressed.
    charge: Charge,
}

/// What came of reading a file.
pub(crate) enum ReadError {
    Lost(LossReason),
    Failed(Error),
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        Self::Lost(loss_reason(errno))
    }
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(crate) fn loss_reason(errno: Errno) -> LossReason {
    match errno {
        // A link where a file or directory was: it was replaced, which is the same as gone.
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::STALE => LossReason::Vanished,
        Errno::XDEV => LossReason::Mount,
        other => LossReason::Unreadable(other.raw_os_error()),
    }
}

impl<'a> Worker<'a> {
    pub(crate) fn new(shared: &'a Shared<'a>) -> Result<Self> {
        Ok(Self { shared, sealer: Sealer::new()?, buffer: Vec::new(), charge: shared.inner.charge(0) })
    }

    pub(crate) fn run(&mut self, job: Job) -> Result<()> {
        let result = match self.read(&job) {
            Ok(node) => Ok(node),
            Err(ReadError::Failed(error)) => return Err(error),
            Err(ReadError::Lost(reason)) => Err(reason),
        };
        let waiting = job.link.map(|key| lock(&self.shared.links).resolve(key, result.clone())).unwrap_or_default();
        for (slot, is_other) in std::iter::once((job.slot, false)).chain(waiting.into_iter().map(|slot| (slot, true))) {
            match &result {
                Ok(node) => {
                    self.shared.count_whole(if is_other { node.size } else { 0 });
                    slot.fill(self.shared, &mut self.sealer, node.clone())?;
                }
                Err(reason) => {
                    self.shared.lose(Loss::new(&slot.path, *reason));
                    complete(self.shared, &mut self.sealer, &slot.dir)?;
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, job: &Job) -> Result<Node, ReadError> {
        let attempts = if self.shared.pass == Pass::Live { 1 } else { ATTEMPTS };
        for _ in 0..attempts {
            self.shared.check()?;
            let path_fd = fsdir::open_path(&job.parent, &job.slot.name)?;
            let before = fsdir::stat_fd(&path_fd)?;
            if before.kind() != Some(NodeKind::File) {
                return Err(ReadError::Lost(LossReason::Vanished));
            }
            if before.size > MAX_FILE {
                return Err(ReadError::Lost(LossReason::TooLarge));
            }
            let (node, after) = self.read_once(job, &path_fd, before)?;
            if after.same_state(&before) && node.size == before.size || self.shared.pass == Pass::Live {
                return Ok(node);
            }
        }
        Err(ReadError::Lost(LossReason::Changed))
    }

    fn read_once(&mut self, job: &Job, path_fd: &OwnedFd, before: Stat) -> Result<(Node, Stat), ReadError> {
        let fd = fsdir::open_readable(path_fd)?;
        let known = job.copy.map_or(before, |copy| copy.original(before));
        let mut node = known.to_node(&job.slot.name, NodeKind::File);
        let captured = capture_xattrs(&fd, job.layout, &job.slot.path)?;
        node.xattrs = captured.xattrs;
        (node.content, node.size) = self.read_content(&fd, before, job.in_place)?;
        let after = fsdir::stat_fd(&fd)?;
        // A change that comes after this read but within the clock's granularity leaves the same ctime, and so does
        // one through a page that was mapped and dirty already: such a time must not vouch for anything.
        if is_racy(before.ctime, job.racy_from) || !after.same_state(&before) {
            node.ctime = Time::default();
        }
        Ok((node, after))
    }

    /// Reads up to the size the file had when it was opened, so that a file that grows all the time has an end.
    fn read_content(&mut self, fd: &OwnedFd, stat: Stat, in_place: bool) -> Result<(Vec<Id>, u64), ReadError> {
        let mut content = Vec::new();
        let mut total = 0_u64;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let sparse = stat.size >= SEEK_HOLES_FROM && stat.blocks.saturating_mul(512) < stat.size;
        let mut next_hole_check = 0_u64;
        let mut grain = None;
        loop {
            self.shared.check()?;
            let at = total + buffer.len() as u64;
            if sparse && at >= next_hole_check && at < stat.size {
                let hole = hole_at(fd, at, stat.size);
                let zeros = hole.zeros / ZERO_CHUNK;
                if zeros > 0 {
                    // The chunk before ends where the hole starts.
                    total += self.save_chunks(&mut buffer, &mut content, grain.unwrap_or(Grain::Content), true)?;
                    let (data, id) = &*ZEROS;
                    self.shared.uploader.save_as(&mut self.sealer, BlobKind::Data, *id, data)?;
                    content.extend(std::iter::repeat_n(*id, usize::try_from(zeros).unwrap_or(0)));
                    total += zeros * ZERO_CHUNK;
                    rustix::fs::seek(fd, SeekFrom::Start(total))?;
                }
                next_hole_check = hole.next_check;
                continue;
            }
            let limit = stat.size.min(if sparse { next_hole_check } else { u64::MAX }).saturating_sub(at);
            let got = if limit > 0 { self.fill(fd, &mut buffer, limit)? } else { 0 };
            let last = got == 0 || at + got as u64 >= stat.size;
            if !buffer.is_empty() {
                let grain = *grain.get_or_insert_with(|| Grain::of(stat.size, &buffer, in_place));
                total += self.save_chunks(&mut buffer, &mut content, grain, last)?;
            }
            if last {
                break;
            }
        }
        self.buffer = buffer;
        Ok((content, total))
    }

    /// Reads once, so much that the cost of a call does not matter and so little that it stays in the caches.
    fn fill(&mut self, fd: &OwnedFd, buffer: &mut Vec<u8>, limit: u64) -> Result<usize, ReadError> {
        let room = READ.min(usize::try_from(limit).unwrap_or(usize::MAX));
        let old = buffer.len();
        make_room(buffer, room, chunker::MAX + READ);
        self.charge.set(buffer.capacity() + self.sealer.memory());
        buffer.resize(old + room, 0);
        let got = loop {
            match rustix::io::read(fd, &mut buffer[old..]) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        buffer.truncate(old + got.as_ref().map_or(0, |n| *n));
        let got = got?;
        self.shared.progress.add_bytes(got as u64);
        self.shared.read_bytes.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }

    /// Saves chunks from the front of the buffer. One that more input could make longer waits, unless this is the last.
    fn save_chunks(&mut self, buffer: &mut Vec<u8>, content: &mut Vec<Id>, grain: Grain, last: bool) -> Result<u64> {
        let mut start = 0;
        while start < buffer.len() {
            self.shared.check()?;
            let rest = &buffer[start..];
            let len = grain.cut(rest);
            if !last && len == rest.len() && len < chunker::MAX {
                break;
            }
            content.push(self.shared.uploader.save_content(&mut self.sealer, &rest[..len])?);
            start += len;
        }
        self.charge.set(buffer.capacity() + self.sealer.memory());
        buffer.drain(..start);
        Ok(start as u64)
    }
}

struct Hole {
    /// Length of the hole that starts here; 0 when there is data.
    zeros: u64,
    /// No hole starts before this.
    next_check: u64,
}

/// Asks the file system what is at an offset. It may not know holes; then everything is data.
fn hole_at(fd: &OwnedFd, at: u64, size: u64) -> Hole {
    let data = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
        Ok(data) => data.min(size),
        Err(Errno::NXIO) => size,
        Err(_) => at,
    };
    let next_check = match rustix::fs::seek(fd, SeekFrom::Hole(data)) {
        Ok(hole) if hole > data => hole.min(size),
        _ => size,
    };
    // Whatever was found, reading goes on from here. Failing at it shows when reading.
    let _ = rustix::fs::seek(fd, SeekFrom::Start(at));
    Hole { zeros: data - at, next_check: next_check.max(at + 1) }
}

/// Reports whether a change later than the scan's start could leave this time as it is.
pub(crate) fn is_racy(ctime: Time, racy_from: Time) -> bool {
    // File systems that keep whole seconds (or two) show it by a zero; they get their own, wider margin.
    let coarse = if ctime.nanoseconds == 0 { 2 } else { 0 };
    Time { seconds: ctime.seconds.saturating_add(coarse), ..ctime } >= racy_from
}

/// Extended attributes as they go into a tree.
pub(crate) struct Captured {
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) opaque: bool,
}

pub(crate) fn capture_xattrs(fd: &OwnedFd, layout: Layout, path: &[u8]) -> Result<Captured, ReadError> {
    let xattrs = match fsdir::read_xattrs(fd) {
        Ok(xattrs) => xattrs,
        Err(XattrError::Errno(errno)) => return Err(errno.into()),
        Err(XattrError::Name) => return Err(ReadError::Lost(LossReason::Unrepresentable)),
    };
    let mut captured = Captured { xattrs, opaque: false };
    if layout == Layout::OverlayUpper {
        let mut unknown = None;
        captured.xattrs.retain(|x| {
            match classify(&x.name, &x.value) {
                OverlayMark::Ordinary => return true,
                OverlayMark::Opaque => captured.opaque = true,
                OverlayMark::Bookkeeping => {}
                OverlayMark::Unknown => unknown = Some(x.name.clone()),
            }
            false
        });
        if let Some(attribute) = unknown {
            let path = Loss::new(path, LossReason::Unrepresentable).path;
            return Err(ReadError::Failed(Error::UnknownOverlayAttribute { path, attribute }));
        }
    }
    Ok(captured)
}

/// Saves bytes that are in memory as a file's content.
pub(crate) fn save_bytes(shared: &Shared<'_>, sealer: &mut Sealer, mut data: &[u8]) -> Result<Vec<Id>> {
    let mut content = Vec::new();
    while !data.is_empty() {
        let (chunk, rest) = data.split_at(Grain::Content.cut(&data[..data.len().min(chunker::MAX)]));
        content.push(shared.uploader.save(sealer, BlobKind::Data, chunk)?);
        data = rest;
    }
    Ok(content)
}
