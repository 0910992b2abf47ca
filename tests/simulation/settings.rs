//! The choices that a schedule is drawn from: scrapes, ways to send, and faults.

use std::time::Duration;

use prometheus_postgresql_adapter::election::{Config, Method, PrometheusTimeout};

use crate::kernel::Ms;
use rig::random::Random;

/// Method by which leaders are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Each replica has an adapter beside it. An advisory lock decides.
    Lock,
    /// The same adapters. An external party appoints the leader.
    Rest,
    /// The replicas send to any adapter, and leaders are found by labels.
    Labels,
    /// One replica, one adapter, no election.
    Alone,
}

/// Origin of the timestamps of samples, and meaning of their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Time of the scrape; a counter.
    Counter,
    /// Whole intervals of the replica's clock, as for the evaluation of rules.
    Rule,
    /// Whole intervals of the exporter's clock, `back_ms` ago: the same timestamp from every replica.
    Exported { back_ms: Ms },
    /// Like `Exported`, but some samples come a few intervals late, out of order; if `off_grid`, between whole
    /// intervals.
    Late { off_grid: bool },
    /// Samples of a stranger that posts to one adapter only, with timestamps `ahead_ms` later than now.
    Stranger { ahead_ms: Ms },
    /// Samples from a week ago, posted at once.
    History,
}

/// Series that are scraped together.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) interval_ms: Ms,
    /// Series of the target, by the judge's numbers.
    pub(crate) series: Vec<usize>,
    /// Time span in which the target exists.
    pub(crate) from: Ms,
    pub(crate) until: Ms,
    /// Time from which the series other than the first one exist.
    pub(crate) others_from: Ms,
    /// By replica.
    pub(crate) scrapes: Vec<Scrapes>,
}

/// Scrapes of a target by one replica.
#[derive(Clone, Debug)]
pub(crate) struct Scrapes {
    pub(crate) is_known: bool,
    pub(crate) phase_ms: Ms,
    /// Percentage of scrapes that fail.
    pub(crate) missed: i64,
    /// Percentage of scrapes that are late.
    pub(crate) late: i64,
    /// Time span in which the replica cannot reach the target.
    pub(crate) blind: Option<(Ms, Ms)>,
    /// The replica knows only the first series of the target.
    pub(crate) is_partly_known: bool,
}

/// Remote-write behaviour of a replica.
#[derive(Clone, Debug)]
pub(crate) struct Sending {
    pub(crate) shards: usize,
    pub(crate) batch_max: usize,
    pub(crate) deadline_ms: Ms,
    pub(crate) timeout_ms: Ms,
    /// Idle time after which its connections are closed.
    pub(crate) idle_ms: Option<Ms>,
    /// Number of requests after which a proxy replaces a connection.
    pub(crate) renewed_after: Option<u32>,
    /// The replica also sends samples that are older than its newest one.
    pub(crate) is_orderless: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    KillAdapter {
        adapter: usize,
        host_too: bool,
    },
    StopAdapter {
        adapter: usize,
    },
    Freeze {
        adapter: usize,
    },
    /// Freezes the adapter between the statements of its next transaction.
    FreezeInWrite {
        adapter: usize,
    },
    Cut {
        adapter: usize,
        writes: bool,
        locks: bool,
    },
    KillSender {
        replica: usize,
        resends: bool,
    },
    Silence {
        replica: usize,
    },
    CloseConnections {
        replica: usize,
    },
    DatabaseDown,
    DatabaseSlow,
    EndLockSession,
    EndWrites,
    /// Seals all hot rows, or all except those of the last three seconds.
    Seal {
        all: bool,
    },
    /// Sets the clock of a host, or the database's clock if `host` is `None`, off by `by_ms`.
    Clock {
        host: Option<usize>,
        by_ms: Ms,
    },
    Order {
        adapter: usize,
        order: Ordered,
    },
    /// The load balancer routes each replica to an adapter chosen at random.
    Reshuffle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ordered {
    Lead,
    Resign,
    HandOver { to: usize },
    Hold,
}

/// A fault, its start and its duration.
#[derive(Clone, Debug)]
pub(crate) struct Befalls {
    pub(crate) at: Ms,
    pub(crate) for_ms: Ms,
    pub(crate) fault: Fault,
}

/// A week of history, sent at once.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) at: Ms,
    pub(crate) replica: usize,
    pub(crate) series: usize,
    pub(crate) count: i64,
    pub(crate) step_ms: Ms,
    pub(crate) newest_first: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) adapters: usize,
    pub(crate) replicas: usize,
    pub(crate) targets: Vec<Target>,
    /// Target of each series.
    pub(crate) target_of: Vec<usize>,
    pub(crate) sending: Vec<Sending>,
    pub(crate) histories: Vec<History>,
    /// Percentage of requests that are lost, repeated, late or get no answer.
    pub(crate) lossy: i64,
    pub(crate) election: Config,
    pub(crate) memory_bytes_max: usize,
    /// Offset of each host's clock from the server's; positive if ahead. By labels, the hosts of the adapters follow
    /// those of the replicas.
    pub(crate) offsets: Vec<i64>,
    pub(crate) begins_at: Vec<Ms>,
    /// Interval of sealing.
    pub(crate) seal_every: Option<Ms>,
    pub(crate) chunk_samples: usize,
    pub(crate) faults: Vec<Befalls>,
    /// Time from which nothing goes wrong.
    pub(crate) quiet_at: Ms,
    pub(crate) scrape_until: Ms,
    pub(crate) end_at: Ms,
}

