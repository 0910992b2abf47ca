//! The two versions of remote write side by side: decoding, and ingest.

use std::time::{Duration, Instant};

use prometheus_postgresql_adapter::storage::series::{Cache, CachedSeries};
use prometheus_postgresql_adapter::storage::sources::SourceId;
use prometheus_postgresql_adapter::wire::write::{Request, v1, v2};

use crate::load::{Load, Requests, Version};
use crate::verdict::Verdicts;

/// Time for which decoding is measured.
const DECODING: Duration = Duration::from_secs(6);

/// Measures how long a sample takes to be decoded and its series to be found in the cache.
pub(crate) async fn decoding(load: Load, verdicts: &mut Verdicts) {
    let messages = async |version| -> Vec<Vec<u8>> {
        let requests: Requests = Load { version, ..load }.requests(0..2).await;
        let plain = |body: &[u8]| snap::raw::Decoder::new().decompress_vec(body).expect("a body of ours");
        requests.iter().flatten().map(|batch| plain(&batch.body)).collect()
    };
    let all = [messages(Version::V1).await, messages(Version::V2).await];
    let bytes = all.each_ref().map(|messages| messages.iter().map(Vec::len).sum::<usize>());
    let cache = Cache::new(4 * load.series);
    let decode = |version: usize, message: &[u8], work: &mut dyn FnMut(&Request<'_>)| {
        let request = if version == 0 { v1::decode(message) } else { v2::decode(message) };
        work(&request.expect("a message of ours"));
    };
    for (version, messages) in all.iter().enumerate() {
        for message in messages {
            decode(version, message, &mut |request| {
                let hashes = cache.hash_all(request).into_iter();
                cache.insert_all(hashes.map(|hash| (hash, CachedSeries { id: 1, source: SourceId::NONE })));
            });
        }
    }
    let mut decoded = Measured::default();
    let mut found = Measured::default();
    let started = Instant::now();
    while started.elapsed() < DECODING {
        for (version, messages) in all.iter().enumerate() {
            decoded.measure(version, 2 * load.series, || {
                for message in messages {
                    decode(version, message, &mut |request| assert_eq!(request.samples.len(), request.series.len()));
                }
            });
            found.measure(version, 2 * load.series, || {
                for message in messages {
                    decode(version, message, &mut |request| {
                        let known = cache.get_all(cache.hash_all(request).into_iter());
                        assert!(known.iter().all(Option::is_some), "every series is cached");
                    });
                }
            });
        }
    }
    let ([one, two], [one_found, two_found]) = (decoded.micros(), found.micros());
    verdicts.below("µs to decode a sample of 1.0 and find its series, of ten labels", 0.15, one_found);
    verdicts.note("... of 2.0", two_found);
    verdicts.at_least("decoding 2.0, as a ratio to 1.0", 1.5, one / two);
    verdicts.note("... bytes of a message of 2.0, as a ratio to 1.0", bytes[1] as f64 / bytes[0] as f64);
}

/// Time that samples took, by version.
#[derive(Default)]
struct Measured {
    took: [Duration; 2],
    samples: [usize; 2],
}

impl Measured {
    fn measure(&mut self, version: usize, samples: usize, work: impl FnOnce()) {
        let began = Instant::now();
        work();
        self.took[version] += began.elapsed();
        self.samples[version] += samples;
    }

    /// Microseconds a sample.
    fn micros(&self) -> [f64; 2] {
        [0, 1].map(|version| self.took[version].as_secs_f64() * 1e6 / self.samples[version] as f64)
    }
}
