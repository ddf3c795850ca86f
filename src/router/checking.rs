//! What is looked at now and then: whether sessions have stopped, whether something is stuck, what is to be tried again.

use std::{mem, time::Duration};

use actix::{AsyncContext as _, Context, Handler, Message, WeakAddr};
use tokio::time::{Instant, sleep};

use super::Router;
use crate::task::Task;

/// It is time to look for sessions that have stopped.
struct CheckSessions;

impl Message for CheckSessions {
    type Result = ();
}

/// After a process has exited, how long its end is awaited before it is asked for. Servers up to 0.120
/// forget a process 30 s after its exit, and then tell nothing.
const END_OVERDUE: Duration = Duration::from_secs(35);

impl Router {
    /// Has the sessions checked from now on.
    pub(super) fn check_sessions(&mut self, context: &mut Context<Self>) {
        if self.checking.is_none() {
            let router = context.address().downgrade();
            let check = check_sessions(router, self.session_check_interval);
            self.checking = Some(Task::spawn(check));
        }
    }
}

/// Has the router check its sessions, until it is gone.
async fn check_sessions(router: WeakAddr<Router>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(router) = router.upgrade() else {
            return;
        };
        router.do_send(CheckSessions);
    }
}

impl Handler<CheckSessions> for Router {
    type Result = ();

    fn handle(&mut self, _: CheckSessions, context: &mut Self::Context) {
        let orphans = mem::take(&mut self.orphans);
        let stopped = self.routes.stopped();
        let is_idle = orphans.is_empty() && self.unremoved.is_empty() && self.routes.is_empty();
        for orphan in orphans {
            self.settle(orphan, context);
        }
        self.remove_unremoved(context);
        for process_id in stopped {
            self.abandon(process_id, context);
        }
        let now = Instant::now();
        let checked = mem::replace(&mut self.checked, self.turn);
        let mut behind = Vec::new();
        for route in self.routes.iter_mut() {
            route.delivery.tick();
            // Once, when nothing was delivered since the last check.
            if (1..=checked).contains(&route.delivered_in) {
                route.delivered_in = 0;
                route.session.shrink();
            }
            if route.delivery.has_exited()
                && now - *route.end_checked.get_or_insert(now) >= END_OVERDUE
            {
                route.end_checked = Some(now);
                route.delivery.check_end();
            }
            if route.delivery.wants_read() {
                behind.push(route.delivery.process_id().clone());
            }
        }
        for process_id in behind {
            self.queue_read(&process_id);
        }
        self.read_next(context);
        self.unpark(context);
        if is_idle {
            self.checking = None;
        }
    }
}
