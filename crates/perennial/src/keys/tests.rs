use std::os::unix::fs::PermissionsExt as _;

use perennial_core::fault::{Moment, NoTap, Tap, Verdict};
use perennial_snapshots::{KeyCost, MemoryBackend, Repository};

use super::erase::Destroyed;
use super::*;

const FIRST: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const SECOND: &str = "//////////////////////////////////////////8=";

fn key(text: &str) -> InstallationKey {
    InstallationKey::parse(text).unwrap()
}

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn reveal(password: &Password) -> String {
    String::from_utf8(password.reveal().to_vec()).unwrap()
}

#[test]
fn installation_keys_are_32_bytes() {
    for text in [FIRST, SECOND, &format!(" {FIRST}\n")] {
        assert!(InstallationKey::parse(text).is_some(), "{text}");
    }
    for text in ["", "hunter2", &FIRST[2..], "AAAA"] {
        assert!(InstallationKey::parse(text).is_none(), "{text}");
    }
    assert_ne!(key(FIRST).fingerprint(), key(SECOND).fingerprint());
    assert!(!format!("{:?}", key(FIRST)).contains("0405"));
}

#[test]
fn keys_are_wrapped_from_the_first_start_with_an_installation_key_on() {
    let dir = tempfile::tempdir().unwrap();
    let (default, acme) = (tenant("default"), tenant("acme"));
    let plain = Keyring::new(dir.path(), None, None);
    assert!(plain.read(&default).unwrap().is_none());
    let password = Password::random();
    plain.write(&default, &password).unwrap();
    let text = || std::fs::read_to_string(plain.path(&default)).unwrap();
    assert_eq!(text().trim(), reveal(&password));

    // A write that was interrupted leaves the password as it is.
    let interrupted = dir.path().join("keys/default.new");
    std::fs::write(&interrupted, password.reveal()).unwrap();
    let wrapped = Keyring::new(dir.path(), Some(key(FIRST)), None);
    assert_eq!((wrapped.rewrap().unwrap(), wrapped.rewrap().unwrap()), (1, 0));
    assert!(!text().contains(&reveal(&password)) && !interrupted.exists(), "{}", text());
    assert_eq!(std::fs::metadata(plain.path(&default)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(reveal(&wrapped.read(&default).unwrap().unwrap()), reveal(&password));
    assert_eq!(wrapped.all().unwrap().len(), 1);

    // Without the key, or with another one, nothing is opened, and nothing is changed.
    let before = text();
    for (ring, words) in [
        (Keyring::new(dir.path(), None, None), "names none"),
        (Keyring::new(dir.path(), Some(key(SECOND)), None), "names "),
    ] {
        let error = ring.read(&default).unwrap_err();
        assert!(matches!(&error, KeyError::OtherKey { have, .. } if have.contains(words)), "{error}");
        assert!(ring.rewrap().is_err() && ring.all().is_err());
    }
    assert_eq!(text(), before);

    // Another installation key, with the one before at hand.
    let rotated = Keyring::new(dir.path(), Some(key(SECOND)), Some(key(FIRST)));
    assert_eq!(rotated.rewrap().unwrap(), 1);
    let alone = Keyring::new(dir.path(), Some(key(SECOND)), None);
    assert_eq!(reveal(&alone.read(&default).unwrap().unwrap()), reveal(&password));

    // One tenant's file is of no use in another's place, and neither is a changed one.
    std::fs::copy(plain.path(&default), plain.path(&acme)).unwrap();
    assert!(matches!(alone.read(&acme), Err(KeyError::Damaged(_))));
    let good = text();
    let start = good.rfind(' ').unwrap() + 1;
    for at in start..good.trim_end().len() {
        let mut bad = good.clone().into_bytes();
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        std::fs::write(plain.path(&default), &bad).unwrap();
        // Of the last digit before the padding not every bit counts.
        match alone.read(&default) {
            Err(KeyError::Damaged(_)) => {}
            Ok(Some(same)) if bad[..bad.len() - 4] == good.as_bytes()[..good.len() - 4] => {
                assert_eq!(reveal(&same), reveal(&password));
            }
            other => panic!("{at}: {other:?}"),
        }
    }
    std::fs::write(plain.path(&default), "\n").unwrap();
    assert!(matches!(alone.read(&default), Err(KeyError::Empty(_))));
}

/// What a change of the password leaves when it is interrupted after each of its steps, made by hand from the steps'
/// definition, and gone on with.
#[test]
fn an_interrupted_change_of_the_password_goes_on_and_the_file_in_use_always_opens() {
    for interrupted_after in 0..7 {
        let dir = tempfile::tempdir().unwrap();
        let ring = Keyring::new(dir.path(), Some(key(FIRST)), None);
        let (backend, who) = (MemoryBackend::new(), tenant("default"));
        let (old, new) = (Password::random(), Password::random());
        ring.write(&who, &old).unwrap();
        let store = || std::sync::Arc::new(backend.clone());
        let repository = Repository::init(store(), &old, KeyCost::Test).unwrap();
        let steps: [&dyn Fn(); 7] = [
            &|| ring.write_file(&ring.next_path(&who), &who, &new).unwrap(),
            &|| repository.add_password(&new, KeyCost::Test).unwrap(),
            &|| ring.write_file(&ring.old_path(&who), &who, &old).unwrap(),
            &|| ring.write(&who, &new).unwrap(),
            &|| repository.remove_password(&old, &new).unwrap(),
            &|| std::fs::remove_file(ring.next_path(&who)).unwrap(),
            &|| std::fs::remove_file(ring.old_path(&who)).unwrap(),
        ];
        for step in &steps[..interrupted_after] {
            step();
            Repository::open(store(), &ring.read(&who).unwrap().unwrap()).unwrap();
        }
        ring.change(&who, KeyCost::Test, |password| Repository::open(store(), password)).unwrap();
        let present = ring.read(&who).unwrap().unwrap();
        Repository::open(store(), &present).unwrap();
        // After the last step it was done, and this was another change.
        assert_eq!(reveal(&present) == reveal(&new), (1..7).contains(&interrupted_after), "{interrupted_after}");
        for gone in [&old, &new].into_iter().filter(|p| reveal(p) != reveal(&present)) {
            assert!(matches!(Repository::open(store(), gone), Err(perennial_snapshots::Error::WrongPassword)));
        }
        let left: Vec<_> =
            std::fs::read_dir(dir.path().join("keys")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["default"], "{interrupted_after}");
    }
}

/// Fails the first removal.
#[derive(Debug, Default)]
struct FirstStays(std::sync::atomic::AtomicBool);

impl Tap for FirstStays {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let is_it = site == "keys.remove" && moment == Moment::Before;
        if is_it && !self.0.swap(true, std::sync::atomic::Ordering::SeqCst) { Verdict::Fail } else { Verdict::Go }
    }
}

#[test]
fn a_key_that_cannot_be_removed_keeps_none_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, acme) = (Keyring::new(dir.path(), None, None), tenant("acme"));
    keys.write(&acme, &Password::new("present")).unwrap();
    keys.write_file(&keys.old_path(&acme), &acme, &Password::new("old")).unwrap();
    let prints = keys.prints(&acme).unwrap();
    assert!(keys.erase(&acme, &prints, &FirstStays::default()).is_err());
    assert!(keys.path(&acme).exists() && !keys.old_path(&acme).exists() && keys.is_erased(&acme).unwrap());
    // Whoever comes after a crash still knows how many there were.
    assert_eq!(keys.erase(&acme, &prints, &NoTap).unwrap(), Destroyed { had: 2, gone: 1 });
    assert_eq!(keys.erase(&acme, &prints, &NoTap).unwrap(), Destroyed { had: 2, gone: 0 });
    let other = tenant("other");
    assert_eq!(keys.erase(&other, &prints, &NoTap).unwrap(), Destroyed::default());
    assert_eq!(keys.erase(&other, &prints, &NoTap).unwrap(), Destroyed::default(), "the mark alone is no key");
}

#[test]
fn a_key_is_told_by_its_password_however_it_is_wrapped_and_another_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let acme = tenant("acme");
    let plain = Keyring::new(dir.path(), None, None);
    plain.write(&acme, &Password::new("of acme")).unwrap();
    let prints = plain.prints(&acme).unwrap();
    let wrapped = Keyring::new(dir.path(), Some(key(FIRST)), None);
    wrapped.write(&acme, &Password::new("of another acme")).unwrap();
    let refused = wrapped.erase(&acme, &prints, &NoTap);
    assert!(matches!(refused, Err(KeyError::Unknown(_))), "{refused:?}");
    // One that cannot be read is told by its file, and only by that.
    let refused = plain.erase(&acme, &prints, &NoTap);
    assert!(matches!(refused, Err(KeyError::Unknown(_))), "{refused:?}");
    assert!(wrapped.path(&acme).exists() && !wrapped.is_erased(&acme).unwrap());
    wrapped.write(&acme, &Password::new("of acme")).unwrap();
    assert_eq!(wrapped.erase(&acme, &prints, &NoTap).unwrap(), Destroyed { had: 1, gone: 1 });
}
