use super::*;

/// A chain of so many rows, as it is written.
fn chain(count: i64) -> (Vec<Numbered>, Head) {
    let (mut rows, mut link) = (Vec::new(), Link::FIRST);
    for number in 1..=count {
        let row = Row {
            at: format!("2026-01-01T00:00:{number:02}.000000000Z"),
            actor: "admin".to_owned(),
            tenant: Some("default".to_owned()),
            action: "operation.requested".to_owned(),
            message: format!("change {number}"),
            before: (number % 2 == 0).then(|| "{\"name\":\"a\"}".to_owned()),
            result: "done".to_owned(),
            ..Row::default()
        };
        link = row.link(link, number);
        rows.push(Numbered { number, row, link });
    }
    (rows, Head { number: count, link })
}

fn check(rows: &[Numbered], head: Head, kept: Option<Link>) -> Result<Head, Broken> {
    let mut checker = Checker::new(kept);
    for row in rows {
        checker.next(row)?;
    }
    checker.end(head)
}

/// Writes the rows from an index on anew, as somebody does who knows how.
fn relink(rows: &mut [Numbered], from: usize) -> Head {
    for at in from..rows.len() {
        let before = at.checked_sub(1).map_or(Link::FIRST, |before| rows[before].link);
        rows[at].number = nth(at);
        rows[at].link = rows[at].row.link(before, rows[at].number);
    }
    rows.last().map_or(Head { number: 0, link: Link::FIRST }, |last| Head { number: last.number, link: last.link })
}

/// The number of the row at an index.
fn nth(at: usize) -> i64 {
    i64::try_from(at).expect("few rows") + 1
}

fn broken(number: i64, wrong: Wrong) -> Result<Head, Broken> {
    Err(Broken { number, wrong })
}

#[test]
fn what_was_written_is_good_from_nothing_on() {
    for count in [0, 1, 2, 9] {
        let (rows, head) = chain(count);
        assert_eq!(check(&rows, head, None), Ok(head));
        for kept in rows.iter().map(|row| row.link).chain([Link::FIRST]) {
            assert_eq!(check(&rows, head, Some(kept)), Ok(head));
        }
    }
}

#[test]
fn every_field_of_every_row_counts() {
    let (rows, head) = chain(4);
    let fields: [fn(&mut Row); 13] = [
        |row| row.at.push('0'),
        |row| row.actor.push('x'),
        |row| row.tenant = None,
        |row| row.pod = Some(String::new()),
        |row| row.operation = Some("o".to_owned()),
        |row| row.request = Some("r".to_owned()),
        |row| row.action.push('x'),
        |row| row.message.clear(),
        |row| row.before = if row.before.is_some() { None } else { Some(String::new()) },
        |row| row.after = Some("{}".to_owned()),
        |row| row.result = "failed".to_owned(),
        |row| row.code = Some("c".to_owned()),
        // From one field to the next.
        |row| row.action = format!("{}{}", row.action, std::mem::take(&mut row.message)),
    ];
    for at in 0..rows.len() {
        for change in fields {
            let mut changed = rows.clone();
            change(&mut changed[at].row);
            assert_eq!(check(&changed, head, None), broken(nth(at), Wrong::Changed));
        }
        let mut changed = rows.clone();
        changed[at].link = Link::FIRST;
        assert_eq!(check(&changed, head, None), broken(nth(at), Wrong::Changed));
    }
}

#[test]
fn what_is_removed_inserted_or_cut_off_is_named() {
    let (rows, head) = chain(6);
    for at in 0..5 {
        let mut fewer = rows.clone();
        fewer.remove(at);
        assert_eq!(check(&fewer, head, None), broken(nth(at), Wrong::Removed));
        // One that the others only made room for.
        let mut more = rows.clone();
        let forged = Row { message: "forged".to_owned(), ..rows[at].row.clone() };
        let link = forged.link(Link::FIRST, 99);
        more.insert(at, Numbered { number: 0, row: forged, link });
        (1..).zip(&mut more).for_each(|(number, row)| row.number = number);
        assert_eq!(check(&more, Head { number: 7, ..head }, None), broken(nth(at), Wrong::Inserted));
        // The same with a number that is taken.
        let mut doubled = rows.clone();
        doubled.insert(at + 1, rows[at].clone());
        assert_eq!(check(&doubled, head, None), broken(nth(at), Wrong::Inserted));
    }
    for left in 0..6 {
        assert_eq!(check(&rows[..left], head, None), broken(nth(left), Wrong::TailMissing));
    }
    let (longer, _) = chain(7);
    assert_eq!(check(&longer, head, None), broken(7, Wrong::Inserted));
    let beyond = Numbered { number: 7, link: Link::FIRST, ..longer[6].clone() };
    let rows_and = [rows.clone(), vec![beyond]].concat();
    assert_eq!(check(&rows_and, head, None), broken(7, Wrong::Inserted));
}

