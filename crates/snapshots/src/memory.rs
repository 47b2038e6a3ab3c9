//! How much memory the work on a repository keeps in flight, and where that is bounded.
//!
//! One number, [`Memory`], bounds one piece of work; what would otherwise grow with threads and their buffers is derived
//! from it here, in one table ([`Shares`]). Without it nothing is bounded but by the number of threads. What is kept is
//! counted by those who keep it ([`Charge`]), so that a test can tell whether the table is true.
//!
//! Counted: packs that are filled, sent, read back and waiting, what is read of files and of packs, what is compressed,
//! pieces and trees that are kept, names of blobs that wait for their index file. Not counted, because it is as large as what
//! is worked on and not as what is in flight: the index (49 bytes for each blob of the repository, in a table that is doubled when it
//! is seven eighths full), the entries of the directories under way, names of hard links, lists of what was removed or lost, and
//! packs and blobs of other programs that are larger than ours ever are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chunker;
use crate::pack::PackSize;

const MIB: usize = 1 << 20;
/// The largest piece of a file.
const CHUNK: usize = chunker::MAX;
/// A read of a file that comes on top of a piece which is not complete.
const READ: usize = 2 * MIB;
/// Bytes of memory for each blob of an index file while it is written, as text and compressed.
pub(crate) const NAMED: usize = 400;
/// A place of a blob, while a copy looks for it.
const PLACE: usize = 128;

/// The most memory that one piece of work on a repository keeps in flight, in bytes: a snapshot, a restore, a check, a copy or
/// a prune. What it does not bound is said in `docs/operations.md`: the index, above all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

/// Less memory than any work can do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{given} bytes are too little memory to work with")]
pub struct TooLittleMemory {
    /// What was given, in bytes.
    pub given: u64,
}

impl TooLittleMemory {
    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        "give 128Mi or more"
    }
}

impl Memory {
    /// The least that everything works with: one thread at a time reads one pack of the usual size, and fills a small one.
    pub const LEAST: Self = Self(128 << 20);

    /// A bound of so many bytes.
    ///
    /// # Errors
    /// Below [`Memory::LEAST`].
    pub const fn new(bytes: u64) -> Result<Self, TooLittleMemory> {
        if bytes < Self::LEAST.0 { Err(TooLittleMemory { given: bytes }) } else { Ok(Self(bytes)) }
    }

    /// The bound in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Work whose threads have buffers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Files are read, and what is new fills packs.
    Archive,
    /// Blobs are read, and become files.
    Restore,
    /// Whole packs are read and proven.
    Verify,
    /// Blobs of one repository fill packs of another, which are read back.
    Copy,
    /// Packs pass through a channel.
    Answer,
}

/// What work may keep, in bytes where nothing else is said. Everything here is derived from one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// All of it; none: as much as there are threads for.
    memory: Option<usize>,
    /// When a pack is full.
    pub(crate) pack: PackSize,
    /// Pieces of a megabyte that a reader keeps, of data and of trees.
    pub(crate) pieces: [usize; 2],
    /// Trees that are ready to compare with while writers are held still.
    pub(crate) ready: usize,
    /// Trees that are kept until the proof.
    pub(crate) kept: usize,
    /// Packs that wait in memory while writers are held still; none: as much as the caller says.
    spool: Option<usize>,
}

impl Shares {
    pub(crate) fn of(memory: Option<Memory>) -> Self {
        let Some(memory) = memory else {
            return Self {
                memory: None,
                pack: PackSize::default(),
                pieces: [32, 16],
                ready: 128 * MIB,
                kept: 48 * MIB,
                spool: None,
            };
        };
        // More than an address space is as good as no bound.
        let memory = usize::try_from(memory.0).unwrap_or(usize::MAX);
        Self {
            memory: Some(memory),
            // From 512 MiB on as large as without a bound.
            pack: PackSize::of(memory / 32),
            pieces: [(memory / 16 / MIB).clamp(1, 32), (memory / 32 / MIB).clamp(1, 16)],
            ready: (memory / 16).min(128 * MIB),
            kept: (memory / 16).min(48 * MIB),
            spool: Some(memory / 16),
        }
    }

