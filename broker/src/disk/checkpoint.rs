//! Checkpoint slots: two files, written in turn, each in place.
//!
//! A slot that is torn by a crash is told by its checksums, and the other one counts.

use super::buffer::copied;
use super::error::Result;
use super::file::File;
use super::segments::flush_folder;
use crate::rt;
use corelog_core::shard::CheckpointWrite;
use std::path::{Path, PathBuf};

/// Largest write.
const PIECE_BYTES: usize = 1 << 20;

/// Name of a slot's file.
pub(super) fn file_name(slot: u8) -> String {
    format!("checkpoint-{slot}")
}

/// Writes a slot and makes it durable.
pub(super) async fn write(folder: &Path, checkpoint: &CheckpointWrite) -> Result<()> {
    let path: PathBuf = folder.join(file_name(checkpoint.slot));
    let file = File::open(&path, true).await?;
    let bytes = checkpoint.bytes.len() as u64;
    // Room first: where there is none, the slot stays what it was.
    file.allocate(bytes).await?;
    file.set_size(bytes).await?;
    let mut at = 0;
    for piece in checkpoint.bytes.chunks(PIECE_BYTES) {
        file.write(copied(piece), at).await?;
        at += piece.len() as u64;
        rt::yield_if_needed().await;
    }
    file.flush().await?;
    file.close().await?;
    // The name too, each time: whether an earlier try came so far is not known here.
    flush_folder(folder).await
}
