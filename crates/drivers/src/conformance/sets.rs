//! Volume sets: preparing, completing, deleting.

use std::fs;
use std::io::Read;
use std::time::Duration;

use perennial_core::engine::{Effect, EngineError, Fill, MoverChannel, Owned, Presence, SetAccess, SetSpec};
use perennial_core::permit::DeletePermit;
use perennial_core::spec::Backend;

use super::subject::{Subject, purge_task};
use super::{Ability, Checked, Failure, Fixture, check, check_refused};

/// Longest time in which a mover that was ended is gone.
const MOVER_PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn set_becomes_whole(fixture: &Fixture) -> Checked {
    let subject = Subject::new(fixture).await?;
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Absent, "a set nobody made is {presence:?}");
    let set = subject.set(1)?;
    let effect = subject.engine().set_prepare(&set, Fill::Image).await?;
    check!(effect == Effect::Created, "preparing said {effect:?}");
    let presence = subject.presence(1).await?;
    check!(presence != Presence::Absent, "a prepared set is absent");
    subject.engine().set_complete(&set).await?;
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "a complete set is {presence:?}");
    Ok(())
}

pub(super) async fn set_calls_are_safe_to_repeat(fixture: &Fixture) -> Checked {
    let subject = Subject::new(fixture).await?;
    let set = subject.set(1)?;
    subject.engine().set_prepare(&set, Fill::Image).await?;
    subject.engine().set_prepare(&set, Fill::Image).await?;
    subject.engine().set_complete(&set).await?;
    let effect = subject.engine().set_complete(&set).await?;
    check!(effect == Effect::Unchanged, "completing again said {effect:?}");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "the set is {presence:?}");
    Ok(())
}

pub(super) async fn complete_set_is_not_prepared_again(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    subject.write(&id, "/srv/kept", "kept").await?;
    subject.remove(&id).await?;
    for fill in [Fill::Image, Fill::Empty] {
        let answer = subject.engine().set_prepare(&subject.set(1)?, fill).await;
        check_refused!(answer, EngineError::Conflict { .. } | EngineError::Rejected { .. }, "preparing a complete set");
    }
    let mut subject = subject;
    let id = subject.create().await?;
    subject.start(&id).await?;
    subject.sees(&id, "/srv/kept", "kept").await
}

pub(super) async fn half_prepared_set_begins_from_nothing(fixture: &Fixture) -> Checked {
    let subject = Subject::new(fixture).await?;
    let set = subject.set(1)?;
    subject.engine().set_prepare(&set, Fill::Image).await?;
    let stray = subject.on_host(1, "/srv/stray").await?;
    fs::write(&stray, "half")?;
    fixture.hands.data_remove(&set, "opt").await?;
    subject.engine().set_prepare(&set, Fill::Image).await?;
    subject.engine().set_complete(&set).await?;
    check!(!stray.exists(), "what an earlier try left is still there");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "the set is {presence:?}");
    Ok(())
}

pub(super) async fn set_access_names_every_volume(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let paths = subject.local(1).await?;
    let set = subject.set(1)?;
    for volume in &set.volumes {
        let Some(path) = paths.iter().find(|p| p.name == volume.name) else {
            check!(false, "{} is not reached", volume.name);
            continue;
        };
        check!(path.mount_path == volume.mount_path, "{} is mounted at {}", volume.name, path.mount_path);
        check!(path.path.is_dir(), "{} is no directory", path.path.display());
        let overlay = fixture.backend == Backend::Overlay;
        check!(path.lower.is_some() == overlay, "{} has the lower {:?}", volume.name, path.lower);
        let relative = path.exclude.iter().all(|e| !e.starts_with('/'));
        check!(relative, "excluded paths are not relative: {:?}", path.exclude);
    }
    check!(paths.len() == set.volumes.len(), "{} volumes are reached as {}", set.volumes.len(), paths.len());
    let absent = Subject::new(fixture).await?;
    let answer = absent.engine().set_access(&absent.set(1)?).await;
    check!(answer.is_err(), "a set nobody made is reached: {answer:?}");
    Ok(())
}

