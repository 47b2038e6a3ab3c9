//! Columns and lists of facts. Colours are put on whole lines, after the columns were measured.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Table};

use super::out::{Colour, Out, clean};

/// Rows below headings.
pub struct Rows {
    table: Table,
    colours: Vec<Option<Colour>>,
    columns: usize,
}

impl Rows {
    /// An empty table.
    pub fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(headings.iter().map(Cell::new));
        Self { table, colours: Vec::new(), columns: headings.len() }
    }

    /// Adds a row; its cells are made safe for a terminal.
    pub fn row(&mut self, colour: Option<Colour>, cells: impl IntoIterator<Item = String>) {
        self.table.add_row(cells.into_iter().map(|cell| Cell::new(clean(&cell))));
        self.colours.push(colour);
    }

    /// Renders it for standard output.
    pub fn render(mut self, out: &Out) -> String {
        for index in 0..self.columns {
            if let Some(column) = self.table.column_mut(index) {
                column.set_padding((0, if index + 1 == self.columns { 0 } else { 2 }));
            }
        }
        let colours = std::iter::once(Some(Colour::Bold)).chain(self.colours);
        let lines = self.table.lines().zip(colours).map(|(line, colour)| match colour {
            Some(colour) => out.paint(colour, line.trim_end()),
            None => line.trim_end().to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A list of facts, names to the left.
#[derive(Default)]
pub struct Facts {
    facts: Vec<(&'static str, String)>,
}

impl Facts {
    /// Adds a fact, made safe for a terminal.
    pub fn fact(&mut self, name: &'static str, value: impl AsRef<str>) -> &mut Self {
        self.facts.push((name, clean(value.as_ref())));
        self
    }

    /// Adds a fact when there is one.
    pub fn maybe(&mut self, name: &'static str, value: Option<impl AsRef<str>>) -> &mut Self {
        match value {
            Some(value) => self.fact(name, value),
            None => self,
        }
    }

    /// Renders it for standard output.
    pub fn render(&self, out: &Out) -> String {
        let width = self.facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, value): &(&str, String)| {
            format!("{}{}  {value}", out.paint(Colour::Bold, name), " ".repeat(width - name.len()))
        };
        self.facts.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
