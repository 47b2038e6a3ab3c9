//! The rows of the audit: written by the transaction that they tell of, and only read afterwards.
//!
//! The number and the hash of the newest row are in the row `audit` of the counters: whoever adds one updates that row first, so
//! that on Postgres a second server waits for the commit of the first, and never continues from the same row.

mod objects;

use jiff::Timestamp;
use perennial_core::id::PodId;
use perennial_core::operation::NewEvent;
use perennial_core::pod::Pod;
use perennial_core::record::{POD_STILL_UNHEALTHY, POD_UNHEALTHY};
use perennial_core::spec::TenantId;
use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use self::objects::Object;
use super::change::Change;
use super::read::Select;
use super::rows::{corrupt, desired_text, spec_to_text, time};
use super::{Store, StoreError, access};
use crate::audit::{Became, Fields, Head, Link, Numbered, PodColumns, Row, View, changes, differences, request};

/// Who changed something without an event that says so.
const SYSTEM: &str = "system";

/// Which rows a list holds.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only of this pod.
    pub pod: Option<PodId>,
    /// Only what this one did.
    pub actor: Option<String>,
    /// Only what happened then or later.
    pub since: Option<Timestamp>,
}

/// What a change writes over, read before it does.
#[derive(Default)]
pub(super) struct Before {
    pods: Vec<(PodId, Option<PodColumns>)>,
    objects: Vec<(Object, Option<View>)>,
}

/// A pod as it will be in its columns.
fn columns(pod: &Pod) -> Result<PodColumns, StoreError> {
    Ok(PodColumns {
        name: pod.name.as_str().to_owned(),
        desired: desired_text(pod.desired).to_owned(),
        purge_at: pod.trash.as_ref().and_then(|trash| trash.purge_at).map(time),
        spec: spec_to_text(&pod.spec)?,
    })
}

impl Before {
    /// Reads what the pods of a change are now.
    pub(super) async fn read(tx: &mut AnyConnection, change: &Change) -> Result<Self, StoreError> {
        let mut before = Self::default();
        let pods = change.other_pod.iter().chain(&change.pod);
        let (old, new): (Vec<&Pod>, Vec<&Pod>) = pods.partition(|pod| pod.version > 0);
        before.pods.extend(new.iter().map(|pod| (pod.id, None)));
        for id in old.iter().map(|pod| pod.id).chain(change.pod_gone) {
            let query =
                sqlx::query("SELECT name, desired, purge_at, spec FROM pods WHERE id = $1").bind(id.to_string());
            let row = query.fetch_optional(&mut *tx).await?;
            let pod = row.map(|row| {
                let (name, desired) = (row.try_get(0)?, row.try_get(1)?);
                Ok::<_, sqlx::Error>(PodColumns { name, desired, purge_at: row.try_get(2)?, spec: row.try_get(3)? })
            });
            before.pods.push((id, pod.transpose()?));
        }
        Ok(before)
    }

    /// Reads what everything else that it changes is now, and nobody else changes it until the commit. After the rows of pods, as every
    /// change takes them.
    pub(super) async fn read_objects(&mut self, tx: &mut AnyConnection, change: &Change) -> Result<(), StoreError> {
        let all = Object::all_of(change);
        if !all.is_empty() {
            access::others_wait(tx).await?;
        }
        for object in all {
            let view = object.view(tx).await?;
            self.objects.push((object, view));
        }
        Ok(())
    }

    fn of(&self, pod: PodId) -> Option<&PodColumns> {
        self.pods.iter().find(|(id, _)| *id == pod)?.1.as_ref()
    }
}

