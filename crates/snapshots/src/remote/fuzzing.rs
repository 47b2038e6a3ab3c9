//! The channel's messages, for the fuzz targets.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::frame::{Sender, receive};
use super::message::{Bytes, Call, Job, Outcome, PROTOCOL, Place, ToFar, ToNear, decode_listing};
use crate::id::Id;

/// Everything that comes through a channel until it ends or makes no sense, as either end would read it.
#[must_use]
pub fn frames(input: &[u8]) -> bool {
    let mut reader = input;
    let mut any = false;
    while let Ok(Some(frame)) = receive(&mut reader) {
        let far = frame.head::<ToFar>();
        if let Ok(ToFar::Answer { failure: Some(failure), .. }) = far {
            let _ = failure.error().kind();
        }
        let near = frame.head::<ToNear>();
        if let Ok(ToNear::Done { outcome: Outcome::Failed(failed) }) = near {
            let _ = failed.error(None).is_retryable();
        }
        let _ = decode_listing(&frame.body);
        any |= frame.head::<ToFar>().is_ok() || frame.head::<ToNear>().is_ok();
    }
    any
}

#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Vec<u8>>>);

impl io::Write for Collect {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the two ends say to each other, each message alone and all in a row.
pub(crate) fn seeds() -> io::Result<Vec<Vec<u8>>> {
    let paths = || vec![Bytes(b"/data/home".to_vec())];
    let call = |what| ToNear::Call { call: 1, what };
    let id = Id::of(b"x");
    let mut all = Vec::new();
    let mut say = |send: &dyn Fn(&Sender) -> io::Result<()>| -> io::Result<()> {
        let into = Collect::default();
        send(&Sender::new(into.clone()))?;
        all.push(into.0.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok(())
    };
    say(&|to| to.send(&ToFar::Job { job: Job::Look { paths: paths() } }, b""))?;
    say(&|to| to.send(&ToFar::Job { job: Job::Sync { paths: paths() } }, b""))?;
    say(&|to| to.send(&ToFar::Cancel, b""))?;
    say(&|to| to.send(&ToFar::Answer { call: 1, failure: None }, &[1; 80]))?;
    say(&|to| to.send(&ToNear::Hello { protocol: PROTOCOL }, b""))?;
    say(&|to| to.send(&ToNear::Progress { bytes: 1, files: 2, total: 3 }, b""))?;
    say(&|to| to.send(&call(Call::Write { kind: Place::Pack, id }), b"a pack"))?;
    say(&|to| to.send(&call(Call::ReadRange { kind: Place::Index, id, offset: 1, length: 2 }), b""))?;
    say(&|to| to.send(&ToNear::Done { outcome: Outcome::Looked { there: vec![true, false] } }, b""))?;
    let row = all.concat();
    all.push(row);
    Ok(all)
}
