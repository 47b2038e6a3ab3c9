//! One header of a tar: 512 bytes in one of three dialects, taken apart.
//!
//! The `tar` crate reads headers as well. It takes negative numbers for huge ones, though, and its entries are read by the
//! size in the header, whatever the records before it say, so sizes beyond 8 GiB and sparse files would come out wrong.

use perennial_snapshots::{NodeKind, Time};

/// The unit of everything in a tar.
pub(crate) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something that a directory can hold.
    Node(NodeKind),
    /// A regular file; a directory when its name ends with a slash, which not the header alone says.
    Plain,
    /// Another name of an earlier entry.
    Link,
    /// A regular file with holes, in GNU's old way.
    Sparse,
    /// Records about the next entry.
    Records,
    /// Records about all that follow.
    GlobalRecords,
    /// The name of the next entry.
    LongName,
    /// Where the next entry leads.
    LongTarget,
    /// The name of the whole archive, which nobody needs.
    Label,
}

/// A header's fields.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: i128,
    pub(crate) gid: i128,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) device: (u32, u32),
}

/// Whether a block is the mark of an archive's end.
pub(crate) fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|b| *b == 0)
}

/// A number as tar writes it: octal digits, or a sign and a big-endian binary where they do not suffice.
pub(crate) fn number(field: &[u8]) -> Option<i128> {
    match field.first()? {
        0x80 | 0xff => {
            let negative = field[0] == 0xff;
            let (sign, rest) = (if negative { -1 } else { 0 }, &field[1..]);
            // More than 15 bytes do not occur: the widest field has 12.
            (rest.len() < 16).then(|| rest.iter().fold(sign, |n: i128, byte| (n << 8) | i128::from(*byte)))
        }
        _ => {
            let text = field.split(|b| *b == 0).next().unwrap_or_default();
            let text = std::str::from_utf8(text).ok()?.trim_matches(' ');
            if text.is_empty() {
                return Some(0);
            }
            text.bytes().all(|b| (b'0'..=b'7').contains(&b)).then(|| i128::from_str_radix(text, 8).ok())?
        }
    }
}

fn text(field: &[u8]) -> Vec<u8> {
    field.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// Takes a header apart; the reason when it makes no sense.
pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Header, String> {
    let wrong = |what: &str| format!("{what} in its header is no number");
    let stated = number(&block[148..156]).ok_or_else(|| wrong("the checksum"))?;
    let with_blanks = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
    let sum: i128 = block.iter().enumerate().map(|(i, b)| i128::from(with_blanks(i, *b))).sum();
    // Some programs added the bytes up as signed ones, and tars of theirs are still about.
    let signed: i128 = block.iter().enumerate().map(|(i, b)| i128::from(with_blanks(i, *b).cast_signed())).sum();
    if stated != sum && stated != signed {
        return Err("the checksum of a header is wrong: the archive is damaged, or no tar".to_owned());
    }
    let is_ustar = &block[257..263] == b"ustar\0";
    let is_gnu = &block[257..263] == b"ustar ";
    let mut path = text(&block[..100]);
    let prefix = text(&block[345..500]);
    if is_ustar && !prefix.is_empty() {
        path = [&prefix[..], b"/", &path].concat();
    }
    let kind = match block[156] {
        b'0' | 0 => Kind::Plain,
        b'7' => Kind::Node(NodeKind::File),
        b'1' => Kind::Link,
        b'2' => Kind::Node(NodeKind::Symlink),
        b'3' => Kind::Node(NodeKind::CharDevice),
        b'4' => Kind::Node(NodeKind::BlockDevice),
        b'5' => Kind::Node(NodeKind::Dir),
        b'6' => Kind::Node(NodeKind::Fifo),
        b'S' if is_gnu => Kind::Sparse,
        b'x' => Kind::Records,
        b'g' => Kind::GlobalRecords,
        b'L' => Kind::LongName,
        b'K' => Kind::LongTarget,
        b'V' => Kind::Label,
        other => return Err(format!("it is of a type that is not known, {:?}", char::from(other))),
    };
    let field = |range: std::ops::Range<usize>, what: &str| number(&block[range]).ok_or_else(|| wrong(what));
    let device = |range: std::ops::Range<usize>| {
        if is_ustar || is_gnu {
            u32::try_from(field(range, "the device")?).map_err(|_| wrong("the device"))
        } else {
            Ok(0)
        }
    };
    let seconds = i64::try_from(field(136..148, "the time")?).map_err(|_| wrong("the time"))?;
    Ok(Header {
        kind,
        path,
        target: text(&block[157..257]),
        mode: u32::try_from(field(100..108, "the mode")? & 0o7777).unwrap_or(0),
        uid: field(108..116, "the owner")?,
        gid: field(116..124, "the group")?,
        size: u64::try_from(field(124..136, "the size")?).map_err(|_| wrong("the size"))?,
        mtime: Time { seconds, nanoseconds: 0 },
        device: (device(329..337)?, device(337..345)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_may_be_negative() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777777 ", Some(0o77_777_777_777)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(8 << 30)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"12x\0", None),
            (b"-1\0", None),
            (b"8\0", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
