//! `perennial audit`: who changed what, whether that is what was written, and all of it as lines of JSON.
//!
//! To verify, the hashes are computed here, from what the server shows or what is in its database: a server's own word would
//! prove nothing.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::args::Connection;
use super::failure::{Exit, Failure};
use super::human::{instant, parse_duration};
use super::out::{Out, clean};
use super::session::{self, Context};
use super::target::{self, Among};
use crate::api::wire::{AuditPage, AuditRow};
use crate::audit::{Broken, Checker, Head, Link, Numbered};
use crate::causes::describe;
use crate::config::{Config, ServeArgs};
use crate::store::{AuditFilter, Store, StoreError};

/// Rows read at a time.
const PAGE: u32 = 1000;

/// What to do with the audit.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// Lists the newest rows.
    Ls {
        /// Which.
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many
        #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 50)]
        last: usize,
    },
    /// Proves that no row was changed, removed or inserted, and prints the head.
    ///
    /// Keep what it prints somewhere else: with --head it shows later that everything up to there is still as it was.
    Verify(VerifyArgs),
    /// Prints the rows, oldest first, each as a line of JSON.
    Export {
        /// Which.
        #[command(flatten)]
        filter: FilterArgs,
    },
}

/// Which rows.
#[derive(Debug, Clone, Args)]
pub struct FilterArgs {
    /// Only this tenant's
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Only of this pod: its name or id
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// Only what this one did
    #[arg(long, value_name = "ACTOR")]
    pub actor: Option<String>,
    /// Only since then: a time, or how long ago, such as 7d
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
}

/// Arguments of `audit verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// A head that was kept: it has to be the hash of a row
    #[arg(long, value_name = "HASH", value_parser = head)]
    pub head: Option<Link>,
    /// Read the database of the data directory (--data-dir) instead of asking a server
    #[arg(long)]
    pub offline: bool,
    /// The server's configuration, for --offline; without it perennial.toml in the data directory
    #[arg(long, env = "PERENNIAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

fn head(text: &str) -> Result<Link, String> {
    if text.is_empty() { Err("write the 64 hexadecimal digits of a row's hash".to_owned()) } else { Link::parse(text) }
}

/// What a verification found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    rows: i64,
    head: String,
}

/// Runs `audit` on a server.
pub async fn run(context: &mut Context<'_>, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Ls { filter, last } => list(context, &filter, last).await,
        AuditCommand::Export { filter } => export(context, &filter).await,
        AuditCommand::Verify(args) => {
            let mut walk = Walk::new(args.head);
            loop {
                let after = walk.after.to_string();
                let page: AuditPage = pages(context, &[("after", &after)]).await?;
                let unreadable = |problem: String| Failure::internal(format!("the server shows no hash: {problem}"));
                let head = page.head.try_into().map_err(unreadable)?;
                let rows = page.items.into_iter().map(Numbered::try_from).collect::<Result<Vec<_>, _>>();
                if let Some(verified) = walk.step(head, &rows.map_err(unreadable)?)? {
                    return context.show(&verified, |verified, _, _| told(verified));
                }
            }
        }
    }
}

/// Verifies the audit in a database, whether a server uses it or not.
///
/// # Errors
/// What is wrong with it, or why it could not be read.
pub async fn verify_offline(connection: &Connection, args: &VerifyArgs, out: &mut Out) -> Result<(), Failure> {
    let places = ServeArgs { config: args.config.clone(), ..ServeArgs::default() };
    let config = Config::load(&places, connection.data_dir.as_deref())
        .map_err(|error| Failure::new(Exit::Invalid, error.to_string(), error.hint()))?;
    let unread = |error: StoreError| {
        let hint =
            "--data-dir names the data directory; a database of before the audit gets one when the server starts";
        Failure::new(Exit::Failed, format!("the audit cannot be read: {}", describe(&error)), hint)
    };
    let store = Store::look_at(&config.database).await.map_err(unread)?;
    let mut walk = Walk::new(args.head);
    let verified = loop {
        let head = store.audit_head().await.map_err(unread)?;
        let rows = store.audit_list(walk.after, &AuditFilter::default(), PAGE).await.map_err(unread)?;
        if let Some(verified) = walk.step(head, &rows)? {
            break verified;
        }
    };
    store.close().await;
    session::show(connection.output, out, &verified, |verified, _| told(verified))
}

fn told(verified: &Verified) -> String {
    format!("{} rows are as they were written; the head is\n{}", verified.rows, verified.head)
}

/// A walk through all rows, page by page.
struct Walk {
    checker: Checker,
    after: i64,
}

