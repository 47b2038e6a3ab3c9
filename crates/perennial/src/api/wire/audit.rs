//! The audit.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::audit::{Head, Link, Numbered, Row};

/// A part of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditPage {
    /// The rows, oldest first.
    pub items: Vec<AuditRow>,
    /// What to pass as `after` for the next page; null on the last.
    pub next: Option<String>,
    /// The newest row there was when the page was read, whatever was asked for.
    pub head: AuditHead,
}

/// The newest row of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditHead {
    /// Its number; 0 before the first.
    pub number: i64,
    /// Its hash: kept elsewhere it shows later whether the audit was rewritten (`perennial audit verify --head`).
    pub hash: String,
}

/// One row of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    /// Its number; the first is 1, and none is left out.
    pub number: i64,
    /// When, with nine digits after the second.
    #[schema(format = DateTime)]
    pub at: String,
    /// Who; `system` for the server itself.
    pub actor: String,
    /// Whose; null when it is of no tenant.
    pub tenant: Option<String>,
    /// Which pod.
    pub pod_id: Option<String>,
    /// Which operation it belongs to.
    pub operation_id: Option<String>,
    /// The request that led to it, as in the `X-Request-Id` of its answer; null: the server itself.
    pub request_id: Option<String>,
    /// What: the kind of the event, or method and path of a request that was refused.
    pub action: String,
    /// One sentence for people.
    pub message: String,
    /// What was before of that which changed: fields of a pod, and `tenant`, `user`, `member`, `token`, `service`, `subscription` and `erasure`
    /// with fields of one of these. Null: nothing of them changed, or it is new. Variables by name only.
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
    /// What it is afterwards; null: nothing changed, or it is gone. `changed` names what is never shown: variables, commands, passwords and
    /// addresses.
    #[schema(value_type = Option<Object>)]
    pub after: Option<Value>,
    /// How it ended: `done`, `failed`, `cancelled` or `refused`.
    pub result: String,
    /// The stable reason of a failure or refusal.
    pub code: Option<String>,
    /// SHA-256 over the hash before, the number and the fields, in hexadecimal digits.
    pub hash: String,
}

impl AuditRow {
    /// A document of a row; what is none, because somebody changed it, is shown as the text that it is.
    #[must_use]
    pub fn document(text: String) -> Value {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }
}

impl TryFrom<AuditRow> for Numbered {
    type Error = String;

    fn try_from(row: AuditRow) -> Result<Self, String> {
        Ok(Self {
            number: row.number,
            link: Link::parse(&row.hash)?,
            row: Row {
                at: row.at,
                actor: row.actor,
                tenant: row.tenant,
                pod: row.pod_id,
                operation: row.operation_id,
                request: row.request_id,
                action: row.action,
                message: row.message,
                before: row.before.map(|document| document.to_string()),
                after: row.after.map(|document| document.to_string()),
                result: row.result,
                code: row.code,
            },
        })
    }
}

impl TryFrom<AuditHead> for Head {
    type Error = String;

    fn try_from(head: AuditHead) -> Result<Self, String> {
        let link = Link::parse(&head.hash)?;
        Ok(Self { number: head.number, link })
    }
}
