//! Election by labels in virtual time: the real clusters and ledgers of two or three adapters, to any of which two or three
//! replicas send, and models of everything around them.

pub(crate) mod adapter;
mod judge;
mod settings;
pub(crate) mod world;

pub(crate) use self::world::World;
