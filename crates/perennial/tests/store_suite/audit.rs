//! The audit: what it tells, and that nothing of it can be touched without a trace.

use std::sync::Arc;

use perennial::audit::{Broken, Checker, Head, Link, Numbered, Refusal, Wrong, in_request};
use perennial::store::{AuditFilter, Change, Store, StoreError};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::operation::{NewEvent, OperationState, Problem};
use perennial_core::pod::{Desired, Pod};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::any::Any;
use crate::cases::{after, inserted, now, stored, with_pod};
use crate::databases::Database;

async fn rows(store: &Store) -> Vec<Numbered> {
    store.audit_list(0, &AuditFilter::default(), 100_000).await.unwrap()
}

async fn verified(store: &Store, kept: Option<Link>) -> Result<Head, Broken> {
    let (head, rows) = (store.audit_head().await.unwrap(), rows(store).await);
    let mut checker = Checker::new(kept);
    for row in &rows {
        checker.next(row)?;
    }
    checker.end(head)
}

fn document(text: Option<&String>) -> Value {
    text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

/// What the newest row tells: what, before and after.
pub async fn newest(store: &Store) -> (String, Value, Value) {
    let row = rows(store).await.pop().unwrap().row;
    let (before, after) = (document(row.before.as_ref()), document(row.after.as_ref()));
    (row.action, before, after)
}

pub async fn the_audit_tells_every_change_with_what_it_changed(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(71));
    assert_eq!(verified(&store, None).await, Ok(Head { number: 0, link: Link::FIRST }));
    let mut pod = any.living("audited");
    pod.spec.env = [("TOKEN".to_owned(), "hunter2".to_owned())].into();
    let mut operation = any.operation(&pod);
    (operation.state, operation.error) = (OperationState::Pending, None);
    let told = |pod: &Pod, kind: &str| NewEvent {
        at: now(),
        actor: "admin".to_owned(),
        tenant: pod.tenant.clone(),
        pod: Some(pod.id),
        operation: Some(operation.id),
        kind: kind.to_owned(),
        message: "something".to_owned(),
    };
    let event = told(&pod, "operation.requested");
    let made = Change { operations: vec![operation.clone()], events: vec![event.clone()], ..with_pod(&pod) };
    in_request("req-1".to_owned(), store.commit(made)).await.unwrap();
    let pod = stored(&pod);

    // The server itself: nobody's request, and nothing that anybody asked for changed.
    let mut quiet = pod.clone();
    quiet.updated_at = after(1);
    store.commit(with_pod(&quiet)).await.unwrap();
    let quiet = stored(&quiet);
    assert_eq!(rows(&store).await.len(), 1);

    let mut changed = quiet.clone();
    changed.desired = if pod.desired == Desired::Paused { Desired::Running } else { Desired::Paused };
    changed.spec.env = [("TOKEN".to_owned(), "swordfish".to_owned()), ("MODE".to_owned(), "x".to_owned())].into();
    let mut ended = operation.clone();
    ended.state = OperationState::Failed;
    ended.error = Some(Problem { code: "engine-gone".to_owned(), message: "gone".to_owned(), hint: String::new() });
    // Two of one pod: what changed is told once.
    let events = vec![told(&changed, "operation.failed"), told(&changed, "pod.stopped")];
    let change = Change { operations: vec![ended], events, ..with_pod(&changed) };
    store.commit(change).await.unwrap();
    let changed = stored(&changed);

    // Without an event.
    let renamed = Pod { name: perennial_core::spec::PodName::parse("other").unwrap(), ..changed.clone() };
    store.commit(with_pod(&renamed)).await.unwrap();
    let gone = Change { pod_gone: Some(pod.id), events: vec![told(&pod, "pod.purged")], ..Change::default() };
    store.commit(gone).await.unwrap();

    let found = rows(&store).await;
    let ends: Vec<_> = found
        .iter()
        .map(|row| (row.row.result.as_str(), row.row.code.as_deref(), row.row.request.as_deref()))
        .collect();
    assert_eq!(
        ends,
        [
            ("done", None, Some("req-1")),
            ("failed", Some("engine-gone"), None),
            ("done", None, None),
            ("done", None, None),
            ("done", None, None)
        ]
    );
    let first = &found[0].row;
    assert_eq!((first.actor.as_str(), first.action.as_str()), (event.actor.as_str(), event.kind.as_str()));
    assert_eq!((first.tenant.as_deref(), first.pod.clone()), (Some(event.tenant.as_str()), Some(pod.id.to_string())));
    assert_eq!(first.operation, Some(operation.id.to_string()));
    let shown = document(first.after.as_ref());
    assert_eq!((&shown["name"], &shown["env"]), (&json!("audited"), &json!(["TOKEN"])));
    assert_eq!(first.before, None);
    let second = document(found[1].row.after.as_ref());
    assert_eq!((&second["env"], &second["changed"]), (&json!(["MODE", "TOKEN"]), &json!(["env.TOKEN"])));
    assert_eq!(second.as_object().unwrap().keys().collect::<Vec<_>>(), ["changed", "desired", "env"]);
    assert_eq!((&found[2].row.before, &found[2].row.after), (&None, &None));
    assert_eq!((found[3].row.actor.as_str(), found[3].row.action.as_str()), ("system", "pod.changed"));
    assert_eq!(document(found[3].row.before.as_ref()), json!({"name": "audited"}));
    assert_eq!(document(found[3].row.after.as_ref()), json!({"name": "other"}));
    assert_eq!((&document(found[4].row.before.as_ref())["name"], &found[4].row.after), (&json!("other"), &None));
    assert!(!format!("{found:?}").contains("hunter2") && !format!("{found:?}").contains("swordfish"));

    let refusal =
        Refusal { actor: "ann", tenant: None, method: "POST", path: "/api/v1/pods", status: 409, code: "taken" };
    store.audit_refused(now(), vec![refusal.row()]).await.unwrap();
    let head = verified(&store, None).await.unwrap();
    assert_eq!(head.number, 6);
    let of = async |filter: AuditFilter| {
        let found = store.audit_list(0, &filter, 10).await.unwrap();
        found.iter().map(|row| row.number).collect::<Vec<_>>()
    };
    assert_eq!(of(AuditFilter { actor: Some("ann".to_owned()), ..AuditFilter::default() }).await, [6]);
    assert_eq!(of(AuditFilter { pod: Some(pod.id), ..AuditFilter::default() }).await, [1, 2, 3, 4, 5]);
    assert_eq!(of(AuditFilter { tenant: Some(pod.tenant.clone()), ..AuditFilter::default() }).await.len(), 5);
    assert!(!of(AuditFilter { since: Some(after(-1)), ..AuditFilter::default() }).await.is_empty());
    assert_eq!(store.audit_list(2, &AuditFilter::default(), 2).await.unwrap()[1].number, 4);
    store.close().await;
    // Whoever only looks sees the same, and makes nothing.
    let looked = Store::look_at(&db.url).await.unwrap();
    assert_eq!(verified(&looked, Some(head.link)).await, Ok(head));
    looked.close().await;
}

