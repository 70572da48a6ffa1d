//! What happened, folded into one number, and printed where somebody wants to read it.
//!
//! Every input, effect and disk operation passes through here. Invariant: printing never changes the hash.

use std::fmt::Arguments;

/// The running hash of a run, and where its lines go.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    printing: bool,
    now: u64,
}

impl Trace {
    /// An empty trace; `printing` writes each line to standard output.
    #[must_use]
    pub const fn new(printing: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, printing, now: 0 }
    }

    /// The virtual time of what follows.
    pub fn at(&mut self, now: u64) {
        self.now = now;
    }

    /// Records one event: what kind, and its numbers.
    pub fn event(&mut self, kind: &'static str, numbers: &[u64]) {
        self.events += 1;
        self.fold(self.now);
        self.fold(u64::from(crc32fast::hash(kind.as_bytes())));
        for &number in numbers {
            self.fold(number);
        }
        if self.printing {
            self.print(format_args!("{kind} {numbers:?}"));
        }
    }

    /// A line for the reader only. The caller gives what it says also as numbers where it matters.
    pub fn say(&self, line: Arguments<'_>) {
        if self.printing {
            self.print(line);
        }
    }

    /// Whether lines are printed: lets a caller save the work of making them.
    #[must_use]
    pub const fn printing(&self) -> bool {
        self.printing
    }

    /// The hash of everything so far.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    fn fold(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    #[expect(clippy::print_stdout, reason = "a trace is asked for on the command line")]
    fn print(&self, line: Arguments<'_>) {
        println!("{:>14.6} {line}", self.now as f64 / 1e9);
    }
}
