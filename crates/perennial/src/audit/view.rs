//! What a change changed of a thing: only that, and nothing secret.
//!
//! Values of environment variables, the words of commands, addresses and hashes are never in the audit, which nobody can
//! delete anything from: where only such a value changed, its name says so.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Fields of a thing, as they are told.
pub type Fields = Map<String, Value>;

/// Those that were, and those that are.
pub type Became = (Option<Fields>, Option<Fields>);

/// What is shown of a thing, and what is only compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    shown: Fields,
    hidden: BTreeMap<String, String>,
}

impl View {
    /// Shows a field; an empty text or list, and null, are no value.
    pub fn show(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        let is_nothing = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if !is_nothing {
            self.shown.insert(name.to_owned(), value);
        }
    }

    /// Compares a field, and does not show it.
    pub fn hide(&mut self, name: &str, value: impl Into<String>) {
        self.hidden.insert(name.to_owned(), value.into());
    }

    /// Shows a part of a document without the secrets in it. `path` says where it is; `name` says what it is, such as `env`.
    pub fn show_document(&mut self, path: &str, name: &str, document: Value) {
        let value = self.without_secrets(path, name, document);
        self.show(path, value);
    }

    /// Takes what is secret out of a value, wherever in it.
    fn without_secrets(&mut self, path: &str, name: &str, value: Value) -> Value {
        match (name, value) {
            (_, Value::Null) => Value::Null,
            ("env" | "secrets", Value::Object(variables)) => {
                let names = variables.keys().cloned().map(Value::String).collect();
                for (variable, value) in variables {
                    self.hide(&format!("{path}.{variable}"), value.to_string());
                }
                Value::Array(names)
            }
            // Of another shape than any that is written: what is in it may be anything.
            ("env" | "secrets", value) => {
                self.hide(path, value.to_string());
                Value::Null
            }
            ("command" | "entrypoint", words) => self.count(path, &words),
            // The query of a path that a server is asked for.
            ("path", Value::String(text)) if text.contains('?') => {
                let before = text.split('?').next().unwrap_or_default();
                let shown = format!("{before}?…");
                self.hide(path, text);
                Value::String(shown)
            }
            (_, Value::Array(items)) => {
                let items = items.into_iter().enumerate();
                Value::Array(items.map(|(at, item)| self.without_secrets(&format!("{path}.{at}"), "", item)).collect())
            }
            (_, Value::Object(fields)) => {
                let mut shown = Map::new();
                for (name, value) in fields {
                    let path = format!("{path}.{name}");
                    if name == "revision" {
                        // A hash of all of it, secrets as well: with the rest beside it short ones are found by trying.
                        self.hide(&path, value.to_string());
                    } else {
                        let value = self.without_secrets(&path, &name, value);
                        shown.insert(name, value);
                    }
                }
                Value::Object(shown)
            }
            (_, value) => value,
        }
    }

    /// How many words there are: with the image's entry point before them even the first may be a secret.
    fn count(&mut self, path: &str, words: &Value) -> Value {
        self.hide(path, words.to_string());
        match words.as_array().map_or(0, Vec::len) {
            0 => Value::Array(Vec::new()),
            1 => Value::String("1 word".to_owned()),
            count => Value::String(format!("{count} words")),
        }
    }
}

/// Before and after of what differs; `None` for what does not exist, and both `None` when nothing differs.
#[must_use]
pub fn differences(before: Option<View>, after: Option<View>) -> Became {
    match (before, after) {
        (before, after) if before == after => (None, None),
        (Some(was), Some(is)) => {
            let differs = |name: &String, of: &Value, than: &View| than.shown.get(name) != Some(of);
            let hidden =
                was.hidden.iter().filter(|(name, value)| is.hidden.get(*name).is_some_and(|now| now != *value));
            let hidden: Vec<Value> = hidden.map(|(name, _)| Value::String(name.clone())).collect();
            let fields = |of: &View, than: &View| -> Fields {
                let those = of.shown.iter().filter(|(name, value)| differs(name, value, than));
                those.map(|(name, value)| (name.clone(), value.clone())).collect()
            };
            let (old, mut new) = (fields(&was, &is), fields(&is, &was));
            if !hidden.is_empty() {
                new.insert("changed".to_owned(), Value::Array(hidden));
            }
            (Some(old), Some(new))
        }
        (before, after) => (before.map(|view| view.shown), after.map(|view| view.shown)),
    }
}
