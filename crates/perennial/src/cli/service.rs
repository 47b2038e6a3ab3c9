//! `perennial service`: the catalogue, and files that are to become part of it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;
use serde::Serialize;

use super::args::{Output, ServiceCommand};
use super::failure::{Exit, Failure};
use super::human::{instant, maybe_size};
use super::out::{Colour, Out, clean};
use super::session::{Context, show};
use super::table::{Facts, Rows};
use crate::api::services::mistake;
use crate::api::wire::{Mistake, Plan, Service, ServiceList, ServiceProfile, ServiceRemoved, ServiceSource};
use crate::catalogue::{read_json, read_toml, revision, write_toml};

/// Runs `service`, except for `service validate`.
pub async fn run(context: &mut Context<'_>, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Ls => {
            let services: ServiceList = context.client.get(&["services"], &[]).await?;
            context.show(&services, |services, out, _| list(services, out))
        }
        ServiceCommand::Show { service, toml } => {
            let service: Service = context.client.get(&["services", &service], &[]).await?;
            if toml {
                as_toml(context, &service)
            } else {
                context.show(&service, |service, out, _| facts(service, out))
            }
        }
        ServiceCommand::Apply { files, if_match } => apply(context, &files, if_match.as_deref()).await,
        ServiceCommand::Rm { service, if_match } => {
            let matching = if_match.as_deref().map(etag).transpose()?;
            let removed: ServiceRemoved = context.client.remove(&["services", &service], matching).await?;
            context.show(&removed, |removed, _, _| told(removed))
        }
        ServiceCommand::Validate { files } => validate(&files, context.session.output, context.out),
    }
}

/// A revision as `If-Match` has it.
fn etag(revision: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(&format!("\"{}\"", revision.trim_matches('"')))
        .map_err(|_| Failure::usage("that is no revision", "`perennial service show` tells it"))
}

/// What became of one file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Validated {
    /// Its path.
    file: String,
    /// Whether nothing is wrong with it.
    valid: bool,
    /// The service it describes; null when something is wrong.
    service: Option<String>,
    /// Its plans.
    plans: Vec<String>,
    /// Names the definition; null when something is wrong.
    revision: Option<String>,
    /// Everything that is wrong.
    mistakes: Vec<Mistake>,
}

