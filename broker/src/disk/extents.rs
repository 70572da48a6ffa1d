//! Extents: a partition's bytes from memory into its segment file, durable.
//!
//! Called by the room's `perform`; runs in the background queue. The bytes are gathered from the commits in memory into
//! aligned pieces, which is their one copy on this way; a few pieces are written at once. The shard learns of the
//! extent only after its flush, and of a new file only when its name is durable too.

use super::BLOCK_BYTES;
use super::buffer::{Filling, Pool, copied};
use super::error::Result;
use super::file::File;
use super::segments::{Hold, Segments};
use crate::net::PayloadSlice;
use crate::rt;
use corelog_core::segment::first_block;
use corelog_core::shard::{ExtentWrite, Make};
use glommio::sync::Semaphore;
use std::cell::RefCell;
use std::rc::Rc;

/// Largest write. Two to four of these at once keep a fast device busy; more only wait.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces in memory at once, over all extents of the shard.
const PIECES_MAX: u64 = 4;
/// The largest write of an extent that is not urgent; these are written one at a time. A commit waits on the device for what is
/// before it.
const SMALL_PIECE_BYTES: usize = 256 << 10;

/// Writes extents.
#[derive(Debug)]
pub(super) struct Extents {
    segments: Rc<Segments>,
    pool: Pool,
    pieces: Rc<Semaphore>,
}

impl Extents {
    /// Writes to these segments from buffers of this pool.
    pub(super) fn new(segments: Rc<Segments>, pool: Pool) -> Self {
        Self { segments, pool, pieces: Rc::new(Semaphore::new(PIECES_MAX)) }
    }

    /// Writes one extent and makes it durable. `slices` are the bytes that `extent` names.
    pub(super) async fn write(
        &self,
        extent: &ExtentWrite,
        slices: Vec<PayloadSlice>,
        hold: &Hold,
    ) -> Result<()> {
        let made = extent.make != Make::Nothing;
        let file = match extent.make {
            Make::Nothing => self.segments.open(hold).await?,
            Make::New => self.segments.create(hold, None).await?,
            Make::Of(old) => self.segments.create(hold, Some(old)).await?,
        };
        file.allocate_with_margin(extent.allocate_to).await?;
        if made {
            file.write(copied(&first_block(extent.segment)), 0).await?;
        }
        self.write_pieces(&file, extent, slices).await?;
        file.flush().await?;
        if made {
            self.segments.flush_name(hold).await?;
        }
        Ok(())
    }

    /// Writes the pieces, a few at once, and waits for all of them whatever becomes of each.
    async fn write_pieces(
        &self,
        file: &Rc<File>,
        extent: &ExtentWrite,
        slices: Vec<PayloadSlice>,
    ) -> Result<()> {
        let (permits, largest) =
            if extent.urgent { (1, PIECE_BYTES) } else { (PIECES_MAX, SMALL_PIECE_BYTES) };
        let failure = Rc::new(RefCell::new(None));
        let under_way = rt::Gate::default();
        let mut gather = Gather::new(slices);
        let mut at = extent.file_position;
        while failure.borrow().is_none() {
            // Never closed, so it always gives.
            let permit = self.pieces.acquire_static_permit(permits).await.ok();
            let Some(piece) = gather.next_piece(&self.pool, largest) else { break };
            let piece = piece.freeze();
            let bytes = (*piece).as_ref().len() as u64;
            let (file, failure, pass, to) = (Rc::clone(file), Rc::clone(&failure), under_way.enter(), at);
            rt::spawn(async move {
                if let Err(error) = file.write(piece.dma(), to).await {
                    failure.borrow_mut().get_or_insert(error);
                }
                drop((piece, permit, pass));
            });
            at += bytes;
            rt::yield_if_needed().await;
        }
        under_way.idle().await;
        let failure = failure.borrow_mut().take();
        failure.map_or(Ok(()), Err)
    }
}

/// Cuts a row of slices into aligned pieces; zeros after the last byte.
struct Gather {
    slices: std::vec::IntoIter<PayloadSlice>,
    /// The slice under way, and how much of it is done.
    current: Option<(PayloadSlice, usize)>,
    left: usize,
}

impl Gather {
    fn new(slices: Vec<PayloadSlice>) -> Self {
        let left = slices.iter().map(PayloadSlice::len).sum();
        Self { slices: slices.into_iter(), current: None, left }
    }

    /// The next piece, of so many bytes at most, a multiple of the block size; `None` after the last.
    fn next_piece(&mut self, pool: &Pool, largest: usize) -> Option<Filling> {
        if self.left == 0 {
            return None;
        }
        let bytes = self.left.min(largest);
        let mut piece = pool.take(bytes.next_multiple_of(BLOCK_BYTES));
        let (data, padding) = piece.bytes_mut().split_at_mut(bytes);
        padding.fill(0);
        self.fill(data);
        self.left -= bytes;
        Some(piece)
    }

    fn fill(&mut self, mut room: &mut [u8]) {
        while !room.is_empty() {
            let Some((slice, done)) =
                self.current.take().or_else(|| self.slices.next().map(|slice| (slice, 0)))
            else {
                unreachable!("a piece longer than what is left");
            };
            let rest = &slice.as_ref()[done..];
            let bytes = rest.len().min(room.len());
            let (now, later) = room.split_at_mut(bytes);
            now.copy_from_slice(&rest[..bytes]);
            room = later;
            if done + bytes < slice.len() {
                self.current = Some((slice, done + bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, Gather, PIECE_BYTES, PayloadSlice, Pool};
    use bytes::Bytes;

    #[test]
    fn pieces_are_the_slices_in_a_row_and_padded_with_zeros() {
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES + 12_345).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let slices = bytes.chunks(33_333).map(|chunk| PayloadSlice::owned(Bytes::copy_from_slice(chunk)));
        let mut gather = Gather::new(slices.collect());
        let pool = Pool::new(0);
        let mut pieces = Vec::new();
        while let Some(piece) = gather.next_piece(&pool, PIECE_BYTES) {
            pieces.push((*piece.freeze()).as_ref().to_vec());
        }
        let lengths: Vec<usize> = pieces.iter().map(Vec::len).collect();
        let last = 12_345_usize.next_multiple_of(BLOCK_BYTES);
        assert_eq!(lengths, [PIECE_BYTES, PIECE_BYTES, last]);
        let whole = pieces.concat();
        assert_eq!(whole[..bytes.len()], bytes);
        assert!(whole[bytes.len()..].iter().all(|&byte| byte == 0));
        assert!(whole.len() > bytes.len());
    }
}
