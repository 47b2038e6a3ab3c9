//! Volumes that the server may not reach: by a mover, where they are.
//!
//! The mover is this same program ([`run`]), in a helper container that the engine's driver starts: the volumes are
//! below `/volumes`, the repository is at the other end of standard input and output, and there is nothing else. The
//! server's side is [`Reach`], which is the same to its user whether a mover is needed or not.

mod together;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use perennial_core::engine::MoverChannel;
use perennial_core::progress::Progress;
use perennial_snapshots::remote::{Session, serve};
use perennial_snapshots::{
    ArchiveRequest, Archived, Error, Held, Layout, Pass, Repository, RestoreRequest, Restored, Root, SnapshotFileId,
    Source, removed,
};

use together::Together;

/// Where volumes are in a mover, and in a snapshot.
const VOLUMES: &str = "/volumes";

/// Does what the server says on standard input, until that ends.
///
/// # Errors
/// What kept it from talking.
pub fn run() -> io::Result<()> {
    // The bare files: frames are written whole, and a buffer that looks for line ends would only copy them.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    serve(input, output, is_in_volume)
}

/// Whether a path is in a volume, by its words alone; links are not followed later.
fn is_in_volume(path: &Path) -> bool {
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    plain && path.starts_with(VOLUMES) && path != Path::new(VOLUMES)
}

/// A mover for the simulator: the same code in a thread, which sees the volumes wherever they are.
#[must_use]
pub fn simulated() -> perennial_drivers::sim::SimMover {
    perennial_drivers::sim::SimMover::new(|input, output| {
        if let Err(error) = serve(input, output, |path| path.is_absolute()) {
            tracing::debug!(%error, "a simulated mover ended");
        }
    })
}

/// Who reads and writes the volumes of a set.
pub(crate) enum Reach {
    /// This process: they are directories of this host.
    Here,
    /// A mover.
    There(Box<Session>),
}

impl Reach {
    /// Greets the mover, if there is one.
    pub(crate) fn open(repository: &Repository, channel: Option<MoverChannel>) -> Result<Self, Error> {
        let Some(MoverChannel { reader, writer }) = channel else { return Ok(Self::Here) };
        Ok(Self::There(Box::new(Session::open(repository, reader, writer)?)))
    }

    /// Tells which of these paths are directories.
    pub(crate) fn directories(&mut self, paths: &[PathBuf]) -> Result<Vec<bool>, Error> {
        match self {
            Self::Here => {
                Ok(paths.iter().map(|p| std::fs::symlink_metadata(p).is_ok_and(|found| found.is_dir())).collect())
            }
            Self::There(session) => session.look(paths),
        }
    }

    /// Makes everything in these volumes durable that somebody else wrote.
    pub(crate) fn sync(&mut self, paths: &[PathBuf]) -> Result<(), Error> {
        match self {
            // The driver did so where it could.
            Self::Here => Ok(()),
            Self::There(session) => session.sync(paths),
        }
    }

    /// As [`Repository::restore_all`]; a mover makes each of them durable by itself.
    pub(crate) fn restore_all(
        &mut self,
        repository: &Repository,
        snapshot: SnapshotFileId,
        requests: &[RestoreRequest],
        progress: &Progress,
    ) -> Result<Vec<Restored>, Error> {
        match self {
            Self::Here => repository.restore_all(snapshot, requests, progress),
            Self::There(session) => {
                requests.iter().map(|request| session.restore(snapshot, request, progress)).collect()
            }
        }
    }

    /// As [`Repository::archive`], and with `held` as [`Repository::archive_held`]: a mover captures the volumes, and
    /// this process the rest and makes the snapshot.
    pub(crate) fn archive(
        &mut self,
        repository: &Repository,
        request: &ArchiveRequest,
        held: Option<&Held<'_>>,
        progress: &Progress,
    ) -> Result<Archived, Error> {
        let is_there = |root: &Root| Path::new(&root.at).starts_with(VOLUMES);
        let (there, mut here): (Vec<Root>, Vec<Root>) = request.roots.iter().cloned().partition(is_there);
        let session = match self {
            Self::There(session) if !there.is_empty() => session,
            Self::Here | Self::There(_) => {
                return match held {
                    Some(held) => repository.archive_held(request, held, progress),
                    None => repository.archive(request, progress),
                };
            }
        };
        let pass = if request.pass == Pass::Live { Pass::Live } else { Pass::Detached };
        let volumes = ArchiveRequest { roots: there.clone(), pass, ..request.clone() };
        let mut parts = Vec::new();
        match held {
            None => parts.push((session.archive(&volumes, progress)?, there)),
            Some(held) => {
                // What this process reads belongs to the same instant.
                let is_read = |root: &Root| matches!(root.source, Source::Directory { .. });
                let (read, made): (Vec<Root>, Vec<Root>) = here.into_iter().partition(is_read);
                here = made;
                let local = ArchiveRequest { roots: read.clone(), pass, ..request.clone() };
                let (volumes, local) = archive_both(session, repository, (&volumes, &local), held, progress)?;
                parts.push((volumes, there));
                parts.extend(local.map(|local| (local, read)));
            }
        }
        if here.is_empty() && request.pass == Pass::Live {
            return Ok(parts.remove(0).0);
        }
        for (part, roots) in &parts {
            for root in roots {
                let passed = |at: String| Root { source: Source::Passed { tree: part.tree, path: at.clone() }, at };
                if matches!(root.source, Source::Directory { layout: Layout::OverlayUpper, .. }) {
                    here.push(passed(removed::list_path(&root.at)));
                }
                here.push(passed(root.at.clone()));
            }
        }
        let mut whole = repository.archive(&ArchiveRequest { roots: here, ..request.clone() }, progress)?;
        for (part, _) in parts {
            whole.new_bytes += part.new_bytes;
            whole.read_bytes += part.read_bytes;
            whole.losses.extend(part.losses);
            whole.written_packs.extend(part.written_packs);
        }
        Ok(whole)
    }
}

/// Has a mover and this process capture their parts of one instant.
fn archive_both(
    session: &mut Session,
    repository: &Repository,
    (there, here): (&ArchiveRequest, &ArchiveRequest),
    held: &Held<'_>,
    progress: &Progress,
) -> Result<(Archived, Option<Archived>), Error> {
    if here.roots.is_empty() {
        return Ok((session.archive_held(there, held, progress)?, None));
    }
    let together = Together::new(held.writers, 2);
    let (first, second) = (together.join(), together.join());
    let spool = || held.spool.clone();
    let (volumes, local) = std::thread::scope(|scope| {
        let local = scope.spawn(|| {
            let second = second;
            repository.archive_held(here, &Held { writers: &second, spool: spool() }, progress)
        });
        let volumes = session.archive_held(there, &Held { writers: &first, spool: spool() }, progress);
        drop(first);
        (volumes, local.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    match (volumes, local) {
        (Ok(volumes), Ok(local)) => Ok((volumes, Some(local))),
        // One that only waited for the other knows less.
        (Err(Error::NotHeld { .. }), Err(error)) | (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_volumes_are_in_reach() {
        for path in ["/volumes/home", "/volumes/home/deep"] {
            assert!(is_in_volume(Path::new(path)), "{path}");
        }
        for path in ["/", "/volumes", "/volumes/", "/etc", "/volumesother/x", "/volumes/../etc", "volumes/home", ""] {
            assert!(!is_in_volume(Path::new(path)), "{path}");
        }
    }
}
