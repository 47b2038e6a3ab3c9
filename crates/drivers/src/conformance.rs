//! One suite that every engine passes, the simulator included, so that it cannot drift.
