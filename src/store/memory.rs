//! Session state in the memory of one process: the replicated state machine without replication.
//!
//! For tests, and for nothing that must survive them. It applies commands with the same `decide` as every other
//! adapter's, one at a time, so that what passes here is decided as in production.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use openclaw_proto::ids::{ChannelAccount, InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::{Cursor, Entry, Instance, Intent, Lease, Pairing, RegisterInstance, Session, Turn};
use openclaw_raft::state_machine::{self, LogPosition, MemoryTables, TableError, read};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use super::channels::ChannelStore;
use super::{CommitError, Committed, Consistency, Event, Read, ReadError, SessionStore};

/// Events that a subscriber may be behind.
const EVENT_BACKLOG: usize = 1024;

/// One instance's tables. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct State {
    tables: MemoryTables,
    index: u64,
    /// What the next commands answer instead of being applied, first one first.
    faults: Vec<Fault>,
    /// As under a leader that is giving its office away: nothing commits, and reads are confirmed all the same.
    stalled: bool,
    /// As an instance is that lags: what its own copy of the leases still says.
    lagging: Option<MemoryTables>,
}

/// A commit that goes wrong, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not applied, and the caller is told so.
    NoQuorum,
    /// Applied, but the caller does not learn of it.
    LostAnswer,
}

impl MemoryStore {
    /// Empty tables, in which `instances` are live.
    pub fn new(instances: &[&InstanceId]) -> Self {
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let store = Self { inner: Arc::new(Inner { state: Mutex::default(), events }) };
        for instance in instances {
            let registered = store.apply(Command::RegisterInstance(RegisterInstance {
                instance_id: instance.as_str().to_owned(),
                boot_id: instance.as_str().to_owned(),
                ..RegisterInstance::default()
            }));
            debug_assert!(matches!(registered.value, Outcome::InstanceRegistered(_)), "{registered:?}");
        }
        store
    }

    /// Makes the next commits go wrong, in this order.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.state.lock().faults.extend(faults);
    }

    /// From now on nothing commits, or all does once more.
    pub fn set_stalled(&self, stalled: bool) {
        self.inner.state.lock().stalled = stalled;
    }

    /// From now on leases are read as they are now, or as they are once more.
    pub fn set_lagging(&self, lagging: bool) {
        let mut state = self.inner.state.lock();
        state.lagging = lagging.then(|| state.tables.clone());
    }

    /// How many commands were applied.
    pub fn index(&self) -> u64 {
        self.inner.state.lock().index
    }

    /// Applies a command at once: for what only clusters propose.
    ///
    /// # Panics
    /// When the tables hold what no command wrote.
    #[expect(clippy::expect_used, reason = "stopping is better than going on with damaged state")]
    pub fn apply(&self, kind: Command) -> Committed<Outcome> {
        let mut state = self.inner.state.lock();
        state.index += 1;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let command =
            openclaw_proto::state::Command { now_ms: u64::try_from(now_ms).unwrap_or(u64::MAX), kind: Some(kind) };
        let at = LogPosition { index: state.index, term: 1 };
        let decision = state_machine::decide(&state.tables, at, &command).expect("tables hold what commands wrote");
        state.tables.apply(decision.writes);
        for event in decision.events {
            let event = match event {
                state_machine::Event::TurnRunnable(turn) => Event::TurnRunnable(turn),
                state_machine::Event::TurnEnded(turn) => Event::TurnEnded(turn),
                state_machine::Event::StateReplaced => Event::Lagged,
                state_machine::Event::LeaseChanged(lease) => Event::LeaseChanged(lease),
                state_machine::Event::OutboxChanged { account, id } => Event::OutboxChanged { account, id },
                state_machine::Event::InstanceLive { .. } | state_machine::Event::InstanceGone { .. } => continue,
            };
            // Nobody has to listen.
            self.inner.events.send(event).ok();
        }
        let value = decision.outcome.kind.expect("every decision has an outcome");
        Committed { index: state.index, value }
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&MemoryTables) -> Result<T, TableError>,
    ) -> BoxFuture<'_, Result<Read<T>, ReadError>>
    where
        T: Send + 'static,
    {
        let state = self.inner.state.lock();
        let found = match read(&state.tables) {
            Ok(value) => Ok(Read { index: state.index, value }),
            Err(error) => Err(ReadError::Storage(error.to_string())),
        };
        Box::pin(std::future::ready(found))
    }

    /// An index that was never reached is waited for in vain.
    fn check(&self, consistency: Consistency, waited: Duration) -> Result<(), ReadError> {
        match consistency {
            Consistency::AtLeast(index) if index > self.inner.state.lock().index => Err(ReadError::Timeout { waited }),
            Consistency::AtLeast(_) | Consistency::Linearizable | Consistency::Stale => Ok(()),
        }
    }
}

