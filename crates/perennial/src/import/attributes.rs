//! Extended attributes of an archive. One that a restore could not set would make a snapshot that cannot be restored, so
//! it is refused here; one that means something to the host's own file systems must never be set at all.

use std::collections::BTreeMap;

use perennial_snapshots::{NodeKind, Xattr};

/// The longest name, as the system has it.
const NAME_MAX: usize = 255;
/// The longest value, as the system has it.
const VALUE_MAX: usize = 64 << 10;
/// All names of one entry, each with the byte that ends it, in bytes: a longer list the system does not tell anybody.
const NAMES_MAX: usize = 64 << 10;
/// All values of one entry, in bytes.
const VALUES_MAX: usize = 1 << 20;
/// What an attribute takes in memory beside its bytes, in bytes.
const COST: usize = 64;

/// All attributes of an entry, by their names.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    found: BTreeMap<String, Vec<u8>>,
    names: usize,
    values: usize,
}

impl Attributes {
    /// Takes an attribute over, in the place of one of that name; the reason when it cannot be.
    pub(crate) fn add(&mut self, kind: NodeKind, name: &[u8], value: &[u8]) -> Result<(), String> {
        let Xattr { name, value } = checked(kind, name, value)?;
        let (length, size) = (name.len() + 1, value.len());
        self.values += size;
        match self.found.insert(name, value) {
            Some(old) => self.values -= old.len(),
            None => self.names += length,
        }
        if self.names > NAMES_MAX || self.values > VALUES_MAX {
            return Err("its extended attributes are too many, or too long".to_owned());
        }
        Ok(())
    }

    /// All of them, sorted.
    pub(crate) fn into_list(self) -> Vec<Xattr> {
        self.found.into_iter().map(|(name, value)| Xattr { name, value }).collect()
    }
}

/// What attributes take in memory, in bytes.
pub(crate) fn cost(attributes: &[Xattr]) -> usize {
    attributes.iter().map(|x| x.name.len() + x.value.len() + COST).sum()
}

/// Takes an attribute over; the reason when it cannot be.
fn checked(kind: NodeKind, name: &[u8], value: &[u8]) -> Result<Xattr, String> {
    let text = std::str::from_utf8(name).map_err(|_| "the name of an extended attribute is no text".to_owned())?;
    let refuse = |why: &str| Err(format!("its extended attribute {} {why}", super::shown(name)));
    if text.len() > NAME_MAX || value.len() > VALUE_MAX {
        return refuse("is too long");
    }
    if text.contains('\0') {
        return refuse("has a zero byte in its name");
    }
    let good = match text {
        "system.posix_acl_access" => kind != NodeKind::Symlink && is_acl(value),
        "system.posix_acl_default" => kind == NodeKind::Dir && is_acl(value),
        "security.capability" => kind == NodeKind::File && is_capability(value),
        "security.selinux" => true,
        // Pipes, devices and links have none of these: the system refuses them.
        _ if text.len() > 5 && text.starts_with("user.") => matches!(kind, NodeKind::File | NodeKind::Dir),
        _ if text.starts_with("trusted.overlay.") => return refuse("would mean something to the host"),
        _ if text.len() > 8 && text.starts_with("trusted.") => true,
        _ => return refuse("is none that a restore could set"),
    };
    if good {
        Ok(Xattr { name: text.to_owned(), value: value.to_vec() })
    } else {
        refuse("is none that such an entry can have")
    }
}

fn u32_at(value: &[u8], at: usize) -> Option<u32> {
    value.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// The kernel's own rules for an access control list.
fn is_acl(value: &[u8]) -> bool {
    const VERSION: u32 = 2;
    let (entries, rest) = value.get(4..).unwrap_or_default().as_chunks::<8>();
    if u32_at(value, 0) != Some(VERSION) || !rest.is_empty() || entries.is_empty() {
        return false;
    }
    // Owner, users, group, groups, mask, others: in this order, and the mask is there when users or groups are.
    let (mut stage, mut needs_mask, mut seen) = (0, false, [0_u32; 6]);
    for entry in entries {
        let (tag, permissions) = (u16::from_le_bytes([entry[0], entry[1]]), u16::from_le_bytes([entry[2], entry[3]]));
        let id = u32_at(entry, 4);
        let at = match tag {
            0x01 => 0,
            0x02 => 1,
            0x04 => 2,
            0x08 => 3,
            0x10 => 4,
            0x20 => 5,
            _ => return false,
        };
        let named = at == 1 || at == 3;
        if at < stage || permissions & !7 != 0 || (named && id == Some(u32::MAX)) {
            return false;
        }
        stage = at;
        seen[at] += 1;
        needs_mask |= named;
    }
    seen[0] == 1 && seen[2] == 1 && seen[5] == 1 && seen[4] <= 1 && (!needs_mask || seen[4] == 1)
}

/// The kernel's own rules for capabilities of a file.
fn is_capability(value: &[u8]) -> bool {
    let revision = u32_at(value, 0).map(|magic| magic >> 24);
    matches!((revision, value.len()), (Some(1), 12) | (Some(2), 20) | (Some(3), 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn the_attributes_of_an_entry_are_no_more_than_a_system_lists() {
        let add = |count: usize, length: usize, size: usize| {
            let mut all = Attributes::default();
            let value = vec![0; size];
            (0..count).try_for_each(|n| all.add(NodeKind::File, format!("user.{n:0length$}").as_bytes(), &value))
        };
        assert_eq!(add(300, 200, 0), Ok(()));
        assert!(add(400, 200, 0).is_err());
        assert_eq!(add(16, 10, 64 << 10), Ok(()));
        assert!(add(17, 10, 64 << 10).is_err());
        // Of one name the last counts, and the others no more.
        let mut all = Attributes::default();
        let value = vec![0; 64 << 10];
        assert!((0..100).all(|_| all.add(NodeKind::File, b"user.a", &value).is_ok()));
        assert_eq!(cost(&all.into_list()), 6 + (64 << 10) + COST);
    }

    #[test]
    fn only_what_a_restore_can_set_is_taken() {
        let good = acl(&[(1, 6, !0), (2, 4, 1000), (4, 4, !0), (0x10, 6, !0), (0x20, 4, !0)]);
        let file = |name: &str, value: &[u8]| checked(NodeKind::File, name.as_bytes(), value).is_ok();
        assert!(file("user.a", b"") && file("user.b", &[0xff; 100]));
        assert!(file("system.posix_acl_access", &good));
        assert!(file("security.capability", &[&[0, 0, 0, 2][..], &[0; 16]].concat()));
        assert!(checked(NodeKind::Dir, b"system.posix_acl_default", &good).is_ok());
        for (name, value) in [
            ("trusted.overlay.opaque", &b"y"[..]),
            ("trusted.overlay.redirect", b"/etc"),
            ("trusted.", b""),
            ("user.", b""),
            ("nonsense", b""),
            ("security.ima", b""),
            ("security.capability", b"x"),
            ("system.posix_acl_access", b"\x02\0\0\0"),
            ("system.posix_acl_access", &good[..good.len() - 1]),
            ("system.posix_acl_default", &good),
        ] {
            assert!(!file(name, value), "{name}");
        }
        assert!(checked(NodeKind::Symlink, b"user.a", b"").is_err());
        assert!(checked(NodeKind::File, b"user.\xff", b"").is_err());
        let no_mask = acl(&[(1, 6, !0), (2, 4, 1000), (4, 4, !0), (0x20, 4, !0)]);
        assert!(!file("system.posix_acl_access", &no_mask));
    }
}