pub(super) async fn set_access_leaves_out_what_is_missing(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    subject.write(&id, "/home/kept", "kept").await?;
    subject.remove(&id).await?;
    let set = subject.set(1)?;
    let before = subject.local(1).await?;
    fixture.hands.data_remove(&set, "srv").await?;
    let after = subject.local(1).await?;
    let expected: Vec<_> = before.iter().filter(|v| v.name != "srv").collect();
    check!(after.iter().collect::<Vec<_>>() == expected, "without srv these are reached: {after:?}");
    let kept = subject.on_host(1, "/home/kept").await?;
    check!(fs::read_to_string(&kept)? == "kept", "{} holds something else", kept.display());
    // What is left can still be deleted, and that it is deleted can be seen.
    subject.pod.tasks = vec![purge_task()];
    let permit = DeletePermit::purged_set(&subject.pod, 1)?;
    let effect = subject.engine().set_delete(&set, &permit).await?;
    check!(effect == Effect::Removed, "deleting said {effect:?}");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Absent, "the deleted set is {presence:?}");
    let answer = subject.engine().set_access(&set).await;
    check_refused!(answer, EngineError::NotFound { .. }, "reaching a deleted set");
    Ok(())
}

pub(super) async fn how_sets_are_copied_is_told(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let copying = subject.engine().set_copying(&subject.set(1)?).await?;
    match fixture.backend {
        Backend::Engine => check!(copying.is_none(), "an engine volume is copied as {copying:?}"),
        Backend::Overlay => check!(copying.is_some(), "nothing is told of how an overlay set is copied"),
    }
    Ok(())
}

/// What was there when the copy was made is in it, and nothing later; until it is marked complete it is no data.
pub(super) async fn set_is_copied_at_one_instant(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let mut copy = Subject::new(fixture).await?;
    let (from, to) = (subject.set(1)?, copy.set(1)?);
    subject.write(&id, "/srv/kept", "kept").await?;
    fixture.hands.remove(&id, &fixture.seeded_file).await?;
    let engine = subject.engine();
    engine.container_freeze(&id).await?;
    let answer = engine.set_snapshot(&from, &to).await;
    check_refused!(answer, EngineError::Conflict { .. }, "copying to a set that nobody prepared");
    // Twice, as after a lost answer.
    for _ in 0..2 {
        engine.set_prepare(&to, Fill::Image).await?;
        engine.set_snapshot(&from, &to).await?;
    }
    engine.container_unfreeze(&id).await?;
    let presence = copy.presence(1).await?;
    check!(matches!(presence, Presence::Partial { .. }), "a copy that is not complete is {presence:?}");
    subject.write(&id, "/srv/later", "later").await?;
    engine.set_complete(&to).await?;
    let answer = engine.set_snapshot(&from, &to).await;
    check_refused!(answer, EngineError::Conflict { .. }, "copying over a complete set");
    let seen = copy.observe().await?;
    let generation = seen.set(1).and_then(|s| s.generation);
    check!(generation.is_none(), "the copy carries the generation {generation:?} of another set");
    let copied = copy.create().await?;
    copy.start(&copied).await?;
    copy.sees(&copied, "/srv/kept", "kept").await?;
    copy.sees_nothing(&copied, "/srv/later").await?;
    copy.sees_nothing(&copied, &fixture.seeded_file).await?;
    copy.write(&copied, "/srv/kept", "of the copy").await?;
    subject.sees(&id, "/srv/kept", "kept").await
}

