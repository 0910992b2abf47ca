//! PostgreSQL decodes chunks bit for bit as Rust encoded them, and reports a chunk that it cannot decode.

use std::time::Duration;

use prometheus_postgresql_adapter::postgres::timestamp::Timestamp;
use prometheus_postgresql_adapter::storage::chunk::{self, Bits, Chunk, Encoded, Places, SAMPLES_MAX, encode};
use prometheus_postgresql_adapter::storage::names::Names;
use prometheus_postgresql_adapter::storage::row::{TIME_MAX_MS, TIME_MIN_MS, to_postgres_us};
use rig::random::Random;
use tokio_postgres::Error;

use crate::setup::Database;

const STALE: u64 = 0x7ff0_0000_0000_0002;

/// A database with only the functions, and with settings that must not matter.
async fn decoder() -> Database {
    let database = Database::new().await;
    database.run(&names().sql(chunk::SQL)).await;
    database
        .run("SET TimeZone = 'Europe/Berlin'; SET extra_float_digits = 0; SET search_path = ''; SET statement_timeout = '60s'")
        .await;
    database
}

fn names() -> Names {
    Names::new("public", "metrics")
}

/// Returns the samples that the server decodes for a series: microseconds since 2000, and bits.
async fn decoded(database: &Database, row: &Encoded, place: u32) -> Result<Vec<(i64, u64)>, Error> {
    let statement = names().sql("SELECT \"time\", float8send(value) FROM {decode}($1, $2, $3, $4, $5)");
    let (floats, place) = ((!row.floats.is_empty()).then_some(&row.floats), place as i32);
    let rows = database.client.query(&statement, &[&row.times, &row.places.0, &row.data, &floats, &place]).await?;
    let sample = |row: &tokio_postgres::Row| {
        let Timestamp(time_us) = row.get(0);
        (time_us, u64::from_be_bytes(row.get::<_, &[u8]>(1).try_into().unwrap()))
    };
    Ok(rows.iter().map(sample).collect())
}

#[track_caller]
fn assert_corrupt(result: Result<Vec<(i64, u64)>, Error>, what: &str) {
    let error = result.expect_err(what);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{what}: {error}"));
    assert_eq!(error.code().code(), "XX001", "{what}: {error}");
    assert!(error.message().starts_with("corrupt chunk: "), "{what}: {error}");
}

/// Data that looks random and is the same in each run.
struct Noise(Random);

impl Noise {
    /// Returns any float: random bits, or a difficult value.
    fn float(&mut self) -> f64 {
        const HARD: [u64; 8] =
            [STALE, 0x7ff8_0000_0000_0001, 0xfff0_dead_beef_0001, 0x7ff0 << 48, 0xfff0 << 48, 1 << 63, 1, 0x7fef << 48];
        let which = self.0.below(16) as usize;
        f64::from_bits(HARD.get(which).copied().unwrap_or_else(|| self.0.bits()))
    }

    /// Returns values of a kind, 0 to [`KINDS`].
    fn values(&mut self, kind: u64, count: usize) -> Vec<f64> {
        let exponent = self.0.below(16) as i32;
        let (tenth, ten): (f64, f64) =
            (format!("1e-{exponent}").parse().unwrap(), format!("1e{exponent}").parse().unwrap());
        let size = 1 << self.0.below(50);
        let power = self.0.below(200) as i32 - 70;
        let (one, other) = (self.float(), self.float());
        let (mut sum, mut decimals) = (0, 0.0);
        let mut value = || match kind {
            0 => one,
            1 => self.0.below(size) as f64,
            2 => self.0.below(size) as f64 / ten,
            3 => self.0.below(size) as f64 * tenth,
            4 => -(self.0.below(size) as f64) * 2_f64.powi(power),
            5 => {
                sum += self.0.below(1000);
                sum as f64
            }
            6 => {
                sum += self.0.below(20) / 19;
                sum as f64
            }
            7 => {
                sum += 1_000_000 + self.0.below(20) / 19;
                sum as f64 / ten
            }
            8 => {
                sum += self.0.below(1 << 33);
                (sum + (1 << 51)) as f64 * 2_f64.powi(power)
            }
            9 => {
                if self.0.below(2) == 0 {
                    one
                } else {
                    other
                }
            }
            10 => {
                sum += self.0.below(16);
                (1_u64 << 30).wrapping_add(sum * sum) as f64
            }
            11 => (self.0.below(1000) * (size % 5000 + 2) + 77) as f64,
            12 => {
                decimals += self.0.below(size) as f64 / 1e9;
                decimals
            }
            13 => self.0.below(size) as f64 / 1000.0 / 1000.0,
            _ => self.float(),
        };
        let mut values: Vec<_> = (0..count).map(|_| value()).collect();
        // A stale marker at the end, a NaN in the middle, an odd value at the beginning.
        for (at, odd) in [(count - 1, f64::from_bits(STALE)), (count / 2, f64::NAN), (0, other)] {
            if self.0.below(4) == 0 {
                values[at] = odd;
            }
        }
        values
    }

