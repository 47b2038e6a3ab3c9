//! Schedules and rules as they are typed, and what a forget says.

use clap::{Args, ValueEnum};

use super::args::ForgetArgs;
use super::failure::Failure;
use super::human::{ago, maybe_size};
use super::out::{Colour, Out};
use super::session::Context;
use super::table::Rows;
use super::target::{self, Among};
use crate::api::wire::{Age, Fate, ForgetRequest, Forgetting, Keep, SnapshotRules};

/// How many snapshots are kept.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Retention")]
pub struct KeepArgs {
    /// Keep the newest so many
    #[arg(long, value_name = "NUMBER")]
    pub keep_last: Option<u32>,
    /// Keep the newest of each of the last so many hours that have one
    #[arg(long, value_name = "NUMBER")]
    pub keep_hourly: Option<u32>,
    /// Keep the newest of each of the last so many days that have one
    #[arg(long, value_name = "NUMBER")]
    pub keep_daily: Option<u32>,
    /// The same for weeks
    #[arg(long, value_name = "NUMBER")]
    pub keep_weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "NUMBER")]
    pub keep_monthly: Option<u32>,
    /// The same for years
    #[arg(long, value_name = "NUMBER")]
    pub keep_yearly: Option<u32>,
    /// Keep all that are at most this much older than the newest, such as 30d
    #[arg(long, value_parser = Age::parse, value_name = "TIME")]
    pub keep_within: Option<Age>,
    /// Never keep fewer verified ones than this
    #[arg(long, value_name = "NUMBER")]
    pub keep_minimum: Option<u32>,
    /// Whether snapshots that somebody asked for stay until they are deleted by hand, or rotate like scheduled ones
    #[arg(long, value_enum, value_name = "WHICH")]
    pub keep_manual: Option<ManualOnes>,
}

/// What becomes of snapshots that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ManualOnes {
    /// They stay until they are deleted by hand.
    Keep,
    /// They count as scheduled ones.
    Rotate,
}

impl KeepArgs {
    /// What is typed over what there is; `None` when nothing is typed.
    pub fn over(&self, present: Option<Keep>) -> Option<Keep> {
        let base = present.unwrap_or_default();
        let merged = Keep {
            last: self.keep_last.unwrap_or(base.last),
            hourly: self.keep_hourly.unwrap_or(base.hourly),
            daily: self.keep_daily.unwrap_or(base.daily),
            weekly: self.keep_weekly.unwrap_or(base.weekly),
            monthly: self.keep_monthly.unwrap_or(base.monthly),
            yearly: self.keep_yearly.unwrap_or(base.yearly),
            within: self.keep_within.or(base.within),
            minimum: self.keep_minimum.unwrap_or(base.minimum),
            manual: self.keep_manual.map_or(base.manual, |manual| manual == ManualOnes::Rotate),
        };
        let numbers = [
            self.keep_last,
            self.keep_hourly,
            self.keep_daily,
            self.keep_weekly,
            self.keep_monthly,
            self.keep_yearly,
            self.keep_minimum,
        ];
        let typed = numbers.iter().any(Option::is_some) || self.keep_within.is_some() || self.keep_manual.is_some();
        typed.then_some(merged)
    }
}

/// When a pod's snapshots are taken and which are kept.
#[derive(Debug, Clone, Default, Args)]
pub struct RulesArgs {
    /// When snapshots are taken: minute, hour, day of month, month, day of week, such as "0 3 * * *"; or off
    #[arg(long, value_name = "CRON")]
    pub schedule: Option<String>,
    /// The time zone of the schedule, and of days and months, such as Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
    /// Which are kept.
    #[command(flatten)]
    pub keep: KeepArgs,
}

impl RulesArgs {
    /// What is typed over what there is; `None` when nothing is typed.
    pub fn over(&self, present: &SnapshotRules) -> Option<SnapshotRules> {
        let merged = SnapshotRules {
            schedule: self.schedule.clone().or_else(|| present.schedule.clone()),
            time_zone: self.time_zone.clone().or_else(|| present.time_zone.clone()),
            keep: self.keep.over(present.keep).or(present.keep),
        };
        let typed = self.schedule.is_some() || self.time_zone.is_some() || self.keep.over(None).is_some();
        typed.then_some(merged)
    }
}

