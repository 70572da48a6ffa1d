//! Any 32 bytes as a prelude, before and after Hello. What is accepted keeps the caps and is written back the same.
#![no_main]

use corelog_wire::frame::{Caps, PRELUDE_BYTES, Prelude, Remedy, check_header};
use libfuzzer_sys::fuzz_target;

const CAPS: Caps = Caps { header_bytes_max: 1 << 20, payload_bytes_max: 16 << 20 };

fuzz_target!(|data: &[u8]| {
    let Some((prelude, header)) = data.split_first_chunk::<PRELUDE_BYTES>() else { return };
    read(prelude, header);
    // A fuzzer rarely finds a checksum; give it the right one, so that what is behind it is reached.
    let mut prelude = *prelude;
    let crc = crc32fast::hash(&prelude[..PRELUDE_BYTES - 4]);
    prelude[PRELUDE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    read(&prelude, header);
});

fn read(bytes: &[u8; PRELUDE_BYTES], header: &[u8]) {
    for caps in [Caps::BEFORE_HELLO, CAPS] {
        match Prelude::decode(bytes, &caps) {
            Ok(prelude) => {
                assert!(prelude.header_bytes <= caps.header_bytes_max);
                assert!(prelude.payload_bytes <= caps.payload_bytes_max);
                assert_eq!(prelude.encode(), *bytes);
                if let Err(error) = prelude.known_kind() {
                    assert!(matches!(error.remedy(), Remedy::SkipAndRefuse { .. }));
                }
                let _ = check_header(&prelude, header);
            }
            Err(error) => assert!(!matches!(error.remedy(), Remedy::SkipAndRefuse { .. })),
        }
    }
}
