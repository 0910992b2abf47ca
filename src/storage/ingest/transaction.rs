//! Opens and closes the transactions of a writer: shows the rights to write, claims the keys of requests, and looks for
//! what other adapters have stored.

use std::collections::{BTreeSet, HashSet};

use tokio_postgres::{Client, SimpleQueryMessage};
use uuid::Uuid;

use crate::model::sender::SenderNo;
use crate::postgres::error::{Error, FENCED, OVERTAKEN};
use crate::storage::fence::{Limits, array, begin, show, show_all};
use crate::storage::ingest::{Batch, SENT_AGAIN_MS, Stored, Writer};
use crate::storage::server::Epoch;

/// Result of showing a right to write: `Ok` if it is in force until the end of the transaction, else the reason why
/// not.
type Standing = Result<(), Stored>;

/// An open transaction for several batches.
pub(super) struct Begun {
    /// Standing of each batch's right to write.
    pub(super) standing: Vec<Standing>,
    pub(super) claimed: Claimed,
}

/// Request keys that a transaction has claimed: those of the batches in force that are not stored yet.
#[derive(Default)]
pub(super) struct Claimed {
    pub(super) keys: HashSet<Uuid>,
    /// Id of the transaction; 0 if no key is claimed.
    pub(super) xid: u64,
}

impl Writer {
    /// Opens a transaction that shows the rights of `batches`, and claims the request keys of those whose right is in
    /// force. If all batches are of one term, it is an error if that term is over. Returns `None`, with no transaction
    /// open, if all batches are overtaken.
    pub(super) async fn begin(
        &self,
        client: &Client,
        batches: &[&Batch],
        epoch: Epoch,
    ) -> Result<Option<Begun>, Error> {
        let rights: Vec<_> = batches.iter().map(|batch| (batch.right.fence, batch.right.reconciled)).collect();
        let (fence, reconciled) = rights[0];
        let is_one = rights.iter().all(|right| *right == rights[0]);
        let mut checks = self.server.check(&self.names, epoch)?;
        if rights.iter().all(|(other, _)| *other == fence) {
            // All batches are of one group, so this may wait for the group's lock up to the lock timeout: it delays no
            // writes of other groups.
            checks = format!("{checks}, {}", show(&self.names, fence, is_one.then_some(reconciled)));
        }
        if !is_one {
            checks = format!("{checks}, {}", show_all(&self.names, &rights));
        }
        let mut begin = begin(Limits::of(self.timeout), &checks);
        if is_one {
            begin = format!("{begin}; {}", self.claim(batches.iter().map(|batch| batch.key)));
        }
        // Sent as one message: after a failure the server skips the rest of it. No statement that stores is sent before
        // the answer.
        match client.simple_query(&begin).await.map_err(Error::from) {
            Ok(answer) if is_one => {
                Ok(Some(Begun { standing: vec![Ok(()); batches.len()], claimed: claimed(&answer)? }))
            }
            Ok(answer) => {
                let standing = standing(&answer)?;
                let in_force = batches.iter().zip(&standing).filter(|(_, standing)| standing.is_ok());
                let keys: Vec<Uuid> = in_force.map(|(batch, _)| batch.key).collect();
                let claimed = match keys.is_empty() {
                    true => Claimed::default(),
                    false => claimed(&client.simple_query(&self.claim(keys.into_iter())).await?)?,
                };
                Ok(Some(Begun { standing, claimed }))
            }
            Err(error) if error.sqlstate() == Some(OVERTAKEN) => {
                client.batch_execute("ROLLBACK").await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the statement that claims request keys, of which there is at least one. It returns the keys that no
    /// committed request has, each with the id of the transaction.
    fn claim(&self, keys: impl Iterator<Item = Uuid>) -> String {
        // Sorted, so that two transactions that share keys wait for each other and never deadlock.
        let keys: BTreeSet<Uuid> = keys.collect();
        let values = keys.iter().map(|key| format!("('{key}')")).collect::<Vec<_>>().join(", ");
        self.names.sql(&format!(
            "INSERT INTO {{requests}} (key) VALUES {values} ON CONFLICT DO NOTHING RETURNING key, pg_current_xact_id()"
        ))
    }

    /// Returns the statement that fails as overtaken if another adapter may have stored one of the samples of `batches`
    /// that were just stored; `None` if no other adapter stores samples of these senders. It does nothing if all samples
    /// are too young to be sent a second time.
    pub(super) fn refuse_stored_by_others(&self, batches: &[&Batch], epoch: Epoch, xid: u64) -> Option<String> {
        let shared = || batches.iter().filter(|batch| batch.right.observed.is_some());
        let rights = shared().filter_map(|batch| Some((batch.right.observed.as_deref()?, batch.right.fence?)));
        let (observed, fence) = rights.reduce(|one, other| if one.0.covers(other.0) { other } else { one })?;
        let oldest_ms = shared().flat_map(|batch| batch.rows.iter()).map(|row| row.time_ms).min()?;
        let senders: BTreeSet<SenderNo> = shared().map(|batch| batch.right.sender).collect();
        let (mut numbers, mut after, mut before) = (Vec::new(), Vec::new(), Vec::new());
        for sender in senders {
            let gaps = self.own_transactions.gaps(epoch, sender, observed, xid);
            // Stale markers are stored under a number of their own.
            for number in [sender, sender.of_markers()] {
                numbers.extend(gaps.iter().map(|_| number.0));
                after.extend(gaps.iter().map(|gap| gap.after));
                before.extend(gaps.iter().map(|gap| gap.before));
            }
        }
        // Never equal to the counter, so the fence raises.
        let refusal = show(&self.names, Some(fence), Some(-1));
        let stored_by_others = self.names.qualified("_stored_by_others");
        let (numbers, after, before) = (array(numbers.iter()), array(after.iter()), array(before.iter()));
        Some(format!(
            "SELECT {refusal} WHERE to_timestamp({oldest_ms} / 1000.0) < clock_timestamp() - interval '{SENT_AGAIN_MS} ms' \
             AND {stored_by_others}({numbers}, {after}, {before}, '{observed}')"
        ))
    }
}

/// Returns what the last of several answers says is claimed.
fn claimed(answer: &[SimpleQueryMessage]) -> Result<Claimed, Error> {
    let ended = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::CommandComplete(_));
    let mut claimed = Claimed::default();
    for message in answer.iter().rev().skip(1).take_while(|message| !ended(message)) {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let key = row.get(0).and_then(|key| Uuid::parse_str(key).ok());
        let Some((key, xid)) = key.zip(row.get(1).and_then(|xid| xid.parse().ok())) else {
            return Err(Error::Corrupt(format!(
                "a request is claimed with the key {:?} by {:?}",
                row.get(0),
                row.get(1)
            )));
        };
        claimed.keys.insert(key);
        claimed.xid = xid;
    }
    Ok(claimed)
}

/// Returns the standing of each right that was shown by [`show_all`], as the last value of the first row says.
fn standing(answer: &[SimpleQueryMessage]) -> Result<Vec<Standing>, Error> {
    let row =
        answer.iter().find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
    let raised = row.and_then(|row| row.get(row.len() - 1)).unwrap_or_default();
    let standing = |raised: &str| match raised {
        "-" => Ok(Ok(())),
        FENCED => Ok(Err(Stored::Fenced)),
        OVERTAKEN => Ok(Err(Stored::Overtaken)),
        other => Err(Error::Misconfigured(format!("the fences said {other:?}: the schema is another version's"))),
    };
    raised.split(',').map(standing).collect()
}
