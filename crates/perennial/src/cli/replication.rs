//! `perennial replication`: how far the replicas are.

use super::failure::Failure;
use super::human::maybe_ago;
use super::out::{Colour, clean};
use super::session::Context;
use super::table::Rows;
use crate::api::wire::Replication;

/// Runs `replication`.
pub async fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let replication: Replication = context.client.get(&["replication"], &[]).await?;
    context.show(&replication, |replication, out, now| {
        let Some(forget_after) = &replication.forget_after else {
            return "nothing is replicated: [replication] in perennial.toml names a second place".to_owned();
        };
        if replication.replicas.is_empty() {
            return "there is nothing to be copied yet".to_owned();
        }
        let mut rows = Rows::new(&["TENANT", "COPIED", "MISSING", "SINCE", "GOING", "LOOKED AT", "PLACE"]);
        for replica in &replication.replicas {
            let colour = match (&replica.problem, replica.failed.is_empty(), replica.missing) {
                (None, true, 0) => None,
                (None, true, _) => Some(Colour::Yellow),
                _ => Some(Colour::Red),
            };
            rows.row(
                colour,
                [
                    replica.tenant.clone(),
                    replica.copied.to_string(),
                    replica.missing.to_string(),
                    maybe_ago(replica.missing_since, now),
                    replica.going.to_string(),
                    maybe_ago(replica.looked_at, now),
                    replica.location.clone(),
                ],
            );
        }
        let mut text = rows.render(out);
        for replica in &replication.replicas {
            if let Some(problem) = &replica.problem {
                text.push_str(&format!("\n{}: {}", clean(&replica.tenant), clean(problem)));
            }
            for failure in &replica.failed {
                let line = format!("{}: {} cannot be copied: {}", replica.tenant, failure.id, failure.problem);
                text.push_str(&format!("\n{}", clean(&line)));
            }
        }
        text.push_str(&format!("\nWhat is deleted goes from the replicas after {}.", clean(forget_after)));
        text
    })
}