/// A still holds what was there when it was made, for as long as somebody reads it; a set does not go before that.
pub(super) async fn still_is_of_one_instant_until_nobody_reads_it(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let set = subject.set(1)?;
    subject.write(&id, "/srv/kept", "kept").await?;
    subject.engine().container_freeze(&id).await?;
    // Twice, as after a lost answer.
    let first = subject.engine().set_still(&set).await?;
    let still = subject.engine().set_still(&set).await?;
    subject.engine().container_unfreeze(&id).await?;
    subject.write(&id, "/srv/kept", "changed").await?;
    subject.write(&id, "/srv/later", "later").await?;
    let names: Vec<&str> = still.volumes.iter().map(|(name, _)| name.as_str()).collect();
    let wanted: Vec<&str> = set.volumes.iter().map(|v| v.name.as_str()).collect();
    check!(names == wanted, "the still has {names:?}, and there are {wanted:?}");
    let srv = still.volumes.iter().find(|(name, _)| name == "srv").map(|(_, path)| path.clone()).unwrap_or_default();
    drop(first);
    let effect = subject.engine().stills_sweep().await?;
    check!(effect == Effect::Removed, "sweeping the one that nobody reads said {effect:?}");
    check!(fs::read_to_string(srv.join("kept"))? == "kept", "the still changed");
    check!(!srv.join("later").exists(), "the still has what came after it");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "the set is {presence:?}");
    let owned = subject.engine().list_owned().await?;
    let sets = owned.iter().filter(|o| matches!(o, Owned::Set { pod, .. } if *pod == subject.pod.id)).count();
    check!(sets == 1, "{sets} sets of the pod are listed");
    subject.remove(&id).await?;
    subject.pod.tasks = vec![purge_task()];
    let permit = DeletePermit::purged_set(&subject.pod, 1)?;
    let answer = subject.engine().set_delete(&set, &permit).await;
    check_refused!(answer, EngineError::Conflict { .. }, "deleting a set whose still is read");
    drop(still);
    let effect = subject.engine().set_delete(&set, &permit).await?;
    check!(effect == Effect::Removed, "deleting said {effect:?}");
    check!(!srv.exists(), "the still outlived its set");
    let answer = subject.engine().set_still(&set).await;
    check_refused!(answer, EngineError::Conflict { .. } | EngineError::NotFound { .. }, "a still of nothing");
    Ok(())
}

pub(super) async fn what_volumes_take_up_is_told(fixture: &Fixture) -> Checked {
    const MEBIBYTE: u64 = 1 << 20;
    let (subject, id) = Subject::running(fixture).await?;
    let set = subject.set(1)?;
    let before = subject.engine().set_usage(&set).await?;
    let names: Vec<&str> = before.iter().map(|u| u.name.as_str()).collect();
    let wanted: Vec<&str> = set.volumes.iter().map(|v| v.name.as_str()).collect();
    check!(names == wanted, "told are {names:?}, and there are {wanted:?}");
    if fixture.lacks(Ability::LocalVolumes) {
        check!(before.iter().all(|u| u.bytes.is_none()), "volumes out of reach take up {before:?}");
        return Ok(());
    }
    // Not a page of it can be left out, and nothing of it can be shared or compressed.
    let noise: String = (0..MEBIBYTE / 16).map(|i| format!("{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let place = subject.on_host(1, "/srv/noise").await?;
    fs::write(&place, &noise)?;
    fs::File::open(&place)?.sync_all()?;
    let after = subject.engine().set_usage(&set).await?;
    for (before, after) in before.iter().zip(&after) {
        let grown = after.bytes.unwrap_or_default().saturating_sub(before.bytes.unwrap_or_default());
        let right = match after.name.as_str() {
            "srv" => (MEBIBYTE / 2..2 * MEBIBYTE).contains(&grown),
            _ => grown < MEBIBYTE / 2,
        };
        check!(right, "{} took up {before:?} and then {after:?}", after.name);
    }
    subject.stop(&id).await
}

pub(super) async fn a_limit_is_shown_until_it_changes_or_the_pod_starts(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let set = subject.set(1)?;
    let shown = async |subject: &Subject<'_>| -> Checked<Option<Option<u64>>> {
        let observed = subject.engine().observe(set.pod, std::slice::from_ref(&set)).await?;
        let found = observed.set(1).ok_or_else(|| Failure("the set is not shown".to_owned()))?;
        Ok(found.limit.map(|limit| limit.bytes))
    };
    // Volumes of the engine have none, and saying so is all that is asked of them.
    let can = fixture.backend == Backend::Overlay;
    let first = shown(&subject).await?;
    check!(first == can.then_some(None), "before it is limited it shows {first:?}");
    for bytes in [Some(1 << 30), Some(2 << 30), None, Some(1 << 30), Some(1 << 30)] {
        subject.engine().set_limit(&set, bytes).await?;
        let now = shown(&subject).await?;
        check!(now == can.then_some(bytes), "limited to {bytes:?} it shows {now:?}");
    }
    subject.stop(&id).await?;
    subject.start(&id).await?;
    let started = shown(&subject).await?;
    check!(started == can.then_some(None), "after a start it shows {started:?}");
    subject.stop(&id).await
}

pub(super) async fn empty_fill_holds_what_was_put_in(fixture: &Fixture) -> Checked {
    let mut subject = Subject::new(fixture).await?;
    let set = subject.set(1)?;
    subject.engine().set_prepare(&set, Fill::Empty).await?;
    let path = subject.on_host(1, "/srv/restored").await?;
    fs::write(path, "restored")?;
    subject.engine().set_complete(&set).await?;
    let id = subject.create().await?;
    subject.start(&id).await?;
    subject.sees(&id, "/srv/restored", "restored").await?;
    if fixture.backend == Backend::Engine {
        subject.sees_nothing(&id, &fixture.seeded_file).await?;
    }
    Ok(())
}

pub(super) async fn sets_of_a_pod_are_apart(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    subject.write(&id, "/srv/first", "first").await?;
    let second = subject.add_set();
    subject.prepare(second).await?;
    let observed = subject.observe().await?;
    let permit = DeletePermit::never_started_set(&subject.pod, second, &observed)?;
    let effect = subject.engine().set_delete(&subject.set(second)?, &permit).await?;
    check!(effect == Effect::Removed, "deleting said {effect:?}");
    let presence = subject.presence(second).await?;
    check!(presence == Presence::Absent, "the deleted set is {presence:?}");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "the other set is {presence:?}");
    subject.sees(&id, "/srv/first", "first").await
}

