//! What is printed: a Markdown table on stdout, a row per figure; errors on stderr.

use crate::procfs;
use std::io::{self, Write};

/// One table. Rows go out as soon as they are known.
#[derive(Debug)]
pub(crate) struct Report {
    command: String,
}

impl Report {
    /// Prints the head of the table.
    pub(crate) fn begin() -> io::Result<Self> {
        let words: Vec<String> = std::env::args().map(|word| quoted(&word)).collect();
        let report = Self { command: words.join(" ").replace('|', "\\|") };
        report.line("| figure | unit | median | from | to | runs | load 1 5 15 min | command |")?;
        report.line("| --- | --- | ---: | ---: | ---: | ---: | --- | --- |")?;
        Ok(report)
    }

    /// Prints one figure, by the values of its runs.
    pub(crate) fn row(&self, figure: &str, unit: &str, values: &[f64]) -> io::Result<()> {
        let (least, most) = (quantile(values, 0.0), quantile(values, 1.0));
        self.line(&format!(
            "| {figure} | {unit} | {} | {} | {} | {} | {} | `{}` |",
            shown(median(values)),
            shown(least),
            shown(most),
            values.len(),
            procfs::load(),
            self.command
        ))
    }

    fn line(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}

/// Says why a measurement was given up.
pub(crate) fn complain(error: &anyhow::Error) {
    drop(writeln!(io::stderr(), "nexus-bench: {error:#}")); // nobody may be there to read it
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the part `part` (0 to 1) of `values` lies, between two of them in
/// proportion; 0 for none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = part.clamp(0.0, 1.0) * last as f64;
    let below = place.floor();
    let (low, high) = (sorted[below as usize], sorted[place.ceil() as usize]);
    low + (high - low) * (place - below)
}

/// Three digits that count, and no fraction from 100 on.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((quantile(&[5.0], 0.99) - 5.0).abs() < 1e-9);
        assert!((quantile(&[], 0.5)).abs() < 1e-9);
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert!((quantile(&hundred, 0.99) - 99.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_and_words_as_they_are_shown() {
        assert_eq!([61_234.4, 61.24, 6.124, 0.6124, 0.0021].map(shown), ["61234", "61.2", "6.12", "0.612", "0.00210"]);
        assert_eq!(quoted("--dir=/var/tmp"), "--dir=/var/tmp");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
