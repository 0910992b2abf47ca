use proptest::prelude::*;

use super::*;
use crate::model::sample::STALE_NAN_BITS;

fn encode(samples: &[Sample]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    for &sample in samples {
        encoder.push(sample);
    }
    assert_eq!(encoder.count(), samples.len());
    encoder.finish()
}

/// `bits` is the stream after the count, as written in the description of the format; spaces are for the reader.
#[track_caller]
fn check(samples: &[(i64, u64)], bits: &str) {
    let samples: Vec<_> =
        samples.iter().map(|&(timestamp_ms, bits)| Sample { timestamp_ms, value: f64::from_bits(bits) }).collect();
    let bits: Vec<u8> = bits.bytes().filter(|&bit| bit != b' ').map(|bit| bit - b'0').collect();
    let mut expected = (samples.len() as u16).to_be_bytes().to_vec();
    expected.extend(bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | bit << (7 - at))));
    let encoded = encode(&samples);
    assert_eq!(encoded, expected, "{encoded:02x?} is not {expected:02x?}");
    assert_eq!(decode(&expected), Ok(samples));
}

fn zeros(len: usize) -> String {
    "0".repeat(len)
}

#[test]
fn the_first_two_samples() {
    check(&[], "");
    check(&[(0, 0)], &format!("00000000 {}", zeros(64)));
    // Zigzag: -1 is 1, 64 is 128.
    check(&[(-1, u64::MAX)], &format!("00000001 {}", "1".repeat(64)));
    check(&[(64, 0)], &format!("10000000 00000001 {}", zeros(64)));
    check(&[(i64::MIN, 0)], &format!("{} 00000001 {}", "1".repeat(72), zeros(64)));
    // 15000 = 117 * 128 + 24.
    check(&[(0, 0), (15_000, 0)], &format!("{} 10011000 01110101 0", zeros(72)));
    // A step backwards: 2^64 - 1.
    check(&[(0, 0), (-1, 0)], &format!("{} {} 00000001 0", zeros(72), "1".repeat(72)));
}

#[test]
fn the_widths_of_a_change_of_differences() {
    // After the timestamps 0 and 0, the third timestamp equals its difference of differences.
    let third = |timestamp, bits: &str| check(&[(0, 0), (0, 0), (timestamp, 0)], &format!("{} 0 {bits} 0", zeros(80)));
    third(0, "0");
    third(1, "10 00000000000001");
    third(-1, "10 11111111111111");
    third(8192, "10 10000000000000");
    third(-8191, "10 10000000000001");
    third(8193, "110 00010000000000001");
    third(-8192, "110 11110000000000000");
    third(65_536, "110 10000000000000000");
    third(65_537, "1110 00010000000000000001");
    third(-65_536, "1110 11110000000000000000");
    third(524_288, "1110 10000000000000000000");
    third(-524_287, "1110 10000000000000000001");
    third(524_289, &format!("1111 {} 10000000000000000001", zeros(44)));
    third(-524_288, &format!("1111 {} 10000000000000000000", "1".repeat(44)));
    third(i64::MIN, &format!("1111 1{}", zeros(63)));
}

#[test]
fn the_windows_of_values() {
    // Timestamps stay 0, so each sample from the third on begins with a 0 for its time.
    let second = |value, bits: &str| check(&[(0, 0), (0, value)], &format!("{} {bits}", zeros(80)));
    // 1.0 = 0x3ff << 52: two leading zeros, ten ones.
    second(1.0_f64.to_bits(), "11 00010 001010 1111111111");
    // Leading zeros are cut to 31, and the remaining 33 bits begin with zeros.
    second(1, &format!("11 11111 100001 {}1", zeros(32)));
    // 64 bits wrap to 0.
    second(u64::MAX, &format!("11 00000 000000 {}", "1".repeat(64)));
    check(
        &[(0, 0), (0, 0x0ff0 << 48), (0, 0x0ff0 << 48), (0, 0x0f70 << 48), (0, 0x1f70 << 48)],
        &format!("{} 11 00100 001000 11111111 0 0 0 10 00001000 0 11 00011 000001 1", zeros(80)),
    );
}

#[test]
fn known_bytes() {
    let sample = |timestamp_ms, value| Sample { timestamp_ms, value };
    let samples = [sample(0, 0.0), sample(15_000, 0.0), sample(30_000, 0.0), sample(45_000, 1.0)];
    let bytes = b"\x00\x04\x00\0\0\0\0\0\0\0\0\x98\x75\x0c\x45\x7f\xe0";
    assert_eq!(encode(&samples), bytes);
    assert_eq!(decode(bytes), Ok(samples.to_vec()));
}