pub(super) async fn set_is_deleted_with_its_permit_only(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    let second = subject.add_set();
    let other = Subject::new(fixture).await?;
    let observed = subject.observe().await?;
    let wrong = [
        DeletePermit::never_started_set(&subject.pod, second, &observed)?,
        DeletePermit::never_started_set(&other.pod, 1, &other.observe().await?)?,
        DeletePermit::scratch("anything"),
    ];
    for permit in wrong {
        let answer = subject.engine().set_delete(&subject.set(1)?, &permit).await;
        check!(answer.is_err(), "a permit for something else deleted the set");
        let presence = subject.presence(1).await?;
        check!(presence == Presence::Whole, "after a refused deletion the set is {presence:?}");
    }
    let permit = DeletePermit::never_started_set(&subject.pod, 1, &observed)?;
    let effect = subject.engine().set_delete(&subject.set(1)?, &permit).await?;
    check!(effect == Effect::Removed, "deleting said {effect:?}");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Absent, "the deleted set is {presence:?}");
    Ok(())
}

/// Of an orphan nothing is known but what the engine lists: that deletes all of it, and nothing beside it.
pub(super) async fn set_of_which_only_the_labels_are_known_is_deleted(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let second = subject.add_set();
    subject.prepare(second).await?;
    subject.write(&id, "/srv/mine", "the only copy").await?;
    let place = match fixture.lacks(Ability::LocalVolumes) {
        true => None,
        false => Some(subject.on_host(1, "/srv/mine").await?),
    };
    check!(place.as_ref().is_none_or(|place| place.exists()), "{place:?} is not where the set is");
    let number_of = |owned: &Owned| match owned {
        Owned::Set { pod, number, backend } if *pod == subject.pod.id => Some((*number, *backend)),
        _ => None,
    };
    let listed: Vec<_> = subject.engine().list_owned().await?.iter().filter_map(number_of).collect();
    let Some((number, backend)) = listed.iter().copied().find(|(number, _)| *number == 1) else {
        return Err(Failure(format!("the set is not listed: {listed:?}")));
    };
    check!(backend == fixture.backend, "it is listed as one of {backend:?}");
    let set = SetSpec::labelled(subject.pod.id, number, backend);
    let mut purged = subject.pod.clone();
    purged.tasks = vec![purge_task()];
    let permit = DeletePermit::purged_set(&purged, number)?;
    let answer = subject.engine().set_delete(&set, &permit).await;
    check_refused!(answer, EngineError::Conflict { .. }, "deleting a set that a container refers to");
    subject.sees(&id, "/srv/mine", "the only copy").await?;
    subject.remove(&id).await?;
    let wrong = DeletePermit::purged_set(&purged, second)?;
    let answer = subject.engine().set_delete(&set, &wrong).await;
    check!(answer.is_err(), "a permit for another set deleted this one");
    let effect = subject.engine().set_delete(&set, &permit).await?;
    check!(effect == Effect::Removed, "deleting said {effect:?}");
    let presence = subject.presence(number).await?;
    check!(presence == Presence::Absent, "the deleted set is {presence:?}");
    if let Some(place) = place {
        check!(!place.exists(), "{} outlived its set", place.display());
    }
    let presence = subject.presence(second).await?;
    check!(presence == Presence::Whole, "the set beside it is {presence:?}");
    let left: Vec<_> = subject.engine().list_owned().await?.iter().filter_map(number_of).collect();
    check!(left == [(second, backend)], "listed are {left:?}");
    let effect = subject.engine().set_delete(&set, &permit).await?;
    check!(effect == Effect::Unchanged, "deleting it once more said {effect:?}");
    Ok(())
}

