//! The data directory: closed to others, locked by one server, with its token and its name.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Bytes of randomness in the admin token: 256 bits.
const TOKEN_BYTES: usize = 32;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The file system refused.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: String,
        /// The answer.
        source: io::Error,
    },
    /// Another server runs on it.
    #[error("another server uses {0}")]
    Locked(String),
    /// A file that was written before is empty or not text.
    #[error("{0} is damaged")]
    Damaged(String),
}

impl DirectoryError {
    /// How to go on.
    #[must_use]
    pub const fn hint(&self) -> &str {
        match self {
            Self::Io { .. } => "check the path, its owner and the free space; --data-dir chooses another",
            Self::Locked(_) => "stop it first, or choose another --data-dir",
            Self::Damaged(_) => "remove that file to have a new one made",
        }
    }
}

/// A data directory in use; unlocked when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    admin_token: String,
    server_id: String,
    new: bool,
    _lock: File,
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DirectoryError + 'a {
    move |source| DirectoryError::Io { doing, path: path.display().to_string(), source }
}

impl DataDir {
    /// Makes the directory when it is missing, locks it, and reads or makes what is in it.
    ///
    /// # Errors
    /// [`DirectoryError::Locked`] when another server uses it, else what the file system answered.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))?;
        let lock = path.join("lock");
        let file =
            OpenOptions::new().create(true).append(true).mode(0o600).open(&lock).map_err(failed("open", &lock))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DirectoryError::Locked(path.display().to_string())),
            Err(error) => return Err(failed("lock", &lock)(error.into())),
        }
        // Only now, so that nobody changes the mode of a directory that is not theirs to use.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed("close", path))?;
        // Other programs look at their modes, too, and a repository may lie on a disk of its own.
        for name in ["keys", "repositories"] {
            let path = path.join(name);
            // What is there stays as it is, also a link to a disk that is not mounted now.
            if path.symlink_metadata().is_err() {
                DirBuilder::new().mode(0o700).create(&path).map_err(failed("make", &path))?;
            }
        }
        let (admin_token, new) = ensure_secret(&path.join("admin-token"))?;
        let (server_id, _) = ensure_secret(&path.join("server-id"))?;
        Ok(Self { path: path.to_owned(), admin_token, server_id, new, _lock: file })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The token made at the first start.
    #[must_use]
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// This server's name in leases: the same after a restart, so that it does not wait for its own leases to end.
    ///
    /// The lock makes sure that no earlier process of this name is alive.
    #[must_use]
    pub fn server_id(&self) -> &str {
        &self.server_id
    }

    /// Whether this is the first start.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.new
    }
}

/// Reads a one-line file, or makes it with random text: whole or not at all, on the disk when this returns.
fn ensure_secret(path: &Path) -> Result<(String, bool), DirectoryError> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok((text.trim().to_owned(), false)),
        Ok(_) => return Err(DirectoryError::Damaged(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(DirectoryError::Damaged(path.display().to_string()));
        }
        Err(error) => return Err(failed("read", path)(error)),
    }
    let text = hex::encode(rand::random::<[u8; TOKEN_BYTES]>());
    write_new(path, &text).map_err(failed("write", path))?;
    Ok((text, true))
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("look at it").permissions().mode() & 0o777
    }

    #[test]
    fn everything_is_closed_to_others_and_stays_the_same() {
        let parent = tempfile::tempdir().expect("make a directory");
        let path = parent.path().join("data");
        let first = DataDir::open(&path).expect("open");
        assert!(first.is_new());
        for directory in ["", "keys", "repositories"] {
            assert_eq!(mode(&path.join(directory)), 0o700, "{directory}");
        }
        for file in ["admin-token", "server-id", "lock"] {
            assert_eq!(mode(&path.join(file)), 0o600, "{file}");
        }
        let (token, name) = (first.admin_token().to_owned(), first.server_id().to_owned());
        drop(first);
        let second = DataDir::open(&path).expect("open again");
        assert!(!second.is_new());
        assert_eq!((second.admin_token(), second.server_id()), (token.as_str(), name.as_str()));
    }

    #[test]
    fn a_second_server_is_refused() {
        let parent = tempfile::tempdir().expect("make a directory");
        let _first = DataDir::open(parent.path()).expect("open");
        assert!(matches!(DataDir::open(parent.path()), Err(DirectoryError::Locked(_))));
    }

    #[test]
    fn an_empty_token_is_not_a_token() {
        let parent = tempfile::tempdir().expect("make a directory");
        std::fs::write(parent.path().join("admin-token"), "").expect("write");
        assert!(matches!(DataDir::open(parent.path()), Err(DirectoryError::Damaged(_))));
    }
}
