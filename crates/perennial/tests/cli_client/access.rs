//! `perennial user`, `tenant`, `token` and `whoami`: what is asked for, and what is printed where.

use perennial::api::wire::{
    Cpus, CreatedToken, List, Me, Quota, Role, Scope, Secret, Size, Tenant, TenantUsage, Token, User,
};
use perennial::cli::Exit;
use serde_json::{Value, json};

use super::fake::{Fake, Reply, problem, time};

fn user(name: &str) -> User {
    User {
        name: name.to_owned(),
        email: Some("ann@example.org".to_owned()),
        role: Role::User,
        has_password: false,
        disabled: false,
        tenants: vec!["acme".to_owned(), "beta".to_owned()],
        created_at: time("2026-01-01T00:00:00Z"),
    }
}

fn token() -> Token {
    Token {
        id: "01kefaket0ken0000000000000".to_owned(),
        name: "ci".to_owned(),
        user: "ann".to_owned(),
        scopes: vec![Scope::Read, Scope::Operate],
        tenant: None,
        created_by: "admin".to_owned(),
        created_at: time("2026-01-01T00:00:00Z"),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    }
}

fn body(fake: &Fake, what: &str) -> Value {
    fake.asked_for(what).last().unwrap().body.clone().unwrap()
}

#[tokio::test]
async fn a_token_is_printed_alone_so_that_it_can_be_kept() {
    let fake = Fake::default();
    fake.on("POST /api/v1/tokens", [CreatedToken { token: token(), secret: Secret("prn_secret".to_owned()) }]);
    let ran = fake.run(&["token", "create", "ci", "--user", "ann", "--tenant", "acme"]).await;
    assert_eq!((ran.exit, ran.stdout.as_str()), (Exit::Done, "prn_secret\n"));
    assert!(ran.stderr.contains("nobody can show it again"), "{}", ran.stderr);
    let no = Value::Null;
    assert_eq!(
        body(&fake, "POST"),
        json!({"name": "ci", "user": "ann", "scopes": ["read", "operate"], "tenant": "acme", "expiresAt": no})
    );
    let ran = fake.run(&["token", "create", "--scope", "admin,read", "--expires", "1h", "-o", "json"]).await;
    assert_eq!(ran.json()["secret"], "prn_secret");
    let sent = body(&fake, "POST");
    assert_eq!(sent["scopes"], json!(["admin", "read"]));
    assert!(sent["expiresAt"].is_string(), "{sent}");
    assert_eq!(fake.run(&["token", "create", "--scope", "write"]).await.exit, Exit::Usage);
}

