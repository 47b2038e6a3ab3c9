//! `perennial pod logs`: what a pod's program wrote.
//!
//! Into a file or a pipe go the bytes as they are. On a terminal a pod may have colours, where there are to be any, and nothing
//! else that drives it; they end with what it wrote.

use futures::future::BoxFuture;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::args::LogsArgs;
use super::failure::{Exit, Failure};
use super::session::Context;
use super::target::{self, Among};

/// Longest sequence that may be a colour, in bytes.
const COLOUR_MAX: usize = 32;
/// Ends every colour.
const RESET: &[u8] = b"\x1b[0m";

/// Runs `pod logs`.
pub async fn show(context: &mut Context<'_>, args: &LogsArgs) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::All).await?;
    let mut query = Vec::new();
    query.extend(args.follow.then(|| "follow=true".to_owned()));
    query.extend(args.timestamps.then(|| "timestamps=true".to_owned()));
    query.extend(args.tail.map(|lines| format!("tail={lines}")));
    query.extend(args.since.as_ref().map(|text| format!("since={}", utf8_percent_encode(text, NON_ALPHANUMERIC))));
    let path = ["pods", &pod.id, "logs"];
    let mut response = if args.follow {
        // A pod may be silent for hours.
        context.client.download_patiently(&path, &query.join("&")).await?
    } else {
        context.client.download(&path, &query.join("&")).await?
    };
    // Not before: until there is something to follow, a signal ends the process, however long the server says nothing.
    let interrupt = context.session.interrupt.wait();
    let wash = Wash { plain: !context.out.has_colours(), ..Wash::default() };
    let mut wash = context.out.is_terminal().then_some(wash);
    let ended = copy(&mut response, &mut wash, context, interrupt).await;
    // Whatever is printed next is not the pod's, and has to be legible.
    let reset = if wash.is_some_and(|wash| wash.coloured) { context.out.data(RESET) } else { Ok(()) };
    ended.and(reset)
}

/// Prints pieces as they come, until the last one.
async fn copy(
    response: &mut reqwest::Response,
    wash: &mut Option<Wash>,
    context: &mut Context<'_>,
    mut interrupt: BoxFuture<'static, ()>,
) -> Result<(), Failure> {
    loop {
        let piece = tokio::select! {
            biased;
            // As for events: it is how following ends.
            () = &mut interrupt => return Err(Failure::new(Exit::Interrupted, "", "")),
            piece = response.chunk() => piece,
        };
        let piece = piece.map_err(|error| broken_off(&context.client, &error))?;
        let (bytes, is_end) = piece.map_or((Vec::new(), true), |bytes| (bytes.to_vec(), false));
        let bytes = match wash {
            Some(wash) => wash.push(&bytes, is_end),
            None => bytes,
        };
        if !bytes.is_empty() {
            context.out.data(&bytes)?;
        }
        if is_end {
            return Ok(());
        }
    }
}

fn broken_off(client: &super::client::Client, error: &reqwest::Error) -> Failure {
    let Failure { message, .. } = client.broken_off(error);
    let message = message.replace("the download", "the log");
    Failure::new(
        Exit::Unavailable,
        message,
        "what is missing: the same command with --since and the time of the last line",
    )
}

/// Makes what a pod wrote safe for a terminal: colours pass, every other control character becomes visible.
#[derive(Default)]
struct Wash {
    /// The beginning of a character or of a sequence whose rest did not come yet.
    kept: Vec<u8>,
    /// Whether colours are left out.
    plain: bool,
    /// Whether one has passed.
    coloured: bool,
}

/// What is at the beginning of some bytes.
enum Found {
    /// So many that may pass.
    Pass(usize),
    /// A colour of so many.
    Colour(usize),
    /// So many that become visible.
    Show(usize),
    /// More bytes decide.
    Unfinished,
}

impl Wash {
    fn push(&mut self, bytes: &[u8], is_end: bool) -> Vec<u8> {
        self.kept.extend_from_slice(bytes);
        let kept = std::mem::take(&mut self.kept);
        let (mut rest, mut clean) = (kept.as_slice(), Vec::with_capacity(kept.len()));
        while !rest.is_empty() {
            let length = match look(rest) {
                Found::Pass(length) => {
                    clean.extend_from_slice(&rest[..length]);
                    length
                }
                Found::Colour(length) => {
                    if !self.plain {
                        self.coloured = true;
                        clean.extend_from_slice(&rest[..length]);
                    }
                    length
                }
                Found::Unfinished if !is_end => {
                    rest.clone_into(&mut self.kept);
                    break;
                }
                // What never got its rest is shown by its first byte, and the others are looked at again.
                Found::Unfinished => show_byte(rest, 1, &mut clean),
                Found::Show(length) => show_byte(rest, length, &mut clean),
            };
            rest = &rest[length..];
        }
        clean
    }
}

