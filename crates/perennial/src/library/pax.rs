//! What the headers before an entry of a tar say about it: PAX records and GNU's long names.
//!
//! The `tar` crate ends a record at the first line's end, and values of extended attributes are bytes. So entries are
//! read raw, and the records by their lengths.

use std::io::{self, Read};

use perennial_snapshots::Time;
use tar::{Entry, EntryType};

/// The prefix of extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// The largest extension that is read: all attributes of an inode are less on any file system.
const SIZE_MAX: u64 = 8 << 20;
/// What a record takes in memory beside its bytes, in bytes: the shortest is 5 bytes long.
pub(crate) const RECORD_COST: usize = 64;

/// What is said about the next entry.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    /// Bytes of all headers before this entry.
    size: u64,
}

impl Extensions {
    /// Takes a raw entry in when it is about the next one; tells whether it is.
    pub(crate) fn take_in<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<bool> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(true);
        }
        if !matches!(kind, EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink) {
            return Ok(false);
        }
        self.size = self.size.saturating_add(entry.size());
        if self.size > SIZE_MAX {
            return Err(invalid("the extension headers of an entry are too large"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let text = |bytes: Vec<u8>| bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.name = Some(text(bytes)),
            EntryType::GNULongLink => self.target = Some(text(bytes)),
            _ => self.records.extend(records(&bytes)?),
        }
        Ok(true)
    }

    /// What a record says.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The path of the entry.
    pub(crate) fn path<R: Read>(&self, entry: &Entry<'_, R>) -> Vec<u8> {
        let said = self.get("path").or(self.name.as_deref());
        said.map_or_else(|| entry.path_bytes().into_owned(), <[u8]>::to_vec)
    }

    /// Where a link leads.
    pub(crate) fn target<R: Read>(&self, entry: &Entry<'_, R>) -> Vec<u8> {
        let said = self.get("linkpath").or(self.target.as_deref());
        said.map_or_else(|| entry.link_name_bytes().unwrap_or_default().into_owned(), <[u8]>::to_vec)
    }

    /// Owner and group.
    pub(crate) fn owner<R: Read>(&self, entry: &Entry<'_, R>) -> io::Result<(u32, u32)> {
        let id = |key, header: u64| match self.get(key) {
            Some(text) => std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()),
            None => u32::try_from(header).ok(),
        };
        let header = entry.header();
        let owner = id("uid", header.uid()?).zip(id("gid", header.gid()?));
        owner.ok_or_else(|| invalid("an owner is no number that a system has"))
    }

    /// Time of the last change of the content.
    pub(crate) fn mtime<R: Read>(&self, entry: &Entry<'_, R>) -> io::Result<Time> {
        match self.get("mtime") {
            Some(text) => {
                let time = std::str::from_utf8(text).ok().and_then(time);
                time.ok_or_else(|| invalid("a time is no number"))
            }
            None => {
                let seconds = i64::try_from(entry.header().mtime()?).unwrap_or(i64::MAX);
                Ok(Time { seconds, nanoseconds: 0 })
            }
        }
    }

    /// Extended attributes: names and values.
    pub(crate) fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.records.iter().filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?, value.as_slice())))
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Reads records of the form `LENGTH KEY=VALUE\n`, where the length counts all of it.
pub(crate) fn records(mut bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let broken = || invalid("a record of an extension header is broken");
    let mut records = Vec::new();
    let mut cost = 0_u64;
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(broken)?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|t| t.parse::<usize>().ok());
        let length = length.filter(|l| (space + 2..=bytes.len()).contains(l)).ok_or_else(broken)?;
        let (record, rest) = bytes.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(broken)?;
        if equals == 0 {
            return Err(broken());
        }
        cost = cost.saturating_add((length + RECORD_COST) as u64);
        if cost > SIZE_MAX {
            return Err(invalid("an extension header has too many records"));
        }
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = rest;
    }
    Ok(records)
}

/// A time: seconds with decimals, negative before 1970.
pub(crate) fn time(text: &str) -> Option<Time> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = decimals.chars().chain("000000000".chars()).take(9).collect();
    let (whole, nanoseconds): (i64, u32) = (whole.parse().ok()?, digits.parse().ok()?);
    Some(if text.starts_with('-') && nanoseconds > 0 {
        Time { seconds: whole.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds }
    } else {
        Time { seconds: whole, nanoseconds }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal_numbers() {
        let at = |seconds, nanoseconds| Some(Time { seconds, nanoseconds });
        assert_eq!(time("12"), at(12, 0));
        assert_eq!(time("12.5"), at(12, 500_000_000));
        assert_eq!(time("-1.25"), at(-2, 750_000_000));
        assert_eq!(time("-3"), at(-3, 0));
        assert_eq!(time("-0.5"), at(-1, 500_000_000));
        assert_eq!((time("x"), time("1.x"), time("-9223372036854775808.5")), (None, None, None));
    }

    #[test]
    fn records_are_read_by_their_lengths() {
        let found = records(b"9 a=x\ny=\n6 b=\xff\n5 c=\n").ok();
        let record = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        assert_eq!(found, Some(vec![record(b"a", b"x\ny="), record(b"b", b"\xff"), record(b"c", b"")]));
        for bad in
            [&b"9"[..], b"x a=b\n", b"99 a=b\n", b"2 a=b\n", b"6 a=bc", b"6 abc\n", b"0 a=b\n", b" a=b\n", b"4 =\n"]
        {
            assert!(records(bad).is_err(), "{bad:?}");
        }
        assert!(records(&b"5 a=\n".repeat(100_000)).is_ok());
        assert!(records(&b"5 a=\n".repeat(200_000)).is_err(), "a million bytes would be many more in memory");
    }
}
