//! A client that speaks in bare frames, and so may say what no client would.

use corelog_wire::batch::BatchFields;
use corelog_wire::frame::{Caps, Kind, Prelude};
use corelog_wire::ids::{CorrelationId, TopicPartition};
use corelog_wire::message::{Acks, Answer, HelloRequest, ProduceRequest, ProduceRow, ProducedRow, Request};
use corelog_wire::records::RecordsBuilder;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long anything the broker owes may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What is read from the broker is not distrusted here.
const ANY_SIZE: Caps = Caps { header_bytes_max: u32::MAX, payload_bytes_max: u32::MAX };

/// A connection on which nothing was said yet.
pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A request as it is sent.
pub(crate) fn frame(request: &Request, correlation: u64, payload: &[u8]) -> Vec<u8> {
    let header = request.encode();
    let prelude = Prelude::request(
        request.kind(),
        CorrelationId::new(correlation),
        &header,
        payload.len().try_into().unwrap(),
    );
    [&prelude.encode()[..], &header, payload].concat()
}

/// A Hello as it is sent.
pub(crate) fn hello() -> Vec<u8> {
    let request = Request::Hello(HelloRequest {
        client_name: "hostile".to_owned(),
        client_version: "1".to_owned(),
        version_min: 1,
        version_max: 1,
        features: 0,
        shard: None,
    });
    frame(&request, 1, &[])
}

/// A connection that may be used.
pub(crate) fn greeted(address: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(&hello()).unwrap();
    assert!(matches!(answer(&mut stream), Some(Answer::Hello(_))));
    stream
}

/// The next answer; none if the broker closed the connection.
pub(crate) fn answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut prelude = [0; 32];
    match stream.read_exact(&mut prelude) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return None;
        }
        Err(error) => panic!("no answer and no end within {PATIENCE:?}: {error}"),
    }
    let prelude = Prelude::decode(&prelude, &ANY_SIZE).unwrap();
    let mut header = vec![0; prelude.header_bytes as usize];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; prelude.payload_bytes as usize];
    stream.read_exact(&mut payload).unwrap();
    Some(Answer::decode(prelude.known_kind().unwrap_or(Kind::Fetch), &header).unwrap())
}

/// A Produce of one batch as it is sent.
pub(crate) fn produce_frame(tp: TopicPartition, batch: &[u8]) -> Vec<u8> {
    let rows = vec![ProduceRow { tp, first_byte: 0, bytes: batch.len().try_into().unwrap() }];
    frame(&Request::Produce(ProduceRequest { acks: Acks::All, deadline_ms: 5_000, rows }), 7, batch)
}

/// The row of the next answer, which is one to a Produce.
pub(crate) fn produced_row(stream: &mut TcpStream) -> ProducedRow {
    match answer(stream) {
        Some(Answer::Produce(mut answer)) => answer.rows.remove(0),
        other => panic!("not an answer to a produce: {other:?}"),
    }
}

/// A batch of one record.
pub(crate) fn batch(tp: TopicPartition, value: &[u8]) -> Vec<u8> {
    batch_of(tp, 1, value)
}

/// A batch of so many records with the same value.
pub(crate) fn batch_of(tp: TopicPartition, count: u32, value: &[u8]) -> Vec<u8> {
    let mut records = RecordsBuilder::with_capacity(value.len());
    for delta in 0..count {
        records.push(delta, 0, None, Some(value), &[]).unwrap();
    }
    records.into_batch(&BatchFields::plain(count, 0), tp).to_vec()
}
