//! From a request's bytes to rows: whose its series are, which ids they have, and which samples can be stored.

use std::collections::HashMap;
use std::time::Instant;

use uuid::Uuid;

use crate::model::labels::Labels;
use crate::model::source::{NAME_BYTES_MAX, Source, Unnamed};
use crate::model::time::as_ms;
use crate::postgres::error::{Class, Error};
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::fence::{self, Fence, Limits};
use crate::storage::row::{Row, TIME_MIN_MS, sort_and_dedup};
use crate::storage::series::{self, CachedSeries, Wanted, WireHash};
use crate::storage::server::Epoch;
use crate::storage::sources::SourceId;
use crate::wire::write::{Pair, Request, Series, label_pairs};

/// What the cache knows of a request's series.
#[derive(Debug, Default)]
pub struct LookedUp {
    /// In which ids were looked up.
    epoch: Epoch,
    hashes: Vec<WireHash>,
    known: Vec<Option<CachedSeries>>,
    /// What it does not know, by identity.
    wanted: HashMap<Uuid, Wanted>,
    /// Where in the request that is, and who sends it.
    places: Vec<(usize, Uuid, SourceId)>,
    rejected: Rejected,
}

/// A request with its series found: ready to be stored.
#[derive(Debug, Default)]
pub struct Resolved {
    /// In which its series have the ids that they were found to have.
    pub epoch: Epoch,
    /// By who sent them; of most requests one.
    pub shares: Vec<Share>,
    /// What can never be stored.
    pub rejected: Rejected,
    /// Samples left out because the request has their series and time twice.
    pub duplicates: usize,
    /// Samples left out because they are older than the retention.
    pub expired: usize,
    /// Series that were not in the cache, and who sends them.
    pub found: Vec<(SourceId, i64)>,
}

/// What one source sent in a request.
#[derive(Debug, Default)]
pub struct Share {
    /// Who.
    pub source: SourceId,
    /// In the order of series and time, none twice.
    pub rows: Vec<Row>,
}

/// The part of a request that can never be stored.
#[derive(Debug, Default)]
pub struct Rejected {
    /// How many samples.
    pub samples: usize,
    /// Why, for the first few.
    pub reasons: Vec<String>,
}

/// Reasons an answer names; more are counted.
const REASONS_MAX: usize = 10;

/// A sample so far ahead of the server's clock is a mistake: stored, it would make a segment that lasts for ever.
const AHEAD_MAX_MS: i64 = 10 * 60 * 1000;

impl Store {
    /// Finds the series of `request` in the cache, and reads the labels of the others.
    ///
    /// # Errors
    ///
    /// When there are more senders than can be told apart.
    pub fn look_up(&self, request: &Request<'_>) -> Result<LookedUp, Error> {
        self.cache.clear_if_old(Instant::now());
        // First: what is found after it is of it, or of a later one.
        let epoch = self.server.epoch();
        let hashes: Vec<_> = request.series.iter().map(|series| self.cache.hash(&series.labels)).collect();
        let known = self.cache.get_all(hashes.iter().copied());
        let mut looked_up = LookedUp { epoch, hashes, known, ..LookedUp::default() };
        for (place, series) in request.series.iter().enumerate() {
            if looked_up.known[place].is_some() {
                continue;
            }
            match self.read_labels(series)? {
                Ok((source, labels)) => {
                    let key = Uuid::from_bytes(labels.identity());
                    looked_up.places.push((place, key, source));
                    looked_up.wanted.entry(key).or_insert(Wanted { place, labels });
                }
                Err(why) => looked_up.rejected.add(series.samples.len(), || format!("{why} in {}", show(series))),
            }
        }
        Ok(looked_up)
    }

    /// Finds or makes the series of `request` that were not looked up in the cache, and checks its samples.
    ///
    /// # Errors
    ///
    /// What the server said; nothing is wrong with the request then.
    pub async fn resolve(
        &self,
        request: &Request<'_>,
        looked_up: LookedUp,
        fence: Option<Fence>,
    ) -> Result<Resolved, Error> {
        let LookedUp { epoch, hashes, mut known, wanted, places, rejected } = looked_up;
        let mut resolved = Resolved { epoch, rejected, ..Resolved::default() };
        if !wanted.is_empty() {
            let (found, refused) = self.find_series(wanted, fence, epoch).await?;
            for (place, key, source) in &places {
                known[*place] = found.get(key).map(|id| CachedSeries { id: *id, source: *source });
                if let Some(why) = refused.get(key) {
                    resolved.rejected.add(request.series[*place].samples.len(), || why.clone());
                }
            }
            let found = places.iter().filter_map(|(place, ..)| Some((hashes[*place], known[*place]?)));
            resolved.found = found.clone().map(|(_, known)| (known.source, known.id)).collect();
            self.server.during(epoch, |_| self.cache.insert_all(found))?;
            self.metrics.series_cached.set(i64::try_from(self.cache.len()).unwrap_or(i64::MAX));
        }
        let now_ms = self.server_ms();
        let latest_ms = now_ms.saturating_add(AHEAD_MAX_MS);
        let expired_ms = self.config.retention.map(|kept| now_ms.saturating_sub(as_ms(kept)));
        let mut at = 0;
        for (series, known) in request.series.iter().zip(&known) {
            let Some(CachedSeries { id, source }) = *known else { continue };
            if resolved.shares.get(at).is_none_or(|share| share.source != source) {
                at = resolved.share(source, request.samples.len());
            }
            for sample in request.samples_of(series) {
                if sample.timestamp_ms < TIME_MIN_MS || sample.timestamp_ms > latest_ms {
                    resolved.rejected.add(1, || {
                        let ahead_ms = sample.timestamp_ms.saturating_sub(now_ms);
                        let series = show(series);
                        format!(
                            "timestamp {} of {series} is out of bounds: {ahead_ms} ms from now",
                            sample.timestamp_ms
                        )
                    });
                    continue;
                }
                if expired_ms.is_some_and(|expired_ms| sample.timestamp_ms < expired_ms) {
                    resolved.expired += 1;
                    continue;
                }
                if self.config.log_samples {
                    log::info!("sample {} {} @ {}", show(series), sample.value, sample.timestamp_ms);
                }
                let row = Row { series_id: id, time_ms: sample.timestamp_ms, value: sample.value };
                resolved.shares[at].rows.push(row);
            }
        }
        resolved.duplicates = resolved.shares.iter_mut().map(|share| sort_and_dedup(&mut share.rows)).sum();
        Ok(resolved)
    }

