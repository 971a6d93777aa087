//! One command's work in progress: the tables as they are with its changes so far, the time, and the events.

use openclaw_proto::ids::ParseError;
use openclaw_proto::state::{InboxRecord, Instance, Intent, Lease, Pairing, Session, Turn, outcome};
use prost::Message;

use super::{Event, LogPosition, Overlay, Table, TableError, Tables, Write, keys, read};

/// What a command's handler returns.
pub(super) type Answer = Result<outcome::Kind, Halt>;

/// Why a handler stopped before its end. Nothing it changed is kept.
#[derive(Debug)]
pub(super) enum Halt {
    Refused(String),
    Table(TableError),
}

impl From<TableError> for Halt {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

impl From<ParseError> for Halt {
    fn from(error: ParseError) -> Self {
        Self::Refused(error.to_string())
    }
}

pub(super) struct Change<'a, T: ?Sized> {
    tables: Overlay<'a, T>,
    pub(super) at: LogPosition,
    /// The replicated clock as of this command.
    pub(super) now_ms: u64,
    pub(super) events: Vec<Event>,
    /// Of what this command made so far that needs a number of its own.
    counter: u64,
}

impl<'a, T: Tables + ?Sized> Change<'a, T> {
    /// The clock moves to the command's time unless it is ahead of it already.
    pub(super) fn begin(tables: &'a T, at: LogPosition, command_ms: u64) -> Result<Self, TableError> {
        let mut tables = Overlay::new(tables);
        let clock_ms = read::clock(&tables)?;
        if command_ms > clock_ms {
            tables.put(Table::Marks, keys::CLOCK.to_vec(), command_ms.to_be_bytes().to_vec());
        }
        Ok(Self { tables, at, now_ms: clock_ms.max(command_ms), events: Vec::new(), counter: 0 })
    }

    pub(super) fn finish(self) -> (Vec<Write>, Vec<Event>) {
        (self.tables.into_writes(), self.events)
    }

    /// Counts up from 0 within the command.
    pub(super) fn next_counter(&mut self) -> u64 {
        self.counter += 1;
        self.counter - 1
    }

    pub(super) fn lease(&self, account: &str) -> Result<Option<Lease>, TableError> {
        read::row(&self.tables, Table::Leases, account.as_bytes())
    }

    pub(super) fn intent(&self, account: &str, id: u64) -> Result<Option<Intent>, TableError> {
        read::row(&self.tables, Table::Outbox, &keys::intent(account, id))
    }

    pub(super) fn pairing(&self, account: &str, sender_id: &str) -> Result<Option<Pairing>, TableError> {
        read::row(&self.tables, Table::Pairings, &keys::pairing(account, sender_id))
    }

    /// The tables with the changes so far.
    pub(super) fn tables(&self) -> &Overlay<'a, T> {
        &self.tables
    }

    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, row: &impl Message) {
        self.tables.put(table, key, row.encode_to_vec());
    }

    pub(super) fn put_bytes(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.tables.put(table, key, value);
    }

    pub(super) fn put_mark(&mut self, table: Table, key: Vec<u8>) {
        self.put_bytes(table, key, Vec::new());
    }

    pub(super) fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.tables.delete(table, key);
    }

    pub(super) fn session(&self, key: &str) -> Result<Option<Session>, TableError> {
        read::row(&self.tables, Table::Sessions, key.as_bytes())
    }

    /// The session that a turn which has not ended belongs to.
    pub(super) fn session_of(&self, turn: &Turn) -> Result<Session, TableError> {
        self.session(&turn.session_key)?.ok_or_else(|| {
            TableError::damaged(Table::Turns, turn.id.as_bytes(), "it has not ended, and its session does not exist")
        })
    }

    pub(super) fn put_session(&mut self, session: &mut Session) {
        session.updated_ms = self.now_ms;
        self.put(Table::Sessions, session.key.as_bytes().to_vec(), session);
    }

    pub(super) fn turn(&self, id: &str) -> Result<Option<Turn>, TableError> {
        read::row(&self.tables, Table::Turns, id.as_bytes())
    }

    /// A turn that a session names.
    pub(super) fn turn_of(&self, session: &Session, id: &str) -> Result<Turn, TableError> {
        self.turn(id)?.ok_or_else(|| {
            TableError::damaged(Table::Sessions, session.key.as_bytes(), format!("turn {id} does not exist"))
        })
    }

    pub(super) fn put_turn(&mut self, turn: &Turn) {
        self.put(Table::Turns, turn.id.as_bytes().to_vec(), turn);
    }

    pub(super) fn instance(&self, id: &str) -> Result<Option<Instance>, TableError> {
        read::row(&self.tables, Table::Instances, id.as_bytes())
    }

    pub(super) fn put_instance(&mut self, instance: &Instance) {
        self.put(Table::Instances, instance.instance_id.as_bytes().to_vec(), instance);
    }

    pub(super) fn inbox_record(&self, row_key: &[u8]) -> Result<Option<InboxRecord>, TableError> {
        read::row(&self.tables, Table::Inbox, row_key)
    }
}
