//! PostgreSQL decodes chunks of histograms bit for bit as Rust encoded them, and shows them in a view.

use std::time::Duration;

use prometheus_postgresql_adapter::model::histogram::{COUNT_MAX, CUSTOM_BUCKETS, Histogram, Numbers};
use prometheus_postgresql_adapter::model::sample::{STALE_NAN_BITS, Value};
use prometheus_postgresql_adapter::postgres::timestamp::Timestamp;
use prometheus_postgresql_adapter::storage::chunk::histograms::{self, TimedValue, encode};
use prometheus_postgresql_adapter::storage::chunk::{self, Bits, Encoded, Places};
use prometheus_postgresql_adapter::storage::names::Names;
use prometheus_postgresql_adapter::storage::row::{TIME_MAX_MS, TIME_MIN_MS, to_postgres_us};
use rig::random::Random;
use tokio_postgres::Error;

use crate::setup::Database;

const STALE: f64 = f64::from_bits(STALE_NAN_BITS);

fn names() -> Names {
    Names::new("public", "metrics")
}

/// A database with only the functions, and with settings that must not matter.
async fn decoder() -> Database {
    let database = Database::new().await;
    database.run(&names().sql(chunk::SQL)).await;
    database.run(&names().sql(histograms::SQL)).await;
    database
        .run("SET TimeZone = 'Europe/Berlin'; SET extra_float_digits = 0; SET search_path = ''; SET statement_timeout = '60s'")
        .await;
    database
}

/// Returns the histograms that the server decodes: microseconds since 2000, and the bits of their numbers.
async fn decoded(database: &Database, row: &Encoded) -> Result<Vec<(i64, Vec<u64>)>, Error> {
    let statement = names().sql("SELECT \"time\", numbers FROM {decode_histograms}($1, $2, $3, $4)");
    let floats = (!row.floats.is_empty()).then_some(&row.floats);
    let rows = database.client.query(&statement, &[&row.times, &row.places.0, &row.data, &floats]).await?;
    let histogram = |row: &tokio_postgres::Row| {
        let Timestamp(time_us) = row.get(0);
        (time_us, row.get::<_, Vec<f64>>(1).iter().map(|number| number.to_bits()).collect())
    };
    Ok(rows.iter().map(histogram).collect())
}

/// Encodes values, and compares what the server decodes. Returns the rows.
async fn check(database: &Database, series_id: i64, values: &[TimedValue]) -> Vec<Encoded> {
    let rows = encode(series_id, values, 150);
    let mut found = Vec::new();
    for row in &rows {
        found.extend(decoded(database, row).await.unwrap_or_else(|error| panic!("{error:?} of {values:?}")));
    }
    let expected = values.iter().filter_map(|(time_ms, value)| match value {
        Value::Float(_) => None,
        Value::Histogram(numbers) => {
            let bits = numbers.as_slice().iter().map(|number| number.to_bits()).collect();
            Some((to_postgres_us(*time_ms), bits))
        }
    });
    let expected: Vec<(i64, Vec<u64>)> = expected.collect();
    for (found, expected) in found.iter().zip(&expected) {
        let floats = |bits: &[u64]| bits.iter().map(|bits| f64::from_bits(*bits)).collect::<Vec<_>>();
        assert_eq!(found, expected, "{:?} and not {:?}", floats(&found.1), floats(&expected.1));
    }
    assert_eq!(found.len(), expected.len());
    rows
}

/// Data that looks random and is the same in each run.
struct Noise(Random);

impl Noise {
    /// Returns any float but a stale marker: random bits, or a difficult value.
    fn float(&mut self) -> f64 {
        const HARD: [u64; 7] =
            [0x7ff8_0000_0000_0001, 0xfff0_dead_beef_0001, 0x7ff0 << 48, 0xfff0 << 48, 1 << 63, 1, 0x7fef << 48];
        let which = self.0.below(14) as usize;
        f64::from_bits(HARD.get(which).copied().unwrap_or_else(|| self.0.bits()))
    }

