//! The rules that the schemas keep, and that the generated code is theirs.
//!
//! `wire/gen --check` generates again and compares; these need no compiler.

use std::fs;
use std::path::{Path, PathBuf};

/// The schemas as (file name, text), by name.
fn schemas() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "fbs"));
    paths.sort();
    assert!(!paths.is_empty());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The tables of a schema as (name, lines of fields).
fn tables(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut tables = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("table ") {
            let fields = lines.by_ref().take_while(|&line| line != "}");
            let fields = fields.filter(|line| !line.is_empty() && !line.starts_with("//")).collect();
            tables.push((name.trim_end_matches(" {"), fields));
        }
    }
    tables
}

/// The version of the flatbuffers crate, by the manifest that pins it.
fn flatbuffers_version() -> String {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let line =
        manifest.lines().find_map(|line| line.strip_prefix("flatbuffers = \"=")).expect("an exact pin");
    line.trim_end_matches('"').to_owned()
}

#[test]
fn generated_code_is_that_of_the_schemas() {
    let schemas = schemas();
    let mut hasher = crc32fast::Hasher::new();
    for (name, text) in &schemas {
        for part in [name.as_bytes(), &[0], text.as_bytes(), &[0]] {
            hasher.update(part);
        }
    }
    let stamp = format!("// schema-crc32: {:08x} flatc: {}", hasher.finalize(), flatbuffers_version());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    let mut generated: Vec<String> = schemas.iter().map(|(name, _)| name.replace(".fbs", ".rs")).collect();
    generated.push("mod.rs".into());
    for name in &generated {
        let text = fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(text.lines().next(), Some(&*stamp), "{name} is stale: run wire/gen");
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), generated.len(), "a file without a schema");
}

#[test]
fn every_field_of_a_table_has_its_own_id() {
    for (file, text) in schemas() {
        for (table, fields) in tables(&text) {
            assert!(!fields.is_empty(), "{file}: {table}");
            for (place, field) in fields.iter().enumerate() {
                let id = field.split_once("(id: ").map(|(_, rest)| rest);
                let id = id.and_then(|rest| rest.split([',', ')']).next()).and_then(|id| id.parse().ok());
                assert_eq!(id, Some(place), "{file}: {table}: {field}");
            }
        }
    }
}

#[test]
fn no_field_nests_a_flatbuffer() {
    for (file, text) in schemas() {
        assert!(!text.contains("nested_flatbuffer"), "{file}");
    }
}

#[test]
fn every_answer_begins_like_a_refusal() {
    let schemas = schemas();
    let all: Vec<_> = schemas.iter().flat_map(|(_, text)| tables(text)).collect();
    let refusal = &all.iter().find(|(name, _)| *name == "Refusal").unwrap().1;
    let answers: Vec<_> = all.iter().filter(|(name, _)| name.ends_with("Answer")).collect();
    assert_eq!(answers.len(), crate::frame::Kind::ALL.len());
    for (name, fields) in answers {
        assert_eq!(fields[..3], refusal[..], "{name}");
    }
}
