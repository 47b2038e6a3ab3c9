//! Engines that run containers. They decide nothing.

pub mod conformance;
pub mod docker;
pub mod sim;
pub mod tapped;
