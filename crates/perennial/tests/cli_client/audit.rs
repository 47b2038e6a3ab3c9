//! `perennial audit`: rows, lines of JSON, and proofs that do not take a server's word.

use std::sync::Arc;

use perennial::api::wire::{AuditHead, AuditPage, AuditRow};
use perennial::audit::{Link, Row};
use perennial::cli::Exit;
use perennial::store::{Change, Store};
use perennial_core::fault::NoTap;
use perennial_core::operation::NewEvent;
use perennial_core::spec::TenantId;
use serde_json::json;

use super::fake::{Fake, now, run_raw, session};

/// Rows of a good chain.
fn rows(count: i64) -> Vec<AuditRow> {
    let mut link = Link::FIRST;
    (1..=count)
        .map(|number| {
            let row = Row {
                at: format!("2026-01-10T12:00:{number:02}.000000000Z"),
                actor: "admin".to_owned(),
                tenant: Some("default".to_owned()),
                request: Some(format!("req-{number}")),
                action: "operation.requested".to_owned(),
                message: "stop requested".to_owned(),
                before: Some("{\"desired\":\"running\"}".to_owned()),
                after: Some("{\"desired\":\"stopped\"}".to_owned()),
                result: "done".to_owned(),
                ..Row::default()
            };
            link = row.link(link, number);
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
        })
        .collect()
}

/// A server whose first page has these rows; the head is that of a good chain.
fn server(first: Vec<AuditRow>, rest: Vec<AuditRow>, count: i64) -> Fake {
    let hash = rows(count).last().map_or_else(|| Link::FIRST.to_string(), |row| row.hash.clone());
    let page = |items: Vec<AuditRow>, next: Option<i64>| AuditPage {
        items,
        next: next.map(|next| next.to_string()),
        head: AuditHead { number: count, hash: hash.clone() },
    };
    let fake = Fake::default();
    let next = first.last().map(|row| row.number).filter(|_| !rest.is_empty());
    let mut pages = vec![page(first, next)];
    if !rest.is_empty() {
        pages.push(page(rest, None));
    }
    pages.push(page(Vec::new(), None));
    fake.on("GET /api/v1/admin/audit", pages);
    fake
}

#[tokio::test]
async fn the_audit_is_verified_here_and_the_first_wrong_row_is_named() {
    let good = || rows(5);
    let split = |rows: Vec<AuditRow>, count: i64| {
        let (first, rest) = rows.split_at(2);
        server(first.to_vec(), rest.to_vec(), count)
    };
    let head = good()[4].hash.clone();
    let ran = split(good(), 5).run(&["audit", "verify"]).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("5 rows are as they were written; the head is\n{head}\n"));
    let ran = split(good(), 5).run(&["audit", "verify", "--head", &good()[2].hash, "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap(), json!({"rows": 5, "head": head}));
    let fails = async |rows: Vec<AuditRow>, count: i64, arguments: &[&str], words: &str| {
        let ran = split(rows, count).run(&[&["audit", "verify"], arguments].concat()).await;
        assert_eq!(ran.exit, Exit::Failed, "{}", ran.stdout);
        assert!(ran.stderr.contains(words) && ran.stdout.is_empty(), "{}", ran.stderr);
    };
    let mut changed = good();
    changed[2].after = Some(json!({"desired": "running"}));
    fails(changed, 5, &[], "row 3 was changed").await;
    let mut removed = good();
    removed.remove(3);
    fails(removed, 5, &[], "row 4 was removed").await;
    let mut inserted = good();
    inserted.insert(3, inserted[2].clone());
    fails(inserted, 5, &[], "row 3 was inserted").await;
    fails(good()[..4].to_vec(), 5, &[], "the end is missing, from row 5 on").await;
    fails(good()[..4].to_vec(), 4, &["--head", &head], "none of the 4 rows has the hash that was kept").await;
    let wrong = Fake::default().run(&["audit", "verify", "--head", "abc"]).await;
    assert_eq!(wrong.exit, Exit::Usage);
    assert!(wrong.stderr.contains("64 hexadecimal digits"), "{}", wrong.stderr);
    let empty = server(Vec::new(), Vec::new(), 0).run(&["audit", "verify"]).await;
    assert!(empty.stdout.starts_with("0 rows are as they were written"), "{}{}", empty.stdout, empty.stderr);
}

#[tokio::test]
async fn the_audit_is_listed_for_people_and_exported_line_by_line() {
    let fake = server(rows(2), rows(5)[2..].to_vec(), 5);
    let ran = fake.run(&["audit", "ls", "-n", "1", "--actor", "admin", "--since", "1h"]).await;
    assert!(
        ran.stdout.contains("5  done") && ran.stdout.contains("by admin") && ran.stdout.contains("req-5"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("after {\"desired\":\"stopped\"}") && !ran.stdout.contains("req-4"), "{}", ran.stdout);
    assert_eq!(
        fake.asked()[0].what,
        "GET /api/v1/admin/audit?actor=admin&since=2026-01-10T11%3A00%3A00Z&after=0&limit=1000"
    );
    let wrong = server(rows(1), Vec::new(), 1).run(&["audit", "ls", "--since", "then"]).await;
    assert_eq!((wrong.exit, wrong.stderr.contains("--since")), (Exit::Usage, true));

    let ran = server(rows(2), rows(5)[2..].to_vec(), 5).run(&["audit", "export"]).await;
    let lines: Vec<AuditRow> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, rows(5));
}

#[tokio::test]
async fn the_audit_in_a_data_directory_is_verified_without_a_server() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_str().unwrap().to_owned();
    let verify = async |more: &[&str]| {
        let arguments = [&["perennial", "audit", "verify", "--offline", "--data-dir", &path], more].concat();
        run_raw(&arguments, None, session()).await
    };
    let nothing = verify(&[]).await;
    assert_eq!(nothing.exit, Exit::Failed, "{}", nothing.stdout);
    assert!(nothing.stderr.contains("the audit cannot be read"), "{}", nothing.stderr);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0, "who only looks makes nothing");

    let url = format!("sqlite:{path}/perennial.db");
    let store = Store::open(&url, Arc::new(NoTap)).await.unwrap();
    for n in 0..3 {
        let event = NewEvent {
            at: now(),
            actor: "admin".to_owned(),
            tenant: TenantId::default_tenant(),
            pod: None,
            operation: None,
            kind: "pod.stopped".to_owned(),
            message: format!("{n}"),
        };
        store.commit(Change { events: vec![event], ..Change::default() }).await.unwrap();
    }
    let head = store.audit_head().await.unwrap().link.to_string();
    // While a server uses it, and afterwards.
    let good = verify(&["--head", &head]).await;
    assert_eq!(good.exit, Exit::Done, "{}", good.stderr);
    assert!(good.stdout.contains("3 rows") && good.stdout.contains(&head), "{}", good.stdout);
    store.close().await;
    assert_eq!(verify(&[]).await.stdout, good.stdout);
    let pool = sqlx::AnyPool::connect(&url).await.unwrap();
    sqlx::query("DELETE FROM audit WHERE number = 2").execute(&pool).await.unwrap();
    pool.close().await;
    let broken = verify(&[]).await;
    assert_eq!(broken.exit, Exit::Failed);
    assert!(broken.stderr.contains("row 2 was removed"), "{}", broken.stderr);
}
