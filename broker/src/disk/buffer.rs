//! Aligned memory for writes through glommio, recycled: extents, checkpoints, superblocks.
//!
//! A buffer is filled once, frozen and written; then it comes back here. Only what is idle is bounded here: what is in use
//! is bounded by the number of writes under way.
//!
//! A direct write takes a buffer as a whole, and glommio's buffers can be cut but not grown again, so buffers are
//! kept by length and a somewhat longer one is cut. One that has been cut too much is freed.

use corelog_core::limits::BLOCK;
use glommio::io::DmaBuffer;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

/// A buffer may be cut for a use that is shorter by at most one in this many.
const CUT_SHARE: usize = 4;

/// Where buffers come from and go to.
#[derive(Clone, Debug)]
pub(super) struct Pool(Rc<RefCell<Idle>>);

#[derive(Debug)]
struct Idle {
    /// By length, then by age.
    free: BTreeMap<(usize, u64), Memory>,
    /// By age: the length.
    ages: BTreeMap<u64, usize>,
    next_age: u64,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Memory {
    dma: DmaBuffer,
    /// What it takes, whatever its length was cut to.
    capacity: usize,
}

/// A buffer that is being filled. Its bytes are arbitrary until they are written.
#[derive(Debug)]
pub(super) struct Filling {
    memory: Memory,
    pool: Weak<RefCell<Idle>>,
}

/// A buffer that is never changed again.
#[derive(Debug)]
pub(super) struct Frozen {
    /// Taken only when this is dropped.
    dma: Option<Rc<DmaBuffer>>,
    capacity: usize,
    pool: Weak<RefCell<Idle>>,
}

impl Pool {
    /// A pool that keeps at most `bytes_max` for later.
    pub(super) fn new(bytes_max: usize) -> Self {
        let (free, ages) = (BTreeMap::new(), BTreeMap::new());
        Self(Rc::new(RefCell::new(Idle { free, ages, next_age: 0, bytes: 0, bytes_max })))
    }

    /// A buffer of exactly `bytes`.
    pub(super) fn take(&self, bytes: usize) -> Filling {
        debug_assert!(bytes > 0 && (bytes as u64).is_multiple_of(BLOCK), "a buffer of odd size");
        let recycled = self.0.borrow_mut().take(bytes);
        let memory = recycled.unwrap_or_else(|| Memory {
            // Not from the executor's own pool: that one is small and for reads.
            dma: glommio::allocate_dma_buffer_global(bytes),
            capacity: bytes,
        });
        Filling { memory, pool: Rc::downgrade(&self.0) }
    }

    /// Bytes kept for later.
    pub(super) fn idle_bytes(&self) -> usize {
        self.0.borrow().bytes
    }
}

impl Idle {
    fn take(&mut self, bytes: usize) -> Option<Memory> {
        let longest = bytes + bytes / CUT_SHARE;
        let key = *self.free.range((bytes, 0)..=(longest, u64::MAX)).next()?.0;
        let mut memory = self.remove(key)?;
        memory.dma.trim_to_size(bytes);
        Some(memory)
    }

    fn remove(&mut self, key: (usize, u64)) -> Option<Memory> {
        self.ages.remove(&key.1);
        let memory = self.free.remove(&key)?;
        self.bytes -= memory.capacity;
        Some(memory)
    }

    fn put(&mut self, memory: Memory) {
        let length = memory.dma.len();
        if length < memory.capacity - memory.capacity / CUT_SHARE || memory.capacity > self.bytes_max {
            return;
        }
        self.bytes += memory.capacity;
        self.ages.insert(self.next_age, length);
        self.free.insert((length, self.next_age), memory);
        self.next_age += 1;
        // The longest idle go first: they are of sizes that are not asked for.
        while self.bytes > self.bytes_max
            && let Some((&age, &length)) = self.ages.first_key_value()
        {
            drop(self.remove((length, age)));
        }
    }
}

impl Filling {
    /// Its bytes.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.dma.as_bytes_mut()
    }

    /// No more changes.
    pub(super) fn freeze(self) -> Rc<Frozen> {
        let Memory { dma, capacity } = self.memory;
        Rc::new(Frozen { dma: Some(Rc::new(dma)), capacity, pool: self.pool })
    }
}

impl Frozen {
    /// For a write.
    pub(super) fn dma(&self) -> Rc<DmaBuffer> {
        match &self.dma {
            Some(dma) => Rc::clone(dma),
            None => unreachable!("only a drop takes the memory"),
        }
    }
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        self.dma.as_ref().map_or(&[], |dma| dma.as_bytes())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // A write under way keeps the memory beyond this; it is freed then.
        if let (Some(pool), Some(Ok(dma))) = (self.pool.upgrade(), self.dma.take().map(Rc::try_unwrap)) {
            pool.borrow_mut().put(Memory { dma, capacity: self.capacity });
        }
    }
}

/// A buffer of its own for bytes that are written from no recycled one.
pub(super) fn copied(bytes: &[u8]) -> Rc<DmaBuffer> {
    let mut buffer = glommio::allocate_dma_buffer_global(bytes.len());
    buffer.as_bytes_mut().copy_from_slice(bytes);
    Rc::new(buffer)
}

#[cfg(test)]
mod tests {
    use super::super::BLOCK_BYTES as B;
    use super::Pool;

    #[test]
    fn a_buffer_comes_back_and_is_used_again() {
        let pool = Pool::new(100 * B);
        let mut first = pool.take(8 * B);
        first.bytes_mut().fill(7);
        let first = first.freeze();
        let at = (*first).as_ref().as_ptr();
        assert_eq!(pool.idle_bytes(), 0);
        let reader = std::rc::Rc::clone(&first);
        drop(first);
        assert_eq!((pool.idle_bytes(), reader.as_ref().as_ref()[8 * B - 1]), (0, 7));
        drop(reader);
        assert_eq!(pool.idle_bytes(), 8 * B);
        let again = pool.take(7 * B).freeze();
        assert_eq!(((*again).as_ref().as_ptr(), (*again).as_ref().len()), (at, 7 * B));
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn idle_memory_is_bounded_and_the_oldest_goes() {
        let pool = Pool::new(10 * B);
        let (small, large) = (pool.take(2 * B).freeze(), pool.take(9 * B).freeze());
        drop(small);
        drop(large);
        assert_eq!(pool.idle_bytes(), 9 * B);
        drop(pool.take(11 * B).freeze());
        assert_eq!(pool.idle_bytes(), 9 * B);
    }

    #[test]
    fn a_buffer_that_was_cut_too_often_is_freed() {
        let pool = Pool::new(100 * B);
        drop(pool.take(16 * B).freeze());
        drop(pool.take(13 * B).freeze());
        assert_eq!(pool.idle_bytes(), 16 * B);
        drop(pool.take(11 * B).freeze());
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn a_pool_may_go_before_its_buffers() {
        let pool = Pool::new(10 * B);
        let buffer = pool.take(B).freeze();
        drop(pool);
        drop(buffer);
    }
}
