//! The audit for administrators.

use axum::extract::State;
use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::id::PodId;
use perennial_core::spec::TenantId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::auth::Caller;
use super::extract::{Query, cut, page};
use super::problem::ApiError;
use super::wire::{AuditHead, AuditPage, AuditRow, Problem};
use crate::audit::Numbered;
use crate::store::AuditFilter;

/// Selects rows of the audit.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only after the row of this number.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only this tenant's.
    tenant: Option<String>,
    /// Only of this pod.
    pod: Option<String>,
    /// Only what this one did.
    actor: Option<String>,
    /// Only what happened then or later, as RFC 3339 writes it.
    since: Option<String>,
}

impl AuditQuery {
    fn filter(&self) -> Result<AuditFilter, Error> {
        let pod = self.pod.as_deref().map(|text| {
            text.parse::<PodId>().map_err(|error| Error::invalid("pod", error.to_string(), "perennial pod ls"))
        });
        let since = self.since.as_deref().map(|text| {
            let wrong = |_| Error::invalid("since", "is not a time", "write it like 2026-01-31T12:00:00Z");
            text.parse::<Timestamp>().map_err(wrong)
        });
        Ok(AuditFilter {
            tenant: self.tenant.as_deref().map(TenantId::parse).transpose()?,
            pod: pod.transpose()?,
            actor: self.actor.clone(),
            since: since.transpose()?,
        })
    }

    fn after(&self) -> Result<i64, Error> {
        let Some(text) = &self.after else { return Ok(0) };
        let good = text.parse::<i64>().ok().filter(|number| *number >= 0);
        good.ok_or_else(|| Error::invalid("after", "is not the number of a row", "use 0 for all"))
    }
}

/// Lists the audit, oldest first: every change, who made it, and what it changed; and requests that were refused.
#[utoipa::path(get, path = "/api/v1/admin/audit", operation_id = "audit_list", tag = "system", params(AuditQuery),
    responses((status = 200, body = AuditPage), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<AuditQuery>,
) -> Result<axum::Json<AuditPage>, ApiError> {
    let (filter, after) = (query.filter()?, query.after()?);
    let (page, wanted) = page(None, query.limit)?;
    let (head, mut found) = state.app.audit(&caller, after, &filter, page.limit).await?;
    let next = cut(&mut found, wanted, |row| row.number.to_string());
    let head = AuditHead { number: head.number, hash: head.link.to_string() };
    Ok(axum::Json(AuditPage { items: found.into_iter().map(row).collect(), next, head }))
}

fn row(Numbered { number, row, link }: Numbered) -> AuditRow {
    AuditRow {
        number,
        at: row.at,
        actor: row.actor,
        tenant: row.tenant,
        pod_id: row.pod,
        operation_id: row.operation,
        request_id: row.request,
        action: row.action,
        message: row.message,
        before: row.before.map(AuditRow::document),
        after: row.after.map(AuditRow::document),
        result: row.result,
        code: row.code,
        hash: link.to_string(),
    }
}
