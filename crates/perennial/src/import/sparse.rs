//! Where the data of a sparse file goes. Four ways to say it are about: GNU's own header, and three versions in records.

use std::io::Read;

use super::header::{BLOCK, number};

/// Pieces of one file; a file in more is refused. Each takes 16 bytes of memory.
const PIECES_MAX: usize = 1 << 20;

/// The pieces of a file that hold data, in order; what is between them is a hole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Offsets and lengths.
    pub(crate) pieces: Vec<(u64, u64)>,
    /// The size of the file.
    pub(crate) size: u64,
    /// Bytes of data in the archive.
    pub(crate) stored: u64,
}

impl Map {
    /// Checks that the pieces are in order, do not overlap, and lie in the file.
    pub(crate) fn new(pieces: impl IntoIterator<Item = (u64, u64)>, size: u64) -> Result<Self, &'static str> {
        let (mut kept, mut end, mut stored) = (Vec::new(), 0_u64, 0_u64);
        for (offset, length) in pieces {
            let behind = offset.checked_add(length).ok_or("a piece of it lies outside of it")?;
            if offset < end {
                return Err("pieces of it overlap, or are out of order");
            }
            if behind > size {
                return Err("a piece of it lies outside of it");
            }
            end = behind;
            // Cannot overflow: pieces that do not overlap add up to the size at most.
            stored += length;
            // One of no length marks where the file ends, and says nothing.
            if length > 0 {
                kept.push((offset, length));
            }
            if kept.len() > PIECES_MAX {
                return Err("it is in too many pieces");
            }
        }
        Ok(Self { pieces: kept, size, stored })
    }
}

/// GNU's old form: four pieces in the header and more in blocks behind it. Returns the map and the blocks read.
pub(crate) fn old(block: &[u8; BLOCK], input: &mut impl Read) -> Result<Map, String> {
    let mut pieces = Vec::new();
    let size = positive(&block[483..495])?;
    let mut more = block[482] != 0;
    let mut ended = take(&block[386..482], &mut pieces)?;
    while more {
        let mut next = [0; BLOCK];
        input.read_exact(&mut next).map_err(|e| format!("its map of pieces ends early: {e}"))?;
        more = next[504] != 0;
        if ended {
            return Err("its map of pieces goes on behind its end".to_owned());
        }
        ended = take(&next[..504], &mut pieces)?;
        if pieces.len() > PIECES_MAX {
            return Err("it is in too many pieces".to_owned());
        }
    }
    Map::new(pieces, size).map_err(str::to_owned)
}

fn positive(field: &[u8]) -> Result<u64, String> {
    let number = number(field).and_then(|n| u64::try_from(n).ok());
    number.ok_or_else(|| "its map of pieces holds what is no number".to_owned())
}

/// Takes pieces of 24 bytes; reports whether the list has ended.
fn take(bytes: &[u8], pieces: &mut Vec<(u64, u64)>) -> Result<bool, String> {
    for piece in bytes.as_chunks::<24>().0 {
        if piece[0] == 0 {
            return Ok(true);
        }
        pieces.push((positive(&piece[..12])?, positive(&piece[12..])?));
    }
    Ok(false)
}

/// The text of version 0.1: offsets and lengths with commas between.
pub(crate) fn listed(text: &[u8], size: u64) -> Result<Map, String> {
    let numbers: Vec<u64> = match text {
        b"" => Vec::new(),
        _ => text.split(|b| *b == b',').map(decimal).collect::<Result<_, _>>()?,
    };
    pairs(&numbers, size)
}

/// Pairs of numbers as pieces.
pub(crate) fn pairs(numbers: &[u64], size: u64) -> Result<Map, String> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("its map of pieces is cut short".to_owned());
    }
    Map::new(pairs.iter().map(|[offset, length]| (*offset, *length)), size).map_err(str::to_owned)
}

pub(crate) fn decimal(text: &[u8]) -> Result<u64, String> {
    let digits = !text.is_empty() && text.len() <= 20 && text.iter().all(u8::is_ascii_digit);
    let number = digits.then(|| std::str::from_utf8(text).ok().and_then(|t| t.parse().ok())).flatten();
    number.ok_or_else(|| "its map of pieces holds what is no number".to_owned())
}

/// Version 1.0: the map stands before the data, in lines, filled up to a whole block. Returns the map and the bytes that
/// it took.
pub(crate) fn leading(input: &mut impl Read, most: u64, size: u64) -> Result<(Map, u64), String> {
    let mut read = 0;
    let mut block = [0; BLOCK];
    let mut at = BLOCK;
    let mut line = || -> Result<u64, String> {
        let mut text = Vec::new();
        loop {
            if at == BLOCK {
                if read + BLOCK as u64 > most {
                    return Err("its map of pieces is longer than its data".to_owned());
                }
                input.read_exact(&mut block).map_err(|e| format!("its map of pieces ends early: {e}"))?;
                read += BLOCK as u64;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            if byte == b'\n' {
                return decimal(&text);
            }
            text.push(byte);
            if text.len() > 20 {
                return Err("its map of pieces holds what is no number".to_owned());
            }
        }
    };
    let count = usize::try_from(line()?).ok().filter(|n| *n <= PIECES_MAX).ok_or("it is in too many pieces")?;
    let mut numbers = Vec::new();
    for _ in 0..count.saturating_mul(2) {
        numbers.push(line()?);
    }
    Ok((pairs(&numbers, size)?, read))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_in_order_within_the_file() {
        assert_eq!(
            Map::new([(0, 5), (10, 5), (20, 0)], 20),
            Ok(Map { pieces: vec![(0, 5), (10, 5)], size: 20, stored: 10 })
        );
        for (pieces, size) in
            [(&[(0, 5), (4, 5)][..], 20), (&[(10, 5), (0, 5)], 20), (&[(0, 21)], 20), (&[(u64::MAX, 2)], u64::MAX)]
        {
            assert!(Map::new(pieces.iter().copied(), size).is_err(), "{pieces:?}");
        }
    }

    #[test]
    fn lists_are_whole_pairs_of_numbers() {
        assert!(listed(b"0,5,10,5", 20).is_ok() && listed(b"", 20).is_ok());
        for bad in [&b"0"[..], b"0,5,", b"0,x", b"0,-5", b"0,99999999999999999999999"] {
            assert!(listed(bad, 20).is_err(), "{bad:?}");
        }
        let mut map = b"2\n0\n512\n1024\n512\n".to_vec();
        map.resize(BLOCK, 0);
        let (map, read) = leading(&mut &map[..], 2000, 2048).expect("a map");
        assert_eq!((map.stored, read), (1024, 512));
        assert!(leading(&mut &b"9999999999\n"[..], 512, 0).is_err());
    }
}
