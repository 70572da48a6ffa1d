//! The answers of one connection on their way to its socket.
//!
//! Filled when an answer is complete, emptied by the flusher or, when the socket has no room, by a task of the
//! connection. Invariant: bytes leave in the order of the queue, whole frames one after the other. This file refuses to
//! know who waits for what.

use super::budget::Charge;
use super::config::{SEND_BYTES_MAX, SEND_SLICES_MAX};
use super::seam::PayloadSlice;
use corelog_wire::frame::{Kind, PRELUDE_BYTES};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Instant;

/// One frame to send.
#[derive(Debug)]
pub(super) struct OutFrame {
    pub(super) prelude: [u8; PRELUDE_BYTES],
    pub(super) header: Vec<u8>,
    /// Held until the whole frame is sent.
    pub(super) payload: Vec<PayloadSlice>,
    /// Whether the payload is this frame's own.
    pub(super) detached: bool,
    /// The request's kind and when it had been read; none for a refusal of an unknown kind.
    pub(super) request: Option<(Kind, Instant)>,
    /// When the frame was queued.
    pub(super) queued: Instant,
    /// The frame's bytes in the shard's pool.
    pub(super) _charge: Charge,
}

impl OutFrame {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        [&self.prelude[..], &self.header].into_iter().chain(self.payload.iter().map(AsRef::as_ref))
    }

    /// Length of the payload.
    pub(super) fn payload_bytes(&self) -> usize {
        self.payload.iter().map(PayloadSlice::len).sum()
    }

    fn bytes(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Output {
    frames: VecDeque<OutFrame>,
    /// Bytes of the first frame that are sent.
    sent: usize,
    /// Bytes of all frames, those that are sent included until their frame is.
    bytes: u64,
    /// When bytes last left, or when the queue began to fill.
    progress: Instant,
}

impl Output {
    pub(super) fn new(now: Instant) -> Self {
        Self { frames: VecDeque::new(), sent: 0, bytes: 0, progress: now }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the oldest frame was queued and when bytes last left; `None` if there is nothing to send.
    pub(super) fn waiting_since(&self) -> Option<(Instant, Instant)> {
        self.frames.front().map(|frame| (frame.queued, self.progress))
    }

    pub(super) fn push(&mut self, frame: OutFrame) {
        if self.frames.is_empty() {
            self.progress = frame.queued;
        }
        self.bytes += frame.bytes() as u64;
        self.frames.push_back(frame);
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.frames = VecDeque::new();
        (self.sent, self.bytes) = (0, 0);
    }

    /// Gives the frames payloads of their own, until about so many bytes are copied; how many were. A slice of a few
    /// bytes holds the whole buffer that it is part of, so answers that are not taken would pin far more than they
    /// count.
    pub(super) fn detach(&mut self, bytes_max: usize) -> usize {
        let mut copied = 0;
        for frame in self.frames.iter_mut().filter(|frame| !frame.detached) {
            if copied >= bytes_max {
                break;
            }
            let mut payload = Vec::with_capacity(frame.payload_bytes());
            for slice in &frame.payload {
                payload.extend_from_slice(slice.as_ref());
            }
            copied += payload.len();
            frame.payload = vec![PayloadSlice::owned(payload.into())];
            frame.detached = true;
        }
        copied
    }

    /// The next bytes to send, without a copy.
    pub(super) fn gather<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        let mut skip = self.sent;
        let mut bytes = 0;
        for piece in self.frames.iter().flat_map(OutFrame::pieces) {
            if slices.len() == SEND_SLICES_MAX || bytes >= SEND_BYTES_MAX {
                return;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let rest = &piece[skip..];
            skip = 0;
            let rest = &rest[..rest.len().min(SEND_BYTES_MAX - bytes)];
            bytes += rest.len();
            slices.push(IoSlice::new(rest));
        }
    }

    /// So many bytes were sent; `done` gets every frame that is complete with that.
    pub(super) fn advance(&mut self, sent: usize, now: Instant, mut done: impl FnMut(OutFrame)) {
        self.progress = now;
        self.sent += sent;
        while let Some(first) = self.frames.front() {
            let bytes = first.bytes();
            if self.sent < bytes {
                return;
            }
            self.sent -= bytes;
            self.bytes -= bytes as u64;
            if let Some(frame) = self.frames.pop_front() {
                done(frame);
            }
        }
        assert!(self.sent == 0, "no more is sent than was queued");
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Pool;
    use super::*;
    use std::rc::Rc;

    fn frame(pool: &Pool, fill: u8, payload: &[usize]) -> OutFrame {
        let slice = |&bytes: &usize| PayloadSlice::new(Rc::new(vec![fill + 2; bytes]), 0, bytes);
        OutFrame {
            prelude: [fill; PRELUDE_BYTES],
            header: vec![fill + 1; 8],
            payload: payload.iter().map(slice).collect(),
            detached: false,
            request: None,
            queued: Instant::now(),
            _charge: pool.force(1),
        }
    }

    #[test]
    fn frames_leave_whole_and_in_order_however_they_are_cut() {
        let pool = Pool::new(100);
        for cut in 1..90 {
            let mut output = Output::new(Instant::now());
            output.push(frame(&pool, 10, &[16, 0, 8]));
            output.push(frame(&pool, 20, &[]));
            assert_eq!(output.bytes(), 64 + 40);
            let (mut sent, mut done) = (Vec::new(), 0);
            while !output.is_empty() {
                let mut slices = Vec::new();
                output.gather(&mut slices);
                let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                let taken = all.len().min(cut);
                sent.extend_from_slice(&all[..taken]);
                output.advance(taken, Instant::now(), |_| done += 1);
                if sent.len() > 40 {
                    output.detach(1);
                }
            }
            let mut expected = vec![10; 32];
            for (value, count) in [(11, 8), (12, 24), (20, 32), (21, 8)] {
                expected.resize(expected.len() + count, value);
            }
            assert_eq!((sent, done, output.bytes(), pool.used()), (expected, 2, 0, 0), "cut {cut}");
        }
    }

    #[test]
    fn a_slow_reader_lets_go_of_the_buffers_that_others_share() {
        let pool = Pool::new(100);
        let shared: Rc<dyn AsRef<[u8]>> = Rc::new(vec![7_u8; 1_000]);
        let mut output = Output::new(Instant::now());
        for _ in 0..3 {
            let payload = vec![PayloadSlice::new(Rc::clone(&shared), 8, 16)];
            output.push(OutFrame { payload, ..frame(&pool, 0, &[]) });
        }
        assert_eq!(Rc::strong_count(&shared), 4);
        assert_eq!((output.detach(9), Rc::strong_count(&shared)), (16, 2));
        assert_eq!((output.detach(9), Rc::strong_count(&shared)), (8, 1));
        assert_eq!((output.detach(9), output.bytes()), (0, 3 * 48));
    }

    #[test]
    fn one_call_is_bounded_in_bytes_and_slices() {
        let pool = Pool::new(100);
        let mut output = Output::new(Instant::now());
        output.push(frame(&pool, 0, &[3 * SEND_BYTES_MAX]));
        let mut slices = Vec::new();
        output.gather(&mut slices);
        assert_eq!(slices.iter().map(|slice| slice.len()).sum::<usize>(), SEND_BYTES_MAX);
        output.clear();
        output.push(frame(&pool, 0, &[8; 2 * SEND_SLICES_MAX]));
        let mut slices = Vec::new();
        output.gather(&mut slices);
        assert_eq!(slices.len(), SEND_SLICES_MAX);
    }
}
