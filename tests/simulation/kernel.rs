//! Virtual time: the tasks of all nodes run one at a time, in an order that only the schedule determines.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Virtual time since the beginning of a schedule, ms.
pub(crate) type Ms = i64;

/// A process or a host. Its tasks freeze and die together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(usize);

/// Id of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaskId {
    place: usize,
    number: u64,
}

struct Task {
    node: NodeId,
    /// 0 if the place is free.
    number: u64,
    /// `None` while the task runs.
    work: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

#[derive(Default)]
struct Node {
    is_dead: bool,
    frozen_until: Ms,
}

/// Scheduler of the tasks in virtual time.
pub(crate) struct Kernel {
    start: Instant,
    now: Cell<Ms>,
    /// Counter that numbers tasks and wakes.
    count: Cell<u64>,
    /// Number of task steps so far.
    pub(crate) events: Cell<u64>,
    due: RefCell<BinaryHeap<Reverse<(Ms, u64, TaskId)>>>,
    tasks: RefCell<Vec<Task>>,
    free: RefCell<Vec<usize>>,
    nodes: RefCell<Vec<Node>>,
    current: Cell<Option<TaskId>>,
}

impl Kernel {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            start: Instant::now(),
            now: Cell::new(0),
            count: Cell::new(0),
            events: Cell::new(0),
            due: RefCell::default(),
            tasks: RefCell::default(),
            free: RefCell::default(),
            nodes: RefCell::default(),
            current: Cell::new(None),
        })
    }

    pub(crate) fn now(&self) -> Ms {
        self.now.get()
    }

    pub(crate) fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now().unsigned_abs())
    }

    /// Returns the virtual time of an instant, rounded up.
    pub(crate) fn time_of(&self, instant: Instant) -> Ms {
        let micros = instant.saturating_duration_since(self.start).as_micros();
        Ms::try_from(micros.div_ceil(1000)).unwrap_or(Ms::MAX)
    }

    fn number(&self) -> u64 {
        self.count.set(self.count.get() + 1);
        self.count.get()
    }

    pub(crate) fn node(&self) -> NodeId {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Node::default());
        NodeId(nodes.len() - 1)
    }

    /// Starts a task, unless its node is dead.
    pub(crate) fn spawn(&self, node: NodeId, work: impl Future<Output = ()> + 'static) -> Option<TaskId> {
        if self.nodes.borrow()[node.0].is_dead {
            return None;
        }
        let number = self.number();
        let task = Task { node, number, work: Some(Box::pin(work)) };
        let mut tasks = self.tasks.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or(tasks.len());
        if place == tasks.len() {
            tasks.push(task);
        } else {
            tasks[place] = task;
        }
        let id = TaskId { place, number };
        self.wake_at(self.now(), id);
        Some(id)
    }

    fn wake_at(&self, at: Ms, task: TaskId) {
        let number = self.number();
        self.due.borrow_mut().push(Reverse((at.max(self.now()), number, task)));
    }

    /// Returns the running task.
    pub(crate) fn current(&self) -> TaskId {
        self.current.get().expect("in a task")
    }

    /// Runs all tasks that are due, until the time `until` or until `is_over` is true.
    pub(crate) fn run(&self, until: Ms, is_over: impl Fn() -> bool) {
        loop {
            let next = self.due.borrow().peek().map(|Reverse((at, _, task))| (*at, *task));
            match next {
                Some((at, task)) if at <= until => {
                    self.due.borrow_mut().pop();
                    self.now.set(at);
                    self.step(task);
                    if is_over() {
                        return;
                    }
                }
                _ => return self.now.set(until.max(self.now())),
            }
        }
    }

    fn step(&self, id: TaskId) {
        let mut work = {
            let mut tasks = self.tasks.borrow_mut();
            let task = &mut tasks[id.place];
            if task.number != id.number {
                return;
            }
            let frozen_until = self.nodes.borrow()[task.node.0].frozen_until;
            if frozen_until > self.now() {
                return self.wake_at(frozen_until, id);
            }
            task.work.take().expect("it does not run")
        };
        self.events.set(self.events.get() + 1);
        self.current.set(Some(id));
        let is_done = work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        self.current.set(None);
        let mut tasks = self.tasks.borrow_mut();
        if tasks[id.place].number != id.number {
            drop(tasks);
            drop(work);
        } else if is_done {
            tasks[id.place].number = 0;
            self.free.borrow_mut().push(id.place);
            drop(tasks);
            drop(work);
        } else {
            tasks[id.place].work = Some(work);
        }
    }

    /// Ends a task as if its process had died: everything that the task owns is dropped.
    pub(crate) fn kill_task(&self, id: TaskId) {
        self.kill_where(|place, task| place == id.place && task.number == id.number);
    }

    /// Ends a node: its tasks end, and no task can start on it from now on.
    pub(crate) fn kill(&self, node: NodeId) {
        self.nodes.borrow_mut()[node.0].is_dead = true;
        self.kill_where(|_, task| task.node == node);
    }

    /// Ends all nodes and tasks.
    pub(crate) fn clear(&self) {
        self.nodes.borrow_mut().iter_mut().for_each(|node| node.is_dead = true);
        self.kill_where(|_, _| true);
    }

    fn kill_where(&self, is_meant: impl Fn(usize, &Task) -> bool) {
        let mut ended = Vec::new();
        for (place, task) in self.tasks.borrow_mut().iter_mut().enumerate() {
            if task.number != 0 && is_meant(place, task) {
                task.number = 0;
                ended.extend(task.work.take());
                self.free.borrow_mut().push(place);
            }
        }
        drop(ended);
    }

    /// Freezes the tasks of a node until the time `until`.
    pub(crate) fn freeze(&self, node: NodeId, until: Ms) {
        self.nodes.borrow_mut()[node.0].frozen_until = until;
    }

    pub(crate) fn is_dead(&self, node: NodeId) -> bool {
        self.nodes.borrow()[node.0].is_dead
    }

    pub(crate) async fn sleep_until(&self, at: Ms) {
        let mut is_set = false;
        poll_fn(|_| {
            if self.now() >= at {
                return Poll::Ready(());
            }
            if !is_set {
                is_set = true;
                self.wake_at(at, self.current());
            }
            Poll::Pending
        })
        .await;
    }

    pub(crate) async fn sleep(&self, ms: Ms) {
        self.sleep_until(self.now() + ms).await;
    }

    /// Awaits `work`; returns `None` if it takes longer than `ms`.
    pub(crate) async fn within<T>(&self, ms: Ms, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut over) = (pin!(work), pin!(self.sleep(ms)));
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => over.as_mut().poll(context).map(|()| None),
        })
        .await
    }
}

