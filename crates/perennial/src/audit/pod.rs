//! What a change changed of a pod: only that, and nothing secret.
//!
//! Values of environment variables, and the words of commands behind the first, are never in the audit, which nobody can
//! delete anything from: where only such a value changed, its name says so.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A pod's columns before or after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodColumns {
    /// Its name.
    pub name: String,
    /// What is wanted of it.
    pub desired: String,
    /// When it is purged.
    pub purge_at: Option<String>,
    /// Its specification, as it is stored.
    pub spec: String,
}

/// Before and after of what differs, as JSON; `None` for what does not exist, and both `None` when nothing differs.
#[must_use]
pub fn changes(before: Option<&PodColumns>, after: Option<&PodColumns>) -> (Option<String>, Option<String>) {
    if before == after {
        return (None, None);
    }
    let [mut was, mut is] = [before, after].map(|pod| pod.map(View::of));
    if let (Some(was), Some(is)) = (&mut was, &mut is) {
        let hidden: Vec<Value> = was
            .hidden
            .iter()
            .filter(|(name, value)| is.hidden.get(*name).is_some_and(|now| now != *value))
            .map(|(name, _)| Value::String(name.clone()))
            .collect();
        was.shown.retain(|name, value| is.shown.get(name) != Some(&*value));
        let View { shown, .. } = View::of_option(before);
        is.shown.retain(|name, value| shown.get(name) != Some(&*value));
        if !hidden.is_empty() {
            is.shown.insert("changed".to_owned(), Value::Array(hidden));
        }
    }
    let text = |view: Option<View>| view.map(|view| Value::Object(view.shown).to_string());
    (text(was), text(is))
}

/// What is shown of a pod, and what is only compared.
#[derive(Default)]
struct View {
    shown: Map<String, Value>,
    hidden: BTreeMap<String, String>,
}

impl View {
    fn of_option(pod: Option<&PodColumns>) -> Self {
        pod.map(Self::of).unwrap_or_default()
    }

    fn of(pod: &PodColumns) -> Self {
        let mut view = Self::default();
        let text = |text: &str| Value::String(text.to_owned());
        view.shown.insert("name".to_owned(), text(&pod.name));
        view.shown.insert("desired".to_owned(), text(&pod.desired));
        if let Some(at) = &pod.purge_at {
            view.shown.insert("purgeAt".to_owned(), text(at));
        }
        // A document that cannot be read shows nothing: what is in it may be anything.
        let spec = serde_json::from_str::<Value>(&pod.spec).ok();
        let spec = spec.map(|mut document| document.get_mut("spec").map_or(Value::Null, Value::take));
        if let Some(Value::Object(fields)) = spec {
            for (name, value) in fields {
                view.field(&name, value);
            }
        }
        view
    }

    fn field(&mut self, name: &str, value: Value) {
        let shown = match (name, value) {
            (_, Value::Null) => return,
            ("env" | "secrets", Value::Object(variables)) => {
                let names = variables.keys().cloned().map(Value::String).collect();
                for (variable, value) in variables {
                    self.hidden.insert(format!("{name}.{variable}"), value.to_string());
                }
                Value::Array(names)
            }
            ("command" | "entrypoint", words) => self.command(name, &words),
            ("hooks", Value::Object(mut hooks)) => {
                for (which, hook) in &mut hooks {
                    if let Some(words) = hook.get_mut("command") {
                        *words = self.command(&format!("hooks.{which}.command"), words);
                    }
                }
                Value::Object(hooks)
            }
            (_, value) => value,
        };
        self.shown.insert(name.to_owned(), shown);
    }

    /// How many words there are: with the image's entry point before them even the first may be a secret.
    fn command(&mut self, name: &str, words: &Value) -> Value {
        self.hidden.insert(name.to_owned(), words.to_string());
        match words.as_array().map_or(0, Vec::len) {
            0 => Value::Array(Vec::new()),
            1 => Value::String("1 word".to_owned()),
            count => Value::String(format!("{count} words")),
        }
    }
}