    fn times(&mut self, count: usize) -> Vec<i64> {
        let jitter = [1, 3, 1000, 86_400_000][self.0.below(4) as usize];
        let rare = self.0.below(2) == 0;
        let mut steps: Vec<_> = (0..count as i64)
            .map(|_| 15_000 + if rare && self.0.below(20) > 0 { 0 } else { self.0.below(jitter) as i64 })
            .collect();
        steps[0] = match self.0.below(8) {
            0 => TIME_MIN_MS,
            1 => TIME_MAX_MS - count as i64 * 100_000_000,
            2 => -1_000_000,
            3 => 4_294_967_295_999 - 15_000 * count as i64 / 2,
            _ => 1_700_000_000_000 + self.0.below(1_000_000) as i64,
        };
        steps
            .iter()
            .scan(0, |sum, step| {
                Some({
                    *sum += step;
                    *sum
                })
            })
            .collect()
    }

    fn chunk(&mut self, count: usize) -> Chunk {
        let places = (0..32).filter(|_| self.0.below(3) == 0).chain([32]).collect::<Vec<_>>();
        let places = if places.len() > 1 { &places[..places.len() - 1] } else { &[31][..] };
        let series = places
            .iter()
            .map(|place| {
                let kind = self.0.below(KINDS);
                (*place, self.values(kind, count))
            })
            .collect();
        Chunk { bucket: 0, times_ms: self.times(count), series }
    }
}

const KINDS: u64 = 15;