    /// Returns a histogram without counts.
    fn head(&mut self) -> Histogram {
        let schema = if self.0.below(4) == 0 { CUSTOM_BUCKETS } else { self.0.between(-4, 8) as i8 };
        let is_custom = schema == CUSTOM_BUCKETS;
        let thresholds = [0.0, 2_f64.powi(-128), 1.0, 0.001, f64::MIN_POSITIVE, f64::from_bits(1), 2_f64.powi(1023)];
        let bound = |n: u64| if self.0.below(9) == 0 { self.float() } else { n as f64 / 1000.0 };
        Histogram {
            schema,
            bounds: (0..10).map(bound).filter(|_| is_custom).collect(),
            is_float: self.0.below(3) == 0,
            zero_threshold: if is_custom { 0.0 } else { thresholds[self.0.index(thresholds.len())] },
            ..Histogram::default()
        }
    }

    /// Adds observations, as a counter does.
    fn observe(&mut self, histogram: &mut Histogram, spread: u64) {
        for _ in 0..self.0.below(20) {
            let index = if self.0.below(300) == 0 {
                [i32::MIN, -1, 0, i32::MAX][self.0.index(4)]
            } else {
                (self.0.below(spread) * self.0.below(spread) / spread) as i32 - 5
            };
            let is_negative = histogram.schema != CUSTOM_BUCKETS && self.0.below(10) == 0;
            let buckets = if is_negative { &mut histogram.negative } else { &mut histogram.positive };
            let more = if histogram.is_float { self.0.below(1000) as f64 / 7.0 + 0.5 } else { 1.0 };
            match buckets.binary_search_by_key(&index, |(index, _)| *index) {
                Ok(at) => buckets[at].1 += more,
                Err(at) => buckets.insert(at, (index, more)),
            }
            histogram.count += more;
            histogram.sum += self.0.below(1 << 30) as f64 / 1e9;
        }
        if self.0.below(20) == 0 {
            histogram.zero_count += 1.0;
            histogram.count += 1.0 + self.0.below(2) as f64;
        }
        histogram.reset_hint = if self.0.below(9) == 0 { self.0.below(4) as u8 } else { 2 };
    }

    fn values(&mut self, count: usize) -> Vec<Value> {
        let mut histogram = self.head();
        let (first, spread, rare) = (histogram.clone(), 4 + self.0.below(30), self.0.below(4) == 0);
        let mut value = |_| {
            if !rare || self.0.below(20) == 0 {
                self.observe(&mut histogram, spread);
            }
            match self.0.below(60) {
                0 => histogram = first.clone(),
                1 => histogram = self.head(),
                2 => histogram.start_ms = self.0.bits().cast_signed() >> self.0.below(50),
                3 => {
                    let list = (0..self.0.below(9)).map(|_| self.float()).collect();
                    return Value::Histogram(Numbers::from_stored(list));
                }
                4 | 5 => return Value::Float(STALE),
                _ => {}
            }
            let mut shown = histogram.clone();
            match self.0.below(60) {
                0 => shown.sum = self.float(),
                1 => shown.count = self.float(),
                2 if shown.is_float => shown.zero_count = self.float(),
                3 => shown.count = (COUNT_MAX - 1) as f64,
                _ => {}
            }
            Value::Histogram(shown.to_numbers())
        };
        (0..count).map(&mut value).collect()
    }

    fn series(&mut self, count: usize) -> Vec<TimedValue> {
        let jitter = [1, 3, 1000, 86_400_000][self.0.index(4)];
        let mut time_ms = match self.0.below(6) {
            0 => TIME_MIN_MS,
            1 => TIME_MAX_MS - count as i64 * 100_000_000,
            2 => -1_000_000,
            _ => 1_700_000_000_000 + self.0.below(1_000_000) as i64,
        };
        let mut at = |value| {
            time_ms += 15_000 + self.0.below(jitter) as i64;
            (time_ms, value)
        };
        let values = Self(Random::new(count as u64)).values(count);
        values.into_iter().map(&mut at).collect()
    }
}

