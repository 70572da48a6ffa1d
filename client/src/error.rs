//! What can go wrong, sorted by who has to act.
//!
//! Used by every room of the crate and by its users. Invariants: an error is cheap to clone, as one failure may concern
//! many records; each says what to do next. This file refuses to know where an error came up.

use std::fmt;
use std::sync::Arc;

use corelog_wire::error::ErrorCode;
use corelog_wire::message::Refusal;
use thiserror::Error as ThisError;

/// Who has to act, in one word: for `match`es that do not care about details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker refused: the asker is wrong or early.
    Refused,
    /// No broker could be reached, or the connection broke.
    Unreachable,
    /// Time ran out; the request may have taken effect.
    Deadline,
    /// The caller asked for something that makes no sense.
    Usage,
    /// There is no room, or not yet.
    Busy,
    /// What was read is damaged.
    Corrupt,
    /// The other side does not follow the protocol.
    Protocol,
    /// The handle was closed.
    Closed,
}

/// Any failure of this library.
#[derive(Clone, Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused a request or a row of one.
    #[error("{code}: {message}")]
    Refused {
        /// Its code.
        code: ErrorCode,
        /// Its words.
        message: Arc<str>,
    },
    /// No connection to this address.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// Who was called.
        address: Arc<str>,
        /// What the system said.
        reason: Arc<str>,
    },
    /// A connection broke while requests were under way; they may have taken effect.
    #[error("the connection broke: {reason}")]
    ConnectionLost {
        /// How it broke.
        reason: Arc<str>,
    },
    /// Time ran out.
    #[error("{what} was not done within its deadline{}", Because(last))]
    Deadline {
        /// What was to be done.
        what: &'static str,
        /// The last failure of the attempts, if there was one.
        last: Option<Arc<Error>>,
    },
    /// The producer's buffer is full, or not ready to take records yet.
    #[error("the producer takes no record now: {reason}")]
    Busy {
        /// Why not.
        reason: &'static str,
    },
    /// A record or batch is larger than the limit.
    #[error("{bytes} bytes are more than the {bytes_max} allowed")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The offset is outside the log.
    #[error("offset {offset} is outside the log: it begins at {log_start} and ends at {high_watermark}")]
    OffsetOutOfRange {
        /// What was asked for.
        offset: u64,
        /// Lowest offset that can be read.
        log_start: u64,
        /// Lowest offset that cannot be read yet.
        high_watermark: u64,
    },
    /// What was read is not what a producer wrote.
    #[error("damaged data in partition {partition} near offset {offset}: {reason}")]
    Corrupt {
        /// The partition.
        partition: u32,
        /// Where reading stopped.
        offset: u64,
        /// What is wrong.
        reason: Arc<str>,
    },
    /// The other side does not follow the protocol.
    #[error("the broker does not follow the protocol: {reason}")]
    Protocol {
        /// What it did.
        reason: Arc<str>,
    },
    /// The caller asked for something that makes no sense.
    #[error("{reason}")]
    Usage {
        /// What is wrong.
        reason: Arc<str>,
    },
    /// Some records were not delivered although nobody was waiting for them one by one.
    #[error("{records} records were not delivered; the first error: {first}")]
    Undelivered {
        /// How many.
        records: u64,
        /// The first failure.
        first: Arc<Error>,
    },
    /// The handle was closed, or the runtime that served it has ended.
    #[error("closed")]
    Closed,
}

