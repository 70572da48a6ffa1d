//! Prints every record of a topic that is there now, from its start.
//!
//! `cargo run -p corelog-client --example consume [TOPIC]`, with a broker at `CORELOG_BOOTSTRAP` (127.0.0.1:9640 unless
//! said otherwise; `corelog dev` starts one).

use std::collections::BTreeMap;

use corelog_client::{Client, Result, Start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let bootstrap = std::env::var("CORELOG_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9640".to_owned());
    let topic = std::env::args().nth(1).unwrap_or_else(|| "greetings".to_owned());
    let client = Client::connect(&bootstrap).await?;

    // Where each partition ends now; those that are empty need not be waited for.
    let admin = client.admin();
    let starts = admin.list_offsets(&topic, Start::Earliest).await?;
    let ends = admin.list_offsets(&topic, Start::Latest).await?;
    let filled = starts.iter().zip(&ends).filter(|(start, end)| start.offset < end.offset);
    let mut ends: BTreeMap<u32, u64> = filled.map(|(_, end)| (end.partition, end.offset)).collect();

    let reader = client.topic_reader(&topic).from(Start::Earliest).build()?;
    while !ends.is_empty() {
        let Some(batch) = reader.next().await? else { break };
        for record in &batch {
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
            let (partition, offset) = (record.partition(), record.offset());
            println!("{partition}/{offset} {} = {}", text(record.key()), text(record.value()));
        }
        ends.retain(|&partition, end| partition != batch.partition() || *end > batch.next_offset());
    }
    Ok(())
}
