//! What a container's own program wrote.

use jiff::{SignedDuration, Timestamp};
use perennial_core::engine::{EngineError, LogEnd, LogRange, LogReader, LogStamps};

use super::subject::Subject;
use super::{Checked, Fixture, check, check_refused};

const ALL: LogRange = LogRange { tail: None, since: None, until: LogEnd::Now, stamps: LogStamps::Without };
const FOLLOWED: LogRange = LogRange { until: LogEnd::Run, ..ALL };

async fn talking(fixture: &Fixture) -> Checked<(Subject<'_>, String)> {
    let mut subject = Subject::complete(fixture).await?;
    subject.pod.spec.command = Some(fixture.talking.clone());
    let id = subject.create().await?;
    subject.start(&id).await?;
    Ok((subject, id))
}

/// Reads until so many lines are there; the engine may keep the two outputs in either order.
async fn lines(reader: &mut dyn LogReader, wanted: usize) -> Checked<Vec<String>> {
    let mut bytes = Vec::new();
    while bytes.iter().filter(|b| **b == b'\n').count() < wanted {
        match reader.next().await? {
            Some(more) => bytes.extend(more),
            None => break,
        }
    }
    let mut found: Vec<String> = String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect();
    found.sort();
    Ok(found)
}

async fn read(subject: &Subject<'_>, id: &str, range: LogRange) -> Checked<Vec<String>> {
    lines(subject.engine().container_logs(id, range).await?.as_mut(), usize::MAX).await
}

pub(super) async fn logs_hold_what_the_container_wrote(fixture: &Fixture) -> Checked {
    let (subject, id) = talking(fixture).await?;
    let said = lines(subject.engine().container_logs(&id, FOLLOWED).await?.as_mut(), 3).await?;
    check!(said == ["one", "three", "two"], "it said {said:?}");
    let said = read(&subject, &id, ALL).await?;
    check!(said == ["one", "three", "two"], "what it said is read again as {said:?}");
    let last = read(&subject, &id, LogRange { tail: Some(1), ..ALL }).await?;
    check!(last.len() == 1, "its last line is {last:?}");
    let none = read(&subject, &id, LogRange { tail: Some(0), ..ALL }).await?;
    check!(none.is_empty(), "no line is {none:?}");
    let stamped = read(&subject, &id, LogRange { stamps: LogStamps::With, ..ALL }).await?;
    for line in &stamped {
        let stamp = line.split_once(' ').map(|(at, text)| (at.parse::<Timestamp>().is_ok(), text));
        check!(matches!(stamp, Some((true, "one" | "two" | "three"))), "with its time a line is {line:?}");
    }
    check!(stamped.len() == 3, "with their times the lines are {stamped:?}");
    let begin = subject.observe_container().await?.started_at.unwrap_or(Timestamp::UNIX_EPOCH);
    let later = begin.saturating_add(SignedDuration::from_hours(1));
    let later = later.map_err(|e| super::Failure(e.to_string()))?;
    for (since, expected) in [(Timestamp::UNIX_EPOCH, 3), (begin, 3), (later, 0), (Timestamp::MAX, 0)] {
        let said = read(&subject, &id, LogRange { since: Some(since), ..ALL }).await?;
        check!(said.len() == expected, "since {since} it said {said:?}");
    }
    // It is kept as long as the container is.
    subject.stop(&id).await?;
    let said = read(&subject, &id, ALL).await?;
    check!(said == ["one", "three", "two"], "after its end it is {said:?}");
    Ok(())
}

pub(super) async fn logs_are_followed_until_the_run_ends(fixture: &Fixture) -> Checked {
    let (subject, id) = talking(fixture).await?;
    let mut reader = subject.engine().container_logs(&id, FOLLOWED).await?;
    let said = lines(reader.as_mut(), 3).await?;
    check!(said == ["one", "three", "two"], "it said {said:?}");
    let (rest, stopped) = tokio::join!(lines(reader.as_mut(), usize::MAX), subject.stop(&id));
    stopped?;
    let rest = rest?;
    check!(rest.is_empty(), "at its end it said {rest:?}");
    Ok(())
}

pub(super) async fn logs_of_no_container_are_not_found(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    for range in [ALL, FOLLOWED] {
        // A reader cannot be shown, but whether it is one can.
        let answer = subject.engine().container_logs("no-such-container", range).await.map(drop);
        check_refused!(answer, EngineError::NotFound { .. }, "logs of no container");
    }
    Ok(())
}
