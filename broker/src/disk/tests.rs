//! Files of a shard alone: full file systems, removal, and the traps of direct I/O that they have to keep us out of.

use super::DiskError;
use super::arena::{Arena, Frozen};
use super::buffer::{Pool, copied};
use super::extents::Extents;
use super::file::{File, probe, read_whole};
use super::journal::{Flushes, Journal};
use super::meters::Meters;
use super::segments::Segments;
use crate::net::PayloadSlice;
use crate::rt::{self, Gate, Options, ShardContext, start};
use bytes::Bytes;
use corelog_core::journal::{Packer, Position, SegmentId, SegmentUse, Session};
use corelog_core::shard::{CheckpointWrite, DiskFailure, ExtentWrite, Make, Prewrite};
use corelog_wire::ids::{Offset, TopicId, TopicPartition};
use rustix::fs::OFlags;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(2);
const MIB: usize = 1 << 20;

/// Runs `main` on an executor in a folder; the file system under it is probed first, as every start does.
fn run<Task: Future<Output = ()> + 'static>(
    folder: &Path,
    main: impl Fn(ShardContext, PathBuf) -> Task + Clone + Send + 'static,
) {
    let folder = folder.to_owned();
    let running = start(&Options::default(), vec![folder], move |context, folder: PathBuf| {
        let main = main.clone();
        async move {
            probe(&folder).await.unwrap();
            main(context, folder).await;
        }
    });
    let (done, ended) = channel();
    let running = running.unwrap();
    std::thread::spawn(move || done.send(running.join().map_err(|error| error.to_string())));
    ended.recv_timeout(PATIENCE).expect("the executor hangs").unwrap();
}

fn segment(base: u64) -> SegmentId {
    let tp = TopicPartition::new(TopicId::from_bytes([3; 16]), 0);
    SegmentId { tp, base: Offset::new(base), segment_use: SegmentUse(1) }
}

#[test]
fn an_empty_file_may_be_the_first_of_a_device_after_the_probe() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), |_, folder| async move {
        let file = File::open(&folder.join("empty"), true).await.unwrap();
        file.write(copied(&[5; 8_192]), 0).await.unwrap();
        file.flush().await.unwrap();
        assert_eq!(file.read(4_096, 4_096).await.unwrap().to_vec(), [5; 4_096]);
        file.close().await.unwrap();
        assert!(!folder.join("probe").exists());
    });
}

#[test]
fn nothing_is_read_beyond_the_end_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("odd"), vec![6; 10_000]).unwrap();
    run(folder.path(), |_, folder| async move {
        let path = folder.join("odd");
        let file = File::open(&path, false).await.unwrap();
        let short = file.read(8_192, 4_096).await.unwrap_err();
        assert!(matches!(short, DiskError::Short { wanted: 4_096, done: 1_808, .. }), "{short}");
        assert!(file.read(12_288, 4_096).await.is_err());
        assert_eq!(read_whole(&path).await.unwrap(), Some(vec![6; 8_192]));
        assert_eq!(read_whole(&folder.join("none")).await.unwrap(), None);
    });
}

#[test]
fn writes_under_way_are_waited_for_before_an_executor_ends() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), |_, folder| async move {
        let file = Rc::new(File::open(&folder.join("many"), true).await.unwrap());
        file.allocate(64 * MIB as u64).await.unwrap();
        let (gate, buffer) = (Gate::default(), copied(&vec![7; MIB]));
        for at in 0..64 {
            let (file, buffer, pass) = (Rc::clone(&file), Rc::clone(&buffer), gate.enter());
            rt::spawn(async move {
                file.write(buffer, at * MIB as u64).await.unwrap();
                drop(pass);
            });
        }
        gate.idle().await;
    });
    let bytes = std::fs::read(folder.path().join("many")).unwrap();
    assert!(bytes.len() == 64 * MIB && bytes.iter().all(|&byte| byte == 7));
}