/// Adds what a change means to the audit: a row for every event, with what it changed of the pod and of other things, and one for
/// a change that no event tells of.
pub(super) async fn write(tx: &mut AnyConnection, change: &Change, before: Before) -> Result<(), StoreError> {
    let mut changed = Vec::new();
    for pod in change.other_pod.iter().chain(&change.pod) {
        let (was, is) = changes(before.of(pod.id), Some(&columns(pod)?));
        if was.is_some() || is.is_some() {
            changed.push((pod.id, pod.tenant.clone(), pod.updated_at, (was, is)));
        }
    }
    let mut rows: Vec<(Row, Became)> = Vec::new();
    for event in &change.events {
        let mut became = (None, None);
        if let Some(at) = changed.iter().position(|(pod, ..)| event.pod == Some(*pod)) {
            became = changed.swap_remove(at).3;
        } else if let Some(gone) = change.pod_gone.filter(|gone| event.pod == Some(*gone)) {
            became = changes(before.of(gone), None);
        }
        rows.push((of_event(event, change), became));
    }
    for (pod, tenant, at, became) in changed {
        let row = Row { pod: Some(pod.to_string()), ..untold("pod", time(at), Some(&tenant)) };
        rows.push((row, became));
    }
    let at = change.access.as_ref().map_or_else(Timestamp::now, |request| request.at);
    for (object, was) in before.objects {
        let became = differences(was, object.view(tx).await?);
        if became == (None, None) {
            continue;
        }
        if rows.is_empty() {
            rows.push((untold(object.word(), time(at), object.tenant()), (None, None)));
        }
        let at = rows.iter().position(|(row, _)| object.is_told_by(&row.action)).unwrap_or_default();
        nest(&mut rows[at].1, object.word(), became);
    }
    let text = |fields: Option<Fields>| fields.map(|fields| Value::Object(fields).to_string());
    let rows = rows.into_iter().map(|(row, (was, is))| Row { before: text(was), after: text(is), ..row });
    append(tx, rows.collect()).await
}

/// Adds what became of a thing that is no pod to what a row tells, under its word.
fn nest(told: &mut Became, word: &str, (was, is): Became) {
    for (all, one) in [(&mut told.0, was), (&mut told.1, is)] {
        if let Some(one) = one {
            all.get_or_insert_default().insert(word.to_owned(), Value::Object(one));
        }
    }
}

/// A row for what changed without an event.
fn untold(word: &str, at: String, tenant: Option<&TenantId>) -> Row {
    Row {
        at,
        actor: SYSTEM.to_owned(),
        tenant: tenant.map(ToString::to_string),
        request: request(),
        action: format!("{word}.changed"),
        message: format!("the {word} changed"),
        result: "done".to_owned(),
        ..Row::default()
    }
}

fn of_event(event: &NewEvent, change: &Change) -> Row {
    let result = match event.kind.rsplit('.').next() {
        Some("failed") => "failed",
        Some("cancelled") => "cancelled",
        Some("sign-in-refused") => "refused",
        _ => "done",
    };
    let operation = change.operations.iter().find(|operation| Some(operation.id) == event.operation);
    let error = operation.and_then(|operation| operation.error.as_ref()).filter(|_| result != "done");
    Row {
        at: time(event.at),
        actor: event.actor.clone(),
        tenant: Some(event.tenant.to_string()),
        pod: event.pod.map(|pod| pod.to_string()),
        operation: event.operation.map(|operation| operation.to_string()),
        request: request(),
        action: event.kind.clone(),
        message: message(event).to_owned(),
        before: None,
        after: None,
        result: result.to_owned(),
        code: error.map(|error| error.code.clone()),
    }
}

/// What an event says, without what a pod's program said: a secret may be in it, and nobody can delete a row.
fn message(event: &NewEvent) -> &str {
    match event.kind.as_str() {
        POD_UNHEALTHY | POD_STILL_UNHEALTHY => event.message.split(" (").next().unwrap_or_default(),
        _ => &event.message,
    }
}

/// Adds rows behind the newest one.
async fn append(tx: &mut AnyConnection, rows: Vec<Row>) -> Result<(), StoreError> {
    let Ok(count @ 1..) = i64::try_from(rows.len()) else { return Ok(()) };
    let head = sqlx::query("UPDATE counters SET value = value + $1 WHERE name = 'audit' RETURNING value, hash")
        .bind(count)
        .fetch_one(&mut *tx)
        .await?;
    let (last, hash): (i64, String) = (head.try_get(0)?, head.try_get(1)?);
    let mut link = parse_link("the head of the audit", &hash)?;
    for (number, row) in (last - count + 1..).zip(rows) {
        link = row.link(link, number);
        insert(tx, number, row, link).await?;
    }
    sqlx::query("UPDATE counters SET hash = $1 WHERE name = 'audit'").bind(link.to_string()).execute(tx).await?;
    Ok(())
}

