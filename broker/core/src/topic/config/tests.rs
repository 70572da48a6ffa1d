use super::*;

fn overrides(pairs: &[(&str, &str)]) -> TopicOverrides {
    TopicOverrides::from_pairs(pairs.iter().copied()).unwrap()
}

fn resolve(pairs: &[(&str, &str)]) -> TopicConfig {
    TopicConfig::resolve(&overrides(pairs), &TopicOverrides::default(), 1)
}

#[test]
fn defaults_are_those_of_the_format_page() {
    let config = resolve(&[]);
    assert_eq!(config.retention_ms, Some(604_800_000));
    assert_eq!(config.retention_bytes, None);
    assert_eq!(config.segment_bytes, 268_435_456);
    assert_eq!(config.record_bytes_max, 4_194_304);
    assert_eq!(config.batch_bytes_max, 8_388_608);
    assert_eq!(config.durability, Durability::Disk);
    assert_eq!(config.min_insync_replicas, 1);
    assert_eq!(config.full_policy, FullPolicy::BlockProducer);
    let none = TopicOverrides::default();
    assert_eq!(TopicConfig::resolve(&none, &none, 2).min_insync_replicas, 1);
    assert_eq!(TopicConfig::resolve(&none, &none, 3).min_insync_replicas, 2);
}

#[test]
fn units_and_plain_numbers_mean_the_same() {
    assert_eq!(resolve(&[("retention_ms", "7d")]), resolve(&[("retention_ms", "604800000")]));
    assert_eq!(resolve(&[("segment_bytes", "1GiB")]), resolve(&[("segment_bytes", "1073741824")]));
    for unlimited in ["none", "-1", "unlimited"] {
        assert_eq!(resolve(&[("retention_ms", unlimited)]).retention_ms, None);
    }
}

#[test]
fn what_is_stored_is_read_back() {
    let chosen = overrides(&[
        ("retention_ms", "none"),
        ("retention_bytes", "10GiB"),
        ("segment_bytes", "64MiB"),
        ("record_bytes_max", "1MiB"),
        ("batch_bytes_max", "2MiB"),
        ("durability", "memory"),
        ("min_insync_replicas", "2"),
        ("full_policy", "protect-unread"),
        ("protect_groups", "billing,audit"),
        ("cleanup_policy", "compact,delete"),
        ("delete_retention_ms", "1h"),
        ("min_compaction_lag_ms", "5s"),
    ]);
    let stored: Vec<(String, String)> =
        chosen.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    assert_eq!(stored.len(), ConfigKey::ALL.len());
    assert_eq!(TopicOverrides::from_pairs(stored).unwrap(), chosen);
}

#[test]
fn later_layers_win_and_are_named() {
    let broker = overrides(&[("retention_ms", "1h"), ("full_policy", "drop-oldest")]);
    let topic = overrides(&[("retention_ms", "2h")]);
    let config = TopicConfig::resolve(&topic, &broker, 1);
    assert_eq!(config.retention_ms, Some(7_200_000));
    assert_eq!(config.full_policy, FullPolicy::DropOldest);
    let lines: Vec<String> = config
        .describe(&topic, &broker)
        .iter()
        .map(|entry| format!("{}={} {:?} {}", entry.key, entry.value, entry.source, entry.is_default()))
        .collect();
    assert_eq!(
        lines,
        [
            "batch_bytes_max=8388608 BuiltIn true",
            "cleanup_policy=delete BuiltIn true",
            "delete_retention_ms=86400000 BuiltIn true",
            "durability=disk BuiltIn true",
            "full_policy=drop-oldest Broker true",
            "min_compaction_lag_ms=0 BuiltIn true",
            "min_insync_replicas=1 BuiltIn true",
            "protect_groups=none BuiltIn true",
            "record_bytes_max=4194304 BuiltIn true",
            "retention_bytes=none BuiltIn true",
            "retention_ms=7200000 Topic false",
            "segment_bytes=268435456 BuiltIn true",
        ]
    );
}

#[test]
fn refusals_name_the_key_the_value_and_what_is_allowed() {
    let refusal =
        |key: &str, value: &str| TopicOverrides::from_pairs([(key, value)]).unwrap_err().to_string();
    assert_eq!(
        refusal("retention.ms", "5s"),
        "unknown topic setting \"retention.ms\"; known are batch_bytes_max, cleanup_policy, \
         delete_retention_ms, durability, full_policy, min_compaction_lag_ms, min_insync_replicas, \
         protect_groups, record_bytes_max, retention_bytes, retention_ms, segment_bytes"
    );
    assert_eq!(
        refusal("durability", "flash"),
        "topic setting durability does not take \"flash\"; allowed: disk or memory"
    );
    assert_eq!(
        refusal("cleanup_policy", "shred"),
        "topic setting cleanup_policy does not take \"shred\"; allowed: delete, compact or compact,delete"
    );
    let keys = overrides(&[("cleanup_policy", "compact"), ("full_policy", "drop-oldest")]);
    let refused = TopicConfig::check(&keys, &TopicOverrides::default(), 1);
    assert_eq!(refused, Err(ConfigError::DropsKeys { policy: FullPolicy::DropOldest }));
    let resolved = TopicConfig::resolve(&keys, &TopicOverrides::default(), 1);
    assert_eq!(resolved.full_policy, FullPolicy::BlockProducer);
    assert_eq!(
        refusal("full_policy", "protect"),
        "topic setting full_policy does not take \"protect\"; allowed: block-producer, drop-oldest or protect-unread"
    );
}