#[test]
fn a_row_that_later_ones_were_not_written_anew_for_was_inserted() {
    let (rows, head) = chain(3);
    let mut more = rows.clone();
    let forged = Numbered { number: 2, row: Row { message: "forged".to_owned(), ..Row::default() }, link: Link::FIRST };
    more.insert(1, forged);
    assert_eq!(check(&more, head, None), broken(2, Wrong::Inserted));
}

#[test]
fn one_who_writes_everything_anew_is_found_by_a_head_that_was_kept() {
    let (rows, head) = chain(6);
    let kept = rows[3].link;
    let mut anew = rows.clone();
    anew[1].row.actor = "somebody else".to_owned();
    let forged = relink(&mut anew, 1);
    assert_eq!(check(&anew, head, None), broken(6, Wrong::Changed), "the head was forgotten");
    assert_eq!(check(&anew, forged, None), Ok(forged), "nothing in the database says so");
    assert_eq!(check(&anew, forged, Some(kept)), broken(6, Wrong::HeadUnknown));
    assert_eq!(check(&anew, forged, Some(rows[0].link)), Ok(forged), "that one was before it");
    // Only the end is cut off, and the head with it.
    let shorter = relink(&mut anew[..3], 3);
    assert_eq!(check(&rows[..3], Head { number: 3, link: rows[2].link }, Some(kept)), broken(3, Wrong::HeadUnknown));
    assert_eq!(check(&anew[..3], shorter, Some(kept)), broken(3, Wrong::HeadUnknown));
    // The one after a row that was written anew alone does not follow it any more.
    let mut alone = rows.clone();
    alone[1].row.actor = "somebody else".to_owned();
    relink(&mut alone[..2], 1);
    assert_eq!(check(&alone, head, None), broken(3, Wrong::Changed));
}

