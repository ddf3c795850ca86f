//! Actors that are told of the state of the link, and who keeps them alive.

use actix::{Actor, Addr, Handler, Message, Recipient, WeakAddr, WeakRecipient};

use super::{Connection, LinkState};

/// Has an actor told of the state of the link: of the present one at once, and then of each change.
///
/// The last state that it is told is [`LinkState::Closed`].
///
/// ```
/// # use actix::prelude::*;
/// use execmux::{LinkState, Subscribe};
///
/// # fn example(recipient: Recipient<LinkState>) -> Subscribe {
/// Subscribe::new(recipient)
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Subscribe {
    /// Who is told, and who keeps it alive.
    pub subscriber: Subscriber,
}

impl Subscribe {
    /// Has `subscriber` told.
    pub fn new(subscriber: impl Into<Subscriber>) -> Self {
        Subscribe {
            subscriber: subscriber.into(),
        }
    }
}

impl Message for Subscribe {
    type Result = ();
}

/// An actor that is told of the state of the link.
///
/// Made from a [`Recipient`] or an [`Addr`], the connection keeps the actor alive until it has told it
/// [`LinkState::Closed`], or the actor stops itself: nobody else has to hold it. Made from a
/// [`WeakRecipient`] or a [`WeakAddr`], the connection does not keep it alive: the application has to hold its
/// address. This is the same as for a [`Session`](crate::Session).
///
/// An actor that holds a [`Mux`](crate::Mux) should be given weakly. Given strongly, the actor keeps the connection open,
/// and the connection keeps the actor: neither ends before [`Mux::shutdown`](crate::Mux::shutdown) or the loss of the
/// connection.
#[derive(Debug, Clone)]
#[must_use]
pub struct Subscriber(Holding);

#[derive(Debug, Clone)]
enum Holding {
    Strong(Recipient<LinkState>),
    Weak(WeakRecipient<LinkState>),
}

impl Subscriber {
    /// Tells the actor of a state. Returns false, without telling it, if the actor has stopped.
    pub(super) fn tell(&self, state: LinkState) -> bool {
        let tell = |recipient: &Recipient<LinkState>| {
            let is_there = recipient.connected();
            if is_there {
                recipient.do_send(state);
            }
            is_there
        };
        match &self.0 {
            Holding::Strong(recipient) => tell(recipient),
            Holding::Weak(recipient) => recipient.upgrade().as_ref().is_some_and(tell),
        }
    }

    /// Returns false if the actor has stopped.
    pub(super) fn is_there(&self) -> bool {
        match &self.0 {
            Holding::Strong(recipient) => recipient.connected(),
            Holding::Weak(recipient) => recipient.upgrade().is_some_and(|it| it.connected()),
        }
    }
}

impl From<Recipient<LinkState>> for Subscriber {
    fn from(recipient: Recipient<LinkState>) -> Self {
        Subscriber(Holding::Strong(recipient))
    }
}

impl From<WeakRecipient<LinkState>> for Subscriber {
    fn from(recipient: WeakRecipient<LinkState>) -> Self {
        Subscriber(Holding::Weak(recipient))
    }
}

impl<A: Actor + Handler<LinkState>> From<Addr<A>> for Subscriber
where
    A::Context: actix::dev::ToEnvelope<A, LinkState>,
{
    fn from(address: Addr<A>) -> Self {
        address.recipient().into()
    }
}

impl<A: Actor + Handler<LinkState>> From<WeakAddr<A>> for Subscriber
where
    A::Context: actix::dev::ToEnvelope<A, LinkState>,
{
    fn from(address: WeakAddr<A>) -> Self {
        address.recipient().into()
    }
}

impl Handler<Subscribe> for Connection {
    type Result = ();

    fn handle(&mut self, Subscribe { subscriber }: Subscribe, _: &mut Self::Context) {
        let state = self.lifecycle.link_state();
        let is_last = matches!(state, LinkState::Closed(_));
        if subscriber.tell(state) && !is_last {
            // Those that have stopped make room.
            self.subscribers.retain(Subscriber::is_there);
            self.subscribers.push(subscriber);
        }
    }
}
