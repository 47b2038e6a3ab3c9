//! Archives that become snapshots, through the API: a simulated engine, real snapshots, real archives.

mod cli;
mod faults;
mod foreign;
mod refusals;
mod round_trip;
mod send;
