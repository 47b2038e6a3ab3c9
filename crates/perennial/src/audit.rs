//! The audit: who changed what, in rows of which each is bound to the one before by a hash.
//!
//! Whoever changes, removes or inserts a row has to write every later one anew, and the head as well: a [`Checker`] that walks
//! the rows finds the first that does not fit, and a head that somebody kept elsewhere shows when all of them were
//! rewritten. Rows are written by the transaction of the change they tell of (`store/audit.rs`).
//!
//! The hash of a row is SHA-256 over the words `perennial audit 1` and a zero byte, the hash before (32 bytes, zeros before the first row), the
//! number (8 bytes, most significant first), and the fields in the order of [`Row`]: a zero byte for one that is absent, else a one,
//! the length in 8 bytes, and the text.

mod pod;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;

use perennial_core::id::PodId;
use sha2::{Digest as _, Sha256};

pub use pod::{PodColumns, changes};
pub use view::{Became, Fields, View, differences};

/// What a hash begins with: another encoding gets another number.
const DOMAIN: &[u8] = b"perennial audit 1\0";

tokio::task_local! {
    static REQUEST: String;
}

/// Names the request that everything `work` commits belongs to.
pub async fn in_request<T>(id: String, work: impl Future<Output = T>) -> T {
    REQUEST.scope(id, work).await
}

/// The request that this task works for; `None`: the server itself.
#[must_use]
pub fn request() -> Option<String> {
    REQUEST.try_with(Clone::clone).ok()
}

/// A hash of the chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link([u8; 32]);

impl Link {
    /// What the first row follows.
    pub const FIRST: Self = Self([0; 32]);

    /// Reads 64 hexadecimal digits; an empty text is the one before the first row.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::FIRST);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| "write the 64 hexadecimal digits of a row's hash".to_owned())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({self})")
    }
}

/// One row, as it is stored and hashed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// When, RFC 3339 in UTC with nine digits after the second.
    pub at: String,
    /// Who; `system` for the server itself.
    pub actor: String,
    /// Whose; `None`: of the installation, or of nobody knows whom.
    pub tenant: Option<String>,
    /// Which pod.
    pub pod: Option<String>,
    /// Which operation it belongs to.
    pub operation: Option<String>,
    /// The request that led to it, as in its answer (`X-Request-Id`); `None`: none did, or a server before this one was asked.
    pub request: Option<String>,
    /// What: the kind of the event, or method and path of a request that was refused.
    pub action: String,
    /// One sentence for people.
    pub message: String,
    /// What was before of that which changed, as JSON; `None`: nothing that is told did, or it is new.
    pub before: Option<String>,
    /// What it is afterwards, as JSON; `None`: nothing that is told changed, or it is gone.
    pub after: Option<String>,
    /// How it ended: `done`, `failed`, `cancelled` or `refused`.
    pub result: String,
    /// The stable reason of a failure or refusal.
    pub code: Option<String>,
}

impl Row {
    /// The hash of this row under a number, behind another.
    #[must_use]
    pub fn link(&self, before: Link, number: i64) -> Link {
        let Self { at, actor, tenant, pod, operation, request, action, message, before: was, after, result, code } =
            self;
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(before.0);
        hash.update(number.to_be_bytes());
        let fields = [
            Some(at),
            Some(actor),
            tenant.as_ref(),
            pod.as_ref(),
            operation.as_ref(),
            request.as_ref(),
            Some(action),
            Some(message),
            was.as_ref(),
            after.as_ref(),
            Some(result),
            code.as_ref(),
        ];
        for field in fields {
            match field {
                None => hash.update([0]),
                Some(text) => {
                    hash.update([1]);
                    hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
                    hash.update(text.as_bytes());
                }
            }
        }
        Link(hash.finalize().into())
    }
}

/// A row with its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Its number; the first is 1.
    pub number: i64,
    /// What it says.
    pub row: Row,
    /// The hash that is stored with it.
    pub link: Link,
}

/// The newest row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 before the first.
    pub number: i64,
    /// Its hash.
    pub link: Link,
}

/// What is wrong with the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The row is not what was written there, or the one before was written anew.
    Changed,
    /// It is not there, and later ones are.
    Removed,
    /// Nothing was written there.
    Inserted,
    /// It and all after it are not there, and were written.
    TailMissing,
    /// The head that was kept is the hash of no row: rows were written anew from some row on, or the end is missing.
    HeadUnknown,
}

