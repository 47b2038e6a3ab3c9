//! Keeps pods away from their host and from the metadata service (D41), as far as iptables is ours to use.
//!
//! The rules match every bridge of Perennial by the prefix of its name, so they are written once and hold for tenants
//! to come. What pods may reach on the host: nothing but name service; answers to connections that the host opened
//! come back. Where the engine is remote, or iptables is missing or not permitted, nothing is written and
//! `capabilities` says so. Between tenants the engine itself isolates bridges; the last rule does it where the engine
//! was told not to touch iptables.

use std::process::{Command, Stdio};

use perennial_core::engine::EngineError;

use super::DockerEngine;
use super::client::blocking;
use super::network::BRIDGE_PREFIX;

const TO_HOST: &str = "PERENNIAL-IN";
const THROUGH: &str = "PERENNIAL-FWD";

/// Writes the rules once per process; whatever fails is only noted, because pods run without them too.
pub(super) async fn ensure(engine: &DockerEngine) {
    engine
        .firewall
        .get_or_init(|| async {
            let shared = engine.shares_files().await.unwrap_or(false);
            if !shared {
                return Err("the engine is on another host".to_owned());
            }
            let written = blocking(|| Ok::<_, EngineError>(write())).await;
            written.unwrap_or_else(|e| Err(e.to_string()))
        })
        .await;
}

/// Why the rules are not there; `None` when they are, or when nobody needed them yet.
pub(super) fn problem(engine: &DockerEngine) -> Option<String> {
    engine.firewall.get()?.as_ref().err().cloned()
}

fn write() -> Result<(), String> {
    let bridges = format!("{BRIDGE_PREFIX}+");
    let rules: [&[&str]; 5] = [
        &["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "RETURN"],
        &["-p", "udp", "--dport", "53", "-j", "RETURN"],
        &["-p", "tcp", "--dport", "53", "-j", "RETURN"],
        &["-p", "icmp", "-j", "RETURN"],
        &["-j", "REJECT"],
    ];
    fill(TO_HOST, &rules)?;
    hook("INPUT", &bridges, TO_HOST)?;

    let metadata: &[&str] = &["-d", "169.254.0.0/16", "-j", "REJECT"];
    let same_bridge: &[&str] = &["-o", &bridges, "-m", "physdev", "--physdev-is-bridged", "-j", "RETURN"];
    let answers: &[&str] = &["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "RETURN"];
    let others: &[&str] = &["-o", &bridges, "-j", "REJECT"];
    // Without the physdev match the last rule could cut a bridge off from itself.
    if fill(THROUGH, &[metadata, same_bridge, answers, others]).is_err() {
        fill(THROUGH, &[metadata])?;
    }
    // The engine keeps DOCKER-USER in front of its own rules; without it FORWARD is all there is.
    let chain = if iptables(&["-n", "-L", "DOCKER-USER"]).is_ok() { "DOCKER-USER" } else { "FORWARD" };
    hook(chain, &bridges, THROUGH)
}

/// Makes a chain hold exactly these rules. Two processes that do it at once write the same.
fn fill(chain: &str, rules: &[&[&str]]) -> Result<(), String> {
    let there = rules.iter().all(|rule| iptables(&[&["-C", chain], *rule].concat()).is_ok());
    if there {
        return Ok(());
    }
    if iptables(&["-N", chain]).is_err() {
        iptables(&["-F", chain])?;
    }
    for rule in rules {
        iptables(&[&["-A", chain], *rule].concat())?;
    }
    Ok(())
}

fn hook(from: &str, bridges: &str, chain: &str) -> Result<(), String> {
    if iptables(&["-C", from, "-i", bridges, "-j", chain]).is_ok() {
        return Ok(());
    }
    iptables(&["-I", from, "1", "-i", bridges, "-j", chain])
}

fn iptables(words: &[&str]) -> Result<(), String> {
    let run = Command::new("iptables").arg("-w").args(words).stdin(Stdio::null()).output();
    match run {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
        Err(e) => Err(format!("run iptables: {e}")),
    }
}
