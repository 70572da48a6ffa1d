//! What goes in comes out, byte for byte: through the command line, every codec, and 1, 3 and 64 partitions.
//!
//! `CORELOG_ROUND_TRIP_BYTES` makes the mixed binary input larger than the default.

use crate::support::{Broker, Random, data_folder, path, setting};
use std::collections::BTreeMap;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// CRLF line ends, empty lines, and no line end at the end of the file.
fn crlf_text() -> Vec<u8> {
    let lines = (0..2_000)
        .map(|line| format!("2026-11-21 {line:05} WARN unit=\"a b\" {}\r\n", "x".repeat(line % 90)));
    let mut text: Vec<u8> = lines.collect::<String>().into_bytes();
    text.extend_from_slice(b"\r\n\n\nno line end");
    text
}

/// Lines of 0 bytes to 1 MiB of any byte but the line end; some of them close to the record limit of 4 MiB.
fn mixed_lines(bytes: u64, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut text = Vec::with_capacity(usize::try_from(bytes).unwrap() + (5 << 20));
    while (text.len() as u64) < bytes {
        let longest = match random.below(100) {
            0 => 4 << 20,
            1..10 => 1 << 20,
            10..40 => 10_000,
            _ => 200,
        };
        let length = random.below(longest - 1);
        let from = text.len();
        text.extend((0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()));
        text.truncate(from + usize::try_from(length).unwrap());
        for byte in &mut text[from..] {
            *byte = if *byte == b'\n' { b' ' } else { *byte };
        }
        text.push(b'\n');
    }
    text
}

#[test]
fn files_come_back_byte_for_byte_with_every_codec() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let own_log =
        std::fs::read("/var/log/dpkg.log").or_else(|_| std::fs::read("/var/lib/dpkg/status")).unwrap();
    let inputs = [
        ("crlf", crlf_text()),
        ("dpkg", own_log),
        ("one-line", b"no end".to_vec()),
        ("empty-lines", b"\n\n\n".to_vec()),
    ];
    for (name, bytes) in &inputs {
        let file = path(&folder, name);
        std::fs::write(&file, bytes).unwrap();
        for codec in CODECS {
            let topic = format!("{name}-{codec}");
            broker
                .succeed(&["produce", &topic, "--file", file.to_str().unwrap(), "--compression", codec], b"");
            let back = broker.succeed(&["consume", &topic, "--from", "earliest", "--until-end"], b"");
            assert!(back == *bytes, "{name} with {codec}: {} bytes came back of {}", back.len(), bytes.len());
        }
    }
    assert_eq!(broker.interrupt(), Some(0));
}

#[test]
fn mixed_binary_lines_come_back_also_from_segments_and_after_a_restart() {
    let bytes = setting("CORELOG_ROUND_TRIP_BYTES", 48 << 20);
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    let input = mixed_lines(bytes, 7);
    let file = path(&folder, "input");
    std::fs::write(&file, &input).unwrap();
    let file = file.to_str().unwrap();
    for codec in ["none", "lz4"] {
        let topic = format!("mixed-{codec}");
        broker.succeed(&["topic", "create", &topic, "--config", "segment_bytes=16MiB"], b"");
        broker.succeed(&["produce", &topic, "--file", file, "--compression", codec], b"");
        let back = broker.succeed(&["consume", &topic, "--from", "earliest", "--until-end"], b"");
        assert!(back == input, "{codec}: {} bytes came back of {}", back.len(), input.len());
    }
    let port = broker.port();
    broker.kill();
    let broker = Broker::dev(&path(&folder, "data"), port, 1);
    let back = broker.succeed(&["consume", "mixed-none", "--from", "earliest", "--until-end"], b"");
    assert!(back == input, "after kill -9: {} bytes came back of {}", back.len(), input.len());
}

#[test]
fn partitions_keep_order_and_keys_stay_together() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 2);
    for partitions in [1_u32, 3, 64] {
        for codec in CODECS {
            let topic = format!("keyed-{partitions}-{codec}");
            broker.succeed(&["topic", "create", &topic, "--partitions", &partitions.to_string()], b"");
            let lines =
                (0..5_000).map(|n| format!("key-{}|{n}", n % 97)).collect::<Vec<_>>().join("\n") + "\n";
            let produced = broker.succeed(
                &["--output", "json", "produce", &topic, "--key-separator", "|", "--compression", codec],
                lines.as_bytes(),
            );
            assert_eq!(
                produced.split(|byte| *byte == b'\n').count() - 1,
                5_000,
                "one line per acknowledgement"
            );
            let consumed = broker
                .succeed(&["--output", "json", "consume", &topic, "--from", "earliest", "--until-end"], b"");
            check_order(&consumed, partitions);
        }
    }
}

/// Every record once; offsets without gaps per partition; numbers rise per key; a key stays in its partition.
fn check_order(consumed: &[u8], partitions: u32) {
    let mut next_offset: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last_of_key: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut records = 0;
    for line in consumed.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record: serde_json::Value = serde_json::from_slice(line).unwrap();
        let partition = record["partition"].as_u64().unwrap();
        assert!(partition < u64::from(partitions));
        let expected = next_offset.entry(partition).or_default();
        assert_eq!(record["offset"].as_u64().unwrap(), *expected);
        *expected += 1;
        let key = record["key"].as_str().unwrap().to_owned();
        let number: u64 = record["value"].as_str().unwrap().trim_end().parse().unwrap();
        if let Some((home, last)) = last_of_key.insert(key, (partition, number)) {
            assert_eq!(home, partition);
            assert!(last < number);
        }
        records += 1;
    }
    assert_eq!(records, 5_000);
}
