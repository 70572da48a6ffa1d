//! Any bytes as an uncompressed body; the first byte is the number of records. What is read is written and read back the
//! same.
#![no_main]

use bytes::Bytes;
use corelog_wire::records::{HeaderRef, Record, RecordHeader, Records, RecordsBuilder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&count, body)) = data.split_first() else { return };
    let read: Vec<_> = Records::new(Bytes::copy_from_slice(body), count.into()).collect();
    let whole = read.iter().all(Result::is_ok);
    assert!(!whole || read.len() == usize::from(count));
    assert!(read.iter().rev().skip(1).all(Result::is_ok), "something after an error");
    let records: Vec<Record> = read.into_iter().flatten().collect();

    let mut builder = RecordsBuilder::default();
    for record in &records {
        let headers: Vec<RecordHeader> = record.headers.iter().collect();
        assert_eq!(headers.len(), record.headers.len());
        let headers: Vec<HeaderRef<'_>> = headers.iter().map(|h| (&h.name[..], h.value.as_deref())).collect();
        let pushed = builder.push(
            record.offset_delta,
            record.timestamp_delta,
            record.key.as_deref(),
            record.value.as_deref(),
            &headers,
        );
        assert_eq!(pushed, Ok(()));
    }
    let again = Bytes::copy_from_slice(builder.body());
    // A varint may have been longer than need be, so the bytes may differ, but no record does.
    assert!(again.len() <= body.len());
    let read: Vec<Record> = Records::new(again, builder.record_count()).flatten().collect();
    assert_eq!(read.len(), records.len());
    for (read, record) in read.iter().zip(&records) {
        assert_eq!((read.offset_delta, read.timestamp_delta), (record.offset_delta, record.timestamp_delta));
        assert_eq!((&read.key, &read.value), (&record.key, &record.value));
        assert!(read.headers.iter().eq(record.headers.iter()));
    }
});
