//! The raw files: every extent that the journal proves is in its segment, byte for byte what was sealed.
//!
//! Reads the disk, not the broker. Extents come from what the hands saw committed (`shadow`), batches from what the
//! clients know. Blocks that the ledger of damage names are left out.

use super::Checker;
use super::partition::{fingerprint, u32_at, u64_at};
use crate::disk::Disk;
use crate::hands::Hands;
use crate::shadow::Shadow;
use corelog_core::journal::ExtentEntry;

/// Checks all proven extents of one shard.
///
/// # Errors
/// What is wrong with the first one that is wrong.
pub fn check_segments(disk: &Disk, shadow: &Shadow, checker: &Checker) -> Result<(), String> {
    for extent in shadow.extents() {
        let Some(readable) = checker.readable(extent.segment.tp) else { continue };
        if extent.end.get() <= readable.start {
            continue;
        }
        check_extent(disk, extent, checker)?;
    }
    Ok(())
}

fn check_extent(disk: &Disk, extent: &ExtentEntry, checker: &Checker) -> Result<(), String> {
    let name =
        format!("{} segment {} use {}", extent.segment.tp, extent.segment.base, extent.segment.segment_use.0);
    let Some(file) = Hands::open_segment(extent.segment, disk) else {
        return Err(format!("D4: the file of {name} is gone"));
    };
    if disk.damage().touches(file, extent.file_position, extent.bytes) {
        return Ok(());
    }
    let bytes = disk.peek(file, extent.file_position, extent.bytes);
    let mut rest = &bytes[..];
    let mut next = extent.first.get();
    while !rest.is_empty() {
        let length = if rest.len() < 96 { 0 } else { u32_at(rest, 24) as usize };
        if length < 96 || length > rest.len() {
            return Err(format!("D4: {name}: the extent at {} breaks off at {next}", extent.file_position));
        }
        let (batch, after) = rest.split_at(length);
        if u64_at(batch, 0) != next {
            return Err(format!("D4: {name}: offset {} where {next} belongs", u64_at(batch, 0)));
        }
        if let Some(sent) = checker.at(extent.segment.tp, next)
            && sent.fingerprint != fingerprint(batch)
        {
            return Err(format!(
                "D4: {name}: the batch at {next} is not the one that was acknowledged or read"
            ));
        }
        next += u64::from(u32_at(batch, 36)) + 1;
        rest = after;
    }
    if next == extent.end.get() {
        Ok(())
    } else {
        Err(format!("D4: {name}: an extent up to {} ends at {next}", extent.end))
    }
}