/// It may hold a secret: it is in the event, and never in the audit.
pub async fn what_a_program_said_to_a_health_check_is_in_no_audit(db: &Database) {
    let store = db.open().await;
    let pod = Any::new(74).living("ill");
    store.commit(with_pod(&pod)).await.unwrap();
    for kind in ["pod.unhealthy", "pod.still-unhealthy"] {
        let event = NewEvent {
            at: now(),
            actor: "system".to_owned(),
            tenant: pod.tenant.clone(),
            pod: Some(pod.id),
            operation: None,
            kind: kind.to_owned(),
            message: "the pod does not answer its health check (status 1: key=swordfish); it is restarted".to_owned(),
        };
        store.commit(Change { events: vec![event], ..Change::default() }).await.unwrap();
        let row = rows(&store).await.pop().unwrap().row;
        assert_eq!((row.action.as_str(), row.message.as_str()), (kind, "the pod does not answer its health check"));
    }
    assert!(!format!("{:?}", rows(&store).await).contains("swordfish"));
}

/// A store that fails before or after it commits.
struct Fails(Moment);

impl Tap for Fails {
    fn at(&self, _site: &str, moment: Moment) -> Verdict {
        if moment == self.0 { Verdict::Fail } else { Verdict::Go }
    }
}

pub async fn the_audit_has_a_row_exactly_when_the_change_was_committed(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(72));
    let pod = inserted(&store, &mut any, "once").await;
    let count = rows(&store).await.len();
    let event = any.event(&pod);
    let change = || Change { events: vec![event.clone()], ..Change::default() };
    let failing = |moment| store.with_tap(Arc::new(Fails(moment)));
    failing(Moment::Before).commit(change()).await.unwrap_err();
    let stale = Change { pod: Some(Pod { version: 99, ..pod.clone() }), ..change() };
    assert!(matches!(store.commit(stale).await, Err(StoreError::Stale)));
    assert_eq!(rows(&store).await.len(), count);
    assert!(matches!(failing(Moment::After).commit(change()).await, Err(StoreError::OutcomeUnknown(_))));
    assert_eq!(rows(&store).await.len(), count + 1);
    assert!(verified(&store, None).await.is_ok());
}

