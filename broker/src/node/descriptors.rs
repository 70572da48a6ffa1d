//! Open files: as many as the system lets this process have, and how many of them connections may take.
//!
//! Called by the commands that run a broker, before anything is opened, and by boot. A broker that runs out of
//! descriptors cannot open the next segment, so connections must leave room for files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of the process itself: standard streams, the lock, the metadata store, tokio, administration.
const OF_PROCESS: u64 = 256;
/// Descriptors of one shard beside its connections: at most 256 segment files kept open and as many in the making or
/// on their way out, the journal, two checkpoints, three rings with their event descriptors, two listening sockets, and
/// 256 connections that have a second one for a moment, while they are handed to another shard, or are not counted yet.
const OF_SHARD: u64 = 832;
/// The most connections of one shard, however many descriptors there are.
pub(super) const CONNECTIONS_MAX: u64 = 16_384;
/// Fewer than this are worth a warning.
pub(super) const CONNECTIONS_FEW: usize = 1_024;
/// The least: a broker that may have next to no descriptors still talks to its operator.
const CONNECTIONS_MIN: u64 = 16;

/// Raises the limit on open files as far as this process may. The limit before and now; `None` is no limit.
pub(super) fn raise() -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused only by a filter on system calls: then the old limit holds.
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    (limit.current, if raised { limit.maximum } else { limit.current })
}

/// The limit in force.
pub(super) fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many connections each shard takes: what the process's and the shards' files leave, and of a small limit half.
pub(super) fn connections_max(limit: Option<u64>, shards: u16) -> usize {
    let Some(limit) = limit else { return to_usize(CONNECTIONS_MAX) };
    let shards = u64::from(shards.max(1));
    let files = (OF_PROCESS + shards * OF_SHARD).min(limit / 2);
    to_usize(((limit - files) / shards).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX))
}

/// The limit with which no shard takes fewer connections than it could.
pub(super) fn limit_wanted(shards: u16) -> u64 {
    OF_PROCESS + u64::from(shards) * (OF_SHARD + CONNECTIONS_MAX)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_the_process_may_have() {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        // One less than now: nothing that runs beside this notices.
        let lower = current.map(|current| current - 1);
        setrlimit(Resource::Nofile, Rlimit { current: lower, maximum }).unwrap();
        assert_eq!(raise(), (lower, maximum));
        assert_eq!(limit(), maximum);
    }

    #[test]
    fn connections_leave_room_for_files() {
        assert_eq!(connections_max(None, 4), 16_384);
        assert_eq!(connections_max(Some(1 << 20), 4), 16_384);
        // 4,096 less 256 and 832.
        assert_eq!(connections_max(Some(4_096), 1), 3_008);
        // Half of it for files, a quarter of the rest for each shard.
        assert_eq!(connections_max(Some(1_024), 4), 128);
        assert_eq!(connections_max(Some(64), 8), 16);
        for shards in [1, 3, 256] {
            let wanted = limit_wanted(shards);
            assert_eq!(connections_max(Some(wanted), shards), 16_384);
            assert!(connections_max(Some(wanted - u64::from(shards)), shards) < 16_384);
        }
    }
}