/// Intervals to choose from; short ones are more frequent.
const INTERVALS_S: [Ms; 14] = [1, 1, 1, 1, 1, 2, 2, 2, 5, 5, 10, 15, 30, 60];

/// Maximum time for which a sample is buffered if the scrape interval of its series is not known.
const UNKNOWN_BUFFERED_MS: Ms = 125_000 + 15_000 + 3_000;

/// The maximum delay of a scrape is its interval divided by this number.
pub(crate) const LATE_PART: Ms = 20;

impl Settings {
    pub(crate) fn draw(random: &mut Random, by_labels: bool) -> Self {
        let mode = match random.index(20) {
            _ if by_labels => Mode::Labels,
            0 => Mode::Alone,
            1..4 => Mode::Rest,
            _ => Mode::Lock,
        };
        let replicas = match mode {
            Mode::Alone => 1,
            _ if random.chance(75) => 2,
            _ => 3,
        };
        let adapters = if mode == Mode::Labels { 2 + random.index(2) } else { replicas };
        let usual_ms = INTERVALS_S[random.index(INTERVALS_S.len())] * 1_000;
        let is_mixed = random.chance(30);
        let interval = |random: &mut Random| match is_mixed && random.chance(50) {
            true => (INTERVALS_S[random.index(INTERVALS_S.len())] * 1_000).min(15 * usual_ms),
            false => usual_ms,
        };
        let intervals: Vec<Ms> = (0..1 + random.index(3)).map(|_| interval(random)).collect();
        let longest = intervals.iter().copied().max().unwrap_or(usual_ms);
        let calm_from = if random.chance(25) { 3_000 } else { 15_000.max(4 * longest) };
        let calm_at = calm_from + 30_000.max(3 * longest);
        let faults = draw_faults(random, mode, adapters, replicas, calm_from, calm_at);
        let quiet_at = faults.iter().map(|one| one.at + one.for_ms).max().unwrap_or(0).max(calm_at) + 1_000;
        let deadline_ms = *[1_000, 5_000, 5_000, 5_000, 30_000, 60_000].get(random.index(6)).unwrap_or(&5_000);
        let sending: Vec<Sending> = (0..replicas).map(|_| draw_sending(random, deadline_ms)).collect();
        let scrape_until = quiet_at + 40_000 + 7 * longest + deadline_ms;
        let mut settings = Self {
            mode,
            adapters,
            replicas,
            targets: Vec::new(),
            target_of: Vec::new(),
            sending,
            histories: Vec::new(),
            lossy: [0, 0, 1, 4][random.index(4)],
            election: draw_election(random, mode, longest.max(deadline_ms)),
            memory_bytes_max: if random.chance(5) { 8_000 } else { 1 << 24 },
            offsets: Vec::new(),
            begins_at: (0..adapters).map(|_| random.spread(0, 5_000)).collect(),
            seal_every: random.chance(50).then(|| random.spread(2_000, 60_000)),
            chunk_samples: if random.chance(50) { random.between(5, 20) as usize } else { 20_000 },
            faults,
            quiet_at,
            scrape_until,
            end_at: 0,
        };
        let is_skewed = random.chance(25);
        settings.offsets = (0..replicas + if mode == Mode::Labels { adapters } else { 0 })
            .map(|_| if is_skewed { random.between(-3_000, 3_000) } else { random.between(-5, 5) })
            .collect();
        for interval_ms in intervals {
            let kind = match random.index(12) {
                0 | 1 => Kind::Rule,
                2 => Kind::Exported { back_ms: [0, 5_000, 300_000][random.index(3)] },
                3 => Kind::Late { off_grid: random.chance(50) },
                _ => Kind::Counter,
            };
            let count = 1 + random.index(2);
            settings.add_target(random, kind, interval_ms, count);
        }
        if random.chance(15) {
            // A short-lived target.
            settings.add_target(random, Kind::Counter, usual_ms, 1);
            if let Some(target) = settings.targets.last_mut() {
                target.from = random.between(0, calm_at);
                target.until = target.from + usual_ms * random.between(1, 3) + 1;
            }
        }
        if random.chance(8) {
            let ahead_ms = [0, -crate::world::EPOCH_MS, 200_000, 590_000, 365 * 86_400_000][random.index(5)];
            settings.add_target(random, Kind::Stranger { ahead_ms }, 5_000, 1);
        }
        for _ in 0..if random.chance(12) { 1 + random.index(2) } else { 0 } {
            settings.add_history(random, calm_at);
        }
        settings.end_at = scrape_until + deadline_ms + 2 * UNKNOWN_BUFFERED_MS + 30_000;
        for target in &mut settings.targets {
            if random.chance(30) {
                target.others_from = random.between(0, quiet_at);
            }
        }
        settings
    }

