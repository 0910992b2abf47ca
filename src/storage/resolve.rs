//! Converts a request to rows: finds the sender and the id of each series, and the samples that can be stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::model::labels::Labels;
use crate::model::sample::{Kind, Sample, Value, is_stale};
use crate::model::source::{NAME_BYTES_MAX, Source, Unnamed};
use crate::model::time::as_ms;
use crate::postgres::error::{Class, Error};
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::exemplars::{Config, Exemplar, SAME_WITHIN_MS};
use crate::storage::fence::{self, Fence, Limits};
use crate::storage::rejected::{Counts, Rejected, show};
use crate::storage::row::{Row, TIME_MIN_MS, kind_of, sort_and_dedup};
use crate::storage::series::{self, CachedSeries, Wanted, WireHash};
use crate::storage::server::Epoch;
use crate::storage::sources::SourceId;
use crate::wire::write::{HistogramSample, LABELS_MAX, Pair, Request, Series};

use self::bounds::Bounds;

mod bounds;

/// Result of looking up a request's series in the cache.
#[derive(Debug, Default)]
pub struct LookedUp {
    /// Epoch in which ids were looked up.
    epoch: Epoch,
    hashes: Vec<WireHash>,
    known: Vec<Option<CachedSeries>>,
    /// Index in the request, and series: stale markers belong to these too.
    also: Vec<(usize, CachedSeries)>,
    /// Label sets that are not in the cache, by identity.
    wanted: HashMap<Uuid, Wanted>,
    /// Index in the request, identity and sender of each series that is not in the cache.
    places: Vec<(usize, Uuid, SourceId)>,
    rejected: Rejected,
}

/// A request whose series ids are known, ready to be stored.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Epoch in which the series ids are valid.
    pub epoch: Epoch,
    /// Rows by sender; most requests have one sender.
    pub shares: Vec<Share>,
    /// Samples that can never be stored.
    pub rejected: Rejected,
    /// Number of samples left out because the request has their series and time twice.
    pub duplicates: usize,
    /// Numbers of samples left out because they are older than the retention.
    pub expired: Counts,
    /// Exemplars.
    pub exemplars: Vec<Exemplar>,
    /// Senders and ids of the series that were not in the cache.
    pub found: Vec<(SourceId, i64)>,
}

/// Samples of one source in a request.
#[derive(Debug, Default)]
pub struct Share {
    /// Source of the samples.
    pub source: SourceId,
    /// Rows in the order of series and time, without duplicates.
    pub rows: Vec<Row>,
}

/// Maximum bytes of the labels of a series, and of all series of a request that are not in the cache. In version 2.0 many
/// labels may refer to one large symbol; a body of version 1.0 has no more than this.
const LABELS_BYTES_MAX: usize = 1 << 20;
const REQUEST_LABELS_BYTES_MAX: usize = 32 << 20;

/// Maximum time in ms by which a sample may be ahead of the server's clock. A larger one is a mistake: the sample would
/// create a segment that is never dropped.
const AHEAD_MAX_MS: i64 = 10 * 60 * 1000;

impl Store {
    /// Finds the series of `request` in the cache, and reads the labels of the others.
    ///
    /// # Errors
    ///
    /// If there are more sources than the adapter can number.
    pub fn look_up(&self, request: &Request<'_>) -> Result<LookedUp, Error> {
        self.cache.clear_if_old(Instant::now());
        // Read first: ids found after it are of this epoch or of a later one.
        let epoch = self.server.epoch();
        let hashes = self.cache.hash_all(request);
        let known = self.cache.get_all(hashes.iter().copied());
        let mut looked_up = LookedUp { epoch, hashes, known, ..LookedUp::default() };
        self.look_up_either(request, &mut looked_up);
        let mut bytes_left = REQUEST_LABELS_BYTES_MAX;
        for (place, series) in request.series.iter().enumerate() {
            let mut is_empty = series.samples.is_empty() && series.exemplars == 0;
            for histogram in request.histograms_of(series) {
                match &histogram.value {
                    Ok(_) => is_empty = false,
                    Err(why) => {
                        looked_up.rejected.add(Kind::Histogram, || format!("{why} in {}", show(request, series)));
                    }
                }
            }
            if let Some(fault) = series.fault {
                looked_up.known[place] = None;
                looked_up.rejected.add_series(request, series, || format!("{fault} in {}", show(request, series)));
                continue;
            }
            // A series exists only if something of it is stored.
            if is_empty || looked_up.known[place].is_some() {
                continue;
            }
            match self.read_labels(request, series, &mut bytes_left)? {
                Ok((source, labels)) => {
                    looked_up.want(place, series.kind, is_of_either(request, series), source, labels)
                }
                Err(why) => {
                    looked_up.rejected.add_series(request, series, || format!("{why} in {}", show(request, series)))
                }
            }
        }
        Ok(looked_up)
    }

