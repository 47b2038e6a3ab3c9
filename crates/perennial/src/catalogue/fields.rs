//! Reading a tree: every field by its name, and everything that is wrong with it.
//!
//! A [`Fields`] is asked for every key it may have, which is how it knows what to say of those nobody asked for.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::mistake::{Mistake, MistakeKind, Style, line_and_column, nearest};
use super::tree::{Entry, Node, Span, Value};
use crate::api::wire::{Age, Cpus, Size};

/// Collects mistakes, and where everything stands.
pub struct Reader<'t> {
    /// How keys are written.
    pub style: Style,
    /// The document; empty for JSON.
    text: &'t str,
    /// Where the values of paths stand.
    places: BTreeMap<String, Span>,
    /// What was found.
    pub mistakes: Vec<Mistake>,
}

/// The keys of one table.
pub struct Fields<'n> {
    path: String,
    span: Span,
    entries: &'n [Entry],
    asked: Vec<&'static str>,
}

/// A value of a field and its path.
pub struct Found<'n> {
    /// The path, in camelCase.
    pub path: String,
    /// The value.
    pub node: &'n Node,
}

impl<'t> Reader<'t> {
    /// A reader of this document.
    pub const fn new(style: Style, text: &'t str) -> Self {
        Self { style, text, places: BTreeMap::new(), mistakes: Vec::new() }
    }

    /// Notes a mistake at a place.
    pub fn note(&mut self, kind: MistakeKind, (path, span): (&str, &Span), problem: impl Into<String>, hint: String) {
        let at = (self.style == Style::Toml).then(|| line_and_column(self.text, span.start));
        let field = self.style.path(path);
        self.mistakes.push(Mistake { at, kind, field, problem: problem.into(), hint });
    }

    /// Notes a mistake that names its path alone: at the value of the path, or of what it is in.
    pub fn note_at_path(&mut self, mistake: perennial_core::service::Mistake) {
        let mut mistake = Mistake::from(mistake);
        let mut path = mistake.field.as_str();
        let place = loop {
            if let Some(span) = self.places.get(path) {
                break Some(span);
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => break None,
            }
        };
        if self.style == Style::Toml {
            mistake.at = Some(line_and_column(self.text, place.map_or(0, |span| span.start)));
        }
        mistake.field = self.style.path(&mistake.field);
        self.mistakes.push(mistake);
    }

    fn wrong_kind(&mut self, found: &Found<'_>, expected: &str, hint: &str) {
        let problem = format!("is {}, expected {expected}", found.node.value.kind());
        self.note(MistakeKind::WrongKind, (&found.path, &found.node.span), problem, hint.to_owned());
    }

    /// Refuses a value.
    pub fn invalid(&mut self, found: &Found<'_>, problem: impl Into<String>, hint: impl Into<String>) {
        self.note(MistakeKind::InvalidValue, (&found.path, &found.node.span), problem, hint.into());
    }

