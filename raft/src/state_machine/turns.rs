//! Turns: from an accepted message to its committed reply. A session runs one at a time; the others wait in commit
//! order.

use std::time::Duration;

use openclaw_proto::http::ErrorCode;
use openclaw_proto::ids::{AgentId, ChannelAccount, InstanceId, SessionKey, TurnId};
use openclaw_proto::state::inbox_record::Answer as Stored;
use openclaw_proto::state::{
    Accept, Accepted, Cancel, Complete, Done, DuplicateTurn, Entry, Fail, Fenced, KeyReused, NotFound, QueueFull, Role,
    Session, ShowPreview, Turn, TurnEnded, TurnState, Usage, outcome,
};

use super::change::{Answer, Change, Halt};
use super::inbox::{self, Seen};
use super::instances::{self, Candidates};
use super::{Event, Table, TableError, Tables, keys, leases, limits, outbox, sessions};
use crate::planted::{Bug, planted};
use crate::trace::PARENT_BYTES;

/// How long an ended turn can be asked for, by the replicated clock. Longer than the inbox remembers: a repetition of
/// the message must find its turn.
pub const TURN_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Most attempts of a turn, whatever a command allows: a message that ends the process which runs it must not go round
/// for ever.
pub const MAX_ATTEMPTS: u32 = 10;

pub(super) fn accept<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &Accept) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let key = SessionKey::parse(command.session_key.as_str())?;
    let turn_id = TurnId::parse(command.turn_id.as_str())?;
    let agent_id = AgentId::parse(command.agent_id.as_str())?;
    let runner = InstanceId::parse(command.runner.as_str())?;
    limits::at_most("text", &command.text, limits::MAX_TEXT_BYTES)?;
    limits::at_most("model", &command.model, limits::MAX_MODEL_BYTES)?;
    limits::at_most("sender", &command.sender, limits::MAX_LABEL_BYTES)?;
    limits::at_most("requestId", &command.request_id, limits::MAX_REQUEST_ID_BYTES)?;
    limits::at_most("traceParent", &command.trace_parent, PARENT_BYTES)?;
    if let Some(to) = &command.reply_to {
        outbox::address(to)?;
    }

    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::TurnId(turn_id)) => {
            // The caller may have chosen another session key this time; the first one counts.
            let session_key = match change.turn(&turn_id)? {
                Some(turn) => turn.session_key,
                None => key.into(),
            };
            return Ok(outcome::Kind::DuplicateTurn(DuplicateTurn { turn_id, session_key }));
        }
        Seen::Same(_) | Seen::OtherBody => {
            return Ok(outcome::Kind::KeyReused(KeyReused {}));
        }
    }
    let mut session = match change.session(key.as_str())? {
        Some(session) => session,
        None => sessions::new(key, change.now_ms),
    };
    let idle = session.running_turn.is_empty() || planted(Bug::TwoTurns);
    let depth = u32::try_from(session.queued_turns.len()).unwrap_or(u32::MAX);
    if !idle && depth >= command.max_queued.min(limits::MAX_QUEUED_TURNS) {
        return Ok(outcome::Kind::QueueFull(QueueFull { depth }));
    }
    if change.turn(turn_id.as_str())?.is_some() {
        return Err(Halt::Refused(format!("turn {turn_id} exists already")));
    }

    if session.agent_id.is_empty() {
        session.agent_id.clone_from(&command.agent_id);
    }
    session.turn_count += 1;
    let entry = Entry {
        role: Role::User.into(),
        text: command.text.clone(),
        turn_id: command.turn_id.clone(),
        sender: command.sender.clone(),
        ..Entry::default()
    };
    let user_seq = sessions::append(change, &mut session, entry).seq;
    let mut turn = Turn {
        id: turn_id.into(),
        session_key: session.key.clone(),
        runner: runner.into(),
        user_seq,
        agent_id: agent_id.into(),
        model: if command.model.is_empty() { session.model.clone() } else { command.model.clone() },
        accepted_ms: change.now_ms,
        reply_to: command.reply_to.clone(),
        request_id: command.request_id.clone(),
        trace_parent: command.trace_parent.clone(),
        ..Turn::default()
    };
    if idle {
        session.running_turn.clone_from(&turn.id);
        if let Some(runner) = instances::runner_for(change, &turn)? {
            turn.runner = runner;
        }
        run(change, &mut turn);
    } else {
        session.queued_turns.push(turn.id.clone());
        turn.set_state(TurnState::Queued);
        change.put_turn(&turn);
    }
    change.put_mark(Table::TurnsByRunner, keys::turn_by_runner(&turn.runner, &turn.id));
    change.put_session(&mut session);
    inbox.record(change, Stored::TurnId(turn.id.clone()));
    Ok(outcome::Kind::Accepted(Accepted { turn: Some(turn) }))
}

