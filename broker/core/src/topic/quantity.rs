//! Sizes and durations as people write them: `1GiB`, `64KiB`, `5s`, `7d`.
//!
//! Called by topic settings and by the broker's configuration, so that both read and print alike. A quantity is a
//! whole number and a unit; fractions are refused because rounding a limit is a guess.

use thiserror::Error;

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum QuantityError {
    /// Not a whole number followed by one of the units of a size.
    #[error(
        "expected a size: a whole number and one of B, kB, KiB, MB, MiB, GB, GiB, TB, TiB, such as \"64MiB\""
    )]
    NotASize,
    /// Not a whole number followed by one of the units of a duration.
    #[error("expected a duration: a whole number and one of ms, s, m, h, d, w, such as \"5s\"")]
    NotADuration,
    /// More than 64 bits of bytes or milliseconds.
    #[error("the number is too large")]
    TooLarge,
}

/// Reads a size in bytes: `1GiB`, `500 MB`, or a plain number of bytes. Units ignore case (`KB` is 1,000 bytes).
///
/// # Errors
/// [`QuantityError::NotASize`] or [`QuantityError::TooLarge`].
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = split(text).ok_or(QuantityError::NotASize)?;
    let factor = match unit {
        "" => 1,
        unit => factor_of(&SIZE_UNITS, unit).ok_or(QuantityError::NotASize)?,
    };
    multiply(number, factor, QuantityError::NotASize)
}

/// Reads a duration in milliseconds: `5s`, `7d`. A plain number means milliseconds.
///
/// # Errors
/// [`QuantityError::NotADuration`] or [`QuantityError::TooLarge`].
pub fn parse_millis(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = split(text).ok_or(QuantityError::NotADuration)?;
    let factor = match unit {
        "" => 1,
        unit => factor_of(&DURATION_UNITS, unit).ok_or(QuantityError::NotADuration)?,
    };
    multiply(number, factor, QuantityError::NotADuration)
}

/// Writes bytes with the largest binary unit that divides them: `268435456` is `256MiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    format_with(&SIZE_UNITS[..4], bytes, "B")
}

/// Writes milliseconds with the largest unit that divides them: `604800000` is `1w`.
#[must_use]
pub fn format_millis(millis: u64) -> String {
    format_with(&DURATION_UNITS[..5], millis, "ms")
}

fn format_with(units: &[(&str, u64)], number: u64, smallest: &str) -> String {
    let fitting = units.iter().find(|(_, factor)| number != 0 && number.is_multiple_of(*factor));
    match fitting {
        Some((unit, factor)) => format!("{}{unit}", number / factor),
        None => format!("{number}{smallest}"),
    }
}

/// Splits `64 MiB` into its digits and its unit; none when it does not start with a digit.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 { None } else { Some((&text[..end], text[end..].trim_start())) }
}

fn factor_of(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor)
}

fn multiply(digits: &str, factor: u64, malformed: QuantityError) -> Result<u64, QuantityError> {
    match digits.parse::<u64>() {
        Ok(number) => number.checked_mul(factor).ok_or(QuantityError::TooLarge),
        Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => Err(QuantityError::TooLarge),
        Err(_) => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_families_of_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1B", 1),
            ("64KiB", 65_536),
            ("64 kib", 65_536),
            ("1kB", 1_000),
            ("1KB", 1_000),
            ("256MiB", 268_435_456),
            (" 1GiB ", 1_073_741_824),
            ("2TB", 2_000_000_000_000),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for text in
            ["", " ", "GiB", "-1", "+1", "1.5GiB", "1GiB2", "1 G", "1Gb it", "0x10", "1e9", "1_000", "５MiB"]
        {
            assert_eq!(parse_bytes(text), Err(QuantityError::NotASize), "{text}");
        }
        for text in ["16777216TiB", "18446744073709551616", "99999999999999999999999999"] {
            assert_eq!(parse_bytes(text), Err(QuantityError::TooLarge), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_milliseconds() {
        for (text, millis) in [
            ("0", 0),
            ("250", 250),
            ("250ms", 250),
            ("5s", 5_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(parse_millis(text), Ok(millis), "{text}");
        }
        for text in ["", "s", "-5s", "5 sec", "1h30m", "0.5s", "5MiB"] {
            assert_eq!(parse_millis(text), Err(QuantityError::NotADuration), "{text}");
        }
        assert_eq!(parse_millis("99999999999999999w"), Err(QuantityError::TooLarge));
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 65_536, 1_000_000, 268_435_456, 1 << 30, 3 << 30, 5 << 40, u64::MAX] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
        for millis in [0, 1, 999, 1_000, 90_000, 3_600_000, 604_800_000, u64::MAX] {
            assert_eq!(parse_millis(&format_millis(millis)), Ok(millis));
        }
        assert_eq!(format_bytes(268_435_456), "256MiB");
        assert_eq!(format_millis(604_800_000), "1w");
        assert_eq!(format_millis(90_000), "90s");
    }
}
