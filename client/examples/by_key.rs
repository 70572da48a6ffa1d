//! Processes records many at a time, those of one key in order, and commits what is done without a gap, until Ctrl-C.
//!
//! `cargo run -p corelog-client --example by_key [TOPIC] [GROUP]`. With a broker at `CORELOG_BOOTSTRAP` (127.0.0.1:9640 unless said
//! otherwise; `corelog dev` starts one). The work here is to wait for a moment, as one does for a database.

use std::convert::Infallible;
use std::time::Duration;

use corelog_client::{Client, ConsumedRecord, ProcessError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bootstrap = std::env::var("CORELOG_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9640".to_owned());
    let mut args = std::env::args().skip(1);
    let topic = args.next().unwrap_or_else(|| "greetings".to_owned());
    let group = args.next().unwrap_or_else(|| "workers".to_owned());
    let client = Client::connect(&bootstrap).await?;
    let consumer = client.consumer(&group).topics([topic]).build()?;
    let ended = tokio::select! {
        ended = consumer.for_each_key(32, work) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    // What is done is committed; what was at work comes again.
    consumer.close().await;
    match ended {
        Ok(()) => Ok(()),
        Err(ProcessError::Consumer(error)) => Err(error.into()),
        Err(ProcessError::Process(never)) => match never {},
    }
}

async fn work(record: ConsumedRecord) -> Result<(), Infallible> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    println!("{}/{} {:?}", record.partition, record.offset, record.key);
    Ok(())
}