#[test]
fn a_file_goes_only_when_nobody_holds_it_and_the_folder_with_the_last() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), |context, folder| async move {
        let (topics, gate) = (folder.join("topics"), Gate::default());
        std::fs::create_dir(&topics).unwrap();
        let segments = Rc::new(Segments::new(topics.clone()));
        let hold = |base| segments.hold(segment(base), context.background, &gate);
        for base in [0, 10] {
            segments.create(&hold(base), None).await.unwrap();
            segments.write_index(&hold(base), vec![0; 4_096]).await.unwrap();
        }
        let partition = topics.join(corelog_core::segment::folder_name(segment(0).tp));
        let files = || std::fs::read_dir(&partition).map_or(0, Iterator::count);
        assert_eq!(files(), 4);
        let reader = hold(0);
        segments.remove(segment(0), context.background, &gate);
        segments.remove(segment(10), context.background, &gate);
        segments.remove_partition(segment(0).tp, context.background, &gate);
        gate.idle().await;
        assert_eq!(files(), 2);
        assert!(segments.open(&reader).await.is_ok());
        drop(reader);
        gate.idle().await;
        assert!(!partition.exists() && std::fs::read_dir(&topics).unwrap().count() == 0);
    });
}

#[test]
fn a_file_is_used_again_unless_somebody_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), |context, folder| async move {
        let (topics, gate) = (folder.join("topics"), Gate::default());
        std::fs::create_dir(&topics).unwrap();
        let segments = Rc::new(Segments::new(topics.clone()));
        let hold = |base| segments.hold(segment(base), context.background, &gate);
        let partition = topics.join(corelog_core::segment::folder_name(segment(0).tp));
        let path = |base| partition.join(corelog_core::segment::file_name(segment(base)));
        for base in [0, 10] {
            let file = segments.create(&hold(base), None).await.unwrap();
            file.allocate_with_margin(8_192).await.unwrap();
            file.write(copied(&[u8::try_from(base).unwrap(); 8_192]), 0).await.unwrap();
            segments.write_index(&hold(base), vec![0; 4_096]).await.unwrap();
        }
        let file = segments.create(&hold(20), Some(segment(0))).await.unwrap();
        assert_eq!(file.read(4_096, 4_096).await.unwrap().to_vec(), [0; 4_096]);
        assert!(!path(0).exists() && path(20).exists(), "the file has its new name");
        let reader = hold(10);
        let file = segments.create(&hold(30), Some(segment(10))).await.unwrap();
        assert_eq!(std::fs::metadata(path(30)).unwrap().len(), 0, "a file that is read is not used again");
        let read = segments.open(&reader).await.unwrap().read(0, 4_096).await.unwrap().to_vec();
        assert_eq!(read, [10; 4_096]);
        drop((reader, file));
        gate.idle().await;
        assert!(!path(10).exists(), "it goes with its last reader");
        segments.create(&hold(40), Some(segment(10))).await.unwrap();
        assert!(path(40).exists(), "a file that is gone is no loss");
        assert_eq!(std::fs::read_dir(&partition).unwrap().count(), 3, "indexes went with their files");
        segments.close().await.unwrap();
    });
}

/// A small ext4 of its own, if this process may mount one.
struct SmallDisk {
    _folder: tempfile::TempDir,
    mount: PathBuf,
}

impl SmallDisk {
    fn new(mib: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len((mib * MIB) as u64).unwrap();
        let ran = |program: &str, arguments: &[&std::ffi::OsStr]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        let (image, target) = (image.as_os_str(), mount.as_os_str());
        let mounted = ran("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image])
            && ran("mount", &["-o".as_ref(), "loop".as_ref(), image, target]);
        if !mounted {
            eprintln!("SKIPPED: a test of a full file system needs root, mkfs.ext4 and a loop device");
        }
        mounted.then(|| Self { mount, _folder: folder })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: an executor that ends may leave a descriptor open until the process does.
        let ended = Command::new("umount").arg("--lazy").arg(&self.mount).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.mount.display());
        }
    }
}

