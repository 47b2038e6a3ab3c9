//! A body on its way in: written down and looked at while it comes.
//!
//! The body's end is said by the one who reads the request, never inferred from silence: a client that goes away leaves
//! an archive that was broken off, not a short one.

use std::io::{self, Read, Write as _};

use axum::body::Bytes;
use futures::{Stream, StreamExt as _};
use perennial_core::Error;
use perennial_core::id::SnapshotId;
use perennial_core::volume::Volume;
use tokio::sync::mpsc;

use super::layer::names;
use super::reader::TarReader;
use super::spool::{Receiving, Spool, Turn};
use super::tree::{self, Tree};
use super::{Broken, Devices, packing};

/// Pieces of a body that wait to be looked at.
const WAITING: usize = 4;
/// What of a refused body is still read, in bytes, so that its sender gets to the answer.
const DRAIN: u64 = 256 << 20;

enum Piece {
    Data(Bytes),
    End,
}

/// What is expected of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Where it belongs; empty for an archive that says where.
    pub(crate) at: Vec<Vec<u8>>,
    /// The volumes whose directories have to be in it; empty when none has to.
    pub(crate) volumes: Vec<Volume>,
    pub(crate) devices: Devices,
}

/// Receives an archive that keeps the rules, by a tenant's turn, of whom `waiting` bytes wait already; it is durable, and goes with what is returned unless that is kept.
pub(crate) async fn receive<E: std::fmt::Display>(
    spool: &Spool,
    (id, turn, waiting): (SnapshotId, Turn, u64),
    body: impl Stream<Item = Result<Bytes, E>> + Send,
    expected: Expected,
) -> Result<Receiving, Error> {
    let patience = spool.patience();
    let (sender, pieces) = mpsc::channel(WAITING);
    let spool = spool.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        look(&spool, (id, waiting), pieces, &expected)
    });
    let mut body = std::pin::pin!(body);
    let mut refused = false;
    let mut drained = 0;
    let mut broken_off = None;
    loop {
        let Ok(piece) = tokio::time::timeout(patience, body.next()).await else {
            broken_off = Some(format!("nothing came for {} seconds", patience.as_secs()));
            break;
        };
        let Some(piece) = piece else { break };
        match piece {
            Ok(bytes) if refused => {
                drained += bytes.len() as u64;
                if drained > DRAIN {
                    break;
                }
            }
            Ok(bytes) => refused = sender.send(Piece::Data(bytes)).await.is_err(),
            Err(error) => {
                broken_off = Some(error.to_string());
                break;
            }
        }
    }
    if broken_off.is_none() {
        // Whoever does not listen any more has refused it.
        let _ = sender.send(Piece::End).await;
    }
    drop(sender);
    let looked = looking.await.map_err(|e| Error::Internal { problem: format!("receive an archive: {e}") })?;
    looked.map_err(|broken| match (broken, broken_off) {
        (Broken::Io(_), Some(reason)) => {
            Error::invalid("archive", format!("broke off: {reason}"), "send it again, whole")
        }
        (broken, _) => broken.into(),
    })
}

fn look(
    spool: &Spool,
    (id, waiting): (SnapshotId, u64),
    pieces: mpsc::Receiver<Piece>,
    expected: &Expected,
) -> Result<Receiving, Broken> {
    let receiving = spool.begin(id, waiting).map_err(Broken::Io)?;
    let mut incoming = Incoming { pieces, present: Bytes::new(), ended: false, receiving };
    let input = packing::unpacked(&mut incoming).map_err(packed)?;
    let mut reader = TarReader::new(input, spool.limits());
    let tree = Tree::read(&mut reader, &expected.at, (expected.devices, spool.limits()), &mut tree::unknown)?;
    drop(reader);
    // What unpacks may stop at its own end: nothing may follow it.
    if incoming.read(&mut [0]).map_err(Broken::Io)? != 0 {
        return Err(Broken::refused("something follows the end of the archive"));
    }
    for volume in &expected.volumes {
        if tree.find_directory(&names(&volume.mount_path)).is_none() {
            return Err(super::layer::incomplete(volume));
        }
    }
    incoming.receiving.sync().map_err(Broken::Io)?;
    Ok(incoming.receiving)
}

fn packed(error: io::Error) -> Broken {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Broken::refused(error.to_string()),
        _ => Broken::Io(error),
    }
}

/// The body, for a thread that blocks.
struct Incoming {
    pieces: mpsc::Receiver<Piece>,
    present: Bytes,
    ended: bool,
    receiving: Receiving,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.present.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => {
                    self.receiving.write_all(&bytes)?;
                    self.present = bytes;
                }
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client went away")),
            }
        }
        let part = self.present.split_to(buffer.len().min(self.present.len()));
        buffer[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use perennial_core::spec::TenantId;

    use super::*;
    use crate::import::Limits;

    #[tokio::test]
    async fn a_body_that_brings_nothing_ends_and_its_turn_is_anothers() {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(directory.path(), Limits::default()).with_patience(Duration::from_millis(20));
        let (id, tenant) = (SnapshotId::from_parts(1, [1; 10]), TenantId::default_tenant());
        let expected = || Expected { at: Vec::new(), volumes: Vec::new(), devices: Devices::Refused };
        let first = futures::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"a"))]);
        let silent = first.chain(futures::stream::pending());
        let turn = spool.turn(&tenant).expect("a turn");
        let error = receive(&spool, (id, turn, 0), silent, expected()).await.err().expect("refused");
        assert!(error.to_string().contains("nothing came"), "{error}");
        assert!(spool.waiting().expect("listed").is_empty());
        assert!(spool.turn(&tenant).is_ok(), "the turn is free again");
    }
}
