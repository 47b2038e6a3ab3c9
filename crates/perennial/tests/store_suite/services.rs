//! Services that were changed over the API.

use perennial::store::{Change, Expected, ServiceBecomes, ServiceChange, Store, StoreError, StoredService};
use perennial_core::service::ServiceName;

use crate::cases::{after, now};
use crate::databases::Database;

fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

fn service(text: &str, revision: &str) -> StoredService {
    StoredService {
        name: name(text),
        revision: revision.to_owned(),
        definition: format!("{{\"name\":\"{text}\",\"of\":\"{revision}\"}}"),
        actor: "admin".to_owned(),
        changed_at: now(),
    }
}

async fn put(store: &Store, expected: Expected, service: &StoredService) -> Result<(), StoreError> {
    let change = ServiceChange { expected, becomes: ServiceBecomes::Stored(service.clone()) };
    store.commit(Change { service: Some(change), ..Change::default() }).await
}

async fn remove(store: &Store, expected: Expected, text: &str) -> Result<(), StoreError> {
    let change = ServiceChange { expected, becomes: ServiceBecomes::Removed(name(text)) };
    store.commit(Change { service: Some(change), ..Change::default() }).await
}

pub async fn services_are_remembered_and_changed_by_whoever_read_them(database: &Database) {
    let store = database.open().await;
    assert_eq!(store.service_list().await.unwrap(), []);
    let changed = |done: Result<(), StoreError>| assert!(matches!(done, Err(StoreError::ServiceChanged)), "{done:?}");
    let (one, two) = (service("n8n", "1"), StoredService { changed_at: after(5), ..service("n8n", "2") });
    changed(put(&store, Expected::Revision("1".to_owned()), &one).await);
    put(&store, Expected::Absent, &one).await.unwrap();
    changed(put(&store, Expected::Absent, &two).await);
    // Another server on the same database sees it, and changes it.
    let other = database.open().await;
    assert_eq!(other.service_fetch(&name("n8n")).await.unwrap(), Some(one.clone()));
    put(&other, Expected::Revision("1".to_owned()), &two).await.unwrap();
    changed(put(&store, Expected::Revision("1".to_owned()), &one).await);
    assert_eq!(store.service_fetch(&name("n8n")).await.unwrap(), Some(two.clone()));
    let ghost = service("ghost", "1");
    put(&store, Expected::Anything, &ghost).await.unwrap();
    put(&store, Expected::Anything, &ghost).await.unwrap();
    assert_eq!(store.service_list().await.unwrap(), [ghost, two], "by name");
    changed(remove(&store, Expected::Revision("1".to_owned()), "n8n").await);
    remove(&store, Expected::Revision("2".to_owned()), "n8n").await.unwrap();
    remove(&store, Expected::Anything, "ghost").await.unwrap();
    changed(remove(&store, Expected::Anything, "ghost").await);
    assert_eq!(other.service_list().await.unwrap(), []);
}
