//! A directory or file of a snapshot as a tar.
//!
//! POSIX headers; what they cannot say is in PAX records: long names, targets and names that are not UTF-8, times to
//! the nanosecond and before 1970, extended attributes as `SCHILY.xattr.<name>`. Names of one inode are hard links
//! within the archive. Holes are written out; sockets are left out, as every tar does.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use perennial_snapshots::{Node, NodeKind};
use tar::{Builder, EntryType, Header};

use super::failure::Failure;
use super::view::{Found, Origin, View};

/// The longest name and target of a link that fit into a header, in bytes.
const NAME_MAX: usize = 100;
/// What the header's number of an owner or a time can say.
const NUMBER_MAX: u64 = 0o7_777_777;
/// The largest size that fits into a header.
const SIZE_MAX: u64 = 0o77_777_777_777;

/// Writes an entry and everything below it. A directory's own name is `./`, a file's its name.
pub(super) fn write(view: &View, top: &Found, into: &mut impl Write) -> io::Result<()> {
    let builder = Builder::new(Open { into, spoilt: false });
    let mut export = Export { view, builder, inodes: HashMap::new() };
    let written = match top.node.kind {
        NodeKind::Dir => export.directory(top),
        _ => export.entry(top, &top.node.name),
    };
    match written {
        Ok(()) => export.builder.finish(),
        Err(error) => {
            // Dropped, the builder would write the end of an archive that broke off.
            export.builder.get_mut().spoilt = true;
            Err(error)
        }
    }
}

/// A writer that can be closed for good.
struct Open<W> {
    into: W,
    spoilt: bool,
}

impl<W: Write> Write for Open<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.spoilt { Ok(bytes.len()) } else { self.into.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

struct Export<'a, W: Write> {
    view: &'a View,
    builder: Builder<W>,
    /// The first name of each inode with several; only those take memory.
    inodes: HashMap<(Origin, u64, u64), Vec<u8>>,
}

fn stopped(failure: Failure) -> io::Error {
    match failure {
        Failure::Repository(error) => io::Error::other(error),
        other => io::Error::other(perennial_core::Error::from(other)),
    }
}

impl<W: Write> Export<'_, W> {
    fn directory(&mut self, top: &Found) -> io::Result<()> {
        self.entry(top, b"./")?;
        let mut stack = vec![(b"./".to_vec(), self.view.list(top).map_err(stopped)?.into_iter())];
        while let Some((path, entries)) = stack.last_mut() {
            let Some(found) = entries.next() else {
                stack.pop();
                continue;
            };
            let mut name = [&path[..], &found.node.name].concat();
            if found.node.kind == NodeKind::Dir {
                name.push(b'/');
                self.entry(&found, &name)?;
                let below = self.view.list(&found).map_err(stopped)?;
                stack.push((name, below.into_iter()));
            } else {
                self.entry(&found, &name)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, found: &Found, name: &[u8]) -> io::Result<()> {
        let node = &found.node;
        let link = node.link_key().map(|(device, inode)| (found.origin.clone(), device, inode));
        if let Some(first) = link.as_ref().and_then(|key| self.inodes.get(key)) {
            let target = first.clone();
            return self.append(node, EntryType::Link, name, &target, io::empty());
        }
        match node.kind {
            NodeKind::Dir => self.append(node, EntryType::Directory, name, b"", io::empty())?,
            NodeKind::Symlink => self.append(node, EntryType::Symlink, name, &node.link_target, io::empty())?,
            NodeKind::CharDevice => self.append(node, EntryType::Char, name, b"", io::empty())?,
            NodeKind::BlockDevice => self.append(node, EntryType::Block, name, b"", io::empty())?,
            NodeKind::Fifo => self.append(node, EntryType::Fifo, name, b"", io::empty())?,
            NodeKind::Socket => return Ok(()),
            NodeKind::File => {
                let content = self.view.open_file(found).map_err(stopped)?;
                self.append(node, EntryType::Regular, name, b"", content)?;
            }
        }
        if let Some(key) = link {
            self.inodes.insert(key, name.to_vec());
        }
        Ok(())
    }

    fn append(&mut self, node: &Node, kind: EntryType, name: &[u8], target: &[u8], data: impl Read) -> io::Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let mut say = |key: &str, value: &[u8]| records.push((key.to_owned(), value.to_vec()));
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(node.mode & 0o7777);
        let old = header.as_old_mut();
        for (field, value, key) in [(&mut old.name, name, "path"), (&mut old.linkname, target, "linkpath")] {
            let fits = value.len() <= NAME_MAX;
            field[..value.len().min(NAME_MAX)].copy_from_slice(&value[..value.len().min(NAME_MAX)]);
            if !fits || std::str::from_utf8(value).is_err() {
                say(key, value);
            }
        }
        let size = if kind == EntryType::Regular { node.size } else { 0 };
        header.set_size(size);
        if size > SIZE_MAX {
            say("size", size.to_string().as_bytes());
        }
        for (key, id) in [("uid", node.uid), ("gid", node.gid)] {
            if u64::from(id) > NUMBER_MAX {
                say(key, id.to_string().as_bytes());
            }
        }
        header.set_uid(u64::from(node.uid).min(NUMBER_MAX));
        header.set_gid(u64::from(node.gid).min(NUMBER_MAX));
        let seconds = u64::try_from(node.mtime.seconds).ok().filter(|s| *s <= SIZE_MAX);
        header.set_mtime(seconds.unwrap_or(0));
        if seconds.is_none() || node.mtime.nanoseconds != 0 {
            say("mtime", decimal(node).as_bytes());
        }
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(node.device))?;
            header.set_device_minor(rustix::fs::minor(node.device))?;
        }
        // An inode's attributes are said once, with its first name.
        if kind != EntryType::Link {
            for attribute in &node.xattrs {
                say(&format!("SCHILY.xattr.{}", attribute.name), &attribute.value);
            }
        }
        header.set_cksum();
        self.builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        self.builder.append(&header, data)
    }
}

/// A time as PAX writes it: a decimal number, and negative ones are further from zero the earlier they are.
fn decimal(node: &Node) -> String {
    let total = i128::from(node.mtime.seconds) * 1_000_000_000 + i128::from(node.mtime.nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    format!("{sign}{}.{:09}", total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000)
}
