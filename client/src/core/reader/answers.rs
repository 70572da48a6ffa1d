//! What a reader makes of answers, failures and time.
//!
//! Part of `reader`; its invariants hold here.

use std::time::{Duration, Instant};

use bytes::Bytes;
use corelog_wire::batch::{BodyCheck, StoredBatches};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{Offset, TopicPartition};
use corelog_wire::message::{Answer, FetchedRow, ListedRow, MetadataAnswer};

use super::{Effect, Log, Next, Partitions, Reader, ReaderEvent, RequestId, Start};
use crate::core::metadata::topic_of;
use crate::error::Error;

type Out = Vec<Effect<ReaderEvent>>;

const CHANGED: Effect<ReaderEvent> = Effect::Event(ReaderEvent::Changed);

/// A topic that no broker has known for so long is gone.
const GONE_PATIENCE: Duration = Duration::from_secs(3);

impl Reader {
    pub(super) fn answered(
        &mut self,
        now: Instant,
        id: RequestId,
        answer: Answer,
        payload: &Bytes,
        out: &mut Out,
    ) {
        match answer {
            Answer::Metadata(answer) if self.topic_asked == Some(id) => self.topic_told(now, &answer, out),
            Answer::Refused { refusal, .. } => {
                let throttle = Duration::from_millis(refusal.throttle_ms.into());
                self.fail(now, id, &refusal.into(), throttle, out);
            }
            Answer::Fetch(answer) => {
                let throttle = Duration::from_millis(answer.throttle_ms.into());
                let tps: Vec<_> = answer.rows.iter().map(|row| row.tp).collect();
                if answer.rows_within(payload.len()).is_err() || !self.matches(id, &tps) {
                    let error = Error::protocol("the rows do not match the request or the payload");
                    return self.fail(now, id, &error, throttle, out);
                }
                for (partition, row) in self.end(id).into_iter().zip(&answer.rows) {
                    self.fetched(now, id, partition, row, payload);
                    self.rest(now, partition, throttle);
                }
                out.push(CHANGED);
            }
            Answer::ListOffsets(answer) => {
                let tps: Vec<_> = answer.rows.iter().map(|row| row.tp).collect();
                if !self.matches(id, &tps) {
                    let error = Error::protocol("the rows do not match the request");
                    return self.fail(now, id, &error, Duration::ZERO, out);
                }
                for (partition, row) in self.end(id).into_iter().zip(&answer.rows) {
                    self.listed(now, id, partition, row);
                }
                out.push(CHANGED);
            }
            _ => self.fail(now, id, &Error::protocol("an answer of another kind"), Duration::ZERO, out),
        }
    }

    pub(super) fn failed(&mut self, now: Instant, id: RequestId, error: &Error, out: &mut Out) {
        self.fail(now, id, error, Duration::ZERO, out);
    }

    /// A request failed, or was refused as a whole.
    fn fail(&mut self, now: Instant, id: RequestId, error: &Error, throttle: Duration, out: &mut Out) {
        if self.topic_asked == Some(id) {
            return self.topic_failed(now, error, out);
        }
        for partition in self.end(id) {
            if self.logs.get(&partition).is_some_and(|log| log.request == Some(id)) {
                self.trouble(now, partition, error.clone());
                self.rest(now, partition, throttle);
            }
        }
        out.push(CHANGED);
    }

    /// Ends a request and gives its partitions, in their order.
    fn end(&mut self, id: RequestId) -> Vec<u32> {
        self.requests.remove(&id).map(|request| request.partitions).unwrap_or_default()
    }

    fn matches(&self, id: RequestId, tps: &[TopicPartition]) -> bool {
        self.requests.get(&id).is_some_and(|request| {
            let pairs = request.partitions.iter().zip(tps);
            request.partitions.len() == tps.len()
                && pairs.into_iter().all(|(&asked, tp)| asked == tp.partition)
        })
    }

