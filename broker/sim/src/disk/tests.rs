use super::*;

const NOW: u64 = 0;

fn disk(seed: u64) -> Disk {
    Disk::new(Rng::new(seed), BLOCK, 1 << 20, Weather::default())
}

fn file(disk: &mut Disk, blocks: u64) -> FileId {
    let id = disk.create("f", Some(Class::Journal));
    disk.allocate(id, blocks * BLOCK).unwrap();
    let flush = disk.flush(NOW, id);
    finish(disk, flush).unwrap();
    let flush = disk.flush_folder(NOW, "");
    finish(disk, flush).unwrap();
    id
}

fn finish(disk: &mut Disk, op: OpId) -> Result<Bytes, DiskError> {
    disk.complete(op, &mut Trace::new(false)).unwrap()
}

fn block(fill: u8) -> Bytes {
    Bytes::from(vec![fill; BLOCK as usize])
}

fn put_block(disk: &mut Disk, id: FileId, at: u64, fill: u8) {
    let write = disk.write(NOW, id, at * BLOCK, block(fill));
    finish(disk, write).unwrap();
}

fn flush(disk: &mut Disk, id: FileId) {
    let flush = disk.flush(NOW, id);
    finish(disk, flush).unwrap();
}

fn first(disk: &Disk, id: FileId, at: u64) -> u8 {
    disk.peek(id, at * BLOCK, 1)[0]
}

#[test]
fn what_was_flushed_outlives_a_power_cut_and_what_was_not_does_not() {
    let mut disk = disk(1);
    let id = file(&mut disk, 4);
    put_block(&mut disk, id, 0, 1);
    flush(&mut disk, id);
    put_block(&mut disk, id, 1, 2);
    assert_eq!(first(&disk, id, 1), 2, "a process reads what completed");
    disk.cut(CutStyle::AllOld);
    assert_eq!((first(&disk, id, 0), first(&disk, id, 1)), (1, 0));
}

#[test]
fn a_flush_covers_only_writes_that_completed_before_it_was_issued() {
    let mut disk = disk(1);
    let id = file(&mut disk, 4);
    let write = disk.write(NOW, id, 0, block(1));
    let flush = disk.flush(NOW, id);
    finish(&mut disk, write).unwrap();
    finish(&mut disk, flush).unwrap();
    disk.cut(CutStyle::AllOld);
    assert_eq!(first(&disk, id, 0), 0);
}

#[test]
fn a_kill_leaves_what_completed_but_not_durably() {
    let mut disk = disk(1);
    let id = file(&mut disk, 4);
    put_block(&mut disk, id, 0, 1);
    disk.kill();
    assert_eq!(first(&disk, id, 0), 1);
    disk.cut(CutStyle::AllOld);
    assert_eq!(first(&disk, id, 0), 0);
}

#[test]
fn of_two_overlapping_writes_the_one_that_completes_last_stays() {
    let mut disk = disk(1);
    let id = file(&mut disk, 4);
    let older = disk.write(NOW, id, 0, block(1));
    let newer = disk.write(NOW, id, 0, block(2));
    finish(&mut disk, newer).unwrap();
    finish(&mut disk, older).unwrap();
    assert_eq!(first(&disk, id, 0), 1);
}

#[test]
fn a_torn_cut_takes_sides_sector_by_sector() {
    let mut styles = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let mut disk = disk(seed);
        let id = file(&mut disk, 8);
        for at in 0..8 {
            put_block(&mut disk, id, at, 7);
        }
        disk.cut(CutStyle::Torn);
        for at in 0..8 {
            let bytes = disk.peek(id, at * BLOCK, BLOCK);
            let of = |value: u8| bytes.iter().map(|byte| usize::from(*byte == value)).sum::<usize>();
            let (old, new) = (of(0), of(7));
            styles.insert(match (old, new) {
                (_, n) if n == bytes.len() => "new",
                (o, _) if o == bytes.len() => "old",
                (o, n) if o + n == bytes.len() => "torn",
                _ => "garbage",
            });
        }
    }
    assert_eq!(styles.into_iter().collect::<Vec<_>>(), ["garbage", "new", "old", "torn"]);
}

#[test]
fn a_name_needs_a_flush_of_its_folder_and_a_size_a_flush_of_the_file() {
    let mut disk = disk(1);
    disk.create("d", None);
    let id = disk.create("d/f", Some(Class::Segment));
    disk.allocate(id, BLOCK).unwrap();
    flush(&mut disk, id);
    let op = disk.flush_folder(NOW, "d");
    finish(&mut disk, op).unwrap();
    disk.cut(CutStyle::AllOld);
    assert_eq!(disk.open("d/f"), None, "the folder's own name was never flushed");

    let id = file(&mut disk, 1);
    disk.allocate(id, 4 * BLOCK).unwrap();
    disk.cut(CutStyle::AllOld);
    assert_eq!(disk.size(disk.open("f").unwrap()), BLOCK);
}

#[test]
fn a_removed_file_may_come_back_until_its_folder_is_flushed() {
    let mut disk = disk(1);
    let id = file(&mut disk, 1);
    put_block(&mut disk, id, 0, 5);
    flush(&mut disk, id);
    disk.remove("f");
    assert_eq!(disk.open("f"), None);
    disk.cut(CutStyle::AllOld);
    assert_eq!(disk.open("f"), Some(id));
    assert_eq!(first(&disk, id, 0), 5);

    disk.remove("f");
    let op = disk.flush_folder(NOW, "");
    finish(&mut disk, op).unwrap();
    disk.cut(CutStyle::AllOld);
    assert_eq!(disk.open("f"), None);
}

#[test]
fn after_a_failed_flush_a_flush_that_succeeds_says_nothing() {
    let mut lost = 0;
    for seed in 0..32 {
        let mut disk = disk(seed);
        let id = file(&mut disk, 4);
        put_block(&mut disk, id, 0, 1);
        disk.arm(Fault::FlushError, Class::Journal);
        let op = disk.flush(NOW, id);
        assert_eq!(finish(&mut disk, op), Err(DiskError::Io));
        flush(&mut disk, id);
        lost += u32::from(first(&disk, id, 0) == 0);
    }
    assert!(lost > 4, "{lost}");
}

#[test]
fn lost_and_misdirected_writes_and_rot_are_in_the_ledger_until_written_again() {
    let mut disk = disk(3);
    let id = file(&mut disk, 8);
    disk.arm(Fault::LostWrite, Class::Journal);
    put_block(&mut disk, id, 1, 9);
    assert_eq!(first(&disk, id, 1), 0);
    assert!(disk.damage().touches(id, BLOCK, 1) && !disk.damage().touches(id, 0, BLOCK));
    put_block(&mut disk, id, 1, 9);
    assert!(disk.damage().is_empty());

    flush(&mut disk, id);
    assert!(disk.rot(id, BLOCK, BLOCK));
    assert!(disk.peek(id, BLOCK, BLOCK) != block(9));
    assert!(disk.damage().touches(id, BLOCK, BLOCK));
}

#[test]
fn a_full_disk_refuses_to_grow_a_file_and_gives_room_back() {
    let mut disk = disk(1);
    disk.set_capacity(3 * BLOCK);
    let id = file(&mut disk, 2);
    assert_eq!(disk.allocate(id, 4 * BLOCK), Err(DiskError::NoSpace));
    disk.remove("f");
    let id = disk.create("g", Some(Class::Segment));
    assert_eq!(disk.allocate(id, 3 * BLOCK), Ok(()));
}