    /// Packs that may wait in memory, where the caller allows so much.
    pub(crate) fn spool(&self, allowed: usize) -> usize {
        self.spool.map_or(allowed, |most| most.min(allowed))
    }

    /// Packs that may be filled at a time, of data and of trees. Who finds all of them taken waits for one.
    pub(crate) fn open_packs(&self, work: Work) -> [usize; 2] {
        match self.memory {
            None => [usize::MAX; 2],
            Some(memory) => [self.workers(work), Self::packs_of_trees(memory)],
        }
    }

    fn packs_of_trees(memory: usize) -> usize {
        (memory >> 29).clamp(1, 16)
    }

    /// The most threads that such work may have.
    pub(crate) fn workers(&self, work: Work) -> usize {
        let Some(memory) = self.memory else { return usize::MAX };
        let (all, each) = self.cost(work, memory);
        (memory.saturating_sub(all) / each).max(1)
    }

    /// What such work takes whatever the number of its threads, and what each of them does.
    fn cost(&self, work: Work, memory: usize) -> (usize, usize) {
        let open = self.pack.most_bytes() + self.pack.blobs * PackSize::MEMORY_OF_BLOB;
        let read = PackSize::default().most_bytes();
        let trees = Self::packs_of_trees(memory);
        let pieces = |kinds: &[usize]| kinds.iter().sum::<usize>() * MIB;
        // Blobs of packs that wait for it, and of the one that is one too many.
        let index = 2 * self.pack.blobs * NAMED;
        let spool = self.spool.unwrap_or_default();
        match work {
            // A store's client may keep what it sends a second time. Zeros are there once.
            Work::Archive => {
                let all = CHUNK + pieces(&self.pieces[1..]) + self.ready + self.kept + spool + index + trees * 2 * open;
                (all, CHUNK + READ + CHUNK + 2 * open)
            }
            // A blob as it is stored, as it is, and with others on its way into a file.
            Work::Restore => (CHUNK + pieces(&self.pieces), 3 * CHUNK + 2 * MIB),
            Work::Verify => (self.kept + pieces(&self.pieces[1..]), 2 * read + 2 * CHUNK + MIB),
            Work::Copy => {
                let batch = crate::copy::BATCH * PLACE;
                (pieces(&self.pieces[1..]) + index + batch + trees * 3 * open, 3 * CHUNK + 3 * open)
            }
            Work::Answer => (spool + 2 * read, 2 * read),
        }
    }
}

/// Counts what is kept by all work on one handle.
#[derive(Debug, Default)]
pub(crate) struct Account {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Account {
    /// The most that was kept at a time, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

/// Somebody's part of an account, until it is dropped. The default counts nowhere.
#[derive(Default)]
pub(crate) struct Charge {
    account: Option<Arc<Account>>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(account: &Arc<Account>, bytes: usize) -> Self {
        let mut charge = Self { account: Some(Arc::clone(account)), bytes: 0 };
        charge.set(bytes);
        charge
    }

    /// Makes a default one count from now on; any other goes on where it is.
    pub(crate) fn begin(&mut self, account: &Arc<Account>) {
        self.account.get_or_insert_with(|| Arc::clone(account));
    }

    /// Says how much is kept from now on.
    pub(crate) fn set(&mut self, bytes: usize) {
        let Some(account) = self.account.as_ref().filter(|_| bytes != self.bytes) else { return };
        if bytes > self.bytes {
            let more = (bytes - self.bytes) as u64;
            let now = account.now.fetch_add(more, Ordering::Relaxed) + more;
            account.peak.fetch_max(now, Ordering::Relaxed);
        } else {
            account.now.fetch_sub((self.bytes - bytes) as u64, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charge({})", self.bytes)
    }
}

/// Makes room for more at the end, doubling as vectors do, but to no more than `most` unless more is needed.
pub(crate) fn make_room(memory: &mut Vec<u8>, more: usize, most: usize) {
    let wanted = memory.len() + more;
    if wanted > memory.capacity() {
        let room = (2 * memory.capacity()).min(most).max(wanted);
        memory.reserve_exact(room - memory.len());
    }
}

#[cfg(test)]
mod tests;
