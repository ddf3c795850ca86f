//! Peers, networks and processes that do what they should not, and what must come of it.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

#[cfg(all(feature = "server", unix))]
mod half_open;
mod reads;
mod reads_held_up;
#[cfg(all(feature = "server", unix))]
mod server_auth;
#[cfg(all(feature = "server", unix))]
mod server_close;
#[cfg(all(target_os = "linux", feature = "server"))]
mod server_descriptors;
#[cfg(all(target_os = "linux", feature = "server"))]
mod server_leftovers;
mod slow_link;
mod starts;
