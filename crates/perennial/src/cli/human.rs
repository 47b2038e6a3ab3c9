//! Sizes, times and durations for people; JSON and YAML keep them exact.

use std::time::Duration;

use jiff::Timestamp;

pub use crate::size::size;

/// What is shown where nobody knows.
pub const UNKNOWN: &str = "-";

/// A size nobody may know.
#[must_use]
pub fn maybe_size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| UNKNOWN.to_owned(), size)
}

/// A time to the second.
#[must_use]
pub fn instant(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time relative to now, such as `5 min ago` or `in 6 d`.
#[must_use]
pub fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - time.as_second();
    match seconds {
        0 => "now".to_owned(),
        1.. => format!("{} ago", span(seconds.unsigned_abs())),
        _ => format!("in {}", span(seconds.unsigned_abs())),
    }
}

/// A time nobody may know, relative to now.
#[must_use]
pub fn maybe_ago(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(|| UNKNOWN.to_owned(), |time| ago(time, now))
}

/// A number of seconds in its largest unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Longest duration that means anything, in seconds: a hundred years.
const LONGEST: u64 = 36_600 * 86_400;

/// Reads a duration such as `90`, `90s`, `5m`, `1h`, `30d`.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write seconds, or a number with s, m, h or d, such as 5m");
    let (number, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => (text, 1),
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|s| *s <= LONGEST).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (512 << 20, "512.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times() {
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        let table = [
            ("2026-01-10T12:00:00.9Z", "now"),
            ("2026-01-10T11:59:01Z", "59 s ago"),
            ("2026-01-10T11:00:00Z", "1 h ago"),
            ("2026-01-08T12:00:00Z", "2 d ago"),
            ("2026-01-17T12:00:00Z", "in 7 d"),
        ];
        for (time, text) in table {
            assert_eq!(ago(time.parse().unwrap(), now), text);
        }
    }

    #[test]
    fn an_instant_has_no_fractions() {
        assert_eq!(instant("2026-01-10T12:00:00.987654321Z".parse().unwrap()), "2026-01-10T12:00:00Z");
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "s", "-1", "1.5m", "5 m", "1w", "99999999999999999999", "9999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
