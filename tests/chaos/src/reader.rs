//! Somebody who reads all that is stored, again and again: nothing may be there twice at any instant.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::{Error, NoTls};
use tokio_util::task::TaskTracker;

use crate::host::Shape;
use crate::judge::{self, Cluster, Findings, Promised};
use crate::mode::Mode;

/// Between two looks; so many times as long as a look takes if that is more, so that it slows nothing down.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSES: u32 = 9;

/// Ends with its owner.
pub(crate) struct Reader {
    seen: Arc<Mutex<Findings>>,
    task: JoinHandle<()>,
}

/// How wrong the clocks of each cluster's replicas are.
type Skews = Vec<Vec<Arc<AtomicI64>>>;

impl Reader {
    /// Reads what is stored on the server at `uri`, as often as it answers.
    pub(crate) fn start(uri: String, mode: Mode, shape: Shape, skews_ms: Skews) -> Self {
        let seen = Arc::<Mutex<Findings>>::default();
        let found = Arc::clone(&seen);
        let task = TaskTracker::new().spawn(async move {
            loop {
                // A server that is away is of no interest here.
                let _ = look(&uri, mode, shape, &skews_ms, &found).await;
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { seen, task }
    }

    /// Adds what was seen that is not to be seen any more.
    pub(crate) fn findings(&self, findings: &mut Findings) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.doubled > findings.doubled || seen.backwards > findings.backwards {
            findings.examples.extend(seen.examples.iter().map(|example| format!("seen meanwhile: {example}")));
        }
        findings.doubled = findings.doubled.max(seen.doubled);
        findings.backwards = findings.backwards.max(seen.backwards);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(uri: &str, mode: Mode, shape: Shape, skews_ms: &Skews, seen: &Mutex<Findings>) -> Result<(), Error> {
    let (client, connection) = tokio_postgres::connect(uri, NoTls).await?;
    TaskTracker::new().spawn(connection);
    loop {
        let began = Instant::now();
        let stored = judge::read(&client, mode, &shape).await?;
        // Nothing was promised: what is missing is not asked for.
        let nothing = || vec![Vec::new(); shape.series + shape.rules];
        let cluster = |skews_ms: &Vec<Arc<AtomicI64>>| Cluster {
            journals: skews_ms.iter().map(|_| nothing()).collect(),
            skews_ms: skews_ms.iter().map(|skew_ms| skew_ms.load(Ordering::Relaxed)).collect(),
        };
        let promised = Promised { shape, mode, clusters: skews_ms.iter().map(cluster).collect() };
        let findings = judge::judge(&promised, &stored);
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if findings.doubled > seen.doubled || findings.backwards > seen.backwards {
                *seen = findings;
            }
        }
        tokio::time::sleep(PAUSE.max(began.elapsed() * PAUSES)).await;
    }
}