/// Segments below a folder that has none yet, and who writes extents to them.
fn extents_below(folder: &Path) -> (Rc<Segments>, Extents) {
    let topics = folder.join("topics");
    std::fs::create_dir(&topics).unwrap();
    let segments = Rc::new(Segments::new(topics));
    let extents = Extents::new(Rc::clone(&segments), Pool::new(4 * MIB));
    (segments, extents)
}

#[test]
fn a_full_file_system_is_told_from_a_fault_and_an_extent_fits_once_there_is_room() {
    let Some(disk) = SmallDisk::new(40) else { return };
    run(&disk.mount, |context, folder| async move {
        let (gate, ballast) = (Gate::default(), folder.join("ballast"));
        let (segments, extents) = extents_below(&folder);
        let hold = segments.hold(segment(0), context.background, &gate);
        let extent = ExtentWrite {
            segment: segment(0),
            make: Make::New,
            file_position: 4_096,
            allocate_to: 8 * MIB as u64,
            slices: Vec::new(),
            bytes: 5 * MIB as u64 - 100,
            urgent: true,
        };
        let slices = || {
            let bytes = Bytes::from(vec![8; 5 * MIB - 100]);
            vec![PayloadSlice::owned(bytes.slice(..=MIB)), PayloadSlice::owned(bytes.slice(MIB + 1..))]
        };
        let room = rustix::fs::statvfs(&folder).unwrap();
        let free = room.f_bavail * room.f_frsize;
        let file = std::fs::File::create(&ballast).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free - 4 * MIB as u64).unwrap();
        let full = extents.write(&extent, slices(), &hold).await.unwrap_err();
        assert_eq!(full.failure(), DiskFailure::NoSpace, "{full}");
        file.set_len(0).unwrap();
        extents.write(&extent, slices(), &hold).await.unwrap();
        let name = corelog_core::segment::file_name(segment(0));
        let path = folder.join("topics").join(corelog_core::segment::folder_name(segment(0).tp)).join(name);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[..4_096], corelog_core::segment::first_block(segment(0)));
        let end = 4_096 + 5 * MIB - 100;
        assert!(
            bytes[4_096..end].iter().all(|&byte| byte == 8) && bytes[end..].iter().all(|&byte| byte == 0)
        );
        drop(hold);
        segments.close().await.unwrap();
    });
}

#[test]
fn segments_leave_the_file_system_a_margin_in_which_a_checkpoint_fits() {
    let Some(disk) = SmallDisk::new(64) else { return };
    run(&disk.mount, |context, folder| async move {
        let (gate, ballast) = (Gate::default(), folder.join("ballast"));
        let (segments, extents) = extents_below(&folder);
        let hold = segments.hold(segment(0), context.background, &gate);
        let room = rustix::fs::statvfs(&folder).unwrap();
        let margin = room.f_blocks * room.f_frsize / 16;
        let file = std::fs::File::create(&ballast).unwrap();
        let free = room.f_bavail * room.f_frsize;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free - margin - MIB as u64)
            .unwrap();
        let extent = |allocate_to: u64| ExtentWrite {
            segment: segment(0),
            make: Make::New,
            file_position: 4_096,
            allocate_to,
            slices: Vec::new(),
            bytes: 4_096,
            urgent: false,
        };
        let slices = || vec![PayloadSlice::owned(Bytes::from(vec![8; 4_096]))];
        // The file system itself would take it.
        let full = extents.write(&extent(2 * MIB as u64), slices(), &hold).await.unwrap_err();
        assert_eq!(full.failure(), DiskFailure::NoSpace, "{full}");
        extents.write(&extent(256 << 10), slices(), &hold).await.unwrap();
        let checkpoint = CheckpointWrite { slot: 0, bytes: vec![7; 2 * MIB] };
        super::checkpoint::write(&folder, &checkpoint).await.unwrap();
        // One that does not fit leaves the slot as it was.
        let larger = CheckpointWrite { slot: 0, bytes: vec![8; 64 * MIB] };
        let full = super::checkpoint::write(&folder, &larger).await.unwrap_err();
        assert_eq!(full.failure(), DiskFailure::NoSpace, "{full}");
        let slot = std::fs::read(folder.join(super::checkpoint::file_name(0))).unwrap();
        assert!(slot == vec![7; 2 * MIB], "the slot that was there is lost");
        drop(hold);
        segments.close().await.unwrap();
    });
}

