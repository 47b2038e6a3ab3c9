//! Services that were changed over the API.

use perennial::store::{
    AuditFilter, Change, Expected, ServiceBecomes, ServiceChange, Store, StoreError, StoredService,
};
use perennial_core::service::ServiceName;
use serde_json::{Value, json};

use crate::audit::newest;
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
    let was = json!({"service": {"name": "n8n", "of": "2"}});
    assert_eq!(newest(&store).await, ("service.changed".to_owned(), was, Value::Null));
    remove(&store, Expected::Anything, "ghost").await.unwrap();
    changed(remove(&store, Expected::Anything, "ghost").await);
    assert_eq!(other.service_list().await.unwrap(), []);
}

pub async fn the_audit_tells_which_plans_of_a_service_changed_without_their_secrets(database: &Database) {
    let store = database.open().await;
    let plan = |name: &str, memory: u32, password: &str| {
        json!({"name": name, "image": "n8n:1", "resources": {"memory": memory}, "env": {"PASSWORD": {"value": password}},
               "command": ["n8n", password], "hooks": {"before": {"command": ["sh", "-c", password]}}})
    };
    let of = |revision: &str, plus: Value| {
        let definition = json!({"name": "n8n", "title": "n8n", "plans": [plan("basic", 1, "hunter2"), plus]});
        StoredService { definition: definition.to_string(), ..service("n8n", revision) }
    };
    put(&store, Expected::Anything, &of("1", plan("plus", 2, "swordfish"))).await.unwrap();
    let (_, before, after) = newest(&store).await;
    let basic = &after["service"]["plans.basic"];
    assert_eq!((before, &basic["env"], &basic["command"]), (Value::Null, &json!(["PASSWORD"]), &json!("2 words")));
    assert_eq!(basic["hooks"]["before"]["command"], json!("3 words"));

    put(&store, Expected::Anything, &of("2", plan("plus", 3, "tuna"))).await.unwrap();
    let (_, before, after) = newest(&store).await;
    let (was, is) = (&before["service"], &after["service"]);
    assert_eq!(was["plans.plus"]["resources"], json!({"memory": 2}));
    assert_eq!(is["plans.plus"]["resources"], json!({"memory": 3}));
    assert!(is.get("plans.basic").is_none() && is.get("title").is_none(), "{is}");
    let changed = ["definition", "plans.plus.command", "plans.plus.env.PASSWORD", "plans.plus.hooks.before.command"];
    assert_eq!(is["changed"], json!(changed));
    // What is no document is not told, and can be replaced and removed all the same.
    let broken = StoredService { definition: "{\"name\":\"tuna\"".to_owned(), ..service("n8n", "3") };
    put(&store, Expected::Anything, &broken).await.unwrap();
    assert_eq!(newest(&store).await.2["service"], json!({"changed": ["definition"]}));
    put(&store, Expected::Anything, &of("4", plan("plus", 4, "tuna"))).await.unwrap();
    put(&store, Expected::Anything, &broken).await.unwrap();
    remove(&store, Expected::Anything, "n8n").await.unwrap();
    assert_eq!(newest(&store).await.1, json!({"service": {"name": "n8n"}}));
    let all = format!("{:?}", store.audit_list(0, &AuditFilter::default(), 1_000).await.unwrap());
    for secret in ["hunter2", "swordfish", "tuna"] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
}
