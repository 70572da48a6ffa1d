//! Memory of commits: taken in order, given back in about the same order, used again.
//!
//! Called by the journal, which fills it, and by the tail, which keeps it until the shard lets go and the last reader is done.
//! Many commits lie in one chunk, which is used again when the last of them is gone. What is in use is bounded by the shard (tail
//! cache, undestaged bytes) plus a chunk at either end; what is idle is bounded here.
//!
//! The first touch of memory is slow, so another thread touches what is about to be given out. In pages of the usual size: a huge
//! one takes milliseconds on a virtual machine whose host has not given the memory yet, and everybody waits meanwhile.
//!
//! Invariants: a range is given out once in a chunk's life; a chunk's memory lives as long as any range of it.
#![expect(unsafe_code, reason = "disjoint parts of one mapping are filled while others are read")]

use super::BLOCK_BYTES;
use crate::rt::{self, Stable};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::rc::{Rc, Weak};

/// Bytes of a chunk: at least the largest commit, and so much more that little is lost at its end.
const CHUNK_BYTES: usize = 16 << 20;

/// Bytes that are touched before they are given out.
const AHEAD_BYTES: usize = 1 << 20;
/// Bytes that are touched at once.
const TOUCH_BYTES: usize = 256 << 10;

/// Where memory comes from and goes to. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Arena(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    /// What is being given out, and how much of it is.
    current: Option<(Rc<Chunk>, usize)>,
    /// What comes after it, once that is near.
    next: Option<Rc<Chunk>>,
    /// Memory is being touched.
    touching: bool,
    /// Chunks that are touched in full, for later.
    idle: Vec<Mapping>,
    idle_max: usize,
}

/// A chunk of which something is in use.
#[derive(Debug)]
struct Chunk {
    /// Taken only when this is dropped.
    mapping: Option<Mapping>,
    /// How much of it, from its start on, was touched before it was given out.
    touched: Cell<usize>,
    home: Weak<RefCell<State>>,
}

/// Memory from the system.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

/// Memory that is being filled. Its bytes are arbitrary until they are written.
#[derive(Debug)]
pub(super) struct Filling(Range);

/// Memory that is never changed again.
#[derive(Debug)]
pub(super) struct Frozen(Range);

#[derive(Debug)]
struct Range {
    _chunk: Rc<Chunk>,
    start: NonNull<u8>,
    bytes: usize,
}

impl Arena {
    /// An arena that keeps at most so many idle bytes for later, in whole chunks.
    pub(super) fn new(idle_bytes_max: usize) -> Self {
        let idle_max = idle_bytes_max / CHUNK_BYTES;
        let (current, next, touching, idle) = (None, None, false, Vec::new());
        Self(Rc::new(RefCell::new(State { current, next, touching, idle, idle_max })))
    }

    /// Memory of exactly `bytes`, which begins at a block.
    ///
    /// # Panics
    /// When there is no memory, as any allocation.
    pub(super) fn take(&self, bytes: usize) -> Filling {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES), "memory of an odd size");
        let mut state = self.0.borrow_mut();
        let (chunk, used) = match state.current.take() {
            Some((chunk, used)) if used + bytes <= chunk.mapping().bytes => (chunk, used),
            // The one before comes back when its last commit goes.
            _ => (self.chunk(&mut state, bytes), 0),
        };
        // SAFETY: `used + bytes` is within the mapping.
        let start = unsafe { chunk.mapping().start.add(used) };
        state.current = Some((Rc::clone(&chunk), used + bytes));
        Filling(Range { _chunk: chunk, start, bytes })
    }

    /// A chunk with room for so much at its start.
    fn chunk(&self, state: &mut State, bytes: usize) -> Rc<Chunk> {
        let next = state.next.take_if(|chunk| bytes <= chunk.mapping().bytes);
        next.unwrap_or_else(|| match state.idle.pop() {
            Some(mapping) if bytes <= mapping.bytes => Chunk::new(mapping, true, &self.0),
            _ => Chunk::new(Mapping::new(bytes.max(CHUNK_BYTES)), false, &self.0),
        })
    }

    /// What is to be touched before it is needed, if anything is.
    pub(super) fn ahead(&self) -> Option<Ahead> {
        let mut state = self.0.borrow_mut();
        if state.touching {
            return None;
        }
        let (current, used) = state.current.as_ref()?;
        let (current, used) = (Rc::clone(current), *used);
        let (chunk, wanted) = if used + AHEAD_BYTES <= current.mapping().bytes {
            (current, used + AHEAD_BYTES)
        } else if !current.is_touched(current.mapping().bytes) {
            let bytes = current.mapping().bytes;
            (current, bytes)
        } else {
            let next = state.next.take().unwrap_or_else(|| self.chunk(&mut state, CHUNK_BYTES));
            let wanted = used + AHEAD_BYTES - current.mapping().bytes;
            (Rc::clone(state.next.insert(next)), wanted)
        };
        if chunk.is_touched(wanted) {
            return None;
        }
        state.touching = true;
        Some(Ahead { arena: self.clone(), chunk })
    }

    /// Bytes kept for later.
    pub(super) fn idle_bytes(&self) -> usize {
        self.0.borrow().idle.iter().map(|mapping| mapping.bytes).sum()
    }
}

/// Memory that is about to be given out.
#[derive(Debug)]
pub(super) struct Ahead {
    arena: Arena,
    chunk: Rc<Chunk>,
}

impl Ahead {
    /// Has the next part of it touched by another thread.
    pub(super) async fn touch(self) {
        let (mapping, from) = (self.chunk.mapping(), self.chunk.touched.get());
        let bytes = TOUCH_BYTES.min(mapping.bytes - from);
        let address = mapping.start.addr().get() + from;
        rt::blocking(move || touch(address, bytes)).await;
        self.chunk.touched.set(from + bytes);
        self.arena.0.borrow_mut().touching = false;
    }
}

