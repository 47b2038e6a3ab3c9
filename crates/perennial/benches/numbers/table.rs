//! Samples, and how they are shown.

use std::time::Duration;

/// Times of one thing, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub const NONE: Self = Self(Vec::new());

    pub fn add(&mut self, took: Duration) {
        self.extend(vec![took]);
    }

    pub fn extend(&mut self, took: Vec<Duration>) {
        self.0.extend(took.iter().map(Duration::as_secs_f64));
        self.0.sort_unstable_by(f64::total_cmp);
    }

    /// The value that this share of the samples does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        assert!(!self.0.is_empty(), "nothing was measured");
        let last = self.0.len() - 1;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank"
        )]
        let rank = (last as f64 * share).ceil() as usize;
        self.0[rank.min(last)]
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Median, least and greatest, in milliseconds.
    pub fn cells(&self) -> [String; 3] {
        [self.median(), self.quantile(0.0), self.quantile(1.0)].map(millis)
    }

    /// Median, least and greatest, in seconds.
    pub fn seconds(&self) -> String {
        format!("{:.2} ({:.2}–{:.2})", self.median(), self.quantile(0.0), self.quantile(1.0))
    }
}

pub fn millis(seconds: f64) -> String {
    format!("{:.1}", seconds * 1000.0)
}

/// Prints rows under a heading; the first column is text, the others are numbers.
pub fn print(title: &str, head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let line = |cells: &[&str]| {
        let pad = |(column, cell): (usize, &&str)| {
            let width = width(column);
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        };
        println!("{}", cells.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ").trim_end());
    };
    println!("\n{title}\n");
    line(head);
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Prints rows under a heading as documentation has them.
pub fn markdown(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n{title}\n\n| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// A value beside its limit.
pub struct Limit {
    pub what: String,
    pub value: f64,
    pub most: f64,
    pub unit: &'static str,
}

/// Prints what was promised and answers what was not kept.
pub fn limits(title: &str, all: &[Limit]) -> Vec<String> {
    let show = |l: &Limit| {
        let kept = if l.value <= l.most { "yes" } else { "NO" };
        vec![l.what.clone(), format!("{:.2}{}", l.value, l.unit), format!("{}{}", l.most, l.unit), kept.to_owned()]
    };
    print(title, &["", "measured", "at most", "kept"], &all.iter().map(show).collect::<Vec<_>>());
    let missed = all.iter().filter(|l| l.value > l.most);
    missed.map(|l| format!("{}: {:.2}{}, at most {}{}", l.what, l.value, l.unit, l.most, l.unit)).collect()
}
