//! File systems that the server uses, and what is free on them.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::AppSettings;

/// A file system in use, or one that cannot be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// What it is used for: `data`, `pods`, `repositories`.
    pub uses: Vec<&'static str>,
    /// A directory on it.
    pub path: PathBuf,
    /// What is left on it, or why nobody can tell.
    pub space: Result<Space, String>,
}

/// What a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes of all of it.
    pub total: u64,
    /// Bytes that can still be written.
    pub free: u64,
    /// Files that can still be made; `None` where that is not bounded.
    pub files: Option<u64>,
}

/// Where the server keeps something on this host.
pub(super) fn places(settings: &AppSettings) -> Vec<(&'static str, PathBuf)> {
    let mut places = vec![("data", settings.data_dir.clone()), ("pods", settings.storage_root.clone())];
    places.extend(settings.repository.directory().map(|directory| ("repositories", directory)));
    places
}

/// Looks at every file system of these places, each once. What does not exist is left out: the engine makes the storage root
/// when it first needs it.
pub(super) fn file_systems(places: &[(&'static str, PathBuf)]) -> Vec<FileSystem> {
    let mut seen: Vec<(Option<u64>, FileSystem)> = Vec::new();
    for (what, path) in places {
        let found = |space| FileSystem { uses: vec![*what], path: path.clone(), space };
        match std::fs::metadata(path) {
            Ok(meta) => match seen.iter_mut().find(|(device, _)| *device == Some(meta.dev())) {
                Some((_, known)) => known.uses.push(what),
                None => seen.push((Some(meta.dev()), found(space(path)))),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => seen.push((None, found(Err(error.to_string())))),
        }
    }
    seen.into_iter().map(|(_, found)| found).collect()
}

fn space(path: &Path) -> Result<Space, String> {
    let stat = rustix::fs::statvfs(path).map_err(|error| error.to_string())?;
    Ok(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        // File systems without a fixed number of inodes say 0.
        files: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_told_once_with_all_its_uses() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = |name: &str| directory.path().join(name);
        std::fs::create_dir(own("a")).expect("a directory");
        std::fs::write(own("file"), "").expect("a file");
        let found = file_systems(&[
            ("data", own("a")),
            ("pods", own("missing")),
            ("repositories", directory.path().to_owned()),
            ("elsewhere", "/proc".into()),
            ("nowhere", own("file").join("below")),
        ]);
        let uses: Vec<_> = found.iter().map(|one| (one.uses.as_slice(), one.space.is_ok())).collect();
        let expected: [(&[&str], bool); 3] =
            [(&["data", "repositories"], true), (&["elsewhere"], true), (&["nowhere"], false)];
        assert_eq!(uses, expected);
        let space = found[0].space.clone().expect("it can be looked at");
        assert!(space.free <= space.total && space.total > 0, "{space:?}");
    }
}
