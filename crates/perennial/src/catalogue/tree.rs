//! A document before anything is made of it: TOML or JSON as one tree, every part with its place.
//!
//! Serde stops at the first thing it does not like; whoever wrote a file wants to know all of them. So the tree is read as far as
//! it goes ([`toml::de::DeTable::parse_recoverable`]), and what it says is looked at afterwards.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Bytes of the document; empty in JSON, where nobody looks for lines.
pub type Span = Range<usize>;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where.
    pub span: Span,
    /// What.
    pub value: Value,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Left out on purpose; JSON only.
    Null,
    /// A text.
    Text(String),
    /// A whole number; one that does not fit is a [`Self::Number`].
    Whole(i64),
    /// A number.
    Number(f64),
    /// True or false.
    Bool(bool),
    /// A date or a time; TOML only.
    Time,
    /// A list.
    List(Vec<Node>),
    /// Keys and values, in the order of the document where it has one.
    Table(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where it stands.
    pub span: Span,
    /// The value.
    pub node: Node,
}

/// Something that is no TOML or no JSON at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where; `None` when nobody knows.
    pub at: Option<usize>,
    /// What.
    pub problem: String,
}

impl Value {
    /// The kind, for people.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a text",
            Self::Whole(_) | Self::Number(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Time => "a time",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Reads TOML as far as it goes.
pub fn of_toml(text: &str) -> (Node, Vec<SyntaxError>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let error = |error: toml::de::Error| SyntaxError {
        at: error.span().map(|span| span.start),
        problem: error.message().to_owned(),
    };
    let span = table.span();
    (Node { span, value: of_table(table.get_ref()) }, errors.into_iter().map(error).collect())
}

fn of_table(table: &DeTable<'_>) -> Value {
    let entry = |(key, value): (&Spanned<toml::de::DeString<'_>>, &Spanned<DeValue<'_>>)| Entry {
        key: key.get_ref().clone().into_owned(),
        span: key.span(),
        node: of_value(value),
    };
    let mut entries: Vec<Entry> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.span.start);
    Value::Table(entries)
}

fn of_value(value: &Spanned<DeValue<'_>>) -> Node {
    let read = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Number(f64::INFINITY), Value::Whole)
        }
        DeValue::Float(number) => Value::Number(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(_) => Value::Time,
        DeValue::Array(items) => Value::List(items.iter().map(of_value).collect()),
        DeValue::Table(table) => of_table(table),
    };
    Node { span: value.span(), value: read }
}

/// Reads JSON.
///
/// # Errors
/// The first place that is no JSON.
pub fn of_json(text: &[u8]) -> Result<Node, SyntaxError> {
    serde_json::from_slice(text).map_err(|error| SyntaxError { at: None, problem: error.to_string() })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

/// Takes whatever comes, keys that come twice as well.
struct NodeVisitor;

impl NodeVisitor {
    const fn node<E>(value: Value) -> Result<Node, E> {
        Ok(Node { span: 0..0, value })
    }
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Self::node(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        Self::node(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        Self::node(Value::Whole(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        Self::node(i64::try_from(value).map_or(Value::Number(f64::INFINITY), Value::Whole))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        Self::node(Value::Number(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Self::node(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Self::node(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut table = Vec::new();
        while let Some((key, node)) = entries.next_entry()? {
            table.push(Entry { key, span: 0..0, node });
        }
        Self::node(Value::Table(table))
    }
}
