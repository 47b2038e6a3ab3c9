//! Reading and writing packs past the page cache.
//!
//! Packs are read so rarely that keeping them there only drives out what the machine's pods work with, and going through
//! it costs a copy and the pages themselves: fresh ones may have to be fetched from a host first. Where a file system
//! cannot do so directly, the pages are given back afterwards.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Memory, offsets and lengths of direct reads are multiples of this. Devices ask for 512 or 4096.
const ALIGNMENT: usize = 4096;
/// What is written directly is copied to memory that is aligned, so much at a time: small enough for a processor's cache.
const COPIED: usize = 256 << 10;

/// Reads a part of a file that must be there whole.
///
/// # Errors
/// Those of reading; [`io::ErrorKind::UnexpectedEof`] when the file is shorter.
pub(super) fn read(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    match read_direct(file, offset, len)? {
        Some(data) => Ok(data),
        None => through_cache(file, offset, len),
    }
}

/// Writes a new file's content and makes it durable.
///
/// # Errors
/// Those of writing.
pub(super) fn write(file: &File, data: &[u8]) -> io::Result<()> {
    let written = write_direct(file, data)?;
    file.write_all_at(&data[written..], written as u64)?;
    file.sync_all()?;
    forget_pages(file, written as u64, None);
    Ok(())
}

/// Writes whole blocks directly, as many as the file system takes so; returns their bytes.
fn write_direct(file: &File, data: &[u8]) -> io::Result<usize> {
    let blocks = data.len() / ALIGNMENT * ALIGNMENT;
    let mut written = 0;
    with_direct(file, || {
        let mut memory = vec![0; COPIED + ALIGNMENT];
        let aligned = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        while written < blocks {
            let next = &data[written..blocks.min(written + COPIED)];
            let memory = &mut memory[aligned..aligned + next.len()];
            memory.copy_from_slice(next);
            match rustix::io::pwrite(file, memory, written as u64) {
                Ok(n) if n > 0 && n % ALIGNMENT == 0 => written += n,
                // Less than a block: what comes after it goes through the cache, and says why.
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })?;
    Ok(written)
}

/// Reads directly; nothing when the file system cannot.
fn read_direct(file: &File, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
    // The part, and what else is in its first and last block.
    let before = usize::try_from(offset % ALIGNMENT as u64).unwrap_or(0);
    let wanted = before + len;
    let whole = wanted.next_multiple_of(ALIGNMENT);
    let mut memory = vec![0; whole + ALIGNMENT];
    let aligned = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let read = with_direct(file, || {
        let mut read = 0;
        while read < wanted {
            let into = &mut memory[aligned + read..aligned + whole];
            match rustix::io::pread(file, into, offset - before as u64 + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(read)
    })?;
    match read {
        None => return Ok(None),
        Some(read) if read < wanted => return Err(io::ErrorKind::UnexpectedEof.into()),
        Some(_) => {}
    }
    memory.copy_within(aligned + before..aligned + wanted, 0);
    memory.truncate(len);
    Ok(Some(memory))
}

/// Does something with a file past the page cache; nothing when the file system cannot, or not any further.
fn with_direct<T>(file: &File, mut work: impl FnMut() -> Result<T, Errno>) -> io::Result<Option<T>> {
    let flags = fcntl_getfl(file)?;
    let done = fcntl_setfl(file, flags | OFlags::DIRECT).and_then(|()| work());
    fcntl_setfl(file, flags)?;
    match done {
        Ok(done) => Ok(Some(done)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn through_cache(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let length = NonZeroU64::new(len as u64);
    // By itself the system reads 128 KiB, waits, and reads on. A hint: where it is not taken, reading takes longer.
    let _ = fadvise(file, offset, length, Advice::WillNeed);
    let mut data = vec![0; len];
    file.read_exact_at(&mut data, offset)?;
    forget_pages(file, offset, length);
    Ok(data)
}

/// Gives back the memory that a part of a file takes in the page cache, as far as it is on the disk.
fn forget_pages(file: &File, offset: u64, len: Option<NonZeroU64>) {
    // A hint: where it is not taken, pages stay until somebody needs the memory.
    let _ = fadvise(file, offset, len, Advice::DontNeed);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn any_part_is_read_the_same_in_both_ways() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        let content: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&content).expect("written");
        let mut directly = 0;
        for (offset, len) in [(0, 160_000), (0, 1), (1, 4096), (4096, 4096), (4095, 8195), (159_999, 1), (8192, 0)] {
            let expected = &content[offset..offset + len];
            directly +=
                usize::from(read_direct(&file, offset as u64, len).expect("read").is_some_and(|data| data == expected));
            assert_eq!(through_cache(&file, offset as u64, len).expect("read"), expected);
            assert_eq!(read(&file, offset as u64, len).expect("read"), expected);
        }
        assert!(directly == 0 || directly == 7, "{directly} of them were right when read directly");
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error_in_both_ways() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.write_all(&[7; 5000]).expect("written");
        for (offset, len) in [(0, 5001), (4096, 905), (5000, 1), (9000, 1)] {
            for read in [read, through_cache] {
                let error = read(&file, offset, len).expect_err("too short");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {len}");
            }
        }
    }

    #[test]
    fn what_is_written_is_there_at_any_length() {
        for len in [0, 1, ALIGNMENT - 1, ALIGNMENT, ALIGNMENT + 1, COPIED, 2 * COPIED + ALIGNMENT + 7] {
            let content: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).expect("small")).collect();
            for directory in [env!("CARGO_MANIFEST_DIR"), "/dev/shm"] {
                let file = tempfile::tempfile_in(directory).expect("a file");
                write(&file, &content).expect("written");
                assert_eq!(file.metadata().expect("stat").len(), len as u64);
                assert_eq!(through_cache(&file, 0, len).expect("read"), content, "{len} in {directory}");
            }
        }
    }

    #[test]
    fn a_file_system_that_cannot_read_directly_is_read_through_its_cache() {
        // tmpfs refused it until Linux 6.6.
        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        (&file).write_all(b"in memory").expect("written");
        assert_eq!(read(&file, 3, 6).expect("read"), b"memory");
    }
}
