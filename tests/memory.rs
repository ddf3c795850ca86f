//! What sessions that do not consume cost in memory: no more than their connection's ceiling.
//!
//! Alone in its file, as the allocator counts for the whole process.
#![allow(clippy::unwrap_used)]

mod support;

use execmux::SessionEvent;
use peak_alloc::PeakAlloc;
use serde_json::json;
use support::{
    checked,
    peer::{Peer, config},
    recorder::Tap,
};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// Buffers on the way, tasks, tables, and the test itself.
const SLACK: usize = 3 * MIB;

#[actix::test]
async fn p4_memory_stays_under_the_ceiling_when_nobody_consumes() {
    checked(async {
        let mut config = config();
        config.session_budget = MIB;
        config.connection_budget = 8 * MIB;
        let (mux, mut peer) = Peer::connect(config).await;
        // Outputs of very different sizes, as the small ones cost more to keep than they are long.
        for size in [1, 8192] {
            let before = ALLOCATOR.current_usage();
            ALLOCATOR.reset_peak_usage();
            let mut sessions = Vec::new();
            for n in 0..16 {
                let (tap, events) = Tap::start_session();
                mux.register(format!("{size} {n}"), tap.recipient())
                    .await
                    .unwrap();
                sessions.push(events);
            }
            let text = "x".repeat(size);
            // Twice what the sessions may hold together.
            let rounds = 2 * 8 * MIB / 16 / (size + 128);
            for seq in 1..=rounds as u64 {
                for n in 0..16 {
                    peer.output(&format!("{size} {n}"), seq, "stdout", &text)
                        .await;
                }
            }
            // Answered when all before it is handled.
            let handled = actix::spawn({
                let mux = mux.clone();
                async move { mux.metadata("/").await.map(drop) }
            });
            let request = loop {
                let request = peer.request().await;
                if request.method == "fs/getMetadata" {
                    break request;
                }
            };
            let metadata =
                json!({"isDirectory": true, "isFile": false, "createdAtMs": 0, "modifiedAtMs": 0});
            peer.answer(&request, metadata).await;
            handled.await.unwrap().unwrap();
            let held = ALLOCATOR.current_usage() - before;
            let peak = ALLOCATOR.peak_usage() - before;
            println!("outputs of {size} bytes: {held} bytes held, {peak} at most");
            assert!(
                peak <= 8 * MIB + SLACK,
                "{peak} bytes for outputs of {size}"
            );
            // What is held is what was paid for, and not much less: else nothing was tested.
            assert!(held >= MIB, "{held} bytes");
            for (n, mut events) in sessions.into_iter().enumerate() {
                assert!(matches!(events.next().await, Some(SessionEvent::Output(_))));
                mux.unregister(format!("{size} {n}")).await.unwrap();
                drop(events);
            }
        }
    })
    .await;
}