fn show_byte(bytes: &[u8], length: usize, clean: &mut Vec<u8>) -> usize {
    for byte in &bytes[..length] {
        clean.extend(std::ascii::escape_default(*byte));
    }
    length
}

fn look(bytes: &[u8]) -> Found {
    match bytes {
        [b'\n' | b'\t' | b' '..=b'~', ..] => Found::Pass(1),
        // The end of a line as terminals write it.
        [b'\r', b'\n', ..] => Found::Pass(2),
        [b'\r'] | [0x1b] => Found::Unfinished,
        [0x1b, b'[', parameters @ ..] => {
            let length = parameters.iter().take_while(|b| b.is_ascii_digit() || matches!(b, b';' | b':')).count();
            match parameters.get(length) {
                Some(b'm') if length < COLOUR_MAX => Found::Colour(length + 3),
                None if length < COLOUR_MAX => Found::Unfinished,
                _ => Found::Show(1),
            }
        }
        [first, ..] if *first < 0x80 => Found::Show(1),
        _ => character(bytes),
    }
}

/// What is at the beginning of bytes that are no ASCII.
fn character(bytes: &[u8]) -> Found {
    let four = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(four) {
        Ok(text) => text,
        Err(error) if error.valid_up_to() > 0 => std::str::from_utf8(&four[..error.valid_up_to()]).unwrap_or_default(),
        Err(error) if error.error_len().is_none() => return Found::Unfinished,
        Err(error) => return Found::Show(error.error_len().unwrap_or(1)),
    };
    let Some(first) = valid.chars().next() else { return Found::Show(1) };
    let length = first.len_utf8();
    if super::out::is_unsafe(first) { Found::Show(length) } else { Found::Pass(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn washed(bytes: &[u8], size: usize) -> String {
        let mut wash = Wash::default();
        let mut clean: Vec<u8> = bytes.chunks(size).flat_map(|piece| wash.push(piece, false)).collect();
        clean.extend(wash.push(&[], true));
        String::from_utf8(clean).unwrap()
    }

    #[test]
    fn colours_pass_and_nothing_else_drives_the_terminal() {
        for (bytes, expected) in [
            (&b"a\tb\r\nc\n"[..], "a\tb\r\nc\n"),
            (b"\x1b[1;31mred\x1b[0m\x1b[m", "\x1b[1;31mred\x1b[0m\x1b[m"),
            (b"\x1b[2Jx", "\\x1b[2Jx"),
            (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            (b"over\rwrite", "over\\rwrite"),
            ("gr\u{fc}n \u{2713} \u{1f600}".as_bytes(), "gr\u{fc}n \u{2713} \u{1f600}"),
            // The one-character form of ESC [, and a change of direction.
            ("\u{9b}2J\u{202e}".as_bytes(), "\\xc2\\x9b2J\\xe2\\x80\\xae"),
            (b"\xffx\xc3", "\\xffx\\xc3"),
            (b"end\x1b[3", "end\\x1b[3"),
        ] {
            for size in [1, 2, 3, 64] {
                assert_eq!(washed(bytes, size), expected, "{bytes:?} by {size}");
            }
        }
    }

    #[test]
    fn who_wants_no_colours_gets_none() {
        let mut wash = Wash { plain: true, ..Wash::default() };
        let clean = wash.push(b"\x1b[31mred\x1b[0m \x1b[2J\x1b[", false);
        assert_eq!(clean, b"red \\x1b[2J");
        assert_eq!(wash.push(b"8mend", true), b"end");
    }

    #[test]
    fn a_sequence_without_an_end_is_not_collected() {
        let mut wash = Wash::default();
        wash.push(b"\x1b[", false);
        for _ in 0..100 {
            wash.push(b"1;1;1;", false);
        }
        assert!(wash.kept.len() <= COLOUR_MAX + 2, "{}", wash.kept.len());
    }
}