/// What the rules say, for people; `None` where the installation's hold.
pub fn described(rules: &SnapshotRules) -> Option<String> {
    let mut parts = Vec::new();
    parts.extend(rules.schedule.as_ref().map(|text| format!("schedule {text}")));
    parts.extend(rules.time_zone.clone());
    parts.extend(rules.keep.as_ref().map(keep_described));
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn keep_described(keep: &Keep) -> String {
    let numbers = [
        ("last", keep.last),
        ("hourly", keep.hourly),
        ("daily", keep.daily),
        ("weekly", keep.weekly),
        ("monthly", keep.monthly),
        ("yearly", keep.yearly),
        ("minimum", keep.minimum),
    ];
    let mut parts: Vec<String> =
        numbers.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} {name}")).collect();
    parts.extend(keep.within.map(|age| format!("within {age}")));
    if parts.is_empty() { "keep everything".to_owned() } else { format!("keep {}", parts.join(", ")) }
}

/// Runs `snapshot forget`.
pub async fn forget(context: &mut Context<'_>, args: &ForgetArgs) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::All).await?;
    let path = ["pods", pod.id.as_str(), "snapshots", "forget"];
    let keep = args.keep.over(None);
    let dry = ForgetRequest { dry_run: true, keep, confirm: None };
    let plan: Forgetting = context.client.post(&path, Some(&dry)).await?;
    let going = plan.decisions.iter().filter(|d| d.action == Fate::Forget).count();
    if args.dry_run || going == 0 {
        return context.show(&plan, told);
    }
    if !args.yes {
        let text = told(&plan, context.out, context.now());
        confirm(context, &format!("{text}\n\nThese {going} snapshots will be gone for good."), pod.name.as_str())?;
    }
    let request = ForgetRequest { dry_run: false, keep, confirm: Some(pod.name) };
    let done: Forgetting = context.client.post(&path, Some(&request)).await?;
    context.show(&done, told)
}

fn confirm(context: &mut Context<'_>, text: &str, name: &str) -> Result<(), Failure> {
    if !context.out.is_interactive() {
        let message = "forget needs a confirmation, and there is no terminal to ask on: nothing was done";
        return Err(Failure::usage(message, "see what it does with --dry-run, then confirm with --yes"));
    }
    context.out.note(text);
    match context.out.ask(&format!("\nType the pod's name to go on ({name}): ")) {
        Some(answer) if answer == name => Ok(()),
        _ => Err(Failure::usage("not confirmed: nothing was done", "")),
    }
}

fn told(answer: &Forgetting, out: &Out, now: jiff::Timestamp) -> String {
    if answer.decisions.is_empty() {
        return "no snapshots".to_owned();
    }
    let mut rows = Rows::new(&["ID", "KIND", "STATE", "SIZE", "CREATED", "ACTION", "WHY"]);
    for decision in &answer.decisions {
        let snapshot = &decision.snapshot;
        let (colour, action) = match decision.action {
            Fate::Keep => (None, "keep"),
            Fate::Forget => (Some(Colour::Red), "forget"),
        };
        rows.row(
            colour,
            [
                snapshot.id.clone(),
                snapshot.kind.to_string(),
                snapshot.state.to_string(),
                maybe_size(snapshot.bytes),
                ago(snapshot.created_at, now),
                action.to_owned(),
                decision.reasons.join("; "),
            ],
        );
    }
    let going = answer.decisions.iter().filter(|d| d.action == Fate::Forget).count();
    let rules = keep_described(&answer.keep);
    let end = match (answer.dry_run, going, answer.operations.len()) {
        (_, 0, _) => "nothing goes".to_owned(),
        (true, going, _) => format!("{going} would go. Nothing was done."),
        (false, going, begun) if begun < going => {
            format!("{begun} of {going} are being deleted; run it again for the rest")
        }
        (false, going, _) => format!("{going} are being deleted"),
    };
    format!("{}\n\n{rules} ({}): {end}", rows.render(out), answer.time_zone)
}
