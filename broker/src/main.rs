//! The `corelog` binary: a broker, and the commands to use one.

use corelog_broker::cli::{self, Server};
use corelog_broker::doctor;
use corelog_broker::node::start;
use std::process::ExitCode;

fn main() -> ExitCode {
    let server = Server { dev: start::dev, serve: start::serve, doctor: doctor::run };
    cli::run(std::env::args_os(), &server)
}
