//! Rows with aligned columns. Widths are counted in characters, before colours; what strangers wrote
//! is made harmless.

use super::out::{Color, Paint, visible};

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    color: Option<Color>,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: visible(&text.into()), color: None }
    }

    pub(crate) fn colored(text: impl Into<String>, color: Color) -> Self {
        Self { text: visible(&text.into()), color: Some(color) }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Each row as a line, every column but the last as wide as its widest cell and the gap behind it.
/// A column beyond the gaps has two blanks behind it.
pub(crate) fn lines<const COLUMNS: usize>(rows: &[[Cell; COLUMNS]], gaps: &[usize], paint: Paint) -> Vec<String> {
    let widths: Vec<usize> = (0..COLUMNS).map(|column| rows.iter().map(|row| row[column].width()).max().unwrap_or(0)).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            let mut blanks = 0;
            for (column, cell) in row.iter().enumerate() {
                if !cell.text.is_empty() {
                    line.push_str(&" ".repeat(blanks));
                    line.push_str(&cell.color.map_or_else(|| cell.text.clone(), |color| paint.apply(color, &cell.text)));
                    blanks = 0;
                }
                blanks += widths[column] - cell.width() + gaps.get(column).copied().unwrap_or(2);
            }
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_do_not_trail() {
        let rows = [
            [Cell::new("a"), Cell::new("long"), Cell::new("x")],
            [Cell::new("äöü"), Cell::new(""), Cell::new("")],
            [Cell::new("b"), Cell::new(""), Cell::new("y")],
        ];
        assert_eq!(lines(&rows, &[1, 3], Paint::PLAIN), ["a   long   x", "äöü", "b          y"]);
    }

    #[test]
    fn nothing_has_no_lines() {
        assert!(lines::<2>(&[], &[], Paint::PLAIN).is_empty());
    }
}
