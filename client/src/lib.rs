//! The Corelog client library: producers, readers, consumers of groups and administration.
//!
//! ```no_run
//! # #[cfg(feature = "tokio")]
//! # async fn example() -> corelog_client::Result<()> {
//! use corelog_client::{Client, NewTopic, Record, Start};
//!
//! let client = Client::connect("localhost:9640").await?;
//! client.admin().ensure_topic("orders", NewTopic::partitions(6)).await?;
//!
//! let producer = client.producer("orders").build()?;
//! let delivery = producer.send(Record::new("two of them").key("customer 7")).await?; // acknowledged: it is on disk
//! println!("{}/{} at {:?}", delivery.topic, delivery.partition, delivery.offset);
//! producer.close().await?;
//!
//! let reader = client.topic_reader("orders").from(Start::Earliest).build()?;
//! while let Some(batch) = reader.next().await? {
//!     for record in &batch {
//!         println!("{}: {:?}", record.offset(), record.value());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Every decision is in [`core`], which knows no runtime; [`driver`] puts it on tokio (the feature `tokio`, on by
//! default) or glommio (the feature `glommio`). Handles are `Clone`, `Send` and `Sync` on both. Every wait ends, in an
//! answer or at its deadline; the only exception is waiting for records that nobody has written yet.

#[cfg(any(feature = "tokio", feature = "glommio"))]
mod admin;
#[cfg(any(feature = "tokio", feature = "glommio"))]
mod by_key;
#[cfg(any(feature = "tokio", feature = "glommio"))]
mod client;
pub mod codec;
#[cfg(any(feature = "tokio", feature = "glommio"))]
mod consumer;
pub mod core;
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub mod driver;
mod error;
#[cfg(any(feature = "tokio", feature = "glommio"))]
mod groups;
#[cfg(any(feature = "tokio", feature = "glommio"))]
mod producer;
#[cfg(any(feature = "tokio", feature = "glommio"))]
mod reader;

#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use self::admin::{Admin, ListedOffset, NewTopic, TopicChange, TopicDescription};
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use self::by_key::ProcessError;
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use self::client::{Client, ClientBuilder};
pub use self::codec::BODY_BYTES_MAX;
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use self::consumer::{Consumer, ConsumerBuilder};
pub use self::core::{
    Batch, BatchRecords, CommitMode, Partitioner, Progress, Record, RecordRef, RecordView, Share, Start,
    Taken, Topic, partition_of_key,
};
pub use self::error::{Error, ErrorKind, Result};
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use self::groups::{GroupDescription, ResetPlan, ResetRow, ResetTo};
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use self::producer::{Delivery, Producer, ProducerBuilder, Ticket};
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use self::reader::{ConsumedRecord, Reader, ReaderBuilder, RecordStream};
pub use corelog_wire::batch::Compression;
pub use corelog_wire::error::ErrorCode;
pub use corelog_wire::ids::MemberId;
pub use corelog_wire::keys::TAG_HEADER;
pub use corelog_wire::message::{
    Acks, Assignor, GroupLag, GroupPartition, ListedGroup, MemberDescription, MemberWishes,
    PartitionDescription, TopicSetting,
};
pub use corelog_wire::records::RecordHeader;
