//! Several passwords open one repository, and the last one always does.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::sync::Arc;

use crate::support::*;
use perennial_snapshots::*;

#[test]
fn a_password_is_added_and_another_taken_away_as_restic_sees_it() {
    let dir = scratch();
    let (path, repo) = local(dir.path());
    let (old, new) = (password(), Password::new("battery staple"));
    repo.add_password(&new, KeyCost::Test).unwrap();
    repo.add_password(&new, KeyCost::Test).unwrap();
    assert_eq!(restic(&path, &["key", "list"]).matches("perennial").count(), 2, "once each");
    let open = |password: &Password| Repository::open(Arc::new(LocalBackend::new(&path)), password);
    for password in [&old, &new] {
        assert_eq!(open(password).unwrap().id(), repo.id());
    }

    // The one to keep has to open it, and is not the one to go.
    assert!(matches!(repo.remove_password(&old, &Password::new("typo")), Err(Error::WrongPassword)));
    assert!(matches!(repo.remove_password(&old, &old), Err(Error::InvalidRequest(_))));
    assert_eq!(restic(&path, &["key", "list"]).matches("perennial").count(), 2);
    repo.remove_password(&new, &old).unwrap();
    repo.remove_password(&new, &old).unwrap();
    assert!(matches!(open(&new), Err(Error::WrongPassword)));
    assert_eq!(restic(&path, &["key", "list"]).matches("perennial").count(), 1);
    open(&old).unwrap();
}
