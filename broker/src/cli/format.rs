//! What `consume` writes for a record: a template, or JSON.

use std::io::{self, Write};

use corelog_client::RecordView;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Value,
    Key,
    Offset,
    Partition,
    Topic,
    Time,
    Headers,
}

/// How records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The value and nothing else.
    Value,
    /// By a template.
    Template(Template),
    /// A JSON object a line.
    Json,
}

/// A template of `--format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    pieces: Vec<Piece>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// In words, for a letter after % or \ that means nothing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            let piece = match letter {
                '%' => match letters.next() {
                    Some('%') => {
                        literal.push(b'%');
                        continue;
                    }
                    Some('v') => Piece::Value,
                    Some('k') => Piece::Key,
                    Some('o') => Piece::Offset,
                    Some('p') => Piece::Partition,
                    Some('t') => Piece::Topic,
                    Some('T') => Piece::Time,
                    Some('h') => Piece::Headers,
                    other => return Err(unknown('%', other)),
                },
                '\\' => {
                    literal.push(match letters.next() {
                        Some('n') => b'\n',
                        Some('t') => b'\t',
                        Some('r') => b'\r',
                        Some('0') => 0,
                        Some('\\') => b'\\',
                        other => return Err(unknown('\\', other)),
                    });
                    continue;
                }
                other => {
                    literal.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self { pieces })
    }
}

fn unknown(mark: char, letter: Option<char>) -> String {
    let letter = letter.map(String::from).unwrap_or_default();
    format!("{mark}{letter} means nothing in a format: see `corelog consume --help`")
}

impl Format {
    /// Writes a record.
    pub(super) fn write(&self, record: &RecordView<'_>, topic: &str, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Value => out.write_all(record.value().unwrap_or_default()),
            Self::Template(template) => {
                template.pieces.iter().try_for_each(|piece| write_piece(piece, record, topic, out))
            }
            Self::Json => write_json(record, topic, out),
        }
    }
}

fn write_piece(piece: &Piece, record: &RecordView<'_>, topic: &str, out: &mut impl Write) -> io::Result<()> {
    match piece {
        Piece::Text(text) => out.write_all(text),
        Piece::Value => out.write_all(record.value().unwrap_or_default()),
        Piece::Key => out.write_all(record.key().unwrap_or_default()),
        Piece::Offset => write!(out, "{}", record.offset()),
        Piece::Partition => write!(out, "{}", record.partition()),
        Piece::Topic => out.write_all(topic.as_bytes()),
        Piece::Time => write!(out, "{}", record.timestamp_ms()),
        Piece::Headers => {
            for (place, header) in record.headers().enumerate() {
                out.write_all(if place > 0 { b"," } else { b"" })?;
                out.write_all(&header.name)?;
                out.write_all(b"=")?;
                out.write_all(header.value.as_deref().unwrap_or_default())?;
            }
            Ok(())
        }
    }
}

/// Writes a record as an object on a line. What is not text is there as base64, under a name that says so.
fn write_json(record: &RecordView<'_>, topic: &str, out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"{\"topic\":")?;
    serde_json::to_writer(&mut *out, topic)?;
    let (partition, offset, timestamp) = (record.partition(), record.offset(), record.timestamp_ms());
    write!(out, ",\"partition\":{partition},\"offset\":{offset},\"timestamp\":{timestamp},")?;
    write_field("key", record.key(), out)?;
    out.write_all(b",")?;
    write_field("value", record.value(), out)?;
    out.write_all(b",\"headers\":[")?;
    for (place, header) in record.headers().enumerate() {
        out.write_all(if place > 0 { b",{" } else { b"{" })?;
        write_field("name", Some(&header.name), out)?;
        out.write_all(b",")?;
        write_field("value", header.value.as_deref(), out)?;
        out.write_all(b"}")?;
    }
    out.write_all(b"]}\n")
}

fn write_field(name: &str, bytes: Option<&[u8]>, out: &mut impl Write) -> io::Result<()> {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => write!(out, "\"{name}\":null"),
        Some((_, Ok(text))) => {
            write!(out, "\"{name}\":")?;
            Ok(serde_json::to_writer(&mut *out, text)?)
        }
        Some((bytes, Err(_))) => write!(out, "\"{name}_base64\":\"{}\"", base64(bytes)),
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * place) & 0x3f) as usize];
            text.push(if place <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read() {
        let template = Template::parse(r"%o:%k\t%%\\%v\n").unwrap();
        let text = |text: &[u8]| Piece::Text(text.to_vec());
        let expected = [Piece::Offset, text(b":"), Piece::Key, text(b"\t%\\"), Piece::Value, text(b"\n")];
        assert_eq!(template.pieces, expected);
        assert!(Template::parse("%x").unwrap_err().starts_with("%x"));
        assert!(Template::parse("%").is_err());
        assert!(Template::parse("\\q").is_err());
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0x00]), "//4A");
    }
}
