//! What the test wants to go wrong, and which of the next requests it happens to.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Kinds of requests: the path without its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    GetGateway,
    GetGatewayBot,
    GetCurrentUser,
    GetUser,
    GetApplication,
    CreateDm,
    GetChannel,
    GetMessages,
    GetMessage,
    CreateMessage,
    EditMessage,
    DeleteMessage,
    TriggerTyping,
    StartThreadOnMessage,
    StartThread,
    /// The upgrade to a WebSocket.
    Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and this is answered.
    Status(u16),
    /// 429, whatever the limits say.
    RateLimited { retry_after: Duration, global: bool },
    /// The connection closes, and nothing was done.
    CloseBefore,
    /// It is done, and then the connection closes: the client cannot know. `Connect` closes before, too.
    ActAndClose,
    /// It waits so long before it is done and answered.
    Delay(Duration),
    /// Nothing is done or answered, ever.
    Hang,
}

/// Faults that wait for requests, by kind of request.
#[derive(Default)]
pub(super) struct Faults {
    planned: HashMap<Route, VecDeque<(Fault, u32)>>,
}

impl Faults {
    pub(super) fn plan(&mut self, route: Route, times: u32, fault: Fault) {
        if times > 0 {
            self.planned.entry(route).or_default().push_back((fault, times));
        }
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }

    /// The fault of this request, which is used up with it.
    pub(super) fn next(&mut self, route: Route) -> Option<Fault> {
        let waiting = self.planned.get_mut(&route)?;
        let (fault, times) = waiting.front_mut()?;
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            waiting.pop_front();
        }
        Some(fault)
    }
}

/// Which connections to the gateway are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    All,
    Peer(SocketAddr),
    Session(String),
}

/// What a connection to the gateway is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Reconnect,
    Invalidate {
        resumable: bool,
    },
    Close(u16),
    /// Without a close frame.
    Drop,
    /// Reads and throws away, says nothing.
    Hang,
}