struct Because<'a>(&'a Option<Arc<Error>>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(last) => write!(f, "; the last attempt: {last}"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// Who has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. } | Self::OffsetOutOfRange { .. } => ErrorKind::Refused,
            Self::Unreachable { .. } | Self::ConnectionLost { .. } => ErrorKind::Unreachable,
            Self::Deadline { .. } => ErrorKind::Deadline,
            Self::Busy { .. } => ErrorKind::Busy,
            Self::TooLarge { .. } | Self::Usage { .. } => ErrorKind::Usage,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Undelivered { first, .. } => first.kind(),
            Self::Closed => ErrorKind::Closed,
        }
    }

    /// Whether the same call may succeed later without a person's help.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code.is_retriable(),
            Self::Unreachable { .. }
            | Self::ConnectionLost { .. }
            | Self::Deadline { .. }
            | Self::Busy { .. } => true,
            Self::Undelivered { first, .. } => first.is_retriable(),
            Self::TooLarge { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::Corrupt { .. }
            | Self::Protocol { .. }
            | Self::Usage { .. }
            | Self::Closed => false,
        }
    }

    /// Whether whoever looks for a topic is told at once: the broker refuses for another reason than that it is busy or
    /// stopping. A topic that does not exist may be created yet, but hardly by waiting.
    pub(crate) fn is_final_for_topics(&self) -> bool {
        match self {
            Self::Refused { code, .. } => *code == ErrorCode::UnknownTopic || !code.is_retriable(),
            _ => false,
        }
    }

    /// The broker's code, if a broker's refusal is at the bottom of this.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::OffsetOutOfRange { .. } => Some(ErrorCode::OffsetOutOfRange),
            Self::Undelivered { first, .. } => first.code(),
            Self::Deadline { last, .. } => last.as_ref().and_then(|last| last.code()),
            _ => None,
        }
    }

    /// What to do next, in one sentence.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Refused { code, .. } => code.help(),
            Self::Unreachable { .. } => {
                "Check the address and that a broker runs there; `corelog dev` starts one on this machine."
            }
            Self::ConnectionLost { .. } => {
                "Try again: the broker may have restarted, the request may have taken effect."
            }
            Self::Deadline { last: Some(last), .. } => last.help(),
            Self::Deadline { .. } => "Try again, with a longer deadline if it happens often.",
            Self::Busy { .. } => "Wait for records to be delivered, or give the producer more memory.",
            Self::TooLarge { .. } => {
                "Send smaller records, or raise the limit of the topic and the producer."
            }
            Self::OffsetOutOfRange { .. } => {
                "Start from an offset inside the log, or say where to go on (--reset, `reset` of the builder): earliest or latest."
            }
            Self::Corrupt { .. } => {
                "Seek past the damaged records to go on; tell the operator of the broker."
            }
            Self::Protocol { .. } => {
                "Check that a Corelog broker of a matching version listens at this address."
            }
            Self::Usage { .. } => "Correct the call.",
            Self::Undelivered { first, .. } => first.help(),
            Self::Closed => "Build a new handle.",
        }
    }

    pub(crate) fn refused(code: ErrorCode, message: &str) -> Self {
        let message = if message.is_empty() { code.help() } else { message };
        Self::Refused { code, message: message.into() }
    }

    pub(crate) fn usage(reason: impl Into<Arc<str>>) -> Self {
        Self::Usage { reason: reason.into() }
    }

    pub(crate) fn protocol(reason: impl Into<Arc<str>>) -> Self {
        Self::Protocol { reason: reason.into() }
    }

    pub(crate) fn deadline(what: &'static str, last: Option<Self>) -> Self {
        // A deadline within a deadline says nothing new.
        match last {
            Some(Self::Deadline { last, .. }) => Self::Deadline { what, last },
            last => Self::Deadline { what, last: last.map(Arc::new) },
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::refused(refusal.code, &refusal.message)
    }
}

/// What calls of this library give.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_shows_what_went_wrong_before() {
        let lost = Error::ConnectionLost { reason: "reset".into() };
        let error = Error::deadline("produce", Some(Error::deadline("a request", Some(lost))));
        assert_eq!(
            error.to_string(),
            "produce was not done within its deadline; the last attempt: the connection broke: reset"
        );
        assert_eq!(error.kind(), ErrorKind::Deadline);
        assert!(error.is_retriable());
    }

    #[test]
    fn a_refusal_keeps_its_code() {
        let error = Error::from(Refusal::new(ErrorCode::Exists, "orders exists"));
        assert_eq!(error.to_string(), "EXISTS: orders exists");
        assert_eq!(error.code(), Some(ErrorCode::Exists));
        assert!(!error.is_retriable());
    }
}
