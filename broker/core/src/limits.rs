//! Every limit of the broker, with its arithmetic. Full means: refuse or stop reading, never grow.
//!
//! Values that users may set have their default here and their bounds beside it. The assertions at the end tie
//! the limits together: a broker whose limits contradict each other does not compile.

use std::time::Duration;

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// Unit of every disk offset, length and buffer: the largest logical block size in common use.
pub const BLOCK: u64 = 4 * KIB;

/// Largest record a client may send.
pub const RECORD_BYTES_MAX: u32 = 4 << 20;
/// Largest record batch, header and padding included.
pub const BATCH_BYTES_MAX: u32 = 8 << 20;
/// Largest payload of a request.
pub const REQUEST_PAYLOAD_BYTES_MAX: u32 = 16 << 20;
/// Largest payload of a fetch answer, unless a single batch is larger.
pub const FETCH_BYTES_MAX: u32 = 16 << 20;
/// Keys whose newest offset a round of compaction knows: some forty bytes each, on a shard that is at work on one.
pub const COMPACTION_KEYS_MAX: usize = 1 << 20;
/// Bytes of batches that compaction looks at before it lets others work, or one batch.
pub const COMPACTION_SLICE_BYTES: usize = 32 << 10;
/// What compaction reads and writes at once, unless a batch is larger.
pub const COMPACTION_IO_BYTES: usize = 128 << 10;
/// A partition is compacted when one in so many bytes that could be is new since the last time.
pub const COMPACTION_DIRTY_SHARE: u64 = 2;
/// After a round that failed none begins on its partition for so long.
pub const COMPACTION_RETRY: Duration = Duration::from_mins(1);
/// What a fetch with a tag filter passes over of a segment before it is answered with how far it came.
pub const FILTER_PASSED_BYTES_MAX: u64 = 16 << 20;
/// Largest frame header before and after `Hello`.
pub const HEADER_BYTES_MAX_BEFORE_HELLO: u32 = 4 << 10;
/// See [`HEADER_BYTES_MAX_BEFORE_HELLO`].
pub const HEADER_BYTES_MAX: u32 = 1 << 20;

/// Smallest and default size of a shard's journal ring.
pub const JOURNAL_BYTES_MIN: u64 = 64 * MIB;
/// See [`JOURNAL_BYTES_MIN`].
pub const JOURNAL_BYTES_DEFAULT: u64 = 256 * MIB;
/// Largest commit: header, entries and padding. One largest batch always fits beside control entries.
pub const COMMIT_BYTES_MAX: u64 = 12 * MIB;
/// Bytes of a commit's batches that go to segments alone; one batch may be larger.
pub const DIRECT_BYTES_MAX: u64 = 8 * MIB;
/// A partition whose waiting batches have so many bytes, or this share of the ring, writes them to its segment alone.
pub const DIRECT_BYTES_MIN: u64 = 512 * KIB;
/// See [`DIRECT_BYTES_MIN`]: one in so many.
pub const DIRECT_SHARE: u64 = 64;
/// A partition that did so last goes on with one in so many of that.
pub const DIRECT_AGAIN_SHARE: u64 = 8;
/// What nobody waits for gets its commit after so long.
pub const LAZY_COMMIT_AFTER: Duration = Duration::from_millis(5);
/// What nobody waits for gets its commit when it is so much.
pub const LAZY_COMMIT_BYTES: u64 = 256 * KIB;
/// Commits under way at once: one being flushed while the next is written.
pub const COMMITS_IN_FLIGHT_MAX: usize = 2;
/// Share of the ring that batches leave free: one in this many. Log starts and marks may use the first half of it, extents
/// and removals all.
pub const JOURNAL_RESERVE_SHARE: u64 = 8;
/// Destaging starts when one in this many of the ring holds bytes that are in no segment yet.
pub const DESTAGE_START_SHARE: u64 = 4;
/// Destaging that has not begun to catch up when three eighths of the ring are in no segment is urgent.
pub const DESTAGE_URGENT_TIMES: u64 = 3;
/// See [`DESTAGE_URGENT_TIMES`].
pub const DESTAGE_URGENT_DIVISOR: u64 = 8;
/// A checkpoint is due when the head moved this share of the ring since the last one.
pub const CHECKPOINT_SHARE: u64 = 8;
/// An idle shard marks its last commit as flushed after this long.
pub const IDLE_MARK_AFTER: Duration = Duration::from_millis(50);
/// Sessions remembered by a journal's superblock.
pub const SESSIONS_MAX: usize = 128;

/// Largest extent: one sequential write of a partition's bytes.
pub const EXTENT_BYTES_MAX: u64 = 4 * MIB + BATCH_BYTES_MAX as u64;
/// An extent takes batches until it has this many bytes.
pub const EXTENT_BYTES_FULL: u64 = 4 * MIB;
/// Extents under way at once on a shard: many small ones share the file system's journal commits.
pub const EXTENTS_IN_FLIGHT_MAX: usize = 64;
/// Bytes of extents under way at once; one may exceed this alone.
pub const EXTENT_BYTES_IN_FLIGHT_MAX: u64 = 32 * MIB;
/// Room left on the file system that destaging never uses.
pub const DISK_MARGIN_BYTES: u64 = 64 * MIB;
/// On a small file system, or under a small budget, the margin is one in this many of it.
pub const DISK_MARGIN_SHARE: u64 = 16;
/// After the file system was full, the next try comes at the first housekeeping after this.
pub const DISK_FULL_RETRY: Duration = Duration::from_millis(500);

