//! How other systems lost data by an edit, a deletion of something else, or by time alone: here nothing is lost.

use jiff::SignedDuration;
use perennial::catalogue::read_json;
use perennial::service::{Caller, Consent, Erase, Request};
use perennial_core::Error;
use perennial_core::operation::OperationState;
use perennial_core::pod::{Desired, Phase};
use perennial_core::service::ServiceName;
use perennial_core::spec::{Backend, PortSpec, TenantId};

use crate::subscriptions::subscribed;
use crate::world::{Server, World, files, small_spec};

/// Goes through every action that brings a pod back to where it was.
async fn around(server: &Server, pod: perennial_core::id::PodId) {
    server.succeed(server.restart(pod).await).await;
    server.succeed(server.pause(pod).await).await;
    server.succeed(server.start(pod).await).await;
    server.succeed(server.stop(pod).await).await;
    server.succeed(server.start(pod).await).await;
}

/// There, a changed template or another name meant another volume, and the old one was deleted.
#[tokio::test]
async fn p05_sim_a_plan_that_is_edited_or_taken_away_takes_nothing_from_its_pods() {
    let world = World::new(905);
    let server = world.server().await;
    let (_, pod) = subscribed(&world, &server, None).await;
    let held = files(&world, pod);
    let spec = server.pod(pod).await.spec;
    let other = r#"{"name": "notes", "plans": [{"name": "basic", "image": "other:1", "profile": "declared",
        "volumes": [{"name": "renamed", "mountPath": "/elsewhere", "size": "16Mi"}]}]}"#;
    let admin = Caller::admin();
    server.app.service_put(&admin, &read_json(other.as_bytes()).unwrap(), None).await.unwrap();
    server.settle(pod).await;
    around(&server, pod).await;
    assert_eq!((files(&world, pod), server.pod(pod).await.spec), (held.clone(), spec.clone()));
    server.app.service_remove(&admin, &ServiceName::parse("notes").unwrap(), None).await.unwrap();
    server.settle(pod).await;
    around(&server, pod).await;
    assert_eq!((files(&world, pod), server.pod(pod).await.spec), (held, spec));
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

/// There, an edited attribute gave a new empty volume.
#[tokio::test]
async fn p06_sim_a_pod_whose_every_attribute_is_edited_keeps_its_volumes() {
    let world = World::new(906);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    let held = files(&world, pod);
    let admin = Caller::admin();
    let edited = server.app.patch(&admin, pod, None, |spec| {
        let mut spec = spec.clone();
        spec.command = Some(vec!["sleep".to_owned(), "7".to_owned()]);
        spec.env.insert("GREETING".to_owned(), "hello".to_owned());
        spec.resources.memory = Some(256 << 20);
        spec.resources.pids = Some(99);
        spec.working_dir = Some("/srv".to_owned());
        spec.ports = vec![PortSpec { container: 8080, host: None }];
        spec.stop_timeout = 3;
        Ok(spec)
    });
    let (edited, _) = edited.await.unwrap();
    assert!(edited.spec_generation > 1);
    server.settle(pod).await;
    assert_eq!(files(&world, pod), held);
    around(&server, pod).await;
    assert_eq!(files(&world, pod), held);
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

/// There, an upgraded image ran below the files of the old one.
#[tokio::test]
async fn p10_sim_another_image_is_refused_where_the_old_ones_files_would_cover_it() {
    let world = World::new(910);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    let held = files(&world, pod);
    let admin = Caller::admin();
    let refused = server.app.patch(&admin, pod, None, |spec| {
        let mut spec = spec.clone();
        spec.image = "other:2".to_owned();
        Ok(spec)
    });
    let refused = refused.await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "spec-field-fixed", .. }), "{refused:?}");
    around(&server, pod).await;
    assert_eq!(files(&world, pod), held);
}

/// There, whatever contained something took its snapshots along when it was deleted, and there was no way back.
#[tokio::test]
async fn p19_sim_what_was_deleted_comes_back_with_its_snapshots_and_nothing_above_it_goes_first() {
    let world = World::new(919);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    let held = files(&world, pod);
    let snapshot = server.snapshot_of(pod).await;
    server.succeed(server.delete(pod).await).await;
    // Its tenant does not go while anything of it can come back.
    let ask = Erase { confirm: Some("default".to_owned()), ..Erase::default() };
    let refused = server.app.tenant_erase(&Caller::admin(), &TenantId::default_tenant(), &ask).await;
    assert!(refused.is_err());
    // Nor does it go for good without its name.
    let refused = server.app.purge(Request::new(&Caller::admin()), pod, &Consent::default()).await.unwrap_err();
    assert!(matches!(&refused, Error::InvalidInput { field, .. } if field == "confirm"), "{refused:?}");
    world.clock.advance(SignedDuration::from_hours(24 * 6));
    server.housekeeper().run_due().await;
    server.succeed(server.undelete(pod).await).await;
    assert!(server.snapshots(pod).await.iter().any(|row| row.id == snapshot));
    server.succeed(server.start(pod).await).await;
    assert_eq!(files(&world, pod), held);
    server.succeed(server.restore(pod, snapshot).await).await;
    assert_eq!(files(&world, pod), held);
}

/// There, what nobody looked at for two weeks, or a month, was deleted.
#[tokio::test]
async fn p20_sim_what_nobody_touches_for_two_years_is_there() {
    let world = World::new(920);
    let server = world.server().await;
    let mut pods = Vec::new();
    for name in ["stopped", "paused", "archived", "running"] {
        let pod = server.running(name, small_spec(Backend::Overlay)).await;
        world.engine.write(pod, "/srv/mine", name).unwrap();
        pods.push((pod, files(&world, pod)));
    }
    let done = [server.stop(pods[0].0).await, server.pause(pods[1].0).await, server.archive(pods[2].0).await];
    for outcome in done {
        let operation = server.done(outcome).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    }
    for _ in 0..25 {
        world.clock.advance(SignedDuration::from_hours(24 * 30));
        for _ in 0..2 {
            server.housekeeper().run_due().await;
            for (pod, _) in &pods {
                server.settle(*pod).await;
            }
        }
    }
    assert_eq!(server.pod(pods[3].0).await.phase, Phase::Running);
    for (pod, held) in &pods {
        if server.pod(*pod).await.desired == Desired::Archived {
            server.succeed(server.undelete(*pod).await).await;
        }
        if server.pod(*pod).await.desired != Desired::Running {
            server.succeed(server.start(*pod).await).await;
        }
        assert_eq!(&files(&world, *pod), held);
    }
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}
