//! The HTTP API: routes, wire types, problem+json, SSE. No SQL and no engines here.

pub mod wire;
