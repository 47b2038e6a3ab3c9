//! `perennial replication`: how far the replicas are.

use std::time::Duration;

use perennial_core::progress::ProgressReading;

use super::failure::Failure;
use super::human::maybe_ago;
use super::out::{Colour, Out, clean};
use super::session::Context;
use super::table::Rows;
use super::view::how_far;
use crate::api::wire::{ReplicaCopying, ReplicaPart, Replication};

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
            if let Some(copying) = &replica.copying {
                text.push_str(&format!("\n{}: {}", clean(&replica.tenant), copied(copying, out)));
            }
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

/// What is being copied: with a bar on a terminal.
fn copied(copying: &ReplicaCopying, out: &Out) -> String {
    let what = match copying.part {
        ReplicaPart::Image => "image",
        ReplicaPart::Snapshot => "snapshot",
        ReplicaPart::Layer => "layer of pod",
    };
    let (bytes_done, bytes_total) = (copying.bytes_done, copying.bytes_total);
    let reading = ProgressReading { bytes_done, bytes_total, files_done: 0 };
    let left = copying.seconds_left.map(Duration::from_secs);
    let name = format!("copying {what} {}", clean(&copying.id));
    let bar = bar(reading).filter(|_| out.is_terminal()).map_or_else(String::new, |bar| format!("{bar} "));
    format!("{bar}{}", how_far(name, reading, copying.bytes_per_second, left))
}

/// Characters of a bar.
const BAR: u64 = 20;

/// A bar of what is done; none while nobody knows the total.
fn bar(reading: ProgressReading) -> Option<String> {
    let done = reading.bytes_done.min(reading.bytes_total);
    let share = (u128::from(done) * u128::from(BAR)).checked_div(u128::from(reading.bytes_total))?;
    let full = usize::try_from(share).unwrap_or_default();
    let rest = usize::try_from(BAR).unwrap_or_default() - full;
    Some(format!("[{}{}]", "=".repeat(full), " ".repeat(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_what_is_done_and_stays_within_its_frame() {
        let of = |bytes_done, bytes_total| bar(ProgressReading { bytes_done, bytes_total, files_done: 0 });
        assert_eq!(of(0, 0), None);
        assert_eq!(of(0, 10), Some(format!("[{}]", " ".repeat(20))));
        assert_eq!(of(5, 10), Some(format!("[{}{}]", "=".repeat(10), " ".repeat(10))));
        assert_eq!(of(u64::MAX, 1), Some(format!("[{}]", "=".repeat(20))));
    }
}
