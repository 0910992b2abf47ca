//! Observation of what was committed, for all senders of an adapter.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::clock::now_ms;
use crate::handover::Handover;
use crate::handover::group::NO_GROUP;
use crate::handover::replicas::Replicas;
use crate::handover::senders::{Observed, Senders};
use crate::model::sender::SenderNo;
use crate::postgres::error::{Class, Error};
use crate::storage::hot::SeriesAt;

/// Maximum round trip of a clock measurement, ms: a longer one shows too little of the server's clock.
const ROUND_TRIP_MAX_MS: i64 = 100;

impl Senders {
    /// Observes what was committed since the last observation, in all groups. If the server is another one, everything
    /// is observed anew, and samples that were acknowledged lately are to be found again there.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection. The next observation goes on from the end of the last one.
    pub async fn observe(&self) -> Result<(), Error> {
        let begun_before = self.begun.load(Ordering::Acquire);
        let mut last = self.observed.lock().await;
        if last.completed > begun_before {
            // Another caller has observed, while this one waited, everything that was committed when this was called.
            return Ok(());
        }
        match self.observe_from(&mut last).await {
            Err(error) if error.class() == Class::Moved => {
                if self.store.look_at_server().await? {
                    log::warn!(
                        "the database server is another one, or was started again: what was acknowledged lately is stored again \
                         where it is missing"
                    );
                    *last = Observed::default();
                    *self.replicas.lock() = Replicas::default();
                    let (epoch, identities) = self.store.server().identities();
                    for (group, handovers) in self.members().into_values() {
                        group.moved();
                        handovers.iter().for_each(|handover| handover.moved(epoch, Arc::clone(&identities)));
                    }
                }
                self.observe_from(&mut last).await
            }
            observed => observed,
        }
    }

    async fn observe_from(&self, last: &mut Observed) -> Result<(), Error> {
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let members = self.members();
        let names: Vec<String> = members.keys().cloned().collect();
        // An adapter without an election must see which series are stored by groups with an election. This begins with
        // its second observation, because those that the first one would see may have ended before.
        let is_alone = self.own.as_ref().is_some_and(|(group, _)| group == NO_GROUP);
        let groups = if is_alone && last.position.is_some() { None } else { Some(names.as_slice()) };
        // The adapter's own senders must not be taken for another adapter's.
        self.find_numbers(self.store.epoch()).await?;
        // Only this adapter stores the samples of its own Prometheus, and it knows them.
        let own = members.values().flat_map(|(_, handovers)| handovers).filter(|_| self.own.is_some());
        let own: Vec<SenderNo> = own.filter_map(|handover| handover.number_if_known()).collect();
        let except = if last.position.is_some() { own.as_slice() } else { &[] };
        let is_fresh = |handover: &Arc<Handover>| handover.is_fresh.load(Ordering::Relaxed);
        let fresh =
            members.iter().filter(|(_, (_, handovers))| last.position.is_some() && handovers.iter().any(is_fresh));
        let fresh: Vec<&str> = fresh.map(|(group, _)| group.as_str()).collect();
        let now = Instant::now();
        for (group, handovers) in members.values().filter(|_| self.own.is_some()) {
            let leader = group.leading().and_then(|leading| leading.sender);
            on_leader(handovers, leader, self.store.server_ms());
        }
        // Rows of senders that are new, and all rows where several adapters store the samples of one sender: the
        // samples of a series are to be observed in the order of their times.
        let mut later: Vec<SeriesAt> = Vec::new();
        let observed = self
            .store
            .observe(last.position.as_deref(), groups, &fresh, except, |row| {
                let group = last.groups.get(&row.sender.split().0).filter(|_| self.own.is_some());
                match group.map(|group| (group, members.get(group))) {
                    Some((_, Some((group, handovers)))) => {
                        let leads = group.leading().is_some_and(|leading| leading.sender == Some(row.sender));
                        on_stored(handovers, &row, leads, now);
                    }
                    Some((group, None)) => self.replicas.lock().stores(group, row.series.into_iter(), now),
                    None => later.push(row),
                }
            })
            .await?;
        if self.own.is_some() && observed.round_trip_ms <= ROUND_TRIP_MAX_MS {
            *self.clock_offset_ms.lock() = Some(observed.clock_offset_ms);
            for handover in members.values().flat_map(|(_, handovers)| handovers) {
                let others = observed.senders.iter().filter(|sender| {
                    members.contains_key(&sender.group_name) && Some(sender.sender) != handover.number_if_known()
                });
                let others = others.map(|sender| (sender.sender, sender.clock_offset_ms));
                handover.with(|state| state.on_clocks(now_ms(), observed.clock_offset_ms, others, Instant::now()));
            }
        }
        last.groups = observed.senders.into_iter().map(|sender| (sender.sender, sender.group_name)).collect();
        later.sort_unstable_by_key(|row| row.time_ms);
        if self.own.is_none() {
            for read in &observed.groups {
                let Some((_, handovers)) = members.get(&read.group_name) else { continue };
                on_leader(handovers, read.sender_no, self.store.server_ms());
            }
        }
        let leading: HashSet<SenderNo> = observed.groups.iter().filter_map(|read| read.sender_no).collect();
        for row in later {
            let Some(group) = last.groups.get(&row.sender.split().0) else { continue };
            match members.get(group) {
                Some((_, handovers)) => on_stored(handovers, &row, leading.contains(&row.sender), now),
                None => self.replicas.lock().stores(group, row.series.into_iter(), now),
            }
        }
        for handover in members.values().flat_map(|(_, handovers)| handovers) {
            handover.with(|state| state.on_observed(now));
            // For a sender that appeared since the last observation, nothing was observed before. The first observation
            // reads all that is hot.
            let is_fresh = handover.is_fresh.swap(false, Ordering::Relaxed);
            if is_fresh || !observed.is_complete {
                let hot_ms = if is_fresh { observed.fresh_newest_ms } else { i64::MIN };
                let newest_ms = observed.sealed_newest_ms.max(hot_ms);
                handover.with(|state| state.on_missed(newest_ms, observed.newest_series_no));
            }
        }
        let position = Arc::new(observed.position);
        // Last of all: whoever knows a counter must know what was stored before it.
        for group in observed.groups {
            if let Some((known, _)) = members.get(&group.group_name) {
                known.on_read(&group, &position);
            }
        }
        last.position = Some(position);
        last.completed = number;
        Ok(())
    }
}

/// Tells all senders of a group who leads it.
fn on_leader(handovers: &[Arc<Handover>], leader: Option<SenderNo>, server_ms: i64) {
    let Some(leader) = leader else { return };
    handovers.iter().for_each(|handover| handover.with(|state| state.on_leader(leader, server_ms)));
}

/// Tells all senders of a group what one sender stored, and whether that one leads.
fn on_stored(handovers: &[Arc<Handover>], row: &SeriesAt, leads: bool, now: Instant) {
    let (_, is_marker) = row.sender.split();
    for handover in handovers {
        // A stale marker covers nobody's sample, as an own sample covers no other own sample.
        let is_own = is_marker || handover.number_if_known() == Some(row.sender);
        handover.with(|state| state.on_stored(row.time_ms, is_own, leads, row.series.iter().copied(), now));
    }
}
