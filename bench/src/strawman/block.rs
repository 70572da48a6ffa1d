//! Memory for direct writes: aligned, of one length for ever, owned by one holder at a time.
//!
//! Called by everything else here. Invariant: a block's bytes never move while it lives, wherever the block itself goes,
//! so that the kernel may be given their address.

use std::ops::{Deref, DerefMut, Range};

/// Direct writes are multiples of this, in memory and in the file.
pub(super) const ALIGNMENT: usize = crate::limits::BLOCK_BYTES;

/// Aligned bytes.
#[derive(Debug)]
pub(super) struct Block {
    /// Longer than asked for, so that an aligned run of the length lies in it; never grown, so it stays where it is.
    memory: Vec<u8>,
    within: Range<usize>,
}

impl Block {
    /// Zeros; the system provides their pages when they are first written.
    pub(super) fn zeroed(bytes: usize) -> Self {
        let memory = vec![0; bytes + ALIGNMENT];
        let at = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, within: at..at + bytes }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.within.clone()]
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.within.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_aligned_and_stays_where_it_is() {
        let block = Block::zeroed(3 * ALIGNMENT);
        let address = block.as_ptr();
        assert_eq!((block.len(), address.align_offset(ALIGNMENT)), (3 * ALIGNMENT, 0));
        let elsewhere = Box::new(block);
        assert_eq!(elsewhere.as_ptr(), address);
    }
}
