//! Why a command did not do what it was asked for, in words and as an exit code.

use std::io;
use std::process::ExitCode;

use corelog_client::{Error, ErrorKind};

use super::OutputFormat;

/// Why a command ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client library says so.
    Client(Error),
    /// This machine: a file that cannot be read, an output that cannot be written.
    Fault(String),
    /// What should answer does not.
    Unreachable(String),
    /// The arguments make no sense together, or name what is not there.
    Usage(String),
    /// The reader of standard output has gone away: it has what it wanted.
    Done,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl Failure {
    pub(super) fn fault(what: &str, error: &io::Error) -> Self {
        Self::Fault(format!("{what}: {error}"))
    }

    /// Standard output could not be written.
    pub(super) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Done,
            _ => Self::fault("cannot write to standard output", error),
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Fault(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 4,
            Self::Interrupted => 130,
            Self::Terminated => 143,
            Self::Client(error) => match error.kind() {
                ErrorKind::Refused => 3,
                ErrorKind::Unreachable | ErrorKind::Deadline => 4,
                ErrorKind::Usage => 2,
                _ => 1,
            },
        }
    }

    /// The error's short name, its text, and what to do next.
    pub(super) fn words(&self) -> Option<(&'static str, String, &'static str)> {
        match self {
            Self::Done | Self::Interrupted | Self::Terminated => None,
            Self::Fault(text) => Some(("FAULT", text.clone(), "")),
            Self::Usage(text) => Some(("USAGE", text.clone(), "")),
            Self::Unreachable(text) => Some((kind_name(ErrorKind::Unreachable), text.clone(), "")),
            Self::Client(error) => {
                let name =
                    error.code().map_or_else(|| kind_name(error.kind()), corelog_client::ErrorCode::name);
                Some((name, error.to_string(), error.help()))
            }
        }
    }

    /// Writes the error to standard error and gives the exit code.
    pub(super) fn report(&self, output: OutputFormat) -> ExitCode {
        if let Some((name, text, help)) = self.words() {
            super::report(output, name, &text, help);
        }
        ExitCode::from(self.code())
    }
}

const fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Refused => "REFUSED",
        ErrorKind::Unreachable => "UNREACHABLE",
        ErrorKind::Deadline => "DEADLINE",
        ErrorKind::Usage => "USAGE",
        ErrorKind::Busy => "BUSY",
        ErrorKind::Corrupt => "CORRUPT",
        ErrorKind::Protocol => "PROTOCOL",
        ErrorKind::Closed => "CLOSED",
        _ => "FAULT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_client::ErrorCode;

    #[test]
    fn the_exit_code_says_whose_turn_it_is() {
        let refused = Error::Refused { code: ErrorCode::UnknownTopic, message: "no such topic".into() };
        let unreachable = Error::Unreachable { address: "a:1".into(), reason: "refused".into() };
        let undelivered = Error::Undelivered { records: 1, first: std::sync::Arc::new(unreachable.clone()) };
        let codes = [
            (Failure::Done, 0),
            (Failure::Fault(String::new()), 1),
            (Failure::Usage(String::new()), 2),
            (Failure::Client(refused), 3),
            (Failure::Client(unreachable), 4),
            (Failure::Client(undelivered), 4),
            (Failure::Client(Error::Deadline { what: "x", last: None }), 4),
            (Failure::Interrupted, 130),
            (Failure::Terminated, 143),
        ];
        for (failure, code) in codes {
            assert_eq!(failure.code(), code, "{failure:?}");
        }
    }
}
