//! `perennial subscribe` and `perennial subscription`: rights to pods of plans.

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::SubscriptionId;

use super::args::{RenewArgs, SubscribeArgs, SubscriptionCommand, WaitArgs};
use super::client::Client;
use super::failure::{Exit, Failure};
use super::human::{ago, instant, parse_duration};
use super::out::{Colour, Out, clean};
use super::session::Context;
use super::table::{Facts, Rows};
use super::target::{self, Among};
use super::{pod, wait};
use crate::api::wire::{
    ChangePlan, CreateSubscription, RenewSubscription, Subscription, SubscriptionOperation, SubscriptionState,
};

/// No body at all.
const NOTHING: Option<&()> = None;

/// Runs `subscribe`.
pub async fn subscribe(context: &mut Context<'_>, args: SubscribeArgs) -> Result<(), Failure> {
    let expires_at = args.until.as_deref().map(|text| until(text, context.now())).transpose()?;
    let request = CreateSubscription { name: args.name, plan: args.plan, tenant: args.tenant, expires_at };
    let answer = context.client.post(&["subscriptions"], Some(&request)).await?;
    follow(context, answer, args.wait, "subscription").await
}

/// Runs `subscription`.
pub async fn run(context: &mut Context<'_>, command: SubscriptionCommand) -> Result<(), Failure> {
    match command {
        SubscriptionCommand::Ls { tenant } => {
            let query: Vec<(&str, &str)> = tenant.iter().map(|tenant| ("tenant", tenant.as_str())).collect();
            let found: Vec<Subscription> = context.client.list(&["subscriptions"], &query).await?;
            context.show(&found, |found, out, now| table(found, out, now))
        }
        SubscriptionCommand::Show(args) => {
            let found = find(&context.client, &args.subscription).await?;
            context.show(&found, facts)
        }
        SubscriptionCommand::Cancel(args) => act(context, &args.subscription, "cancel", NOTHING, args.wait).await,
        SubscriptionCommand::Expire(args) => act(context, &args.subscription, "expire", NOTHING, args.wait).await,
        SubscriptionCommand::Renew(args) => renew(context, args).await,
        SubscriptionCommand::ChangePlan { subscription, plan, wait } => {
            act(context, &subscription, "change-plan", Some(&ChangePlan { plan }), wait).await
        }
        SubscriptionCommand::RestartPod(args) => {
            let found = find(&context.client, &args.subscription).await?;
            let answer = context.client.post(&["subscriptions", &found.id, "restart-pod"], NOTHING).await?;
            pod::follow(context, answer, args.wait).await
        }
        SubscriptionCommand::ResetPod { subscription, options } => {
            let found = find(&context.client, &subscription).await?;
            let of = target::pod(&context.client, pod_of(&found)?, Among::Living).await?;
            pod::reset(context, &of, options, &["subscriptions", &found.id, "reset-pod"]).await
        }
    }
}

fn pod_of(subscription: &Subscription) -> Result<&str, Failure> {
    subscription.pod.as_deref().ok_or_else(|| {
        let message = format!("the pod of subscription {} is gone for good", clean(&subscription.name));
        Failure::new(Exit::NotFound, message, "perennial subscription renew --new-pod makes a new one")
    })
}

/// Reads a time to come.
fn until(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    // A number alone could be anything.
    let is_span = text.ends_with(|last: char| last.is_ascii_alphabetic());
    let span = parse_duration(text).ok().filter(|_| is_span).and_then(|span| SignedDuration::try_from(span).ok());
    let time = span.and_then(|span| now.checked_add(span).ok());
    time.ok_or_else(|| Failure::usage(format!("--until: {text:?} is no time"), "write 2027-01-31T00:00:00Z, or 30d"))
}

async fn renew(context: &mut Context<'_>, args: RenewArgs) -> Result<(), Failure> {
    let until = args.until.as_deref().map(|text| until(text, context.now())).transpose()?;
    let expires_at = if args.for_good { Some(None) } else { until.map(Some) };
    let request = RenewSubscription { expires_at, new_pod: args.new_pod };
    act(context, &args.subscription, "renew", Some(&request), args.wait).await
}

/// Finds a subscription by its name or its id.
async fn find(client: &Client, text: &str) -> Result<Subscription, Failure> {
    if text.parse::<SubscriptionId>().is_ok() {
        match client.get(&["subscriptions", text], &[]).await {
            Err(failure) if failure.exit == Exit::NotFound => {}
            result => return result,
        }
    }
    let mut found: Vec<Subscription> = client.list(&["subscriptions"], &[("name", text)]).await?;
    // One whose pod is gone makes way for a later one of its name.
    if found.iter().any(|one| one.pod.is_some()) {
        found.retain(|one| one.pod.is_some());
    }
    match found.len() {
        0 => {
            let hint = "perennial subscription ls lists them";
            Err(Failure::new(Exit::NotFound, format!("subscription {text:?} not found"), hint))
        }
        1 => Ok(found.swap_remove(0)),
        several => {
            let ids = found.iter().map(|one| format!("  {}  tenant {}", one.id, clean(&one.tenant)));
            let ids: Vec<String> = ids.collect();
            let message = format!("{several} subscriptions are named {}:\n{}", clean(text), ids.join("\n"));
            Err(Failure::new(Exit::Conflict, message, "use the id of the one you mean"))
        }
    }
}

