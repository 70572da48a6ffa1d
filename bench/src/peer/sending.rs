//! A producer of a client library, as an application has it: Corelog's own, or librdkafka for Kafka.
//!
//! Called by `library`. Both wait for all in-sync replicas or the leader as the workload asks, are idempotent, and send at
//! once what is there. Invariant: records are taken in the order in which they are given.

use std::net::SocketAddr;

use corelog_client::{Client, Compression, Partitioner, Producer, RecordRef, Ticket};
use corelog_wire::message;

use crate::error::{Error, Result};
use crate::workload::{Acks, Codec, Workload};

/// Whose library it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Corelog's.
    Corelog,
    /// librdkafka.
    #[cfg(feature = "rdkafka")]
    Rdkafka,
}

/// A producer.
pub enum Sending {
    /// Of Corelog.
    Corelog {
        /// It.
        producer: Producer,
        /// The client that it belongs to.
        _client: Client,
    },
    /// Of librdkafka.
    #[cfg(feature = "rdkafka")]
    Rdkafka(rdkafka::Sending),
}

/// A record on its way.
pub enum Sent {
    /// Through Corelog's library.
    Corelog(Ticket),
    /// Through librdkafka.
    #[cfg(feature = "rdkafka")]
    Rdkafka(rdkafka::Sent),
}

impl Sending {
    /// A producer of one topic.
    ///
    /// # Errors
    /// [`Error::Peer`] if the broker cannot be reached.
    pub async fn open(
        library: Library,
        address: SocketAddr,
        topic: &str,
        workload: &Workload,
    ) -> Result<Self> {
        match library {
            Library::Corelog => corelog(address, topic, workload).await,
            #[cfg(feature = "rdkafka")]
            Library::Rdkafka => rdkafka::Sending::open(address, topic, workload).map(Self::Rdkafka),
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// Why the library does not take it.
    pub async fn take(&self, partition: u32, value: &[u8]) -> std::result::Result<Sent, String> {
        match self {
            Self::Corelog { producer, .. } => {
                let record = RecordRef { partition: Some(partition), ..RecordRef::new(value) };
                let ticket = producer.enqueue_ref(&record).await;
                ticket.map(Sent::Corelog).map_err(|error| error.to_string())
            }
            #[cfg(feature = "rdkafka")]
            Self::Rdkafka(producer) => producer.take(partition, value).map(Sent::Rdkafka),
        }
    }
}

impl Sent {
    /// Waits until it is acknowledged; its offset.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn acknowledged(self) -> std::result::Result<u64, String> {
        match self {
            Self::Corelog(ticket) => {
                let delivery = ticket.await.map_err(|error| error.to_string())?;
                Ok(delivery.offset.unwrap_or_default())
            }
            #[cfg(feature = "rdkafka")]
            Self::Rdkafka(sent) => sent.acknowledged().await,
        }
    }
}

async fn corelog(address: SocketAddr, topic: &str, workload: &Workload) -> Result<Sending> {
    let peer = |error: corelog_client::Error| Error::Peer(error.to_string());
    let client = Client::connect(&address.to_string()).await.map_err(peer)?;
    let acks = match workload.load.acks() {
        Acks::Leader => message::Acks::Leader,
        Acks::All => message::Acks::All,
    };
    let compression = match workload.records.codec {
        Codec::None => Compression::None,
        Codec::Gzip => Compression::Gzip,
        Codec::Snappy => Compression::Snappy,
        Codec::Lz4 => Compression::Lz4,
        Codec::Zstd => Compression::Zstd,
    };
    let producer = client.producer(topic).acks(acks).auto_create(false).partitioner(Partitioner::Sticky);
    let producer = producer.compression(compression).build().map_err(peer)?;
    Ok(Sending::Corelog { producer, _client: client })
}

#[cfg(feature = "rdkafka")]
mod rdkafka {
    use std::net::SocketAddr;

    use ::rdkafka::ClientConfig;
    use ::rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};

    use crate::error::{Error, Result};
    use crate::workload::{Acks, Codec, Workload};

    pub struct Sending {
        producer: FutureProducer,
        topic: String,
    }

    pub struct Sent(DeliveryFuture);

    impl Sending {
        pub fn open(address: SocketAddr, topic: &str, workload: &Workload) -> Result<Self> {
            let acks = match workload.load.acks() {
                Acks::Leader => "1",
                Acks::All => "all",
            };
            let codec = match workload.records.codec {
                Codec::None => "none",
                Codec::Gzip => "gzip",
                Codec::Snappy => "snappy",
                Codec::Lz4 => "lz4",
                Codec::Zstd => "zstd",
            };
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", address.to_string()).set("acks", acks);
            config.set("enable.idempotence", if acks == "all" { "true" } else { "false" });
            config.set("compression.codec", codec).set("linger.ms", "0");
            // What Corelog's library sends at once, and may have waiting.
            config.set("batch.size", "1048576").set("queue.buffering.max.messages", "10000000");
            let producer = config.create().map_err(|error| Error::Peer(error.to_string()))?;
            Ok(Self { producer, topic: topic.to_owned() })
        }

        pub fn take(&self, partition: u32, value: &[u8]) -> std::result::Result<Sent, String> {
            let record = FutureRecord::<(), [u8]>::to(&self.topic).partition(partition.cast_signed());
            let sent = self.producer.send_result(record.payload(value));
            sent.map(Sent).map_err(|(error, _)| error.to_string())
        }
    }

    impl Sent {
        pub async fn acknowledged(self) -> std::result::Result<u64, String> {
            match self.0.await {
                Ok(Ok(delivery)) => Ok(delivery.offset.cast_unsigned()),
                Ok(Err((error, _))) => Err(error.to_string()),
                Err(_) => Err("the producer went away".to_owned()),
            }
        }
    }
}
