//! What every metadata store must do, as scripts: data that any store can be run through.
//!
//! A script names keys by their ending and revisions by a name of its own, so that it runs in a store that others use
//! too, whatever its revisions are. [`Runner`] turns steps into [`Command`]s and checks the [`Answer`]s; performing
//! them is the store's affair, synchronous or not:
//!
//! ```text
//! let mut runner = Runner::new(script, prefix);
//! while let Some(command) = runner.command() {
//!     let answer = perform(command);
//!     runner.answer(answer)?;
//! }
//! ```

mod run;
mod scripts;

pub use run::{Answer, Command, Mismatch, Runner};
pub use scripts::SCRIPTS;

/// A named sequence of steps.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// What it shows.
    pub name: &'static str,
    /// In order.
    pub steps: &'static [Step],
}

/// An entry as a script expects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Ending of the key.
    pub key: &'static str,
    /// The value.
    pub value: &'static str,
    /// Name of the revision of its creation.
    pub created: &'static str,
    /// Name of the revision of its last change.
    pub modified: &'static str,
}

/// What must hold, by names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum If {
    /// The key does not exist.
    Absent(&'static str),
    /// The key exists.
    Present(&'static str),
    /// The key was last put at the named revision.
    Modified(&'static str, &'static str),
    /// The key was created at the named revision.
    Created(&'static str, &'static str),
}

/// A change, by names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Do {
    /// Sets a key.
    Put(&'static str, &'static str),
    /// Sets a key under the named session.
    PutIn(&'static str, &'static str, &'static str),
    /// Removes a key.
    Delete(&'static str),
}

/// A change as a watch sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A key was set.
    Put(Entry),
    /// A key went, at the named revision.
    Gone(&'static str, &'static str),
}

/// One step: what is asked and what must come back.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Reads one key.
    Get(&'static str, Option<Entry>),
    /// Reads a prefix.
    Range(&'static str, &'static [Entry]),
    /// A transaction that takes place. Its revision gets a name, which must be new unless nothing changed.
    Done(&'static [If], &'static [Do], &'static str),
    /// A transaction that takes place but changes nothing: the revision stays that of this name.
    Idle(&'static [If], &'static [Do], &'static str),
    /// A transaction that does not take place, what it reads, and what is there.
    Refused(&'static [If], &'static [Do], &'static [&'static str], &'static [Option<Entry>]),
    /// A transaction that the store does not even try.
    Illegal(&'static [Do]),
    /// Opens a session and names it.
    Open(&'static str),
    /// Ends a session; its keys go, all at one revision.
    End(&'static str),
    /// Watches a prefix from after a named revision, under a name.
    Watch(&'static str, &'static str, &'static str),
    /// The next changes of a watch, all of them and in this order. A name not met before names the revision of an
    /// ended session.
    Sees(&'static str, &'static [Seen]),
    /// A watch is told that it is too late.
    Lapsed(&'static str),
    /// Changes up to the named revision are forgotten.
    Compact(&'static str),
}
