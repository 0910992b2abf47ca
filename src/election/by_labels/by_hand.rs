//! Orders of an operator to a cluster's election. They are written to the cluster's row, where every adapter reads
//! them.

use std::sync::Arc;
use std::time::Instant;

use crate::election::by_labels::clusters::Clusters;
use crate::election::by_labels::orders::{ClusterOrder, ClusterRefusal, Given, PATIENCE};

impl Clusters {
    /// Gives an order, and waits until some adapter has carried it out.
    ///
    /// # Errors
    ///
    /// The reason why the order is not carried out.
    pub async fn give(self: &Arc<Self>, cluster: &str, order: ClusterOrder) -> Result<(), ClusterRefusal> {
        let (seen, known) =
            self.replicas_of(cluster).ok_or_else(|| ClusterRefusal::NoSuchCluster { cluster: cluster.to_owned() })?;
        let seen = seen.ok_or_else(|| ClusterRefusal::NobodyLeads { cluster: cluster.to_owned() })?;
        if let Some(replica) = order.replica() {
            if !known.iter().any(|known| known == replica) && !seen.held_out.iter().any(|known| known == replica) {
                let (cluster, replica) = (cluster.to_owned(), replica.to_owned());
                return Err(ClusterRefusal::NoSuchReplica { cluster, replica, known });
            }
            if matches!(order, ClusterOrder::HandOver { .. })
                && seen.held_out.iter().any(|held_out| held_out == replica)
            {
                return Err(ClusterRefusal::HeldOut { replica: replica.to_owned() });
            }
        }
        if let Some(outcome) = order.outcome(seen.fence, &seen) {
            return outcome;
        }
        log::info!(cluster = cluster, order = order.word(), replica = order.replica(); "ordered");
        let until = Instant::now() + PATIENCE;
        let given = Given { fence: seen.fence, order, until };
        let way = self.on_its_way(given.clone());
        let mut changes = self.changes();
        let carried_out = async {
            loop {
                changes.mark_unchanged();
                if let Some((Some(now), _)) = self.replicas_of(cluster)
                    && let Some(outcome) = given.order.outcome(given.fence, &now)
                {
                    return outcome;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let outcome = tokio::time::timeout_at(until.into(), carried_out).await;
        let outcome = outcome.unwrap_or_else(|_| Err(ClusterRefusal::Overdue { is_written: way.is_written() }));
        if let Err(refusal) = &outcome {
            log::info!(cluster = cluster, err:% = refusal; "not carried out");
        }
        outcome
    }

    fn on_its_way(self: &Arc<Self>, given: Given) -> Way {
        let mut orders = self.orders.lock();
        let no = orders.next_no;
        orders.next_no += 1;
        orders.unwritten.push((no, given));
        drop(orders);
        self.wake.notify_one();
        Way { clusters: Arc::clone(self), no }
    }

    /// Returns the orders that are not yet written to a cluster's row, each with its number.
    pub(super) fn unwritten(&self) -> Vec<(u64, Given)> {
        self.orders.lock().unwritten.clone()
    }

    /// Notes that the order with this number is written.
    pub(super) fn on_written(&self, no: u64) {
        let mut orders = self.orders.lock();
        orders.unwritten.retain(|(unwritten, _)| *unwritten != no);
    }
}

/// Removes an order from the unwritten ones when it is dropped, because no caller waits for it any more.
struct Way {
    clusters: Arc<Clusters>,
    no: u64,
}

impl Way {
    fn is_written(&self) -> bool {
        self.clusters.unwritten().iter().all(|(no, _)| *no != self.no)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.clusters.on_written(self.no);
    }
}