#[tokio::test]
async fn postgresql_decodes_every_bit() {
    let database = decoder().await;
    let mut kinds = [0; 3];
    for seed in 0..100 {
        let mut noise = Noise(Random::new(seed));
        let count = 1 + noise.0.below(if seed % 4 == 0 { 5 } else { 300 }) as usize;
        for row in check(&database, -1 - seed as i64, &noise.series(count)).await {
            kinds[usize::from(row.data.bytes[0] >> 6)] += 1;
        }
    }
    assert!(kinds.iter().all(|count| *count > 50), "{kinds:?}");
}

/// Each power of two that may be the zero threshold.
#[tokio::test]
async fn postgresql_decodes_every_threshold() {
    let database = decoder().await;
    let values: Vec<_> = (0..2048_u64).step_by(11).chain([1, 2046, 2047]).collect();
    for exponent in values {
        let zero_threshold = f64::from_bits(exponent << 52);
        let numbers = Histogram { zero_threshold, ..Histogram::default() }.to_numbers();
        check(&database, -1, &[(0, Value::Histogram(numbers))]).await;
    }
}

#[tokio::test]
async fn postgresql_tells_what_is_corrupt() {
    let database = decoder().await;
    let mut noise = Noise(Random::new(5));
    let values: Vec<_> = (0..20)
        .map(|_| {
            let mut histogram = Histogram { is_float: true, ..Histogram::default() };
            noise.observe(&mut histogram, 5);
            Value::Histogram(histogram.to_numbers())
        })
        .collect();
    let timed: Vec<_> = (0..).map(|n| n * 15_000).zip(values).collect();
    let good = check(&database, -30, &timed).await.swap_remove(0);
    let assert_corrupt = async |row: Encoded, what: &str| {
        let error = decoded(&database, &row).await.expect_err(what);
        let error = error.as_db_error().unwrap_or_else(|| panic!("{what}: {error}"));
        assert_eq!(error.code().code(), "XX001", "{what}: {error}");
        assert!(error.message().starts_with("corrupt chunk: "), "{what}: {error}");
    };
    let flip = |bits: &Bits, at: usize| {
        let mut flipped = bits.clone();
        flipped.bytes[at / 8] ^= 0x80 >> (at % 8);
        flipped
    };
    for at in 0..good.times.len {
        assert_corrupt(Encoded { times: flip(&good.times, at), ..good.clone() }, &format!("bit {at} of the times"))
            .await;
    }
    for at in 0..good.data.len {
        assert_corrupt(Encoded { data: flip(&good.data, at), ..good.clone() }, &format!("bit {at} of the data")).await;
    }
    assert!(!good.floats.is_empty());
    for (what, bad) in [
        ("no data", Encoded { data: Bits::default(), ..good.clone() }),
        ("no times", Encoded { times: Bits::default(), ..good.clone() }),
        ("no floats", Encoded { floats: vec![], ..good.clone() }),
        ("no place", Encoded { places: Places(0), ..good.clone() }),
        ("another place", Encoded { places: Places(1 << 31), ..good.clone() }),
        ("two places", Encoded { places: good.places.with(31), ..good.clone() }),
    ] {
        assert_corrupt(bad, what).await;
    }
}

/// Data with a valid check but without a meaning is decoded, or refused, in bounded time.
#[tokio::test]
async fn garbage_behind_a_check_ends() {
    let database = decoder().await;
    let mut noise = Noise(Random::new(3));
    let good = encode(-32, &noise.series(50), 1000);
    for _ in 0..300 {
        let mut data: Vec<u8> = (0..1 + noise.0.below(60)).map(|_| (noise.0.bits() & noise.0.bits()) as u8).collect();
        let ones: u32 = data.iter().map(|byte| byte.count_ones()).sum();
        data.push(ones as u8);
        let data = Bits { len: data.len() * 8, bytes: data };
        let row = Encoded { times: good[0].times.clone(), places: Places(1), data, ..Encoded::default() };
        let decoding = tokio::time::timeout(Duration::from_secs(20), decoded(&database, &row));
        let _ = decoding.await.expect("decoding does not end");
    }
}

