//! Follows a topic: prints what is written from now on, until Ctrl-C.
//!
//! `cargo run -p corelog-client --example tail [TOPIC]`, with a broker at `CORELOG_BOOTSTRAP` (127.0.0.1:9640 unless
//! said otherwise; `corelog dev` starts one).

use std::io::Write;

use corelog_client::{Client, ErrorKind, Result, Start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let bootstrap = std::env::var("CORELOG_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9640".to_owned());
    let topic = std::env::args().nth(1).unwrap_or_else(|| "greetings".to_owned());
    let client = Client::connect(&bootstrap).await?;
    let reader = client.topic_reader(&topic).from(Start::Latest).build()?;
    let mut out = std::io::stdout();
    loop {
        let batch = match reader.next().await {
            Ok(Some(batch)) => batch,
            Ok(None) => return Ok(()),
            // The broker is away; the reader goes on trying, so the only thing to do is to say so.
            Err(error) if error.kind() == ErrorKind::Deadline => {
                eprintln!("{error}");
                continue;
            }
            Err(error) => return Err(error),
        };
        for record in &batch {
            let written =
                out.write_all(record.value().unwrap_or_default()).and_then(|()| out.write_all(b"\n"));
            if written.is_err() {
                // Nobody reads any more.
                return Ok(());
            }
        }
        let lag = reader.lag(batch.partition()).unwrap_or_default();
        if lag > 1_000 {
            eprintln!("partition {}: {lag} records behind", batch.partition());
        }
    }
}
