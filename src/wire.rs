//! Conversion of bytes to the model and back: snappy, protobuf, chunks. Pure.

pub mod frame;
pub mod protobuf;
pub mod read;
pub mod snappy;
pub mod write;
pub mod xor;