    /// Looks in the cache for series of native histograms with the labels of series that may be of either kind.
    fn look_up_either(&self, request: &Request<'_>, looked_up: &mut LookedUp) {
        let all = request.series.iter().enumerate();
        let places: Vec<usize> =
            all.filter(|(_, series)| is_of_either(request, series)).map(|(place, _)| place).collect();
        let hashes: Vec<WireHash> = places.iter().map(|place| looked_up.hashes[*place].of_histograms()).collect();
        let found = self.cache.get_all(hashes.iter().copied());
        for ((place, hash), found) in places.into_iter().zip(hashes).zip(found) {
            let Some(found) = found else { continue };
            // Which of them has ended is not known.
            if looked_up.known[place].is_some() && !request.series[place].samples.is_empty() {
                looked_up.also.push((place, found));
            } else {
                (looked_up.known[place], looked_up.hashes[place]) = (Some(found), hash);
            }
        }
    }

    /// Finds or creates the series of `request` that are not in the cache, and checks the samples.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, none of them caused by the request; or that the epoch is over.
    pub async fn resolve(
        &self,
        request: &Request<'_>,
        looked_up: LookedUp,
        fence: Option<Fence>,
    ) -> Result<Resolved, Error> {
        let LookedUp { epoch, mut hashes, mut known, also, wanted, places, rejected } = looked_up;
        let mut resolved = Resolved { epoch, rejected, ..Resolved::default() };
        if !wanted.is_empty() {
            let (found, refused) = self.find_series(wanted, fence, epoch).await?;
            for (place, key, source) in &places {
                let series = &request.series[*place];
                known[*place] = found.get(key).map(|id| CachedSeries { id: *id, source: *source });
                if known[*place].is_some_and(|known| kind_of(known.id) != series.kind) {
                    hashes[*place] = hashes[*place].of_histograms();
                }
                if let Some(why) = refused.get(key) {
                    resolved.rejected.add_series(request, series, || why.clone());
                }
            }
            let found = places.iter().filter_map(|(place, ..)| Some((hashes[*place], known[*place]?)));
            resolved.found = found.clone().map(|(_, known)| (known.source, known.id)).collect();
            self.server.during(epoch, |_| self.cache.insert_all(found))?;
            self.metrics.series_cached.set(i64::try_from(self.cache.len()).unwrap_or(i64::MAX));
        }
        let now_ms = self.server_ms();
        let expired_ms = self.config.retention.map(|kept| now_ms.saturating_sub(as_ms(kept)));
        let bounds = Bounds { now_ms, latest_ms: now_ms.saturating_add(AHEAD_MAX_MS), expired_ms };
        let mut at = 0;
        for (series, known) in request.series.iter().zip(&known) {
            let Some(CachedSeries { id, source }) = *known else { continue };
            if resolved.shares.get(at).is_none_or(|share| share.source != source) {
                at = resolved.share(source, request.samples.len());
            }
            for Sample { timestamp_ms: time_ms, value } in request.samples_of(series).iter().copied() {
                let row = Row { series_id: id, time_ms, value: Value::Float(value) };
                self.admit(row, &bounds, (request, series), &mut resolved, at);
            }
            for HistogramSample { timestamp_ms, value } in request.histograms_of(series) {
                if let Ok(value) = value {
                    let row = Row { series_id: id, time_ms: *timestamp_ms, value: value.clone() };
                    self.admit(row, &bounds, (request, series), &mut resolved, at);
                }
            }
        }
        for (place, CachedSeries { id, source }) in also {
            let at = resolved.share(source, request.samples.len());
            let markers = request.samples_of(&request.series[place]).iter();
            let markers = markers.filter(|marker| bounds.check(marker.timestamp_ms) == Ok(true));
            let row = |marker: &Sample| Row { series_id: id, time_ms: marker.timestamp_ms, value: marker.value.into() };
            resolved.shares[at].rows.extend(markers.map(row));
        }
        let latest_ms = bounds.latest_ms;
        self.resolve_exemplars(request, &known, &mut resolved, latest_ms);
        resolved.duplicates = resolved.shares.iter_mut().map(|share| sort_and_dedup(&mut share.rows)).sum();
        Ok(resolved)
    }

