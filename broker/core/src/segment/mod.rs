//! Segments: the files that hold a partition's log once it left the journal, immutable extent by extent.
//!
//! A file starts with one block that names it ([`first_block`]); extents follow, each a multiple of [`BLOCK`]:
//! whole batches one after the other, zeros up to the block. An extent counts only by its journal entry, so nothing
//! here looks for the end of a file. This room knows the bytes and how to walk them (`scan`), and the sparse index
//! over them (`index`). It knows no file.

mod index;
mod layout;
mod scan;

pub use index::{Index, IndexEntry, IndexFile, IndexFileContent, ProducerBatch, ProducerRecord, index_file};
pub use layout::{
    SegmentError, file_name, first_block, folder_name, index_file_name, parse_file_name, parse_first_block,
};
pub use scan::{BatchScan, Found, Next, Taken};

pub use crate::limits::BLOCK;