pub(super) async fn set_in_use_is_not_deleted(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let permit = DeletePermit::never_started_set(&subject.pod, 1, &subject.observe().await?)?;
    let id = subject.create().await?;
    let answer = subject.engine().set_delete(&subject.set(1)?, &permit).await;
    check_refused!(answer, EngineError::Conflict { .. }, "deleting a set that a container refers to");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "after a refused deletion the set is {presence:?}");
    subject.remove(&id).await?;
    let effect = subject.engine().set_delete(&subject.set(1)?, &permit).await?;
    check!(effect == Effect::Removed, "deleting said {effect:?}");
    Ok(())
}

pub(super) async fn absent_set_is_deleted_already(fixture: &Fixture) -> Checked {
    let subject = Subject::new(fixture).await?;
    let permit = DeletePermit::never_started_set(&subject.pod, 1, &subject.observe().await?)?;
    let effect = subject.engine().set_delete(&subject.set(1)?, &permit).await?;
    check!(effect == Effect::Unchanged, "deleting nothing said {effect:?}");
    Ok(())
}

pub(super) async fn set_of_a_missing_image_is_refused(fixture: &Fixture) -> Checked {
    let subject = Subject::new(fixture).await?;
    let mut set = subject.set(1)?;
    set.image = format!("sha256:{}", "0".repeat(64));
    let answer = subject.engine().set_prepare(&set, Fill::Image).await;
    check_refused!(answer, EngineError::NotFound { .. } | EngineError::Rejected { .. }, "preparing without the image");
    Ok(())
}

/// A mover of an earlier life of the server may still be there: it is nobody else, and it keeps nothing from happening.
pub(super) async fn mover_left_behind_is_ended(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let set = subject.set(1)?;
    let SetAccess::Mover(paths) = subject.engine().set_access(&set).await? else {
        return Err(Failure("no mover reaches the volumes".to_owned()));
    };
    check!(paths.len() == set.volumes.len(), "{} volumes are reached as {}", set.volumes.len(), paths.len());
    let first = subject.engine().mover_open(&set).await?;
    let observed = subject.observe().await?;
    check!(observed.foreign.is_empty(), "a mover counts as somebody else: {:?}", observed.foreign);
    let second = subject.engine().mover_open(&set).await?;
    check!(ends(first).await?, "a second mover does not end the first");
    subject.stop(&id).await?;
    let lingering = subject.engine().lingering(std::slice::from_ref(&set)).await?;
    check!(lingering.is_empty(), "a mover counts as a process of the pod: {lingering:?}");
    check!(ends(second).await?, "looking for others does not end a mover");
    let third = subject.engine().mover_open(&set).await?;
    subject.remove(&id).await?;
    let mut purged = subject.pod.clone();
    purged.tasks = vec![purge_task()];
    let permit = DeletePermit::purged_set(&purged, 1)?;
    subject.engine().set_delete(&set, &permit).await?;
    check!(ends(third).await?, "a mover outlives its set");
    let owned = subject.engine().list_owned().await?;
    let ours = owned.iter().any(|o| matches!(o, Owned::Container { pod, .. } if *pod == subject.pod.id));
    check!(!ours, "a mover is listed as a pod's container");
    Ok(())
}

/// Whether nothing more comes from a mover whose input is still open.
async fn ends(mut channel: MoverChannel) -> Checked<bool> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut said = Vec::new();
        let read = channel.reader.read_to_end(&mut said);
        drop(channel.writer);
        read.is_ok() || said.is_empty()
    });
    Ok(tokio::time::timeout(MOVER_PATIENCE, reading).await.is_ok_and(|ended| ended.unwrap_or(false)))
}