/// Work that runs concurrently with other work.
pub(crate) type Work<'a, E> = Pin<Box<dyn Future<Output = Result<(), E>> + 'a>>;

/// Runs all works concurrently until all are done or one fails.
pub(crate) async fn all<E>(mut works: Vec<Work<'_, E>>) -> Result<(), E> {
    poll_fn(|context| {
        let mut failed = None;
        works.retain_mut(|work| {
            failed.is_some()
                || match work.as_mut().poll(context) {
                    Poll::Pending => true,
                    Poll::Ready(done) => {
                        failed = done.err();
                        false
                    }
                }
        });
        match failed {
            Some(error) => Poll::Ready(Err(error)),
            None if works.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    })
    .await
}

/// Notifies all waiting tasks of a change.
pub(crate) struct Signal {
    kernel: Rc<Kernel>,
    waiting: RefCell<Vec<TaskId>>,
    changes: Cell<u64>,
}

impl Signal {
    pub(crate) fn new(kernel: &Rc<Kernel>) -> Self {
        Self { kernel: Rc::clone(kernel), waiting: RefCell::default(), changes: Cell::new(0) }
    }

    pub(crate) fn tell(&self) {
        self.changes.set(self.changes.get() + 1);
        for task in self.waiting.borrow_mut().drain(..) {
            self.kernel.wake_at(self.kernel.now(), task);
        }
    }

    /// Waits for the next change.
    pub(crate) async fn changed(&self) {
        let seen = self.changes.get();
        self.changed_since(seen).await;
    }

    /// Returns the number of changes so far.
    pub(crate) fn seen(&self) -> u64 {
        self.changes.get()
    }

    /// Waits until the number of changes differs from `seen`.
    pub(crate) async fn changed_since(&self, seen: u64) {
        poll_fn(|_| {
            if self.changes.get() != seen {
                return Poll::Ready(());
            }
            let current = self.kernel.current();
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.contains(&current) {
                waiting.push(current);
            }
            Poll::Pending
        })
        .await;
    }
}

/// A lock that one task holds at a time.
pub(crate) struct Mutex {
    is_taken: Cell<bool>,
    freed: Signal,
}

pub(crate) struct Guard<'a>(&'a Mutex);

