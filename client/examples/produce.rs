//! Sends a few records and prints where each went, acknowledged and flushed to disk.
//!
//! `cargo run -p corelog-client --example produce [TOPIC]`, with a broker at `CORELOG_BOOTSTRAP` (127.0.0.1:9640 unless
//! said otherwise; `corelog dev` starts one).

use corelog_client::{Client, NewTopic, Record, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let bootstrap = std::env::var("CORELOG_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9640".to_owned());
    let topic = std::env::args().nth(1).unwrap_or_else(|| "greetings".to_owned());
    let client = Client::connect(&bootstrap).await?;
    client.admin().ensure_topic(&topic, NewTopic::partitions(3)).await?;
    let producer = client.producer(&topic).build()?;

    // One at a time: when `send` returns, the record is there.
    let delivery = producer.send(Record::new("hello").key("first")).await?;
    println!("partition {} offset {:?}", delivery.partition, delivery.offset);

    // Many at a time: `enqueue` waits only for room, the ticket for the acknowledgement.
    let mut tickets = Vec::new();
    for number in 0..100 {
        let record = Record::new(format!("greeting {number}")).key(format!("guest {}", number % 10));
        tickets.push(producer.enqueue(record).await?);
    }
    for ticket in tickets {
        let delivery = ticket.await?;
        println!("partition {} offset {:?}", delivery.partition, delivery.offset);
    }
    producer.close().await
}
