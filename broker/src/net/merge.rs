//! Requests whose rows belong to several shards: who gets which rows, and how the answers become one.
//!
//! Called by `request` and `reply`. Pure: no socket, no clock, no channel. Invariant: an answer has exactly one row for
//! each row of the request, in its order.

use super::seam::{FetchReadyRow, Place};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, ShardId, TopicPartition};
use corelog_wire::message::{DeletedRow, ListedRow, ProducedRow};

/// Where the rows of a request go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<R> {
    /// All to one shard.
    One(ShardId, Vec<R>),
    /// To several, or some to none.
    Many(Split<R>),
}

/// The rows of a request, by shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split<R> {
    /// The rows for each shard, ordered by shard.
    pub(super) parts: Vec<Part<R>>,
    /// Rows that no shard of this broker owns: place in the request, and why.
    pub(super) refused: Vec<(usize, R, ErrorCode)>,
}

/// The rows for one shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<R> {
    /// The shard.
    pub(super) shard: ShardId,
    /// Its rows, in the order of the request.
    pub(super) rows: Vec<R>,
    /// Their places in the request.
    pub(super) places: Vec<usize>,
}

/// Decides where rows go.
pub(super) fn route<R>(rows: Vec<R>, place: impl Fn(&R) -> Place) -> Route<R> {
    let mut places = rows.iter().map(&place);
    if let Some(Place::Shard(shard)) = places.next()
        && places.all(|place| place == Place::Shard(shard))
    {
        return Route::One(shard, rows);
    }
    let mut split = Split { parts: Vec::<Part<R>>::new(), refused: Vec::new() };
    for (index, row) in rows.into_iter().enumerate() {
        match place(&row) {
            Place::Shard(shard) => split.add(shard, index, row),
            Place::NotHere => split.refused.push((index, row, ErrorCode::NotLeader)),
            Place::UnknownPartition => split.refused.push((index, row, ErrorCode::UnknownPartition)),
            Place::UnknownTopic => split.refused.push((index, row, ErrorCode::UnknownTopic)),
        }
    }
    Route::Many(split)
}

impl<R> Route<R> {
    /// The same, with one part if all go to one shard.
    pub(super) fn into_split(self) -> Split<R> {
        match self {
            Self::One(shard, rows) => {
                let places = (0..rows.len()).collect();
                Split { parts: vec![Part { shard, rows, places }], refused: Vec::new() }
            }
            Self::Many(split) => split,
        }
    }
}

impl<R> Split<R> {
    fn add(&mut self, shard: ShardId, place: usize, row: R) {
        let found = self.parts.binary_search_by_key(&shard, |part| part.shard);
        let at = found.unwrap_or_else(|at| {
            self.parts.insert(at, Part { shard, rows: Vec::new(), places: Vec::new() });
            at
        });
        self.parts[at].rows.push(row);
        self.parts[at].places.push(place);
    }

    /// How many rows the request has.
    pub(super) fn row_count(&self) -> usize {
        self.refused.len() + self.parts.iter().map(|part| part.rows.len()).sum::<usize>()
    }
}

/// A row of an answer.
pub(super) trait AnswerRow {
    /// The row that says no.
    fn refused(tp: TopicPartition, error: ErrorCode, message: &str) -> Self;
}

/// The answer under construction.
#[derive(Debug)]
pub(super) struct Rows<A> {
    rows: Vec<Option<A>>,
}

