//! xor