    fn add_target(&mut self, random: &mut Random, kind: Kind, interval_ms: Ms, count: usize) {
        let is_rule = kind == Kind::Rule;
        let (phase, is_unequal) = (random.between(0, interval_ms - 1), random.chance(15));
        let misses = [0, 0, 0, 5, 5, 5][random.index(6)];
        let stranger_at = matches!(kind, Kind::Stranger { .. }).then(|| random.index(self.replicas));
        let scrapes = (0..self.replicas).map(|replica| Scrapes {
            is_known: stranger_at.map_or(!(is_unequal && random.chance(40)), |at| at == replica),
            phase_ms: if is_rule {
                (phase - self.offsets[replica]).rem_euclid(interval_ms)
            } else {
                random.between(0, interval_ms - 1)
            },
            missed: misses,
            late: if is_rule { 0 } else { [0, 0, 3][random.index(3)] },
            blind: random.chance(8).then(|| {
                let from = random.between(0, self.quiet_at);
                (from, from + random.spread(interval_ms, 10 * interval_ms))
            }),
            is_partly_known: is_unequal && random.chance(40),
        });
        let series = (0..count).map(|n| self.target_of.len() + n).collect();
        let target =
            Target { kind, interval_ms, series, from: 0, until: Ms::MAX, others_from: 0, scrapes: scrapes.collect() };
        self.target_of.extend((0..count).map(|_| self.targets.len()));
        self.targets.push(target);
    }

    fn add_history(&mut self, random: &mut Random, calm_at: Ms) {
        let is_live = random.chance(50);
        let series = match is_live {
            true => random.index(self.target_of.len()),
            false => {
                self.add_target(random, Kind::History, 60_000, 1);
                self.target_of.len() - 1
            }
        };
        let (count, step_ms) = (random.between(5, 40), [1_000, 60_000, 3_600_000][random.index(3)]);
        let newest_first = random.chance(50);
        let at = random.between(3_000, calm_at);
        for _ in 0..1 + random.index(2) {
            let replica = random.index(self.replicas);
            self.histories.push(History {
                at: at + random.spread(0, 5_000),
                replica,
                series,
                count,
                step_ms,
                newest_first,
            });
        }
    }

    pub(crate) fn target(&self, series: usize) -> &Target {
        &self.targets[self.target_of[series]]
    }

    /// Returns the maximum time for which a sample is buffered in steady state. A buffered sample is examined four
    /// times per interval; the look runs once a second.
    pub(crate) fn buffered_ms(&self) -> Ms {
        2 * self.longest_ms() + 5_000 + (self.longest_ms() / 4).min(15_000) + 3_000
    }

    /// Returns the longest step between samples that an adapter may have to assume, ms; a minute if steps are
    /// irregular.
    pub(crate) fn longest_ms(&self) -> Ms {
        let is_irregular = |target: &Target| target.until < Ms::MAX || matches!(target.kind, Kind::Late { .. });
        // By labels an adapter sees only a part of a replica's samples. It learns the interval from the leader's
        // samples.
        let is_seen_in_part = self.mode == Mode::Labels;
        let has_steps = is_seen_in_part || !self.histories.is_empty() || self.targets.iter().any(is_irregular);
        let longest_ms = self.targets.iter().map(|target| target.interval_ms).max().unwrap_or(0);
        if has_steps { longest_ms.max(60_000) } else { longest_ms }
    }
}