pub(super) fn complete<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &Complete) -> Answer {
    let id = TurnId::parse(command.turn_id.as_str())?;
    limits::at_most("text", &command.text, limits::MAX_TEXT_BYTES)?;
    limits::at_most("model", &command.model, limits::MAX_MODEL_BYTES)?;
    let mut turn = match running(change, &id, command.fencing_token)? {
        Ok(turn) => turn,
        Err(outcome) => return Ok(outcome),
    };

    let mut session = change.session_of(&turn)?;
    let usage = command.usage.unwrap_or_default();
    let entry = Entry {
        role: Role::Assistant.into(),
        text: command.text.clone(),
        turn_id: command.turn_id.clone(),
        model: command.model.clone(),
        usage: Some(usage),
        ..Entry::default()
    };
    turn.reply_seq = sessions::append(change, &mut session, entry).seq;
    turn.answered_by.clone_from(&command.model);
    turn.usage = Some(usage);
    session.usage = Some(add(session.usage.unwrap_or_default(), usage));
    let turn = end(change, turn, TurnState::Done);
    outbox::deliver_reply(change, &turn);
    start_next(change, &mut session)?;
    change.put_session(&mut session);
    Ok(outcome::Kind::TurnEnded(TurnEnded { turn: Some(turn) }))
}

pub(super) fn fail<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &Fail) -> Answer {
    let id = TurnId::parse(command.turn_id.as_str())?;
    limits::name("error code", &command.error_code, limits::MAX_ERROR_CODE_BYTES)?;
    let turn = match running(change, &id, command.fencing_token)? {
        Ok(turn) => turn,
        Err(outcome) => return Ok(outcome),
    };
    let turn = fail_running(change, turn, &command.error_code, &command.error_message)?;
    Ok(outcome::Kind::TurnEnded(TurnEnded { turn: Some(turn) }))
}

pub(super) fn cancel<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &Cancel) -> Answer {
    let id = TurnId::parse(command.turn_id.as_str())?;
    let Some(turn) = change.turn(id.as_str())? else { return Ok(outcome::Kind::NotFound(NotFound {})) };
    let turn = match state(&turn)? {
        TurnState::Done | TurnState::Failed | TurnState::Cancelled => turn,
        TurnState::Queued => {
            let mut session = change.session_of(&turn)?;
            session.queued_turns.retain(|queued| *queued != turn.id);
            change.put_session(&mut session);
            end(change, turn, TurnState::Cancelled)
        }
        TurnState::Running | TurnState::Unspecified => {
            let mut session = change.session_of(&turn)?;
            let turn = end(change, turn, TurnState::Cancelled);
            start_next(change, &mut session)?;
            change.put_session(&mut session);
            turn
        }
    };
    Ok(outcome::Kind::TurnEnded(TurnEnded { turn: Some(turn) }))
}

/// Notes which message shows the reply while it is written, so that the reply takes its place, whoever delivers it. Without
/// a message it changes nothing, and says whether one may be sent: by a commit, since what cannot be committed cannot be
/// noted either.
pub(super) fn show_preview<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &ShowPreview) -> Answer {
    let account = ChannelAccount::parse(command.account.as_str())?;
    let id = TurnId::parse(command.turn_id.as_str())?;
    let asks = command.message_id.is_empty();
    if !asks {
        limits::name("message id", &command.message_id, outbox::MAX_ADDRESS_BYTES)?;
    }
    if let Err(outcome) = leases::owned(change, account.as_str(), command.fencing_token)? {
        return Ok(outcome);
    }
    let Some(mut turn) = change.turn(id.as_str())? else { return Ok(outcome::Kind::NotFound(NotFound {})) };
    if turn.reply_to.as_ref().is_none_or(|to| to.account != account.as_str()) {
        return Err(Halt::Refused(format!("the reply of turn {id} does not go to {account}")));
    }
    match state(&turn)? {
        TurnState::Running | TurnState::Queued | TurnState::Unspecified if asks => Ok(outcome::Kind::Done(Done {})),
        TurnState::Running | TurnState::Queued | TurnState::Unspecified => {
            turn.preview.clone_from(&command.message_id);
            change.put_turn(&turn);
            Ok(outcome::Kind::Done(Done {}))
        }
        // Too late: the intent is for its owner to change.
        TurnState::Done | TurnState::Failed | TurnState::Cancelled => {
            Ok(outcome::Kind::TurnEnded(TurnEnded { turn: Some(turn) }))
        }
    }
}

/// The turn if it runs with this token, else the outcome that says why its runner may not write.
fn running<T: Tables + ?Sized>(
    change: &Change<'_, T>,
    id: &TurnId,
    presented: u64,
) -> Result<Result<Turn, outcome::Kind>, TableError> {
    let Some(turn) = change.turn(id.as_str())? else { return Ok(Err(outcome::Kind::NotFound(NotFound {}))) };
    let current = turn.fencing_token;
    Ok(match state(&turn)? {
        TurnState::Done | TurnState::Failed | TurnState::Cancelled => {
            Err(outcome::Kind::TurnEnded(TurnEnded { turn: Some(turn) }))
        }
        TurnState::Running if current == presented || planted(Bug::StaleToken) => Ok(turn),
        TurnState::Running | TurnState::Queued | TurnState::Unspecified => {
            Err(outcome::Kind::Fenced(Fenced { presented, current }))
        }
    })
}

