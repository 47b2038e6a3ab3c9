//! A tar, entry by entry: ustar, GNU and PAX, with sparse files in every form that GNU tar writes.
//!
//! Everything that an archive says about lengths is checked against what is there. Memory is bounded by the limits: no
//! claim of an archive is a reason to allocate.

use std::collections::BTreeMap;
use std::io::{self, Read};

use perennial_snapshots::{NodeKind, Time, Xattr};

use super::attributes::Attributes;
use super::header::{self, BLOCK, Header, Kind};
use super::sparse::{self, Map};
use super::{Broken, Limits};
use crate::library::{RECORD_COST, pax_records, pax_time};

/// The largest headers before one entry: all attributes of an inode are less on any file system.
const RECORDS_MAX: u64 = 8 << 20;
/// What is said of all entries, in bytes, with what each record takes: every entry is looked up in all of it.
const GLOBALS_MAX: usize = 64 << 10;
/// Zeros behind an archive's end: tapes had blocks of a megabyte or two.
const TRAILING_MAX: u64 = 64 << 20;
/// Headers of one entry, its own and those before it.
const HEADERS_PER_ENTRY: u64 = 4;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Something that a directory can hold.
    Node(NodeKind),
    /// Another name of an earlier entry.
    Link,
}

/// One entry.
#[derive(Debug)]
pub(crate) struct Member {
    /// As the archive says it.
    pub(crate) path: Vec<u8>,
    pub(crate) what: What,
    /// Where a link leads.
    pub(crate) target: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) device: (u32, u32),
    /// Bytes of a regular file, holes counted in.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<Xattr>,
}

/// What is said about the next entry before it.
#[derive(Default)]
struct Said {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: u64,
    any: bool,
}

/// An archive being read.
pub(crate) struct TarReader<R> {
    input: R,
    limits: Limits,
    global: BTreeMap<Vec<u8>, Vec<u8>>,
    headers: u64,
    entries: u64,
    bytes: u64,
    /// Bytes of data of the present entry that were not read.
    rest: u64,
    /// Zeros that fill its last block up.
    padding: u64,
    map: Option<Map>,
    /// How far its content was read, holes counted in.
    position: u64,
    piece: usize,
    size: u64,
}

