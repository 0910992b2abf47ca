//! Where requests go: to the one adapter beside a Prometheus, or to any of several, as load balancers choose.
//!
//! It knows nothing of who is alive: what a dead adapter does not answer, its sender sends again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// How an adapter is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Each request the next one.
    RoundRobin,
    /// Each sender its own.
    PerSender,
    /// Each shard of a sender its own, as where connections are balanced.
    PerShard,
}

/// See the module.
pub(crate) struct Balancer {
    state: Mutex<State>,
    /// Counts how often all connections were cut.
    cuts: watch::Sender<u64>,
}

struct State {
    /// URLs of adapters.
    targets: Vec<String>,
    policy: Policy,
    /// The next in turn, and what else places depend on.
    turn: usize,
}

impl Balancer {
    /// Before these adapters.
    pub(crate) fn new(targets: Vec<String>) -> Self {
        let state = Mutex::new(State { targets, policy: Policy::RoundRobin, turn: 0 });
        Self { state, cuts: watch::Sender::new(0) }
    }

    /// Where `shard` of `sender` sends a request at this attempt: sticky ones go elsewhere when one fails.
    pub(crate) fn pick(&self, sender: usize, shard: usize, attempt: usize) -> String {
        let place = |of: (usize, usize)| {
            let mut hasher = DefaultHasher::new();
            (of, *self.cuts.borrow()).hash(&mut hasher);
            usize::try_from(hasher.finish() >> 32).unwrap_or(0) + attempt
        };
        let mut state = self.state();
        let place = match state.policy {
            Policy::RoundRobin => {
                state.turn += 1;
                state.turn
            }
            Policy::PerSender => place((sender, usize::MAX)),
            Policy::PerShard => place((sender, shard)),
        };
        state.targets[place % state.targets.len()].clone()
    }

    /// One more adapter.
    pub(crate) fn add(&self, target: String) {
        self.state().targets.push(target);
    }

    /// One less.
    pub(crate) fn remove(&self, target: &str) {
        self.state().targets.retain(|one| one != target);
    }

    /// Cuts every connection and chooses anew, by another policy perhaps.
    pub(crate) fn reshuffle(&self, policy: Policy) {
        self.state().policy = policy;
        self.cut();
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Changes whenever connections are cut.
    pub(crate) fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
