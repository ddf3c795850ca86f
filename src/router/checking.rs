//! What is looked at now and then: whether sessions have stopped, whether something is stuck, what is to be tried again.

use std::{mem, sync::Arc, time::Duration};

use actix::{AsyncContext as _, Context, Handler, Message, WeakAddr};
use tokio::time::{Instant, sleep};

use super::{Router, State, events::StopNotice, routes::Route};
use crate::task::Task;

/// It is time to look at everything that nobody tells of.
struct CheckSessions;

impl Message for CheckSessions {
    type Result = ();
}

/// There are sessions that have stopped.
struct SessionsStopped;

impl Message for SessionsStopped {
    type Result = ();
}

/// Makes what tells a router that there are.
pub(super) fn stop_notice(router: WeakAddr<Router>) -> Arc<StopNotice> {
    StopNotice::new(move || {
        if let Some(router) = router.upgrade() {
            router.do_send(SessionsStopped);
        }
    })
}

/// After a process has exited, how long its end is awaited before it is asked for. Servers up to 0.120
/// forget a process 30 s after its exit, and then tell nothing.
const END_OVERDUE: Duration = Duration::from_secs(35);

impl Router {
    /// Has the sessions checked from now on, for as long as there is anything to look at.
    pub(super) fn check_sessions(&mut self, context: &mut Context<Self>) {
        if self.checking.is_none() {
            let router = context.address().downgrade();
            let check = check_sessions(router, self.session_check_interval);
            self.checking = Some(Task::spawn(check));
        }
    }

    /// Ends the processes whose sessions have stopped.
    fn abandon_stopped(&mut self, context: &mut Context<Self>) {
        self.stop_notice.take();
        for process_id in self.routes.stopped() {
            self.abandon(process_id, context);
        }
    }

    /// Looks at everything once. Returns whether there is nothing that has to be looked at again.
    fn check(&mut self, context: &mut Context<Self>) -> bool {
        for orphan in mem::take(&mut self.orphans) {
            self.settle(orphan, context);
        }
        self.remove_unremoved(context);
        self.abandon_stopped(context);
        self.has_abandoned_stopped = false;
        let now = Instant::now();
        let checked = mem::replace(&mut self.checked, self.turn);
        let mut behind = Vec::new();
        // What is tried again is looked at again if that fails. What has waited may leave anything behind.
        let mut is_idle = self.parked.is_none();
        for route in self.routes.iter_mut() {
            route.delivery.tick(now);
            // Once, when nothing was delivered since the last check.
            if (1..=checked).contains(&route.delivered_in) {
                route.delivered_in = 0;
                route.session.shrink();
            }
            if route.delivery.is_end_overdue(now, END_OVERDUE) {
                route.delivery.check_end();
            }
            if route.delivery.wants_read() {
                behind.push(route.delivery.process_id().clone());
            }
            is_idle &= !needs_look(route);
        }
        for process_id in behind {
            self.queue_read(&process_id);
        }
        self.read_next(context);
        self.unpark(context);
        is_idle
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

/// Whether time alone may make something of this.
fn needs_look(route: &Route) -> bool {
    route.session.stops_unnoticed() || route.delivered_in != 0 || route.delivery.needs_ticks()
}

impl Handler<CheckSessions> for Router {
    type Result = ();

    fn handle(&mut self, _: CheckSessions, context: &mut Self::Context) {
        if self.check(context) {
            self.checking = None;
        }
    }
}

impl Handler<SessionsStopped> for Router {
    type Result = ();

    /// The first is dealt with at once, those that stop thereafter with the next check: to find one costs as much as to
    /// find all.
    fn handle(&mut self, _: SessionsStopped, context: &mut Self::Context) {
        if let State::Open { .. } = self.state
            && !mem::replace(&mut self.has_abandoned_stopped, true)
        {
            self.check_sessions(context);
            self.abandon_stopped(context);
            // It may be one of them that the others wait for.
            self.unpark(context);
        }
    }
}
