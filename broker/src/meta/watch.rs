//! A watch of the embedded store: what was kept of the past, then what is published.
//!
//! Invariant: changes come in order of revision, each once, and none is left out silently: a watch that was too slow
//! is told so and ends.

use std::collections::VecDeque;
use std::sync::Arc;

use corelog_core::meta::{Compacted, Event, Key, Revision};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::StoreError;

/// The changes of one or more revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The watch has now seen everything up to here.
    pub revision: Revision,
    /// Never empty.
    pub events: Vec<Event>,
}

/// All changes of one revision, as the store publishes them.
pub(super) type Published = Arc<[Event]>;

/// Changes under a prefix, one revision after the other.
#[derive(Debug)]
pub struct Watch {
    prefix: Key,
    /// What was asked for, then what was seen.
    seen: Revision,
    past: VecDeque<Event>,
    published: broadcast::Receiver<Published>,
}

impl Watch {
    pub(super) fn new(
        prefix: Key,
        after: Revision,
        past: VecDeque<Event>,
        published: broadcast::Receiver<Published>,
    ) -> Self {
        Self { prefix, seen: after, past, published }
    }

    /// The next changes; waits for them. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the watch was too slow: read the range again. [`StoreError::Closed`].
    pub async fn next(&mut self) -> Result<Changes, StoreError> {
        if let Some(last) = self.past.back() {
            self.seen = last.revision();
            return Ok(Changes { revision: self.seen, events: self.past.drain(..).collect() });
        }
        loop {
            let published = match self.published.recv().await {
                Ok(published) => published,
                Err(RecvError::Closed) => return Err(StoreError::Closed),
                Err(RecvError::Lagged(_)) => return Err(Compacted { up_to: self.seen.next() }.into()),
            };
            let wanted =
                |event: &&Event| event.revision() > self.seen && event.key().starts_with(&self.prefix);
            let events: Vec<Event> = published.iter().filter(wanted).cloned().collect();
            if let Some(event) = events.first() {
                self.seen = event.revision();
                return Ok(Changes { revision: self.seen, events });
            }
        }
    }
}
