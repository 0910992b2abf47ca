use proptest::prelude::*;

use super::*;
use crate::wire::read::messages::{QueryResult, ReadResponse};

fn float(timestamp_ms: i64, value: f64) -> Point {
    Point { timestamp_ms, value: Value::Float(value) }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_stored(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
}

#[test]
fn a_known_answer() {
    let series = time_series(&labels(&[("a", "b")]), [float(1234, 1.5)]).unwrap();
    let response = ReadResponse { results: vec![QueryResult { timeseries: vec![series] }, QueryResult::default()] };
    let bytes = b"\x0a\x18\x0a\x16\x0a\x06\x0a\x01a\x12\x01b\x12\x0c\x09\0\0\0\0\0\0\xf8\x3f\x10\xd2\x09\x0a\x00";
    assert_eq!(response.encode_to_vec(), bytes);
}

#[test]
fn a_known_frame() {
    let mut encoder = SeriesEncoder::new(&labels(&[("a", "b")]), 1);
    encoder.push(float(5, 0.0)).unwrap();
    let mut out = Vec::new();
    encoder.write_frame(&mut out);
    let payload = [
        &b"\x0a\x1d"[..],                      // chunked_series, 29 bytes
        b"\x0a\x06\x0a\x01a\x12\x01b",         // a="b"
        b"\x12\x13\x08\x05\x10\x05\x18\x01",   // a chunk from 5 to 5, XOR
        b"\x22\x0b\0\x01\x0a\0\0\0\0\0\0\0\0", // its data
        b"\x10\x01",                           // query_index
    ]
    .concat();
    assert_eq!(frame::read_frame(&mut &out[..], 1 << 20), Ok(Some(&payload[..])));
}

#[test]
fn a_series_goes_on_after_a_frame() {
    let labels = labels(&[("__name__", "up")]);
    let mut encoder = SeriesEncoder::new(&labels, 0);
    let mut out = Vec::new();
    for timestamp_ms in 0..150 {
        encoder.push(float(timestamp_ms, 0.0)).unwrap();
        if timestamp_ms == 129 {
            encoder.write_frame(&mut out);
        }
    }
    assert!(!encoder.is_full());
    encoder.write_frame(&mut out);
    let mut stream = &out[..];
    let mut times = Vec::new();
    while let Some(payload) = frame::read_frame(&mut stream, 1 << 20).unwrap() {
        let response = ChunkedReadResponse::decode(payload).unwrap();
        assert_eq!(response.chunked_series.len(), 1);
        let series = &response.chunked_series[0];
        assert_eq!(series.labels, label_messages(&labels));
        times.push(series.chunks.iter().map(|chunk| (chunk.min_time_ms, chunk.max_time_ms)).collect::<Vec<_>>());
    }
    assert_eq!(times, [vec![(0, 119), (120, 129)], vec![(130, 149)]]);
}

proptest! {
    #[test]
    fn chunks_hold_every_sample_and_its_time(bits in prop::collection::vec(any::<u64>(), 0..500)) {
        let samples: Vec<_> =
            (0..).zip(bits).map(|(at, bits)| Sample { timestamp_ms: at * 15_000, value: f64::from_bits(bits) }).collect();
        let series = chunked_series(&Labels::default(), samples.iter().map(|sample| float(sample.timestamp_ms, sample.value))).unwrap();
        prop_assert_eq!(series.chunks.len(), samples.len().div_ceil(CHUNK_SAMPLES));
        for (chunk, expected) in series.chunks.iter().zip(samples.chunks(CHUNK_SAMPLES)) {
            prop_assert_eq!(xor::decode(&chunk.data).unwrap(), expected);
            prop_assert_eq!(chunk.min_time_ms, expected[0].timestamp_ms);
            prop_assert_eq!(chunk.max_time_ms, expected[expected.len() - 1].timestamp_ms);
        }
    }

}
