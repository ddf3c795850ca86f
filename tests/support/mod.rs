//! What the tests share. Each test file uses a part of it.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod exec_server;
pub mod history;
pub mod listener;
pub mod peer;
pub mod proxy;
pub mod recorder;

use std::time::Duration;

/// Bounds a wait. A net under the test, never a step of it.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(120), future)
        .await
        .expect("should not take two minutes")
}
