//! The queue through which orders reach the election, one at a time.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::election::machine::Machine;
use crate::election::orders::{Order, Refusal};
use crate::election::{Config, Method};

/// Time that a caller waits for the answer after the order's deadline.
const GRACE: Duration = Duration::from_secs(1);

/// The side that gives orders.
#[derive(Clone, Debug)]
pub struct CommandHandle {
    given: mpsc::Sender<Given>,
    patience: Duration,
    is_external: bool,
    is_held: watch::Receiver<bool>,
}

/// The side that takes orders.
#[derive(Debug)]
pub struct CommandQueue {
    given: mpsc::Receiver<Given>,
    waiting: Option<oneshot::Sender<Result<(), Refusal>>>,
    is_held: watch::Sender<bool>,
    /// The last error of the database, while there is no session.
    pub(super) trouble: Option<String>,
}

#[derive(Debug)]
pub(super) struct Given {
    order: Order,
    given_at: Instant,
    until: Instant,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

/// Returns both sides. The deadline of an order is one lease after it was given.
#[must_use]
pub fn open(config: &Config) -> (CommandHandle, CommandQueue) {
    let (sender, given) = mpsc::channel(1);
    let (held_sender, held) = watch::channel(config.is_held);
    let is_external = matches!(config.method, Method::External(_));
    let orders = CommandHandle { given: sender, patience: config.lease, is_external, is_held: held };
    (orders, CommandQueue { given, waiting: None, is_held: held_sender, trouble: None })
}

impl CommandHandle {
    /// Gives an order, and waits until it is carried out. An order whose caller has gone before its turn is dropped.
    ///
    /// # Errors
    ///
    /// The reason why the order is not carried out.
    pub async fn give(&self, order: Order) -> Result<(), Refusal> {
        let (answer, answered) = oneshot::channel();
        let given_at = Instant::now();
        let until = given_at + self.patience;
        let work = async {
            let given = Given { order, given_at, until, answer };
            self.given.send(given).await.map_err(|_| Refusal::Stopping)?;
            answered.await.map_err(|_| Refusal::Stopping)?
        };
        let overdue = Refusal::Overdue { after: self.patience, reason: "the election is busy", trouble: None };
        tokio::time::timeout_at((until + GRACE).into(), work).await.unwrap_or(Err(overdue))
    }

    /// Returns `true` if an external party appoints leaders.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.is_external
    }

    /// Returns `true` if this adapter is excluded from elections.
    #[must_use]
    pub fn is_held(&self) -> bool {
        *self.is_held.borrow()
    }
}

impl CommandQueue {
    /// Waits for the next order. Waits for ever while an order is being carried out.
    pub(super) async fn next(&mut self) -> Given {
        while self.waiting.is_none()
            && let Some(given) = self.given.recv().await
        {
            if !given.answer.is_closed() {
                return given;
            }
        }
        std::future::pending().await
    }

    /// Passes the order to the machine.
    pub(super) fn take(&mut self, Given { order, given_at, until, answer }: Given, machine: &mut Machine) {
        log::info!(order = order.word(), to = order.to(); "ordered");
        machine.on_order(order, given_at, until);
        self.waiting = Some(answer);
    }

    /// Sends the outcome of the order to its caller, once there is one.
    pub(super) fn answer(&mut self, machine: &mut Machine, now: Instant) {
        let is_held = machine.is_held();
        self.is_held.send_if_modified(|known| std::mem::replace(known, is_held) != is_held);
        let Some(mut outcome) = machine.outcome(now) else { return };
        if let Err(refusal) = &mut outcome {
            if let Refusal::Overdue { trouble, .. } = refusal {
                trouble.clone_from(&self.trouble);
            }
            log::info!(err:% = refusal; "not carried out");
        }
        if let Some(answer) = self.waiting.take() {
            let _ = answer.send(outcome);
        }
    }
}
