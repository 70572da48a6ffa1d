//! What the network hands are told at start, and every bound they keep.
//!
//! Memory of one shard at its worst: `input_bytes_max` and one frame more, `output_bytes_max` and one answer more (and
//! the headers of those on their way), and per connection about 2 KiB plus at most [`READ_AHEAD_BYTES`] of an incomplete frame.

use corelog_core::limits;
use corelog_wire::frame::{Caps, Kind};
use corelog_wire::ids::BrokerId;
use std::time::Duration;

/// Bytes received at once when it is not known yet what comes; what is left over of them waits with the connection.
pub(super) const READ_AHEAD_BYTES: usize = 32 << 10;
/// A connection keeps a buffer of at most this size while it is idle.
pub(super) const IDLE_BUFFER_BYTES: usize = 1 << 10;
/// Part of a header that is not charged: what a connection may send before Hello.
pub(super) const FREE_HEADER_BYTES: usize = limits::HEADER_BYTES_MAX_BEFORE_HELLO as usize;
/// A payload's buffer starts with this and then grows fourfold as bytes arrive.
pub(super) const PAYLOAD_STEP_BYTES: usize = 64 << 10;
/// What a request with a payload costs beside it while it is under way.
pub(super) const REQUEST_OVERHEAD_BYTES: usize = 512;
/// Most bytes handed to the kernel in one call, so that one connection does not keep the core.
pub(super) const SEND_BYTES_MAX: usize = 1 << 20;
/// Most slices handed to the kernel in one call.
pub(super) const SEND_SLICES_MAX: usize = 64;
/// Most bytes that a connection's next fetch may bring: at first, and at least. It doubles when large answers leave
/// quickly and falls when they are small or slow, so that a reader that does not read pins little and one that waits
/// at the end of a log reserves little.
pub(super) const WINDOW_BYTES_MIN: u32 = 64 << 10;
/// See [`WINDOW_BYTES_MIN`].
pub(super) const WINDOW_BYTES_MAX: u32 = 4 << 20;
/// Windows that a connection's fetches under way and answers not taken may fill.
pub(super) const WINDOWS_MAX: u64 = 4;
/// An answer that left within this time left quickly; one that took four times as long did not. After this time what
/// has not left is copied, so that a slow reader does not pin the buffers of the tail.
pub(super) const WINDOW_QUICK: Duration = Duration::from_millis(500);
/// Most bytes copied for that in one tick.
pub(super) const DETACH_BYTES_MAX: usize = 8 << 20;
/// Connections looked at in one go at a tick.
pub(super) const TICK_SLICE: usize = 256;
/// Frames of at most this many bytes have a pool of their own, so that a few large ones do not keep out the many.
pub(super) const SMALL_FRAME_BYTES: usize = 64 << 10;
/// The share of that pool: one in this many of the input's bytes.
pub(super) const SMALL_FRAMES_SHARE: u64 = 4;
/// Bytes dropped after a refusal that ends the connection, so that the refusal survives.
pub(super) const LINGER_BYTES_MAX: usize = 1 << 20;
/// First and longest pause after the system refused to accept.
pub(super) const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(10);
/// See [`ACCEPT_PAUSE_MIN`].
pub(super) const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Most bytes of an answer's header; clients take four times as much. Listings of more are refused.
pub(super) const ANSWER_HEADER_BYTES_MAX: u64 = 16 << 20;
/// What a throttled client is asked to wait.
pub(super) const THROTTLE_MS: u32 = 100;
/// A request is answered at the latest this long after its own deadline, whoever failed to.
pub(super) const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// Versions of the protocol that this broker speaks.
pub(super) const VERSION_MIN: u8 = 1;
/// See [`VERSION_MIN`].
pub(super) const VERSION_MAX: u8 = 1;