async fn act(
    context: &mut Context<'_>,
    subscription: &str,
    verb: &str,
    body: Option<&impl serde::Serialize>,
    wait: WaitArgs,
) -> Result<(), Failure> {
    let found = find(&context.client, subscription).await?;
    let answer = context.client.post(&["subscriptions", &found.id, verb], body).await?;
    follow(context, answer, wait, verb).await
}

/// Waits for what was begun with the pod, and shows how the subscription stands then.
async fn follow(
    context: &mut Context<'_>,
    answer: SubscriptionOperation,
    args: WaitArgs,
    verb: &str,
) -> Result<(), Failure> {
    let SubscriptionOperation { subscription, operation } = answer;
    let Some(operation) = operation.filter(|_| !args.no_wait) else { return context.show(&subscription, facts) };
    let what = format!("{} for {verb} of {}", operation.kind, clean(&subscription.name));
    let operation = wait::wait(context, operation, args, &what).await?;
    let failed = wait::outcome(&operation, &what);
    let now: Subscription = context.client.get(&["subscriptions", &subscription.id], &[]).await?;
    context.show(&now, facts)?;
    failed
}

fn table(found: &[Subscription], out: &Out, now: Timestamp) -> String {
    let mut rows = Rows::new(&["NAME", "PLAN", "STATE", "POD", "NEXT", "TENANT", "AGE"]);
    for one in found {
        let colour = (one.state != SubscriptionState::Active).then_some(Colour::Yellow);
        rows.row(
            colour,
            [
                one.name.clone(),
                one.plan.clone(),
                one.state.to_string(),
                one.pod_phase.map_or_else(|| "gone".to_owned(), |phase| phase.to_string()),
                next(one, now),
                one.tenant.clone(),
                ago(one.created_at, now),
            ],
        );
    }
    rows.render(out)
}

/// What the clock does next.
fn next(one: &Subscription, now: Timestamp) -> String {
    match (one.pod.is_some(), one.purge_at, one.trash_at, one.expires_at) {
        (false, ..) => "nothing".to_owned(),
        (_, Some(at), ..) => format!("pod destroyed {}", ago(at, now)),
        (_, None, Some(at), _) => format!("pod deleted {}", ago(at, now)),
        (_, None, None, Some(at)) => format!("expires {}", ago(at, now)),
        (_, None, None, None) => "nothing".to_owned(),
    }
}

fn facts(one: &Subscription, out: &Out, now: Timestamp) -> String {
    let when = |at: Timestamp| format!("{} ({})", instant(at), ago(at, now));
    let mut facts = Facts::default();
    facts
        .fact("Name", &one.name)
        .fact("Id", &one.id)
        .fact("Tenant", &one.tenant)
        .fact("Plan", &one.plan)
        .fact("State", one.state.as_str())
        .fact("Pod", one.pod.as_deref().unwrap_or("gone for good"))
        .maybe("Pod is", one.pod_phase.map(|phase| phase.to_string()))
        .fact("Expires", one.expires_at.map_or_else(|| "never".to_owned(), when))
        .maybe("Ended", one.ended_at.map(when));
    if one.pod.is_some() {
        facts
            .maybe("A renewal", one.starts_again.map(|start| if start { "starts the pod" } else { "leaves the pod" }))
            .maybe("Pod deleted", one.trash_at.filter(|_| one.purge_at.is_none()).map(when))
            .maybe("Warnings given", one.trash_at.map(|_| format!("{} of 3", one.warnings)))
            .maybe("Pod destroyed", one.purge_at.map(when));
    }
    facts
        .maybe("Resets", (one.reset_count > 0).then(|| one.reset_count.to_string()))
        .maybe("Last reset", one.last_reset_at.map(when))
        .maybe("Kept in", one.last_reset_snapshot.as_ref());
    facts.fact("Since", when(one.created_at));
    facts.render(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_is_a_time_or_a_span() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let read = |text| until(text, now).ok().map(|time| time.to_string());
        assert_eq!(read("2027-01-31T00:00:00Z").as_deref(), Some("2027-01-31T00:00:00Z"));
        assert_eq!(read("30d").as_deref(), Some("2026-01-31T00:00:00Z"));
        for bad in ["", "soon", "30", "2027-13-01T00:00:00Z"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