    /// Who sends a series, and its labels; or why it can never be stored.
    fn read_labels(&self, series: &Series<'_>) -> Result<Result<(SourceId, Labels), String>, Error> {
        let read = || -> Result<(Option<Source>, Labels), String> {
            let pairs =
                label_pairs(&series.labels).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
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
        // Without an election by labels a sender that has no number is served all the same.
        let number = number.or(self.config.sources.is_none().then_some(SourceId::NONE));
        let too_many = || Error::TooLarge("there are too many clusters and replicas to tell apart".into());
        number.map(|number| Ok((number, labels))).ok_or_else(too_many)
    }

    /// Ids by key; and, by key too, why the server will have none of a series. A refusal in a set of many is narrowed
    /// down by halves, so that one series never sinks its neighbours.
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
                    let series = part.iter().filter_map(|(key, wanted)| Some((*ids.get(key)?, *key, &wanted.labels)));
                    self.server.during(epoch, |identities| identities.learn(series))?;
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
            let check = self.server.check(&self.names, epoch)?;
            let mut begin = fence::begin(Limits::of(timeout), &check);
            if fence.is_some() {
                begin = format!("{begin}; {}", fence::show(&self.names, fence, None));
            }
            client.batch_execute(&begin).await?;
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
    /// Who sends samples in `request`.
    #[must_use]
    pub fn senders(&self, request: &Request<'_>) -> Vec<SourceId> {
        let known = self.known.iter().enumerate().filter_map(|(place, known)| Some((place, (*known)?.source)));
        let others = self.places.iter().map(|(place, _, source)| (*place, *source));
        let mut senders: Vec<SourceId> = Vec::new();
        for (place, source) in known.chain(others) {
            if senders.last() != Some(&source)
                && !request.samples_of(&request.series[place]).is_empty()
                && !senders.contains(&source)
            {
                senders.push(source);
            }
        }
        senders
    }
}

impl Resolved {
    /// Takes out what `source` sent.
    pub fn take_rows(&mut self, source: SourceId) -> Vec<Row> {
        let share = self.shares.iter_mut().find(|share| share.source == source);
        share.map(|share| std::mem::take(&mut share.rows)).unwrap_or_default()
    }

    /// Where the share of `source` is, made if need be with room for `samples`.
    fn share(&mut self, source: SourceId, samples: usize) -> usize {
        let at = self.shares.iter().position(|share| share.source == source);
        at.unwrap_or_else(|| {
            self.shares.push(Share { source, rows: Vec::with_capacity(samples) });
            self.shares.len() - 1
        })
    }
}

impl Rejected {
    /// Counts `samples` more, for a reason.
    pub fn add(&mut self, samples: usize, why: impl FnOnce() -> String) {
        self.samples += samples;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(why());
        }
    }

    /// Whether everything can be stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Which replica sends a series, where labels do not say who leads; `None` if it does not say, in words of a usual length.
fn replica(pairs: &[Pair<'_>], labels: &[String]) -> Option<Source> {
    let value = |label: &String| pairs.iter().find(|(name, _)| *name == label.as_bytes()).map(|(_, value)| *value);
    let replica = std::str::from_utf8(labels.iter().find_map(value)?).ok()?;
    let is_usual = (1..=NAME_BYTES_MAX).contains(&replica.len());
    is_usual.then(|| Source { cluster: String::new(), replica: replica.to_owned() })
}

/// A series for a message: what can be read of its labels, cut short.
fn show(series: &Series<'_>) -> String {
    let mut text = String::from("{");
    for (name, value) in label_pairs(&series.labels).map_while(Result::ok) {
        let separator = if text.len() > 1 { ", " } else { "" };
        text.push_str(&format!("{separator}{}={:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        if text.len() > 200 {
            let cut = (0..=200).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
            text.push('…');
            break;
        }
    }
    text.push('}');
    text
}
