//! Any text as a topic's settings: names, sizes, times, `key=value` pairs. What is accepted means what it says when it
//! is written and read again.
#![no_main]

use corelog_core::topic::quantity::{format_bytes, format_millis, parse_bytes, parse_millis};
use corelog_core::topic::{ConfigKey, TopicConfig, TopicName, TopicOverrides};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = TopicName::new(text) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(bytes) = parse_bytes(text) {
        assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
    }
    if let Ok(millis) = parse_millis(text) {
        assert_eq!(parse_millis(&format_millis(millis)), Ok(millis));
    }
    let pairs: Vec<_> = text.lines().filter_map(|line| line.split_once('=')).collect();
    for (key, value) in &pairs {
        if let Ok(key) = ConfigKey::from_name(key) {
            let _ = key.parse(value);
        }
    }
    let Ok(overrides) = TopicOverrides::from_pairs(pairs) else { return };
    let written: Vec<_> = overrides.iter().map(|(key, value)| (key.name(), value.to_string())).collect();
    let read = TopicOverrides::from_pairs(written.iter().map(|(key, value)| (*key, value.as_str())));
    assert_eq!(read.as_ref(), Ok(&overrides));
    let _ = TopicConfig::resolve(&overrides, &TopicOverrides::default(), 1);
});