    fn topic_told(&mut self, now: Instant, answer: &MetadataAnswer, out: &mut Out) {
        let topic = match topic_of(answer, &self.config.topic) {
            Ok(topic) => topic,
            Err(error) => return self.topic_failed(now, &error, out),
        };
        if let Partitions::Assigned(id) = self.config.partitions
            && id != topic.id
        {
            let error = Error::refused(ErrorCode::UnknownTopic, "the topic was deleted and created again");
            return self.topic_failed(now, &error, out);
        }
        self.topic_asked = None;
        self.topic_attempts = 0;
        self.topic_trouble = None;
        self.topic_stale = false;
        self.topic_again_at = Some(now + self.config.topic_age_max);
        let partitions = topic.partition_count();
        match &self.config.partitions {
            Partitions::Only(named) => {
                for &missing in named.iter().filter(|&&partition| partition >= partitions) {
                    let error =
                        format!("there is no partition {missing}: topic {} has {partitions}", topic.name);
                    if let Some(log) = self.logs.get_mut(&missing) {
                        log.failure = Some(Error::usage(error));
                    }
                }
            }
            Partitions::All => {
                // Partitions that were added later are read whole.
                let start = if self.topic.is_none() { self.config.start } else { Start::Earliest };
                for partition in 0..partitions {
                    self.logs.entry(partition).or_insert_with(|| Log::new(start));
                }
            }
            Partitions::Assigned(_) => {
                // The broker that was asked has not heard of them yet.
                let early: Vec<u32> =
                    self.logs.range(partitions..).map(|(&partition, _)| partition).collect();
                for partition in early {
                    self.trouble(now, partition, Error::refused(ErrorCode::UnknownPartition, ""));
                }
            }
        }
        if self.topic.as_ref().is_some_and(|known| known.id != topic.id) {
            let error = Error::refused(ErrorCode::UnknownTopic, "the topic was deleted and created again");
            for log in self.logs.values_mut() {
                log.request = None;
                log.failure = Some(Error::usage(error.to_string()));
            }
        }
        self.topic = Some(topic);
        out.push(CHANGED);
    }

    fn topic_failed(&mut self, now: Instant, error: &Error, out: &mut Out) {
        self.topic_asked = None;
        self.topic_attempts = self.topic_attempts.saturating_add(1);
        self.topic_again_at = Some(now + self.config.backoff.after(self.topic_attempts, &mut self.random));
        self.topic_stale = true;
        if self.topic.is_none() && error.is_final_for_topics() {
            // Said again after each attempt, so that a taker who tries again waits for the next.
            self.complaint = Some(error.clone());
        }
        let since = self.topic_trouble.take().map_or(now, |(since, _)| since);
        self.topic_trouble = Some((since, error.clone()));
        out.push(CHANGED);
    }

    fn listed(&mut self, now: Instant, id: RequestId, partition: u32, row: &ListedRow) {
        let Some(log) = self.logs.get_mut(&partition) else { return };
        if log.request != Some(id) {
            return;
        }
        if row.error != ErrorCode::None {
            return self.trouble(now, partition, Error::refused(row.error, ""));
        }
        log.well();
        log.next = Next::Fetch(row.offset);
        log.position = Some(row.offset);
        log.confirmed = true;
    }

    fn fetched(&mut self, now: Instant, id: RequestId, partition: u32, row: &FetchedRow, payload: &Bytes) {
        let Some(log) = self.logs.get_mut(&partition) else { return };
        if log.request != Some(id) {
            return;
        }
        if log.failure.as_ref().is_some_and(|failure| !failure.is_retriable()) {
            // It stands until the taker seeks: nothing beyond it may be taken, and no reset may put it aside.
            log.request = None;
            return;
        }
        match row.error {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange => return self.out_of_range(now, partition, row),
            error => return self.trouble(now, partition, Error::refused(error, &row.message)),
        }
        log.well();
        log.confirmed = true;
        log.earliest = Some(row.log_start);
        log.high_watermark = Some(row.high_watermark);
        if row.bytes > 0 {
            let first = row.first_byte as usize;
            let run = payload.slice(first..first + row.bytes as usize);
            if let Err((offset, reason)) = log.buffer(run, row) {
                log.failure = Some(Error::Corrupt { partition, offset: offset.get(), reason: reason.into() });
                return;
            }
        }
        if let Some(next) = row.next_offset {
            log.pass_over(next);
        }
    }

    fn out_of_range(&mut self, now: Instant, partition: u32, row: &FetchedRow) {
        let reset = self.config.reset;
        let wait = self.config.backoff.after(1, &mut self.random);
        let Some(log) = self.logs.get_mut(&partition) else { return };
        let Next::Fetch(offset) = log.next else { return };
        match reset {
            // What is buffered comes first; the records between it and the new place are gone.
            Some(reset) if log.buffered.is_empty() => log.seek(reset),
            Some(_) => {
                log.request = None;
                log.again_at = Some(now + wait);
            }
            None => {
                log.well();
                log.failure = Some(Error::OffsetOutOfRange {
                    offset: offset.get(),
                    log_start: row.log_start.get(),
                    high_watermark: row.high_watermark.get(),
                });
            }
        }
    }

