//! What a stream is packed with. Its first bytes say so; names of files and headers of requests are not asked.

use std::io::{self, BufReader, Read};

/// The window a zstd stream may ask for, as a power of two: what `zstd --long` takes, and 128 MiB of memory.
const WINDOW_LOG: u32 = 27;
/// How much is read at a time.
const BUFFER: usize = 256 << 10;
/// The longest magic that is looked for.
const MAGIC: usize = 6;

/// Unpacks a stream.
///
/// # Errors
/// What reading its first bytes says; a packing that is known and not taken.
pub(crate) fn unpacked<'a, R: Read + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(MAGIC);
    (&mut input).take(MAGIC as u64).read_to_end(&mut magic)?;
    let is = |bytes: &[u8]| magic.starts_with(bytes);
    let (gzip, zstd) = (is(&[0x1f, 0x8b]), is(&[0x28, 0xb5, 0x2f, 0xfd]));
    for (other, name) in [(&b"BZh"[..], "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"PK\x03\x04", "zip")] {
        if is(other) {
            let problem = format!("it is packed with {name}; send a tar, tar.gz or tar.zst");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
    }
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(magic).chain(input));
    Ok(if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(whole))
    } else if zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
        decoder.window_log_max(WINDOW_LOG)?;
        Box::new(decoder)
    } else {
        Box::new(whole)
    })
}
