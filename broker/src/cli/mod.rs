//! The command line: what `corelog` understands, and the commands that speak to a broker as any client does.
//!
//! Called by `main`. Commands that run or examine a broker are handed to [`Server`], so that this room knows no shard and
//! no disk. Invariants: what was asked for goes to standard output, everything else to standard error; an error says what
//! to do next; the exit code says whose turn it is: 0 done, 1 fault, 2 usage or configuration, 3 refused by the broker,
//! 4 unreachable or deadline, 130 interrupted.

mod args;
mod consume;
mod failure;
mod format;
mod group;
mod input;
mod produce;
mod progress;
mod table;
mod top;
mod topic;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use corelog_client::Client;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::args::{Cli, ClientArgs, Command};
pub use self::args::{DevArgs, DoctorArgs, OutputFormat, ServeArgs};
use self::failure::Failure;

/// The commands that are not a client's.
pub struct Server {
    /// `corelog dev`: a broker for trying things out.
    pub dev: fn(DevArgs, OutputFormat) -> ExitCode,
    /// `corelog serve`: a broker by its configuration.
    pub serve: fn(ServeArgs, OutputFormat) -> ExitCode,
    /// `corelog doctor`: what stands in the way of a broker on this machine.
    pub doctor: fn(DoctorArgs, OutputFormat) -> ExitCode,
}

/// Does what the command line asks for. The first of `args` is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>, server: &Server) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return misused(&error, &args),
    };
    let output = cli.output;
    match cli.command {
        Command::Dev(args) => (server.dev)(args, output),
        Command::Serve(args) => (server.serve)(args, output),
        Command::Doctor(args) => (server.doctor)(args, output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "corelog", &mut script);
            ended(output, print(&script))
        }
        Command::Top(args) => client_command(output, top::run(args, output)),
        Command::Topic(args) => client_command(output, topic::run(args, output)),
        Command::Group(args) => client_command(output, group::run(args, output)),
        Command::Produce(args) => client_command(output, produce::run(args, output)),
        // Whoever reads the output may let it wait; the group must hear from this member all the same.
        Command::Consume(args) if args.group.is_some() => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            run_on(runtime, output, consume::run(args, output))
        }
        Command::Consume(args) => client_command(output, consume::run(args, output)),
    }
}

/// What clap has to say instead of arguments. Help and version are errors in this sense too, with exit code 0.
fn misused(error: &clap::Error, args: &[OsString]) -> ExitCode {
    let text = error.render().to_string();
    let text = text.trim_end();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => drop(error.print()),
        _ if !wants_json(args) => drop(error.print()),
        // Its text is the whole help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            report(OutputFormat::Json, "USAGE", "a command or an argument is missing", text);
        }
        _ => {
            let (text, help) = text.split_once("\n\n").unwrap_or((text, ""));
            let text = text.strip_prefix("error: ").unwrap_or(text);
            report(OutputFormat::Json, "USAGE", text, help);
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Whether arguments that clap does not understand as a whole ask for JSON.
fn wants_json(args: &[OsString]) -> bool {
    let options: Vec<&OsString> = args.iter().take_while(|argument| *argument != "--").collect();
    options.contains(&&OsString::from("--output=json"))
        || options.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json")
}

fn ended(output: OutputFormat, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}

/// Runs a client's command on a runtime of one thread: there is one core's work to do, and no other thread to wait for.
fn client_command(output: OutputFormat, command: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    run_on(tokio::runtime::Builder::new_current_thread().enable_all().build(), output, command)
}

fn run_on(
    runtime: io::Result<tokio::runtime::Runtime>,
    output: OutputFormat,
    command: impl Future<Output = Result<(), Failure>>,
) -> ExitCode {
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Failure::fault("cannot start", &error).report(output),
    };
    let result = runtime.block_on(command);
    // Whatever is still under way in the background has nobody who waits for it.
    runtime.shutdown_background();
    ended(output, result)
}

/// A client of the broker that the arguments name.
async fn connect(args: &ClientArgs) -> Result<Client, Failure> {
    let builder = Client::builder().bootstrap(&args.bootstrap).client_name("corelog");
    Ok(builder.connect().await?)
}

/// Ctrl-C, as often as the user presses it from now on, and SIGTERM.
struct Interrupts {
    /// None if the system refuses to tell: then the signal ends the process by itself.
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Interrupts {
    fn new() -> Self {
        Self {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
        }
    }

    /// Ends when the command is to end.
    async fn next(&mut self) -> Failure {
        tokio::select! {
            () = told(&mut self.interrupt) => Failure::Interrupted,
            () = told(&mut self.terminate) => Failure::Terminated,
        }
    }
}

async fn told(signal: &mut Option<Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Writes a line to standard error; where that is closed there is nobody to tell.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes to standard output at once.
fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// Writes an error to standard error: its short name, its text, and what to do next if that is known.
pub fn report(output: OutputFormat, name: &str, text: &str, help: &str) {
    match output {
        // The text often ends with the advice.
        OutputFormat::Text if text.ends_with(help) => complain(&format!("corelog: {text}")),
        OutputFormat::Text => complain(&format!("corelog: {text}\n  {help}")),
        OutputFormat::Json => {
            let error = serde_json::json!({"error": {"code": name, "message": text, "help": help}});
            complain(&error.to_string());
        }
    }
}

#[cfg(test)]
mod tests;