/// This chunk was written by Prometheus 2.42 (`promtool tsdb create-blocks-from openmetrics`).
#[test]
fn a_chunk_of_prometheus() {
    let bytes = b"\x00\x09\x80\xc0\xb8\x84\xfa\x62\x00\x00\x00\x00\x00\x00\x00\x00\x98\x75\x31\x15\xff\
          \xc0\x01\xec\x07\x9d\x4b\xb8\x7c\xfe\x60\x39\xad\x91\x68\x72\xbe\x67\xc2\x8c\x5f\x7e\
          \x60\x39\xad\x91\x68\x72\xb3\xe0\x00\x00\x00\x00\x02\xd2\xa8\x10\x01\x00\x00\x00\x00\
          \x00\x00\x3f\xff\xff\xff\xff\xff\xc3\x93\x43\x83\xfc\x04\x99\x99\x99\x99\x99\x99\xa0";
    let samples = [
        (1_700_006_400_000, 0.0),
        (1_700_006_415_000, 0.0),
        (1_700_006_430_000, 1.0),
        (1_700_006_445_003, 1.5),
        (1_700_006_520_003, 12345.678),
        (1_700_007_020_003, f64::from_bits(0x7ff8_0000_0000_0001)),
        (1_700_009_000_003, f64::INFINITY),
        (1_700_009_000_004, -0.1),
        (1_700_009_000_005, -0.1),
    ]
    .map(|(timestamp_ms, value)| Sample { timestamp_ms, value });
    assert_eq!(decode(bytes), Ok(samples.to_vec()));
    assert_eq!(encode(&samples), bytes);
}

#[test]
fn what_no_encoder_writes_is_an_error() {
    let error = |bytes: &[u8]| decode(bytes).unwrap_err();
    assert_eq!(error(b"\0"), DecodeError { sample: 0, what: "no count" });
    assert_eq!(error(b"\0\x01\0"), DecodeError { sample: 0, what: "missing bits" });
    let overlong = [&b"\0\x01"[..], &[0xff; 9], b"\x02"].concat();
    assert_eq!(error(&overlong), DecodeError { sample: 0, what: "a timestamp of more than 64 bits" });
    // 11 11111 111111: 31 leading zeros and 63 bits.
    let wide = b"\0\x02\0\0\0\0\0\0\0\0\0\0\xff\xf8\0\0\0\0\0\0\0\0";
    assert_eq!(error(wide), DecodeError { sample: 1, what: "a window wider than a value" });
}

#[test]
fn a_full_chunk() {
    let samples = vec![Sample { timestamp_ms: 5, value: f64::from_bits(STALE_NAN_BITS) }; SAMPLES_MAX];
    assert_eq!(decode(&encode(&samples)), Ok(samples));
}

#[test]
#[should_panic(expected = "at most 65535")]
fn a_chunk_that_is_full_takes_no_more() {
    encode(&vec![Sample { timestamp_ms: 0, value: 0.0 }; SAMPLES_MAX + 1]);
}

/// Timestamps as in scrapes and arbitrary ones; values that change a little and at random.
fn any_samples() -> impl Strategy<Value = Vec<Sample>> {
    let step = prop_oneof![Just(15_000), 14_990..15_010_i64, -600_000..600_000_i64, any::<i64>()];
    let bits = prop_oneof![Just(STALE_NAN_BITS), (0..1000_u32).prop_map(|n| f64::from(n).to_bits()), any::<u64>()];
    prop::collection::vec((step, bits), 0..200).prop_map(|steps| {
        let mut timestamp_ms = 1_700_000_000_000_i64;
        let sample = |(step, bits)| {
            timestamp_ms = timestamp_ms.wrapping_add(step);
            Sample { timestamp_ms, value: f64::from_bits(bits) }
        };
        steps.into_iter().map(sample).collect()
    })
}

proptest! {
    #[test]
    fn samples_survive(samples in any_samples()) {
        prop_assert_eq!(decode(&encode(&samples)), Ok(samples));
    }

    #[test]
    fn a_truncated_chunk_is_an_error(samples in any_samples(), at in any::<prop::sample::Index>()) {
        let chunk = encode(&samples);
        if !samples.is_empty() {
            prop_assert!(decode(&chunk[..at.index(chunk.len())]).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(chunk in any::<Vec<u8>>()) {
        let _ = decode(&chunk);
    }
}