/// Settings of the network hands; the same for all shards.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The cluster's name, told in the answer to Hello.
    pub cluster: String,
    /// This broker, told in the answer to Hello.
    pub broker: BrokerId,
    /// Connections of one shard; more are closed as they come.
    pub connections_max: usize,
    /// Requests of one connection that wait for their answer, without parked fetches; more are not read.
    pub in_flight_max: u32,
    /// Fetches of one connection that wait at the end of a log; with so many nothing more is read. A client has one for
    /// each of its consumers, all on one connection.
    pub parked_max: u32,
    /// Bytes of the requests that are under way.
    pub connection_input_bytes_max: u64,
    /// Bytes of answers that one connection has not taken yet, and of fetches that it waits for.
    pub connection_output_bytes_max: u64,
    /// Bytes of requests on one shard, from the first byte of a payload until nothing needs it any more.
    pub input_bytes_max: u64,
    /// Bytes of answers on one shard that clients have not taken yet.
    pub output_bytes_max: u64,
    /// Requests of all connections of one shard that wait for their answer; more are refused with `THROTTLED`.
    pub requests_max: usize,
    /// Requests of one shard that wait for the answer of another one.
    pub forwarded_max: usize,
    /// From the connection's start to the end of its Hello.
    pub hello_deadline: Duration,
    /// From the first byte of a frame to its last. As long again for every time that it waits for memory.
    pub frame_deadline: Duration,
    /// A connection that takes nothing of its answers for this long is closed.
    pub write_stall_max: Duration,
    /// While others wait for memory: how long a frame, or the oldest answer, may stay unfinished.
    pub pressure_patience: Duration,
    /// While others wait for memory: how long nothing of a frame may come, or nothing of an answer may leave.
    pub pressure_stall_max: Duration,
    /// How long the bytes after a refusal that ends the connection are awaited and dropped.
    pub linger: Duration,
    /// How often deadlines are looked at.
    pub tick: Duration,
    /// Longest that the control thread, or a request without a deadline of its own, is waited for.
    pub request_deadline: Duration,
}

impl NetConfig {
    /// The defaults, for this broker.
    #[must_use]
    pub fn new(cluster: impl Into<String>, broker: BrokerId) -> Self {
        Self {
            cluster: cluster.into(),
            broker,
            connections_max: 16_384,
            in_flight_max: 128,
            parked_max: 1_024,
            connection_input_bytes_max: 32 << 20,
            connection_output_bytes_max: 32 << 20,
            input_bytes_max: 128 << 20,
            output_bytes_max: 256 << 20,
            requests_max: 131_072,
            forwarded_max: 16_384,
            hello_deadline: Duration::from_secs(10),
            frame_deadline: Duration::from_secs(30),
            write_stall_max: Duration::from_secs(30),
            pressure_patience: Duration::from_secs(2),
            pressure_stall_max: Duration::from_millis(500),
            linger: Duration::from_secs(1),
            tick: Duration::from_millis(100),
            request_deadline: limits::REQUEST_DEADLINE_MAX,
        }
    }
}

/// The largest frame of any kind after Hello.
pub(super) const CAPS: Caps =
    Caps { header_bytes_max: limits::HEADER_BYTES_MAX, payload_bytes_max: limits::REQUEST_PAYLOAD_BYTES_MAX };

/// The largest frame of this kind after Hello: only Produce has a payload.
pub(super) const fn caps(kind: Kind) -> Caps {
    match kind {
        Kind::Produce => CAPS,
        Kind::Hello => Caps::BEFORE_HELLO,
        Kind::Metadata
        | Kind::CreateTopic
        | Kind::DeleteTopic
        | Kind::AlterTopic
        | Kind::DescribeTopic
        | Kind::Fetch
        | Kind::ListOffsets
        | Kind::InitProducerId
        | Kind::DeleteRecords
        | Kind::GroupHeartbeat
        | Kind::OffsetCommit
        | Kind::OffsetFetch
        | Kind::ListGroups
        | Kind::DescribeGroup
        | Kind::DeleteGroup => Caps { payload_bytes_max: 0, ..CAPS },
    }
}

const _: () = assert!(Caps::BEFORE_HELLO.header_bytes_max == limits::HEADER_BYTES_MAX_BEFORE_HELLO);
const _: () = assert!(FREE_HEADER_BYTES <= READ_AHEAD_BYTES);
const _: () = assert!(WINDOW_BYTES_MAX <= limits::FETCH_BYTES_MAX);
const _: () = assert!(
    PAYLOAD_STEP_BYTES >= SMALL_FRAME_BYTES,
    "a small frame is charged at once, so it never waits half-way"
);
