//! Any bytes as the header of every kind: the first byte picks kind and direction. What is accepted is written and read
//! back the same.
#![no_main]

use corelog_wire::frame::Kind;
use corelog_wire::message::{Answer, Refusal, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&pick, bytes)) = data.split_first() else { return };
    let kind = Kind::ALL[usize::from(pick >> 1) % Kind::ALL.len()];
    if pick & 1 == 0 {
        if let Ok(request) = Request::decode(kind, bytes) {
            if let Request::Produce(produce) = &request {
                let _ = produce.rows_within(1 << 20);
            }
            assert_eq!(Request::decode(kind, &request.encode()), Ok(request));
        }
    } else {
        let refusal = Refusal::decode(bytes);
        if let Ok(answer) = Answer::decode(kind, bytes) {
            let refused = matches!(answer, Answer::Refused { .. });
            assert_eq!(refusal.map(|refusal| refusal.is_some()), Ok(refused));
            if let Answer::Fetch(fetch) = &answer {
                let _ = fetch.rows_within(1 << 20);
            }
            assert_eq!(Answer::decode(kind, &answer.encode()), Ok(answer));
        }
    }
});
