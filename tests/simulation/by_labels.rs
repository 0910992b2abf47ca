//! The election by labels.
use crate::adapter::Adapter;
use crate::kernel::Ms;
use crate::settings::Ordered;
use crate::world::World;
use std::rc::Rc;

#[derive(Clone, Debug)]
pub(crate) struct Report;

impl Adapter {
    pub(crate) async fn rounds(self: &Rc<Self>) {}
}

impl World {
    pub(crate) async fn order_by_labels(self: &Rc<Self>, _replica: usize, _order: Ordered, _until: Ms) {}
}
