//! Writes `wire/src/generated` from `wire/schema`; with `--check`, says whether it is fresh instead.
//!
//! Run by hand whenever a schema changes: `cd wire/gen && cargo run`. It is no part of the default build, as it needs
//! cmake and a C++ compiler. It refuses to know what the schemas say; `wire`'s unit tests check their rules.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The compiler that `flatc-fork` carries. It must print this version, and `wire` must use the crate of the same.
const FLATC_VERSION: &str = "25.12.19";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => return Err("usage: corelog-wire-gen [--check]".into()),
    };
    let wire = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("wire/gen has no parent")?;
    let schemas = schemas(&wire.join("schema"))?;
    let scratch = PathBuf::from(std::env::var_os("TMPDIR").unwrap_or_else(|| "/tmp".into()))
        .join(format!("corelog-wire-gen-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let files = generate(&schemas, &scratch);
    fs::remove_dir_all(&scratch)?;
    let files = files?;
    let target = wire.join("src/generated");
    if !check {
        fs::create_dir_all(&target)?;
        for (name, text) in &files {
            fs::write(target.join(name), text)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stale: Vec<&str> = files
        .iter()
        .filter(|(name, text)| fs::read_to_string(target.join(name)).ok().as_ref() != Some(text))
        .map(|(name, _)| name.as_str())
        .collect();
    for name in &stale {
        eprintln!("stale: wire/src/generated/{name}");
    }
    Ok(if stale.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The schema files, by name.
fn schemas(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut schemas = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "fbs") {
            schemas.push(path);
        }
    }
    schemas.sort();
    Ok(schemas)
}

/// The generated files, as (name, text).
fn generate(schemas: &[PathBuf], scratch: &Path) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let flatc = flatc_fork::flatc();
    let version = Command::new(flatc).arg("--version").output()?;
    let version = String::from_utf8(version.stdout)?;
    if version.trim() != format!("flatc version {FLATC_VERSION}") {
        return Err(format!("expected flatc {FLATC_VERSION}, found {version}").into());
    }
    let status = Command::new(flatc).args(["--rust", "-o"]).arg(scratch).args(schemas).status()?;
    if !status.success() {
        return Err(format!("flatc: {status}").into());
    }
    let stamp = format!("// schema-crc32: {:08x} flatc: {FLATC_VERSION}\n", hash(schemas)?);
    let mut root = stamp.clone();
    root.push_str(
        "//! What flatc made of `wire/schema`: run `wire/gen` to make it again, never edit it.\n\n",
    );
    let mut files = Vec::new();
    for schema in schemas {
        let name = schema.file_stem().and_then(|name| name.to_str()).ok_or("a schema's name is not UTF-8")?;
        writeln!(root, "pub(crate) mod {name};")?;
        let made = scratch.join(format!("{name}_generated.rs"));
        // flatc takes for granted that its files lie in the crate's root.
        let text = fs::read_to_string(&made)?.replace("crate::common_generated", "super::common");
        fs::write(&made, text)?;
        let mut rustfmt = Command::new("rustfmt");
        rustfmt.args(["--edition", "2024", "--config", "max_width=110,use_small_heuristics=Max"]);
        if !rustfmt.arg(&made).status()?.success() {
            return Err("rustfmt failed".into());
        }
        files.push((format!("{name}.rs"), format!("{stamp}{}", fs::read_to_string(&made)?)));
    }
    files.push(("mod.rs".into(), root));
    Ok(files)
}

/// crc32 over name, zero, text, zero of every schema in the order of names. It guards against forgetting to run this
/// program, not against malice; `wire`'s unit test computes the same.
fn hash(schemas: &[PathBuf]) -> Result<u32, Box<dyn Error>> {
    let mut hasher = crc32fast::Hasher::new();
    for schema in schemas {
        let name = schema.file_name().and_then(|name| name.to_str()).ok_or("a schema's name is not UTF-8")?;
        hasher.update(name.as_bytes());
        hasher.update(&[0]);
        hasher.update(&fs::read(schema)?);
        hasher.update(&[0]);
    }
    Ok(hasher.finalize())
}