#[tokio::test]
async fn a_quota_is_shown_with_what_is_taken_of_it_and_changed_kind_by_kind() {
    let fake = Fake::default();
    let before = Quota { pods: Some(5), memory: Some(Size(8 << 30)), ..Quota::default() };
    let usage = TenantUsage {
        pods: 2,
        cpus: Cpus { nano: 1_500_000_000 },
        memory: Size(1 << 30),
        disk: Size(20 << 30),
        unlimited: 1,
    };
    let tenant = |quota| Tenant {
        name: "acme".to_owned(),
        members: Some(vec!["ann".to_owned()]),
        quota,
        usage: Some(usage),
        created_at: time("2026-01-01T00:00:00Z"),
    };
    fake.on("GET /api/v1/tenants/acme", [tenant(before)]);
    fake.on("PATCH /api/v1/tenants/acme", [tenant(before)]);
    let shown = fake.run(&["tenant", "show", "acme"]).await.stdout;
    for line in ["2 of 5", "1.5 of any", "1.0 GiB of 8.0 GiB", "20.0 GiB of any", "1 pods, which may take all there is"]
    {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let line = ["tenant", "set", "acme", "--cpus", "4", "--disk", "200Gi", "--unset", "pods"];
    assert_eq!(fake.run(&line).await.exit, Exit::Done);
    let quota = json!({"pods": null, "cpus": 4.0, "memory": 8_u64 << 30, "disk": 200_u64 << 30});
    assert_eq!(body(&fake, "PATCH"), json!({ "quota": quota }));
    for bad in [&["tenant", "set", "acme"][..], &["tenant", "set", "acme", "--pods", "1", "--unset", "pods"]] {
        assert_eq!(fake.run(bad).await.exit, Exit::Usage, "{bad:?}");
    }
}

/// Sent again it could be made twice, and one of both would be nobody's.
#[tokio::test]
async fn what_makes_a_token_is_sent_once() {
    let fake = Fake::default();
    fake.reply("POST /api/v1/tokens", [Reply::Break]);
    let ran = fake.run(&["token", "create"]).await;
    assert_eq!((ran.exit, fake.asked_for("POST").len()), (Exit::Unavailable, 1), "{}", ran.stderr);
}

#[tokio::test]
async fn lists_are_tables() {
    let fake = Fake::default();
    let disabled = User { disabled: true, email: None, tenants: Vec::new(), role: Role::Admin, ..user("root") };
    fake.on("GET /api/v1/users", [List { items: vec![user("ann"), disabled], next: None }]);
    let ran = fake.run(&["user", "ls"]).await;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("NAME") && lines[1].contains("acme, beta"), "{}", ran.stdout);
    assert!(lines[2].contains("admin") && lines[2].contains("disabled"), "{}", ran.stdout);
    let revoked = Token { revoked_at: Some(time("2026-01-01T00:00:00Z")), ..token() };
    let expired = Token { expires_at: Some(time("2000-01-01T00:00:00Z")), tenant: Some("acme".into()), ..token() };
    fake.on("GET /api/v1/tokens", [List { items: vec![token(), revoked, expired], next: None }]);
    let ran = fake.run(&["token", "ls"]).await;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[1].contains("good") && lines[1].contains("all"), "{}", ran.stdout);
    assert!(lines[2].contains("revoked") && lines[3].contains("expired"), "{}", ran.stdout);
}

#[tokio::test]
async fn who_asks_is_told_what_they_may_do() {
    let fake = Fake::default();
    let me = Me {
        actor: "user:ann token:x".to_owned(),
        user: Some("ann".to_owned()),
        role: Role::User,
        scopes: vec![Scope::Read],
        tenants: Some(Vec::new()),
        token: Some(token()),
    };
    fake.on("GET /api/v1/me", [me]);
    let ran = fake.run(&["whoami"]).await;
    for part in ["ann", "read", "none", "never", "user:ann token:x"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
}

#[tokio::test]
async fn users_are_switched_off_and_on() {
    let fake = Fake::default();
    fake.on("PATCH /api/v1/users/ann", [user("ann")]);
    for (word, disabled) in [("disable", true), ("enable", false)] {
        let ran = fake.run(&["user", word, "ann"]).await;
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
        assert_eq!(body(&fake, "PATCH"), json!({"disabled": disabled}));
    }
    let ran = fake.run(&["user", "create", "ann", "--password-file", "/nonexistent/file"]).await;
    assert!(ran.exit == Exit::Usage && ran.stderr.contains("/nonexistent/file"), "{}", ran.stderr);
    assert!(fake.asked_for("POST").is_empty());
}

#[tokio::test]
async fn members_are_added_and_removed() {
    let fake = Fake::default();
    let tenant = |members: &[&str]| Tenant {
        quota: Quota::default(),
        usage: None,
        name: "acme".to_owned(),
        members: Some(members.iter().map(|name| (*name).to_owned()).collect()),
        created_at: time("2026-01-01T00:00:00Z"),
    };
    fake.on("PUT /api/v1/tenants/acme/members/ann", [tenant(&["ann"])]);
    fake.on("GET /api/v1/tenants/acme", [tenant(&[])]);
    assert_eq!(fake.run(&["tenant", "add", "acme", "ann"]).await.stdout, "ann\n");
    assert_eq!(fake.run(&["tenant", "members", "acme"]).await.stdout, "tenant acme has no members\n");
    let refused = problem(404, "not-found", "member bob of tenant acme not found");
    fake.reply("DELETE /api/v1/tenants/acme/members/bob", [Reply::Json(404, refused)]);
    let ran = fake.run(&["tenant", "remove", "acme", "bob"]).await;
    assert!(ran.exit == Exit::NotFound && ran.stderr.contains("member bob"), "{}", ran.stderr);
}
