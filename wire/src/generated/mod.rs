// schema-crc32: 0db062d9 flatc: 25.12.19
//! What flatc made of `wire/schema`: run `wire/gen` to make it again, never edit it.

pub(crate) mod common;
pub(crate) mod fetch;
pub(crate) mod groups;
pub(crate) mod produce;
pub(crate) mod session;
pub(crate) mod topics;
