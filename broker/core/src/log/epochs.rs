//! Which leader epoch wrote which offsets of a log (KIP-101): the start offset of every epoch that appended.
//!
//! Invariant: epochs and start offsets both rise strictly from entry to entry.

use corelog_wire::ids::{LeaderEpoch, Offset};

/// The epochs of one log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochTable {
    starts: Vec<(LeaderEpoch, Offset)>,
}

impl EpochTable {
    /// A table from its entries; `None` if they do not rise.
    #[must_use]
    pub fn from_entries(starts: Vec<(LeaderEpoch, Offset)>) -> Option<Self> {
        let rises = starts.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1);
        rises.then_some(Self { starts })
    }

    /// Its entries, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[(LeaderEpoch, Offset)] {
        &self.starts
    }

    /// The newest epoch that appended.
    #[must_use]
    pub fn last(&self) -> Option<LeaderEpoch> {
        self.starts.last().map(|(epoch, _)| *epoch)
    }

    /// A batch of this epoch was appended at `offset`.
    pub fn appended(&mut self, epoch: LeaderEpoch, offset: Offset) {
        if self.last().is_some_and(|last| last >= epoch) {
            return;
        }
        // An epoch whose records are all gone, or that never had any here, gives up its place.
        while self.starts.last().is_some_and(|(_, start)| *start >= offset) {
            self.starts.pop();
        }
        self.starts.push((epoch, offset));
    }

    /// Everything below `log_start` is gone: the epoch that holds it now starts there.
    pub fn forget_below(&mut self, log_start: Offset) {
        let kept_from = self.starts.partition_point(|(_, start)| *start <= log_start).saturating_sub(1);
        self.starts.drain(..kept_from);
        if let Some(first) = self.starts.first_mut()
            && first.1 < log_start
        {
            first.1 = log_start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(u32, u64)]) -> EpochTable {
        let entries = entries.iter().map(|(e, o)| (LeaderEpoch::new(*e), Offset::new(*o))).collect();
        EpochTable::from_entries(entries).unwrap()
    }

    #[test]
    fn an_epoch_starts_where_it_first_appended() {
        let mut epochs = EpochTable::default();
        for (epoch, offset) in [(1, 0), (1, 5), (3, 9), (3, 12), (2, 13)] {
            epochs.appended(LeaderEpoch::new(epoch), Offset::new(offset));
        }
        assert_eq!(epochs, table(&[(1, 0), (3, 9)]));
    }

    #[test]
    fn forgetting_keeps_the_epoch_that_holds_the_new_start() {
        let mut epochs = table(&[(1, 0), (3, 9), (4, 20)]);
        epochs.forget_below(Offset::new(12));
        assert_eq!(epochs, table(&[(3, 12), (4, 20)]));
        epochs.forget_below(Offset::new(20));
        assert_eq!(epochs, table(&[(4, 20)]));
        epochs.forget_below(Offset::new(25));
        assert_eq!(epochs, table(&[(4, 25)]));
    }

    #[test]
    fn an_epoch_that_lost_all_its_records_gives_up_its_place() {
        let mut epochs = table(&[(1, 0)]);
        epochs.forget_below(Offset::new(5));
        epochs.appended(LeaderEpoch::new(2), Offset::new(5));
        assert_eq!(epochs, table(&[(2, 5)]));
    }

    #[test]
    fn entries_that_do_not_rise_are_refused() {
        let entries = vec![(LeaderEpoch::new(2), Offset::new(0)), (LeaderEpoch::new(2), Offset::new(4))];
        assert_eq!(EpochTable::from_entries(entries), None);
    }
}
