//! A member of a consumer group that hears which partitions come and go: prints what is written, until Ctrl-C.
//!
//! `cargo run -p corelog-client --example group [TOPIC] [GROUP]`, several times: the processes share the partitions. With
//! a broker at `CORELOG_BOOTSTRAP` (127.0.0.1:9640 unless said otherwise; `corelog dev` starts one).

use std::time::Duration;

use corelog_client::{Client, CommitMode, Result, Share, Taken};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let bootstrap = std::env::var("CORELOG_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9640".to_owned());
    let mut args = std::env::args().skip(1);
    let topic = args.next().unwrap_or_else(|| "greetings".to_owned());
    let group = args.next().unwrap_or_else(|| "readers".to_owned());
    let client = Client::connect(&bootstrap).await?;
    // At least once: what was processed is committed every second, and before a partition goes to somebody else.
    let commit = CommitMode::After(Duration::from_secs(1));
    let consumer = client.consumer(&group).topics([topic]).commit(commit).build()?;
    let ended = tokio::select! {
        ended = print(&consumer) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    // Others have the partitions at once; without this they would wait for the session to end.
    consumer.close().await;
    ended
}

async fn print(consumer: &corelog_client::Consumer) -> Result<()> {
    let names = |shares: Vec<Share>| {
        shares
            .iter()
            .map(|share| format!("{}/{}", share.topic, share.partition))
            .collect::<Vec<_>>()
            .join(" ")
    };
    while let Some(taken) = consumer.next_event().await? {
        match taken {
            Taken::Records(batch) => {
                for record in &batch {
                    let value = String::from_utf8_lossy(record.value().unwrap_or_default());
                    println!("{}/{} {}: {value}", batch.topic(), batch.partition(), record.offset());
                }
            }
            Taken::Assigned(shares) => eprintln!("got {}", names(shares)),
            // The last moment to finish and commit what belongs to them.
            Taken::Revoked(shares) => eprintln!("letting go of {}", names(shares)),
            Taken::Lost(shares) => eprintln!("lost {}: others may have them already", names(shares)),
        }
    }
    Ok(())
}
