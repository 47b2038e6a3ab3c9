//! `perennial admin`: all pods, the database against the engine, and what people were told.

use clap::{Args, Subcommand};

use super::args::WaitArgs;
use super::confirm::Consent;
use super::failure::{Exit, Failure};
use super::human::{ago, maybe_ago};
use super::out::{Colour, Out, clean};
use super::session::Context;
use super::table::Rows;
use super::target::{self, Among};
use super::{pod, values};
use crate::api::wire::{
    AdminAction, AdminActionRequest, AdminPod, CleanupItem, CleanupReport, CleanupRequest, CleanupStep, DebugPod,
    DebugReport, Delivery, DeliveryState, FileSystem, OrphanThing, PodOperation,
};
use crate::size::size;

/// What administrators do.
#[derive(Debug, Clone, Subcommand)]
pub enum AdminCommand {
    /// Lists pods of all tenants, archived and deleted ones too.
    Pods {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Compares the database with the engine: what differs, and what belongs to no pod.
    ///
    /// Nothing is done about it. Ends with 4 when something differs or belongs to no pod.
    Debug {
        /// Show pods of which nothing differs, too
        #[arg(long, short)]
        all: bool,
    },
    /// Says what a clean-up of orphans would do, or carries out exactly that.
    ///
    /// A pod on the engine that is in no database is first quarantined, and can be deleted a week later. Nothing of that happens by
    /// itself. Without --execute nothing is done.
    CleanupOrphaned {
        /// Only this pod, by its id; may be given several times
        #[arg(long = "pod", value_name = "ID")]
        pods: Vec<String>,
        /// Carry out this plan, which the same command told before
        #[arg(long, value_name = "PLAN")]
        execute: Option<String>,
    },
    /// Does something with somebody's pod; its owners are written to when it is reset.
    Act(ActArgs),
    /// Lists what people and programs were told.
    Deliveries {
        /// Only in this state: pending, sent or failed
        #[arg(long, value_parser = values::delivery_state)]
        state: Option<DeliveryState>,
    },
}

/// Something that is done with somebody's pod.
#[derive(Debug, Clone, Args)]
pub struct ActArgs {
    /// The pod's name or id.
    pub pod: String,
    /// restart, start, stop, reset or delete.
    #[arg(value_parser = values::admin_action)]
    pub action: AdminAction,
    /// Do not ask for a confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Say what reset or delete would do, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Runs `admin`.
pub async fn run(context: &mut Context<'_>, command: AdminCommand) -> Result<(), Failure> {
    match command {
        AdminCommand::Pods { tenant } => {
            let query: Vec<(&str, &str)> = tenant.iter().map(|tenant| ("tenant", tenant.as_str())).collect();
            let found: Vec<AdminPod> = context.client.list(&["admin", "pods"], &query).await?;
            context.show(&found, |found, out, now| {
                let mut rows = Rows::new(&["NAME", "TENANT", "PHASE", "PLAN", "SUBSCRIPTION", "ID", "AGE"]);
                for one in found {
                    rows.row(
                        None,
                        [
                            one.name.clone(),
                            one.tenant.clone(),
                            one.phase.to_string(),
                            one.plan.clone().unwrap_or_default(),
                            one.subscription_state.map_or_else(String::new, |state| state.to_string()),
                            one.id.clone(),
                            ago(one.created_at, now),
                        ],
                    );
                }
                rows.render(out)
            })
        }
        AdminCommand::Debug { all } => debug(context, all).await,
        AdminCommand::CleanupOrphaned { pods, execute } => {
            clean_up(context, CleanupRequest { pods, plan: execute }).await
        }
        AdminCommand::Act(args) => act(context, args).await,
        AdminCommand::Deliveries { state } => {
            let query: Vec<(&str, &str)> = state.iter().map(|state| ("state", state.as_str())).collect();
            let found: Vec<Delivery> = context.client.list(&["admin", "deliveries"], &query).await?;
            context.show(&found, |found, out, now| {
                let mut rows = Rows::new(&["STATE", "TYPE", "TO", "TENANT", "TRIES", "NEXT", "AGE", "PROBLEM"]);
                for one in found {
                    let colour = match one.state {
                        DeliveryState::Pending => Some(Colour::Yellow),
                        DeliveryState::Failed => Some(Colour::Red),
                        DeliveryState::Sent => None,
                    };
                    rows.row(
                        colour,
                        [
                            one.state.to_string(),
                            one.kind.clone(),
                            one.target.clone(),
                            one.tenant.clone(),
                            one.tries.to_string(),
                            maybe_ago(one.next_at, now),
                            ago(one.created_at, now),
                            one.problem.clone().unwrap_or_default(),
                        ],
                    );
                }
                rows.render(out)
            })
        }
    }
}

async fn debug(context: &mut Context<'_>, all: bool) -> Result<(), Failure> {
    let report: DebugReport = context.client.get(&["admin", "pods", "debug"], &[]).await?;
    context.show(&report, |report, out, _| told(report, all, out))?;
    let different = report.pods.iter().filter(|pod| !pod.differences.is_empty()).count();
    if different == 0 && report.orphans.is_empty() {
        return Ok(());
    }
    let message = format!("{different} pods differ, and {} things belong to no pod", report.orphans.len());
    let hint = "a pod that is being worked on differs for a moment; look again, and at perennial pod status";
    Err(Failure::new(Exit::Conflict, message, hint))
}

fn told(report: &DebugReport, all: bool, out: &Out) -> String {
    let mut rows = Rows::new(&["NAME", "TENANT", "PHASE", "CONTAINER", "SETS", "USED", "OF", "DIFFERENCES"]);
    for pod in report.pods.iter().filter(|pod| all || !pod.differences.is_empty()) {
        let colour = (!pod.differences.is_empty()).then_some(Colour::Yellow);
        let container = pod.container.as_deref().map_or("-", super::view::short);
        let cells = [
            pod.name.clone(),
            pod.tenant.clone(),
            pod.phase.to_string(),
            container.to_owned(),
            sets(pod),
            pod.used_bytes.map_or_else(|| "-".to_owned(), size),
            pod.disk.map_or_else(|| "-".to_owned(), size),
            pod.differences.join("; "),
        ];
        rows.row(colour, cells);
    }
    let mut lines = vec![rows.render(out)];
    if !report.orphans.is_empty() {
        lines.push("Belongs to no pod:".to_owned());
        lines.extend(report.orphans.iter().map(|orphan| format!("  {}", thing(orphan))));
    }
    lines.extend(report.suspicion.iter().map(|text| format!("Beware: {}", clean(text))));
    lines.extend(report.file_systems.iter().map(disk));
    lines.push(format!("{} pods compared; nothing was done.", report.pods.len()));
    lines.join("\n")
}

fn disk(found: &FileSystem) -> String {
    let space = match (found.free_bytes, found.total_bytes) {
        (Some(free), Some(total)) => format!("{} of {} free", size(free), size(total)),
        _ => clean(found.problem.as_deref().unwrap_or("nobody can tell what is free")).to_string(),
    };
    format!("{}: {space} at {}", clean(&found.uses.join(", ")), clean(&found.path))
}

fn sets(pod: &DebugPod) -> String {
    let one = |set: &crate::api::wire::DebugSet| {
        let recorded = set.recorded.map_or("unknown", |recorded| recorded.as_str());
        format!("{}: {recorded}{}", set.number, if set.found { "" } else { ", not there" })
    };
    pod.sets.iter().map(one).collect::<Vec<_>>().join(" | ")
}

fn thing(orphan: &OrphanThing) -> String {
    format!("{} of pod {}", part(orphan), clean(&orphan.pod))
}

fn part(orphan: &OrphanThing) -> String {
    match (&orphan.container, orphan.set) {
        (Some(container), _) => format!("container {}", clean(super::view::short(container))),
        (None, Some(set)) => format!("volume set {set}"),
        (None, None) => "something".to_owned(),
    }
}

async fn clean_up(context: &mut Context<'_>, request: CleanupRequest) -> Result<(), Failure> {
    let path = ["admin", "pods", "cleanup-orphaned"];
    let report: CleanupReport = context.client.post(&path, Some(&request)).await?;
    context.show(&report, |report, out, now| {
        let mut rows = Rows::new(&["POD", "ON THE ENGINE", "SEEN", "KEPT UNTIL", "STEP", "WHY"]);
        for item in &report.items {
            let colour = match (&item.problem, item.step) {
                (Some(_), _) => Some(Colour::Red),
                (None, CleanupStep::Keep) => None,
                (None, CleanupStep::Quarantine | CleanupStep::Delete) => Some(Colour::Yellow),
            };
            rows.row(colour, row(item, now));
        }
        let mut lines = vec![rows.render(out)];
        lines.extend(report.halted.iter().map(|why| format!("Beware: {}", clean(why))));
        let is_empty = report.items.iter().all(|item| item.step == CleanupStep::Keep);
        lines.push(match (report.done, &report.halted) {
            (true, _) => "Done.".to_owned(),
            (false, None) if is_empty => "Nothing is to be done.".to_owned(),
            (false, Some(_)) => "Nothing was done.".to_owned(),
            (false, None) => format!("Nothing was done. To carry this out: --execute {}", clean(&report.plan)),
        });
        lines.join("\n")
    })?;
    let failed = report.items.iter().filter(|item| item.problem.is_some()).count();
    if failed == 0 {
        return Ok(());
    }
    let hint = "the table says why; ask for the plan once more";
    Err(Failure::new(Exit::Conflict, format!("{failed} of {} were not cleaned up", report.items.len()), hint))
}

fn row(item: &CleanupItem, now: jiff::Timestamp) -> [String; 6] {
    let things: Vec<String> = item.things.iter().map(part).collect();
    [
        clean(&item.pod).to_string(),
        things.join(", "),
        ago(item.first_seen_at, now),
        item.kept_until.map_or_else(|| "-".to_owned(), |until| until.strftime("%F %R").to_string()),
        item.step.to_string(),
        item.problem.clone().unwrap_or_else(|| item.reason.clone()),
    ]
}

async fn act(context: &mut Context<'_>, args: ActArgs) -> Result<(), Failure> {
    let of = target::pod(&context.client, &args.pod, Among::Living).await?;
    let destroys = matches!(args.action, AdminAction::Reset | AdminAction::Delete);
    if args.dry_run && !destroys {
        return Err(Failure::usage("--dry-run is for reset and delete", "leave it out"));
    }
    if destroys {
        let consent = Consent::from_options(args.yes, args.dry_run);
        if pod::plan_of(context, &of, args.action).confirm(consent, context)? == super::confirm::Verdict::Shown {
            return Ok(());
        }
    }
    let body = AdminActionRequest { action: args.action, confirm: destroys.then(|| of.name.clone()) };
    let answer: PodOperation = context.client.post(&["admin", "pods", &of.id, "action"], Some(&body)).await?;
    pod::follow(context, answer, args.wait).await
}
