//! Who a user is to an OpenID provider, on both databases.

use std::collections::BTreeSet;

use perennial::store::{AccessChange, AccessRequest, Change, Shown, Store, StoreError, TokenHash, UserPatch};
use perennial_core::access::{Role, Scope, Token, User, UserName};
use perennial_core::id::TokenId;

use crate::databases::{Cluster, Database};

const SHE: &str = "https://id.example 1";
const OTHER: &str = "https://id.example 2";

fn name(text: &str) -> UserName {
    UserName::parse(text).unwrap()
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

async fn change(store: &Store, change: AccessChange) -> Result<(), StoreError> {
    let access = Some(AccessRequest { change, at: now() });
    store.commit(Change { access, ..Change::default() }).await
}

async fn made(store: &Store, user: &str, email: &str) {
    let user = User {
        name: name(user),
        email: Some(email.to_owned()).filter(|email| !email.is_empty()),
        role: Role::User,
        has_password: false,
        disabled: false,
        created_at: now(),
    };
    change(store, AccessChange::UserNew(Box::new(user), None)).await.unwrap();
}

/// Signs somebody in who showed this.
async fn session(store: &Store, n: u8, user: &str, identity: &str, email: Option<&str>) -> Result<(), StoreError> {
    let token = Token {
        id: TokenId::from_parts(u64::from(n), [n; 10]),
        user: name(user),
        label: "signed in".into(),
        scopes: BTreeSet::from(Scope::ALL),
        tenant: None,
        created_by: format!("user:{user}"),
        created_at: now(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    };
    let shown = Shown::Identity { identity: identity.to_owned(), email: email.map(str::to_owned) };
    change(store, AccessChange::SessionNew(Box::new(token), TokenHash([n; 32]), shown)).await
}

async fn found(store: &Store, identity: &str, email: Option<&str>) -> Option<(String, bool)> {
    let found = store.user_of_identity(identity, email).await.unwrap();
    found.map(|(user, is_known)| (user.name.to_string(), is_known))
}

async fn patch(store: &Store, user: &str, patch: UserPatch) {
    change(store, AccessChange::User(name(user), patch)).await.unwrap();
}

fn address(email: &str) -> UserPatch {
    UserPatch { email: Some(email.to_owned()), ..UserPatch::default() }
}

async fn an_identity_is_of_one_user(database: &Database) {
    let store = database.open().await;
    let ann = || Some(("ann".to_owned(), true));
    made(&store, "ann", "ann@example.org").await;
    made(&store, "bob", "bob@example.org").await;
    assert_eq!(found(&store, SHE, None).await, None);
    assert_eq!(found(&store, SHE, Some("ann@example.org")).await, Some(("ann".to_owned(), false)));
    // Many have no address; that is nobody's.
    made(&store, "dan", "").await;
    assert_eq!(found(&store, SHE, Some("")).await, None);
    let refused = session(&store, 1, "dan", SHE, Some("")).await.unwrap_err();
    assert!(matches!(refused, StoreError::RightsLost), "{refused:?}");
    // Neither without an address, nor with another one's.
    for email in [None, Some("bob@example.org"), Some("")] {
        let refused = session(&store, 1, "ann", SHE, email).await.unwrap_err();
        assert!(matches!(refused, StoreError::RightsLost), "{email:?}: {refused:?}");
    }
    // Two at the same moment: one of them is ann.
    let two = tokio::join!(
        session(&store, 2, "ann", SHE, Some("ann@example.org")),
        session(&store, 3, "ann", SHE, Some("ann@example.org")),
    );
    assert!(two.0.is_ok() && two.1.is_ok(), "{two:?}");
    assert_eq!(found(&store, SHE, None).await, ann());
    assert_eq!(found(&store, SHE, Some("bob@example.org")).await, ann());
    assert_eq!(found(&store, OTHER, Some("ann@example.org")).await, None);
    let refused = session(&store, 4, "ann", OTHER, Some("ann@example.org")).await.unwrap_err();
    assert!(matches!(refused, StoreError::RightsLost), "{refused:?}");
    // One who is two users at the provider's say is the first of them.
    let refused = session(&store, 4, "bob", SHE, Some("bob@example.org")).await.unwrap_err();
    assert!(matches!(refused, StoreError::RightsLost), "{refused:?}");

    // The same address is no other one.
    patch(&store, "ann", address("ann@example.org")).await;
    assert_eq!(found(&store, SHE, None).await, ann());
    assert!(store.token_fetch(TokenId::from_parts(2, [2; 10])).await.unwrap().unwrap().revoked_at.is_none());
    patch(&store, "ann", address("new@example.org")).await;
    assert_eq!(found(&store, SHE, Some("ann@example.org")).await, None);
    assert!(store.token_fetch(TokenId::from_parts(2, [2; 10])).await.unwrap().unwrap().revoked_at.is_some());
    session(&store, 5, "ann", OTHER, Some("new@example.org")).await.unwrap();

    patch(&store, "ann", UserPatch { disabled: Some(true), ..UserPatch::default() }).await;
    let refused = session(&store, 6, "ann", OTHER, None).await.unwrap_err();
    assert!(matches!(refused, StoreError::RightsLost), "{refused:?}");
    change(&store, AccessChange::UserGone(name("ann"))).await.unwrap();
    assert_eq!(found(&store, OTHER, Some("new@example.org")).await, None);
    // It is free for who has the address next.
    made(&store, "cat", "new@example.org").await;
    session(&store, 7, "cat", OTHER, Some("new@example.org")).await.unwrap();
}

#[tokio::test]
async fn an_identity_is_of_one_user_on_sqlite() {
    an_identity_is_of_one_user(&Database::sqlite()).await;
}

#[tokio::test]
async fn an_identity_is_of_one_user_on_postgres() {
    let cluster = Cluster::start();
    an_identity_is_of_one_user(&cluster.database("identities").await).await;
}
