//! Comparison of samples of many senders with what is stored around them, in few statements for all of them.

use crate::handover::Handover;
use crate::handover::buffer::Buffered;
use crate::handover::rows;
use crate::postgres::error::Error;
use crate::storage::around::{Around, Near};
use crate::storage::ingest::Right;
use crate::storage::reconcile::{Reconcile, Reconciled};
use crate::storage::row::Row;

/// Maximum of numbers of samples that are compared in one transaction. A float has one, and a native histogram some
/// dozens.
const NUMBERS_MAX: usize = 200_000;

/// Samples of one sender that are to be compared with what is stored around them.
pub(super) struct Uncompared<'a> {
    pub(super) handover: &'a Handover,
    /// In the order of series and time.
    pub(super) samples: &'a [Buffered],
    pub(super) right: Right,
    /// `true` if the group's counter is to be raised, to tell the leader.
    pub(super) is_told: bool,
}

/// Result of the comparison of one sender's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// Number of samples that were missing and are now stored.
    pub(super) stored: usize,
    /// The value to which the group's counter was raised.
    pub(super) told: Option<i64>,
}

/// Samples of one sender, around which to look for stored ones.
struct Sought {
    rows: Vec<Row>,
    window_ms: i64,
    unbounded: Vec<i64>,
}

/// Samples of one sender around which too little is stored.
struct Missing<'a> {
    of: &'a Uncompared<'a>,
    /// Place among all that are compared.
    place: usize,
    samples: Vec<Buffered>,
    sought: Sought,
}

/// Compares samples with what is stored around them, and stores those that are missing. All are of one epoch, and each
/// of another group, because two senders of a group may miss the same slot. The result of one is `None` if another term
/// is in force, or if it is one of several and its group is just being written to: nothing of it is stored then.
///
/// # Errors
///
/// Errors of the server or of the connection; `Error::Moved` if the epoch is over.
pub(super) async fn reconcile(all: &[Uncompared<'_>]) -> Result<Vec<Option<Compared>>, Error> {
    let Some(Uncompared { handover, right, .. }) = all.first() else { return Ok(Vec::new()) };
    if all.iter().any(|one| one.right.epoch != right.epoch) {
        return Err(Error::Moved);
    }
    let sought = all.iter().map(Uncompared::sought).collect::<Result<Vec<_>, _>>()?;
    let near: Vec<Near<'_>> = sought.iter().map(Sought::near).collect();
    // Most samples are found stored, and that needs no lock.
    let around = handover.store.around(&near, right.epoch).await?;
    let (mut missing, mut compared) = (Vec::new(), vec![Some(Compared::default()); all.len()]);
    for (place, (one, sought)) in all.iter().zip(sought).enumerate() {
        missing.extend(one.missing(place, sought, &around)?);
    }
    let inserted = insert(&missing).await?;
    for (one, inserted) in missing.iter().zip(inserted) {
        compared[one.place] = inserted.map(|inserted| one.on_inserted(&inserted)).transpose()?;
    }
    Ok(compared)
}

/// Compares samples once more while nobody else writes for their groups, and stores those that are still missing.
async fn insert(missing: &[Missing<'_>]) -> Result<Vec<Option<Reconciled>>, Error> {
    let Some(Missing { of: Uncompared { handover, .. }, .. }) = missing.first() else { return Ok(Vec::new()) };
    let parts: Vec<Reconcile<'_>> = missing.iter().map(Missing::part).collect();
    let judge = |place: usize, around: &Around| rows(&missing[place].of.judge(&missing[place].samples, around));
    handover.store.reconcile(&parts, judge).await
}

/// Returns how many of the first samples are compared in one transaction, for which writers wait: those that have at most
/// [`NUMBERS_MAX`], or one.
pub(super) fn fitting(samples: &[Buffered]) -> usize {
    let numbers = samples.iter().scan(0, |sum, sample| {
        *sum += sample.row.value.count();
        Some(*sum)
    });
    numbers.take_while(|sum| *sum <= NUMBERS_MAX).count().max(1).min(samples.len())
}

impl Handover {
    /// Compares late samples with what is stored around them, and stores those that are missing. If nobody else has
    /// stored samples of the group since `right` was determined, it stays valid.
    pub(super) async fn reconcile_late(&self, late: &[Buffered], right: &mut Right) -> Result<(), Error> {
        let mut rest = late;
        while !rest.is_empty() {
            let (samples, later) = rest.split_at(fitting(rest));
            rest = later;
            let uncompared = Uncompared { handover: self, samples, right: right.clone(), is_told: self.is_shared };
            let compared = reconcile(&[uncompared]).await?;
            let Some(Some(Compared { told, .. })) = compared.first() else { return Err(Error::Fenced) };
            right.reconciled += i64::from(*told == Some(right.reconciled + 1));
        }
        Ok(())
    }
}

impl Sought {
    fn near(&self) -> Near<'_> {
        Near { rows: &self.rows, window_ms: self.window_ms, unbounded: &self.unbounded }
    }
}

impl Uncompared<'_> {
    fn sought(&self) -> Result<Sought, Error> {
        let Self { handover, samples, .. } = self;
        handover.in_epoch(self.right.epoch, |state| Sought {
            rows: rows(samples),
            window_ms: state.sender.window_ms(samples),
            unbounded: state.sender.unbounded(samples),
        })
    }

    fn judge(&self, samples: &[Buffered], around: &Around) -> Vec<Buffered> {
        self.handover.with(|state| state.missing(samples, around, self.right.sender))
    }

    /// Returns those of the samples that are missing according to `around`, which was found for `sought`, if any are.
    fn missing(&self, place: usize, sought: Sought, around: &Around) -> Result<Option<Missing<'_>>, Error> {
        let samples = self.judge(self.samples, around);
        // The second comparison is only for series that miss something.
        let is_missing = |id: &i64| samples.binary_search_by_key(id, |sample| sample.row.series_id).is_ok();
        let (unbounded, settled): (Vec<i64>, Vec<i64>) = sought.unbounded.into_iter().partition(is_missing);
        let Right { sender, epoch, .. } = self.right;
        self.handover.in_epoch(epoch, |state| state.sender.on_reconciled(&[], &settled, around, sender))?;
        if samples.is_empty() {
            self.handover.covered("late", self.samples.len());
            return Ok(None);
        }
        let sought = Sought { rows: rows(&samples), unbounded, ..sought };
        Ok(Some(Missing { of: self, place, samples, sought }))
    }
}

impl Missing<'_> {
    fn part(&self) -> Reconcile<'_> {
        Reconcile { near: self.sought.near(), right: self.of.right.clone(), is_told: self.of.is_told }
    }

    /// Notes what was stored.
    fn on_inserted(&self, done: &Reconciled) -> Result<Compared, Error> {
        let Uncompared { handover, samples, is_told, right: Right { sender, epoch, .. } } = self.of;
        let (unbounded, count) = (&self.sought.unbounded, done.inserted.len());
        handover.in_epoch(*epoch, |state| {
            state.sender.on_reconciled(&done.inserted, unbounded, &done.around, *sender);
        })?;
        handover.metrics.samples_filled_total.inc_by(count as u64);
        handover.covered("late", samples.len() - count);
        // Only if this sender leads: another sender of this adapter, which may lead, does not know yet what was
        // inserted.
        let leads = handover.group.leading().is_some_and(|leading| leading.sender == Some(*sender));
        let told = Some(done.reconciled).filter(|_| *is_told && count > 0);
        if let Some(told) = told.filter(|_| leads) {
            handover.group.told(told);
        }
        Ok(Compared { stored: count, told })
    }
}