async fn check(database: &Database, chunk: &Chunk) {
    let rows = encode(chunk);
    for (place, values) in &chunk.series {
        let encoded = rows.iter().find(|row| row.places.contains(*place)).unwrap();
        let expected: Vec<_> = chunk
            .times_ms
            .iter()
            .zip(values)
            .map(|(time_ms, value)| (to_postgres_us(*time_ms), value.to_bits()))
            .collect();
        let found = decoded(database, encoded, *place).await.unwrap_or_else(|error| panic!("{error:?} of {chunk:?}"));
        if let Some(at) = (0..expected.len()).find(|at| found.get(*at) != expected.get(*at)) {
            panic!("sample {at} of place {place} is {:x?} and not {:x?}: {values:?}", found.get(at), expected[at]);
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[tokio::test]
async fn postgresql_decodes_every_bit() {
    let database = decoder().await;
    for seed in 0..120 {
        let mut noise = Noise(Random::new(seed));
        let count = match seed % 6 {
            0 => 1 + noise.0.below(5) as usize,
            1 => 126 + noise.0.below(6) as usize,
            _ => 1 + noise.0.below(600) as usize,
        };
        check(&database, &noise.chunk(count)).await;
    }
    let absent = encode(&Chunk { bucket: 0, times_ms: vec![1], series: vec![(3, vec![1.0])] });
    assert_eq!(decoded(&database, &absent[0], 4).await.unwrap(), []);
}

#[tokio::test]
async fn postgresql_decodes_the_longest_chunk() {
    let database = decoder().await;
    let mut noise = Noise(Random::new(1));
    let series =
        (0..7).map(|place| (place, noise.values([5, 6, 8, 2, 11, 12, 14][place as usize], SAMPLES_MAX))).collect();
    check(&database, &Chunk { bucket: 0, times_ms: noise.times(SAMPLES_MAX), series }).await;
}

#[tokio::test]
async fn every_scale_is_decoded() {
    let database = decoder().await;
    let values: Vec<Vec<f64>> = (0..16)
        .map(|e| (0..40).map(|n| f64::from(n * n) / format!("1e{e}").parse::<f64>().unwrap()).collect())
        .chain((1..10).map(|e| (0..40).map(|n| f64::from(n * n) * format!("1e-{e}").parse::<f64>().unwrap()).collect()))
        .chain((-62..=124).map(|k| {
            (0..5)
                .map(|n| {
                    (9_007_199_254_740_991_f64 - 2.0 * f64::from(0x9e37_79b9_u32.wrapping_mul(n))) * 2_f64.powi(-k)
                })
                .collect()
        }))
        .chain((1..10).map(|e| {
            let step = |n: u32| f64::from(n * n) / 10_f64.powi(e);
            (0..40)
                .scan(0.1, |sum, n| {
                    Some({
                        *sum += step(n);
                        *sum
                    })
                })
                .collect()
        }))
        .collect();
    let mut scales = std::collections::BTreeSet::new();
    for values in values {
        let chunk = Chunk { bucket: 0, times_ms: (0..values.len() as i64).collect(), series: vec![(0, values)] };
        // The first ten bits contain the scale and its parameter.
        let encoded = encode(&chunk).swap_remove(0);
        scales.insert(
            u16::from_be_bytes([encoded.data.bytes[0], encoded.data.bytes[1]])
                >> if encoded.data.bytes[0] >> 6 == 2 { 6 } else { 10 },
        );
        check(&database, &chunk).await;
    }
    println!("{} scales", scales.len());
    assert!(scales.len() > 199, "{scales:?}");
}

#[tokio::test]
async fn postgresql_tells_what_is_corrupt() {
    let database = decoder().await;
    let mut noise = Noise(Random::new(7));
    let mut values = noise.values(2, 20);
    values[7] = f64::NAN;
    let chunk = Chunk { bucket: 0, times_ms: noise.times(20), series: vec![(2, values), (9, noise.values(14, 20))] };
    let rows = encode(&chunk);
    let [good] = &rows[..] else { panic!("{} rows", rows.len()) };
    check(&database, &chunk).await;
    let start = usize::from(u16::from_be_bytes([good.data.bytes[0], good.data.bytes[1]]));
    let flip = |bits: &Bits, at: usize| {
        let mut flipped = bits.clone();
        flipped.bytes[at / 8] ^= 0x80 >> (at % 8);
        flipped
    };
    for at in 0..good.times.len {
        let bad = Encoded { times: flip(&good.times, at), ..good.clone() };
        assert_corrupt(decoded(&database, &bad, 2).await, &format!("bit {at} of the times"));
    }
    for at in 0..good.data.len {
        let bad = Encoded { data: flip(&good.data, at), ..good.clone() };
        let place = if at < start { 2 } else { 9 };
        assert_corrupt(decoded(&database, &bad, place).await, &format!("bit {at} of the data"));
    }
    let cut = |len: usize| Bits { len, bytes: good.data.bytes[..len.div_ceil(8)].to_vec() };
    for (what, bad) in [
        ("cut data", Encoded { data: cut(start + 7), ..good.clone() }),
        ("no data", Encoded { data: Bits::default(), ..good.clone() }),
        ("no times", Encoded { times: Bits::default(), ..good.clone() }),
        ("no floats", Encoded { floats: vec![], ..good.clone() }),
        ("too few places", Encoded { places: Places(1 << 9), ..good.clone() }),
        ("too many places", Encoded { places: good.places.with(31), ..good.clone() }),
        ("another place", Encoded { places: Places(1 << 2 | 1 << 10), ..good.clone() }),
    ] {
        let place = bad.places.iter().find(|place| *place > 2).unwrap();
        assert_corrupt(decoded(&database, &bad, place).await, what);
    }
}

/// Data with a valid check but without a meaning is decoded, or refused, in bounded time.
#[tokio::test]
async fn garbage_behind_a_check_ends() {
    let database = decoder().await;
    let mut noise = Noise(Random::new(3));
    let good = encode(&noise.chunk(50));
    for _ in 0..300 {
        let mut data: Vec<u8> = (0..1 + noise.0.below(60)).map(|_| (noise.0.bits() & noise.0.bits()) as u8).collect();
        let ones: u32 = data.iter().map(|byte| byte.count_ones()).sum();
        data.push(ones as u8);
        let data = Bits { len: data.len() * 8, bytes: data };
        let row = Encoded { times: good[0].times.clone(), places: Places(1), data, ..Encoded::default() };
        let decoding = tokio::time::timeout(Duration::from_secs(20), decoded(&database, &row, 0));
        let _ = decoding.await.expect("decoding does not end");
    }
}
