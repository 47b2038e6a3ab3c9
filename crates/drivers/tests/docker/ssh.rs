//! An engine behind SSH: one login carries everything, comes back by itself, and nobody else is taken for the host.

use crate::support::hands::check;
use crate::support::sshd::eventually;
use crate::support::{BUSYBOX, Bench, REACH_CASES, Sshd, host, shared_config, storage_base};
use perennial_core::engine::{Engine, EngineError};
use perennial_core::spec::Backend;
use perennial_drivers::docker::{DockerConfig, DockerEngine};

/// Has the configuration reach the engine under test by this server.
fn by(sshd: &Sshd, config: &mut DockerConfig) {
    config.docker_host = Some(sshd.address(&host()));
    config.ssh_options = sshd.options();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_behind_ssh_conforms_with_one_login_each() {
    let sshd = Sshd::start();
    let root = tempfile::tempdir_in(storage_base()).unwrap();
    let config = || {
        let mut config = shared_config(&["runc"]);
        by(&sshd, &mut config);
        config.storage_root = root.path().join("root");
        config
    };
    let engine = DockerEngine::connect(config()).await.unwrap();
    // It is this host all the same, which the probe proved by what came out on its disk.
    assert_eq!(engine.capabilities().await.unwrap().backends, [Backend::Overlay, Backend::Engine]);
    let mut logins = 1;
    for backend in [Backend::Overlay, Backend::Engine] {
        for case in REACH_CASES {
            check(case, backend, "runc", config()).await;
            logins += 1;
        }
    }
    assert_eq!((sshd.said("Accepted publickey"), sshd.said("MaxStartups")), (logins, 0));
    drop(engine);
    eventually("no ssh is left", || sshd.clients().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_ssh_is_killed_is_unknown_until_it_is_back_by_itself() {
    let mut sshd = Sshd::start();
    let bench = Bench::with(&["runc"], |config| by(&sshd, config)).await;
    let (pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    let clients = sshd.clients();
    assert_eq!(clients.iter().map(|c| c.1).collect::<Vec<_>>(), [std::process::id()]);
    sshd.refuse();
    let socket = sshd.kill_client();
    // Nobody listens at the socket, and then there is none.
    for file_is_there in [true, false] {
        assert_eq!(socket.exists(), file_is_there);
        let seen = bench.engine.observe(pod.id(), std::slice::from_ref(&pod.spec.set)).await;
        assert!(matches!(seen, Err(EngineError::Transient { .. })), "{seen:?}");
        let frozen = bench.engine.container_freeze(&id).await;
        assert!(matches!(frozen, Err(EngineError::Transient { .. })), "{frozen:?}");
        if file_is_there {
            std::fs::remove_file(&socket).unwrap();
        }
    }
    sshd.listen();
    crate::support::eventually("an observation", async || {
        bench.engine.observe(pod.id(), std::slice::from_ref(&pod.spec.set)).await.is_ok()
    })
    .await;
    let container = bench.observe(&pod).await.container.unwrap();
    assert!(container.id == id && container.is_live(), "{container:?}");
    assert_eq!((sshd.clients().len(), sshd.said("Accepted publickey")), (1, 2));

    let directory = socket.parent().unwrap().to_owned();
    assert!(directory.exists());
    bench.remove_container(&pod, &id).await;
    bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap();
    drop(bench);
    eventually("ssh and its directory go with the engine", || sshd.clients().is_empty() && !directory.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ssh_host_with_another_key_and_a_user_without_one_are_refused_with_the_reason() {
    let sshd = Sshd::start_with(10);
    let root = tempfile::tempdir_in(storage_base()).unwrap();
    let connect = async |address: String, options: Vec<String>| {
        let mut config = shared_config(&["runc"]);
        config.docker_host = Some(address);
        config.ssh_options = options;
        config.storage_root = root.path().join("root");
        DockerEngine::connect(config).await.map(drop)
    };
    let address = sshd.address(&host());
    for (key, known, why) in [
        ("user", "known-otherwise", "REMOTE HOST IDENTIFICATION HAS CHANGED"),
        ("user", "unknown", "No ED25519 host key is known"),
        ("other", "known", "Permission denied"),
    ] {
        let mut options = sshd.options_with(key, known);
        // Whatever the configuration says.
        options.push("StrictHostKeyChecking=no".to_owned());
        let refused = connect(address.clone(), options).await;
        let told = |p: &str| p.contains(why) && p.contains("known_hosts");
        assert!(matches!(&refused, Err(EngineError::Rejected { problem }) if told(problem)), "{refused:?}");
        assert!(!root.path().join("root").exists() && sshd.clients().is_empty());
    }
    // Where there is no engine yet, one may come.
    let absent = connect(sshd.address("unix:///nowhere.sock"), sshd.options()).await;
    let told = |p: &str| p.contains("ssh says: ") && p.contains("open failed");
    assert!(matches!(&absent, Err(EngineError::Transient { problem }) if told(problem)), "{absent:?}");
    assert_eq!(sshd.said("Accepted publickey"), 1);
}
