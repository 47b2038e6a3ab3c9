//! Images: resolving, exporting, declared volumes.

use perennial_core::engine::EngineError;
use perennial_core::progress::Progress;

use super::subject::Subject;
use super::{Checked, Failure, Fixture, check};

pub(super) async fn image_resolves_by_reference_and_by_id(fixture: &Fixture) -> Checked {
    let image = fixture.engine.image_resolve(&fixture.image).await?;
    let image = image.ok_or_else(|| Failure("the image is absent".to_owned()))?;
    check!(image.id.starts_with("sha256:"), "{} is no image id", image.id);
    check!(image.layout.directories.iter().any(|d| d == "etc"), "the layout lacks etc: {:?}", image.layout);
    let again = fixture.engine.image_resolve(&image.id).await?;
    check!(again.as_ref().map(|i| &i.id) == Some(&image.id), "the id resolves to {again:?}");
    check!(again.as_ref().map(|i| &i.layout) == Some(&image.layout), "the id has another layout: {again:?}");
    Ok(())
}

pub(super) async fn absent_image_is_none(fixture: &Fixture) -> Checked {
    let zeros = format!("sha256:{}", "0".repeat(64));
    for reference in ["perennial-test/there-is-no-such-image:1", &zeros] {
        let found = fixture.engine.image_resolve(reference).await?;
        check!(found.is_none(), "{reference} resolves to {found:?}");
    }
    fixture.engine.image_offered(&fixture.image).await?;
    // No registry has anything under an id.
    let answer = fixture.engine.image_offered(&zeros).await;
    check!(matches!(answer, Err(EngineError::NotFound { .. })), "{zeros} is offered: {answer:?}");
    Ok(())
}

pub(super) async fn image_is_exported_and_imported(fixture: &Fixture) -> Checked {
    let subject = Subject::new(fixture).await?;
    let file = fixture.scratch.join(format!("image-{}", subject.pod.id));
    let progress = Progress::default();
    fixture.engine.image_export(&subject.image.id, &file, &progress).await?;
    check!(std::fs::metadata(&file)?.len() > 0, "the exported image is empty");
    fixture.engine.image_import(&file, &progress).await?;
    let found = fixture.engine.image_resolve(&subject.image.id).await?;
    check!(found.is_some_and(|i| i.id == subject.image.id), "the imported image has another id");
    // Half a file is never an image.
    let half = std::fs::read(&file)?;
    std::fs::write(&file, &half[..half.len() / 2])?;
    let answer = fixture.engine.image_import(&file, &progress).await;
    std::fs::remove_file(&file)?;
    check!(answer.is_err(), "half an image was imported");
    Ok(())
}

pub(super) async fn declared_volume_is_one_of_the_pods(fixture: &Fixture) -> Checked {
    let declaring = &fixture.declaring;
    let mut subject = Subject::of_image(fixture, &declaring.image).await?;
    let mounts = subject.set(1)?.volumes;
    check!(mounts.iter().any(|v| v.mount_path == declaring.path), "{} has no volume: {mounts:?}", declaring.path);
    subject.prepare(1).await?;
    let id = subject.create().await?;
    subject.start(&id).await?;
    let seed = fixture.hands.read(&id, &declaring.seeded_file).await?;
    check!(seed.is_some(), "{} was not seeded", declaring.seeded_file);
    let path = format!("{}/written", declaring.path);
    subject.write(&id, &path, "kept").await?;
    subject.remove(&id).await?;
    let id = subject.create().await?;
    subject.start(&id).await?;
    subject.sees(&id, &path, "kept").await
}