/// Returns the buckets that the server reads in the numbers of a histogram.
async fn buckets(database: &Database, histogram: &Histogram) -> Vec<(f64, f64, f64)> {
    let statement = names().sql("SELECT lower, upper, count FROM {histogram_buckets}($1)");
    let rows = database.client.query(&statement, &[&histogram.to_numbers().as_slice()]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test]
async fn buckets_have_the_bounds_of_prometheus() {
    const INFINITY: f64 = f64::INFINITY;
    let database = decoder().await;
    let all = Histogram {
        zero_threshold: 0.125,
        zero_count: 7.0,
        positive: vec![(-1, 1.0), (0, 2.0), (3, 3.0), (1024, 4.0), (1025, 5.0)],
        negative: vec![(1, 6.0), (2, 8.0), (9, 9.0)],
        ..Histogram::default()
    };
    let expected = [
        (-512.0, -256.0, 9.0),
        (-4.0, -2.0, 8.0),
        (-2.0, -1.0, 6.0),
        (-0.125, 0.125, 7.0),
        (0.25, 0.5, 1.0),
        (0.5, 1.0, 2.0),
        (4.0, 8.0, 3.0),
        (2_f64.powi(1023), f64::MAX, 4.0),
        (f64::MAX, INFINITY, 5.0),
    ];
    assert_eq!(buckets(&database, &all).await, expected);
    assert_eq!(buckets(&database, &Histogram::default()).await, []);
    for schema in -4..=8_i8 {
        let last = 1024_f64 * 2_f64.powi(schema.into());
        let indices = [-9999999, -1074, -500, -9, -8, -3, -1, 0, 1, 2, 5, 77, 255, 256, 1000, last as i32, i32::MAX];
        let mut positive: Vec<_> = indices.map(|index| (index, 1.0)).to_vec();
        positive.sort_by_key(|(index, _)| *index);
        positive.dedup();
        let bound = |index: i64| match index as f64 * 2_f64.powi((-schema).into()) {
            1024.0 => f64::MAX,
            exponent => exponent.exp2(),
        };
        let found = buckets(&database, &Histogram { schema, positive: positive.clone(), ..Histogram::default() }).await;
        assert_eq!(found.len(), positive.len());
        for ((lower, upper, _), (index, _)) in found.into_iter().zip(positive) {
            for (found, expected) in [(lower, bound(i64::from(index) - 1)), (upper, bound(index.into()))] {
                let is_near = found == expected || (found - expected).abs() <= 1e-14 * expected;
                assert!(is_near, "bucket {index} of schema {schema}: {found} and not {expected}");
            }
        }
    }
    let custom = Histogram {
        schema: CUSTOM_BUCKETS,
        bounds: vec![0.5, 1.0, 2.5],
        positive: vec![(0, 1.0), (1, 2.0), (3, 4.0)],
        ..Histogram::default()
    };
    let expected = [(-INFINITY, 0.5, 1.0), (0.5, 1.0, 2.0), (2.5, INFINITY, 4.0)];
    assert_eq!(buckets(&database, &custom).await, expected);
}

const TABLES: &str = "CREATE TABLE {series} (id bigint PRIMARY KEY, name text, labels jsonb); \
     CREATE TABLE {hot} (\"time\" timestamptz, series bigint[], value float8[], sender integer); \
     CREATE TABLE {sealed} (bucket bigint, first timestamptz, last timestamptz, places integer, length smallint, \
     times bit varying, data bit varying, floats float8[]); \
     CREATE TABLE {samples} (\"time\" timestamptz, series_id bigint, value float8, histogram float8[]); \
     INSERT INTO {series} VALUES (-40, 'latency', jsonb_build_object('job', 'a')), (-3, 'size', jsonb_build_object()), (7, 'up', jsonb_build_object())";

/// What the view shows of three histograms, one of them hot, beside rows that are no histograms.
#[tokio::test]
async fn the_view_shows_sealed_and_hot_histograms() {
    let sealed = Histogram {
        schema: 0,
        reset_hint: 2,
        start_ms: 1_600_000_000_000,
        zero_threshold: 0.25,
        zero_count: 1.0,
        count: 6.0,
        sum: 7.5,
        positive: vec![(1, 2.0), (2, 3.0)],
        ..Histogram::default()
    };
    let hot = Histogram {
        schema: CUSTOM_BUCKETS,
        reset_hint: 3,
        is_float: true,
        count: 0.5,
        sum: 4.0,
        bounds: vec![8.0],
        positive: vec![(0, 0.5)],
        ..Histogram::default()
    };
    for is_hypertable in [false, true] {
        let database = decoder().await;
        database.run(&names().sql(TABLES)).await;
        let layout = if is_hypertable {
            include_str!("../../src/storage/histograms_hypertable.sql")
        } else {
            include_str!("../../src/storage/histograms_chunks.sql")
        };
        database.run(&names().sql(layout)).await;
        database.run(&names().sql(include_str!("../../src/storage/histograms_view.sql"))).await;
        let numbers = sealed.to_numbers();
        if is_hypertable {
            let insert = names()
                .sql("INSERT INTO {samples} VALUES (to_timestamp(15), -40, 'NaN', $1), (to_timestamp(15), 7, 1, NULL)");
            database.client.execute(&insert, &[&numbers.as_slice()]).await.unwrap();
        } else {
            let values = [(15_000, Value::Histogram(numbers)), (30_000, Value::Float(STALE))];
            let row = encode(-40, &values, 1000).swap_remove(0);
            let insert =
                names().sql("INSERT INTO {sealed} VALUES ($1, to_timestamp(15), to_timestamp(30), $2, 2, $3, $4, $5)");
            let floats = Some(row.floats);
            database
                .client
                .execute(&insert, &[&row.bucket, &row.places.0, &row.times, &row.data, &floats])
                .await
                .unwrap();
        }
        let insert = names().sql(
            "INSERT INTO {hot} VALUES (to_timestamp(45), ARRAY[-3], ARRAY[$1::float8[]], 1), \
             (to_timestamp(45), ARRAY[-3, 7], ARRAY['NaN', 'NaN']::float8[], -1), (to_timestamp(45), ARRAY[7], ARRAY[1], 1)",
        );
        database.client.execute(&insert, &[&hot.to_numbers().as_slice()]).await.unwrap();
        let shown = database
            .column::<String>(&names().sql(
                "SELECT concat_ws(' ', extract(epoch FROM \"time\")::integer, name, labels, count, sum, schema, zero_threshold, \
                 zero_count, to_jsonb(buckets), reset_hint, extract(epoch FROM start_time)::bigint) FROM {histograms} ORDER BY 1",
            ))
            .await;
        let expected = [
            "15 latency {\"job\": \"a\"} 6 7.5 0 0.25 1 [{\"count\": 1, \"lower\": -0.25, \"upper\": 0.25}, \
             {\"count\": 2, \"lower\": 1, \"upper\": 2}, {\"count\": 3, \"lower\": 2, \"upper\": 4}] no 1600000000",
            "45 size {} 0.5 4 -53 0 0 [{\"count\": 0.5, \"lower\": \"-Infinity\", \"upper\": 8}] gauge",
        ];
        assert_eq!(shown, expected);
        let unnested =
            names().sql("SELECT sum(b.count) FROM {histograms} h, unnest(h.buckets) b WHERE name = 'latency'");
        assert_eq!(database.one::<f64>(&unnested).await, 6.0);
    }
}
