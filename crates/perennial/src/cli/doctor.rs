//! `perennial doctor`: what the server says of itself, and what only a client can see.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::Serialize;

use super::args::{Connection, Output};
use super::client::TokenSource;
use super::failure::{Exit, Failure};
use super::out::{Colour, Out, clean};
use super::session::{Session, show};
use crate::api::wire::{Check, CheckStatus, System};

/// Clocks further apart than this many seconds are reported.
const CLOCK_SKEW: i64 = 30;

/// What was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Whether nothing is broken.
    healthy: bool,
    /// What the client saw.
    client: Vec<Check>,
    /// What the server says; null when it does not answer.
    server: Option<System>,
}

/// Runs `doctor`.
pub async fn run(connection: &Connection, session: &Session, out: &mut Out) -> Result<(), Failure> {
    let report = examine(connection, session).await?;
    show(session.output, out, &report, text)?;
    if report.healthy {
        return Ok(());
    }
    let broken = report.checks().filter(|check| check.status == CheckStatus::Failed).count();
    let message = if session.output == Output::Table { format!("{broken} broken") } else { String::new() };
    Err(Failure::new(Exit::Failed, message, ""))
}

async fn examine(connection: &Connection, session: &Session) -> Result<Report, Failure> {
    let mut checks = Vec::new();
    let mut server = None;
    match connection.token(session) {
        Ok((token, source)) => {
            checks.push(token_file(&source));
            let client = connection.client_with(&token, session)?;
            if client.is_exposed() {
                checks.push(check(
                    "transport",
                    CheckStatus::Warning,
                    format!("the token travels unencrypted to {}", client.server()),
                    "use https://, or a tunnel",
                ));
            }
            match client.get::<System>(&["system"], &[]).await {
                Ok(system) => {
                    checks.push(good("server", format!("{} answers", client.server())));
                    checks.push(version(&system));
                    checks.push(clock(&system, session));
                    server = Some(system);
                }
                Err(failure) => checks.push(check("server", CheckStatus::Failed, failure.message, &failure.hint)),
            }
        }
        Err(failure) => checks.push(check("token", CheckStatus::Failed, failure.message, &failure.hint)),
    }
    let mut report = Report { healthy: true, client: checks, server };
    let healthy = report.checks().all(|check| check.status != CheckStatus::Failed);
    report.healthy = healthy;
    Ok(report)
}

impl Report {
    fn checks(&self) -> impl Iterator<Item = &Check> {
        self.client.iter().chain(self.server.iter().flat_map(|system| &system.checks))
    }
}

fn check(name: &str, status: CheckStatus, message: String, hint: &str) -> Check {
    Check { name: name.to_owned(), status, message, hint: (!hint.is_empty()).then(|| hint.to_owned()) }
}

fn good(name: &str, message: String) -> Check {
    check(name, CheckStatus::Ok, message, "")
}

fn token_file(source: &TokenSource) -> Check {
    match source {
        TokenSource::Environment => good("token", "is taken from PERENNIAL_TOKEN".to_owned()),
        TokenSource::File(file) => match mode(file) {
            Ok(mode) if mode & 0o077 != 0 => check(
                "token",
                CheckStatus::Warning,
                format!("{} can be read by others (mode {mode:03o})", file.display()),
                &format!("chmod 600 {}", file.display()),
            ),
            Ok(_) => good("token", format!("{} is readable by its owner only", file.display())),
            Err(error) => check("token", CheckStatus::Warning, format!("{}: {error}", file.display()), ""),
        },
    }
}

fn mode(file: &Path) -> std::io::Result<u32> {
    Ok(std::fs::metadata(file)?.permissions().mode() & 0o777)
}

fn version(system: &System) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    if system.version == own {
        return good("version", format!("client and server are {own}"));
    }
    check(
        "version",
        CheckStatus::Warning,
        format!("this client is {own}, the server is {}", system.version),
        "use the same version of perennial on both sides",
    )
}

fn clock(system: &System, session: &Session) -> Check {
    let apart = ((session.now)().as_second() - system.time.as_second()).abs();
    if apart <= CLOCK_SKEW {
        return good("client clock", "agrees with the server's".to_owned());
    }
    check(
        "client clock",
        CheckStatus::Warning,
        format!("is {apart} s away from the server's"),
        "synchronise both machines' clocks (NTP)",
    )
}

/// The report for people.
fn text(report: &Report, out: &Out) -> String {
    let mut lines = vec![];
    if let Some(system) = &report.server {
        lines.push(format!(
            "Perennial {}, installation {}, data in {}",
            clean(&system.version),
            clean(&system.installation),
            clean(&system.data_dir)
        ));
        if let Some(engine) = &system.engine {
            let runtimes: Vec<String> = engine
                .runtimes
                .iter()
                .map(|runtime| {
                    let default = if runtime.name == engine.default_runtime { " (default)" } else { "" };
                    format!("{}{default}", clean(&runtime.name))
                })
                .collect();
            lines.push(format!("Pods run on {}, runtimes: {}", clean(&engine.version), runtimes.join(", ")));
        }
        lines.push(String::new());
    }
    let width = report.checks().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in report.checks() {
        let word = match check.status {
            CheckStatus::Ok => out.paint(Colour::Green, "ok     "),
            CheckStatus::Warning => out.paint(Colour::Yellow, "warning"),
            CheckStatus::Failed => out.paint(Colour::Red, "BROKEN "),
        };
        lines.push(format!("{word}  {:width$}  {}", clean(&check.name), clean(&check.message)));
        if let Some(hint) = &check.hint {
            lines.push(format!("         {:width$}  hint: {}", "", clean(hint)));
        }
    }
    lines.join("\n")
}
