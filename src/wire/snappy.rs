//! snappy
