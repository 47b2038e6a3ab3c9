//! What a caller can do about a failure.

/// A failure, classified by what the caller can do about it.
///
/// The display text is for people; internal causes are logged where they are handled and never shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing of that name exists, or the caller may not know that it does.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for, such as `pod "dev"`.
        what: String,
    },
    /// A field of the request cannot be accepted; nothing was touched.
    #[error("{field}: {problem}")]
    InvalidInput {
        /// The field's name as the caller wrote it, such as `resources.memory`.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead; empty when the problem says it all.
        hint: String,
    },
    /// The request contradicts the present state.
    #[error("{problem}")]
    Conflict {
        /// Stable machine-readable reason, such as `pod-name-taken`.
        code: &'static str,
        /// What contradicts it.
        problem: String,
        /// How to go on.
        hint: String,
    },
    /// Nobody knows the caller, or not any more.
    #[error("{problem}")]
    Unauthorized {
        /// What is missing, without anything of what was shown.
        problem: String,
    },
    /// The caller is known but may not do this.
    #[error("not allowed: {problem}")]
    Forbidden {
        /// What is not allowed.
        problem: String,
    },
    /// A limit of the tenant or the pod is reached.
    #[error("{problem}")]
    QuotaExceeded {
        /// Which limit, and by how much.
        problem: String,
    },
    /// Something this needs does not answer now; trying again later may work.
    #[error("{problem}")]
    Unavailable {
        /// What does not answer.
        problem: String,
    },
    /// A defect or a broken environment; the details are in the log.
    #[error("internal error: {problem}")]
    Internal {
        /// A short description without secrets.
        problem: String,
    },
}

impl Error {
    /// Whether the same request may succeed later without any change.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Internal { .. } => true,
            Self::NotFound { .. }
            | Self::InvalidInput { .. }
            | Self::Conflict { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::QuotaExceeded { .. } => false,
        }
    }

    /// Builds [`Error::InvalidInput`].
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::InvalidInput { field: field.into(), problem: problem.into(), hint: hint.into() }
    }

    /// Builds [`Error::Conflict`].
    pub fn conflict(code: &'static str, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Conflict { code, problem: problem.into(), hint: hint.into() }
    }

    /// Builds [`Error::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }
}
