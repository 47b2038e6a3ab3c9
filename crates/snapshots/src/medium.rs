//! Telling a part of a medium that is gone from a store that is gone.

use crate::backend::{BackendError, FileKind};
use crate::error::Error;
use crate::id::Id;
use crate::repository::Inner;

/// Packs that are tried besides the one that cannot be read.
const OTHERS: usize = 3;

impl Inner {
    /// What it means that the medium gives nothing of a pack, or of a part of it: damage, when that happens again while
    /// another pack can be read. Otherwise, and for every other error, nothing: a store that is gone has lost nothing.
    pub(crate) fn lost_by_medium(&self, error: &BackendError) -> Option<Error> {
        let BackendError { kind: FileKind::Pack, id: Some(id), .. } = error else { return None };
        let fails_again = || self.read_past_caches(*id).is_err_and(|again| again.is_medium());
        if !error.is_medium() || !fails_again() {
            return None;
        }
        let mut others = self.list_packs().ok()?.into_keys().filter(|other| other != id).take(OTHERS);
        let reason = || format!("a part of it cannot be read: {}", error.source);
        others.any(|other| self.read_past_caches(other).is_ok()).then(|| Error::damaged(FileKind::Pack, *id, reason()))
    }

    /// The error of reading, when it says that a part of the medium is gone, as the damage that it is.
    pub(crate) fn judged(&self, error: Error) -> Error {
        let damage = if let Error::Backend(error) = &error { self.lost_by_medium(error) } else { None };
        damage.unwrap_or(error)
    }

    fn read_past_caches(&self, pack: Id) -> Result<Vec<u8>, BackendError> {
        self.backend.drop_caches(FileKind::Pack, pack)?;
        self.backend.read(FileKind::Pack, pack)
    }
}
