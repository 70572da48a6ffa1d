//! What the unit tests share: golden bytes, and a seeded source of mutations.
//!
//! Golden bytes are `wire/golden/*.hex`. They are the format as it was released: a test that finds others fails. After an
//! intended change, `CORELOG_BLESS=1 cargo test -p corelog-wire` writes them anew, and the diff is what changed.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// Asserts that `bytes` are the golden ones of this name, and gives the golden ones.
pub(crate) fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.hex"));
    let text = hex(bytes);
    if std::env::var_os("CORELOG_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, golden, "{name}: bytes differ from the golden ones; see wire/src/testing.rs");
    unhex(&golden)
}

/// 16 bytes a line, each line after its place.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in bytes.chunks(16).enumerate() {
        write!(text, "{:04x}:", line * 16).unwrap();
        for byte in bytes {
            write!(text, " {byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

/// The bytes of digits, in which spaces and what precedes a colon mean nothing.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: String =
        text.lines().map(|line| line.split_once(": ").map_or(line, |(_, digits)| digits)).collect();
    let digits: Vec<u8> =
        digits.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    assert!(digits.len().is_multiple_of(2), "half a byte");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// `SplitMix64`: small, seeded, the same everywhere.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// The next number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % u64::try_from(end).unwrap()).unwrap()
    }

    /// `bytes` with one to four of the changes that damage or malice might make.
    pub(crate) fn mutated(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len().max(1));
            match self.below(6) {
                _ if bytes.is_empty() => bytes.push(0),
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.number().to_le_bytes()[0],
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.number().to_le_bytes()[0]),
                4 => {
                    let small = [0, 1, 0x7f, 0x80, 0xff][self.below(5)];
                    let end = bytes.len().min(at + 4);
                    bytes[at..end].fill(small);
                }
                _ => {
                    let from = self.below(bytes.len());
                    bytes[at] = bytes[from];
                }
            }
        }
        bytes
    }
}