    /// Adds a row to the share at `at`, unless its time is out of bounds, or older than the retention.
    fn admit(
        &self,
        row: Row,
        bounds: &Bounds,
        (request, series): (&Request<'_>, &Series<'_>),
        resolved: &mut Resolved,
        at: usize,
    ) {
        match bounds.check(row.time_ms) {
            Ok(true) => {}
            Ok(false) => {
                resolved.expired.add(series.kind);
                return;
            }
            Err(ahead_ms) => {
                return resolved.rejected.add(series.kind, || {
                    let series = show(request, series);
                    format!("timestamp {} of {series} is out of bounds: {ahead_ms} ms from now", row.time_ms)
                });
            }
        }
        if self.config.log_samples {
            let value = match &row.value {
                Value::Float(value) => log::kv::Value::from(*value),
                Value::Histogram(numbers) => log::kv::Value::from_debug(numbers),
            };
            log::info!(labels = show(request, series).as_str(), value = value, timestamp_ms = row.time_ms; "sample");
        }
        resolved.shares[at].rows.push(row);
    }

    fn resolve_exemplars(
        &self,
        request: &Request<'_>,
        known: &[Option<CachedSeries>],
        resolved: &mut Resolved,
        latest_ms: i64,
    ) {
        let Config { retention, per_series_max } = self.config.exemplars;
        let oldest_ms = retention.map_or(i64::MIN, |kept| self.server_ms().saturating_sub(as_ms(kept)));
        for exemplar in &request.exemplars {
            let place = exemplar.series as usize;
            let Some(CachedSeries { id, .. }) = known[place] else {
                // The series has told why.
                resolved.rejected.counts.exemplars += 1;
                continue;
            };
            let Sample { timestamp_ms: time_ms, value } = exemplar.sample;
            let read = || {
                // What is the same one is looked for around it.
                if time_ms < TIME_MIN_MS + SAME_WITHIN_MS || time_ms > latest_ms {
                    return Err(format!("the timestamp {time_ms} of an exemplar is out of bounds"));
                }
                let pairs = request.pairs(&exemplar.labels).take(LABELS_MAX).collect::<Result<Vec<_>, _>>();
                let pairs = pairs.map_err(|error| format!("an exemplar: {error}"))?;
                Exemplar::new(id, time_ms, value, pairs, self.encoding.is_some())
            };
            match read() {
                Ok(exemplar) if time_ms >= oldest_ms && per_series_max > 0 => resolved.exemplars.push(exemplar),
                Ok(_) => {}
                Err(why) => {
                    resolved.rejected.add_exemplar(|| format!("{why} in {}", show(request, &request.series[place])));
                }
            }
        }
    }

