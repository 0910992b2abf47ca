//! The election by labels.
use std::rc::Rc;
use crate::adapter::Adapter;
use crate::kernel::Ms;
use crate::settings::Ordered;
use crate::world::World;

#[derive(Clone, Debug)]
pub(crate) struct Report;

impl Adapter {
    pub(crate) async fn rounds(self: &Rc<Self>) {}
}

impl World {
    pub(crate) async fn order_by_labels(self: &Rc<Self>, _replica: usize, _order: Ordered, _until: Ms) {}
}
