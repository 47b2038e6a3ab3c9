//! `perennial events`: the audit trail, once or as it grows.
//!
//! Following resumes: every reconnect names the last event that was shown, so none is lost and none is shown twice.

use std::collections::VecDeque;
use std::pin::{Pin, pin};

use futures::StreamExt as _;

use super::args::{EventRange, EventsArgs, Output};
use super::failure::{Exit, Failure};
use super::session::Context;
use super::target::{self, Among};
use super::view;
use crate::api::wire::Event;

/// Longest line of a stream; beyond it the server is not one of ours.
const LINE_MAX: usize = 1 << 20;

/// Runs `events`.
pub async fn run(context: &mut Context<'_>, args: &EventsArgs, pod: Option<&str>) -> Result<(), Failure> {
    let found = match (&args.pod, pod) {
        (Some(text), None) => Some(target::pod(&context.client, text, Among::All).await?.id),
        (_, pod) => pod.map(str::to_owned),
    };
    show(context, &args.range, found.as_deref()).await
}

/// Shows events of one pod, or all.
pub async fn show(context: &mut Context<'_>, range: &EventRange, pod: Option<&str>) -> Result<(), Failure> {
    let after = range.after.to_string();
    let path = pod.map_or_else(|| vec!["events"], |id| vec!["pods", id, "events"]);
    let mut last = VecDeque::new();
    let mut newest = range.after;
    context
        .client
        .pages(&path, &[("after", &after)], |page: Vec<Event>| {
            for event in page {
                newest = newest.max(event.id);
                last.push_back(event);
                if last.len() > range.last {
                    last.pop_front();
                }
            }
        })
        .await?;
    if !range.follow {
        let last: Vec<Event> = last.into();
        return context.show(&last, |events, _, _| match events.as_slice() {
            [] => "no events".to_owned(),
            events => events.iter().map(view::event).collect::<Vec<_>>().join("\n"),
        });
    }
    for event in &last {
        print(context, event)?;
    }
    follow(context, newest, pod).await
}

/// Prints one event of a stream: a line of text, a line of JSON, or a YAML document.
fn print(context: &mut Context<'_>, event: &Event) -> Result<(), Failure> {
    let wrong = |error: String| Failure::internal(format!("write an event: {error}"));
    let text = match context.session.output {
        Output::Table => view::event(event),
        Output::Json => serde_json::to_string(event).map_err(|error| wrong(error.to_string()))?,
        Output::Yaml => {
            let yaml = serde_yaml_ng::to_string(event).map_err(|error| wrong(error.to_string()))?;
            format!("---\n{}", yaml.trim_end())
        }
    };
    context.out.line(&text)
}

async fn follow(context: &mut Context<'_>, mut newest: i64, pod: Option<&str>) -> Result<(), Failure> {
    let query: Vec<(&str, &str)> = pod.map(|id| ("pod", id)).into_iter().collect();
    // One listener for all the time: a signal between two of them would be lost.
    let interrupt = context.session.interrupt.clone();
    let mut interrupt = pin!(interrupt.wait());
    let mut broken = 0;
    loop {
        let before = newest;
        let failure = match stream(context, &query, &mut newest, interrupt.as_mut()).await {
            // A stream that ended: the server stopped, or a proxy lost patience.
            Ok(()) => Failure::new(Exit::Unavailable, "the stream of events ended", "see the server's log"),
            Err(failure) => failure,
        };
        if failure.exit != Exit::Unavailable {
            return Err(failure);
        }
        broken = if newest > before { 0 } else { broken + 1 };
        if broken > context.session.tries {
            return Err(failure);
        }
        if broken <= 1 {
            context.out.note(&format!("{}; connecting again", failure.message));
        }
        tokio::select! {
            biased;
            () = &mut interrupt => return Err(ended()),
            () = tokio::time::sleep(context.session.pause) => {}
        }
    }
}

/// Ctrl-C is how following ends: nothing to say, but a script can tell.
fn ended() -> Failure {
    Failure::new(Exit::Interrupted, "", "")
}

/// Reads one connection until it ends.
async fn stream(
    context: &mut Context<'_>,
    query: &[(&str, &str)],
    newest: &mut i64,
    mut interrupt: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Failure> {
    let mut frames = Frames::default();
    let mut events = Vec::new();
    let mut chunks = None;
    loop {
        let next = async {
            let chunks = match &mut chunks {
                Some(chunks) => chunks,
                none => none.insert(context.client.stream(query, Some(*newest)).await?.bytes_stream().boxed()),
            };
            Ok::<_, Failure>(chunks.next().await)
        };
        let chunk = tokio::select! {
            biased;
            () = &mut interrupt => return Err(ended()),
            chunk = next => chunk?,
        };
        let Some(chunk) = chunk else { return Ok(()) };
        let chunk = chunk.map_err(|_| Failure::new(Exit::Unavailable, "the stream of events broke off", ""))?;
        frames.push(&chunk, &mut events)?;
        for event in events.drain(..) {
            if event.id > *newest {
                *newest = event.id;
                print(context, &event)?;
            }
        }
    }
}

/// Takes a stream of server-sent events apart (WHATWG HTML, 9.2.6). Only `data` matters: an event carries its own id.
#[derive(Default)]
struct Frames {
    line: Vec<u8>,
    data: String,
}

impl Frames {
    fn push(&mut self, chunk: &[u8], events: &mut Vec<Event>) -> Result<(), Failure> {
        for byte in chunk {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() + self.data.len() > LINE_MAX {
                    return Err(Failure::internal("the stream of events holds a line without an end"));
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                events.extend(self.event()?);
            } else if let Some(data) = line.strip_prefix(b"data:") {
                let data = data.strip_prefix(b" ").unwrap_or(data);
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(&String::from_utf8_lossy(data));
            }
        }
        Ok(())
    }

    fn event(&mut self) -> Result<Option<Event>, Failure> {
        let data = std::mem::take(&mut self.data);
        if data.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&data)
            .map(Some)
            .map_err(|error| Failure::internal(format!("the stream of events is not understood: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"id":7,"at":"2026-01-10T12:00:00Z","actor":"admin","tenant":"default","podId":null,
        "operationId":null,"type":"pod.stopped","message":"pod dev stopped"}"#;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let data = EVENT.replace('\n', "\ndata:");
        let text = format!(": hello\r\n\r\nid: 7\r\nevent: pod.stopped\ndata: {data}\n\n: beat\n\n");
        for size in [1, 3, text.len()] {
            let (mut frames, mut events) = (Frames::default(), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                frames.push(chunk, &mut events).unwrap();
            }
            assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), [7], "{size}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_not_collected_for_ever() {
        let (mut frames, mut events) = (Frames::default(), Vec::new());
        let block = vec![b'x'; LINE_MAX / 2];
        assert!(frames.push(&block, &mut events).is_ok());
        assert!(frames.push(&block, &mut events).is_ok());
        assert!(frames.push(b"x", &mut events).is_err());
    }
}