#[test]
fn values_out_of_bounds_are_refused() {
    for (key, value) in [
        ("retention_ms", "0"),
        ("retention_ms", "-2"),
        ("retention_ms", "18446744073709551615"),
        ("retention_bytes", "1KiB"),
        ("segment_bytes", "1"),
        ("segment_bytes", "1MB"),
        ("segment_bytes", "5GiB"),
        ("segment_bytes", "none"),
        ("record_bytes_max", "0"),
        ("batch_bytes_max", "17MiB"),
        ("min_insync_replicas", "0"),
        ("min_insync_replicas", "256"),
        ("min_insync_replicas", ""),
        ("durability", "Disk"),
        ("protect_groups", ""),
        ("protect_groups", "billing,"),
        ("protect_groups", "billing,none"),
        ("protect_groups", "bill ing"),
        ("protect_groups", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"),
    ] {
        let expected =
            ConfigError::BadValue { key: ConfigKey::from_name(key).unwrap(), value: value.to_owned() };
        assert_eq!(TopicOverrides::from_pairs([(key, value)]), Err(expected));
    }
}

#[test]
fn a_setting_given_twice_is_refused() {
    let twice = TopicOverrides::from_pairs([("durability", "disk"), ("durability", "memory")]);
    assert_eq!(twice, Err(ConfigError::Twice { key: ConfigKey::Durability }));
}

#[test]
fn settings_that_do_not_go_together_are_refused_at_the_door_and_lowered_in_use() {
    let none = TopicOverrides::default();
    let small_segment = overrides(&[("segment_bytes", "1MiB")]);
    let refused = TopicConfig::check(&small_segment, &none, 1).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "topic setting batch_bytes_max (8388608) is too large for segment_bytes (1048576): \
         lower batch_bytes_max or raise segment_bytes"
    );
    let in_use = TopicConfig::resolve(&small_segment, &none, 1);
    assert_eq!(in_use.batch_bytes_max, (1 << 20) - SEGMENT_OVERHEAD_BYTES);
    assert_eq!(in_use.record_bytes_max, in_use.batch_bytes_max - BATCH_OVERHEAD_BYTES);
    let large_record = overrides(&[("record_bytes_max", "8MiB")]);
    assert!(TopicConfig::check(&large_record, &none, 1).is_err());
    let strict = overrides(&[("min_insync_replicas", "2")]);
    assert!(TopicConfig::check(&strict, &none, 1).is_err());
    assert!(TopicConfig::check(&strict, &none, 2).is_ok());
    assert_eq!(TopicConfig::resolve(&strict, &none, 1).min_insync_replicas, 2);
}

#[test]
fn protected_groups_are_named_once_each_and_in_order() {
    let config = resolve(&[("protect_groups", " billing, audit,billing ")]);
    assert_eq!(config.value(ConfigKey::ProtectGroups).to_string(), "audit,billing");
    assert_eq!(resolve(&[("protect_groups", "none")]).protect_groups.len(), 0);
}

#[test]
fn a_policy_that_protects_nobody_is_refused_at_the_door_and_drops_nothing_in_use() {
    let none = TopicOverrides::default();
    let nobody = overrides(&[("full_policy", "protect-unread")]);
    assert_eq!(TopicConfig::check(&nobody, &none, 1), Err(ConfigError::ProtectsNobody));
    assert_eq!(TopicConfig::resolve(&nobody, &none, 1).full_policy, FullPolicy::BlockProducer);
    let named = overrides(&[("protect_groups", "billing")]);
    assert!(TopicConfig::check(&nobody, &named, 1).is_ok());
    let mut keys = nobody;
    keys.merge(&named);
    keys.set("cleanup_policy", "compact").unwrap();
    let refused = TopicConfig::check(&keys, &none, 1).unwrap_err();
    assert!(refused.to_string().starts_with("full_policy protect-unread would drop keys"), "{refused}");
}

#[test]
fn the_smallest_legal_segment_still_holds_a_batch() {
    let tiny = resolve(&[("segment_bytes", "1MiB"), ("batch_bytes_max", "1KiB")]);
    assert_eq!((tiny.batch_bytes_max, tiny.record_bytes_max), (1024, 1024 - BATCH_OVERHEAD_BYTES));
}

#[test]
fn unset_returns_to_the_default() {
    let mut chosen = overrides(&[("durability", "memory")]);
    chosen.set("retention_ms", "1h").unwrap();
    chosen.unset("durability").unwrap();
    assert_eq!(chosen, overrides(&[("retention_ms", "1h")]));
    assert!(chosen.unset("nothing").is_err());
    assert!(chosen.set("durability", "none").is_err());
    assert_eq!(chosen, overrides(&[("retention_ms", "1h")]));
}
