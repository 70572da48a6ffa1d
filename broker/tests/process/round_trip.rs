//! What goes in comes out, byte for byte: through the command line, every codec, and 1, 3 and 64 partitions.
//!
//! `ROUND_TRIP_BYTES` makes the mixed binary input of each round larger than the default.

use crate::support::{Broker, Random, data_folder, host_log, path, setting};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// A little less than the largest record: key, offsets and lengths count too.
const LARGE_RECORD_BYTES: u64 = (4 << 20) - 128;
const KEYS: u64 = 97;

/// CRLF line ends, empty lines, and no line end at the end of the file.
fn crlf_text() -> Vec<u8> {
    let lines = (0..2_000)
        .map(|line| format!("2026-11-21 {line:05} WARN unit=\"a b\" {}\r\n", "x".repeat(line % 90)));
    let mut text: Vec<u8> = lines.collect::<String>().into_bytes();
    text.extend_from_slice(b"\r\n\n\nno line end");
    text
}

/// Records of 0 bytes to 1 MiB of any byte but the delimiter, each with a prefix of its own before it and the delimiter
/// after it. One in `large_in` is close to the record limit, ten times as many are up to a mebibyte long.
fn mixed_records(
    bytes: u64,
    (seed, large_in): (u64, u64),
    delimiter: u8,
    prefix: impl Fn(&mut Random) -> String,
) -> Vec<u8> {
    let mut random = Random(seed);
    let mut text = Vec::with_capacity(usize::try_from(bytes).unwrap() + (5 << 20));
    while (text.len() as u64) < bytes {
        let longest = match random.below(large_in) {
            0 => LARGE_RECORD_BYTES,
            1..=10 => 1 << 20,
            11..=40 => 10_000,
            _ => 200,
        };
        let length = random.below(longest);
        text.extend_from_slice(prefix(&mut random).as_bytes());
        let from = text.len();
        text.extend((0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()));
        text.truncate(from + usize::try_from(length).unwrap());
        for byte in &mut text[from..] {
            *byte = if *byte == delimiter { b' ' } else { *byte };
        }
        text.push(delimiter);
    }
    text
}

fn mixed_lines(bytes: u64, seed: u64) -> Vec<u8> {
    mixed_records(bytes, (seed, 100), b'\n', |_| String::new())
}

/// Consumes the whole topic and holds it against the input, without keeping either twice.
fn comes_back(broker: &Broker, topic: &str, input: &[u8]) {
    let consume = ["consume", topic, "--from", "earliest", "--until-end"];
    broker.stream(&consume, |output| {
        let (mut at, mut piece) = (0, vec![0; 1 << 20]);
        loop {
            let read = output.read(&mut piece).unwrap();
            if read == 0 {
                break;
            }
            assert!(input[at..].starts_with(&piece[..read]), "{topic} differs after {at} bytes");
            at += read;
        }
        assert_eq!(at, input.len(), "{topic}: bytes that came back");
    });
}

#[test]
fn files_come_back_byte_for_byte_with_every_codec() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let inputs = [
        ("crlf", crlf_text()),
        ("host", host_log()),
        ("one-line", b"no end".to_vec()),
        ("empty-lines", b"\n\n\n".to_vec()),
    ];
    for (name, bytes) in &inputs {
        let file = path(&folder, name);
        std::fs::write(&file, bytes).unwrap();
        for codec in CODECS {
            let topic = format!("{name}-{codec}");
            produce(&broker, &topic, &file, &["--compression", codec]);
            comes_back(&broker, &topic, bytes);
        }
    }
    assert_eq!(broker.interrupt(), Some(0));
}

fn produce(broker: &Broker, topic: &str, file: &Path, more: &[&str]) {
    let args = [&["produce", topic, "--file", file.to_str().unwrap()], more].concat();
    broker.succeed(&args, b"");
}

#[test]
fn mixed_binary_lines_come_back_also_from_segments_and_after_a_restart() {
    let bytes = setting("ROUND_TRIP_BYTES", 48 << 20);
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let input = mixed_lines(bytes, 7);
    let file = path(&folder, "input");
    std::fs::write(&file, &input).unwrap();
    for codec in ["none", "lz4"] {
        let topic = format!("mixed-{codec}");
        broker.succeed(&["topic", "create", &topic, "--config", "segment_bytes=16MiB"], b"");
        produce(&broker, &topic, &file, &["--compression", codec]);
        comes_back(&broker, &topic, &input);
    }
    let port = broker.port();
    broker.kill();
    let broker = Broker::dev(&path(&folder, "data"), port, 1);
    comes_back(&broker, "mixed-none", &input);
}

#[test]
fn large_records_come_back_with_every_delimiter_and_codec() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let mut random = Random(11);
    // One record as large as a record may be, and a row of mixed ones that may hold line ends.
    let one: Vec<u8> = (0..LARGE_RECORD_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let many = mixed_records(8 << 20, (12, 100), 0, |_| String::new());
    for (delimiter, input) in [("none", &one), ("nul", &many)] {
        let file = path(&folder, delimiter);
        std::fs::write(&file, input).unwrap();
        for codec in CODECS {
            let topic = format!("{delimiter}-{codec}");
            produce(&broker, &topic, &file, &["--delimiter", delimiter, "--compression", codec]);
            comes_back(&broker, &topic, input);
        }
    }
}

