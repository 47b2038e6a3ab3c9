//! Health checks: domain types into wire types, and back.

use perennial_core::Error;
use perennial_core::health::{
    HEALTH_INTERVAL, HEALTH_RETRIES, HEALTH_START_PERIOD, HEALTH_TIMEOUT, HealthCheck, Probe,
};
use perennial_core::pod::Pod;

use super::wire;

/// A health check as it is shown.
pub(super) fn check(check: &HealthCheck) -> wire::HealthCheck {
    let common = wire::HealthCheck {
        interval: Some(check.interval),
        timeout: Some(check.timeout),
        retries: Some(check.retries),
        start_period: Some(check.start_period),
        ..wire::HealthCheck::default()
    };
    match &check.probe {
        Probe::Http { port, path } => {
            let http = wire::HttpProbe { port: *port, path: Some(path.clone()) };
            wire::HealthCheck { http: Some(http), ..common }
        }
        Probe::Tcp { port } => wire::HealthCheck { tcp: Some(wire::TcpProbe { port: *port }), ..common },
        Probe::Exec { command } => {
            wire::HealthCheck { exec: Some(wire::ExecProbe { command: command.clone() }), ..common }
        }
    }
}

/// The health check a request says.
///
/// # Errors
/// [`Error::InvalidInput`] when it does not ask exactly one thing.
pub(super) fn domain_check(asked: &wire::HealthCheck) -> Result<HealthCheck, Error> {
    let probe = match (&asked.http, &asked.tcp, &asked.exec) {
        (Some(http), None, None) => {
            Probe::Http { port: http.port, path: http.path.clone().unwrap_or_else(|| "/".to_owned()) }
        }
        (None, Some(tcp), None) => Probe::Tcp { port: tcp.port },
        (None, None, Some(exec)) => Probe::Exec { command: exec.command.clone() },
        (None, None, None) => return Err(one("does not say what is asked")),
        _ => return Err(one("asks more than one thing")),
    };
    let interval = asked.interval.unwrap_or(HEALTH_INTERVAL);
    Ok(HealthCheck {
        probe,
        interval,
        timeout: asked.timeout.unwrap_or_else(|| HEALTH_TIMEOUT.min(interval)),
        retries: asked.retries.unwrap_or(HEALTH_RETRIES),
        start_period: asked.start_period.unwrap_or(HEALTH_START_PERIOD),
    })
}

fn one(problem: &str) -> Error {
    Error::invalid("health", problem, "write one of http, tcp and exec")
}

/// What is known of a pod's health; `None` when nobody asks.
pub(super) fn known(pod: &Pod) -> Option<wire::PodHealth> {
    let state = pod.health_state()?;
    let (known, state) = (pod.health.as_ref(), state.into());
    Some(wire::PodHealth {
        state,
        since: known.map(|health| health.since),
        last_problem: known.and_then(|health| health.problem.clone()),
    })
}
