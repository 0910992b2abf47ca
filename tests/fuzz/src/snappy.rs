//! Snappy: a body that anybody may send is decompressed within a limit.

use prometheus_postgresql_adapter::wire::snappy;

use crate::seeds::Captures;

/// Bytes that are allowed: more than most inputs declare, so that both sides of the limit are seen.
const MAX: usize = 1 << 16;

pub fn run(data: &[u8]) {
    let fresh = snappy::decompress(data, MAX, Vec::new());
    // What the memory had before makes no difference.
    assert_eq!(fresh, snappy::decompress(data, MAX, vec![0xaa; 100]));
    if let Ok(bytes) = fresh {
        assert!(bytes.len() <= MAX);
        assert_eq!(snappy::decompressed_len(data), Ok(bytes.len()));
        round_trip(&bytes);
    }
    round_trip(data);
}

fn round_trip(bytes: &[u8]) {
    let body = snappy::compress(bytes).expect("it is no 4 GiB");
    assert_eq!(snappy::decompress(&body, bytes.len(), Vec::new()).as_deref(), Ok(bytes));
    if let Some(less) = bytes.len().checked_sub(1) {
        assert!(snappy::decompress(&body, less, Vec::new()).is_err());
    }
}

pub fn seeds(captures: &Captures) -> Vec<Vec<u8>> {
    let mut seeds = captures.bodies(&["prometheus-3.14/cases/bodies"], ".bin", 40);
    let texts: [&[u8]; 4] = [b"", b"a", b"abcdabcdabcdabcdabcd", &[0; 1000]];
    seeds.extend(texts.into_iter().filter_map(|text| snappy::compress(text).ok()));
    seeds.push(vec![0xff, 0xff, 0xff, 0xff, 0x0f, 0x00]);
    seeds
}
