//! An exec-server in this process.

mod envelope;
mod fs;
