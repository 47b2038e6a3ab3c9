//! What an erasure means, and what became of it, for whoever has to answer for it.

use perennial_core::spec::TenantId;

use crate::size::size;
use crate::store::{Asked, Became, Erasure, FoundPlace, FoundPlaces, RecoveryExport};

/// Said of recovery kits when their record is gone.
pub(super) const KITS: &str = "the audit trail says who exported recovery kits (recovery-kit.exported)";
/// Said of the keys when nobody destroyed them yet.
pub(super) const KEYS_GO: &str = "The tenant's keys are destroyed on every server that shares the database; one that is down keeps its \
                                  copies until it starts. There is no way back.";

/// Who exported recovery kits with a tenant's key, in words.
pub(super) fn kits(exports: &[RecoveryExport], tenant: &TenantId) -> String {
    let of: Vec<String> = exports
        .iter()
        .filter(|export| export.tenant == *tenant)
        .map(|export| format!("{} on {}", export.actor, export.at.strftime("%F")))
        .collect();
    if of.is_empty() {
        return "nobody is known to have exported a recovery kit with it".to_owned();
    }
    format!(
        "recovery kits with it were exported by {} last; the audit trail names all (recovery-kit.exported)",
        of.join(" and ")
    )
}

pub(super) fn shown(location: &str) -> &str {
    if location.is_empty() { "a replica that the configuration names no more" } else { location }
}

fn held(place: &FoundPlace) -> String {
    let location = shown(&place.location);
    match (place.snapshots, place.bytes) {
        _ if place.became == Some(Became::Absent) => format!("{location} (nothing is there)"),
        (Some(snapshots), Some(bytes)) => {
            format!("{location} ({snapshots} snapshots, layers and images in {})", size(bytes))
        }
        _ => format!("{location} (which could not be looked at, and is not touched)"),
    }
}

/// What is asked for, in one sentence of the audit trail.
pub(super) fn summary(erasure: &Erasure) -> String {
    let places: Vec<String> = erasure.found.all().map(held).collect();
    let data = match erasure.asked() {
        Asked::KeysAndFiles => "deleted",
        Asked::Keys => "left where they are",
    };
    format!("the keys of {}; the files are to be {data}", places.join(" and the replica "))
}

/// What is not dealt with yet, for the audit trail.
pub(super) fn open(erasure: &Erasure) -> Vec<String> {
    let of_place = |place: &FoundPlace| match place.became {
        None => Some(shown(&place.location).to_owned()),
        Some(Became::Emptied { .. }) if erasure.done_at.is_none() && place.seen.is_some() => {
            Some(format!("the config of {}", place.location))
        }
        Some(_) => None,
    };
    let places = erasure.found.all().filter_map(of_place);
    let keys = erasure.keys_at.is_none().then(|| "keys that no server has".to_owned());
    let servers = erasure.servers.iter().filter(|(_, keys)| keys.problem.is_some());
    let servers = servers.map(|(server, _)| format!("what server {server} says of its keys"));
    places.chain(keys).chain(servers).collect()
}

/// What became of one place, for the audit trail.
pub(crate) fn became(place: &FoundPlace) -> String {
    let location = shown(&place.location);
    match place.became {
        Some(Became::KeysGone) => {
            format!("the copies of the master key in {location} are gone, the files are left where they are")
        }
        Some(Became::Emptied { files, bytes }) => {
            format!("all files in {location} are deleted ({files} with {} when it was tried last)", size(bytes))
        }
        Some(Became::Absent) => format!("nothing was in {location}"),
        Some(Became::GivenUp) => format!("{location} was given up"),
        Some(Became::Untouched) => format!("{location} was not touched"),
        None => format!("{location} is not dealt with"),
    }
}

/// Whose rights end.
pub(super) fn rights(members: usize, tokens: usize) -> String {
    let counted = |count: usize, what: &str| if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") };
    format!(
        "{} of it and {} that {} good in no other tenant end at once, and for good.",
        counted(members, "membership"),
        counted(tokens, "token"),
        if tokens == 1 { "is" } else { "are" }
    )
}

/// What became of the keys.
pub(super) fn keys(erasure: &Erasure) -> String {
    let destroyed = erasure.servers.iter().filter(|(_, keys)| keys.files > 0);
    let destroyed: Vec<String> =
        destroyed.map(|(server, keys)| format!("server {server} ({} files)", keys.files)).collect();
    match erasure.keys_at {
        None => KEYS_GO.to_owned(),
        Some(_) if !destroyed.is_empty() => format!(
            "The tenant's keys are destroyed on {}; another server that shares the database and is down keeps its copies until it \
             starts. There is no way back.",
            destroyed.join(" and ")
        ),
        Some(_) if erasure.had_keys() => {
            "The tenant's keys were given up: no server has said that it destroyed one, and whoever \
                                          has them may read what was not taken away."
                .to_owned()
        }
        Some(_) => "No key of the tenant was here. There is no way back.".to_owned(),
    }
}

/// What happens, or happened, to one place.
fn place(place: &FoundPlace, delete_data: bool) -> String {
    let location = held(place);
    let by_hand = "whoever has a recovery kit or a backup of the keys can read what is there; delete it by hand";
    match place.became {
        None if delete_data => format!(
            "The copies of the master key in {location} are removed, so that nobody can read anything in there again, not with the \
             password of a recovery kit either; then all files are deleted. What the store itself keeps of deleted files \
             (versions, a bucket's lock, snapshots of a disk) stays there, unreadable without such a copy."
        ),
        None => format!(
            "The copies of the master key in {location} are removed, so that nobody can read anything in there again, not with the \
             password of a recovery kit either. The files stay as ciphertext and take up space; erasing again with --delete-data \
             (deleteData) deletes them, too."
        ),
        Some(Became::KeysGone) => format!(
            "The copies of the master key in {location} are gone: no password opens it any more, that of a recovery kit neither. The \
             files stay as ciphertext and take up space; erasing again with --delete-data (deleteData) deletes them, too."
        ),
        Some(Became::Emptied { .. }) => format!(
            "All files in {location} are deleted. What the store itself keeps of deleted files (versions, a bucket's lock, \
             snapshots of a disk) stays there, unreadable without a copy of a key file."
        ),
        Some(Became::Absent) => format!("{location}."),
        Some(Became::GivenUp) => {
            format!("{location} is given up: nobody knows what is left in it, and {by_hand}.")
        }
        Some(Became::Untouched) => format!("{} is not touched: {by_hand}.", shown(&place.location)),
    }
}

/// What it means.
pub(super) fn meaning(found: &FoundPlaces, delete_data: bool, keys: &str, kit: &str) -> Vec<String> {
    let places = found.all().map(|one| place(one, delete_data));
    let rest = [
        format!(
            "What is elsewhere is not reached: a copy of the repository made before (perennial repository copy, rsync, versions \
             or backups of the store) still opens with such a password. Destroy one of both: {kit}, and backups of the data \
             directory hold the keys."
        ),
        "Key files are removed, not overwritten: a disk may remember blocks of them. With an installation key those are \
         wrapped; without one, dispose of the disk accordingly."
            .to_owned(),
        "The name is not used again. Events and operations stay: they name pods and who acted on them, and hold no data."
            .to_owned(),
    ];
    [keys.to_owned()].into_iter().chain(places).chain(rest).collect()
}
