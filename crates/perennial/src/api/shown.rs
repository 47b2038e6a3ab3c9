//! Pods as they were last written out, so that a page of a list is put together instead of made anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_core::id::PodId;

use crate::store::PodHead;

/// Pods that are remembered; beyond, all are forgotten and come back with the next lists. About 2 kB each.
const MOST: usize = 20_000;

/// The JSON of pods, by what it was made from.
#[derive(Debug, Clone, Default)]
pub struct ShownPods(Arc<Mutex<HashMap<PodId, Shown>>>);

#[derive(Debug)]
struct Shown {
    head: PodHead,
    json: Arc<str>,
}

impl ShownPods {
    fn known(&self) -> MutexGuard<'_, HashMap<PodId, Shown>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The JSON of each of these pods; `None` where it is not known, or changed since.
    pub fn find(&self, heads: &[PodHead]) -> Vec<Option<Arc<str>>> {
        let known = self.known();
        let find = |head: &PodHead| known.get(&head.id).filter(|s| s.head == *head).map(|s| Arc::clone(&s.json));
        heads.iter().map(find).collect()
    }

    /// Remembers the JSON of a pod.
    pub fn remember(&self, head: PodHead, json: Arc<str>) {
        let mut known = self.known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(head.id, Shown { head, json });
    }
}

/// The JSON of a [`List`](super::wire::List) of these items.
pub fn page(items: &[Arc<str>], next: Option<&str>) -> serde_json::Result<Vec<u8>> {
    let bytes: usize = items.iter().map(|item| item.len() + 1).sum();
    let mut page = Vec::with_capacity(bytes + 64);
    page.extend_from_slice(b"{\"items\":[");
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            page.push(b',');
        }
        page.extend_from_slice(item.as_bytes());
    }
    page.extend_from_slice(b"],\"next\":");
    serde_json::to_writer(&mut page, &next)?;
    page.push(b'}');
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::List;

    #[test]
    fn a_page_is_the_json_of_a_list() {
        for (items, next) in [(vec![], None), (vec![1], None), (vec![1, 2, 3], Some("a \"quoted\" cursor"))] {
            let json: Vec<Arc<str>> = items.iter().map(|n: &i32| n.to_string().into()).collect();
            let list = List { items, next: next.map(str::to_owned) };
            let page = page(&json, next).expect("a page");
            assert_eq!(String::from_utf8(page).ok(), serde_json::to_string(&list).ok());
        }
    }

    #[test]
    fn only_what_was_made_from_the_same_is_found() {
        let head = |version: i64, latest: &str| PodHead {
            id: PodId::from_parts(1, [1; 10]),
            version,
            latest: latest.to_owned(),
        };
        let shown = ShownPods::default();
        shown.remember(head(2, "a"), "json".into());
        let found = shown.find(&[head(2, "a"), head(3, "a"), head(2, "b"), head(2, "")]);
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, false]);
    }
}