impl Walk {
    fn new(kept: Option<Link>) -> Self {
        Self { checker: Checker::new(kept), after: 0 }
    }

    /// Takes the next page in, with a head that was read before its rows; answers at the end.
    fn step(&mut self, head: Head, rows: &[Numbered]) -> Result<Option<Verified>, Failure> {
        for row in rows {
            self.checker.next(row).map_err(|broken| failure(&broken))?;
            self.after = row.number;
        }
        if !rows.is_empty() {
            return Ok(None);
        }
        // No row came since the head was read, so that the last one seen is the head.
        let checker = std::mem::replace(&mut self.checker, Checker::new(None));
        let head = checker.end(head).map_err(|broken| failure(&broken))?;
        Ok(Some(Verified { rows: head.number, head: head.link.to_string() }))
    }
}

fn failure(broken: &Broken) -> Failure {
    let hint = "compare with a backup of the database, or an export (perennial audit export), of before";
    Failure::new(Exit::Failed, format!("the audit is broken: {broken}"), hint)
}

async fn query(context: &Context<'_>, filter: &FilterArgs) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut query = Vec::new();
    query.extend(filter.tenant.clone().map(|tenant| ("tenant", tenant)));
    query.extend(filter.actor.clone().map(|actor| ("actor", actor)));
    if let Some(text) = &filter.pod {
        query.push(("pod", target::pod(&context.client, text, Among::All).await?.id));
    }
    if let Some(text) = &filter.since {
        query.push(("since", since(text, (context.session.now)())?.to_string()));
    }
    Ok(query)
}

fn since(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let ago = parse_duration(text).ok().and_then(|ago| now.checked_sub(ago).ok());
    ago.ok_or_else(|| Failure::usage(format!("--since: {text:?} is no time"), "write 2026-01-31T12:00:00Z, or 7d"))
}

async fn pages(context: &Context<'_>, query: &[(&str, &str)]) -> Result<AuditPage, Failure> {
    let limit = PAGE.to_string();
    let query = [query, &[("limit", limit.as_str())]].concat();
    context.client.get(&["admin", "audit"], &query).await
}

async fn each(
    context: &mut Context<'_>,
    filter: &FilterArgs,
    mut row: impl FnMut(&mut Context<'_>, AuditRow) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let filter = query(context, filter).await?;
    let mut after = "0".to_owned();
    loop {
        let mut query: Vec<(&str, &str)> = filter.iter().map(|(name, value)| (*name, value.as_str())).collect();
        query.push(("after", &after));
        let page = pages(context, &query).await?;
        for item in page.items {
            row(context, item)?;
        }
        match page.next {
            // A cursor that does not move would be asked for ever.
            Some(next) if next != after => after = next,
            _ => return Ok(()),
        }
    }
}

async fn list(context: &mut Context<'_>, filter: &FilterArgs, last: usize) -> Result<(), Failure> {
    let mut rows = std::collections::VecDeque::new();
    each(context, filter, |_, row| {
        rows.push_back(row);
        if rows.len() > last {
            rows.pop_front();
        }
        Ok(())
    })
    .await?;
    let rows: Vec<AuditRow> = rows.into();
    context.show(&rows, |rows, _, _| match rows.as_slice() {
        [] => "nothing was changed yet".to_owned(),
        rows => rows.iter().map(line).collect::<Vec<_>>().join("\n"),
    })
}

async fn export(context: &mut Context<'_>, filter: &FilterArgs) -> Result<(), Failure> {
    each(context, filter, |context, row| {
        let text = serde_json::to_string(&row).map_err(|error| Failure::internal(format!("write a row: {error}")))?;
        context.out.line(&text)
    })
    .await
}

/// One row for people.
fn line(row: &AuditRow) -> String {
    let at = row.at.parse::<Timestamp>().map_or_else(|_| clean(&row.at), instant);
    let mut line =
        format!("{at}  {:>6}  {:<9}  {}: {}", row.number, clean(&row.result), clean(&row.action), clean(&row.message));
    line.push_str(&format!("  by {}", clean(&row.actor)));
    let named = [("pod", &row.pod_id), ("request", &row.request_id), ("code", &row.code)];
    for (name, value) in named {
        line.extend(value.as_ref().map(|value| format!("  {name} {}", clean(value))));
    }
    for (name, document) in [("before", &row.before), ("after", &row.after)] {
        line.extend(document.as_ref().map(|document| format!("\n    {name} {}", clean(&document.to_string()))));
    }
    line
}