impl<A: AnswerRow> Rows<A> {
    /// An answer with so many rows, none known yet.
    pub(super) fn new(count: usize) -> Self {
        Self { rows: std::iter::repeat_with(|| None).take(count).collect() }
    }

    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }

    /// Sets one row.
    pub(super) fn set(&mut self, place: usize, row: A) {
        self.rows[place] = Some(row);
    }

    /// Takes the answer of one part. Rows that it lacks stay as they were.
    pub(super) fn fill(&mut self, places: &[usize], rows: Vec<A>) {
        for (place, row) in places.iter().zip(rows) {
            self.rows[*place] = Some(row);
        }
    }

    /// Refuses all rows of one part.
    pub(super) fn refuse(&mut self, asked: &[(usize, TopicPartition)], error: ErrorCode, message: &str) {
        for (place, tp) in asked {
            self.rows[*place] = Some(A::refused(*tp, error, message));
        }
    }

    /// The rows known so far, in the request's order.
    pub(super) fn take(&mut self) -> Vec<A> {
        self.rows.drain(..).flatten().collect()
    }
}

impl Rows<FetchReadyRow> {
    /// Bytes of the batches known so far.
    pub(super) fn payload_bytes(&self) -> u64 {
        let slices = self.rows.iter().flatten().flat_map(|row| &row.slices);
        slices.map(|slice| slice.len() as u64).sum()
    }

    /// Lets go of the batches; what the rows say beside them stays, unless it is that nothing is left to read there.
    pub(super) fn drop_payload(&mut self) {
        for row in self.rows.iter_mut().flatten().filter(|row| !row.slices.is_empty()) {
            row.slices = Vec::new();
            row.next_offset = None;
        }
    }
}

/// What a fetch does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FetchStep {
    /// Wait for more parts.
    Wait,
    /// Nothing to read anywhere: ask every part again, waiting this time.
    Park,
    /// Answer now; forget the parts that still wait.
    Answer,
}

/// How far a fetch has come.
///
/// First every shard is asked for what it has now. Only if there is nothing anywhere all are asked to wait, and the
/// first that has something (records or an error) ends it. Two reasons: of several shards, one that answered only when
/// there is something would be cut off by the one that always has, again and again; and what waits for records that
/// nobody may ever write is known to wait, and holds no memory for its answer. A fetch across shards answers with the
/// first record; its `min_bytes` counts as one.
#[derive(Debug)]
pub(super) struct FetchRound {
    parts: usize,
    answered: usize,
    parked: bool,
    may_wait: bool,
    worth_answering: bool,
}

impl FetchRound {
    /// A round of so many parts. `refused`: some rows are known to be refused, which is worth an answer.
    pub(super) fn new(parts: usize, may_wait: bool, refused: bool) -> Self {
        Self { parts, answered: 0, parked: false, may_wait, worth_answering: refused }
    }

    /// One part answered; `something`: with records or an error.
    pub(super) fn answered(&mut self, something: bool) -> FetchStep {
        self.answered += 1;
        self.worth_answering |= something;
        let all = self.answered >= self.parts;
        if all && !self.worth_answering && self.may_wait && !self.parked {
            (self.parked, self.answered) = (true, 0);
            FetchStep::Park
        } else if all || self.parked && self.worth_answering {
            FetchStep::Answer
        } else {
            FetchStep::Wait
        }
    }
}

impl AnswerRow for ProducedRow {
    fn refused(tp: TopicPartition, error: ErrorCode, message: &str) -> Self {
        Self {
            tp,
            error,
            message: message.to_owned(),
            base_offset: Offset::new(0),
            append_timestamp_ms: 0,
            log_start: Offset::new(0),
            replicas_reached: 0,
            durable: false,
        }
    }
}

impl AnswerRow for FetchReadyRow {
    fn refused(tp: TopicPartition, error: ErrorCode, message: &str) -> Self {
        Self {
            tp,
            error,
            message: message.to_owned(),
            high_watermark: Offset::new(0),
            log_start: Offset::new(0),
            log_end: Offset::new(0),
            leader_epoch: LeaderEpoch::new(0),
            next_offset: None,
            slices: Vec::new(),
        }
    }
}

impl AnswerRow for ListedRow {
    fn refused(tp: TopicPartition, error: ErrorCode, _message: &str) -> Self {
        Self { tp, error, offset: Offset::new(0), timestamp_ms: 0, leader_epoch: LeaderEpoch::new(0) }
    }
}

