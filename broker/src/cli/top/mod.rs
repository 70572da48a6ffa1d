//! `corelog top`: a broker at a glance, second by second: rates, latencies, shards, topics, and how far groups are behind.
//!
//! Reads `/metrics` and nothing else, so that it shows what any monitoring sees. Where standard output is no terminal, or with
//! `--once`, one look is printed and that is all. Invariant: whatever ends it, the terminal is as it was.

mod metrics;
mod screen;
mod view;

use std::io::IsTerminal;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::metrics::Sample;
use self::view::View;
use super::args::TopArgs;
use super::failure::Failure;
use super::{Interrupts, OutputFormat, print};

/// Broker and terminal have other things to do as well.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn run(args: TopArgs, output: OutputFormat) -> Result<(), Failure> {
    if args.interval < INTERVAL_MIN {
        return Err(Failure::Usage(format!("--interval must be {INTERVAL_MIN:?} or more")));
    }
    let mut before = Sample::parse(&get(&args.admin).await?);
    let json = matches!(output, OutputFormat::Json);
    if args.once || json || !std::io::stdout().is_terminal() {
        tokio::time::sleep(args.interval).await;
        let view = View::between(&before, &Sample::parse(&get(&args.admin).await?));
        let text = if json { view.json() } else { view.text() };
        return print(text.as_bytes());
    }
    let mut screen = screen::Screen::open().map_err(|error| Failure::output(&error))?;
    let mut interrupts = Interrupts::new();
    let look = || async {
        tokio::time::sleep(args.interval).await;
        get(&args.admin).await
    };
    let mut next = Box::pin(look());
    let mut shown = View::between(&before, &before);
    let mut trouble = None;
    loop {
        screen.draw(&args.admin, &shown, trouble.as_deref()).map_err(|error| Failure::output(&error))?;
        tokio::select! {
            text = &mut next => {
                match text {
                    Ok(text) => {
                        let now = Sample::parse(&text);
                        shown = View::between(&before, &now);
                        (before, trouble) = (now, None);
                    }
                    // It may come back: what was seen last stays.
                    Err(failure) => trouble = failure.words().map(|(_, text, _)| text),
                }
                next = Box::pin(look());
            }
            more = screen.wants_more() => if !more { return Ok(()) },
            interrupt = interrupts.next() => return Err(interrupt),
        }
    }
}

/// What `/metrics` says.
async fn get(admin: &str) -> Result<String, Failure> {
    let unreachable = |why: String| {
        Failure::Unreachable(format!(
            "{admin} does not answer: {why}. Is it the broker's admin address (listen.admin)?"
        ))
    };
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await;
    let answer = answer.map_err(|_| unreachable(format!("nothing came within {PATIENCE:?}")))?;
    let answer = answer.map_err(|error| unreachable(error.to_string()))?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(unreachable("what came is not metrics".to_owned())),
    }
}
