//! What a change changed of a pod.

use serde_json::Value;

use super::view::{Became, View, differences};

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

/// Before and after of what differs, as [`differences`] tells it.
#[must_use]
pub fn changes(before: Option<&PodColumns>, after: Option<&PodColumns>) -> Became {
    // Most changes are none of these columns.
    if before == after {
        return (None, None);
    }
    differences(before.map(view), after.map(view))
}

fn view(pod: &PodColumns) -> View {
    let mut view = View::default();
    view.show("name", pod.name.as_str());
    view.show("desired", pod.desired.as_str());
    view.show("purgeAt", pod.purge_at.as_deref());
    // A document that cannot be read shows nothing: what is in it may be anything.
    let spec = serde_json::from_str::<Value>(&pod.spec).ok();
    let spec = spec.map(|mut document| document.get_mut("spec").map_or(Value::Null, Value::take));
    if let Some(Value::Object(fields)) = spec {
        for (name, value) in fields {
            view.show_document(&name, &name, value);
        }
    }
    view
}
