//! The same client on glommio, over loopback, against the broker in memory on a tokio thread of its own.

#![cfg(test)]

#[expect(dead_code, reason = "the other test uses the rest")]
mod support;

use std::time::Duration;

use corelog_client::driver::Glommio;
use corelog_client::{Client, Error, Record, Start};
use glommio::LocalExecutorBuilder;
use support::Broker;

/// Serves on loopback until the process ends; gives the address.
fn serve(broker: Broker) -> String {
    let (sender, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            broker.world.lock().unwrap().address = address.clone();
            sender.send(address).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(broker.clone().serve(stream));
            }
        });
    });
    address.recv().unwrap()
}

#[test]
fn what_is_sent_on_glommio_is_read_on_glommio() {
    let broker = Broker::new().with_topic("t", 1);
    let address = serve(broker.clone());
    let executor = LocalExecutorBuilder::default().spawn(|| async move {
        let client = Client::builder().bootstrap(&address).connect_on(Glommio).await.unwrap();
        let producer = client.producer("t").batch_bytes(200_000).build().unwrap();
        let mut tickets = Vec::new();
        for number in 0..2_000_u64 {
            let record = Record::new(vec![number.to_le_bytes()[0]; 1_000]);
            tickets.push(producer.enqueue(record).await.unwrap());
        }
        for (number, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.unwrap().offset, Some(number as u64));
        }
        producer.close().await.unwrap();
        let reader = client.reader("t", 0).from(Start::Earliest).build().unwrap();
        let mut expected = 0_u64;
        while expected < 2_000 {
            let batch = reader.next().await.unwrap().unwrap();
            for record in &batch {
                assert_eq!(record.offset(), expected);
                assert_eq!(record.value(), Some(&[expected.to_le_bytes()[0]; 1_000][..]));
                expected += 1;
            }
        }
        let nobody = Client::builder().bootstrap("127.0.0.1:9").connect_deadline(Duration::from_secs(2));
        let error = nobody.connect_on(Glommio).await.err().unwrap();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    });
    executor.unwrap().join().unwrap();
    assert!(broker.log("t", 0).batches.len() >= 10);
}