#[test]
fn mixed_binary_lines_keep_their_order_with_every_codec_and_number_of_partitions() {
    let bytes = setting("ROUND_TRIP_BYTES", 8 << 20);
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 2);
    let input = mixed_records(bytes, (9, 1_000), b'\n', |random| format!("key-{}|", random.below(KEYS)));
    let file = path(&folder, "input");
    std::fs::write(&file, &input).unwrap();
    for partitions in [1_u32, 3, 64] {
        for codec in CODECS {
            let topic = format!("keyed-{partitions}-{codec}");
            broker.succeed(&["topic", "create", &topic, "--partitions", &partitions.to_string()], b"");
            produce(&broker, &topic, &file, &["--key-separator", "|", "--compression", codec]);
            // The value comes last: it may hold any byte but the line end, which ends it.
            let format = ["--format", "%p %o %k %v"];
            let consume = [&["consume", &topic, "--from", "earliest", "--until-end"], &format[..]].concat();
            let records = broker.stream(&consume, |output| check_order(output, &input, partitions));
            println!("\n{topic}: {} bytes in {records} records, each once and in order", input.len());
            // So that the disk holds one round at a time.
            broker.succeed(&["topic", "delete", &topic], b"");
        }
    }
}

#[test]
fn every_acknowledged_record_has_a_line_of_its_own() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    broker.succeed(&["topic", "create", "lines", "--partitions", "3"], b"");
    let lines = (0..5_000).map(|n| format!("key-{}|{n}", n % KEYS)).collect::<Vec<_>>().join("\n");
    let produce = ["--output", "json", "produce", "lines", "--key-separator", "|"];
    let acknowledged = places(&broker.succeed(&produce, lines.as_bytes()));
    let consume = ["--output", "json", "consume", "lines", "--from", "earliest", "--until-end"];
    let consumed = places(&broker.succeed(&consume, b""));
    assert_eq!(acknowledged.len(), 5_000);
    assert_eq!(acknowledged, consumed);
}

#[test]
fn an_empty_value_can_be_a_tombstone() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let produce = |more: &[&str], lines: &[u8]| {
        broker.succeed(&[&["produce", "table", "--key-separator", ":", "--chomp"], more].concat(), lines);
    };
    produce(&[], b"a:1\nb:\n");
    produce(&["--tombstones"], b"a:\nb:2\n");
    let consume = ["--output", "json", "consume", "table", "--from", "earliest", "--until-end"];
    let lines = broker.succeed(&consume, b"");
    let values = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
        let record: serde_json::Value = serde_json::from_slice(line).unwrap();
        (record["key"].as_str().unwrap().to_owned(), record["value"].as_str().map(str::to_owned))
    });
    let value = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
    let expected = [value("a", Some("1")), value("b", Some("")), value("a", None), value("b", Some("2"))];
    assert_eq!(values.collect::<Vec<_>>(), expected);
    assert_eq!(broker.run(&["produce", "table", "--tombstones"], b"").status.code(), Some(2));
}

/// Partition and offset of each JSON line, sorted.
fn places(lines: &[u8]) -> Vec<(u64, u64)> {
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut places: Vec<_> = lines
        .map(|line| {
            let record: serde_json::Value = serde_json::from_slice(line).unwrap();
            (record["partition"].as_u64().unwrap(), record["offset"].as_u64().unwrap())
        })
        .collect();
    places.sort_unstable();
    places
}

/// Every value of the input once, byte for byte; offsets without gaps and the input's order in every partition; a key stays
/// in its partition. Gives the number of records.
fn check_order(output: &mut BufReader<impl Read>, input: &[u8], partitions: u32) -> usize {
    let mut expected = values_by_key(input);
    let mut next_offset: BTreeMap<u32, u64> = BTreeMap::new();
    let mut last_line: BTreeMap<u32, usize> = BTreeMap::new();
    let mut home_of_key: HashMap<Vec<u8>, u32> = HashMap::new();
    let (mut record, mut records) = (Vec::new(), 0);
    while output.read_until(b'\n', &mut record).unwrap() > 0 {
        let mut parts = record.splitn(4, |byte| *byte == b' ');
        let mut number = || -> u64 { std::str::from_utf8(parts.next().unwrap()).unwrap().parse().unwrap() };
        let (partition, offset) = (u32::try_from(number()).unwrap(), number());
        let (key, value) = (parts.next().unwrap(), parts.next().unwrap());
        assert!(partition < partitions);
        let next = next_offset.entry(partition).or_default();
        assert_eq!(offset, *next, "partition {partition}");
        *next += 1;
        let (line, place) = expected.get_mut(key).unwrap().pop_front().expect("a value was repeated");
        assert!(input[place] == *value, "line {line} came back otherwise");
        let before = last_line.insert(partition, line);
        assert!(before < Some(line), "partition {partition}: line {line} after {before:?}");
        assert_eq!(*home_of_key.entry(key.to_vec()).or_insert(partition), partition, "a key moved");
        records += 1;
        record.clear();
    }
    assert!(expected.values().all(VecDeque::is_empty), "values are missing");
    assert!(partitions == 1 || next_offset.len() > 1, "all keys in one partition");
    records
}

/// Which lines of the input have a key, and where their values are.
fn values_by_key(input: &[u8]) -> HashMap<Vec<u8>, VecDeque<(usize, Range<usize>)>> {
    let mut values: HashMap<Vec<u8>, VecDeque<(usize, Range<usize>)>> = HashMap::new();
    let mut from = 0;
    for (number, line) in input.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let key_bytes = line.iter().position(|byte| *byte == b'|').unwrap();
        let place = from + key_bytes + 1..from + line.len();
        values.entry(line[..key_bytes].to_vec()).or_default().push_back((number, place));
        from += line.len();
    }
    values
}
