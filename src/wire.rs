//! Conversion of bytes to the model and back: snappy, protobuf, chunks. Pure.

mod bits;
pub mod frame;
pub mod histogram_chunk;
pub mod protobuf;
pub mod read;
pub mod snappy;
mod spans;
pub mod write;
pub mod xor;
