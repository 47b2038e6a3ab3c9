use perennial_snapshots::{Id, Seen};

use super::*;
use crate::reconcile::repositories::Contents;

fn holding() -> Holding {
    Holding { location: "/r/acme".to_owned(), snapshots: Some(5), bytes: Some(7), ..Holding::default() }
}

fn failed(message: &str) -> Holding {
    let problem =
        Problem { code: "repository-unavailable".to_owned(), message: message.to_owned(), hint: String::new() };
    Holding { problem: Some(problem), ..holding() }
}

fn accepts(first: &Holding) -> Option<String> {
    let erasing = Erasing {
        tenant: TenantId::default_tenant(),
        erasure: None,
        delete_data: false,
        found: FoundPlaces { repository: found(first), replica: None },
        blockers: Vec::new(),
        doubts: doubts(first, None, &[]),
        meaning: Vec::new(),
    };
    erasing.accept()
}

/// The store's own words are other ones every time, and then nobody could ever accept them.
#[test]
fn a_doubt_is_the_same_however_long_the_store_took() {
    let word = accepts(&failed("HEAD failed in 11.3ms")).unwrap();
    assert_eq!(accepts(&failed("HEAD failed in 9.8ms")), Some(word.clone()));
    let elsewhere = Holding { location: "/r/other".to_owned(), ..failed("HEAD failed in 11.3ms") };
    assert_ne!(accepts(&elsewhere), Some(word));
    assert_eq!(accepts(&holding()), None);
}

#[test]
fn snapshots_that_nobody_knows_of_are_a_doubt_and_more_of_them_another_one() {
    let with = |others| {
        let contents = Contents { others, ..Contents::default() };
        Holding { contents: Some(contents), ..holding() }
    };
    assert_eq!(accepts(&with(0)), None);
    assert!(accepts(&with(1)).is_some() && accepts(&with(1)) != accepts(&with(2)));
    let told = &doubts(&with(2), None, &[])[0].text;
    assert!(told.contains("2 snapshots that no server") && told.contains("would be destroyed"), "{told}");
}

#[test]
fn a_place_is_called_empty_only_when_it_was_looked_at_to_the_end() {
    let seen = Seen { config: Id::of(b"config"), keys: [].into(), snapshots: [].into() };
    let in_work = failed("somebody has a lock").problem;
    assert_eq!(found(&holding()).became, Some(Became::Absent));
    assert_eq!(found(&failed("away")).became, Some(Became::Untouched));
    assert_eq!(found(&Holding { seen: Some(seen), ..holding() }).became, None);
    let locked = found(&Holding { in_work, ..holding() });
    assert_eq!((locked.became, locked.seen, locked.snapshots), (None, None, Some(5)));
}

/// Whoever asks waits for both looks.
#[test]
fn the_command_line_waits_longer_than_a_place_is_looked_at() {
    assert!(LOOK + Duration::from_secs(20) < crate::cli::Session::process().silence);
}
