//! Bytes that have to survive.

use std::fs;

use perennial_core::engine::LayerAccess;

use super::subject::Subject;
use super::{Ability, Checked, Failure, Fixture, check};

pub(super) async fn every_volume_keeps_its_bytes(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let paths: Vec<String> = subject.set(1)?.volumes.iter().map(|v| format!("{}/deep/kept", v.mount_path)).collect();
    for path in &paths {
        subject.write(&id, path, path).await?;
    }
    subject.stop(&id).await?;
    subject.start(&id).await?;
    for path in &paths {
        subject.sees(&id, path, path).await?;
    }
    subject.remove(&id).await?;
    let again = subject.create().await?;
    check!(again != id, "a new container has the old one's id");
    subject.start(&again).await?;
    for path in &paths {
        subject.sees(&again, path, path).await?;
    }
    Ok(())
}

pub(super) async fn written_bytes_are_where_access_says(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    for volume in subject.set(1)?.volumes {
        let path = format!("{}/written", volume.mount_path);
        subject.write(&id, &path, &path).await?;
        let host = subject.on_host(1, &path).await?;
        let found = fs::read_to_string(&host)?;
        check!(found == path, "{} holds {found:?}", host.display());
    }
    Ok(())
}

pub(super) async fn deleted_file_of_the_image_stays_deleted(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let path = &fixture.seeded_file;
    let seeded = fixture.hands.read(&id, path).await?;
    check!(seeded.is_some(), "{path} was not seeded");
    fixture.hands.remove(&id, path).await?;
    subject.sees_nothing(&id, path).await?;
    subject.stop(&id).await?;
    subject.start(&id).await?;
    subject.sees_nothing(&id, path).await?;
    subject.remove(&id).await?;
    let id = subject.create().await?;
    subject.start(&id).await?;
    subject.sees_nothing(&id, path).await
}

pub(super) async fn emptied_directory_stays_empty(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    for path in &fixture.seeded_directory {
        let seeded = fixture.hands.read(&id, path).await?;
        check!(seeded.is_some(), "{path} was not seeded");
        fixture.hands.remove(&id, path).await?;
    }
    subject.remove(&id).await?;
    let id = subject.create().await?;
    subject.start(&id).await?;
    for path in &fixture.seeded_directory {
        subject.sees_nothing(&id, path).await?;
    }
    Ok(())
}

/// Nobody takes an empty layer for the one that the runtime keeps to itself.
pub(super) async fn hidden_layer_is_out_of_reach_with_a_reason(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    subject.write(&id, "/newdir/kept", "kept").await?;
    subject.stop(&id).await?;
    let access = subject.engine().layer_access(&id).await?;
    let hidden = matches!(&access, LayerAccess::Unreachable { reason } if !reason.is_empty());
    check!(hidden == fixture.lacks(Ability::VisibleLayer), "the layer is reached as {access:?}");
    Ok(())
}

pub(super) async fn layer_is_reached_and_put_back(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    subject.write(&id, "/newdir/kept", "kept").await?;
    subject.stop(&id).await?;
    let (path, exclude) = match subject.engine().layer_access(&id).await? {
        LayerAccess::Local { path, exclude } => (path, exclude),
        LayerAccess::Unreachable { reason } => return Err(Failure(format!("the layer is not reached: {reason}"))),
    };
    let found = fs::read_to_string(path.join("newdir/kept"))?;
    check!(found == "kept", "the layer holds {found:?}");
    check!(exclude.iter().all(|e| !e.starts_with('/')), "excluded paths are not relative: {exclude:?}");
    for volume in subject.set(1)?.volumes {
        let name = volume.mount_path.trim_start_matches('/');
        let held = exclude.iter().any(|e| name == e || name.starts_with(&format!("{e}/")));
        check!(held, "the mount point {name} is not excluded: {exclude:?}");
    }
    subject.start(&id).await?;
    subject.sees(&id, "/newdir/kept", "kept").await?;
    subject.remove(&id).await?;
    check!(!path.join("newdir/kept").exists(), "the layer outlived its container");

    let id = subject.create().await?;
    let LayerAccess::Local { path, .. } = subject.engine().layer_access(&id).await? else {
        return Err(Failure("the layer of a new container is not reached".to_owned()));
    };
    fs::create_dir(path.join("newdir"))?;
    fs::write(path.join("newdir/kept"), "put back")?;
    subject.start(&id).await?;
    subject.sees(&id, "/newdir/kept", "put back").await
}
