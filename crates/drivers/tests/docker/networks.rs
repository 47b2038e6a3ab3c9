//! One network for each tenant on a real engine: hundreds fit into a pool, and one that is full says which setting it is.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Instant;

use crate::support::{BUSYBOX, Bench, TestPod};
use bollard::query_parameters::ListNetworksOptionsBuilder;
use futures::StreamExt;
use perennial_core::engine::{Engine, EngineError};
use perennial_core::spec::{Backend, Profile, TenantId};
use perennial_drivers::docker::Subnet;

/// Hundreds were promised. Making and removing them takes one to three minutes.
const TENANTS: usize = 210;
/// Room for 256 networks of 32 addresses, where no other test looks.
const POOL: (&str, u32, u32) = ("10.231.0.0/19", u32::from_be_bytes([10, 231, 0, 0]), 1 << 13);
/// Calls at a time, as a server makes them for its pods.
const AT_ONCE: usize = 4;

/// A pod of this tenant without volumes, whose container is made and not started: what a network needs and no more.
async fn pod_of(bench: &Bench, tenant: &str) -> TestPod {
    let mut pod = bench.pod_with(BUSYBOX, Backend::Engine, |s| s.profile = Profile::Declared(Vec::new())).await;
    pod.spec.tenant = TenantId::parse(tenant).unwrap();
    pod.spec.set.tenant = pod.spec.tenant.clone();
    bench.complete(&pod).await;
    pod
}

async fn made(bench: &Bench, tenant: &str) -> (TestPod, String) {
    let pod = pod_of(bench, tenant).await;
    let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
    (pod, id)
}

async fn removed(bench: &Bench, (pod, id): (TestPod, String)) {
    bench.remove_container(&pod, &id).await;
    bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap();
}

/// The first address and the size of every network of the installation.
async fn networks(bench: &Bench) -> Vec<(u32, u32)> {
    let label = format!("io.perennial.installation={}", bench.installation);
    let filters = HashMap::from([("label".to_owned(), vec![label])]);
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    let listed = bench.docker.list_networks(Some(options)).await.unwrap();
    let range = |subnet: &str| {
        let (base, prefix) = subnet.split_once('/').unwrap();
        (base.parse::<Ipv4Addr>().unwrap().to_bits(), 1 << (32 - prefix.parse::<u32>().unwrap()))
    };
    let configs = listed.into_iter().map(|n| n.ipam.unwrap().config.unwrap());
    configs.map(|c| range(c[0].subnet.as_ref().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_hundreds_of_tenants_fit_and_are_apart() {
    let bench = Bench::with(&["runc"], |c| c.subnet_pool = Subnet::parse(POOL.0).unwrap()).await;
    let bench = &bench;
    let began = Instant::now();
    let names = (0..TENANTS).map(|n| format!("tenant-{n}"));
    let pods: Vec<_> = futures::stream::iter(names)
        .map(|tenant| async move { made(bench, &tenant).await })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    eprintln!("{TENANTS} networks, each with a container, after {:?}", began.elapsed());

    let mut ranges = networks(bench).await;
    assert_eq!(ranges.len(), TENANTS, "one network for each tenant");
    ranges.sort_unstable();
    for window in ranges.windows(2) {
        assert!(window[0].0 + window[0].1 <= window[1].0, "two networks share addresses: {window:?}");
    }
    let inside = |(base, size): (u32, u32)| base >= POOL.1 && base + size <= POOL.1 + POOL.2;
    assert!(ranges.iter().all(|range| inside(*range)), "a network is outside of {}: {ranges:?}", POOL.0);
    // On the host they are bridges of their own as well.
    let joined: Vec<_> = futures::stream::iter(&pods)
        .map(|(_, id)| async move {
            let seen = bench.docker.inspect_container(id, None).await.unwrap();
            seen.network_settings.unwrap().networks.unwrap().into_keys().collect::<Vec<_>>()
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    assert!(joined.iter().all(|names| names.len() == 1), "{joined:?}");
    assert_eq!(joined.iter().flatten().collect::<HashSet<_>>().len(), TENANTS, "two tenants share a network");

    let began = Instant::now();
    futures::stream::iter(pods).for_each_concurrent(AT_ONCE, |pod| removed(bench, pod)).await;
    eprintln!("removed after {:?}", began.elapsed());
    assert_eq!(networks(bench).await, [], "a network outlives the last pod of its tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_refused_by_the_name_of_its_setting_and_works_on_when_there_is_room() {
    // Two networks.
    let bench = Bench::with(&["runc"], |c| c.subnet_pool = Subnet::parse("10.232.0.0/26").unwrap()).await;
    let first = made(&bench, "first").await;
    let second = made(&bench, "second").await;
    let sister = made(&bench, "second").await;
    let third = pod_of(&bench, "third").await;
    let refused = bench.engine.container_ensure(&third.spec).await;
    // It is tried again: a network becomes free with the last pod of its tenant.
    let Err(EngineError::Transient { problem }) = refused else { panic!("{refused:?}") };
    assert!(problem.contains("subnet_pool") && problem.contains("10.232.0.0/26"), "{problem}");
    assert_eq!(networks(&bench).await.len(), 2);
    assert!(bench.observe(&third).await.container.is_none(), "a refused container was made");

    removed(&bench, first).await;
    let (id, _) = bench.engine.container_ensure(&third.spec).await.unwrap();
    for pod in [second, sister, (third, id)] {
        removed(&bench, pod).await;
    }
    assert_eq!(networks(&bench).await, []);
}