fn of_read(error: io::Error) -> Broken {
    use io::ErrorKind as K;
    match error.kind() {
        // What unpacks says these of streams that make no sense; nobody else here does.
        K::UnexpectedEof | K::InvalidData | K::InvalidInput | K::Other => {
            Broken::refused(format!("the archive is damaged or cut short: {error}"))
        }
        _ => Broken::Io(error),
    }
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R, limits: Limits) -> Self {
        Self {
            input,
            limits,
            global: BTreeMap::new(),
            headers: 0,
            entries: 0,
            bytes: 0,
            rest: 0,
            padding: 0,
            map: None,
            position: 0,
            piece: 0,
            size: 0,
        }
    }

    /// The next entry; `None` when the archive has ended, and its stream with it.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Broken> {
        self.skip()?;
        let mut said = Said::default();
        loop {
            self.headers += 1;
            if self.headers > self.limits.entries.saturating_mul(HEADERS_PER_ENTRY) {
                return Err(too_many(self.limits));
            }
            let mut block = [0; BLOCK];
            self.exactly(&mut block)?;
            if header::is_zero(&block) {
                if said.any {
                    return Err(Broken::refused("the archive ends where it says that an entry follows"));
                }
                return self.finish().map(|()| None);
            }
            let number = self.entries + 1;
            let header =
                header::parse(&block).map_err(|problem| Broken::refused(format!("entry {number}: {problem}")))?;
            if matches!(header.kind, Kind::Node(_) | Kind::Plain | Kind::Link | Kind::Sparse) {
                return self.member(header, &block, said).map(Some);
            }
            self.about_the_next(&header, &mut said)?;
        }
    }

    fn about_the_next(&mut self, header: &Header, said: &mut Said) -> Result<(), Broken> {
        said.any = !matches!(header.kind, Kind::GlobalRecords | Kind::Label) || said.any;
        self.count(header.size)?;
        let enlarge = |said: &mut Said, by: u64| {
            said.size = said.size.saturating_add(by);
            let fits = said.size <= RECORDS_MAX;
            fits.then_some(()).ok_or_else(|| Broken::refused("the headers before an entry are too large"))
        };
        enlarge(said, header.size)?;
        self.begin(header.size);
        let mut bytes = Vec::new();
        (&mut self.input).take(self.rest).read_to_end(&mut bytes).map_err(of_read)?;
        self.rest -= bytes.len() as u64;
        let text = |bytes: &[u8]| bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        match header.kind {
            Kind::LongName => said.name = Some(text(&bytes)),
            Kind::LongTarget => said.target = Some(text(&bytes)),
            Kind::Records => {
                let records = pax_records(&bytes).map_err(of_read)?;
                enlarge(said, (records.len() * RECORD_COST) as u64)?;
                said.records.extend(records);
            }
            Kind::GlobalRecords => {
                self.global.extend(pax_records(&bytes).map_err(of_read)?);
                let cost = |(key, value): (&Vec<u8>, &Vec<u8>)| key.len() + value.len() + RECORD_COST;
                if self.global.iter().map(cost).sum::<usize>() > GLOBALS_MAX {
                    return Err(Broken::refused("the records about all entries are too large"));
                }
            }
            _ => {}
        }
        // What was cut short is found by the skip.
        self.skip()
    }

    fn member(&mut self, header: Header, block: &[u8; BLOCK], said: Said) -> Result<Member, Broken> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(too_many(self.limits));
        }
        let Said { records, name, target, .. } = said;
        let get = |key: &str| {
            let own = records.iter().rfind(|(k, _)| k == key.as_bytes()).map(|(_, value)| value);
            own.or_else(|| self.global.get(key.as_bytes())).cloned()
        };
        let said = get("GNU.sparse.name").or_else(|| get("path")).or(name);
        // Before there were types, a directory was what ended with a slash. Of a name that is said before, the header holds
        // what fits, and that may end anywhere.
        let is_old_directory = header.kind == Kind::Plain && said.is_none() && header.path.ends_with(b"/");
        let path = said.unwrap_or(header.path);
        let wrong = |problem: &str| Broken::entry(&path, problem);
        let decimal = |key: &str| {
            get(key).map(|text| sparse::decimal(&text).map_err(|_| wrong(&format!("its {key} is no number"))))
        };
        let owner = |key: &str, header: i128| match decimal(key).transpose()? {
            Some(id) => Ok(i128::from(id)),
            None => Ok::<_, Broken>(header),
        };
        let id = |id: i128| {
            let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| wrong("its owner is no number that a system has"))
        };
        let mtime = match get("mtime") {
            Some(text) => {
                let time = std::str::from_utf8(&text).ok().and_then(pax_time);
                time.ok_or_else(|| wrong("its time is no number"))?
            }
            None => header.mtime,
        };
        let (uid, gid) = (id(owner("uid", header.uid)?)?, id(owner("gid", header.gid)?)?);
        let what = match header.kind {
            Kind::Link => What::Link,
            Kind::Node(kind) => What::Node(kind),
            _ if is_old_directory => What::Node(NodeKind::Dir),
            _ => What::Node(NodeKind::File),
        };
        let target = get("linkpath").or(target).unwrap_or(header.target);
        let kind = match what {
            What::Node(kind) => kind,
            What::Link => NodeKind::File,
        };
        let mut xattrs = Attributes::default();
        let own = records.iter().map(|(key, value)| (key, value));
        for (key, value) in self.global.iter().chain(own) {
            if let Some(name) = key.strip_prefix(XATTR) {
                xattrs.add(kind, name, value).map_err(|problem| wrong(&problem))?;
            } else if key.starts_with(b"SCHILY.acl.") {
                return Err(wrong("it carries an access control list as text, which is not understood")
                    .hint("pack attributes as they are: tar --xattrs --xattrs-include='*' and no --acls"));
            }
        }
        let stored = decimal("size").transpose()?.unwrap_or(header.size);
        let is_file = what == What::Node(NodeKind::File);
        if !is_file && stored != 0 {
            return Err(wrong("it is no regular file, and has content all the same"));
        }
        // How the file's pieces are said, where it has holes.
        let sparse_size = decimal("GNU.sparse.realsize").or_else(|| decimal("GNU.sparse.size")).transpose()?;
        let version = (get("GNU.sparse.major"), get("GNU.sparse.minor"));
        let listed = get("GNU.sparse.map");
        let in_pairs = get("GNU.sparse.numblocks").is_some();
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = records
            .into_iter()
            .filter(|(key, _)| key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes")
            .collect();
        self.begin(stored);
        let refused = |problem: String| Broken::entry(&path, problem);
        let lost = || Broken::entry(&path, "it has holes, and its size is not said");
        self.map = if header.kind == Kind::Sparse {
            Some(sparse::old(block, &mut self.input).map_err(refused)?)
        } else if !is_file {
            None
        } else {
            match version {
                (Some(major), Some(minor)) if (&major[..], &minor[..]) == (b"1", b"0") => {
                    let size = sparse_size.ok_or_else(lost)?;
                    let (map, read) = sparse::leading(&mut self.input, self.rest, size).map_err(refused)?;
                    self.rest -= read;
                    Some(map)
                }
                (Some(_), _) => return Err(Broken::entry(&path, "it has holes, said in a way that is not known")),
                _ if listed.is_some() || in_pairs => {
                    let size = sparse_size.ok_or_else(lost)?;
                    let map = match listed {
                        Some(text) => sparse::listed(&text, size),
                        None => pairs_in_turn(&pairs).and_then(|numbers| sparse::pairs(&numbers, size)),
                    };
                    Some(map.map_err(refused)?)
                }
                _ => None,
            }
        };
        self.size = match &self.map {
            Some(map) if map.stored != self.rest => {
                return Err(Broken::entry(&path, "its pieces are not as long as its data"));
            }
            Some(map) => map.size,
            None => self.rest,
        };
        self.count(self.size)?;
        Ok(Member {
            path,
            what,
            target,
            mode: header.mode,
            uid,
            gid,
            mtime,
            device: header.device,
            size: self.size,
            xattrs: xattrs.into_list(),
        })
    }

    fn count(&mut self, bytes: u64) -> Result<(), Broken> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes {
            return Err(Broken::refused(format!("the archive holds more than {} bytes", self.limits.bytes))
                .hint("the server takes as much as imports.max_bytes of its configuration says"));
        }
        Ok(())
    }

    /// The content of the present entry, holes as zeros.
    pub(crate) fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    fn begin(&mut self, stored: u64) {
        self.rest = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        (self.map, self.position, self.piece, self.size) = (None, 0, 0, 0);
    }

    fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), Broken> {
        match self.input.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(cut_short()),
            other => other.map_err(of_read),
        }
    }

    /// Passes over what is left of the present entry.
    fn skip(&mut self) -> Result<(), Broken> {
        let left = self.rest.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink()).map_err(of_read)?;
        (self.rest, self.padding) = (0, 0);
        if skipped == left { Ok(()) } else { Err(cut_short()) }
    }

    /// Reads on to the end of the stream, so that what packs it can say whether all of it was good.
    fn finish(&mut self) -> Result<(), Broken> {
        let mut buffer = vec![0; 64 << 10];
        let mut read = 0;
        loop {
            match self.input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) if buffer[..got].iter().any(|b| *b != 0) => {
                    return Err(Broken::refused("something follows the end of the archive")
                        .hint("archives that were appended to each other are sent one by one"));
                }
                Ok(got) => read += got as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(of_read(error)),
            }
            if read > TRAILING_MAX {
                return Err(Broken::refused("zeros without an end follow the archive"));
            }
        }
    }
}