/// Default and bounds of a segment file.
pub const SEGMENT_BYTES_DEFAULT: u64 = 256 * MIB;
/// Smallest segment: a few largest batches.
pub const SEGMENT_BYTES_MIN: u64 = MIB;
/// Largest segment: file positions fit 32 bits in the index.
pub const SEGMENT_BYTES_MAX: u64 = GIB;
/// Default age at which records go: 7 days.
pub const RETENTION_MS_DEFAULT: u64 = 7 * 24 * 3_600 * 1_000;
/// Default of `delete_retention_ms`.
pub const DELETE_RETENTION_MS_DEFAULT: u64 = 24 * 3_600 * 1_000;
/// Largest: about 292 years in nanoseconds fit 63 bits; a hundred years of milliseconds are plenty.
pub const RETENTION_MS_MAX: u64 = 100 * 365 * 24 * 3_600 * 1_000;
/// Entries of a segment's sparse index; when it is full every second entry goes.
pub const INDEX_ENTRIES_MAX: usize = 512;
/// Least bytes between two entries of a sparse index.
pub const INDEX_STEP_BYTES: u64 = 64 * KIB;
/// First growth step of a segment file; it doubles up to the largest.
pub const GROWTH_STEP_BYTES: u64 = 256 * KIB;
/// See [`GROWTH_STEP_BYTES`].
pub const GROWTH_STEP_BYTES_MAX: u64 = 16 * MIB;

/// Default memory of the tail cache of one shard. Bytes in no segment yet are pinned in it and may exceed this.
pub const TAIL_CACHE_BYTES_DEFAULT: u64 = 64 * MIB;

/// Batches remembered per producer, so that a retry is answered with its first offsets (KIP-98).
pub const PRODUCER_WINDOW: usize = 5;
/// Producers remembered per partition; the longest idle goes first.
pub const PRODUCERS_MAX: usize = 1_000;
/// A producer idle for this long may be forgotten (wall clock).
pub const PRODUCER_EXPIRY_MS: i64 = 24 * 3_600_000;

/// Consumer groups of one coordinator. Beyond this, those who ask for another are told to try again.
pub const GROUPS_MAX: usize = 100_000;
/// Retention that waits for a protected group for so long without a break is worth a word.
pub const RETENTION_WAITS_LONG: Duration = Duration::from_mins(1);
/// Groups that one topic may protect from retention.
pub const PROTECTED_GROUPS_MAX: usize = 16;
/// Members of one consumer group; the surplus over its partitions is idle.
pub const GROUP_MEMBERS_MAX: usize = 1_000;
/// About what is kept of a consumer group's members and of who has which partition: some 15,000 partitions.
pub const GROUP_BYTES_MAX: usize = 768 << 10;
/// Committed offsets that are stored together: those of so many neighbouring partitions.
pub const OFFSETS_PER_PAGE: u32 = 16;
/// Longest text that is stored with a committed offset.
pub use corelog_wire::message::OFFSET_METADATA_BYTES_MAX;
/// Least time between two stores of a consumer group's offsets.
pub const OFFSET_INTERVAL: Duration = Duration::from_millis(10);
/// How long the offsets of a group without members are kept.
pub const OFFSETS_RETENTION: Duration = Duration::from_hours(7 * 24);
/// Requests of one consumer group that may wait for the metadata store: a few of each member.
pub const GROUP_REQUESTS_MAX: usize = 4 * GROUP_MEMBERS_MAX;

/// Rows in one request.
pub const ROWS_MAX: usize = 4_096;
/// Produce requests parked on a shard.
pub const PARKED_PRODUCES_MAX: usize = 65_536;
/// Fetch requests parked on a shard.
pub const PARKED_FETCHES_MAX: usize = 65_536;
/// Batches in the answer for one partition: each is a slice to send.
pub const SLICES_MAX: usize = 8_192;
/// Longest a request may stay.
pub const REQUEST_DEADLINE_MAX: Duration = Duration::from_secs(30);
/// Partitions on one shard.
pub const PARTITIONS_MAX: usize = 100_000;
/// Retention and the other periodic work look this often.
pub const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// Partitions captured for a checkpoint in one turn.
pub const CHECKPOINT_SLICE: usize = 256;
/// A slice ends with the partition that fills this many bytes.
pub const CHECKPOINT_SLICE_BYTES: usize = 256 << 10;

const _: () = assert!(RECORD_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX <= REQUEST_PAYLOAD_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX as u64 + MIB <= COMMIT_BYTES_MAX);
const _: () = assert!(EXTENT_BYTES_MAX <= COMMIT_BYTES_MAX);
// Two commits of the largest size fit beside the reserve, so a journal never waits for itself.
const _: () = assert!(2 * COMMIT_BYTES_MAX + JOURNAL_BYTES_MIN / JOURNAL_RESERVE_SHARE <= JOURNAL_BYTES_MIN);
// The largest request is admitted by the smallest ring once that has been tidied up.
const _: () = assert!(REQUEST_PAYLOAD_BYTES_MAX as u64 + MIB < JOURNAL_BYTES_MIN / 2);
// Undestaged bytes plus the lag of two checkpoints leave room for appends.
const _: () = assert!(DESTAGE_START_SHARE >= 4 && CHECKPOINT_SHARE >= 8);
const _: () = assert!(SEGMENT_BYTES_MAX <= u32::MAX as u64);
const _: () = assert!(GROWTH_STEP_BYTES.is_multiple_of(BLOCK) && GROWTH_STEP_BYTES_MAX.is_multiple_of(BLOCK));
