//! `perennial op …`.

use serde::Deserialize;

use super::args::{OpCommand, WaitArgs};
use super::failure::Failure;
use super::session::Context;
use super::{Output, snapshot, view, wait};
use crate::api::wire::Operation;

/// The answer to a cancellation: an operation beside its pod or its snapshot, which do not matter here.
#[derive(Deserialize)]
struct Cancelled {
    operation: Operation,
}

/// Runs a command on operations.
pub async fn run(context: &mut Context<'_>, command: OpCommand) -> Result<(), Failure> {
    match command {
        OpCommand::Ls { pod, unfinished, quiet } => {
            let pods = snapshot::pods(&context.client, pod.as_deref()).await?;
            let names = snapshot::names(&pods);
            let mut operations: Vec<Operation> = snapshot::of_pods(&context.client, &pods, "operations").await?;
            if unfinished {
                operations.retain(|operation| !operation.state.is_terminal());
            }
            // Those of all pods come pod by pod.
            operations.sort_by_key(|operation| std::cmp::Reverse(operation.created_at));
            if quiet {
                return context.show_ids(operations.iter().map(|operation| operation.id.as_str()));
            }
            context.show(&operations, |operations, out, now| view::operations(operations, &names, out, now))
        }
        OpCommand::Show { operation } => {
            let operation: Operation = context.client.get(&["operations", &operation], &[]).await?;
            context.show(&operation, view::operation)
        }
        OpCommand::Wait { operation, timeout } => {
            let operation: Operation = context.client.get(&["operations", &operation], &[]).await?;
            let what = format!("{} (operation {})", operation.kind, operation.id);
            let operation = wait::wait(context, operation, WaitArgs { no_wait: false, timeout }, &what).await?;
            let failed = wait::outcome(&operation, &what);
            if failed.is_ok() || context.session.output != Output::Table {
                context.show(&operation, |operation, _, _| format!("{what} {}", operation.state))?;
            }
            failed
        }
        OpCommand::Cancel { operation } => {
            let cancelled: Cancelled = context.client.post(&["operations", &operation, "cancel"], None::<&()>).await?;
            context.show(&cancelled.operation, view::operation)
        }
    }
}
