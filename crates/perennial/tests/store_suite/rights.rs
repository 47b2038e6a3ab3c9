//! Tenants, users and tokens; and that who gives rights still has them when it is committed.

use std::collections::BTreeSet;

use jiff::Timestamp;
use perennial::store::{
    AccessChange, AccessRequest, Asker, AuditFilter, Change, ErasureChange, Page, Store, StoreError, TokenFilter,
    TokenHash, UserPatch,
};
use perennial_core::access::{Rights, Role, Scope, Token, User, UserName};
use perennial_core::id::TokenId;
use perennial_core::operation::NewEvent;
use perennial_core::pod::Pod;
use perennial_core::spec::TenantId;
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::any::Any;
use crate::audit::newest;
use crate::cases::{after, now, with_pod};
use crate::databases::Database;
use crate::fences::erasure;

fn name(text: &str) -> UserName {
    UserName::parse(text).unwrap()
}

fn tenant(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

fn user(text: &str, role: Role) -> User {
    User { name: name(text), email: None, role, has_password: false, disabled: false, created_at: now() }
}

fn token(n: u8, of: &str) -> Token {
    Token {
        id: TokenId::from_parts(u64::from(n), [n; 10]),
        user: name(of),
        label: "ci".into(),
        scopes: BTreeSet::from(Scope::ALL),
        tenant: None,
        created_by: "admin".into(),
        created_at: now(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    }
}

fn hash(n: u8) -> TokenHash {
    TokenHash([n; 32])
}

fn event(kind: &str) -> NewEvent {
    NewEvent {
        at: now(),
        actor: "admin".into(),
        tenant: TenantId::default_tenant(),
        pod: None,
        operation: None,
        kind: kind.into(),
        message: kind.into(),
    }
}

fn asker(n: u8) -> Option<Asker> {
    Some(Asker { token: token(n, "root").id, rights: Rights::everything(), at: now() })
}

fn asked(change: AccessChange, asker: Option<Asker>) -> Change {
    let access = Some(AccessRequest { change, at: now() });
    Change { access, asker, events: vec![event("user.changed")], ..Change::default() }
}

async fn done(store: &Store, change: AccessChange) {
    store.commit(asked(change, None)).await.unwrap();
}

fn made(n: u8, of: &str) -> AccessChange {
    AccessChange::TokenNew(Box::new(token(n, of)), hash(n))
}

/// A store with an administrator who has token 1.
async fn with_root(db: &Database) -> Store {
    let store = db.open().await;
    done(&store, AccessChange::UserNew(Box::new(user("root", Role::Admin)), None)).await;
    done(&store, made(1, "root")).await;
    store
}

pub async fn users_tenants_and_tokens_are_remembered(db: &Database) {
    let store = db.open().await;
    assert!(store.tenant_fetch(&TenantId::default_tenant()).await.unwrap().is_some());
    let epoch = store.access_epoch().await.unwrap();
    done(&store, AccessChange::TenantNew(tenant("acme"))).await;
    let ann = User { email: Some("ann@example.org".into()), has_password: true, ..user("ann", Role::User) };
    done(&store, AccessChange::UserNew(Box::new(ann.clone()), Some("hash".into()))).await;
    done(&store, AccessChange::UserNew(Box::new(user("bob", Role::Admin)), None)).await;
    done(&store, AccessChange::MemberNew(name("ann"), tenant("acme"))).await;
    done(&store, AccessChange::MemberNew(name("ann"), tenant("acme"))).await;
    let confined = Token { tenant: Some(tenant("acme")), expires_at: Some(after(60)), ..token(1, "ann") };
    done(&store, AccessChange::TokenNew(Box::new(confined.clone()), hash(1))).await;
    done(&store, made(2, "bob")).await;
    assert_eq!(store.access_epoch().await.unwrap(), epoch + 7, "each change is counted");

    assert_eq!(store.user_fetch(&name("ann")).await.unwrap(), Some(ann.clone()));
    assert_eq!(store.user_list(&Page::first(1)).await.unwrap(), vec![ann.clone()]);
    let page = Page { after: Some("ann".into()), limit: 9 };
    assert_eq!(store.user_list(&page).await.unwrap(), vec![user("bob", Role::Admin)]);
    assert_eq!(store.members_of(&tenant("acme")).await.unwrap(), vec![name("ann")]);
    let names = async |within: Option<&[&str]>| {
        let within = within.map(|names| names.iter().map(|name| tenant(name)).collect());
        let list = store.tenant_list(within.as_ref(), &Page::first(9)).await.unwrap();
        list.iter().map(|tenant| tenant.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None).await, ["acme", "default"]);
    assert_eq!(names(Some(&["acme", "nosuch"])).await, ["acme"]);
    assert_eq!(names(Some(&[])).await, Vec::<String>::new());
    let holder = store.token_holder(hash(1)).await.unwrap().unwrap();
    assert_eq!((&holder.token, &holder.user), (&confined, &ann));
    assert_eq!(holder.tenants, BTreeSet::from([tenant("acme")]));
    assert_eq!(store.token_holder(hash(9)).await.unwrap(), None);
    let list = async |filter: TokenFilter| store.token_list(&filter, &Page::first(9)).await.unwrap();
    assert_eq!(list(TokenFilter::default()).await, vec![confined.clone(), token(2, "bob")]);
    assert_eq!(list(TokenFilter { user: Some(name("bob")), ..TokenFilter::default() }).await, vec![token(2, "bob")]);
    assert_eq!(list(TokenFilter { tenant: Some(tenant("acme")), ..TokenFilter::default() }).await, vec![confined]);

    store.token_used(token(2, "bob").id, after(5)).await.unwrap();
    store.token_used(token(2, "bob").id, after(3)).await.unwrap();
    assert_eq!(store.token_fetch(token(2, "bob").id).await.unwrap().unwrap().last_used_at, Some(after(5)));
    assert_eq!(store.access_epoch().await.unwrap(), epoch + 7, "a use changes no rights");
    let patch = UserPatch {
        email: Some(String::new()),
        role: Some(Role::Admin),
        password: Some(String::new()),
        disabled: Some(true),
    };
    done(&store, AccessChange::User(name("ann"), patch)).await;
    let changed = store.user_fetch(&name("ann")).await.unwrap().unwrap();
    assert_eq!(changed, User { disabled: true, ..user("ann", Role::Admin) });
    done(&store, AccessChange::TokenRevoked(token(2, "bob").id)).await;
    assert_eq!(store.token_fetch(token(2, "bob").id).await.unwrap().unwrap().revoked_at, Some(now()));
    done(&store, AccessChange::UserGone(name("ann"))).await;
    assert_eq!(store.user_fetch(&name("ann")).await.unwrap(), None);
    assert_eq!(store.token_holder(hash(1)).await.unwrap(), None);
    assert!(store.members_of(&tenant("acme")).await.unwrap().is_empty());
}

pub async fn what_is_not_there_or_taken_is_refused(db: &Database) {
    let store = with_root(db).await;
    done(&store, AccessChange::UserNew(Box::new(user("gone", Role::User)), None)).await;
    done(&store, AccessChange::UserGone(name("gone"))).await;
    let before = (store.access_epoch().await.unwrap(), store.event_last().await.unwrap());
    let of_tenant = Token { tenant: Some(tenant("nosuch")), ..token(3, "root") };
    for missing in [
        AccessChange::User(name("gone"), UserPatch { disabled: Some(false), ..UserPatch::default() }),
        AccessChange::UserGone(name("gone")),
        AccessChange::MemberNew(name("gone"), TenantId::default_tenant()),
        AccessChange::MemberNew(name("root"), tenant("nosuch")),
        AccessChange::MemberGone(name("root"), TenantId::default_tenant()),
        made(3, "gone"),
        AccessChange::TokenNew(Box::new(of_tenant), hash(3)),
        AccessChange::TokenRevoked(token(9, "root").id),
    ] {
        let refused = store.commit(asked(missing.clone(), None)).await;
        assert!(matches!(&refused, Err(StoreError::Missing(_))), "{missing:?}: {refused:?}");
    }
    for taken in [
        AccessChange::UserNew(Box::new(user("gone", Role::User)), None),
        AccessChange::UserNew(Box::new(user("root", Role::User)), None),
        AccessChange::TenantNew(TenantId::default_tenant()),
    ] {
        let refused = store.commit(asked(taken.clone(), None)).await;
        assert!(matches!(&refused, Err(StoreError::Taken(_))), "{taken:?}: {refused:?}");
    }
    assert_eq!((store.access_epoch().await.unwrap(), store.event_last().await.unwrap()), before);
}

pub async fn who_lost_rights_gives_none(db: &Database) {
    let store = with_root(db).await;
    store.commit(asked(made(2, "root"), asker(1))).await.unwrap();
    let mut any = Any::new(21);
    store.commit(Change { pod: Some(any.living("before")), asker: asker(1), ..Change::default() }).await.unwrap();
    let less = UserPatch { role: Some(Role::User), ..UserPatch::default() };
    let off = UserPatch { disabled: Some(true), ..UserPatch::default() };
    let (more, on) = (
        UserPatch { role: Some(Role::Admin), ..UserPatch::default() },
        UserPatch { disabled: Some(false), ..UserPatch::default() },
    );
    let change = |patch| AccessChange::User(name("root"), patch);
    for (takes, gives_back) in [
        (change(less), Some(change(more))),
        (change(off), Some(change(on))),
        (AccessChange::TokenRevoked(token(1, "root").id), None),
    ] {
        done(&store, takes.clone()).await;
        let before = (store.access_epoch().await.unwrap(), store.event_last().await.unwrap());
        for gives in [
            made(3, "root"),
            AccessChange::MemberNew(name("root"), TenantId::default_tenant()),
            AccessChange::UserNew(Box::new(user("eve", Role::Admin)), None),
            AccessChange::TenantNew(tenant("eve")),
        ] {
            let refused = store.commit(asked(gives.clone(), asker(1))).await;
            assert!(matches!(&refused, Err(StoreError::RightsLost)), "{takes:?}, {gives:?}: {refused:?}");
        }
        // Nor does anything else that they were asking for meanwhile, be it told of or not.
        let pod = any.living("after");
        for events in [vec![event("pod.updated")], Vec::new()] {
            let change = Change { pod: Some(pod.clone()), asker: asker(1), events, ..Change::default() };
            let refused = store.commit(change).await;
            assert!(matches!(&refused, Err(StoreError::RightsLost)), "{takes:?}: {refused:?}");
        }
        assert_eq!(store.pod_fetch(pod.id).await.unwrap(), None);
        assert_eq!((store.access_epoch().await.unwrap(), store.event_last().await.unwrap()), before);
        if let Some(gives_back) = gives_back {
            done(&store, gives_back).await;
        }
    }
    // A token that was never made, or is over.
    assert!(matches!(store.commit(asked(made(4, "root"), asker(8))).await, Err(StoreError::RightsLost)));
}

/// Whatever a token makes while it is being revoked is made before that, or not at all.
pub async fn a_token_is_revoked_before_or_after_it_makes_another(db: &Database) {
    let store = with_root(db).await;
    for n in (10..50).step_by(2) {
        done(&store, made(n, "root")).await;
        let mut make = asked(made(n + 1, "root"), asker(n));
        make.events = vec![event("token.created")];
        let mut revoke = asked(AccessChange::TokenRevoked(token(n, "root").id), None);
        revoke.events = vec![event("token.revoked")];
        let (a, b) = (store.clone(), store.clone());
        let (made, revoked) = tokio::join!(
            tokio::spawn(async move { a.commit(make).await }),
            tokio::spawn(async move { b.commit(revoke).await })
        );
        revoked.unwrap().unwrap();
        let last = store.event_last().await.unwrap();
        let events = store.event_list(last - 2, &perennial::store::EventFilter::default(), 9).await.unwrap();
        let kinds: Vec<&str> = events.iter().map(|event| event.line.kind.as_str()).collect();
        let is_there = store.token_fetch(token(n + 1, "root").id).await.unwrap().is_some();
        match made.unwrap() {
            Ok(()) => assert!(is_there && kinds == ["token.created", "token.revoked"], "{n}: {kinds:?}"),
            Err(StoreError::RightsLost) => {
                assert!(!is_there && kinds.last() == Some(&"token.revoked"), "{n}: {kinds:?}")
            }
            Err(other) => panic!("{n}: {other}"),
        }
    }
}

pub async fn an_erased_tenant_has_no_members_and_is_not_made_again(db: &Database) {
    let (store, mut any) = (with_root(db).await, Any::new(95));
    done(&store, AccessChange::TenantNew(tenant("acme"))).await;
    done(&store, AccessChange::MemberNew(name("root"), tenant("acme"))).await;
    let confined = Token { tenant: Some(tenant("acme")), ..token(2, "root") };
    done(&store, AccessChange::TokenNew(Box::new(confined), hash(2))).await;
    let epoch = store.access_epoch().await.unwrap();
    let begun = ErasureChange::Begun(Box::new(erasure(&mut any, "acme", false)));
    store.commit(Change { erasure: Some(begun), ..Change::default() }).await.unwrap();
    assert_eq!(store.access_epoch().await.unwrap(), epoch + 1);
    assert_eq!(store.tenant_fetch(&tenant("acme")).await.unwrap(), None);
    assert!(store.tenants_of(&name("root")).await.unwrap().is_empty());
    assert!(store.token_fetch(token(2, "root").id).await.unwrap().unwrap().revoked_at.is_some());
    assert_eq!(store.token_fetch(token(1, "root").id).await.unwrap().unwrap().revoked_at, None);
    let again = store.commit(asked(AccessChange::TenantNew(tenant("acme")), None)).await;
    assert!(matches!(&again, Err(StoreError::TenantErased(_))), "{again:?}");
    // Neither by a start, and the first one neither.
    let begun = ErasureChange::Begun(Box::new(erasure(&mut any, "default", false)));
    store.commit(Change { erasure: Some(begun), ..Change::default() }).await.unwrap();
    store.close().await;
    let store = db.open().await;
    assert!(store.tenant_list(None, &Page::first(9)).await.unwrap().is_empty());
}

/// A database of the version before this one, made by taking back what the migration did.
pub async fn tenants_of_before_are_there_after_the_upgrade(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(96));
    let pod = perennial_core::pod::Pod { tenant: tenant("acme"), ..any.living("dev") };
    store.commit(with_pod(&pod)).await.unwrap();
    let begun = ErasureChange::Begun(Box::new(erasure(&mut any, "erased", false)));
    store.commit(Change { erasure: Some(begun), ..Change::default() }).await.unwrap();
    store.close().await;
    let mut raw = sqlx::AnyConnection::connect(&db.raw_url()).await.unwrap();
    for sql in [
        "DROP TABLE tokens",
        "DROP TABLE memberships",
        "DROP TABLE users",
        "DROP TABLE tenants",
        "DELETE FROM counters WHERE name = 'access'",
        "ALTER TABLE idempotency DROP COLUMN about",
        "DELETE FROM _sqlx_migrations WHERE version IN (9, 13)",
    ] {
        sqlx::query(sql).execute(&mut raw).await.unwrap();
    }
    raw.close().await.unwrap();
    let store = db.open().await;
    let tenants = store.tenant_list(None, &Page::first(9)).await.unwrap();
    let names: Vec<(&str, Timestamp)> =
        tenants.iter().map(|tenant| (tenant.name.as_str(), tenant.created_at)).collect();
    assert_eq!((names[0], names.len(), names[1].0), (("acme", pod.created_at), 2, "default"));
}

/// A database that hangs says nothing, and a stream whose reader may have lost their rights does not wait for it.
pub async fn a_stream_ends_while_the_database_hangs(db: &Database) {
    let store = db.open().await;
    let clock = std::sync::Arc::new(perennial::serve::SystemClock);
    let short = std::time::Duration::from_millis(50);
    let access = perennial::service::Access::with_times(store, clock, "admin", (short, short));
    let credential = perennial::service::Credential::Token {
        id: perennial_core::id::TokenId::from_parts(1, [1; 10]),
        hash: perennial::service::token_hash("somebody's"),
    };
    let reader = perennial::service::Caller { credential, ..perennial::service::Caller::admin() };
    let pool = sqlx::AnyPool::connect(&db.url).await.unwrap();
    let mut holds = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE counters IN ACCESS EXCLUSIVE MODE").execute(&mut *holds).await.unwrap();
    let lost = tokio::time::timeout(std::time::Duration::from_secs(20), access.lost(&reader)).await;
    assert!(lost.is_ok(), "it waits for ever");
    holds.rollback().await.unwrap();
}

pub async fn the_audit_tells_what_became_of_users_tenants_and_tokens(db: &Database) {
    let store = db.open().await;
    let told = async |change| {
        done(&store, change).await;
        let (kind, before, after) = newest(&store).await;
        assert_eq!(kind, "user.changed");
        (before, after)
    };
    let nothing = Value::Null;
    let made = told(AccessChange::TenantNew(tenant("acme"))).await;
    assert_eq!(made, (nothing.clone(), json!({"tenant": {"name": "acme"}})));
    let quota = |pods| perennial_core::quota::Quota { pods: Some(pods), ..Default::default() };
    let one = json!({"tenant": {"quota": {"pods": 1, "nanoCpus": null, "memory": null, "disk": null}}});
    assert_eq!(told(AccessChange::TenantQuota(tenant("acme"), quota(1))).await, (json!({"tenant": {}}), one.clone()));
    let two = json!({"tenant": {"quota": {"pods": 2, "nanoCpus": null, "memory": null, "disk": null}}});
    assert_eq!(told(AccessChange::TenantQuota(tenant("acme"), quota(2))).await, (one, two.clone()));
    assert_eq!(told(AccessChange::TenantQuota(tenant("acme"), quota(2))).await, (nothing.clone(), nothing.clone()));

    let ann = User { email: Some("ann@example.org".into()), has_password: true, ..user("ann", Role::User) };
    let shown = json!({"user": {"name": "ann", "role": "user", "disabled": false, "tokens": 0}});
    let new = AccessChange::UserNew(Box::new(ann), Some("$argon2id$one".into()));
    assert_eq!(told(new).await, (nothing.clone(), shown));
    let member = json!({"member": {"user": "ann", "tenant": "acme"}});
    assert_eq!(told(AccessChange::MemberNew(name("ann"), tenant("acme"))).await, (nothing.clone(), member.clone()));
    let patch = UserPatch {
        email: Some("ann@example.com".into()),
        role: Some(Role::Admin),
        password: Some("$argon2id$two".into()),
        disabled: None,
    };
    let became = json!({"user": {"role": "admin", "changed": ["email", "password"]}});
    assert_eq!(told(AccessChange::User(name("ann"), patch)).await, (json!({"user": {"role": "user"}}), became));

    let confined = Token { tenant: Some(tenant("acme")), ..token(1, "ann") };
    let (before, after) = told(AccessChange::TokenNew(Box::new(confined), hash(1))).await;
    assert_eq!(
        (before, &after["token"]["user"], &after["token"]["tenant"]),
        (nothing.clone(), &json!("ann"), &json!("acme"))
    );
    assert_eq!((&after["token"]["label"], &after["token"]["scopes"]), (&json!("ci"), &json!("read,operate,admin")));
    let (before, after) = told(AccessChange::TokenRevoked(token(1, "ann").id)).await;
    assert_eq!(before, json!({"token": {}}));
    assert!(after["token"]["revokedAt"].as_str().is_some_and(|at| at.starts_with("20")), "{after}");

    assert_eq!(told(AccessChange::MemberGone(name("ann"), tenant("acme"))).await, (member, nothing.clone()));
    told(AccessChange::MemberNew(name("ann"), tenant("acme"))).await;
    let (before, after) = told(AccessChange::UserGone(name("ann"))).await;
    let was = json!({"user": {"name": "ann", "role": "admin", "disabled": false, "tenants": ["acme"], "tokens": 0}});
    assert_eq!((before, after), (was, nothing.clone()));

    // Without an event it has a row all the same.
    let begun = ErasureChange::Begun(Box::new(erasure(&mut Any::new(72), "acme", false)));
    store.commit(Change { erasure: Some(begun), ..Change::default() }).await.unwrap();
    let mut was = two;
    was["tenant"]["name"] = json!("acme");
    let (kind, before, after) = newest(&store).await;
    assert_eq!((kind.as_str(), before, &after["tenant"]), ("erasure.changed", was, &nothing));
    assert_eq!((&after["erasure"]["actor"], &after["erasure"]["deleteData"]), (&json!("root"), &json!(false)));

    // The first pod of a tenant makes it.
    let pod = Pod { tenant: tenant("globex"), ..Any::new(73).living("first") };
    let change = Change { events: vec![NewEvent { pod: Some(pod.id), ..event("tenant.created") }], ..with_pod(&pod) };
    store.commit(change).await.unwrap();
    let (_, before, after) = newest(&store).await;
    assert_eq!((before, &after["tenant"], &after["name"]), (nothing, &json!({"name": "globex"}), &json!("first")));

    let all = format!("{:?}", store.audit_list(0, &AuditFilter::default(), 1_000).await.unwrap());
    for secret in ["example.", "argon2id", &hex::encode([1; 32])] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
}
