//! Trees and their nodes: what a directory looks like inside a repository.
//!
//! A tree is a JSON object with sorted nodes. The in-memory [`Node`] holds plain Unix values; the conversion to and
//! from restic's JSON (Go's file mode bits, quoted names, RFC 3339 times) happens here and nowhere else.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::Id;
use crate::quote::{quote, unquote};

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket: recorded, but nothing is restored for it (whoever listens makes it again).
    Socket,
}

impl NodeKind {
    /// The name in the format, Go's type bits, and Unix' type bits.
    const TABLE: [(Self, &'static str, u32, u32); 7] = [
        (Self::File, "file", 0, 0o100_000),
        (Self::Dir, "dir", 1 << 31, 0o040_000),
        (Self::Symlink, "symlink", 1 << 27, 0o120_000),
        (Self::BlockDevice, "dev", 1 << 26, 0o060_000),
        (Self::CharDevice, "chardev", 1 << 26 | 1 << 21, 0o020_000),
        (Self::Fifo, "fifo", 1 << 25, 0o010_000),
        (Self::Socket, "socket", 1 << 24, 0o140_000),
    ];

    fn row(self) -> (Self, &'static str, u32, u32) {
        // Every variant has a row; the fallback only keeps this free of panics.
        Self::TABLE.into_iter().find(|row| row.0 == self).unwrap_or(Self::TABLE[0])
    }

    /// Reads the type out of a Unix `st_mode`.
    pub(crate) fn from_unix_mode(mode: u32) -> Option<Self> {
        Self::TABLE.into_iter().find(|row| row.3 == mode & 0o170_000).map(|row| row.0)
    }
}

/// A time of a file: seconds and nanoseconds since 1970, negative before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Time {
    /// Years 0 to 9999 are what the format can say; times outside (possible on XFS and btrfs) are moved to the
    /// nearest one, as restic does.
    const MIN_SECONDS: i64 = -62_167_219_200;
    const MAX_SECONDS: i64 = 253_402_207_200;

    /// The same as a timestamp; `None` when it is outside of what one can say (years -9999 to 9999).
    #[must_use]
    pub fn to_timestamp(self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::new(self.seconds, i32::try_from(self.nanoseconds).ok()?).ok()
    }

    pub(crate) fn to_text(self) -> String {
        let time = self.clamped();
        jiff::Timestamp::new(time.seconds, i32::try_from(time.nanoseconds).unwrap_or(0))
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
            .to_string()
    }

    pub(crate) fn clamped(self) -> Self {
        match self.seconds {
            s if s < Self::MIN_SECONDS => Self { seconds: Self::MIN_SECONDS, nanoseconds: 0 },
            s if s >= Self::MAX_SECONDS => Self { seconds: Self::MAX_SECONDS - 1, nanoseconds: 0 },
            _ => self,
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(Self::from)
    }
}

impl From<jiff::Timestamp> for Time {
    fn from(t: jiff::Timestamp) -> Self {
        let nanos = t.as_nanosecond();
        // Both quotients fit: a timestamp spans years -9999 to 9999.
        Self {
            seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(0),
            nanoseconds: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
        }
    }
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Name with its name space, for example `user.comment`.
    pub name: String,
    /// The value; bytes.
    pub value: Vec<u8>,
}

/// One entry of a directory in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The entry's name; bytes.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits with set-user-id, set-group-id and sticky (`07777`).
    pub mode: u32,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last access.
    pub atime: Time,
    /// Time of the last change of the inode; 1970 when it was too fresh to detect later changes by it.
    pub ctime: Time,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Inode number; 0 when unknown.
    pub inode: u64,
    /// Device number of the file system; only kept for entries with several hard links.
    pub device_id: u64,
    /// Bytes of a regular file.
    pub size: u64,
    /// Number of hard links; 0 when unknown.
    pub links: u64,
    /// Target of a symbolic link; bytes.
    pub link_target: Vec<u8>,
    /// Extended attributes, ACLs and capabilities among them, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Device number of a device node.
    pub device: u64,
    /// Blobs of a regular file, in order.
    pub content: Vec<Id>,
    /// Tree of a directory.
    pub subtree: Option<Id>,
}

