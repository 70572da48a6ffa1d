//! Any bytes as a body compressed with each codec: an error or a body within the bound, the client's own and one that
//! cuts off. Any bytes as a body: what was compressed comes back.
#![no_main]

use corelog_client_fuzz::{ALL, BODY_BYTES_MAX, compress, decompress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for compression in ALL {
        if let Ok(body) = decompress(compression, data, BODY_BYTES_MAX) {
            assert!(body.len() <= BODY_BYTES_MAX, "{}", compression.name());
            if let Some(less) = body.len().checked_sub(1) {
                assert!(decompress(compression, data, less).is_err(), "{}", compression.name());
            }
        }
        let compressed = compress(compression, data).expect("every codec is built in");
        let again = decompress(compression, &compressed, data.len());
        assert_eq!(again.as_deref(), Ok(data), "{}", compression.name());
    }
});
