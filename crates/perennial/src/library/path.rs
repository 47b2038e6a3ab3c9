//! Paths as a pod sees them; bytes, because names of files are.

use std::fmt;

use perennial_core::Error;

/// The longest path that is looked for, in bytes.
const LENGTH_MAX: usize = 16 << 10;

/// An absolute path of a pod, without empty names, `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPath(Vec<Vec<u8>>);

impl PodPath {
    /// Checks a path.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `path` when it is not absolute, could lead somewhere else than it says, or is too long.
    pub fn parse(path: &[u8]) -> Result<Self, Error> {
        let wrong =
            |problem: &str| Error::invalid("path", problem, "write a path as the pod sees it, such as /home/me");
        if path.len() > LENGTH_MAX {
            return Err(wrong("is too long"));
        }
        let rest = path.strip_prefix(b"/").ok_or_else(|| wrong("does not begin with a slash"))?;
        let names: Vec<Vec<u8>> = rest.split(|b| *b == b'/').filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
        if names.iter().any(|n| n == b"." || n == b"..") {
            return Err(wrong("contains . or .."));
        }
        if path.contains(&0) {
            return Err(wrong("contains a zero byte"));
        }
        Ok(Self(names))
    }

    /// The names on the way.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

impl fmt::Display for PodPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        self.0.iter().try_for_each(|name| write!(f, "/{}", String::from_utf8_lossy(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for bad in [&b""[..], b"home", b"./a", b"/..", b"/a/../b", b"/a/.", b"/a\0b", &[b'/'; 20_000]] {
            assert!(matches!(PodPath::parse(bad), Err(Error::InvalidInput { .. })), "{bad:?}");
        }
        for (good, shown) in [(&b"/"[..], "/"), (b"//home///me/", "/home/me"), (b"/a..b/...", "/a..b/...")] {
            assert_eq!(PodPath::parse(good).map(|p| p.to_string()).ok().as_deref(), Some(shown));
        }
        let raw = PodPath::parse(b"/x\xff").expect("bytes");
        assert_eq!(raw.names().collect::<Vec<_>>(), [b"x\xff"]);
    }
}