impl AnswerRow for DeletedRow {
    fn refused(tp: TopicPartition, error: ErrorCode, _message: &str) -> Self {
        Self { tp, error, log_start: Offset::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_wire::ids::TopicId;

    fn tp(partition: u32) -> TopicPartition {
        TopicPartition::new(TopicId::from_bytes([1; 16]), partition)
    }

    fn shard(number: u16) -> Place {
        Place::Shard(ShardId::new(number))
    }

    fn deleted(partition: u32, start: u64) -> DeletedRow {
        DeletedRow { tp: tp(partition), error: ErrorCode::None, log_start: Offset::new(start) }
    }

    #[test]
    fn rows_of_one_shard_stay_together() {
        assert_eq!(route(vec!['a', 'b'], |_| shard(3)), Route::One(ShardId::new(3), vec!['a', 'b']));
    }

    #[test]
    fn no_rows_are_an_empty_answer() {
        let Route::Many(split) = route(Vec::<char>::new(), |_| shard(0)) else { panic!("nobody to ask") };
        assert_eq!((split.row_count(), split.parts.len()), (0, 0));
    }

    #[test]
    fn rows_of_several_shards_are_answered_in_the_order_of_the_request() {
        let places =
            [shard(1), Place::UnknownTopic, shard(0), shard(1), Place::NotHere, Place::UnknownPartition];
        let Route::Many(split) = route((0..6_usize).collect(), |row| places[*row]) else { panic!("several") };
        assert_eq!(split.row_count(), 6);
        assert_eq!(split.parts[0], Part { shard: ShardId::new(0), rows: vec![2], places: vec![2] });
        assert_eq!(split.parts[1], Part { shard: ShardId::new(1), rows: vec![0, 3], places: vec![0, 3] });
        let mut rows = Rows::new(6);
        for (place, row, error) in split.refused {
            rows.set(place, DeletedRow::refused(tp(u32::try_from(row).unwrap()), error, ""));
        }
        rows.fill(&split.parts[1].places, vec![deleted(0, 10), deleted(3, 13)]);
        rows.refuse(&[(2, tp(2))], ErrorCode::Throttled, "wait");
        let errors: Vec<_> =
            rows.take().iter().map(|row| (row.tp.partition, row.error, row.log_start.get())).collect();
        assert_eq!(
            errors,
            [
                (0, ErrorCode::None, 10),
                (1, ErrorCode::UnknownTopic, 0),
                (2, ErrorCode::Throttled, 0),
                (3, ErrorCode::None, 13),
                (4, ErrorCode::NotLeader, 0),
                (5, ErrorCode::UnknownPartition, 0),
            ]
        );
    }

    #[test]
    fn a_fetch_hears_every_shard_before_it_answers() {
        let mut round = FetchRound::new(2, true, false);
        assert_eq!(round.answered(true), FetchStep::Wait, "the busy shard does not cut off the other one");
        assert_eq!(round.answered(false), FetchStep::Answer);
    }

    #[test]
    fn a_fetch_with_nothing_to_read_waits_for_the_first_record() {
        let mut round = FetchRound::new(2, true, false);
        assert_eq!(round.answered(false), FetchStep::Wait);
        assert_eq!(round.answered(false), FetchStep::Park);
        assert_eq!(round.answered(true), FetchStep::Answer);
    }

    #[test]
    fn a_parked_fetch_ends_when_all_have_waited_in_vain() {
        let mut round = FetchRound::new(2, true, false);
        for step in [FetchStep::Wait, FetchStep::Park, FetchStep::Wait, FetchStep::Answer] {
            assert_eq!(round.answered(false), step);
        }
    }

    #[test]
    fn a_fetch_that_may_not_wait_or_has_refused_rows_is_answered_at_once() {
        for (may_wait, refused) in [(false, false), (true, true)] {
            let mut round = FetchRound::new(1, may_wait, refused);
            assert_eq!(round.answered(false), FetchStep::Answer);
        }
    }
}