pub(crate) fn ms(duration: Duration) -> Ms {
    Ms::try_from(duration.as_millis()).unwrap_or(Ms::MAX)
}

fn draw_election(random: &mut Random, mode: Mode, pace_ms: Ms) -> Config {
    // With a chance of 10 % the timeout may be shorter than two and a half times the pace of its Prometheus.
    let least_s = if random.chance(10) { 0 } else { 5 * pace_ms / 2_000 };
    let timeout = match random.index(3) {
        _ if mode == Mode::Rest || mode == Mode::Alone => PrometheusTimeout::Never,
        0 => PrometheusTimeout::Automatic,
        _ => PrometheusTimeout::After(Duration::from_secs([6, 10, 30][random.index(3)].max(least_s.unsigned_abs()))),
    };
    Config {
        method: if mode == Mode::Rest { Method::External("1".to_owned()) } else { Method::AdvisoryLock(1) },
        is_held: false,
        prometheus_timeout: timeout,
        liveness_interval: Duration::from_secs(10),
        election_interval: Duration::from_millis([300, 1_000][random.index(2)]),
        lease: Duration::from_secs([3, 5, 10][random.index(3)]),
    }
}

fn draw_sending(random: &mut Random, deadline_ms: Ms) -> Sending {
    Sending {
        shards: [1, 1, 2, 3][random.index(4)],
        batch_max: usize::try_from(random.spread(2, 40)).unwrap_or(2),
        deadline_ms,
        timeout_ms: random.between(4, 30) * 1_000,
        idle_ms: random.chance(20).then(|| random.spread(1_000, 90_000)),
        renewed_after: random.chance(20).then(|| random.between(1, 20) as u32),
        is_orderless: random.chance(20),
    }
}

fn draw_faults(random: &mut Random, mode: Mode, adapters: usize, replicas: usize, from: Ms, until: Ms) -> Vec<Befalls> {
    let count = if random.chance(10) { 0 } else { random.between(1, 5) };
    let mut faults: Vec<Befalls> = (0..count)
        .map(|_| {
            let at = random.between(from, until);
            let fault = draw_fault(random, mode, adapters, replicas);
            Befalls { at, for_ms: random.spread(50, 25_000), fault }
        })
        .collect();
    if count > 0 && random.chance(20) {
        // Several faults at about the same time.
        let at = faults[0].at;
        faults.iter_mut().for_each(|one| one.at = at + random.between(0, 2_000));
    }
    faults.sort_by_key(|one| one.at);
    faults
}

fn draw_fault(random: &mut Random, mode: Mode, adapters: usize, replicas: usize) -> Fault {
    let (adapter, replica) = (random.index(adapters), random.index(replicas));
    match random.index(30) {
        0..3 => Fault::KillAdapter { adapter, host_too: false },
        3 => Fault::KillAdapter { adapter, host_too: true },
        4 | 5 => Fault::StopAdapter { adapter },
        6 => Fault::Freeze { adapter },
        7 => Fault::FreezeInWrite { adapter },
        8 => Fault::Cut { adapter, writes: true, locks: true },
        9 => Fault::Cut { adapter, writes: true, locks: false },
        10 => Fault::Cut { adapter, writes: false, locks: true },
        11 | 12 => Fault::KillSender { replica, resends: false },
        13 | 14 => Fault::KillSender { replica, resends: true },
        15 => Fault::Silence { replica },
        16 => Fault::CloseConnections { replica },
        17 => Fault::DatabaseDown,
        18 => Fault::DatabaseSlow,
        19 => Fault::EndWrites,
        20 | 21 => Fault::Seal { all: random.chance(50) },
        22 => {
            let by_ms = [-30_000, 30_000, 2_000, -2_000, 40 * 86_400_000, -40 * 86_400_000][random.index(6)];
            Fault::Clock { host: random.chance(75).then_some(replica), by_ms }
        }
        23 if mode == Mode::Lock => Fault::EndLockSession,
        24..27 if mode != Mode::Labels => Fault::Order {
            adapter,
            order: match random.index(5) {
                0 => Ordered::Resign,
                1 => Ordered::Hold,
                _ if mode == Mode::Rest => Ordered::Lead,
                _ => Ordered::HandOver { to: random.index(adapters) },
            },
        },
        23..27 => {
            let order = [Ordered::Hold, Ordered::Resign, Ordered::Lead][random.index(3)];
            Fault::Order { adapter: replica, order }
        }
        27 | 28 if mode == Mode::Labels => Fault::Reshuffle,
        _ => Fault::KillSender { replica, resends: random.chance(50) },
    }
}
