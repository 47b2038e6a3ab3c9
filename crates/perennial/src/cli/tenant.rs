//! `perennial tenant`: made, listed, who works in one, and its end.

use jiff::Timestamp;

use super::args::{EraseArgs, QuotaKind, TenantCommand, TenantSetArgs};
use super::failure::{Exit, Failure};
use super::human::{ago, size};
use super::out::{Out, clean};
use super::session::Context;
use super::table::{Facts, Rows};
use crate::api::wire::{
    CreateTenant, EraseRequest, ErasedPlace, Erasure, ErasureState, PatchTenant, PlaceBecame, Quota, Tenant,
};

/// Runs `tenant`.
pub async fn run(context: &mut Context<'_>, command: TenantCommand) -> Result<(), Failure> {
    match command {
        TenantCommand::Create { tenant } => {
            let made: Tenant = context.client.post_once(&["tenants"], &CreateTenant { name: tenant }).await?;
            context.show(&made, |made, _, _| format!("tenant {} is made", clean(&made.name)))
        }
        TenantCommand::Ls => {
            let tenants: Vec<Tenant> = context.client.list(&["tenants"], &[]).await?;
            context.show(&tenants, |tenants, out, now| {
                let mut rows = Rows::new(&["NAME", "AGE"]);
                for tenant in tenants {
                    rows.row(None, [tenant.name.clone(), ago(tenant.created_at, now)]);
                }
                rows.render(out)
            })
        }
        TenantCommand::Show { tenant } => {
            let tenant: Tenant = context.client.get(&["tenants", &tenant], &[]).await?;
            context.show(&tenant, shown)
        }
        TenantCommand::Set(args) => set(context, &args).await,
        TenantCommand::Members { tenant } => {
            let tenant: Tenant = context.client.get(&["tenants", &tenant], &[]).await?;
            context.show(&tenant, |tenant, _, _| members(tenant))
        }
        TenantCommand::Add { tenant, user } => {
            let tenant: Tenant = context.client.put(&["tenants", &tenant, "members", &user]).await?;
            context.show(&tenant, |tenant, _, _| members(tenant))
        }
        TenantCommand::Remove { tenant, user } => {
            context.client.delete::<()>(&["tenants", &tenant, "members", &user], None::<&()>).await?;
            context.out.note(&format!("user {} is no member of tenant {} any more", clean(&user), clean(&tenant)));
            Ok(())
        }
        TenantCommand::Erase(args) => erase(context, &args).await,
        TenantCommand::Erasure { tenant } => {
            let erasure: Erasure = context.client.get(&["tenants", &tenant, "erasure"], &[]).await?;
            context.show(&erasure, |erasure, _, _| told(erasure))
        }
    }
}

async fn set(context: &mut Context<'_>, args: &TenantSetArgs) -> Result<(), Failure> {
    let path = ["tenants", args.tenant.as_str()];
    let Tenant { quota, .. } = context.client.get(&path, &[]).await?;
    let quota = bounded(quota, args)?;
    let after: Tenant = context.client.patch(&path, None, &PatchTenant { quota: Some(Some(quota)) }).await?;
    context.show(&after, shown)
}

/// The quota with what was asked for.
fn bounded(before: Quota, args: &TenantSetArgs) -> Result<Quota, Failure> {
    let wants = [args.pods.is_some(), args.cpus.is_some(), args.memory.is_some(), args.disk.is_some()];
    let kinds = [QuotaKind::Pods, QuotaKind::Cpus, QuotaKind::Memory, QuotaKind::Disk];
    if args.unset.is_empty() && !wants.contains(&true) {
        return Err(Failure::usage("nothing to change was given", "--pods, --cpus, --memory, --disk, or --unset"));
    }
    if kinds.iter().zip(wants).any(|(kind, is_wanted)| is_wanted && args.unset.contains(kind)) {
        return Err(Failure::usage("what is set cannot be unset in the same command", "leave one of them out"));
    }
    let keeps = |kind: QuotaKind| !args.unset.contains(&kind);
    Ok(Quota {
        pods: args.pods.or(before.pods.filter(|_| keeps(QuotaKind::Pods))),
        cpus: args.cpus.or(before.cpus.filter(|_| keeps(QuotaKind::Cpus))),
        memory: args.memory.or(before.memory.filter(|_| keeps(QuotaKind::Memory))),
        disk: args.disk.or(before.disk.filter(|_| keeps(QuotaKind::Disk))),
    })
}