#[test]
fn the_encoding_is_what_it_always_was() {
    // Whoever changes this makes every audit there is unreadable.
    let row = Row {
        at: "2026-01-02T03:04:05.000000006Z".to_owned(),
        actor: "admin".to_owned(),
        tenant: Some("default".to_owned()),
        action: "operation.requested".to_owned(),
        message: "stop requested".to_owned(),
        result: "done".to_owned(),
        ..Row::default()
    };
    let mut bytes = b"perennial audit 1\0".to_vec();
    bytes.extend([0; 32]);
    bytes.extend(1_i64.to_be_bytes());
    for field in [
        Some(row.at.as_str()),
        Some("admin"),
        Some("default"),
        None,
        None,
        None,
        Some("operation.requested"),
        Some("stop requested"),
        None,
        None,
        Some("done"),
        None,
    ] {
        match field {
            None => bytes.push(0),
            Some(text) => {
                bytes.push(1);
                bytes.extend((text.len() as u64).to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    assert_eq!(row.link(Link::FIRST, 1).to_string(), hex::encode(Sha256::digest(&bytes)));
    assert_eq!(Link::parse(&row.link(Link::FIRST, 1).to_string()), Ok(row.link(Link::FIRST, 1)));
    assert_eq!(Link::parse(""), Ok(Link::FIRST));
    assert!(Link::parse("abc").is_err() && Link::parse(&"g".repeat(64)).is_err());
}

fn pod(spec: &str) -> PodColumns {
    let spec = format!("{{\"v\":1,\"spec\":{spec}}}");
    PodColumns { name: "dev".to_owned(), desired: "running".to_owned(), purge_at: None, spec }
}

#[test]
fn only_what_changed_of_a_pod_is_shown_and_of_secrets_their_names() {
    let spec = |env: &str, args: &str, memory: u32| {
        pod(&format!(
            "{{\"image\":\"debian:12\",\"env\":{env},\"command\":[\"sh\",\"-c\",\"{args}\"],\"user\":null,\
             \"resources\":{{\"memory\":{memory}}},\"hooks\":{{\"before\":{{\"command\":[\"dump\",\"{args}\"],\"user\":null}}}}}}"
        ))
    };
    let first = spec("{\"TOKEN\":\"hunter2\",\"MODE\":\"a\"}", "pw=swordfish", 1);
    let text = |value: serde_json::Value| value.as_object().cloned();
    assert_eq!(changes(Some(&first), Some(&first)), (None, None));
    let (before, after) = changes(None, Some(&first));
    assert_eq!(before, None);
    let shown = serde_json::json!({
        "name": "dev", "desired": "running", "image": "debian:12", "env": ["MODE", "TOKEN"], "command": "3 words",
        "resources": {"memory": 1}, "hooks": {"before": {"command": "2 words", "user": null}},
    });
    assert_eq!(after, text(shown.clone()));
    assert_eq!(changes(Some(&first), None), (text(shown), None));

    let second = spec("{\"TOKEN\":\"correct horse\",\"NEW\":\"b\"}", "pw=tuna", 2);
    let (before, after) = changes(Some(&first), Some(&second));
    assert_eq!(before, text(serde_json::json!({"env": ["MODE", "TOKEN"], "resources": {"memory": 1}})));
    let changed = ["command", "env.TOKEN", "hooks.before.command"];
    let is = serde_json::json!({"env": ["NEW", "TOKEN"], "resources": {"memory": 2}, "changed": changed});
    assert_eq!(after, text(is));
    for secret in ["hunter2", "swordfish", "correct horse", "tuna"] {
        for pods in [(None, Some(&first)), (Some(&first), Some(&second)), (Some(&second), None)] {
            let (before, after) = changes(pods.0, pods.1);
            assert!(!format!("{before:?}{after:?}").contains(secret), "{secret}");
        }
    }
    let deleted = PodColumns { desired: "deleted".to_owned(), purge_at: Some("2026".to_owned()), ..first.clone() };
    let expected = (
        text(serde_json::json!({"desired": "running"})),
        text(serde_json::json!({"desired": "deleted", "purgeAt": "2026"})),
    );
    assert_eq!(changes(Some(&first), Some(&deleted)), expected);
    let unreadable = PodColumns { spec: "TOKEN=hunter2".to_owned(), ..first };
    assert_eq!(changes(None, Some(&unreadable)).1, text(serde_json::json!({"name": "dev", "desired": "running"})));
}

#[tokio::test]
async fn a_refusal_tells_where_a_request_was_sent_and_nothing_of_what_was_in_it() {
    let id = "01kefakep0d000000000000000";
    let path = format!("/api/v1/pods/{id}/start");
    let refusal =
        Refusal { actor: "ann", tenant: Some("acme"), method: "POST", path: &path, status: 409, code: "pod-busy" };
    let row = in_request("r1".to_owned(), async { refusal.row() }).await;
    assert_eq!(
        (row.result.as_str(), row.code.as_deref(), row.request.as_deref()),
        ("refused", Some("pod-busy"), Some("r1"))
    );
    assert_eq!(
        (row.action, row.pod.as_deref(), row.tenant.as_deref()),
        (format!("POST {path}"), Some(id), Some("acme"))
    );
    // What was meant to be an id may be anything.
    let secret = format!("/api/v1/tokens/prn_{}/wOrD/100%25", "a".repeat(40));
    let row = Refusal { path: &secret, ..refusal }.row();
    assert_eq!(row.action, "POST /api/v1/tokens/…/…/…");
    let long = format!("/api/v1/{}", "x/".repeat(5000));
    let row = Refusal { path: &long, status: 503, ..refusal }.row();
    assert_eq!((row.result.as_str(), row.pod, row.request), ("failed", None, None));
    assert!(row.action.len() < 220);
}

#[test]
fn secrets_are_found_wherever_in_a_document_they_are_and_whatever_it_is_called() {
    let of = |secret: &str, memory: u32| {
        let mut view = View::default();
        // A plan may have any name.
        for name in ["env", "command", "plus"] {
            let plan = serde_json::json!({
                "name": name,
                "revision": secret,
                "resources": {"memory": memory},
                "env": [format!("PASSWORD={secret}")],
                "secrets": {"KEY": secret},
                "health": {"probe": {"http": {"path": format!("/healthz?token={secret}")}}},
                "list": [{"entrypoint": [secret]}, {"hooks": {"after": {"command": secret}}}],
            });
            view.show_document(&format!("plans.{name}"), "plan", plan);
        }
        view
    };
    let (before, after) = differences(Some(of("hunter2", 1)), Some(of("swordfish", 2)));
    let text = format!("{before:?}{after:?}{:?}", differences(None, Some(of("tuna", 1))));
    assert!(!["hunter2", "swordfish", "tuna"].iter().any(|secret| text.contains(secret)), "{text}");
    let (before, after) = (before.expect("fields"), after.expect("fields"));
    for name in ["env", "command", "plus"] {
        let plan = format!("plans.{name}");
        assert_eq!(before[&plan]["resources"]["memory"], 1);
        assert_eq!(after[&plan]["resources"]["memory"], 2);
        assert_eq!(after[&plan]["health"]["probe"]["http"]["path"], "/healthz?…");
        let changed: Vec<&str> =
            after["changed"].as_array().expect("names").iter().filter_map(|name| name.as_str()).collect();
        for hidden in [
            "revision",
            "env",
            "secrets.KEY",
            "health.probe.http.path",
            "list.0.entrypoint",
            "list.1.hooks.after.command",
        ] {
            assert!(changed.contains(&format!("{plan}.{hidden}").as_str()), "{hidden}: {changed:?}");
        }
    }
}
