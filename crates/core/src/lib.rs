//! Pure decisions of Perennial: types, plan, permits and policies.
//!
//! Nothing here awaits, reads a clock, touches a disk, or knows a wire format.

pub mod progress;