    /// Returns the sender of a series and its labels, or the reason why it can never be stored.
    fn read_labels(
        &self,
        request: &Request<'_>,
        series: &Series<'_>,
        bytes_left: &mut usize,
    ) -> Result<Result<(SourceId, Labels), String>, Error> {
        let mut read = || -> Result<(Option<Source>, Labels), String> {
            let pairs = request
                .label_pairs(series)
                .take(LABELS_MAX + 1)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| error.to_string())?;
            if pairs.len() > LABELS_MAX {
                return Err(format!("more than {LABELS_MAX} labels"));
            }
            let bytes = pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            if bytes > LABELS_BYTES_MAX {
                return Err(format!("labels of {bytes} bytes, more than {LABELS_BYTES_MAX},"));
            }
            *bytes_left = bytes_left.checked_sub(bytes).ok_or("more bytes of labels than one request may have")?;
            let source = match &self.config.sources {
                None => replica(&pairs, &self.config.replica_labels),
                Some(config) => match config.labels.source(&pairs, self.encoding.as_deref()) {
                    Err(Unnamed::Missing(_)) if config.stores_unlabelled => None,
                    source => Some(source.map_err(|unnamed| unnamed.to_string())?),
                },
            };
            let labels = Labels::new(pairs, &self.config.replica_labels).map_err(|error| error.to_string())?;
            Ok((source, labels))
        };
        let (source, labels) = match read() {
            Ok(read) => read,
            Err(why) => return Ok(Err(why)),
        };
        let number = source.map_or(Some(SourceId::NONE), |source| self.sources.number(source));
        // Without an election by labels, a sender without a number is accepted too.
        let number = number.or(self.config.sources.is_none().then_some(SourceId::NONE));
        let too_many = || Error::TooLarge("there are too many clusters and replicas to tell apart".into());
        number.map(|number| Ok((number, labels))).ok_or_else(too_many)
    }

    /// Returns ids by key, and by key the reason why the server refuses a series. If the server refuses a set of
    /// series, the set is halved until the refused series are found, so that they do not affect the others.
    pub(super) async fn find_series(
        &self,
        wanted: HashMap<Uuid, Wanted>,
        fence: Option<Fence>,
        epoch: Epoch,
    ) -> Result<(HashMap<Uuid, i64>, HashMap<Uuid, String>), Error> {
        let (mut found, mut refused) = (HashMap::new(), HashMap::new());
        let mut pending = vec![wanted];
        while let Some(part) = pending.pop() {
            if part.is_empty() {
                continue;
            }
            match self.find_part(&part, fence, epoch).await {
                Ok(ids) => {
                    let series = part.iter().filter_map(|(key, wanted)| Some(wanted.found(*ids.get(key)?, *key)));
                    self.server.during(epoch, Arc::clone)?.learn(series);
                    found.extend(ids);
                }
                Err(error) if error.class() == Class::Data && part.len() > 1 => {
                    let mut part: Vec<_> = part.into_iter().collect();
                    let rest = part.split_off(part.len() / 2);
                    pending.extend([part.into_iter().collect(), rest.into_iter().collect()]);
                }
                Err(error) if error.class() == Class::Data => {
                    refused.extend(part.into_keys().map(|key| (key, error.to_string())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((found, refused))
    }

    async fn find_part(
        &self,
        wanted: &HashMap<Uuid, Wanted>,
        fence: Option<Fence>,
        epoch: Epoch,
    ) -> Result<HashMap<Uuid, i64>, Error> {
        let timeout = self.config.send_timeout;
        self.counted(within(timeout, async {
            let client = Pooled::take(&self.pool).await?;
            let mut checks = self.server.check(&self.names, epoch)?;
            if fence.is_some() {
                checks = format!("{checks}, {}", fence::show(&self.names, fence, None));
            }
            client.batch_execute(&fence::begin(Limits::of(timeout), &checks)).await?;
            let (found, created) = series::resolve(&client, &self.names, wanted).await?;
            client.batch_execute("COMMIT").await?;
            client.give_back();
            self.metrics.series_created_total.inc_by(created);
            Ok(found)
        }))
        .await
    }
}

impl LookedUp {
    /// Returns the sources that sent samples in `request`.
    #[must_use]
    pub fn senders(&self, request: &Request<'_>) -> Vec<SourceId> {
        let known = self.known.iter().enumerate().filter_map(|(place, known)| Some((place, (*known)?.source)));
        let others = self.places.iter().map(|(place, _, source)| (*place, *source));
        let mut senders: Vec<SourceId> = Vec::new();
        for (place, source) in known.chain(others) {
            if senders.last() != Some(&source)
                && !(request.series[place].samples.is_empty() && request.series[place].histograms.is_empty())
                && !senders.contains(&source)
            {
                senders.push(source);
            }
        }
        senders
    }
}

impl LookedUp {
    /// Adds a series that is not in the cache. `is_of_either`: if there is a series of native histograms with these
    /// labels, that is meant.
    fn want(&mut self, place: usize, kind: Kind, is_of_either: bool, source: SourceId, labels: Labels) {
        let key = |kind| Uuid::from_bytes(labels.identity(kind));
        let own = key(kind);
        let or_histogram = is_of_either.then(|| key(Kind::Histogram));
        self.places.push((place, own, source));
        let wanted = self.wanted.entry(own).or_insert(Wanted { place, labels, kind, or_histogram });
        if !is_of_either {
            wanted.or_histogram = None;
        }
    }
}

/// Returns `true` if the request does not tell which kind the series has. Remote write 1.0 sends the stale markers of
/// native histograms as floats, and both versions may send exemplars alone.
fn is_of_either(request: &Request<'_>, series: &Series<'_>) -> bool {
    series.kind == Kind::Float
        && series.fault.is_none()
        && request.samples_of(series).iter().all(|sample| is_stale(sample.value))
}

impl Resolved {
    /// Takes out the samples that `source` sent.
    pub fn take_rows(&mut self, source: SourceId) -> Vec<Row> {
        let share = self.shares.iter_mut().find(|share| share.source == source);
        share.map(|share| std::mem::take(&mut share.rows)).unwrap_or_default()
    }

    /// Returns the index of the share of `source`. Creates the share, with capacity for `samples`, if it does not
    /// exist.
    fn share(&mut self, source: SourceId, samples: usize) -> usize {
        let at = self.shares.iter().position(|share| share.source == source);
        at.unwrap_or_else(|| {
            self.shares.push(Share { source, rows: Vec::with_capacity(samples) });
            self.shares.len() - 1
        })
    }
}

/// Returns the replica that sends a series, for elections without labels; `None` if no label names it, or the name is
/// not UTF-8 or not of an allowed length.
fn replica(pairs: &[Pair<'_>], labels: &[String]) -> Option<Source> {
    let value = |label: &String| pairs.iter().find(|(name, _)| *name == label.as_bytes()).map(|(_, value)| *value);
    let replica = std::str::from_utf8(labels.iter().find_map(value)?).ok()?;
    let is_usual = (1..=NAME_BYTES_MAX).contains(&replica.len());
    is_usual.then(|| Source { cluster: String::new(), replica: replica.to_owned() })
}