/// The first row that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// Its number.
    pub number: i64,
    /// What is wrong.
    pub wrong: Wrong,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number;
        match self.wrong {
            Wrong::Changed => write!(f, "row {number} was changed, or row {} was written anew", number - 1),
            Wrong::Removed => write!(f, "row {number} was removed"),
            Wrong::Inserted => write!(f, "row {number} was inserted"),
            Wrong::TailMissing => write!(f, "the end is missing, from row {number} on"),
            Wrong::HeadUnknown => write!(
                f,
                "none of the {number} rows has the hash that was kept: the end is missing, or rows were written anew"
            ),
        }
    }
}

/// Walks the rows in their order.
#[derive(Debug)]
pub struct Checker {
    last: Head,
    /// A row that does not fit, until the next one tells whether it was changed or inserted.
    doubtful: Option<i64>,
    /// A head that somebody kept, until it was met.
    kept: Option<Link>,
}

impl Checker {
    /// One that has seen no row, and looks for a head that was kept.
    #[must_use]
    pub fn new(kept: Option<Link>) -> Self {
        let kept = kept.filter(|link| *link != Link::FIRST);
        Self { last: Head { number: 0, link: Link::FIRST }, doubtful: None, kept }
    }

    /// The last row that fitted.
    #[must_use]
    pub const fn last(&self) -> Head {
        self.last
    }

    /// Looks at the next row.
    ///
    /// # Errors
    /// What is wrong, at the first row that is.
    pub fn next(&mut self, row: &Numbered) -> Result<(), Broken> {
        let broken = |number, wrong| Err(Broken { number, wrong });
        let next = self.last.number + 1;
        if let Some(number) = self.doubtful {
            // Later rows that were only given higher numbers fit without the one that is too many.
            let fits = row.row.link(self.last.link, number) == row.link;
            return broken(number, if fits { Wrong::Inserted } else { Wrong::Changed });
        }
        if row.number < next {
            return broken(row.number, Wrong::Inserted);
        }
        if row.number > next {
            return broken(next, Wrong::Removed);
        }
        if row.row.link(self.last.link, next) != row.link {
            self.doubtful = Some(next);
            return Ok(());
        }
        self.last = Head { number: next, link: row.link };
        if self.kept == Some(row.link) {
            self.kept = None;
        }
        Ok(())
    }

    /// Compares with the head, after the last row.
    ///
    /// # Errors
    /// What is wrong.
    pub fn end(self, head: Head) -> Result<Head, Broken> {
        let broken = |number, wrong| Err(Broken { number, wrong });
        if let Some(number) = self.doubtful {
            return broken(number, if number > head.number { Wrong::Inserted } else { Wrong::Changed });
        }
        if head.number > self.last.number {
            return broken(self.last.number + 1, Wrong::TailMissing);
        }
        if head.number < self.last.number {
            return broken(head.number + 1, Wrong::Inserted);
        }
        if head.link != self.last.link {
            return broken(self.last.number, Wrong::Changed);
        }
        match self.kept {
            Some(_) => broken(self.last.number, Wrong::HeadUnknown),
            None => Ok(self.last),
        }
    }
}

/// Somebody's request that was refused, or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// Who asked.
    pub actor: &'a str,
    /// Whose the caller is; `None`: an administrator.
    pub tenant: Option<&'a str>,
    /// The method.
    pub method: &'a str,
    /// The path, which holds no secrets.
    pub path: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// The stable reason.
    pub code: &'a str,
}

/// A path without what is neither a word of ours, nor an id, nor a name: somebody may have written a token where its id belongs.
#[must_use]
pub fn path_without_secrets(path: &str) -> String {
    let is_plain = |part: &&str| {
        part.len() <= NAME_MAX
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    let parts: Vec<&str> = path.split('/').map(|part| Some(part).filter(is_plain).unwrap_or("…")).collect();
    parts.join("/")
}

/// Longest name or id in a path, in bytes.
const NAME_MAX: usize = 63;
/// Longest path that is kept of a refused request, in characters.
const PATH_MAX: usize = 200;

impl Refusal<'_> {
    /// The row for it, without its time: nothing of what was sent but where it was sent to.
    #[must_use]
    pub fn row(&self) -> Row {
        let path: String = path_without_secrets(self.path).chars().take(PATH_MAX).collect();
        let pod = self.path.split('/').find_map(|part| part.parse::<PodId>().ok());
        let pod = pod.filter(|_| self.path.contains("/pods/"));
        Row {
            actor: self.actor.to_owned(),
            tenant: self.tenant.map(str::to_owned),
            pod: pod.map(|pod| pod.to_string()),
            request: request(),
            action: format!("{} {path}", self.method),
            message: format!("answered {}", self.status),
            result: if self.status < 500 { "refused" } else { "failed" }.to_owned(),
            code: Some(self.code.to_owned()),
            ..Row::default()
        }
    }
}