fn too_many(limits: Limits) -> Broken {
    Broken::refused(format!("the archive has more than {} entries", limits.entries))
        .hint("the server takes as many as imports.max_entries of its configuration says")
}

fn cut_short() -> Broken {
    Broken::refused("the archive is cut short: it ends without its mark").hint("send it again, whole")
}

/// Version 0.0 says offsets and lengths in records of their own, in turn.
fn pairs_in_turn(records: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<u64>, String> {
    let mut numbers = Vec::new();
    for (at, (key, value)) in records.iter().enumerate() {
        let expected: &[u8] = if at % 2 == 0 { b"GNU.sparse.offset" } else { b"GNU.sparse.numbytes" };
        if key != expected {
            return Err("its map of pieces is out of order".to_owned());
        }
        numbers.push(sparse::decimal(value)?);
    }
    Ok(numbers)
}

/// The content of an entry.
pub(crate) struct Content<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let it = &mut *self.0;
        let left = it.size - it.position;
        let mut most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        if let Some(map) = &it.map {
            // Where the data begins that is here or comes next.
            let (start, end) =
                map.pieces.get(it.piece).map_or((it.size, it.size), |(start, len)| (*start, start + len));
            if it.position < start {
                most = usize::try_from(start - it.position).unwrap_or(usize::MAX).min(most);
                buffer[..most].fill(0);
                it.position += most as u64;
                return Ok(most);
            }
            most = usize::try_from(end - it.position).unwrap_or(usize::MAX).min(most);
        }
        let got = it.input.read(&mut buffer[..most])?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"));
        }
        it.position += got as u64;
        it.rest -= got as u64;
        if it.map.as_ref().is_some_and(|map| map.pieces.get(it.piece).is_some_and(|(s, l)| s + l == it.position)) {
            it.piece += 1;
        }
        Ok(got)
    }
}
