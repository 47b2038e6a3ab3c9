//! Databases that worlds left.

use std::cell::RefCell;
use std::sync::Arc;

use perennial::store::Store;
use perennial_core::fault::NoTap;

thread_local! {
    static LEFT: RefCell<Option<Store>> = const { RefCell::new(None) };
}

/// Leaves a database to the next world.
pub fn leave(store: Store) {
    // None is left by a thread that ends.
    let _ = LEFT.try_with(|left| left.replace(Some(store)));
}

/// A new database in memory, or one that is as if it were new.
pub async fn store() -> Store {
    if let Some(left) = LEFT.take()
        && let Some(store) = left.renewed().await.unwrap()
    {
        return store;
    }
    let store = Store::open(super::MEMORY, Arc::new(NoTap)).await.unwrap();
    store.remember_new().await.unwrap();
    store
}
