//! A pod's life on a real Docker Engine.

mod docker_support;

use docker_support::{BUSYBOX, Bench};
use perennial_core::engine::{ContainerState, Effect, Engine, Presence};
use perennial_core::spec::Backend;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_on_overlay_volumes() {
    let bench = Bench::new().await;
    let capabilities = bench.engine.capabilities().await.unwrap();
    assert!(capabilities.backends.contains(&Backend::Overlay), "{capabilities:?}");
    let runc = capabilities.runtime(Some("runc")).unwrap();
    assert!(runc.overlay_volumes && runc.root_changes && runc.freeze, "{runc:?}");

    let mut pod = bench.pod(BUSYBOX, Backend::Overlay).await;
    assert_eq!(bench.observe(&pod).await.set(1).unwrap().presence, Presence::Absent);
    bench.complete(&pod).await;
    let (id, effect) = bench.engine.container_ensure(&pod.spec).await.unwrap();
    assert_eq!(effect, Effect::Created);
    assert_eq!(bench.engine.container_ensure(&pod.spec).await.unwrap(), (id.clone(), Effect::Unchanged));
    bench.start(&mut pod, &id).await.unwrap();

    let line = "echo mine > /etc/mine; rm /etc/motd; echo x > /usr/local/deep; hostname; cat /usr/lib/data";
    assert_eq!(bench.sh(&id, line).await, ("testpod\nfrom the image".to_owned(), 0));
    let observed = bench.observe(&pod).await;
    assert_eq!(observed.container.as_ref().unwrap().state, ContainerState::Running);
    assert_eq!(observed.set(1).unwrap().presence, Presence::Whole);
    assert_eq!(observed.set(1).unwrap().generation, Some(1));
    assert!(observed.foreign.is_empty());

    assert_eq!(bench.engine.container_stop(&id, 5).await.unwrap(), Effect::Updated);
    assert_eq!(bench.engine.container_stop(&id, 5).await.unwrap(), Effect::Unchanged);
    let ended = bench.observe(&pod).await.container.unwrap();
    assert_eq!(ended.state, ContainerState::Exited { code: Some(7), oom: false });

    // Gone and made again: everything on volumes is there.
    bench.remove_container(&pod, &id).await;
    let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
    bench.start(&mut pod, &id).await.unwrap();
    let (text, code) = bench.sh(&id, "cat /etc/mine /usr/local/deep; test ! -e /etc/motd && readlink /etc/mtab").await;
    assert_eq!((text.as_str(), code), ("mine\nx\n/proc/mounts", 0));

    bench.remove_container(&pod, &id).await;
    assert_eq!(bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap(), Effect::Removed);
    assert_eq!(bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap(), Effect::Unchanged);
    assert_eq!(bench.observe(&pod).await.set(1).unwrap().presence, Presence::Absent);
    assert!(bench.engine.list_owned().await.unwrap().is_empty());
}
