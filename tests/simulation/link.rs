//! Connections between adapters and the database. Messages are delayed, and get lost while a way is cut.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use crate::kernel::{Channel, Ms, TaskId};
use crate::world::World;

/// A way to the database. One may be cut while the other works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Writes,
    Locks,
}

/// One end of a connection. On drop, the other end is notified.
pub(crate) struct End<Out, In> {
    world: Rc<World>,
    adapter: usize,
    way: Way,
    outgoing: Rc<Channel<Out>>,
    incoming: Rc<Channel<In>>,
    /// `true` once a message was lost: after that nothing arrives.
    is_broken: Cell<bool>,
}

/// The result of a statement will not arrive: its connection has ended, or its timeout has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost;

impl World {
    /// Returns the delay of a message; `None` if the message is lost.
    fn link(&self, adapter: usize, way: Way) -> Option<Ms> {
        let mut random = self.random.borrow_mut();
        let base = if self.is_calm() {
            random.between(0, 2)
        } else if random.chance(3) {
            random.spread(1, 800)
        } else {
            random.between(0, 2)
        };
        let cut_until = self.cut_until(adapter, way);
        if self.now() >= cut_until {
            return Some(base);
        }
        random.chance(50).then_some(cut_until - self.now() + base)
    }

    /// Opens a connection that a process of the server serves.
    pub(crate) fn connect<Out: 'static, In: 'static, F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        adapter: usize,
        way: Way,
        serve: impl FnOnce(Rc<Self>, End<In, Out>, TaskId) -> F + 'static,
    ) -> End<Out, In> {
        let (to_server, to_client) = (Channel::new(&self.kernel), Channel::new(&self.kernel));
        let end = |outgoing, incoming, is_broken| (outgoing, incoming, Cell::new(is_broken));
        let after = self.link(adapter, way);
        let (outgoing, incoming, is_broken) = end(Rc::clone(&to_server), Rc::clone(&to_client), after.is_none());
        let client = End { world: Rc::clone(self), adapter, way, outgoing, incoming, is_broken };
        let Some(after) = after else { return client };
        let world = Rc::clone(self);
        let server = End {
            world: Rc::clone(self),
            adapter,
            way,
            outgoing: to_client,
            incoming: to_server,
            is_broken: Cell::new(false),
        };
        self.kernel.spawn(self.network, async move {
            world.kernel.sleep(after).await;
            if world.database.borrow().is_up {
                let node = world.database.borrow().node;
                let own = Rc::clone(&world);
                let serving = async move {
                    let task = own.kernel.current();
                    serve(Rc::clone(&own), server, task).await;
                };
                world.kernel.spawn(node, serving);
            }
        });
        client
    }

    /// Runs one statement on its own connection and returns the answer.
    pub(crate) async fn ask<In: 'static>(
        self: &Rc<Self>,
        adapter: usize,
        limit: Ms,
        serve: impl FnOnce(&Rc<Self>) -> In + 'static,
    ) -> Result<In, Lost> {
        let serve = |world: Rc<Self>, end: End<In, ()>, _| async move {
            let answer = serve(&world);
            end.send(answer);
        };
        let end = self.connect(adapter, Way::Writes, serve);
        self.kernel.within(limit, end.next()).await.flatten().ok_or(Lost)
    }
}

impl<Out, In> End<Out, In> {
    pub(crate) fn send(&self, message: Out) {
        self.put(Some(message), 0);
    }

    fn put(&self, message: Option<Out>, more: Ms) {
        match self.world.link(self.adapter, self.way) {
            _ if self.is_broken.get() => {}
            Some(after) => self.outgoing.send(after + more, message),
            None => self.is_broken.set(true),
        }
    }

    /// Returns the next message; `None` at the end.
    pub(crate) async fn next(&self) -> Option<In> {
        self.incoming.next().await
    }

    /// Returns the next message; `None` at the end, or if no message arrives within `limit`.
    pub(crate) async fn next_within(&self, limit: Ms) -> Option<In> {
        self.world.kernel.within(limit, self.next()).await.flatten()
    }

    /// Waits until the other end is gone.
    pub(crate) async fn ended(&self) {
        self.incoming.ended().await;
    }
}

impl<Out, In> Drop for End<Out, In> {
    fn drop(&mut self) {
        if !self.world.is_gone(self.adapter) {
            self.put(None, 1);
        }
    }
}