    /// The table at a path; one without keys when it is none.
    pub fn table<'n>(&mut self, found: &Found<'n>, hint: &str) -> Option<Fields<'n>> {
        let Value::Table(entries) = &found.node.value else {
            self.wrong_kind(found, "a table", hint);
            return None;
        };
        Some(Fields { path: found.path.clone(), span: found.node.span.clone(), entries, asked: Vec::new() })
    }

    /// The items of a list with their paths.
    pub fn items<'n>(&mut self, found: &Found<'n>, hint: &str) -> Option<Vec<Found<'n>>> {
        let Value::List(items) = &found.node.value else {
            self.wrong_kind(found, "a list", hint);
            return None;
        };
        let item = |(i, node): (usize, &'n Node)| Found { path: format!("{}[{i}]", found.path), node };
        let items: Vec<_> = items.iter().enumerate().map(item).collect();
        for item in &items {
            self.places.insert(item.path.clone(), item.node.span.clone());
        }
        Some(items)
    }

    /// The value of a key, when there is one.
    pub fn field<'n>(&mut self, fields: &mut Fields<'n>, name: &'static str) -> Option<Found<'n>> {
        fields.asked.push(name);
        let key = self.style.key(name);
        let mut all = fields.entries.iter().filter(|entry| entry.key == key);
        let entry = all.next()?;
        let path = fields.below(name);
        // TOML has refused it by itself.
        if let Some(again) = all.next() {
            let hint = "write it once".to_owned();
            self.note(MistakeKind::InvalidValue, (&path, &again.span), "is written twice", hint);
        }
        self.places.insert(path.clone(), entry.node.span.clone());
        (entry.node.value != Value::Null).then_some(Found { path, node: &entry.node })
    }

    /// The value of a key that has to be there.
    pub fn required<'n>(&mut self, fields: &mut Fields<'n>, name: &'static str, hint: &str) -> Option<Found<'n>> {
        let found = self.field(fields, name);
        if found.is_none() {
            let (path, span) = (fields.below(name), fields.span.clone());
            self.note(MistakeKind::Missing, (&path, &span), "is missing", hint.to_owned());
        }
        found
    }

    /// Refuses the keys that nobody asked for.
    pub fn end(&mut self, fields: &Fields<'_>) {
        let known: Vec<String> = fields.asked.iter().map(|name| self.style.key(name)).collect();
        for entry in fields.entries.iter().filter(|entry| !known.contains(&entry.key)) {
            let all = known.join(", ");
            let hint = match nearest(&entry.key, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}? Keys here are {all}"),
                None => format!("keys here are {all}"),
            };
            let path = fields.below(&short(&entry.key));
            let at = (self.style == Style::Toml).then(|| line_and_column(self.text, entry.span.start));
            let (before, _) = path.rsplit_once('.').unwrap_or(("", ""));
            let before = self.style.path(before);
            let dot = if before.is_empty() { "" } else { "." };
            let field = format!("{before}{dot}{}", short(&entry.key));
            let kind = MistakeKind::UnknownKey;
            self.mistakes.push(Mistake { at, kind, field, problem: "is not a known key".to_owned(), hint });
        }
    }

    /// Every entry of a table whose keys people choose.
    pub fn entries<'n>(&mut self, fields: &Fields<'n>) -> Vec<(String, Found<'n>)> {
        let mut found: Vec<(String, Found<'n>)> = Vec::new();
        for entry in fields.entries {
            let path = fields.below(&entry.key);
            if found.iter().any(|(key, _)| *key == entry.key) {
                let hint = "write it once".to_owned();
                self.note(MistakeKind::InvalidValue, (&path, &entry.span), "is written twice", hint);
                continue;
            }
            self.places.insert(path.clone(), entry.node.span.clone());
            found.push((entry.key.clone(), Found { path, node: &entry.node }));
        }
        found
    }

    /// A text.
    pub fn as_text(&mut self, found: &Found<'_>, hint: &str) -> Option<String> {
        let Value::Text(text) = &found.node.value else {
            self.wrong_kind(found, "a text", hint);
            return None;
        };
        Some(text.clone())
    }

    /// A whole number of a range.
    pub fn as_whole(&mut self, found: &Found<'_>, (least, most): (u32, u32), hint: &str) -> Option<u32> {
        let Value::Whole(number) = &found.node.value else {
            match &found.node.value {
                Value::Number(_) => self.invalid(found, "is no whole number of a usual size", hint),
                _ => self.wrong_kind(found, "a whole number", hint),
            }
            return None;
        };
        let good = u32::try_from(*number).ok().filter(|number| (least..=most).contains(number));
        if good.is_none() {
            self.invalid(found, format!("{number} is out of range"), hint);
        }
        good
    }

    /// A text, when the key is there.
    pub fn text(&mut self, fields: &mut Fields<'_>, name: &'static str, hint: &str) -> Option<String> {
        let found = self.field(fields, name)?;
        self.as_text(&found, hint)
    }

    /// A number of processors.
    pub fn cpus(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<u64> {
        const HINT: &str = "write a number such as 1.5";
        let found = self.field(fields, name)?;
        let number = match &found.node.value {
            #[expect(clippy::cast_precision_loss, reason = "what is so large is out of range")]
            Value::Whole(number) => *number as f64,
            Value::Number(number) => *number,
            _ => {
                self.wrong_kind(&found, "a number", HINT);
                return None;
            }
        };
        let cpus = Cpus::from_cpus(number);
        if cpus.is_none() {
            self.invalid(&found, "is no possible number of CPUs", HINT);
        }
        cpus.map(|cpus| cpus.nano)
    }

    /// A size, as it is written.
    pub fn size(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<perennial_core::service::Size> {
        const HINT: &str = "write a text such as \"250Mi\", with one of Ki, Mi, Gi, Ti, Pi, k, M, G, T, P";
        let found = self.field(fields, name)?;
        let written = match &found.node.value {
            Value::Text(text) => text.clone(),
            // Bytes as a number, as everywhere else.
            Value::Whole(bytes) if *bytes >= 0 => bytes.to_string(),
            Value::Whole(_) | Value::Number(_) => {
                self.invalid(&found, "is no number of bytes", HINT);
                return None;
            }
            _ => {
                self.wrong_kind(&found, "a size", HINT);
                return None;
            }
        };
        match Size::parse(&written) {
            Ok(size) => Some(perennial_core::service::Size { bytes: size.0, written }),
            Err(_) => {
                self.invalid(&found, format!("{:?} is not a size", short(&written)), HINT);
                None
            }
        }
    }

    /// Seconds: a number, or a time such as `30s`.
    pub fn seconds(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<u32> {
        const HINT: &str = "write a time such as \"30s\" or \"5m\"";
        let found = self.field(fields, name)?;
        match &found.node.value {
            Value::Text(text) => {
                let time = text.parse::<SignedDuration>().ok().filter(|time| time.subsec_nanos() == 0);
                let seconds = time.and_then(|time| u32::try_from(time.as_secs()).ok());
                if seconds.is_none() {
                    self.invalid(&found, format!("{:?} is not a time", short(text)), HINT);
                }
                seconds
            }
            _ => self.as_whole(&found, (0, u32::MAX), HINT),
        }
    }

    /// A length of time in days and hours.
    pub fn age(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<SignedDuration> {
        const HINT: &str = "write days and hours, such as \"30d\" or \"12h\"";
        let found = self.field(fields, name)?;
        let text = self.as_text(&found, HINT)?;
        let age = Age::parse(&text).ok();
        if age.is_none() {
            self.invalid(&found, format!("{:?} is not a length of time", short(&text)), HINT);
        }
        age.map(|age| age.0)
    }

    /// A whole number of any size that fits.
    pub fn count(&mut self, fields: &mut Fields<'_>, name: &'static str, hint: &str) -> Option<u32> {
        let found = self.field(fields, name)?;
        self.as_whole(&found, (0, u32::MAX), hint)
    }

    /// True or false.
    pub fn boolean(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<bool> {
        let found = self.field(fields, name)?;
        let Value::Bool(value) = &found.node.value else {
            self.wrong_kind(&found, "true or false", "write true or false, without quotes");
            return None;
        };
        Some(*value)
    }

    /// Words of a command.
    pub fn words(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Vec<String>> {
        const HINT: &str = "write a list of words, such as [\"sleep\", \"infinity\"]";
        let found = self.field(fields, name)?;
        let items = self.items(&found, HINT)?;
        Some(items.iter().filter_map(|item| self.as_text(item, HINT)).collect())
    }

    /// One of a few words.
    pub fn choice<T: Copy>(
        &mut self,
        fields: &mut Fields<'_>,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let found = self.field(fields, name)?;
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let hint = format!("write one of {}", words.join(", "));
        let text = self.as_text(&found, &hint)?;
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if chosen.is_none() {
            let hint = match nearest(&text, words) {
                Some(near) => format!("did you mean {near}? {hint}"),
                None => hint,
            };
            self.invalid(&found, format!("{:?} is not known", short(&text)), hint);
        }
        chosen
    }
}

impl Fields<'_> {
    /// The path of a key of this table.
    pub fn below(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether a key is there, asked for or not.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }
}

/// A text from elsewhere, short enough for a message.
fn short(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}