#[test]
fn after_one_failure_nothing_is_written_to_a_journal_any_more() {
    let Some(disk) = SmallDisk::new(20) else { return };
    run(&disk.mount, |context, folder| async move {
        // Sparse, so that the file system has no room for all of it.
        let (path, ring) = (folder.join("journal"), 64 * MIB as u64);
        std::fs::File::create(&path).unwrap().set_len(ring + 8_192).unwrap();
        let journal =
            Journal::open(&path, Flushes::AfterWrites, context.ring, ring, Packer::new(Session(1), 0))
                .unwrap();
        let meters = Meters::new();
        let write = |at: u64| journal.write(Position::new(at), packed(&[9; 4_096]), &meters);
        write(0).await.unwrap();
        let failure = journal.prewrite(Prewrite { ring_offset: MIB as u64, bytes: 32 * MIB as u64 }).await;
        assert!(matches!(failure, Err(DiskError::System { .. })), "{failure:?}");
        // There would be room for this one.
        let refused = write(4_096).await;
        assert!(matches!(refused, Err(DiskError::Poisoned(_))), "{refused:?}");
        let again = journal.prewrite(Prewrite { ring_offset: 0, bytes: 4_096 }).await;
        assert!(matches!(again, Err(DiskError::Poisoned(_))), "{again:?}");
    });
}

#[test]
fn a_commit_around_the_end_of_the_ring_lies_in_both_places() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), |context, folder| async move {
        let (path, ring) = (folder.join("journal"), 64 << 10);
        std::fs::write(&path, vec![0; (64 << 10) + 8_192]).unwrap();
        let journal =
            Journal::open(&path, Flushes::WithWrites, context.ring, ring, Packer::new(Session(1), 0))
                .unwrap();
        let bytes: Vec<u8> = (0..12_288_u32).map(|i| u8::try_from(i / 4_096 + 1).unwrap()).collect();
        journal.write(Position::new(3 * ring - 4_096), packed(&bytes), &Meters::new()).await.unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file[file.len() - 4_096..], bytes[..4_096]);
        assert_eq!(file[8_192..8_192 + 8_192], bytes[4_096..]);
        assert!(file[16_384..file.len() - 4_096].iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_write_to_the_journal_is_direct_and_a_flush() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), |context, folder| async move {
        let path = folder.join("journal");
        std::fs::write(&path, [0; 4_096]).unwrap();
        let before: Vec<PathBuf> = opened_durable(&path);
        let journal =
            Journal::open(&path, Flushes::for_this_thread(), context.ring, 4_096, Packer::new(Session(1), 0))
                .unwrap();
        assert_eq!((before.len(), opened_durable(&path).len()), (0, 1));
        drop(journal);
    });
}

/// Descriptors of this process that are this file, opened for writes that are direct and durable.
fn opened_durable(path: &Path) -> Vec<PathBuf> {
    let path = path.canonicalize().unwrap();
    let wanted = (OFlags::DIRECT | OFlags::DSYNC).bits();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let durable = |descriptor: &PathBuf| {
        let info = Path::new("/proc/self/fdinfo").join(descriptor.file_name().unwrap());
        // One that is closed meanwhile is none of ours.
        let (Ok(target), Ok(info)) = (std::fs::read_link(descriptor), std::fs::read_to_string(info)) else {
            return false;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        target == path && u32::from_str_radix(flags, 8).unwrap() & wanted == wanted
    };
    descriptors.filter(durable).collect()
}

fn packed(bytes: &[u8]) -> Rc<Frozen> {
    let mut memory = Arena::new(0).take(bytes.len());
    memory.bytes_mut().copy_from_slice(bytes);
    memory.freeze()
}
