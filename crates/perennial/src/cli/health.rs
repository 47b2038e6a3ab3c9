//! Health checks as they are typed, and as they are shown.

use clap::Args;
use jiff::Timestamp;

use super::failure::Failure;
use super::hooks::{Command, command};
use super::human::ago;
use super::values;
use crate::api::wire::{ExecProbe, HealthCheck, HttpProbe, PodHealth, TcpProbe};

/// How one finds out whether a pod works.
#[derive(Debug, Clone, Default, Args)]
pub struct HealthArgs {
    /// The pod works while this page of it answers with 200 to 399, such as 8080:/healthz
    #[arg(long, value_parser = page, value_name = "PORT[:PATH]", help_heading = "Health", group = "probe")]
    pub health_http: Option<HttpProbe>,
    /// The pod works while this port of it takes connections
    #[arg(long, value_name = "PORT", help_heading = "Health", group = "probe")]
    pub health_tcp: Option<u16>,
    /// The pod works while this ends with 0 in it: words and quotes as for a shell, which is not involved, or a JSON list of words
    #[arg(long, value_parser = command, value_name = "COMMAND", help_heading = "Health", group = "probe")]
    pub health_exec: Option<Command>,
    /// Time between two questions, such as 30s
    #[arg(long, value_parser = values::seconds, value_name = "TIME", help_heading = "Health")]
    pub health_interval: Option<u32>,
    /// Time an answer may take, such as 10s
    #[arg(long, value_parser = values::seconds, value_name = "TIME", help_heading = "Health")]
    pub health_timeout: Option<u32>,
    /// Questions in a row that have to fail until the pod is restarted
    #[arg(long, value_name = "N", help_heading = "Health")]
    pub health_retries: Option<u32>,
    /// Time after a start in which a failure means nothing, such as 1m
    #[arg(long, value_parser = values::seconds, value_name = "TIME", help_heading = "Health")]
    pub health_start_period: Option<u32>,
}

/// Reads a port with the path of a page.
///
/// # Errors
/// One sentence that says what is wrong.
fn page(text: &str) -> Result<HttpProbe, String> {
    let (port, path) = text.split_once(':').map_or((text, None), |(port, path)| (port, Some(path.to_owned())));
    let port = port.parse().map_err(|_| format!("{port:?} is no port: write PORT:PATH, such as 8080:/healthz"))?;
    Ok(HttpProbe { port, path })
}

impl HealthArgs {
    /// What is typed over what there is; `None` when nothing is typed.
    ///
    /// # Errors
    /// When what is typed belongs to a check that is not there.
    pub fn over(&self, present: Option<&HealthCheck>) -> Result<Option<HealthCheck>, Failure> {
        let times = [self.health_interval, self.health_timeout, self.health_retries, self.health_start_period];
        let probe = HealthCheck {
            http: self.health_http.clone(),
            tcp: self.health_tcp.map(|port| TcpProbe { port }),
            exec: self.health_exec.clone().map(|command| ExecProbe { command: command.0 }),
            ..HealthCheck::default()
        };
        let is_asked = probe != HealthCheck::default();
        if !is_asked && times.iter().all(Option::is_none) {
            return Ok(None);
        }
        let base = match present.cloned() {
            Some(present) if is_asked => HealthCheck { http: probe.http, tcp: probe.tcp, exec: probe.exec, ..present },
            Some(present) => present,
            None if is_asked => probe,
            None => {
                let hint = "say what is asked: --health-http, --health-tcp or --health-exec";
                return Err(Failure::usage("there is no health check", hint));
            }
        };
        Ok(Some(HealthCheck {
            interval: self.health_interval.or(base.interval),
            timeout: self.health_timeout.or(base.timeout),
            retries: self.health_retries.or(base.retries),
            start_period: self.health_start_period.or(base.start_period),
            ..base
        }))
    }
}

/// A health check, for people.
pub fn described(check: &HealthCheck) -> String {
    let what = match (&check.http, &check.tcp, &check.exec) {
        (Some(http), _, _) => format!("http {}:{}", http.port, http.path.as_deref().unwrap_or("/")),
        (_, Some(tcp), _) => format!("tcp {}", tcp.port),
        (_, _, Some(exec)) => {
            shlex::try_join(exec.command.iter().map(String::as_str)).unwrap_or_else(|_| exec.command.join(" "))
        }
        (None, None, None) => "nothing".to_owned(),
    };
    let every = check.interval.map(|seconds| format!(" every {seconds} s")).unwrap_or_default();
    let retries = check.retries.map(|retries| format!(", {retries} in a row")).unwrap_or_default();
    format!("{what}{every}{retries}")
}

/// What is known of a pod's health, for people.
pub fn known(health: &PodHealth, now: Timestamp) -> String {
    let since = health.since.map(|at| format!(", since {}", ago(at, now))).unwrap_or_default();
    let problem = health.last_problem.as_ref().map(|problem| format!(" (last: {problem})")).unwrap_or_default();
    format!("{}{since}{problem}", health.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_a_port_and_perhaps_a_path() {
        assert_eq!(page("8080"), Ok(HttpProbe { port: 8080, path: None }));
        assert_eq!(page("80:/a:b"), Ok(HttpProbe { port: 80, path: Some("/a:b".to_owned()) }));
        for bad in ["", "x", "/healthz", "70000", ":/x"] {
            assert!(page(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_typed_goes_over_what_there_is() {
        let tcp = HealthArgs { health_tcp: Some(80), health_retries: Some(5), ..HealthArgs::default() };
        assert_eq!(HealthArgs::default().over(None).unwrap(), None);
        let made = tcp.over(None).unwrap().unwrap();
        assert_eq!(described(&made), "tcp 80, 5 in a row");
        let interval = HealthArgs { health_interval: Some(9), ..HealthArgs::default() };
        assert!(interval.over(None).is_err(), "a time of nothing");
        let page = HealthArgs { health_http: Some(page("81:/x").unwrap()), ..interval };
        assert_eq!(described(&page.over(Some(&made)).unwrap().unwrap()), "http 81:/x every 9 s, 5 in a row");
    }
}
