//! Standard output, standard error and standard input, passed in so that tests see every byte.
//!
//! Data goes to standard output and everything else to standard error. Whatever comes from a server is cleaned before
//! it reaches a terminal: an image name or an event may have been chosen by somebody who wants to move our cursor.

use std::io::{self, BufRead, ErrorKind, IsTerminal as _, Write};

use super::args::Output;
use super::failure::Failure;

/// Where a command prints, and where it asks.
pub struct Out {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    stdin: Box<dyn BufRead + Send>,
    /// Whether standard output is a terminal.
    terminal: bool,
    /// Whether standard output may carry colours.
    colour_data: bool,
    /// Whether standard error may carry colours.
    colour_notes: bool,
    /// Whether standard error is a terminal, so that a live line can be drawn on it.
    live: bool,
    /// Whether somebody can be asked.
    interactive: bool,
    /// How failures are told.
    form: Output,
}

/// The colours in use; the words beside them always say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Good.
    Green,
    /// In between.
    Yellow,
    /// Broken.
    Red,
    /// Headings.
    Bold,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[31m",
            Self::Bold => "\x1b[1m",
        }
    }
}

impl Out {
    /// This process's own.
    #[must_use]
    pub fn process() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        Self {
            terminal: stdout.is_terminal(),
            colour_data: stdout.is_terminal() && !plain,
            colour_notes: stderr.is_terminal() && !plain,
            live: stderr.is_terminal() && std::env::var_os("TERM").is_none_or(|v| v != "dumb"),
            interactive: stdin.is_terminal() && stderr.is_terminal(),
            form: Output::Table,
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            stdin: Box::new(io::BufReader::new(stdin)),
        }
    }

    /// Streams of a test: no terminal, unless `answers` holds what a person types on one.
    #[must_use]
    pub fn captured(
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        answers: Option<&'static str>,
    ) -> Self {
        Self {
            stdout,
            stderr,
            stdin: Box::new(io::Cursor::new(answers.unwrap_or_default())),
            terminal: false,
            colour_data: false,
            colour_notes: false,
            live: false,
            interactive: answers.is_some(),
            form: Output::Table,
        }
    }

    /// Turns colours on, as on a terminal.
    #[must_use]
    pub fn coloured(mut self) -> Self {
        self.terminal = true;
        self.colour_data = true;
        self.colour_notes = true;
        self
    }

    /// Tells failures in this form from now on.
    pub const fn tell_failures(&mut self, form: Output) {
        self.form = form;
    }

    /// Whether failures are told to a program.
    #[must_use]
    pub fn tells_problems(&self) -> bool {
        self.form != Output::Table
    }

    /// Whether somebody can be asked.
    #[must_use]
    pub const fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Whether standard output is a terminal.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether standard output may carry colours.
    #[must_use]
    pub const fn has_colours(&self) -> bool {
        self.colour_data
    }

    /// Whether a live line can be drawn on standard error.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.live
    }

    /// Writes bytes to standard output.
    ///
    /// # Errors
    /// A quiet failure when the reader is gone, a loud one when the disk is full.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes).and_then(|()| self.stdout.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::broken_pipe(),
            _ => Failure::internal(format!("write to standard output: {error}")),
        })
    }

    /// Writes one line, or several, to standard output.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.data(format!("{text}\n").as_bytes())
    }

    /// Writes a line to standard error. Nothing can be done when that fails, so nothing is.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.stderr, "{text}").and_then(|()| self.stderr.flush());
    }

    /// Shows a failure: the message, an empty line, and the hint; for programs a problem, as one line of JSON or as YAML.
    pub fn failure(&mut self, failure: &Failure) {
        if failure.message.is_empty() {
            return;
        }
        let problem = match self.form {
            Output::Table => None,
            Output::Json => serde_json::to_string(&failure.to_problem()).ok(),
            Output::Yaml => serde_yaml_ng::to_string(&failure.to_problem()).ok(),
        };
        if let Some(problem) = problem {
            return self.note(problem.trim_end());
        }
        let mut text = format!("{} {}", self.paint_note(Colour::Red, "error:"), clean_lines(&failure.message));
        if !failure.request.is_empty() {
            text = format!("{text} (request {})", clean(&failure.request));
        }
        if !failure.hint.is_empty() {
            text = format!("{text}\n\n{} {}", self.paint_note(Colour::Bold, "hint:"), clean_lines(&failure.hint));
        }
        self.note(&text);
    }

    /// Asks a question on the terminal and returns the answer without the line's end; `None` at the input's end.
    pub fn ask(&mut self, question: &str) -> Option<String> {
        let _ = write!(self.stderr, "{question}").and_then(|()| self.stderr.flush());
        let mut answer = String::new();
        match self.stdin.read_line(&mut answer) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(answer.trim().to_owned()),
        }
    }

    /// Colours a word for standard output.
    #[must_use]
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        paint(self.colour_data, colour, text)
    }

    /// Colours a word for standard error.
    #[must_use]
    pub fn paint_note(&self, colour: Colour, text: &str) -> String {
        paint(self.colour_notes, colour, text)
    }

    /// The argument parser's text, for standard output.
    pub(super) fn render_data(&self, text: &clap::builder::StyledStr) -> String {
        if self.colour_data { text.ansi().to_string() } else { text.to_string() }
    }

    /// The argument parser's text, for standard error.
    pub(super) fn render_error(&self, text: &clap::builder::StyledStr) -> String {
        if self.colour_notes { text.ansi().to_string() } else { text.to_string() }
    }
}

fn paint(on: bool, colour: Colour, text: &str) -> String {
    if on { format!("{}{text}\x1b[0m", colour.code()) } else { text.to_owned() }
}

/// Whether a character drives a terminal, or changes the direction of what follows.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Makes a text from elsewhere safe for one line of a terminal: control characters become visible.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        if is_unsafe(c) {
            safe.extend(c.escape_default())
        } else {
            safe.push(c)
        }
        safe
    })
}

/// The same for a text that may have several lines.
fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_cannot_drive_the_terminal() {
        assert_eq!(clean("\x1b[2Jok\r\n"), "\\u{1b}[2Jok\\r\\n");
        assert_eq!(clean("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(clean("grün ✓"), "grün ✓");
    }
}