/// Looks at files without a server, and tells everything that is wrong with each.
///
/// # Errors
/// With the exit code of the worst: a file that is refused, one that is not there, one that cannot be read.
pub fn validate(files: &[PathBuf], output: Output, out: &mut Out) -> Result<(), Failure> {
    let mut reports = Vec::new();
    let mut unread = None;
    for file in files {
        match look(file) {
            Ok((report, _)) => reports.push(report),
            Err(failure) => {
                // Told at once, so that no other file's report hides it.
                out.failure(&failure);
                unread = Some(unread.filter(|exit| *exit == Exit::NotFound).unwrap_or(failure.exit));
            }
        }
    }
    if output != Output::Table || !reports.is_empty() {
        show(output, out, &reports, |reports, _| reports.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    }
    let refused = reports.iter().filter(|report| !report.valid).count();
    if refused > 0 {
        let message =
            if output == Output::Table { format!("{refused} of {} files refused", files.len()) } else { String::new() };
        return Err(Failure::new(Exit::Invalid, message, ""));
    }
    match unread {
        // Its reason was told above.
        Some(exit) => Err(Failure::new(exit, "", "")),
        None => Ok(()),
    }
}

/// Reads one file: what became of it, and its text.
fn look(file: &Path) -> Result<(Validated, String), Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("{}: {error}", file.display()), "name TOML files, or JSON files that end with .json")
    })?;
    let read = if is_json(file) { read_json(text.as_bytes()) } else { read_toml(&text) };
    let file = file.display().to_string();
    let report = match read {
        Ok(service) => Validated {
            file,
            valid: true,
            service: Some(service.name.to_string()),
            plans: service.plans.iter().map(|plan| plan.name.to_string()).collect(),
            revision: Some(revision(&service)),
            mistakes: Vec::new(),
        },
        Err(mistakes) => Validated {
            file,
            valid: false,
            service: None,
            plans: Vec::new(),
            revision: None,
            mistakes: mistakes.iter().map(mistake).collect(),
        },
    };
    Ok((report, text))
}

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// `FILE:LINE:COLUMN: FIELD: PROBLEM`, as compilers tell it, so that editors find the place.
fn text(report: &Validated) -> String {
    let file = clean(&report.file);
    if report.valid {
        let service = clean(report.service.as_deref().unwrap_or_default());
        return format!("{file}: service {service} is good ({})", clean(&report.plans.join(", ")));
    }
    let line = |mistake: &Mistake| {
        let mut text = file.clone();
        for place in [mistake.line, mistake.column].into_iter().flatten() {
            let _ = write!(text, ":{place}");
        }
        for part in mistake.field.iter().chain([&mistake.problem]) {
            let _ = write!(text, ": {}", clean(part));
        }
        if let Some(hint) = &mistake.hint {
            let _ = write!(text, "\n    {}", clean(hint));
        }
        text
    };
    report.mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Sends files to the server, after all of them were looked at.
async fn apply(context: &mut Context<'_>, files: &[PathBuf], if_match: Option<&str>) -> Result<(), Failure> {
    let matching = if_match.map(etag).transpose()?;
    let looked = files.iter().map(|file| look(file)).collect::<Result<Vec<_>, _>>()?;
    if looked.iter().any(|(report, _)| !report.valid) {
        let reports = looked.iter().filter(|(report, _)| !report.valid).map(|(report, _)| text(report));
        let message = format!("nothing was sent:\n{}", reports.collect::<Vec<_>>().join("\n"));
        return Err(Failure::new(Exit::Invalid, message, "see all of it with: perennial service validate FILE"));
    }
    let mut applied: Vec<Service> = Vec::new();
    for (file, (report, text)) in files.iter().zip(looked) {
        let media = if is_json(file) { "application/json" } else { "application/toml" };
        let name = report.service.unwrap_or_default();
        let sent = context.client.replace(&["services", &name], matching.clone(), (media, text)).await;
        applied.push(
            sent.map_err(|failure| Failure { message: format!("{}: {}", file.display(), failure.message), ..failure })?,
        );
    }
    context.show(&applied, |applied, _, _| {
        let line =
            |service: &Service| format!("service {} is at revision {}", clean(&service.name), clean(&service.revision));
        applied.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// Prints a service as a file that `service apply` takes.
fn as_toml(context: &mut Context<'_>, service: &Service) -> Result<(), Failure> {
    let Some(definition) = &service.definition else {
        return Err(Failure::new(Exit::Forbidden, "only administrators see definitions", ""));
    };
    let json =
        serde_json::to_vec(definition).map_err(|error| Failure::internal(format!("write the definition: {error}")))?;
    match read_json(&json) {
        Ok(service) => context.out.line(write_toml(&service).trim_end()),
        Err(_) => {
            Err(Failure::internal("the server's definition is not understood: perennial doctor compares versions"))
        }
    }
}

const fn source(source: ServiceSource) -> &'static str {
    match source {
        ServiceSource::Shipped => "shipped",
        ServiceSource::File => "file",
        ServiceSource::Database => "database",
    }
}

fn list(services: &ServiceList, out: &Out) -> String {
    let mut rows = Rows::new(&["SERVICE", "TITLE", "PLANS", "SOURCE", "REVISION"]);
    for service in &services.items {
        let is_refused = service.conditions.iter().any(|condition| condition.kind == "FileRefused");
        rows.row(
            is_refused.then_some(Colour::Yellow),
            [
                service.name.clone(),
                service.title.clone(),
                service.plans.iter().map(|plan| plan.name.as_str()).collect::<Vec<_>>().join(", "),
                source(service.source).to_owned(),
                service.revision.clone(),
            ],
        );
    }
    let mut text = if services.items.is_empty() { "no services".to_owned() } else { rows.render(out) };
    for condition in services.items.iter().flat_map(|service| &service.conditions).chain(&services.conditions) {
        let _ = write!(text, "\n{}: {}", clean(&condition.kind), clean(&condition.message));
    }
    text
}

fn persists(plan: &Plan) -> String {
    if plan.profile == ServiceProfile::Universal {
        return "everything".to_owned();
    }
    let volume = |volume: &crate::api::wire::PlanVolume| match &volume.size {
        Some(size) => format!("{} {size}", volume.mount_path),
        None => volume.mount_path.clone(),
    };
    let volumes: Vec<String> = plan.volumes.iter().map(volume).collect();
    if volumes.is_empty() { "nothing".to_owned() } else { volumes.join(", ") }
}

fn facts(service: &Service, out: &Out) -> String {
    let mut facts = Facts::default();
    facts
        .fact("name", &service.name)
        .fact("title", &service.title)
        .fact("revision", &service.revision)
        .fact("source", source(service.source))
        .maybe("file", service.file.as_deref())
        .maybe("changed by", service.changed_by.as_deref())
        .maybe("changed at", service.changed_at.map(instant));
    let mut text = facts.render(out);
    if !service.description.is_empty() {
        let lines: Vec<String> = service.description.trim().lines().map(clean).collect();
        let _ = write!(text, "\n\n{}", lines.join("\n"));
    }
    let mut rows = Rows::new(&["PLAN", "TITLE", "PERSISTS", "CPUS", "MEMORY", "RESERVED", "DISK", "IMAGE"]);
    for plan in &service.plans {
        #[expect(clippy::cast_precision_loss, reason = "at most 1e15, below 2^53")]
        let cpus = plan.cpus.map_or_else(|| "-".to_owned(), |cpus| (cpus.nano as f64 / 1e9).to_string());
        rows.row(
            None,
            [
                plan.name.clone(),
                plan.title.clone(),
                persists(plan),
                cpus,
                maybe_size(plan.memory),
                maybe_size(plan.memory_reservation),
                maybe_size(plan.disk),
                plan.image.clone(),
            ],
        );
    }
    let _ = write!(text, "\n\n{}", rows.render(out));
    for condition in &service.conditions {
        let _ = write!(text, "\n{}: {}", clean(&condition.kind), clean(&condition.message));
    }
    text
}

fn told(removed: &ServiceRemoved) -> String {
    let name = clean(&removed.name);
    match &removed.service {
        Some(service) => {
            let from = service.file.as_deref().map_or_else(|| "what is shipped".to_owned(), clean);
            format!("service {name} is removed from the database; {from} is in force again")
        }
        None => format!("service {name} is removed"),
    }
}
