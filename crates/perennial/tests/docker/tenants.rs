//! Pods of two tenants, the server and the metadata service are out of each other's reach.

use crate::installation::{BUSYBOX, Docker, Installation, Pod, eventually};
use serde_json::json;

/// Answers everybody on port 7000.
const LISTEN: &str = "trap 'exit 0' TERM; while :; do echo reached | nc -l -p 7000; done & wait";

fn address(installation: &Installation, pod: &Pod) -> String {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = installation.docker.run(&["inspect", "--format", format, &installation.container(pod)]);
    assert!(!address.trim().is_empty());
    address.trim().to_owned()
}

/// Whether a connection from this pod is answered.
fn reaches(installation: &Installation, pod: &Pod, address: &str, port: &str) -> bool {
    installation.try_sh(pod, &format!("nc -w 2 {address} {port} </dev/null | grep -q .")).1
}

/// Whether the server answers a request from this pod.
fn reaches_server(installation: &Installation, pod: &Pod, address: &str, port: &str) -> bool {
    installation.try_sh(pod, &format!("wget -q -T 2 -O - http://{address}:{port}/healthz | grep -q ok")).1
}

fn tenants(runtime: &str) {
    // On every address, so that only the rules keep pods away from it.
    let installation = Installation::on(Docker::shared(), &["--listen", "0.0.0.0:0", "--allow-plaintext"]);
    let pod = |name: &str, tenant: &str| {
        let more = json!({"command": ["sh", "-c", LISTEN], "tenant": tenant, "stopTimeout": 1});
        installation.pod_with(name, BUSYBOX, runtime, more)
    };
    let (one, sister, other) = (pod("one", "one"), pod("sister", "one"), pod("other", "two"));
    let target = address(&installation, &one);
    // The proof that the attempts could succeed: within a tenant they do.
    eventually("a sister answers", || reaches(&installation, &sister, &target, "7000").then_some(()));
    assert!(!reaches(&installation, &other, &target, "7000"), "another tenant's pod answers");
    let target = address(&installation, &other);
    assert!(!reaches(&installation, &one, &target, "7000"), "another tenant's pod answers");

    let port = installation.url().rsplit(':').next().unwrap().to_owned();
    let format = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}";
    for pod in [&one, &other] {
        let gateway = installation.docker.run(&["inspect", "--format", format, &installation.container(pod)]);
        // The server is there for the host itself.
        let host = std::net::TcpStream::connect(format!("{}:{port}", gateway.trim()));
        assert!(host.is_ok(), "the server does not listen on {gateway}: {host:?}");
        assert!(!reaches_server(&installation, pod, gateway.trim(), &port), "the server answers a pod");
        assert!(!reaches_server(&installation, pod, "169.254.169.254", "80"), "the metadata service answers a pod");
    }
    let rules = std::process::Command::new("iptables").args(["--wait", "-S"]).output().unwrap();
    assert!(String::from_utf8_lossy(&rules.stdout).contains("-d 169.254.0.0/16 -j REJECT"), "no rule for metadata");
}

#[test]
fn runc_tenants_host_and_metadata_are_out_of_reach() {
    tenants("runc");
}

#[test]
fn runsc_tenants_host_and_metadata_are_out_of_reach() {
    tenants("runsc");
}
