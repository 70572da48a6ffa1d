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
    /// Prelude, header, and the payload's slices. `None` behind the last.
    fn piece(&self, index: usize) -> Option<&[u8]> {
        match index {
            0 => Some(&self.prelude),
            1 => Some(&self.header),
            _ => self.payload.get(index - 2).map(AsRef::as_ref),
        }
    }

    /// Length of a piece, without looking at it.
    fn piece_bytes(&self, index: usize) -> Option<usize> {
        match index {
            0 => Some(PRELUDE_BYTES),
            1 => Some(self.header.len()),
            _ => self.payload.get(index - 2).map(PayloadSlice::len),
        }
    }

    /// Length of the payload.
    pub(super) fn payload_bytes(&self) -> usize {
        self.payload.iter().map(PayloadSlice::len).sum()
    }

    fn bytes(&self) -> usize {
        PRELUDE_BYTES + self.header.len() + self.payload_bytes()
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Output {
    frames: VecDeque<OutFrame>,
    /// The first frame's piece of which some is not sent, and how many of its bytes are: so that a frame of many
    /// pieces, which takes many calls, is walked once.
    piece: usize,
    piece_sent: usize,
    /// Bytes of all frames, those that are sent included until their frame is.
    bytes: u64,
    /// When bytes last left, or when the queue began to fill.
    progress: Instant,
}

impl Output {
    pub(super) fn new(now: Instant) -> Self {
        Self { frames: VecDeque::new(), piece: 0, piece_sent: 0, bytes: 0, progress: now }
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
        (self.piece, self.piece_sent, self.bytes) = (0, 0, 0);
    }

    /// Gives the frames payloads of their own, until about so many bytes are copied; how many were. A slice of a few
    /// bytes holds the whole buffer that it is part of, so answers that are not taken would pin far more than they
    /// count.
    pub(super) fn detach(&mut self, bytes_max: usize) -> usize {
        let mut copied = 0;
        let (mut piece, mut piece_sent) = (self.piece, self.piece_sent);
        for (place, frame) in self.frames.iter_mut().enumerate().filter(|(_, frame)| !frame.detached) {
            if copied >= bytes_max {
                break;
            }
            if place == 0 && piece > 2 {
                piece_sent += frame.payload[..piece - 2].iter().map(PayloadSlice::len).sum::<usize>();
                piece = 2;
            }
            let mut payload = Vec::with_capacity(frame.payload_bytes());
            for slice in &frame.payload {
                payload.extend_from_slice(slice.as_ref());
            }
            copied += payload.len();
            frame.payload = vec![PayloadSlice::owned(payload.into())];
            frame.detached = true;
        }
        (self.piece, self.piece_sent) = (piece, piece_sent);
        copied
    }

    /// The next bytes to send, without a copy.
    pub(super) fn gather<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        let (mut piece, mut skip) = (self.piece, self.piece_sent);
        let mut bytes = 0;
        for frame in &self.frames {
            while let Some(rest) = frame.piece(piece) {
                if slices.len() == SEND_SLICES_MAX || bytes >= SEND_BYTES_MAX {
                    return;
                }
                let rest = &rest[skip..];
                let rest = &rest[..rest.len().min(SEND_BYTES_MAX - bytes)];
                if !rest.is_empty() {
                    bytes += rest.len();
                    slices.push(IoSlice::new(rest));
                }
                (piece, skip) = (piece + 1, 0);
            }
            piece = 0;
        }
    }

    /// So many bytes were sent; `done` gets every frame that is complete with that.
    pub(super) fn advance(&mut self, mut sent: usize, now: Instant, mut done: impl FnMut(OutFrame)) {
        self.progress = now;
        while let Some(first) = self.frames.front() {
            while let Some(bytes) = first.piece_bytes(self.piece) {
                let rest = bytes - self.piece_sent;
                if sent < rest {
                    self.piece_sent += sent;
                    return;
                }
                sent -= rest;
                (self.piece, self.piece_sent) = (self.piece + 1, 0);
            }
            self.bytes -= first.bytes() as u64;
            self.piece = 0;
            if let Some(frame) = self.frames.pop_front() {
                done(frame);
            }
        }
        assert!(sent == 0, "no more is sent than was queued");
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

    /// Counts how often its bytes are looked at.
    struct Watched(std::cell::Cell<usize>);

    impl AsRef<[u8]> for Watched {
        fn as_ref(&self) -> &[u8] {
            self.0.set(self.0.get() + 1);
            &[7; 8]
        }
    }

    #[test]
    fn a_frame_of_many_pieces_is_walked_once() {
        let (pool, pieces) = (Pool::new(100), 64 * SEND_SLICES_MAX);
        let watched = Rc::new(Watched(std::cell::Cell::new(0)));
        let owner: Rc<dyn AsRef<[u8]>> = Rc::<Watched>::clone(&watched);
        let payload = (0..pieces).map(|_| PayloadSlice::new(Rc::clone(&owner), 0, 8)).collect();
        let mut output = Output::new(Instant::now());
        output.push(OutFrame { payload, ..frame(&pool, 0, &[]) });
        watched.0.set(0);
        while !output.is_empty() {
            let mut slices = Vec::new();
            output.gather(&mut slices);
            let bytes = slices.iter().map(|slice| slice.len()).sum();
            output.advance(bytes, Instant::now(), drop);
        }
        // Each call looks at one piece more than it sends.
        assert!(watched.0.get() <= pieces + pieces / SEND_SLICES_MAX + 1, "{} looks", watched.0.get());
    }
}