fn shown(tenant: &Tenant, out: &Out, now: Timestamp) -> String {
    let mut facts = Facts::default();
    let members: Vec<&str> = tenant.members.iter().flatten().map(String::as_str).collect();
    facts
        .fact("Name", &tenant.name)
        .fact("Members", if members.is_empty() { "none".to_owned() } else { members.join(", ") });
    if let Some(usage) = &tenant.usage {
        let of = |taken: String, bound: Option<String>| format!("{taken} of {}", bound.as_deref().unwrap_or("any"));
        let Quota { pods, cpus, memory, disk } = &tenant.quota;
        facts
            .fact("Pods", of(usage.pods.to_string(), pods.map(|pods| pods.to_string())))
            .fact("CPUs", of(usage.cpus.to_string(), cpus.map(|cpus| cpus.to_string())))
            .fact("Memory", of(size(usage.memory.0), memory.map(|memory| size(memory.0))))
            .fact("Disk", of(size(usage.disk.0), disk.map(|disk| size(disk.0))))
            .maybe(
                "Without a limit",
                (usage.unlimited > 0).then(|| format!("{} pods, which may take all there is", usage.unlimited)),
            );
    }
    facts.fact("Since", ago(tenant.created_at, now));
    facts.render(out)
}

fn members(tenant: &Tenant) -> String {
    let members: Vec<String> = tenant.members.iter().flatten().map(|name| clean(name)).collect();
    if members.is_empty() { format!("tenant {} has no members", clean(&tenant.name)) } else { members.join("\n") }
}

async fn erase(context: &mut Context<'_>, args: &EraseArgs) -> Result<(), Failure> {
    let path = ["tenants", args.tenant.as_str(), "erase"];
    let (delete_data, give_up) = (args.delete_data, args.give_up);
    let dry = EraseRequest { dry_run: true, delete_data, give_up, ..EraseRequest::default() };
    let plan: Erasure = context.client.post(&path, Some(&dry)).await?;
    if args.dry_run {
        return context.show(&plan, |plan, _, _| told(plan));
    }
    let ended = if plan.state == ErasureState::Erased {
        plan
    } else {
        if !args.yes {
            confirm(context, &told(&plan), &args.tenant)?;
        }
        // The doubts that a person was told are accepted, and no others.
        let accept_unknown = args.accept_unknown.clone();
        let confirm = Some(args.tenant.clone());
        let request = EraseRequest { dry_run: false, confirm, delete_data, accept_unknown, give_up };
        let begun: Erasure = context.client.post(&path, Some(&request)).await?;
        if args.no_wait { begun } else { wait(context, begun).await? }
    };
    context.show(&ended, |ended, _, _| told(ended))?;
    let tenant = clean(&ended.tenant);
    if let Some(problem) = &ended.problem {
        let message = format!("tenant {tenant} is not erased everywhere: {}", clean(problem));
        return Err(Failure::new(
            Exit::Failed,
            message,
            format!("it is tried again by itself: perennial tenant erasure {tenant}"),
        ));
    }
    let left = left(&ended);
    if ended.state == ErasureState::Erased && !left.is_empty() {
        let message = format!("tenant {tenant} is not erased everywhere: {} was not emptied", left.join(" and "));
        return Err(Failure::new(Exit::Failed, message, "delete by hand what nobody may read".to_owned()));
    }
    Ok(())
}

/// The places that were given up, or never touched.
fn left(erasure: &Erasure) -> Vec<String> {
    let places = [Some(&erasure.repository), erasure.replica.as_ref()].into_iter().flatten();
    let left = places.filter(|place| matches!(place.became, Some(PlaceBecame::GivenUp | PlaceBecame::Untouched)));
    left.map(|place| clean(&place.location).to_string()).collect()
}

