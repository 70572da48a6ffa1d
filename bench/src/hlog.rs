//! Interval logs: the responses of each second of a run, in `HdrHistogram`'s own format, for its tools.
//!
//! Called by `stage`. The format: <https://github.com/HdrHistogram/HdrHistogram>, interval logs of version 1.3, V2 histograms.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use crate::error::{Doing, Error, Result};
use crate::report::Report;
use crate::run::RunResult;

/// Writes a file for each run.
///
/// # Errors
/// [`Error::System`].
pub fn write(folder: &Path, report: &Report) -> Result<()> {
    std::fs::create_dir_all(folder).doing(|| format!("making {}", folder.display()))?;
    let began = UNIX_EPOCH + Duration::from_millis(report.machine.time_ms);
    for run in &report.runs {
        let name = format!("{}-{}-{}.hlog", run.workload, run.peer.name(), run.repeat + 1);
        let path = folder.join(name);
        let log = log(run, began)?;
        std::fs::write(&path, log).doing(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn log(run: &RunResult, began: SystemTime) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::fmt::Debug| Error::Setup(format!("an interval log: {error:?}"));
    let mut log = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("corelog-bench: {}, {}, {}", run.workload, run.peer.name(), run.class))
        .with_base_time(began)
        .with_start_time(began)
        .with_max_value_divisor(1_000_000.0)
        .begin_log_with(&mut log, &mut serializer)
        .map_err(|error| failed(&error))?;
    for interval in &run.intervals {
        writer
            .write_histogram(&interval.response, interval.from, interval.length, None)
            .map_err(|error| failed(&error))?;
    }
    drop(writer);
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Interval;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn the_tools_of_the_format_read_what_was_recorded() {
        let mut interval = Interval::new(Duration::from_secs(2), Duration::from_secs(1));
        interval.response.record(5_000_000).unwrap();
        let run = RunResult { intervals: vec![interval], ..RunResult::default() };
        let log = log(&run, UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
        let entries: Vec<_> = IntervalLogIterator::new(&log).map(|entry| entry.unwrap()).collect();
        let Some(LogEntry::Interval(read)) = entries.last() else { panic!("{entries:?}") };
        assert_eq!(
            (read.start_timestamp(), read.duration()),
            (Duration::from_secs(2), Duration::from_secs(1))
        );
        let bytes = base64(read.encoded_histogram());
        let histogram: hdrhistogram::Histogram<u64> =
            Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!(histogram.len(), 1);
        assert!(histogram.max().abs_diff(5_000_000) < 10_000);
    }

    fn base64(text: &str) -> Vec<u8> {
        let digit = |byte: u8| {
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            alphabet.iter().position(|&other| other == byte).unwrap()
        };
        let digits: Vec<usize> = text.bytes().filter(|&byte| byte != b'=').map(digit).collect();
        let bits: Vec<u8> = digits
            .iter()
            .flat_map(|digit| (0..6).rev().map(move |bit| u8::from(digit >> bit & 1 == 1)))
            .collect();
        bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | bit)).collect()
    }
}