pub async fn the_audit_of_two_servers_is_one_chain(db: &Database) {
    const EACH: i64 = 25;
    let first = db.open().await;
    // SQLite belongs to one server at a time.
    let second = if db.directory().is_some() { first.clone() } else { db.open().await };
    let servers = [first, second];
    let writers = servers.iter().enumerate().flat_map(|(at, store)| {
        (0..3).map(move |seed| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut any = Any::new(u64::try_from(10 * at + seed).unwrap());
                let pod = any.pod();
                for n in 0..EACH {
                    if n % 5 == 0 {
                        let refusal =
                            Refusal { actor: "a", tenant: None, method: "POST", path: "/", status: 400, code: "c" };
                        store.audit_refused(now(), vec![refusal.row()]).await.unwrap();
                    } else {
                        store.commit(Change { events: vec![any.event(&pod)], ..Change::default() }).await.unwrap();
                    }
                }
            })
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let head = verified(&servers[0], None).await.unwrap();
    assert_eq!(head.number, 6 * EACH);
    assert_eq!(verified(&servers[1], Some(head.link)).await, Ok(head));
}

pub async fn whatever_is_done_to_the_audit_is_found(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(73));
    let pod = inserted(&store, &mut any, "seven").await;
    while store.audit_head().await.unwrap().number < 7 {
        store.commit(Change { events: vec![any.event(&pod)], ..Change::default() }).await.unwrap();
    }
    let head = verified(&store, None).await.unwrap();
    let pool = sqlx::AnyPool::connect(&db.raw_url()).await.unwrap();
    let run = async |sql: &str| {
        let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&pool).await.unwrap();
        assert!(done.rows_affected() > 0, "{sql}");
    };
    let columns = "at, actor, tenant, pod, operation, request, action, message, before, after, result, code, hash";
    sqlx::query("CREATE TABLE kept AS SELECT * FROM audit").execute(&pool).await.unwrap();
    let cases = [
        ("UPDATE audit SET actor = 'somebody' WHERE number = 3".to_owned(), 3, Wrong::Changed),
        ("UPDATE audit SET message = message || ' ' WHERE number = 1".to_owned(), 1, Wrong::Changed),
        ("UPDATE audit SET hash = '' WHERE number = 5".to_owned(), 5, Wrong::Changed),
        ("UPDATE audit SET code = 'x' WHERE number = 7".to_owned(), 7, Wrong::Changed),
        ("DELETE FROM audit WHERE number = 4".to_owned(), 4, Wrong::Removed),
        ("DELETE FROM audit WHERE number = 1".to_owned(), 1, Wrong::Removed),
        ("DELETE FROM audit WHERE number > 5".to_owned(), 6, Wrong::TailMissing),
        ("DELETE FROM audit".to_owned(), 1, Wrong::TailMissing),
        (
            format!("INSERT INTO audit (number, {columns}) SELECT 8, {columns} FROM audit WHERE number = 2"),
            8,
            Wrong::Inserted,
        ),
        (
            format!("INSERT INTO audit (number, {columns}) SELECT 0, {columns} FROM audit WHERE number = 2"),
            0,
            Wrong::Inserted,
        ),
    ];
    for (sql, number, wrong) in cases {
        run(&sql).await;
        assert_eq!(verified(&store, None).await, Err(Broken { number, wrong }), "{sql}");
        sqlx::query("DELETE FROM audit").execute(&pool).await.unwrap();
        run("INSERT INTO audit SELECT * FROM kept").await;
        assert_eq!(verified(&store, Some(head.link)).await, Ok(head), "{sql}");
    }
    // One row is put in between, and the others get room.
    run("UPDATE audit SET number = -number WHERE number > 2").await;
    run("UPDATE audit SET number = 1 - number WHERE number < 0").await;
    run(&format!("INSERT INTO audit (number, {columns}) SELECT 3, {columns} FROM kept WHERE number = 6")).await;
    run("UPDATE counters SET value = 8 WHERE name = 'audit'").await;
    assert_eq!(verified(&store, None).await, Err(Broken { number: 3, wrong: Wrong::Inserted }));
    sqlx::query("DELETE FROM audit").execute(&pool).await.unwrap();
    run("INSERT INTO audit SELECT * FROM kept").await;
    // The end and its head are gone: only who kept the head knows.
    run("DELETE FROM audit WHERE number > 4").await;
    let shorter = rows(&store).await.last().unwrap().link.to_string();
    run(&format!("UPDATE counters SET value = 4, hash = '{shorter}' WHERE name = 'audit'")).await;
    assert!(verified(&store, None).await.is_ok());
    assert_eq!(verified(&store, Some(head.link)).await, Err(Broken { number: 4, wrong: Wrong::HeadUnknown }));
    pool.close().await;
}