/// Asks until it is done or something is wrong.
async fn wait(context: &mut Context<'_>, mut erasure: Erasure) -> Result<Erasure, Failure> {
    let tenant = erasure.tenant.clone();
    let interrupt = context.session.interrupt.clone();
    while erasure.state != ErasureState::Erased && erasure.problem.is_none() {
        if let Some(progress) = erasure.progress.as_ref().filter(|progress| progress.files_done > 0) {
            let (done, total) = (size(progress.bytes_done), size(progress.bytes_total));
            context.out.note(&format!("{}: {} files, {done} of {total}", progress.step, progress.files_done));
        }
        tokio::select! {
            () = tokio::time::sleep(context.session.pause) => {}
            () = interrupt.wait() => {
                let message = format!("interrupted; the erasure of tenant {} goes on", clean(&tenant));
                return Err(Failure::new(Exit::Interrupted, message, format!("perennial tenant erasure {}", clean(&tenant))));
            }
        }
        erasure = context.client.get(&["tenants", &tenant, "erasure"], &[]).await?;
    }
    Ok(erasure)
}

fn confirm(context: &mut Context<'_>, text: &str, name: &str) -> Result<(), Failure> {
    if !context.out.is_interactive() {
        let message = "erasing a tenant needs a confirmation, and there is no terminal to ask on: nothing was done";
        return Err(Failure::usage(message, "see what it means with --dry-run, then confirm with --yes"));
    }
    context.out.note(text);
    match context.out.ask(&format!("\nType the tenant's name to go on ({}): ", clean(name))) {
        Some(answer) if answer == name => Ok(()),
        _ => Err(Failure::usage("not confirmed: nothing was done", "")),
    }
}

fn place(what: &str, place: &ErasedPlace) -> String {
    let held = match (place.snapshots, place.bytes) {
        (Some(snapshots), Some(bytes)) => format!("{snapshots} snapshots, layers and images, {}", size(bytes)),
        _ => "could not be looked at".to_owned(),
    };
    let became = match place.became {
        None | Some(PlaceBecame::Absent) => "",
        Some(PlaceBecame::Emptied) => "; its files are deleted",
        Some(PlaceBecame::KeysGone) => "; its keys are gone",
        Some(PlaceBecame::GivenUp) => "; GIVEN UP",
        Some(PlaceBecame::Untouched) => "; NOT TOUCHED",
    };
    format!("{what} {}: {held}{became}", clean(&place.location))
}

fn told(erasure: &Erasure) -> String {
    let tenant = clean(&erasure.tenant);
    let mut lines = vec![match erasure.state {
        ErasureState::Planned => format!("erasing tenant {tenant} would mean:"),
        ErasureState::DestroyingKeys => format!("tenant {tenant} is being erased: its keys go first"),
        ErasureState::Emptying => format!("the keys of tenant {tenant} are destroyed; its places are being emptied"),
        ErasureState::Erased if erasure.problem.is_some() || !left(erasure).is_empty() => {
            format!("tenant {tenant} is erased, but not everywhere")
        }
        ErasureState::Erased => format!("tenant {tenant} is erased"),
    }];
    lines.push(place("  repository", &erasure.repository));
    lines.extend(erasure.replica.iter().map(|replica| place("  replica", replica)));
    lines.extend(erasure.meaning.iter().map(|sentence| format!("- {}", clean(sentence))));
    lines.extend(erasure.problem.iter().map(|problem| match erasure.state {
        ErasureState::Erased => format!("but: {}", clean(problem)),
        _ => format!("not done yet: {}", clean(problem)),
    }));
    let stands = |what: &str, all: &[String]| {
        let all: Vec<String> = all.iter().map(|one| format!("\n  {}", clean(one))).collect();
        (!all.is_empty()).then(|| format!("{what}{}", all.concat()))
    };
    lines.extend(stands("It would be refused now:", &erasure.blockers));
    let word = erasure.accept_unknown.as_deref().unwrap_or_default();
    lines.extend(stands(&format!("It would be refused without --accept-unknown {}:", clean(word)), &erasure.doubts));
    if erasure.state == ErasureState::Planned {
        lines.push("Nothing was done.".to_owned());
    }
    lines.join("\n")
}
