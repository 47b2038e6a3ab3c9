//! The audit, for administrators.

use perennial_core::Error;

use super::{App, Caller};
use crate::audit::{Head, Numbered};
use crate::store::AuditFilter;

impl App {
    /// Lists rows behind a number, with the head as it was before they were read.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators, [`Error::Unavailable`] when the database does not answer.
    pub async fn audit(
        &self,
        caller: &Caller,
        after: i64,
        filter: &AuditFilter,
        limit: u32,
    ) -> Result<(Head, Vec<Numbered>), Error> {
        self.require_admin(caller)?;
        let head = self.store.audit_head().await?;
        Ok((head, self.store.audit_list(after, filter, limit).await?))
    }
}