/// Has the system give memory to addresses.
fn touch(address: usize, bytes: usize) {
    let start = std::ptr::without_provenance_mut::<c_void>(address);
    // SAFETY: it does not change what is in memory, whoever's it is. A kernel that does not know it, or a chunk that is gone,
    // only makes the first use slower.
    let _refused = unsafe { madvise(start, bytes, Advice::LinuxPopulateWrite) };
}

impl Chunk {
    fn new(mapping: Mapping, touched: bool, home: &Rc<RefCell<State>>) -> Rc<Self> {
        let touched = Cell::new(if touched { mapping.bytes } else { 0 });
        Rc::new(Self { mapping: Some(mapping), touched, home: Rc::downgrade(home) })
    }

    fn is_touched(&self, bytes: usize) -> bool {
        bytes <= self.touched.get()
    }

    fn mapping(&self) -> &Mapping {
        match &self.mapping {
            Some(mapping) => mapping,
            None => unreachable!("only a drop takes the memory"),
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let (Some(home), Some(mapping)) = (self.home.upgrade(), self.mapping.take()) else { return };
        // While memory is taken the arena is borrowed, and a chunk of which nothing is in use is let go.
        if let Ok(mut state) = home.try_borrow_mut()
            && state.idle.len() < state.idle_max
            && mapping.bytes == CHUNK_BYTES
        {
            state.idle.push(mapping);
        }
    }
}

impl Mapping {
    fn new(bytes: usize) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nobody's memory.
        let mapped = unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) };
        match mapped.map(|start| NonNull::new(start.cast())) {
            Ok(Some(start)) => Self { start, bytes },
            _ => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; CHUNK_BYTES]>()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: whoever had a range of it held it. There is nothing to do about a refusal.
        let _kept = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

impl Filling {
    /// Its bytes.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is this value's alone, within a mapping that its chunk keeps.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.bytes) }
    }

    /// No more changes.
    pub(super) fn freeze(self) -> Rc<Frozen> {
        Rc::new(Frozen(self.0))
    }
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: nobody changes a frozen range, and its chunk keeps the mapping.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.bytes) }
    }
}

// SAFETY: always the same range, which nobody changes and its chunk keeps.
unsafe impl Stable for Frozen {
    fn bytes(&self) -> &[u8] {
        self.as_ref()
    }
}

/// A part of frozen memory.
pub(super) struct Part {
    pub(super) whole: Rc<Frozen>,
    pub(super) range: std::ops::Range<usize>,
}

// SAFETY: always the same part of a range that is stable.
unsafe impl Stable for Part {
    fn bytes(&self) -> &[u8] {
        &self.whole.bytes()[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::super::BLOCK_BYTES as B;
    use super::{Arena, CHUNK_BYTES};
    use std::rc::Rc;

    fn address(bytes: &[u8]) -> usize {
        bytes.as_ptr().addr()
    }

    #[test]
    fn ranges_follow_one_another_and_keep_what_was_put_into_them() {
        let arena = Arena::new(4 * CHUNK_BYTES);
        let mut ranges = Vec::new();
        for number in 0..3_000_usize {
            let mut range = arena.take(B * (1 + number % 5));
            range.bytes_mut().fill(u8::try_from(number % 251).unwrap());
            ranges.push(range.freeze());
        }
        for (number, range) in ranges.iter().enumerate() {
            let bytes = range.as_ref().as_ref();
            assert_eq!((bytes.len(), address(bytes) % B), (B * (1 + number % 5), 0));
            assert!(bytes.iter().all(|&byte| usize::from(byte) == number % 251), "range {number}");
        }
        let next_to_each_other = ranges.windows(2).filter(|pair| {
            let [first, second] = pair else { return false };
            address((**first).as_ref()) + (**first).as_ref().len() == address((**second).as_ref())
        });
        assert!(next_to_each_other.count() >= ranges.len() - 5);
    }

    #[test]
    fn a_chunk_comes_back_with_its_last_range_and_is_used_again() {
        let arena = Arena::new(CHUNK_BYTES);
        let mut first = arena.take(CHUNK_BYTES - B);
        first.bytes_mut()[0] = 7;
        let (first, second) = (first.freeze(), arena.take(B).freeze());
        let at = address((*first).as_ref());
        assert_eq!(address((*second).as_ref()), at + CHUNK_BYTES - B);
        let other = arena.take(B).freeze();
        let reader = Rc::clone(&first);
        drop((first, second));
        assert_eq!((arena.idle_bytes(), (*reader).as_ref()[0]), (0, 7));
        drop(reader);
        assert_eq!(arena.idle_bytes(), CHUNK_BYTES);
        drop(other);
        let again = (arena.take(CHUNK_BYTES - B).freeze(), arena.take(2 * B).freeze());
        assert_eq!((address((*again.1).as_ref()), arena.idle_bytes()), (at, 0));
    }

    #[test]
    fn idle_memory_is_bounded_and_an_arena_may_go_before_its_ranges() {
        let arena = Arena::new(2 * CHUNK_BYTES);
        let ranges: Vec<_> = (0..5).map(|_| arena.take(CHUNK_BYTES).freeze()).collect();
        drop(ranges);
        assert_eq!(arena.idle_bytes(), 2 * CHUNK_BYTES);
        let larger = arena.take(CHUNK_BYTES + B).freeze();
        let small = arena.take(B).freeze();
        assert_eq!((*larger).as_ref().len(), CHUNK_BYTES + B);
        drop(larger);
        drop(arena);
        assert_eq!((*small).as_ref().len(), B);
    }
}