/// Everything is applied by one process, so that each consistency reads the same.
macro_rules! read {
    ($store:ident, $consistency:ident, $timeout:ident, $read:expr) => {
        match $store.check($consistency, $timeout) {
            Ok(()) => $store.read($read),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    };
}

impl SessionStore for MemoryStore {
    fn commit(&self, command: Command, timeout: Duration) -> BoxFuture<'_, Result<Committed<Outcome>, CommitError>> {
        let fault = {
            let mut state = self.inner.state.lock();
            if state.stalled {
                Some(Fault::NoQuorum)
            } else {
                (!state.faults.is_empty()).then(|| state.faults.remove(0))
            }
        };
        let answer = match fault {
            None => Ok(self.apply(command)),
            Some(Fault::NoQuorum) => {
                Err(CommitError::NoQuorum { waited: timeout, reason: "a test said so".to_owned() })
            }
            Some(Fault::LostAnswer) => {
                self.apply(command);
                Err(CommitError::EffectUnknown { waited: timeout })
            }
        };
        Box::pin(std::future::ready(answer))
    }

    fn session<'a>(
        &'a self,
        key: &'a SessionKey,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Option<Session>>, ReadError>> {
        read!(self, consistency, timeout, |tables| read::session(tables, key))
    }

    fn sessions<'a>(
        &'a self,
        after: Option<&'a SessionKey>,
        limit: usize,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Session>>, ReadError>> {
        read!(self, consistency, timeout, |tables| read::sessions(tables, after, limit))
    }

    fn entries<'a>(
        &'a self,
        key: &'a SessionKey,
        after: SeqNum,
        limit: usize,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Entry>>, ReadError>> {
        read!(self, consistency, timeout, |tables| read::entries(tables, key, after, limit))
    }

    fn turn<'a>(
        &'a self,
        id: &'a TurnId,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Option<Turn>>, ReadError>> {
        read!(self, consistency, timeout, |tables| read::turn(tables, id))
    }

    fn turns_of<'a>(
        &'a self,
        runner: &'a InstanceId,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Turn>>, ReadError>> {
        read!(self, consistency, timeout, |tables| read::turns_of(tables, runner))
    }

    fn events(&self) -> BoxStream<'static, Event> {
        BroadcastStream::new(self.inner.events.subscribe()).map(|event| event.unwrap_or(Event::Lagged)).boxed()
    }
}

impl MemoryStore {
    fn now<T>(&self, read: impl FnOnce(&MemoryTables) -> Result<T, TableError>) -> Result<T, ReadError> {
        read(&self.inner.state.lock().tables).map_err(|error| ReadError::Storage(error.to_string()))
    }
}

impl ChannelStore for MemoryStore {
    fn leases(&self) -> Result<Vec<Lease>, ReadError> {
        let state = self.inner.state.lock();
        let tables = state.lagging.as_ref().unwrap_or(&state.tables);
        read::leases(tables).map_err(|error| ReadError::Storage(error.to_string()))
    }

    fn instances(&self) -> Result<Vec<Instance>, ReadError> {
        self.now(read::instances)
    }

    fn cursor(&self, account: &ChannelAccount) -> Result<Option<Cursor>, ReadError> {
        self.now(|tables| read::cursor(tables, account))
    }

    fn outbox(&self, account: &ChannelAccount, after: u64, limit: usize) -> Result<Vec<Intent>, ReadError> {
        self.now(|tables| read::outbox(tables, account, after, limit))
    }

    fn pairings(&self, account: Option<&ChannelAccount>) -> Result<Vec<Pairing>, ReadError> {
        self.now(|tables| read::pairings(tables, account.map(ChannelAccount::as_str)))
    }

    fn is_paired(&self, account: &ChannelAccount, sender_id: &str) -> Result<bool, ReadError> {
        self.now(|tables| read::is_paired(tables, account, sender_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        let instance = InstanceId::parse("node-1").unwrap();
        super::super::contract::run(async || Arc::new(MemoryStore::new(&[&instance])) as Arc<dyn SessionStore>).await;
    }
}