impl Mutex {
    pub(crate) fn new(kernel: &Rc<Kernel>) -> Self {
        Self { is_taken: Cell::new(false), freed: Signal::new(kernel) }
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.is_taken.get()
    }

    pub(crate) async fn lock(&self) -> Guard<'_> {
        loop {
            match self.try_lock() {
                Some(guard) => return guard,
                None => self.freed.changed().await,
            }
        }
    }

    pub(crate) fn try_lock(&self) -> Option<Guard<'_>> {
        (!self.is_taken.replace(true)).then_some(Guard(self))
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.is_taken.set(false);
        self.0.freed.tell();
    }
}

/// One direction of a connection. Messages arrive later, in the order in which they were sent.
pub(crate) struct Channel<T> {
    kernel: Rc<Kernel>,
    /// `None` marks the end.
    messages: RefCell<VecDeque<(Ms, Option<T>)>>,
    reader: Cell<Option<TaskId>>,
}

impl<T> Channel<T> {
    pub(crate) fn new(kernel: &Rc<Kernel>) -> Rc<Self> {
        Rc::new(Self { kernel: Rc::clone(kernel), messages: RefCell::default(), reader: Cell::new(None) })
    }

    /// Sends a message; `None` means that no more messages follow.
    pub(crate) fn send(&self, after: Ms, message: Option<T>) {
        let mut messages = self.messages.borrow_mut();
        let at = (self.kernel.now() + after).max(messages.back().map_or(0, |(at, _)| *at));
        messages.push_back((at, message));
        if let Some(reader) = self.reader.get() {
            self.kernel.wake_at(at, reader);
        }
    }

    /// Returns the next message; `None` at the end.
    pub(crate) async fn next(&self) -> Option<T> {
        poll_fn(|_| {
            let mut messages = self.messages.borrow_mut();
            match messages.front() {
                Some((at, message)) if *at <= self.kernel.now() => {
                    if message.is_none() {
                        return Poll::Ready(None);
                    }
                    Poll::Ready(messages.pop_front().and_then(|(_, message)| message))
                }
                next => {
                    let current = self.kernel.current();
                    self.reader.set(Some(current));
                    if let Some((at, _)) = next {
                        self.kernel.wake_at(*at, current);
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Waits for the end. Messages before the end stay in the channel.
    pub(crate) async fn ended(&self) {
        poll_fn(|_| {
            let messages = self.messages.borrow();
            let end = messages.iter().find(|(_, message)| message.is_none()).map(|(at, _)| *at);
            match end {
                Some(at) if at <= self.kernel.now() => Poll::Ready(()),
                end => {
                    let current = self.kernel.current();
                    self.reader.set(Some(current));
                    if let Some(at) = end {
                        self.kernel.wake_at(at, current);
                    }
                    Poll::Pending
                }
            }
        })
        .await;
    }
}