async fn insert(tx: &mut AnyConnection, number: i64, row: Row, link: Link) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit (number, at, actor, tenant, pod, operation, request, action, message, before, after, \
         result, code, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(number)
    .bind(row.at)
    .bind(row.actor)
    .bind(row.tenant)
    .bind(row.pod)
    .bind(row.operation)
    .bind(row.request)
    .bind(row.action)
    .bind(row.message)
    .bind(row.before)
    .bind(row.after)
    .bind(row.result)
    .bind(row.code)
    .bind(link.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

fn parse_link(what: &str, text: &str) -> Result<Link, StoreError> {
    Link::parse(text).map_err(|problem| corrupt(what, problem))
}

fn numbered(row: &AnyRow) -> Result<Numbered, StoreError> {
    let number: i64 = row.try_get(0)?;
    let what = || format!("row {number} of the audit");
    // A hash that is none can only be the work of somebody who changed it.
    let link = Link::parse(row.try_get(13)?).unwrap_or(Link::FIRST);
    let read = || -> sqlx::Result<Row> {
        Ok(Row {
            at: row.try_get(1)?,
            actor: row.try_get(2)?,
            tenant: row.try_get(3)?,
            pod: row.try_get(4)?,
            operation: row.try_get(5)?,
            request: row.try_get(6)?,
            action: row.try_get(7)?,
            message: row.try_get(8)?,
            before: row.try_get(9)?,
            after: row.try_get(10)?,
            result: row.try_get(11)?,
            code: row.try_get(12)?,
        })
    };
    Ok(Numbered { number, row: read().map_err(|error| corrupt(&what(), error))?, link })
}

impl Store {
    /// Adds requests that were refused, or failed, and changed nothing.
    ///
    /// # Errors
    /// Why they are not there, or that nobody knows.
    pub async fn audit_refused(&self, at: Timestamp, rows: Vec<Row>) -> Result<(), StoreError> {
        let rows = rows.into_iter().map(|row| Row { at: time(at), ..row }).collect();
        let mut held = self.write.acquire().await?;
        let mut transaction = held.begin().await?;
        append(&mut transaction, rows).await?;
        transaction.commit().await.map_err(|e| StoreError::OutcomeUnknown(Some(e)))?;
        held.done();
        Ok(())
    }

    /// The number and the hash of the newest row.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        let row = self.row(Select::new("SELECT value, hash FROM counters WHERE name = 'audit'")).await?;
        let row = row.ok_or_else(|| corrupt("the head of the audit", "it is not there"))?;
        Ok(Head { number: row.try_get(0)?, link: parse_link("the head of the audit", row.try_get(1)?)? })
    }

    /// Lists rows behind a number, oldest first; 0: all, also such as somebody gave a number below the first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn audit_list(&self, after: i64, filter: &AuditFilter, limit: u32) -> Result<Vec<Numbered>, StoreError> {
        let mut select = Select::new(
            "SELECT number, at, actor, tenant, pod, operation, request, action, message, before, after, result, code, \
             hash FROM audit",
        );
        select.number(" WHERE number > $", if after == 0 { i64::MIN } else { after });
        if let Some(tenant) = &filter.tenant {
            select.text(" AND tenant = $", tenant.as_str());
        }
        if let Some(pod) = filter.pod {
            select.text(" AND pod = $", pod.to_string());
        }
        if let Some(actor) = &filter.actor {
            select.text(" AND actor = $", actor.as_str());
        }
        if let Some(since) = filter.since {
            select.text(" AND at >= $", time(since));
        }
        select.raw(" ORDER BY number").limit(limit);
        self.rows(select).await?.iter().map(numbered).collect()
    }
}
