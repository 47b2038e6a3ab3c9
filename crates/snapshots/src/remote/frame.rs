//! Frames: what goes through the channel, one after the other.
//!
//! `head length (4 bytes, little endian) || body length (4) || head (JSON) || body (bytes)`. Lengths are bounded, and
//! memory grows with what arrives, not with what is announced.

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest head. The longest ones are lists of losses.
const HEAD_MAX: u32 = 64 << 20;
/// Longest body: restic writes packs of up to 128 MiB, and somebody's index file may be larger than ours.
const BODY_MAX: u32 = 256 << 20;

/// One frame as it arrived.
pub(super) struct Frame {
    head: Vec<u8>,
    pub(super) body: Vec<u8>,
}

impl Frame {
    /// What the head says.
    pub(super) fn head<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.head).map_err(|e| invalid(format!("a message that makes no sense: {e}")))
    }
}

/// The writing side, shared by threads; a frame is never torn apart.
pub(super) struct Sender(Mutex<Box<dyn Write + Send>>);

impl Sender {
    pub(super) fn new(writer: impl Write + Send + 'static) -> Self {
        Self(Mutex::new(Box::new(writer)))
    }

    pub(super) fn send(&self, head: &impl Serialize, body: &[u8]) -> io::Result<()> {
        let head = serde_json::to_vec(head).map_err(|e| invalid(format!("a message that cannot be written: {e}")))?;
        let length = |bytes: &[u8], max: u32| match u32::try_from(bytes.len()) {
            Ok(length) if length <= max => Ok(length.to_le_bytes()),
            _ => Err(invalid(format!("a message of {} bytes is too long", bytes.len()))),
        };
        let (head_length, body_length) = (length(&head, HEAD_MAX)?, length(body, BODY_MAX)?);
        // One write for what is small: each may be a packet of its own.
        let mut start = Vec::with_capacity(8 + head.len());
        start.extend_from_slice(&head_length);
        start.extend_from_slice(&body_length);
        start.extend_from_slice(&head);
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&start)?;
        writer.write_all(body)?;
        writer.flush()
    }
}

/// Reads the next frame; `None` when the other end closed the channel between two frames.
pub(super) fn receive(reader: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut lengths = Vec::with_capacity(8);
    reader.by_ref().take(8).read_to_end(&mut lengths)?;
    if lengths.is_empty() {
        return Ok(None);
    }
    let Ok(lengths) = <[u8; 8]>::try_from(lengths) else { return Err(torn()) };
    let [h0, h1, h2, h3, b0, b1, b2, b3] = lengths;
    let (head, body) = (u32::from_le_bytes([h0, h1, h2, h3]), u32::from_le_bytes([b0, b1, b2, b3]));
    if head > HEAD_MAX || body > BODY_MAX {
        return Err(invalid(format!("a message of {head} and {body} bytes is too long")));
    }
    Ok(Some(Frame { head: exactly(reader, head)?, body: exactly(reader, body)? }))
}

fn exactly(reader: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.by_ref().take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == u64::from(length) { Ok(bytes) } else { Err(torn()) }
}

fn torn() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other end went away in the middle of a message")
}

pub(super) fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Collect(std::sync::Arc<Mutex<Vec<u8>>>);

    impl Write for Collect {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("alone").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn frames_round_trip_and_torn_or_endless_ones_are_errors() {
        let written = std::sync::Arc::default();
        let sender = Sender::new(Collect(std::sync::Arc::clone(&written)));
        sender.send(&("head", 1), b"body").expect("send");
        let bytes = written.lock().expect("alone").clone();
        let mut reader = bytes.as_slice();
        let frame = receive(&mut reader).expect("receive").expect("a frame");
        assert_eq!((frame.head::<(String, u32)>().expect("head"), frame.body), (("head".into(), 1), b"body".to_vec()));
        assert!(receive(&mut reader).expect("the end").is_none());
        for cut in 1..bytes.len() {
            let error = receive(&mut &bytes[..cut]).err().expect("torn");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
        let endless = [&u32::MAX.to_le_bytes()[..], &[0; 4], b"{}"].concat();
        assert_eq!(receive(&mut endless.as_slice()).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidData));
        assert!(frame_of(b"not json").head::<u32>().is_err());
    }

    fn frame_of(head: &[u8]) -> Frame {
        Frame { head: head.to_vec(), body: Vec::new() }
    }
}
