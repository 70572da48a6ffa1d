//! How far a long command is: shown on a terminal, and only there.

use std::io::{IsTerminal, stderr};
use std::time::Instant;

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use super::OutputFormat;

/// A bar or a spinner on standard error, or nothing.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    bytes: u64,
    records: u64,
}

impl Progress {
    /// `of` bytes in all, if that is known. `shared` says that standard output is a terminal too, so that a bar would be
    /// mixed with it.
    pub(super) fn new(of: Option<u64>, output: OutputFormat, shared: bool) -> Self {
        let wanted = stderr().is_terminal() && output == OutputFormat::Text && !shared;
        let bar = wanted.then(|| {
            let (bar, template) = match of {
                Some(of) => (
                    ProgressBar::new(of),
                    "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} to go",
                ),
                None => (ProgressBar::new_spinner(), "{spinner} {binary_bytes}, {binary_bytes_per_sec}"),
            };
            let style = ProgressStyle::with_template(template);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, started: Instant::now(), bytes: 0, records: 0 }
    }

    pub(super) fn add(&mut self, bytes: u64, records: u64) {
        self.bytes += bytes;
        self.records += records;
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
        }
    }

    /// Takes the bar away and says in one line what was done.
    pub(super) fn finish(self, what: &str) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
            let took = self.started.elapsed();
            let bytes = BinaryBytes(self.bytes);
            super::complain(&format!("{what} {} records, {bytes} in {took:.1?}", self.records));
        }
    }
}
