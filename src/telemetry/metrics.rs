//! Everything the adapter counts, as one value.
