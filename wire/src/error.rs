//! The error codes of the wire: what a broker tells the asker when it refuses a request or a row of one.
//!
//! Used by messages, by the broker when it answers and by clients when they decide whether to try again. Invariant: a
//! code keeps its number and meaning for ever. This file refuses to know which room refuses what.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $retry:ident, $help:literal;)*) => {
        /// Why a request or a row of it was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant = $code,)*
        }

        impl ErrorCode {
            /// Every code, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code of this number, if this version knows it.
            #[must_use]
            pub const fn from_u16(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The name in documents, logs and command output.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What the asker should do, in one sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => $help,)*
                }
            }

            /// Whether the same request may succeed later, perhaps at another broker, without a person's help.
            #[must_use]
            pub const fn is_retriable(self) -> bool {
                match self {
                    $(Self::$variant => codes!(@$retry),)*
                }
            }
        }
    };
    (@retry) => { true };
    (@fatal) => { false };
}

codes! {
    /// Not an error.
    None = 0, "NONE", fatal, "Nothing needs to be done.";

    /// The frame's header, or a range in it, makes no sense.
    Malformed = 1, "MALFORMED", fatal,
        "Correct the client: it sent a request that does not follow the protocol.";
    /// The kind of request is unknown to this broker.
    UnsupportedKind = 2, "UNSUPPORTED_KIND", fatal,
        "Upgrade the broker, or use a client that does without this kind of request.";
    /// Client and broker have no protocol version in common.
    UnsupportedVersion = 3, "UNSUPPORTED_VERSION", fatal,
        "Use a client whose protocol versions overlap with the broker's.";
    /// The header, payload, batch or record is larger than the broker takes.
    TooLarge = 4, "TOO_LARGE", fatal,
        "Send less at once: the limits are in the answer to Hello.";
    /// The request's deadline passed before its answer was known; it may have taken effect.
    Deadline = 5, "DEADLINE", retry,
        "Try again, with a longer deadline if it happens often; the request may have taken effect.";
    /// The broker asks the client to slow down.
    Throttled = 6, "THROTTLED", retry,
        "Wait for the time that the answer names, then try again.";
    /// The broker is stopping.
    ShuttingDown = 7, "SHUTTING_DOWN", retry,
        "Refresh the metadata and try again at the partition's new leader.";

    /// No such topic.
    UnknownTopic = 32, "UNKNOWN_TOPIC", retry,
        "Refresh the metadata; if the topic is still unknown, create it or correct its name.";
    /// The topic has no such partition.
    UnknownPartition = 33, "UNKNOWN_PARTITION", retry,
        "Refresh the metadata; the topic has fewer partitions than the request assumes.";
    /// This broker does not lead the partition.
    NotLeader = 34, "NOT_LEADER", retry,
        "Refresh the metadata and try again at the partition's leader.";
    /// The leader epoch of the request is not the current one.
    FencedEpoch = 35, "FENCED_EPOCH", retry,
        "Refresh the metadata and try again with the current leader epoch.";
    /// The offset is below the log's start or above its end.
    OffsetOutOfRange = 36, "OFFSET_OUT_OF_RANGE", fatal,
        "Start again from an offset between the log's start and its high watermark.";
    /// The batch breaks its format or a checksum; a batch sealed for another partition does so too.
    CorruptBatch = 37, "CORRUPT_BATCH", fatal,
        "Build the batch again from its records, sealed for the topic and partition it is sent to.";
    /// The batch is whole but was sealed for another topic or partition.
    WrongTopic = 38, "WRONG_TOPIC", fatal,
        "Seal the batch for the topic and partition it is sent to.";
    /// The disk budget is used up and the topic's policy is to block producers.
    DiskFull = 39, "DISK_FULL", retry,
        "Shorten the retention, delete records or raise the disk budget; then try again.";
    /// A write fault has stopped this log on this broker.
    LogPoisoned = 40, "LOG_POISONED", retry,
        "Refresh the metadata and try again at the new leader; an operator must look at this broker's disk.";
    /// Fewer replicas are in sync than the topic asks for.
    NotEnoughReplicas = 41, "NOT_ENOUGH_REPLICAS", retry,
        "Wait until more replicas are in sync, then try again.";
    /// The partition takes no writes.
    ReadOnly = 42, "READ_ONLY", fatal,
        "Ask an operator: the partition takes no writes until its damage is resolved.";

    /// The batch's base sequence does not follow the last one.
    OutOfOrderSequence = 64, "OUT_OF_ORDER_SEQUENCE", fatal,
        "Start again with a new producer id: records between the last accepted and these are missing.";
    /// The batch was sent before, so long ago that its offsets are no longer remembered.
    DuplicateTooOld = 65, "DUPLICATE_TOO_OLD", fatal,
        "Do not send it again: the batch is in the log, but its offsets are no longer remembered.";
    /// A newer incarnation of this producer exists.
    FencedProducer = 66, "FENCED_PRODUCER", fatal,
        "Stop this producer: a newer one has taken its place.";
    /// The producer id is not known here (any more).
    UnknownProducer = 67, "UNKNOWN_PRODUCER", fatal,
        "Start again with a new producer id.";

    /// The topic exists already.
    Exists = 80, "EXISTS", fatal,
        "Choose another name, or use the topic that exists.";
    /// The topic's name is not allowed.
    InvalidName = 81, "INVALID_NAME", fatal,
        "Choose a name that follows the rule in the message.";
    /// A setting is unknown or its value is not allowed.
    InvalidConfig = 82, "INVALID_CONFIG", fatal,
        "Correct the setting that the message names.";

    /// The group does not know this member (any more).
    UnknownMember = 96, "UNKNOWN_MEMBER", fatal,
        "Stop what the member works on and join again as a new one: its session ended, or it never joined.";
    /// The member claims what the group did not give it.
    FencedMember = 97, "FENCED_MEMBER", fatal,
        "Stop what the member works on and join again as a new one.";
    /// The member does not hold the partition whose offset it commits.
    NotHolder = 98, "NOT_HOLDER", fatal,
        "Stop working on the partition: the group gave it to another member, who goes on from the last commit.";
    /// What is asked is refused while the group has members.
    GroupNotEmpty = 99, "GROUP_NOT_EMPTY", fatal,
        "Stop the members of the group, or wait until their sessions end; then try again.";
    /// No such group.
    UnknownGroup = 100, "UNKNOWN_GROUP", fatal,
        "Correct the group's name: nobody is in such a group, and nothing was committed in it.";
    /// Another living member has the instance id.
    InstanceInUse = 101, "INSTANCE_IN_USE", fatal,
        "Give every running member an instance id of its own, or stop the other member first.";
    /// The group's coordinator cannot store changes at the moment.
    CoordinatorUnavailable = 102, "COORDINATOR_UNAVAILABLE", retry,
        "Try again: the coordinator cannot store the group's state at the moment; the request may have taken effect.";
    /// The group's name, or what a member says of itself, is not allowed.
    InvalidGroup = 103, "INVALID_GROUP", fatal,
        "Correct what the message names.";
    /// The group takes no more members.
    GroupFull = 104, "GROUP_FULL", fatal,
        "Let fewer processes share the group, or spread them over several groups.";

    /// A code that this version does not know; never sent, only what a newer peer's code is read as.
    Unrecognised = 65_535, "UNRECOGNISED", fatal,
        "Upgrade this side: the peer's code is newer than it; read the message.";
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self as u16
    }

    /// The code of a number that was received: a number of a newer peer is [`ErrorCode::Unrecognised`].
    #[must_use]
    pub fn received(code: u16) -> Self {
        Self::from_u16(code).unwrap_or(Self::Unrecognised)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number_and_no_other_is() {
        let known: Vec<u16> = (0..=u16::MAX).filter(|&code| ErrorCode::from_u16(code).is_some()).collect();
        let listed: Vec<u16> = ErrorCode::ALL.iter().map(|code| code.as_u16()).collect();
        assert_eq!(known, listed);
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_u16(code.as_u16()), Some(code));
        }
    }

    #[test]
    fn names_are_written_as_documented() {
        assert_eq!(ErrorCode::NotLeader.to_string(), "NOT_LEADER");
        assert_eq!(ErrorCode::NotLeader.as_u16(), 34);
        assert!(ErrorCode::NotLeader.is_retriable());
        assert!(!ErrorCode::None.is_retriable());
        for code in ErrorCode::ALL {
            assert!(code.name().chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{code}");
            assert!(code.help().ends_with('.'), "{code}");
        }
    }

    #[test]
    fn a_newer_peers_code_is_not_lost() {
        assert_eq!(ErrorCode::received(200), ErrorCode::Unrecognised);
        assert_eq!(ErrorCode::received(34), ErrorCode::NotLeader);
    }

    #[test]
    fn the_documented_codes_are_these() {
        let page =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/PROTOCOL.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, codes) = page.split_once("## Codes").unwrap();
        let documented: Vec<&str> = codes.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        let expected: Vec<String> = ErrorCode::ALL
            .iter()
            .map(|code| {
                let retry = if code.is_retriable() { "yes" } else { "no" };
                format!("| {} | {} | {retry} | {} |", code.as_u16(), code.name(), code.help())
            })
            .collect();
        assert_eq!(documented, expected);
    }
}
