//! `corelog doctor`: what stands in the way of a broker on this machine, and what to do about it.
//!
//! Called by the command line; needs no running broker and changes nothing but a measuring file that it removes.
//! `probe` reads facts from the machine, `flush` measures the disk, `judge` turns facts into findings and is pure.
//! Invariant: every finding above [`Level::Good`] says what to do.

mod flush;
mod judge;
mod probe;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{DoctorArgs, OutputFormat};
use crate::node::config::{Config, DevOptions, Host};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// A broker runs, but not as it could.
    Warning,
    /// A broker does not run.
    Error,
}

impl Level {
    fn mark(self) -> &'static str {
        match self {
            Self::Good => "ok   ",
            Self::Note => "note ",
            Self::Warning => "WARN ",
            Self::Error => "ERROR",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; none when it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Good, found: found.into(), fix: None }
    }

    fn new(check: &'static str, level: Level, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Runs the command. Exit code 1 when a broker would not run here.
#[must_use]
pub fn run(args: DoctorArgs, output: OutputFormat) -> ExitCode {
    let host = Host::probe();
    let options = DevOptions { data_dir: args.data_dir, ..DevOptions::default() };
    let data_dir = match Config::dev(&options, &[], &host) {
        Ok(config) => config.data_dir,
        Err(error) => {
            eprintln!("corelog: {error}");
            return ExitCode::from(2);
        }
    };
    let findings = examine(&data_dir, host.cpus);
    print!(
        "{}",
        match output {
            OutputFormat::Text => text(&findings),
            OutputFormat::Json => json(&findings),
        }
    );
    let worst = findings.iter().map(|finding| finding.level).max();
    ExitCode::from(u8::from(worst == Some(Level::Error)))
}

/// Looks at the machine and at the disk of a data directory, which need not exist yet.
#[must_use]
pub fn examine(data_dir: &Path, shards: u16) -> Vec<Finding> {
    let folder = probe::existing(data_dir);
    let mut findings = vec![
        judge::kernel(&probe::kernel()),
        judge::io_uring(&crate::rt::preflight()),
        judge::filter(probe::seccomp_mode()),
        judge::locked_memory(probe::locked_memory(), shards),
        judge::open_files(probe::open_files()),
        judge::clock(probe::clock_source().as_deref()),
        judge::governor(probe::governor().as_deref()),
        judge::data_dir(data_dir, folder),
    ];
    let Some(folder) = folder else { return findings };
    let file_system = probe::file_system(folder);
    findings.push(judge::file_system(file_system.as_ref()));
    findings.push(judge::room(file_system.as_ref()));
    findings.push(judge::device(probe::device(folder).as_ref()));
    if file_system.is_ok_and(|file_system| judge::is_memory(&file_system)) {
        return findings;
    }
    let measured = flush::measure(folder);
    findings.push(judge::direct(measured.as_ref()));
    if let Ok(measured) = &measured {
        findings.push(judge::flush(measured));
    }
    findings
}

/// For people: a line each, with its fix below.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {:<14} {}", finding.level.mark(), finding.check, finding.found);
        if let Some(fix) = &finding.fix {
            let _ = writeln!(text, "{:<21}-> {fix}", "");
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let _ = match (count(Level::Error), count(Level::Warning)) {
        (0, 0) => writeln!(text, "A broker can run here."),
        (0, _) => writeln!(text, "A broker can run here, but see the warnings."),
        (_, _) => writeln!(text, "A broker cannot run here: see the errors."),
    };
    text
}

/// For programs: an object a line.
fn json(findings: &[Finding]) -> String {
    let line = |finding: &Finding| serde_json::to_string(finding).unwrap_or_default() + "\n";
    findings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_written_for_people_and_for_programs() {
        let findings = [
            Finding::good("kernel", "6.18.0"),
            Finding::new("open files", Level::Warning, "1024", "ulimit -n 65536"),
        ];
        assert_eq!(
            text(&findings),
            "ok    kernel         6.18.0\n\
             WARN  open files     1024\n                     -> ulimit -n 65536\n\
             A broker can run here, but see the warnings.\n"
        );
        assert_eq!(
            json(&findings),
            "{\"check\":\"kernel\",\"level\":\"good\",\"found\":\"6.18.0\"}\n\
             {\"check\":\"open files\",\"level\":\"warning\",\"found\":\"1024\",\"fix\":\"ulimit -n 65536\"}\n"
        );
    }

    #[test]
    fn this_machine_is_examined_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("not/yet");
        let findings = examine(&missing, 1);
        for check in
            ["kernel", "io_uring", "open files", "locked memory", "file system", "disk room", "device"]
        {
            assert!(findings.iter().any(|finding| finding.check == check), "{check} is not in {findings:?}");
        }
        assert!(findings.iter().all(|finding| finding.level == Level::Good || finding.fix.is_some()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn memory_is_refused_and_not_measured() {
        let shared = Path::new("/dev/shm");
        if probe::file_system(shared).is_ok_and(|file_system| judge::is_memory(&file_system)) {
            let findings = examine(shared, 1);
            let found = findings.iter().find(|finding| finding.check == "file system").unwrap();
            assert_eq!(found.level, Level::Error);
            assert!(findings.iter().all(|finding| finding.check != "flush"));
        }
    }
}
