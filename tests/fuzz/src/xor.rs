//! XOR chunks, and frames around them.

use prometheus_postgresql_adapter::model::sample::Sample;
use prometheus_postgresql_adapter::wire::{frame, xor};

use crate::input::Input;
use crate::seeds::Captures;

pub fn run(data: &[u8]) {
    let decoded = xor::decode(data);
    if let Ok(samples) = &decoded {
        assert!(samples.len() <= xor::SAMPLES_MAX);
        round_trip(samples);
    }
    let mut input = Input(data);
    let mut samples = Vec::new();
    let mut timestamp_ms = 0_i64;
    while !input.is_empty() && samples.len() < 500 {
        timestamp_ms = timestamp_ms.wrapping_add(input.integer());
        samples.push(Sample { timestamp_ms, value: input.float() });
    }
    round_trip(&samples);
    frames(data);
}

fn round_trip(samples: &[Sample]) {
    let mut encoder = xor::Encoder::new();
    samples.iter().for_each(|sample| encoder.push(*sample));
    assert_eq!(encoder.count(), samples.len());
    assert_eq!(xor::decode(&encoder.finish()).as_deref(), Ok(samples));
}

fn frames(mut stream: &[u8]) {
    const MAX: usize = 1 << 20;
    while let Ok(Some(payload)) = frame::read_frame(&mut stream, MAX) {
        let mut again = Vec::new();
        frame::write_frame(payload, &mut again);
        assert_eq!(frame::read_frame(&mut &again[..], MAX), Ok(Some(payload)));
    }
}

pub fn seeds(captures: &Captures) -> Vec<Vec<u8>> {
    let mut seeds = captures.bodies(&["prometheus-3.14/read"], "-stream.response.bin", 10);
    seeds.retain(|seed| seed.len() <= 4096);
    for scale in [0.0, 1.0, 0.1, f64::INFINITY] {
        let mut encoder = xor::Encoder::new();
        for n in 0..8 {
            let timestamp_ms = 1_700_000_000_000 + i64::from(n) * 15_000 + i64::from(n == 5);
            encoder.push(Sample { timestamp_ms, value: f64::from(n / 3) * scale });
        }
        seeds.push(encoder.finish());
    }
    let mut framed = Vec::new();
    frame::write_frame(b"payload", &mut framed);
    seeds.push(framed);
    seeds
}
