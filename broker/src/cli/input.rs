//! The input of `produce`, cut into records.
//!
//! A thread of its own reads, as standard input cannot be waited for in any other way on every kind of file; chunks come
//! over a channel of a few. Invariants: a chunk ends where a record does; the records of all chunks, put together, are
//! the input, byte for byte.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

use tokio::sync::mpsc;

use super::args::Delimiter;
use super::failure::Failure;

/// How much is read at once, and about what a chunk has.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks that wait to be taken.
const CHUNKS_MAX: usize = 4;
/// Where a record without an end is given up: far beyond what any broker takes.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// Whole records.
pub(super) type Chunk = io::Result<Vec<u8>>;

/// The file, or standard input, and how long it is if that is known.
pub(super) fn open(file: Option<&Path>) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    let Some(path) = file else { return Ok((Box::new(io::stdin()), None)) };
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Usage(format!("there is no file {}", path.display())),
        _ => Failure::fault(&format!("cannot read {}", path.display()), &error),
    };
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if metadata.is_dir() {
        return Err(Failure::Usage(format!("{} is a directory: give a file", path.display())));
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Reads in the background.
pub(super) fn chunks(input: Box<dyn Read + Send>, delimiter: Delimiter) -> mpsc::Receiver<Chunk> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    // The thread is not joined: it may wait for input that never comes when the command is interrupted.
    std::thread::spawn(move || {
        let sent = read_all(input, delimiter, &mut |chunk| sender.blocking_send(chunk).is_ok());
        if let Err(error) = sent {
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

fn end_byte(delimiter: Delimiter) -> Option<u8> {
    match delimiter {
        Delimiter::Line => Some(b'\n'),
        Delimiter::Nul => Some(0),
        Delimiter::None => None,
    }
}

/// Reads to the end, or until `take` wants no more.
fn read_all(
    mut input: impl Read,
    delimiter: Delimiter,
    take: &mut impl FnMut(Chunk) -> bool,
) -> io::Result<()> {
    let end = end_byte(delimiter);
    let mut chunk: Vec<u8> = Vec::with_capacity(CHUNK_BYTES);
    // What is known to have no end of a record in it.
    let mut searched = 0;
    loop {
        let room = CHUNK_BYTES.max(chunk.len());
        let read = read_once(&mut input, &mut chunk, room)?;
        if read == 0 {
            // The whole input is a record even if it is empty; a last line without an end is one unless it is empty.
            if !chunk.is_empty() || end.is_none() {
                take(Ok(chunk));
            }
            return Ok(());
        }
        let last = end.and_then(|end| chunk[searched..].iter().rposition(|&byte| byte == end));
        let Some(last) = last else {
            searched = chunk.len();
            if chunk.len() > RECORD_BYTES_MAX {
                let reason =
                    format!("a record has more than {RECORD_BYTES_MAX} bytes: is the delimiter right?");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            continue;
        };
        let rest = chunk.split_off(searched + last + 1);
        searched = 0;
        let mut next = Vec::with_capacity(CHUNK_BYTES.max(rest.len()));
        next.extend_from_slice(&rest);
        if !take(Ok(std::mem::replace(&mut chunk, next))) {
            return Ok(());
        }
    }
}

/// One read to the end of `chunk`, which gets room for `room` more bytes only as they come.
fn read_once(input: &mut impl Read, chunk: &mut Vec<u8>, room: usize) -> io::Result<usize> {
    let before = chunk.len();
    loop {
        chunk.resize(before + room.min(CHUNK_BYTES), 0);
        match input.read(&mut chunk[before..]) {
            Ok(read) => {
                chunk.truncate(before + read);
                return Ok(read);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The records of a chunk, with their ends.
pub(super) struct Pieces<'a> {
    rest: Option<&'a [u8]>,
    end: Option<u8>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(chunk: &'a [u8], delimiter: Delimiter) -> Self {
        let end = end_byte(delimiter);
        // Without a delimiter an empty input is an empty record.
        Self { rest: (end.is_none() || !chunk.is_empty()).then_some(chunk), end }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        // The library's search for a byte, which is faster than a loop; a slice cannot fail to be read.
        let mut reader = rest;
        let bytes = match self.end {
            Some(end) => reader.skip_until(end).unwrap_or(rest.len()),
            None => rest.len(),
        };
        let (piece, rest) = rest.split_at(bytes);
        self.rest = (!rest.is_empty()).then_some(rest);
        Some(piece)
    }
}

/// A record without its end: that of a line may be of two bytes.
pub(super) fn chomp(record: &[u8], delimiter: Delimiter) -> &[u8] {
    match delimiter {
        Delimiter::Line | Delimiter::None => match record.strip_suffix(b"\n") {
            Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
            None => record,
        },
        Delimiter::Nul => record.strip_suffix(b"\0").unwrap_or(record),
    }
}

/// Key and value of a record, if it has the separator.
pub(super) fn split_key<'a>(record: &'a [u8], separator: &[u8]) -> (Option<&'a [u8]>, &'a [u8]) {
    match record.windows(separator.len()).position(|window| window == separator) {
        Some(at) => (Some(&record[..at]), &record[at + separator.len()..]),
        None => (None, record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = self.1.min(buffer.len()).min(self.0.len());
            buffer[..bytes].copy_from_slice(&self.0[..bytes]);
            self.0 = &self.0[bytes..];
            Ok(bytes)
        }
    }

    fn records(input: &[u8], delimiter: Delimiter, step: usize) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let mut take = |chunk: Chunk| {
            let chunk = chunk.unwrap();
            records.extend(Pieces::new(&chunk, delimiter).map(<[u8]>::to_vec));
            true
        };
        read_all(Slow(input, step), delimiter, &mut take).unwrap();
        records
    }

    #[test]
    fn lines_keep_their_ends_whatever_comes_at_once() {
        let input = b"a\n\nbc\r\nlast";
        for step in 1..=input.len() {
            let lines = records(input, Delimiter::Line, step);
            assert_eq!(lines, [&b"a\n"[..], b"\n", b"bc\r\n", b"last"], "{step}");
            assert_eq!(records(b"a\0b", Delimiter::Nul, step), [&b"a\0"[..], b"b"]);
            assert_eq!(records(input, Delimiter::None, step), [input]);
        }
        assert_eq!(records(b"a\n", Delimiter::Line, 9), [b"a\n"]);
    }

    #[test]
    fn an_empty_input_has_no_lines_but_is_one_record_without_a_delimiter() {
        assert!(records(b"", Delimiter::Line, 1).is_empty());
        assert_eq!(records(b"", Delimiter::None, 1), [b""]);
    }

    #[test]
    fn a_line_longer_than_a_chunk_stays_whole() {
        let mut input = vec![b'x'; 3 * CHUNK_BYTES + 7];
        input.push(b'\n');
        input.extend_from_slice(b"y\n");
        let lines = records(&input, Delimiter::Line, CHUNK_BYTES);
        assert_eq!(lines.concat(), input);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_line_end_is_cut_off() {
        for (line, value) in
            [("a\n", "a"), ("a\r\n", "a"), ("a", "a"), ("\n", ""), ("a\r", "a\r"), ("\n\n", "\n")]
        {
            assert_eq!(chomp(line.as_bytes(), Delimiter::Line), value.as_bytes());
        }
        assert_eq!(chomp(b"a\n\0", Delimiter::Nul), b"a\n");
    }

    #[test]
    fn the_first_separator_ends_the_key() {
        assert_eq!(split_key(b"k::v::w", b"::"), (Some(&b"k"[..]), &b"v::w"[..]));
        assert_eq!(split_key(b"::v", b"::"), (Some(&b""[..]), &b"v"[..]));
        assert_eq!(split_key(b"v", b"::"), (None, &b"v"[..]));
        assert_eq!(split_key(b"", b"::"), (None, &b""[..]));
    }
}