impl Node {
    /// Makes an entry with nothing but a name and a type.
    #[must_use]
    pub fn new(name: impl Into<Vec<u8>>, kind: NodeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            mode: 0,
            mtime: Time::default(),
            atime: Time::default(),
            ctime: Time::default(),
            uid: 0,
            gid: 0,
            inode: 0,
            device_id: 0,
            size: 0,
            links: 0,
            link_target: Vec::new(),
            xattrs: Vec::new(),
            device: 0,
            content: Vec::new(),
            subtree: None,
        }
    }

    /// The key under which hard links of one inode find each other; none for entries with a single link.
    #[must_use]
    pub fn link_key(&self) -> Option<(u64, u64)> {
        (self.links > 1 && self.inode != 0 && self.kind != NodeKind::Dir).then_some((self.device_id, self.inode))
    }
}

#[derive(Serialize, Deserialize)]
struct WireTree<'t> {
    #[serde(borrow)]
    nodes: Vec<WireNode<'t>>,
}

#[derive(Serialize, Deserialize)]
struct WireXattr {
    name: String,
    #[serde(default, with = "crate::wire::base64_bytes")]
    value: Vec<u8>,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// restic's `Node`; the order of fields is restic's, so that equal directories get equal trees.
#[derive(Serialize, Deserialize)]
struct WireNode<'t> {
    name: String,
    #[serde(rename = "type", borrow)]
    kind: Cow<'t, str>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mode: u32,
    #[serde(default, borrow)]
    mtime: Cow<'t, str>,
    #[serde(default, borrow)]
    atime: Cow<'t, str>,
    #[serde(default, borrow)]
    ctime: Cow<'t, str>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    inode: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    device_id: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    links: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    linktarget: String,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::wire::base64_optional")]
    linktarget_raw: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::wire::null_is_default")]
    extended_attributes: Vec<WireXattr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    device: u64,
    #[serde(default)]
    content: Option<Vec<Id>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subtree: Option<Id>,
}

const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;
const SPECIAL: [(u32, u32); 3] = [(0o4000, GO_SETUID), (0o2000, GO_SETGID), (0o1000, GO_STICKY)];

impl From<&Node> for WireNode<'_> {
    fn from(node: &Node) -> Self {
        let (_, kind, type_bits, _) = node.kind.row();
        let special = SPECIAL.iter().filter(|(unix, _)| node.mode & unix != 0).fold(0, |bits, (_, go)| bits | go);
        let raw_target = std::str::from_utf8(&node.link_target).is_err().then(|| node.link_target.clone());
        Self {
            name: quote(&node.name),
            kind: kind.into(),
            mode: type_bits | special | node.mode & 0o777,
            mtime: node.mtime.to_text().into(),
            atime: node.atime.to_text().into(),
            ctime: node.ctime.to_text().into(),
            uid: node.uid,
            gid: node.gid,
            inode: node.inode,
            device_id: node.device_id,
            size: node.size,
            links: node.links,
            linktarget: String::from_utf8_lossy(&node.link_target).into_owned(),
            linktarget_raw: raw_target,
            extended_attributes: node
                .xattrs
                .iter()
                .map(|x| WireXattr { name: x.name.clone(), value: x.value.clone() })
                .collect(),
            device: node.device,
            // restic takes a missing list for damage, and an empty file for one with an empty list.
            content: (node.kind == NodeKind::File).then(|| node.content.clone()),
            subtree: node.subtree,
        }
    }
}

impl WireNode<'_> {
    fn into_node(self, tree: Id) -> Result<Node> {
        let invalid = |reason: &str| Error::invalid(format!("tree {tree}, entry {:?}", self.name), reason);
        let name = unquote(&self.name).ok_or_else(|| invalid("the name's quoting is wrong"))?;
        check_name(&name).map_err(invalid)?;
        let kind = NodeKind::TABLE.iter().find(|row| row.1 == self.kind).map(|row| row.0);
        let kind = kind.ok_or_else(|| invalid("unknown type"))?;
        let time = |text: &str| match text {
            "" => Ok(Time::default()),
            text => Time::from_text(text).ok_or_else(|| invalid("a time is not RFC 3339")),
        };
        let (mtime, atime, ctime) = (time(&self.mtime)?, time(&self.atime)?, time(&self.ctime)?);
        if kind == NodeKind::Dir && self.subtree.is_none() {
            return Err(invalid("a directory without a tree"));
        }
        // Who walks a tree goes by the subtree, and who restores it by the type: they must never mean different things.
        if kind != NodeKind::Dir && self.subtree.is_some() {
            return Err(invalid("it is no directory, and has a tree"));
        }
        if kind != NodeKind::File && self.content.as_ref().is_some_and(|blobs| !blobs.is_empty()) {
            return Err(invalid("it is no regular file, and has content"));
        }
        if kind == NodeKind::File && self.content.is_none() {
            return Err(invalid("a file without a list of blobs"));
        }
        let special = SPECIAL.iter().filter(|(_, go)| self.mode & go != 0).fold(0, |bits, (unix, _)| bits | unix);
        Ok(Node {
            name,
            kind,
            mode: special | self.mode & 0o777,
            mtime,
            atime,
            ctime,
            uid: self.uid,
            gid: self.gid,
            inode: self.inode,
            device_id: self.device_id,
            size: self.size,
            links: self.links,
            link_target: self.linktarget_raw.unwrap_or_else(|| self.linktarget.into_bytes()),
            xattrs: self.extended_attributes.into_iter().map(|x| Xattr { name: x.name, value: x.value }).collect(),
            device: self.device,
            content: self.content.unwrap_or_default(),
            subtree: self.subtree,
        })
    }
}