/// The state of a stored turn, which is never unspecified.
fn state(turn: &Turn) -> Result<TurnState, TableError> {
    match turn.state() {
        TurnState::Unspecified => {
            Err(TableError::damaged(Table::Turns, turn.id.as_bytes(), format!("its state is {}", turn.state)))
        }
        state @ (TurnState::Queued
        | TurnState::Running
        | TurnState::Done
        | TurnState::Failed
        | TurnState::Cancelled) => Ok(state),
    }
}

/// Begins an attempt with the runner that the turn names: this command's log index is its fencing token.
fn run<T: Tables + ?Sized>(change: &mut Change<'_, T>, turn: &mut Turn) {
    turn.set_state(TurnState::Running);
    turn.attempt += 1;
    turn.fencing_token = change.at.index;
    turn.started_ms = change.now_ms;
    change.put_turn(turn);
    change.events.push(Event::TurnRunnable(turn.clone()));
}

/// Begins an attempt of a turn that is in the index, with another runner if one is given.
fn run_on<T: Tables + ?Sized>(change: &mut Change<'_, T>, mut turn: Turn, runner: Option<String>) {
    if let Some(runner) = runner
        && runner != turn.runner
    {
        change.delete(Table::TurnsByRunner, keys::turn_by_runner(&turn.runner, &turn.id));
        change.put_mark(Table::TurnsByRunner, keys::turn_by_runner(&runner, &turn.id));
        turn.runner = runner;
    }
    run(change, &mut turn);
}

/// Ends a turn. Its session is for the caller to change.
pub(super) fn end<T: Tables + ?Sized>(change: &mut Change<'_, T>, mut turn: Turn, state: TurnState) -> Turn {
    turn.set_state(state);
    turn.finished_ms = change.now_ms;
    change.delete(Table::TurnsByRunner, keys::turn_by_runner(&turn.runner, &turn.id));
    change.put_turn(&turn);
    change.events.push(Event::TurnEnded(turn.clone()));
    turn
}

/// Lets the session's next turn run, if one waits. The session is for the caller to store.
fn start_next<T: Tables + ?Sized>(change: &mut Change<'_, T>, session: &mut Session) -> Result<(), TableError> {
    session.running_turn.clear();
    if session.queued_turns.is_empty() {
        return Ok(());
    }
    session.running_turn = session.queued_turns.remove(0);
    let turn = change.turn_of(session, &session.running_turn)?;
    let runner = instances::runner_for(change, &turn)?;
    run_on(change, turn, runner);
    Ok(())
}

fn fail_running<T: Tables + ?Sized>(
    change: &mut Change<'_, T>,
    mut turn: Turn,
    code: &str,
    message: &str,
) -> Result<Turn, TableError> {
    let mut session = change.session_of(&turn)?;
    turn.error_code = code.to_owned();
    turn.error_message = limits::cut(message, limits::MAX_ERROR_MESSAGE_BYTES).to_owned();
    let turn = end(change, turn, TurnState::Failed);
    outbox::deliver_failure(change, &turn);
    start_next(change, &mut session)?;
    change.put_session(&mut session);
    Ok(turn)
}

/// Gives the running turns of a runner that is gone to others, or ends them when they had all their attempts. Queued
/// turns keep their place: who runs them is decided when that comes.
///
/// With nobody to take them they stay, for the next instance that registers.
pub(super) fn abandon<T: Tables + ?Sized>(
    change: &mut Change<'_, T>,
    turns: Vec<Turn>,
    candidates: &Candidates,
    max_attempts: u32,
) -> Result<(), TableError> {
    let max_attempts = max_attempts.min(MAX_ATTEMPTS);
    for turn in turns {
        match state(&turn)? {
            TurnState::Running if turn.attempt >= max_attempts => {
                let message = format!("its runner was lost in attempt {} of {max_attempts}", turn.attempt);
                fail_running(change, turn, ErrorCode::TurnAbandoned.as_str(), &message)?;
            }
            TurnState::Running => {
                if let Some(runner) = candidates.choose(&turn.session_key) {
                    run_on(change, turn, Some(runner));
                }
            }
            TurnState::Queued | TurnState::Unspecified | TurnState::Done | TurnState::Failed | TurnState::Cancelled => {
            }
        }
    }
    Ok(())
}

fn add(total: Usage, usage: Usage) -> Usage {
    Usage {
        input_tokens: total.input_tokens.saturating_add(usage.input_tokens),
        output_tokens: total.output_tokens.saturating_add(usage.output_tokens),
    }
}
