//! Bytes on their way from a thread that blocks to a client that may be slow.
//!
//! The end of a stream is said by the thread and never inferred from its silence: a thread that dies is a broken
//! transfer, not a short one.

use std::io::{self, Write};
use std::time::Duration;

use axum::body::Bytes;
use futures::Stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::failure::Failure;

/// Bytes in one piece.
const PIECE: usize = 256 << 10;
/// Pieces that wait for a slow client.
const WAITING: usize = 4;
/// How long a client may take for one piece before it is given up: somebody may page through a file.
const PATIENCE: Duration = Duration::from_secs(600);

enum Piece {
    Data(Bytes),
    Failed(io::Error),
    End,
}

/// What a thread writes for a client.
pub(super) struct Sink {
    pieces: mpsc::Sender<Piece>,
    handle: Handle,
    buffer: Vec<u8>,
    spoilt: bool,
}

impl Sink {
    /// Takes nothing any more: what is written from here on is no part of anything.
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
    }

    fn send(&self, piece: Piece) -> io::Result<()> {
        let sent = self.handle.block_on(async { tokio::time::timeout(PATIENCE, self.pieces.send(piece)).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client went away")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")),
        }
    }

    fn end(mut self, result: io::Result<()>) {
        let result = result.and_then(|()| self.flush());
        let last = match result {
            Ok(()) => Piece::End,
            Err(error) => {
                if error.kind() != io::ErrorKind::BrokenPipe {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a download broke off");
                }
                Piece::Failed(error)
            }
        };
        // A client that went away need not be told.
        let _ = self.send(last);
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.spoilt {
            return Ok(bytes.len());
        }
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.send(Piece::Data(full.into()))
    }
}

/// What a client reads.
pub struct Download {
    first: Option<Piece>,
    pieces: mpsc::Receiver<Piece>,
}

impl Download {
    /// Has a thread write, and waits for its first piece: what fails before is a failure with a name.
    pub(super) async fn begin(
        work: impl FnOnce(&mut Sink) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, Failure> {
        let (sender, mut pieces) = mpsc::channel(WAITING);
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let mut sink = Sink { pieces: sender, handle, buffer: Vec::with_capacity(PIECE), spoilt: false };
            let result = work(&mut sink);
            sink.end(result);
        });
        match pieces.recv().await {
            Some(Piece::Failed(error)) => Err(Failure::of_io(error, Failure::Broken)),
            first => Ok(Self { first, pieces }),
        }
    }

    /// The bytes as they come; the last item is an error unless everything was written.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        futures::stream::unfold(Some(self), |state| async {
            let mut state = state?;
            let piece = match state.first.take() {
                Some(piece) => Some(piece),
                None => state.pieces.recv().await,
            };
            match piece {
                Some(Piece::Data(bytes)) => Some((Ok(bytes), Some(state))),
                Some(Piece::End) => None,
                Some(Piece::Failed(error)) => Some((Err(error), None)),
                None => Some((Err(io::Error::other("the thread that reads the snapshot ended")), None)),
            }
        })
    }
}
