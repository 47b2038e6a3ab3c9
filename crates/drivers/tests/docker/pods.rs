//! A pod's life on a real Docker Engine.

use std::io::{Read, Write};

use crate::support::{BUSYBOX, Bench, eventually};
use perennial_core::engine::{ContainerState, Effect, Engine, EngineError, LayerAccess, Presence};
use perennial_core::spec::{Backend, PortSpec, Profile, TenantId};
use perennial_drivers::docker::{DockerConfig, DockerEngine};

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

#[tokio::test(flavor = "multi_thread")]
async fn every_set_of_engine_volumes_is_seeded_once_and_never_copied_up_again() {
    let bench = Bench::new().await;
    let (mut pod, id) = bench.running(BUSYBOX, Backend::Engine).await;
    assert_eq!(pod.spec.set.volumes.len(), 8);
    let line = "cat /etc/motd; stat -c %a /root; stat -c %a /srv; rm /etc/motd; ls /workspace; id -u > /home/uid; sync";
    assert_eq!(bench.sh(&id, line).await, ("from the image\n700\n755".to_owned(), 0));
    let home = bench.volume(&pod, "home").await;
    assert_eq!(std::fs::read_to_string(home.path.join("uid")).unwrap(), "0\n");
    assert!(home.lower.is_none());
    bench.remove_container(&pod, &id).await;
    let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
    bench.start(&mut pod, &id).await.unwrap();
    assert_eq!(bench.sh(&id, "test ! -e /etc/motd").await.1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn system_layer_with_deletions_is_put_back_before_the_first_start() {
    for runtime in ["runc", "runsc"] {
        let bench = Bench::with(&[runtime], |_| {}).await;
        let mut pod = bench.pod_with(BUSYBOX, Backend::Engine, |s| s.runtime = Some(runtime.to_owned())).await;
        let id = bench.run(&mut pod).await;
        bench.sh(&id, "rm /usr/lib/data; mkdir /new; echo kept > /new/kept; echo x > /usr/lib/y; sync").await;
        bench.engine.container_stop(&id, 5).await.unwrap();
        let LayerAccess::Local { path, exclude } = bench.engine.layer_access(&id).await.unwrap() else {
            panic!("{runtime}: the layer is not reached");
        };
        for made in ["etc/hosts", "dev", "proc", "tmp", "run", ".dockerenv", "usr/local", "workspace"] {
            assert!(exclude.iter().any(|e| e == made), "{made} is not in {exclude:?}");
        }
        let saved = bench.storage().join("saved");
        let copied = std::process::Command::new("cp").arg("-a").arg(path.join("new")).arg(&saved).status().unwrap();
        assert!(copied.success());
        bench.remove_container(&pod, &id).await;

        let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
        let LayerAccess::Local { path, .. } = bench.engine.layer_access(&id).await.unwrap() else {
            panic!("{runtime}: the layer is not reached");
        };
        std::fs::create_dir(path.join("new")).unwrap();
        std::fs::copy(saved.join("kept"), path.join("new/kept")).unwrap();
        std::fs::create_dir_all(path.join("usr/lib")).unwrap();
        let whiteout =
            std::process::Command::new("mknod").arg(path.join("usr/lib/data")).args(["c", "0", "0"]).status();
        assert!(whiteout.unwrap().success());
        bench.start(&mut pod, &id).await.unwrap();
        let (text, code) = bench.sh(&id, "cat /new/kept; test ! -e /usr/lib/data && ls /usr/lib").await;
        assert_eq!((text.as_str(), code), ("kept", 0), "{runtime}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_memory_kills_are_told_apart() {
    let bench = Bench::new().await;
    let mut pod = bench
        .pod_with(BUSYBOX, Backend::Overlay, |s| {
            s.resources.memory = Some(16 << 20);
            s.resources.memory_swap = Some(0);
            s.resources.pids = Some(50);
            s.resources.nano_cpus = Some(500_000_000);
            // The whole of /dev/zero into one variable.
            s.command = Some(["sh", "-c", "tail /dev/zero"].map(str::to_owned).to_vec());
        })
        .await;
    let id = bench.run(&mut pod).await;
    let limits = bench.docker.inspect_container(&id, None).await.unwrap().host_config.unwrap();
    assert_eq!((limits.memory, limits.memory_swap), (Some(16 << 20), Some(16 << 20)));
    assert_eq!((limits.pids_limit, limits.nano_cpus), (Some(50), Some(500_000_000)));
    let mut ended = None;
    eventually("the kill", async || {
        ended = bench.observe(&pod).await.container.filter(|c| !c.is_live()).map(|c| c.state);
        // The notice may come a moment after the end.
        matches!(ended, Some(ContainerState::Exited { oom: true, .. }))
    })
    .await;

    let mut pod = bench
        .pod_with(BUSYBOX, Backend::Overlay, |s| s.command = Some(["sh", "-c", "exit 42"].map(str::to_owned).to_vec()))
        .await;
    bench.run(&mut pod).await;
    eventually("the end", async || {
        ended = bench.observe(&pod).await.container.filter(|c| !c.is_live()).map(|c| c.state);
        ended.is_some()
    })
    .await;
    assert_eq!(ended, Some(ContainerState::Exited { code: Some(42), oom: false }));

    // A program that is not there is refused, and the container stays as it was made.
    let mut pod =
        bench.pod_with(BUSYBOX, Backend::Overlay, |s| s.command = Some(vec!["/no-such-program".to_owned()])).await;
    bench.complete(&pod).await;
    let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
    let refused = bench.start(&mut pod, &id).await;
    assert!(matches!(refused, Err(EngineError::Rejected { .. })), "{refused:?}");
    let observed = bench.observe(&pod).await.container.unwrap();
    assert_eq!((observed.state, observed.started_at), (ContainerState::Created, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_and_the_host_are_out_of_reach() {
    for runtime in ["runc", "runsc"] {
        let bench = Bench::with(&[runtime], |_| {}).await;
        let mut pods = Vec::new();
        for tenant in ["red", "red", "blue"] {
            let mut pod = bench
                .pod_with(BUSYBOX, Backend::Overlay, |s| {
                    s.runtime = Some(runtime.to_owned());
                    let line = "echo hello > /srv/index.html; httpd -f -p 8000 -h /srv";
                    s.command = Some(["sh", "-c", line].map(str::to_owned).to_vec());
                })
                .await;
            pod.spec.tenant = TenantId::parse(tenant).unwrap();
            pod.spec.set.tenant = pod.spec.tenant.clone();
            let id = bench.run(&mut pod).await;
            let networks = bench.docker.inspect_container(&id, None).await.unwrap().network_settings.unwrap();
            let network = networks.networks.unwrap().into_values().next().unwrap();
            pods.push((id, network.ip_address.unwrap(), network.gateway.unwrap()));
        }
        let get = |address: &str, port: u16| {
            format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} {port} | grep -E 'hello|host'")
        };
        let (first, neighbour, stranger) = (&pods[0], &pods[1], &pods[2]);
        eventually("the neighbour's answer", async || {
            bench.sh(&first.0, &get(&neighbour.1, 8000)).await == ("hello".to_owned(), 0)
        })
        .await;
        let (text, code) = bench.sh(&first.0, &get(&stranger.1, 8000)).await;
        assert_ne!(code, 0, "{runtime}: another tenant answers {text}");
        // The host, on its bridge and on any other of its addresses.
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut peer in listener.incoming().flatten() {
                use std::io::Write;
                let _ = peer.write_all(b"HTTP/1.0 200 OK\r\n\r\nhost");
            }
        });
        let local = std::net::TcpStream::connect(("127.0.0.1", port));
        assert!(local.is_ok(), "the listener does not listen");
        for address in [&first.2, &stranger.2, "169.254.169.254"] {
            let (text, code) = bench.sh(&first.0, &get(address, port)).await;
            assert_ne!(code, 0, "{runtime}: the host answers at {address}: {text}");
        }
        // The host reaches the pod: health probes and published ports need it.
        assert!(std::net::TcpStream::connect((first.1.as_str(), 8000)).is_ok());
        assert_eq!(bench.engine.capabilities().await.unwrap().notes, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_go_with_the_last_pod_of_a_tenant() {
    let bench = Bench::new().await;
    let (mut pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    let name = format!("perennial-{}-default", bench.installation);
    assert!(bench.docker.inspect_network(&name, None).await.is_ok());
    // Removed behind our back, it is made again for the next start.
    bench.engine.container_stop(&id, 5).await.unwrap();
    bench.docker.remove_network(&name).await.unwrap();
    bench.start(&mut pod, &id).await.unwrap();
    bench.remove_container(&pod, &id).await;
    assert!(bench.docker.inspect_network(&name, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_published_on_loopback_only() {
    let bench = Bench::new().await;
    let mut pod =
        bench.pod_with(BUSYBOX, Backend::Overlay, |s| s.ports = vec![PortSpec { container: 8000, host: None }]).await;
    let id = bench.run(&mut pod).await;
    let ports = bench.docker.inspect_container(&id, None).await.unwrap().network_settings.unwrap().ports.unwrap();
    let binding = ports["8000/tcp"].clone().unwrap();
    assert!(binding.iter().all(|b| b.host_ip.as_deref() == Some("127.0.0.1")), "{binding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_confined() {
    let bench = Bench::new().await;
    let (_pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    let host = bench.docker.inspect_container(&id, None).await.unwrap().host_config.unwrap();
    assert!(host.security_opt.unwrap().iter().any(|o| o == "no-new-privileges"));
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.restart_policy.unwrap().name.unwrap().to_string(), "no");
    let (text, _) = bench.sh(&id, "grep -E 'NoNewPrivs|Seccomp:' /proc/1/status | tr -d '\\t '").await;
    assert_eq!(text, "NoNewPrivs:1\nSeccomp:2");
    let (text, _) =
        bench.sh(&id, "stat -c %a /tmp; printf '#!/bin/sh\\necho ran' > /tmp/x; chmod +x /tmp/x; /tmp/x").await;
    assert_eq!(text, "1777\nran");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_nobody_owns_refuses_the_container() {
    let bench = Bench::new().await;
    let mut pod = bench.pod("perennial-test/volume:1", Backend::Overlay).await;
    bench.complete(&pod).await;
    // As if the layout had overlooked it: the engine would make an anonymous volume.
    pod.spec.set.volumes.retain(|v| v.mount_path != "/data");
    let refused = bench.engine.container_ensure(&pod.spec).await;
    assert!(matches!(refused, Err(EngineError::Rejected { .. })), "{refused:?}");
    assert!(bench.observe(&pod).await.container.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_others_are_never_touched() {
    let bench = Bench::new().await;
    let other = Bench::new().await;
    let (pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    for refused in [
        other.engine.container_stop(&id, 1).await,
        other.engine.container_freeze(&id).await,
        other.engine.container_start(&id, &pod.spec.set, 9).await,
    ] {
        assert!(matches!(refused, Err(EngineError::Rejected { .. })), "{refused:?}");
    }
    assert!(other.engine.observe(pod.id(), &[]).await.unwrap().container.is_none());
    assert!(other.engine.list_owned().await.unwrap().is_empty());
    assert!(bench.observe(&pod).await.container.unwrap().is_live());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_engine_is_never_an_absence() {
    let bench = Bench::new().await;
    let pod = bench.pod(BUSYBOX, Backend::Engine).await;
    std::fs::rename(bench.storage().join("installation"), bench.storage().join("away")).unwrap();
    let mut overlay = pod.spec.set.clone();
    overlay.backend = Backend::Overlay;
    let seen = bench.engine.observe(pod.id(), std::slice::from_ref(&overlay)).await;
    assert!(matches!(seen, Err(EngineError::Transient { .. })), "{seen:?}");
    let mut config = DockerConfig::new(bench.installation, bench.root.path().join("root2")).unwrap();
    config.docker_host = Some("unix:///nowhere/docker.sock".to_owned());
    let refused = DockerEngine::connect(config).await;
    assert!(matches!(refused, Err(EngineError::Transient { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mover_reads_and_writes_engine_volumes() {
    const PROGRAM: &str = r#"
        #include <stdio.h>
        #include <string.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            if (argc != 2 || strcmp(argv[1], "mover")) return 9;
            FILE *f = fopen("/volumes/home/moved", "w");
            if (!f || fputs("moved", f) < 0 || fclose(f)) return 8;
            char buffer[65536];
            for (ssize_t n; (n = read(0, buffer, sizeof buffer)) > 0;)
                for (ssize_t at = 0; at < n;) { ssize_t w = write(1, buffer + at, n - at); if (w < 0) return 7; at += w; }
            return 0;
        }"#;
    let dir = tempfile::tempdir().unwrap();
    let (source, binary) = (dir.path().join("mover.c"), dir.path().join("mover"));
    std::fs::write(&source, PROGRAM).unwrap();
    let built = std::process::Command::new("cc").arg("-static").arg("-o").arg(&binary).arg(&source).status().unwrap();
    assert!(built.success());
    let bench = Bench::with(&["runc"], |c| c.mover_binary = Some(binary)).await;
    let pod = bench.pod(BUSYBOX, Backend::Engine).await;
    bench.complete(&pod).await;
    let mut channel = bench.engine.mover_open(&pod.spec.set).await.unwrap();
    let echoed = tokio::task::spawn_blocking(move || {
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut writer = channel.writer;
        let data = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&data).unwrap();
            writer.flush().unwrap();
        });
        let mut received = Vec::new();
        channel.reader.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        received == sent
    });
    assert!(tokio::time::timeout(std::time::Duration::from_secs(30), echoed).await.unwrap().unwrap());
    let home = bench.volume(&pod, "home").await;
    assert_eq!(std::fs::read_to_string(home.path.join("moved")).unwrap(), "moved");
}

/// Not a limit, a measurement: what overlay volumes cost at the creation of a container, against none.
#[tokio::test(flavor = "multi_thread")]
async fn creating_on_overlay_volumes_is_quick() {
    let bench = Bench::new().await;
    let mut times = Vec::new();
    for profile in [Profile::Universal, Profile::Declared(Vec::new())] {
        let mut best = std::time::Duration::MAX;
        for _ in 0..5 {
            let mut pod =
                bench.pod_with("perennial-test/debian:12", Backend::Overlay, |s| s.profile = profile.clone()).await;
            bench.complete(&pod).await;
            let began = std::time::Instant::now();
            let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
            let created = began.elapsed();
            bench.start(&mut pod, &id).await.unwrap();
            eprintln!(
                "{} volumes: created in {created:?}, started after {:?}",
                pod.spec.set.volumes.len(),
                began.elapsed()
            );
            best = best.min(created);
            bench.docker.kill_container(&id, None).await.unwrap();
            bench.remove_container(&pod, &id).await;
        }
        times.push(best);
    }
    eprintln!("created on overlay volumes in {:?}, without volumes in {:?}", times[0], times[1]);
    assert!(times[0] < std::time::Duration::from_secs(3), "{times:?}");
}
