//! The simulated engine: virtual, seeded, stricter than Docker, with real bytes in its volumes.