/// Refuses names that could lead out of a directory.
pub(crate) fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("the name is empty"),
        b"." | b".." => Err("the name is a directory reference"),
        name if name.contains(&b'/') => Err("the name contains a slash"),
        name if name.contains(&0) => Err("the name contains a zero byte"),
        _ => Ok(()),
    }
}

/// Serialises a directory's nodes, which must be sorted by name already.
pub(crate) fn encode_tree<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> Result<Vec<u8>> {
    let wire = WireTree { nodes: nodes.into_iter().map(WireNode::from).collect() };
    let mut json = serde_json::to_vec(&wire).map_err(|e| Error::invalid("a tree", e.to_string()))?;
    json.push(b'\n');
    Ok(json)
}

/// Parses a tree and refuses unsafe, unsorted or doubled names.
pub(crate) fn decode_tree(id: Id, json: &[u8]) -> Result<Vec<Node>> {
    let wire: WireTree<'_> =
        serde_json::from_slice(json).map_err(|e| Error::invalid(format!("tree {id}"), e.to_string()))?;
    let nodes = wire.nodes.into_iter().map(|node| node.into_node(id)).collect::<Result<Vec<_>>>()?;
    if nodes.windows(2).any(|pair| pair[0].name >= pair[1].name) {
        return Err(Error::invalid(format!("tree {id}"), "the entries are not sorted, or doubled"));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_names(names: &[&str]) -> Result<Vec<Node>> {
        let nodes: Vec<String> = names
            .iter()
            .map(|n| format!(r#"{{"name":"{n}","type":"fifo","mtime":"2024-01-02T03:04:05.6+01:00","content":null}}"#))
            .collect();
        decode_tree(Id([0; 32]), format!(r#"{{"nodes":[{}]}}"#, nodes.join(",")).as_bytes())
    }

    #[test]
    fn unsafe_names_unsorted_and_doubled_entries_are_refused() {
        for names in [&[".."][..], &["."], &[""], &["a/b"], &["a\\\\x00b"], &["b", "a"], &["a", "a"]] {
            assert!(decode_names(names).is_err(), "{names:?}");
        }
        assert_eq!(decode_names(&["a", "b"]).expect("valid").len(), 2);
    }

    #[test]
    fn what_a_type_cannot_have_is_refused() {
        let id = Id([7; 32]);
        for (kind, more) in [
            ("symlink", format!(r#","content":["{id}"]"#)),
            ("fifo", format!(r#","subtree":"{id}""#)),
            ("file", format!(r#","content":[],"subtree":"{id}""#)),
            ("dir", format!(r#","content":["{id}"],"subtree":"{id}""#)),
        ] {
            let json = format!(r#"{{"nodes":[{{"name":"a","type":"{kind}"{more}}}]}}"#);
            assert!(decode_tree(id, json.as_bytes()).is_err(), "{kind}");
        }
    }

    #[test]
    fn nodes_survive_the_wire() {
        let mut node = Node::new(*b"odd\xff", NodeKind::Symlink);
        node.mode = 0o7777;
        node.mtime = Time { seconds: -5, nanoseconds: 999_999_999 };
        node.link_target = b"to\xfe".to_vec();
        node.xattrs = vec![Xattr { name: "user.x".into(), value: vec![0, 255] }];
        let json = encode_tree(std::slice::from_ref(&node)).expect("encode");
        assert_eq!(decode_tree(Id([0; 32]), &json).expect("decode"), vec![node]);
    }

    #[test]
    fn times_out_of_range_move_to_the_nearest() {
        let text = Time { seconds: i64::MAX, nanoseconds: 5 }.to_text();
        assert!(text.starts_with("9999-"), "{text}");
        let text = Time { seconds: i64::MIN, nanoseconds: 5 }.to_text();
        assert!(text.starts_with("0000-01-01T00:00:00"), "{text}");
    }
}
