//! Each rule of the state machine as a sentence, on tables in memory.

mod channels;
mod instances;
mod random;
mod retention;
mod sessions;
mod turns;
mod understanding;

use openclaw_proto::ids::{InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::command::Kind;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::{
    Accept, AppendEntry, Cancel, Command, Complete, DeleteSession, Entry, ExpireInstance, Fail, Fenced, InboxKey,
    Instance, RegisterInstance, RenewInstance, ResetSession, Role, Session, SetDraining, Turn, Usage,
};

use super::{Decision, Event, LogPosition, MemoryTables, Tables, decide, read};

const SESSION: &str = "agent:main:main";
const START_MS: u64 = 1_700_000_000_000;

/// Applies `kind` as the log entry at `index` of term 1.
fn apply_at(tables: &mut MemoryTables, index: u64, now_ms: u64, kind: Kind) -> Decision {
    let at = LogPosition { index, term: 1 };
    let decision = decide(tables, at, &Command { now_ms, kind: Some(kind) }).unwrap();
    tables.apply(decision.writes.clone());
    decision
}

/// A log that grows by one entry with each command, and the state it leads to.
#[derive(Default)]
struct Machine {
    tables: MemoryTables,
    index: u64,
    passed_ms: u64,
    /// Of the last command.
    events: Vec<Event>,
}

impl Machine {
    /// With these instances registered.
    fn with(instances: &[&str]) -> Self {
        let mut machine = Self::default();
        for instance in instances {
            assert!(matches!(machine.apply(register(instance, "boot-1", "")), Outcome::InstanceRegistered(_)));
        }
        machine
    }

    fn apply(&mut self, kind: Kind) -> Outcome {
        self.index += 1;
        let decision = apply_at(&mut self.tables, self.index, START_MS + self.passed_ms, kind);
        self.events = decision.events;
        decision.outcome.kind.unwrap()
    }

    fn accept(&mut self, turn: u32, runner: &str) -> Turn {
        let outcome = self.apply(accept(turn, runner));
        let Outcome::Accepted(accepted) = outcome else { panic!("{outcome:?}") };
        accepted.turn.unwrap()
    }

    /// The ended turn that an outcome carries.
    fn ended(&mut self, kind: Kind) -> Turn {
        let outcome = self.apply(kind);
        let Outcome::TurnEnded(ended) = outcome else { panic!("{outcome:?}") };
        ended.turn.unwrap()
    }

    fn refused(&mut self, kind: Kind) -> String {
        let before = self.tables.clone();
        let outcome = self.apply(kind);
        let Outcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
        assert_eq!(self.tables, before, "a refused command changes nothing");
        assert_eq!(self.events, []);
        refused.reason
    }

    fn turn(&self, turn: u32) -> Turn {
        self.turn_if_any(turn).unwrap()
    }

    fn turn_if_any(&self, turn: u32) -> Option<Turn> {
        read::turn(&self.tables, &TurnId::parse(turn_id(turn)).unwrap()).unwrap()
    }

    fn session(&self) -> Session {
        self.session_if_any().unwrap()
    }

    fn session_if_any(&self) -> Option<Session> {
        read::session(&self.tables, &SessionKey::parse(SESSION).unwrap()).unwrap()
    }

    fn entries(&self) -> Vec<Entry> {
        read::entries(&self.tables, &SessionKey::parse(SESSION).unwrap(), SeqNum(0), usize::MAX).unwrap()
    }

    fn texts(&self) -> Vec<String> {
        self.entries().into_iter().map(|entry| entry.text).collect()
    }

    fn instance(&self, id: &str) -> Instance {
        let instances = read::instances(&self.tables).unwrap();
        instances.into_iter().find(|row| row.instance_id == id).unwrap()
    }

    /// Ids of the turns that have not ended, as the index by runner has them.
    fn turns_of(&self, runner: &str) -> Vec<String> {
        let turns = read::turns_of(&self.tables, &InstanceId::parse(runner).unwrap()).unwrap();
        turns.into_iter().map(|turn| turn.id).collect()
    }

    /// An expiry that matches the instance as it is.
    fn expire_now(&self, instance: &str) -> Kind {
        let row = self.instance(instance);
        expire(instance, row.epoch, row.renewal, 1, 3)
    }
}

fn turn_id(turn: u32) -> String {
    format!("{turn:032x}")
}

fn hash(body: &str) -> prost::bytes::Bytes {
    let mut hash = body.as_bytes().to_vec();
    hash.resize(32, 0);
    hash.into()
}

fn inbox(external_id: &str, body: &str) -> Option<InboxKey> {
    Some(InboxKey { account: "http".to_owned(), external_id: external_id.to_owned(), body_hash: hash(body) })
}

fn accept_command(turn: u32, runner: &str) -> Accept {
    Accept {
        inbox: inbox(&format!("accept-{turn}"), "body"),
        session_key: SESSION.to_owned(),
        turn_id: turn_id(turn),
        text: format!("question {turn}"),
        agent_id: "main".to_owned(),
        model: "echo/echo".to_owned(),
        runner: runner.to_owned(),
        max_queued: 2,
        ..Accept::default()
    }
}

fn accept(turn: u32, runner: &str) -> Kind {
    Kind::Accept(accept_command(turn, runner))
}

fn complete(turn: u32, fencing_token: u64) -> Kind {
    Kind::Complete(Complete {
        turn_id: turn_id(turn),
        fencing_token,
        text: format!("answer {turn}"),
        model: "echo/echo".to_owned(),
        usage: Some(Usage { input_tokens: 3, output_tokens: 5 }),
    })
}

fn fail(turn: u32, fencing_token: u64) -> Kind {
    Kind::Fail(Fail {
        turn_id: turn_id(turn),
        fencing_token,
        error_code: "model_failed".to_owned(),
        error_message: "the model said no".to_owned(),
    })
}

fn cancel(turn: u32) -> Kind {
    Kind::Cancel(Cancel { turn_id: turn_id(turn) })
}

fn append_command(external_id: &str, text: &str) -> AppendEntry {
    AppendEntry {
        inbox: inbox(external_id, text),
        session_key: SESSION.to_owned(),
        role: Role::System.into(),
        text: text.to_owned(),
        expected_head: None,
    }
}

fn append(external_id: &str, text: &str) -> Kind {
    Kind::AppendEntry(append_command(external_id, text))
}

fn reset(external_id: &str) -> Kind {
    Kind::ResetSession(ResetSession { inbox: inbox(external_id, ""), session_key: SESSION.to_owned() })
}

fn delete(external_id: &str) -> Kind {
    Kind::DeleteSession(DeleteSession { inbox: inbox(external_id, ""), session_key: SESSION.to_owned() })
}

fn register_command(instance: &str, boot_id: &str, previous_boot_id: &str) -> RegisterInstance {
    RegisterInstance {
        instance_id: instance.to_owned(),
        boot_id: boot_id.to_owned(),
        http_addr: "127.0.0.1:3000".to_owned(),
        peer_addr: "127.0.0.1:3100".to_owned(),
        version: "0.1.0".to_owned(),
        previous_boot_id: previous_boot_id.to_owned(),
        ..RegisterInstance::default()
    }
}

fn register(instance: &str, boot_id: &str, previous_boot_id: &str) -> Kind {
    Kind::RegisterInstance(register_command(instance, boot_id, previous_boot_id))
}

fn renew(instance: &str, epoch: u64, renewal: u64) -> Kind {
    Kind::RenewInstance(RenewInstance { instance_id: instance.to_owned(), epoch, renewal })
}

fn expire(instance: &str, epoch: u64, renewal: u64, term: u64, max_attempts: u32) -> Kind {
    Kind::ExpireInstance(ExpireInstance { instance_id: instance.to_owned(), epoch, renewal, term, max_attempts })
}

fn drain(instance: &str, epoch: u64, draining: bool) -> Kind {
    Kind::SetDraining(SetDraining { instance_id: instance.to_owned(), epoch, draining, alone: false })
}

fn fenced(presented: u64, current: u64) -> Outcome {
    Outcome::Fenced(Fenced { presented, current })
}

fn instance_id(id: &str) -> InstanceId {
    InstanceId::parse(id).unwrap()
}

/// All rows of a table.
fn rows(tables: &impl Tables, table: super::Table) -> Vec<super::Row> {
    tables.scan(table, &[], None, usize::MAX).unwrap()
}
