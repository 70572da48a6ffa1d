//! Memory of large payloads, used again by the thread that let go of it: memory that is new costs its first touch, which is as
//! much as receiving into it.
//!
//! Called by `read`, which fills it, and by whoever drops the last part of a request's payload. What is idle is bounded here;
//! what is in use is charged like all memory of requests.

use std::cell::RefCell;
use std::ops::Deref;

/// A payload that is shorter is not worth keeping.
const BYTES_MIN: usize = 64 << 10;
/// Idle bytes that a thread keeps.
const IDLE_BYTES_MAX: usize = 8 << 20;

thread_local! {
    static IDLE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The bytes of a payload.
#[derive(Debug)]
pub(super) struct Payload(Vec<u8>);

impl Payload {
    /// All of these bytes.
    pub(super) const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Memory of at least `count` bytes with arbitrary content, and of not much more; none if none is idle.
    pub(super) fn idle(count: usize) -> Option<Vec<u8>> {
        if count < BYTES_MIN {
            return None;
        }
        IDLE.with_borrow_mut(|idle| {
            let fits = |memory: &Vec<u8>| (count..=count + count / 4).contains(&memory.len());
            let at = idle.iter().rposition(fits)?;
            Some(idle.swap_remove(at))
        })
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let mut memory = std::mem::take(&mut self.0);
        if !(BYTES_MIN..=IDLE_BYTES_MAX).contains(&memory.capacity()) {
            return;
        }
        // A thread that ends keeps nothing.
        _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            memory.resize(memory.capacity(), 0);
            let mut bytes: usize = idle.iter().map(Vec::len).sum();
            while bytes + memory.len() > IDLE_BYTES_MAX {
                bytes -= idle.remove(0).len();
            }
            idle.push(memory);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle_bytes() -> usize {
        IDLE.with_borrow(|idle| idle.iter().map(Vec::len).sum())
    }

    #[test]
    fn memory_is_used_again_for_payloads_of_about_its_size() {
        drop(Payload::new(vec![1; 1 << 20]));
        assert!(Payload::idle(BYTES_MIN).is_none(), "a small payload gets no large memory");
        assert!(Payload::idle((1 << 20) + 1).is_none(), "a larger payload gets no memory that is too short");
        let memory = Payload::idle((1 << 20) - 100).unwrap();
        assert_eq!((memory.len(), idle_bytes()), (1 << 20, 0));
        assert!(Payload::idle(1 << 20).is_none(), "memory is given out once");
    }

    #[test]
    fn idle_memory_is_bounded_and_the_oldest_goes() {
        for megabytes in 1..8 {
            drop(Payload::new(vec![0; megabytes << 20]));
            assert!(idle_bytes() <= IDLE_BYTES_MAX);
        }
        assert!(Payload::idle(7 << 20).is_some());
        drop(Payload::new(vec![0; IDLE_BYTES_MAX + 1]));
        drop(Payload::new(vec![0; BYTES_MIN - 1]));
        assert!(idle_bytes() <= 1 << 20);
    }
}
