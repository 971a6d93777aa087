//! Conversations: entries, and the marks on them.

use openclaw_proto::ids::SessionKey;
use openclaw_proto::state::inbox_record::Answer as Stored;
use openclaw_proto::state::{
    AppendEntry, Appended, Conflict, DeleteSession, Entry, KeyReused, ModelSet, NotFound, ResetSession, Role, Session,
    SessionDeleted, SessionReset, SessionUpdated, SetModel, TurnState, UpdateSession, outcome,
};

use super::change::{Answer, Change, Halt};
use super::inbox::{self, Seen};
use super::{Table, Tables, format, keys, limits, turns};
use crate::planted::{Bug, planted};

pub(super) fn new(key: SessionKey, created_ms: u64) -> Session {
    Session { key: key.into(), created_ms, ..Session::default() }
}

/// Appends an entry behind the session's newest, and gives it its number, id and time.
pub(super) fn append<T: Tables + ?Sized>(change: &mut Change<'_, T>, session: &mut Session, entry: Entry) -> Appended {
    let seq = session.head_seq + 1;
    session.head_seq = seq;
    let id = format!("{seq:08x}");
    let entry = Entry { seq, id, created_ms: change.now_ms, ..entry };
    change.put(Table::Entries, keys::entry(&session.key, seq), &entry);
    Appended { seq, id: entry.id }
}

pub(super) fn append_entry<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &AppendEntry) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let key = SessionKey::parse(command.session_key.as_str())?;
    limits::at_most("text", &command.text, limits::MAX_TEXT_BYTES)?;
    let role = match Role::try_from(command.role) {
        Ok(role @ (Role::User | Role::Assistant | Role::System | Role::Tool)) => role,
        Ok(Role::Unspecified) | Err(_) => return Err(Halt::Refused(format!("role {} is unknown", command.role))),
    };

    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::Appended(appended)) => return Ok(outcome::Kind::Appended(appended)),
        Seen::Same(_) | Seen::OtherBody => {
            return Ok(outcome::Kind::KeyReused(KeyReused {}));
        }
    }
    let session = change.session(key.as_str())?;
    let actual = session.as_ref().map_or(0, |session| session.head_seq);
    if let Some(expected) = command.expected_head
        && expected != actual
        && !planted(Bug::IgnoredCondition)
    {
        return Ok(outcome::Kind::Conflict(Conflict { expected, actual }));
    }

    let mut session = session.unwrap_or_else(|| new(key, change.now_ms));
    let entry = Entry { role: role.into(), text: command.text.clone(), ..Entry::default() };
    let appended = append(change, &mut session, entry);
    change.put_session(&mut session);
    inbox.record(change, Stored::Appended(appended.clone()));
    format::of_the_next_release(change)?;
    Ok(outcome::Kind::Appended(appended))
}

/// Hides what was said so far from the model. The entries stay.
pub(super) fn reset<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &ResetSession) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let key = SessionKey::parse(command.session_key.as_str())?;
    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::SessionReset(reset)) => return Ok(outcome::Kind::SessionReset(reset)),
        Seen::Same(_) | Seen::OtherBody => {
            return Ok(outcome::Kind::KeyReused(KeyReused {}));
        }
    }
    let Some(mut session) = change.session(key.as_str())? else { return Ok(outcome::Kind::NotFound(NotFound {})) };

    session.reset_seq = session.head_seq;
    let reset = SessionReset { reset_seq: session.reset_seq };
    change.put_session(&mut session);
    inbox.record(change, Stored::SessionReset(reset));
    Ok(outcome::Kind::SessionReset(reset))
}

/// Chooses the model of the session's turns; the session begins with it, if it does not exist yet.
pub(super) fn set_model<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &SetModel) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let key = SessionKey::parse(command.session_key.as_str())?;
    limits::at_most("model", &command.model, limits::MAX_MODEL_BYTES)?;
    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::ModelSet(set)) => return Ok(outcome::Kind::ModelSet(set)),
        Seen::Same(_) | Seen::OtherBody => return Ok(outcome::Kind::KeyReused(KeyReused {})),
    }
    let mut session = match change.session(key.as_str())? {
        Some(session) => session,
        None => new(key, change.now_ms),
    };
    session.model.clone_from(&command.model);
    session.revision = change.at.index;
    change.put_session(&mut session);
    let set = ModelSet { model: command.model.clone() };
    inbox.record(change, Stored::ModelSet(set.clone()));
    Ok(outcome::Kind::ModelSet(set))
}

/// Sets a session's label, its model or both, if nobody has set either since the caller looked; the session begins with
/// it, if it does not exist yet.
pub(super) fn update<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &UpdateSession) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let key = SessionKey::parse(command.session_key.as_str())?;
    if let Some(label) = &command.label
        && !label.is_empty()
    {
        limits::name("label", label, limits::MAX_SESSION_LABEL_BYTES)?;
    }
    if let Some(model) = &command.model {
        limits::at_most("model", model, limits::MAX_MODEL_BYTES)?;
    }
    if command.label.is_none() && command.model.is_none() {
        return Err(Halt::Refused("there is nothing to set".to_owned()));
    }
    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::SessionUpdated(updated)) => return Ok(outcome::Kind::SessionUpdated(updated)),
        Seen::Same(_) | Seen::OtherBody => return Ok(outcome::Kind::KeyReused(KeyReused {})),
    }
    let session = change.session(key.as_str())?;
    let actual = session.as_ref().map_or(0, |session| session.revision);
    if let Some(expected) = command.expected_revision
        && expected != actual
        && !planted(Bug::IgnoredCondition)
    {
        return Ok(outcome::Kind::Conflict(Conflict { expected, actual }));
    }

    let mut session = session.unwrap_or_else(|| new(key, change.now_ms));
    if let Some(label) = &command.label {
        session.label.clone_from(label);
    }
    if let Some(model) = &command.model {
        session.model.clone_from(model);
    }
    session.revision = change.at.index;
    change.put_session(&mut session);
    let updated = SessionUpdated { session: Some(session) };
    inbox.record(change, Stored::SessionUpdated(updated.clone()));
    Ok(outcome::Kind::SessionUpdated(updated))
}

/// Removes a session with its entries; its turns that have not ended are cancelled.
///
/// One command drops every entry, however many there are: half a deletion could be read, and a session must not come
/// back. Its work and its batch grow with the session, by about 100 bytes per entry.
pub(super) fn delete<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &DeleteSession) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let key = SessionKey::parse(command.session_key.as_str())?;
    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::SessionDeleted(deleted)) => return Ok(outcome::Kind::SessionDeleted(deleted)),
        Seen::Same(_) | Seen::OtherBody => {
            return Ok(outcome::Kind::KeyReused(KeyReused {}));
        }
    }
    let Some(session) = change.session(key.as_str())? else { return Ok(outcome::Kind::NotFound(NotFound {})) };

    let running = (!session.running_turn.is_empty()).then_some(&session.running_turn);
    for id in running.into_iter().chain(&session.queued_turns) {
        let turn = change.turn_of(&session, id)?;
        turns::end(change, turn, TurnState::Cancelled);
    }
    // Entries are contiguous from 1, so that nothing needs to be read to name them all.
    for seq in 1..=session.head_seq {
        change.delete(Table::Entries, keys::entry(key.as_str(), seq));
    }
    change.delete(Table::Sessions, key.as_str().as_bytes().to_vec());
    let deleted = SessionDeleted { entry_count: session.head_seq };
    inbox.record(change, Stored::SessionDeleted(deleted));
    Ok(outcome::Kind::SessionDeleted(deleted))
}
