//! The commands that run a broker: `corelog dev` and `corelog serve`.
//!
//! Called by `main`. Says on standard output what a person needs to go on, or a program (one line of JSON), and on
//! standard error what went wrong and what to do. Exit codes: 0 stopped cleanly, 1 fault, 2 configuration, 130
//! interrupted while it stopped.

use super::boot::{self, BootError, Ready};
use super::config::{Config, ConfigError, DevOptions, Host};
use super::descriptors;
use crate::cli::{self, DevArgs, OutputFormat, ServeArgs};
use corelog_core::journal::Verdict;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

/// Runs a broker to try things out.
#[must_use]
pub fn dev(args: DevArgs, output: OutputFormat) -> ExitCode {
    let DevArgs { data_dir, port, admin_port, shards } = args;
    let options =
        DevOptions { data_dir, port: Some(port), admin_port: Some(admin_port), shards: Some(shards) };
    // Several brokers may share the machine, and so the first CPU: they are better off where the system puts them.
    run(Config::dev(&options, &[], &Host::probe()), false, output, welcome)
}

/// Runs a broker by its configuration file.
#[must_use]
pub fn serve(args: ServeArgs, output: OutputFormat) -> ExitCode {
    let ServeArgs { config, set } = args;
    run(Config::serve(Some(&config), &set, &Host::probe()), true, output, |ready| {
        brief(ready) + &footer(ready)
    })
}

fn run(
    config: Result<Config, ConfigError>,
    pin: bool,
    output: OutputFormat,
    words: fn(&Ready) -> String,
) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            cli::report(output, "USAGE", &error.to_string(), "");
            return ExitCode::from(2);
        }
    };
    // A shard must never wait for standard error: lines go through a thread of their own, and are dropped if it lags.
    let (writer, _guard): (_, WorkerGuard) = tracing_appender::non_blocking(std::io::stderr());
    let filter =
        EnvFilter::try_from_env("CORELOG_LOG").unwrap_or_else(|_| EnvFilter::new("info,glommio=error"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_writer(writer)
        .with_ansi(ansi)
        .with_env_filter(filter)
        .with_target(false)
        .init();
    raise_descriptors(config.shards);
    for key in &config.ineffective {
        tracing::warn!("{key} is set and has no effect in this version");
    }
    let ready = |ready: &Ready| {
        let text = match output {
            OutputFormat::Text => words(ready),
            OutputFormat::Json => json(ready),
        };
        // A broker serves whether or not somebody reads this.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    };
    match boot::run(&config, pin, ready) {
        Ok(()) => {
            tracing::info!("stopped; everything acknowledged is on disk");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let (name, code) =
                if matches!(error, BootError::OtherLayout { .. }) { ("USAGE", 2) } else { ("FAULT", 1) };
            cli::report(output, name, &error.to_string(), "");
            ExitCode::from(code)
        }
    }
}

/// Raises the limit on open files and says what it lets connections have.
fn raise_descriptors(shards: u16) {
    let (before, now) = descriptors::raise();
    let connections = descriptors::connections_max(now, shards);
    let text = |limit: Option<u64>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    let (was, limit) = (text(before), text(now));
    let wanted = descriptors::limit_wanted(shards);
    if connections < descriptors::CONNECTIONS_FEW {
        tracing::warn!(
            limit,
            was,
            "few open files are allowed: each shard takes {connections} connections at most; {wanted} would allow {} \
             (ulimit -Hn, LimitNOFILE=)",
            descriptors::CONNECTIONS_MAX
        );
    } else {
        tracing::debug!(limit, was, connections, "open files allowed, and connections of each shard");
    }
}

/// What `dev` says when it serves.
fn welcome(ready: &Ready) -> String {
    let mut text = brief(ready);
    let bootstrap = match ready.address.port() {
        9640 => String::new(),
        _ => format!(" --bootstrap {}", ready.address),
    };
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "\n  Every acknowledged record is flushed to disk. For trying out only: one broker, one copy, no\n  \
         authentication, loopback, topics made when first used.\n\n  In another terminal:\n    \
         echo 'hello' | corelog produce{bootstrap} greetings\n    \
         corelog consume{bootstrap} greetings --from earliest --until-end\n    \
         corelog topic describe{bootstrap} greetings\n\n",
    );
    text + &footer(ready)
}

/// What both say to programs.
fn json(ready: &Ready) -> String {
    let recovered = ready.reports.iter().enumerate().filter(|_| !ready.is_new).map(|(shard, report)| {
        let damaged = matches!(report.verdict, Verdict::Corrupt { .. });
        serde_json::json!({"shard": shard, "damaged": damaged, "summary": report.to_string()})
    });
    let recovered: Vec<_> = recovered.collect();
    let line = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "address": ready.address.to_string(),
        "admin": ready.admin.to_string(),
        "data_dir": ready.data_dir.to_string_lossy(),
        "is_new": ready.is_new,
        "shards": ready.shards,
        "took_ms": u64::try_from(ready.took.as_millis()).unwrap_or(u64::MAX),
        "recovered": recovered,
    });
    format!("{line}\n")
}

/// Where to look, and how it ends.
fn footer(ready: &Ready) -> String {
    format!("  Metrics: http://{}/metrics   Ctrl-C stops the broker.\n", ready.admin)
}

fn brief(ready: &Ready) -> String {
    let shards = if ready.shards == 1 { "1 shard".to_owned() } else { format!("{} shards", ready.shards) };
    let mut text = format!(
        "corelog {} serves {} ({shards}, ready in {} ms)\n  data   {}\n",
        env!("CARGO_PKG_VERSION"),
        ready.address,
        ready.took.as_millis(),
        ready.data_dir.display(),
    );
    if ready.is_new {
        text.push_str("         new\n");
        return text;
    }
    for (shard, report) in ready.reports.iter().enumerate() {
        let damage = if matches!(report.verdict, Verdict::Corrupt { .. }) { "!! " } else { "" };
        let _ = writeln!(text, "         {damage}recovered shard {shard}: {report}");
    }
    text
}
