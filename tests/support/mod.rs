//! What the tests share. Each test file uses a part of it.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod between;
pub mod exec_server;
pub mod faulty_client;
pub mod faulty_server;
pub mod history;
#[cfg(feature = "server")]
pub mod jwt;
pub mod listener;
pub mod peer;
#[cfg(all(feature = "cli", unix))]
pub mod program;
pub mod proxy;
pub mod random;
pub mod raw;
pub mod recorder;

use std::time::Duration;

/// Runs a test, and checks that nothing of the crate's is left when all that the test held is gone: no
/// actor, no task, and so no timer.
pub async fn checked<F: Future>(test: F) -> F::Output {
    let output = test.await;
    soon(async {
        while execmux::alive() > 0 {
            // Lets time pass where it is paused: what ends by a deadline of its own is not left.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    output
}

/// Bounds a wait. A net under the test, never a step of it.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(120), future)
        .await
        .expect("should not take two minutes")
}

/// Returns the text of an error and, behind colons, of each of its causes.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