    /// A request for a partition did not work out; it will be made again unless that is no use.
    fn trouble(&mut self, now: Instant, partition: u32, error: Error) {
        let wait = {
            let Some(log) = self.logs.get_mut(&partition) else { return };
            log.request = None;
            if !error.is_retriable() {
                log.failure = Some(error);
                return;
            }
            log.attempts = log.attempts.saturating_add(1);
            self.config.backoff.after(log.attempts, &mut self.random)
        };
        let Some(log) = self.logs.get_mut(&partition) else { return };
        log.again_at = Some(now + wait);
        let since = log.trouble.take().map_or(now, |(since, _)| since);
        log.trouble = Some((since, error));
        if !self.topic_stale {
            self.topic_stale = true;
            self.topic_again_at = Some(now + wait / 2);
        }
    }

    /// The broker asked for a pause.
    fn rest(&mut self, now: Instant, partition: u32, throttle: Duration) {
        if let (Some(log), false) = (self.logs.get_mut(&partition), throttle.is_zero()) {
            let until = now + throttle;
            log.again_at = Some(log.again_at.map_or(until, |at| at.max(until)));
        }
    }

    /// When the taker is told of trouble with the topic. A broker may not have heard of a topic yet, but one that brokers do
    /// not know any more for some seconds was deleted.
    pub(super) fn told_at(&self, trouble: &(Instant, Error)) -> Instant {
        let (since, error) = trouble;
        let patience = self.config.patience;
        *since + if error.is_final_for_topics() { patience.min(GONE_PATIENCE) } else { patience }
    }

    /// Tells the taker of trouble that has lasted too long.
    pub(super) fn complain(&mut self, now: Instant, out: &mut Out) {
        let topic = self.topic_trouble.clone().filter(|trouble| self.told_at(trouble) <= now);
        if let Some((_, error)) = topic {
            self.topic_trouble = Some((now, error.clone()));
            let final_answer = error.is_final_for_topics();
            self.complaint =
                Some(if final_answer { error } else { Error::deadline("fetching", Some(error)) });
            out.push(CHANGED);
        }
        let patience = self.config.patience;
        let too_long = |since: Instant| since + patience <= now;
        for log in self.logs.values_mut() {
            if let Some((since, error)) = &log.trouble
                && too_long(*since)
                && log.failure.is_none()
            {
                log.failure = Some(Error::deadline("fetching", Some(error.clone())));
                log.trouble = None;
                out.push(CHANGED);
            }
        }
    }
}

impl Log {
    /// A request worked out.
    fn well(&mut self) {
        self.request = None;
        self.attempts = 0;
        self.again_at = None;
        self.trouble = None;
    }

    /// Queues the batches of a run: they must follow each other from the offset asked for, without a gap unless the broker
    /// says that it may have left some out.
    fn buffer(&mut self, run: Bytes, row: &FetchedRow) -> Result<(), (Offset, String)> {
        let Next::Fetch(mut expected) = self.next else { return Ok(()) };
        let asked = expected;
        for batch in StoredBatches::new(run, row.tp, BodyCheck::Skip) {
            let batch = batch.map_err(|error| (expected, error.to_string()))?;
            let Some(stamp) = batch.stamp() else {
                return Err((expected, "a batch has no stamp".to_owned()));
            };
            let base = stamp.base_offset;
            let end = base.checked_add(u64::from(batch.header().last_offset_delta) + 1);
            let end = end.ok_or_else(|| (expected, "the offsets are beyond the last".to_owned()))?;
            // Only the first batch may begin before what was asked for.
            let begins_before = expected == asked && base < expected && end > expected;
            let follows = base == expected || begins_before || (row.next_offset.is_some() && base > expected);
            if !follows {
                return Err((expected, format!("offset {expected} is missing: a batch {base}..{end} came")));
            }
            self.buffered_bytes += batch.bytes().len();
            self.buffered.push_back(batch);
            expected = end;
            self.next = Next::Fetch(expected);
        }
        Ok(())
    }

    /// Nothing that is asked for lies below `next`, beside what came.
    fn pass_over(&mut self, next: Offset) {
        if let Next::Fetch(expected) = self.next
            && expected < next
        {
            self.next = Next::Fetch(next);
            if self.buffered.is_empty() {
                self.position = Some(next);
            }
        }
    }
}
