//! What was said and is still on its way to a platform.
//!
//! An intent is committed together with the reply that it delivers, and dropped once the platform has taken its last
//! piece. In between only the account's owner changes it, under its fencing token: it claims a piece, sends it, and says
//! what came of that. A claim whose owner is gone, or that had no answer, is `unknown`: nobody can tell whether the
//! platform took it, so the channel's policy decides.

use std::time::Duration;

use openclaw_proto::ids::ChannelAccount;
use openclaw_proto::state::inbox_record::Answer as Stored;
use openclaw_proto::state::update_intent::Step;
use openclaw_proto::state::{
    Conflict, Done, Enqueue, Enqueued, Intent, IntentState, KeyReused, NotFound, ReplyAddress, Turn, UpdateIntent,
    outcome,
};

use super::change::{Answer, Change, Halt};
use super::inbox::{self, Seen};
use super::{Event, Table, TableError, Tables, keys, leases, limits};

/// Texts that no turn made.
pub const MAX_NOTICE_BYTES: usize = 16 * 1024;
/// Ids in a reply address.
pub(super) const MAX_ADDRESS_BYTES: usize = 128;
/// How long what could not be delivered is kept for an operator, by the replicated clock.
pub const FAILED_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Bits of an intent's id that count within one command.
const COUNTER_BITS: u32 = 16;

/// Checks an address that a command brings.
pub(super) fn address(to: &ReplyAddress) -> Result<(), Halt> {
    ChannelAccount::parse(to.account.as_str())?;
    limits::name("chat", &to.chat, MAX_ADDRESS_BYTES)?;
    limits::at_most("thread", &to.thread, MAX_ADDRESS_BYTES)?;
    limits::at_most("message", &to.message, MAX_ADDRESS_BYTES)
}

/// Has the reply of a turn delivered, if it goes to a channel.
pub(super) fn deliver_reply<T: Tables + ?Sized>(change: &mut Change<'_, T>, turn: &Turn) {
    if let Some(to) = &turn.reply_to {
        let intent = Intent { session_key: turn.session_key.clone(), seq: turn.reply_seq, ..of_turn(change, turn, to) };
        put(change, &intent);
    }
}

/// Has a person told why there is no reply.
pub(super) fn deliver_failure<T: Tables + ?Sized>(change: &mut Change<'_, T>, turn: &Turn) {
    if let Some(to) = &turn.reply_to {
        let text = format!("I could not answer this: {}\n/retry tries once more.", turn.error_message);
        let text = limits::cut(&text, MAX_NOTICE_BYTES).to_owned();
        let intent = Intent { text, ..of_turn(change, turn, to) };
        put(change, &intent);
    }
}

/// The turn's id, what it is part of, and the message that has shown its reply so far, go with what is said at its end.
fn of_turn<T: Tables + ?Sized>(change: &mut Change<'_, T>, turn: &Turn, to: &ReplyAddress) -> Intent {
    Intent {
        turn_id: turn.id.clone(),
        preview: turn.preview.clone(),
        trace_parent: turn.trace_parent.clone(),
        ..new(change, to)
    }
}

/// A text of our own, at once.
pub(super) fn deliver_text<T: Tables + ?Sized>(change: &mut Change<'_, T>, to: &ReplyAddress, text: String) -> u64 {
    let intent = Intent { text, ..new(change, to) };
    put(change, &intent);
    intent.id
}

fn new<T: Tables + ?Sized>(change: &mut Change<'_, T>, to: &ReplyAddress) -> Intent {
    let id = change.at.index << COUNTER_BITS | change.next_counter();
    Intent {
        account: to.account.clone(),
        id,
        to: Some(to.clone()),
        state: IntentState::Pending.into(),
        created_ms: change.now_ms,
        changed_ms: change.now_ms,
        ..Intent::default()
    }
}

fn put<T: Tables + ?Sized>(change: &mut Change<'_, T>, intent: &Intent) {
    change.put(Table::Outbox, keys::intent(&intent.account, intent.id), intent);
    change.events.push(Event::OutboxChanged { account: intent.account.clone(), id: intent.id });
}

/// Sends a text that no turn made. A repetition sends nothing.
pub(super) fn enqueue<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &Enqueue) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let to = command.to.as_ref().ok_or_else(|| Halt::Refused("the address is missing".to_owned()))?;
    address(to)?;
    limits::at_most("text", &command.text, MAX_NOTICE_BYTES)?;
    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::Enqueued(first)) => return Ok(outcome::Kind::Enqueued(first)),
        Seen::Same(_) | Seen::OtherBody => return Ok(outcome::Kind::KeyReused(KeyReused {})),
    }
    let intent_id = deliver_text(change, to, command.text.clone());
    let enqueued = Enqueued { intent_id };
    inbox.record(change, Stored::Enqueued(enqueued));
    Ok(outcome::Kind::Enqueued(enqueued))
}

pub(super) fn update<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &UpdateIntent) -> Answer {
    let account = ChannelAccount::parse(command.account.as_str())?;
    let Some(step) = &command.step else { return Err(Halt::Refused("the step is missing".to_owned())) };
    let by_operator = matches!(step, Step::Resubmitted(_) | Step::Dropped(_));
    if !by_operator && let Err(outcome) = leases::owned(change, account.as_str(), command.fencing_token)? {
        return Ok(outcome);
    }
    let Some(mut intent) = change.intent(account.as_str(), command.id)? else {
        return Ok(outcome::Kind::NotFound(NotFound {}));
    };
    let state = state(&intent)?;
    let claimed = state == IntentState::Sending && intent.fencing_token == command.fencing_token;
    let error = |text: &str| limits::cut(text, limits::MAX_ERROR_MESSAGE_BYTES).to_owned();
    let id = |text: &str| limits::cut(text, MAX_ADDRESS_BYTES).to_owned();
    match step {
        // What another owner was sending, or what had no answer, is to be declared unknown first, and unknown again.
        Step::Claimed(_) if matches!(state, IntentState::Pending | IntentState::Unknown) || claimed => {
            intent.set_state(IntentState::Sending);
            intent.fencing_token = command.fencing_token;
            intent.attempts += u32::from(!claimed);
        }
        Step::Sent(message_id) if claimed => {
            intent.pieces_sent += 1;
            intent.message_ids.push(id(message_id));
            intent.attempts = 0;
            intent.set_state(IntentState::Pending);
        }
        Step::Delivered(_) if claimed => {
            change.delete(Table::Outbox, keys::intent(account.as_str(), intent.id));
            change.events.push(Event::OutboxChanged { account: account.into(), id: intent.id });
            return Ok(outcome::Kind::Done(Done {}));
        }
        Step::Unsent(reason) if claimed => {
            intent.set_state(IntentState::Pending);
            intent.error = error(reason);
        }
        // Also by the next owner, of a claim that is not its own.
        Step::Unknown(reason) if state == IntentState::Sending => {
            intent.set_state(IntentState::Unknown);
            intent.unknowns += 1;
            intent.error = error(reason);
        }
        Step::Failed(reason) if claimed || matches!(state, IntentState::Pending | IntentState::Unknown) => {
            intent.set_state(IntentState::Failed);
            intent.error = error(reason);
        }
        Step::Previewed(message_id) if state == IntentState::Pending && intent.pieces_sent == 0 => {
            intent.preview = id(message_id);
        }
        Step::PreviewLost(reason) if claimed && intent.pieces_sent == 0 => {
            intent.set_state(IntentState::Pending);
            intent.preview.clear();
            intent.error = error(reason);
        }
        Step::Resubmitted(_) if matches!(state, IntentState::Failed | IntentState::Unknown) => {
            intent.set_state(IntentState::Pending);
            intent.attempts = 0;
            // Its age counts anew.
            intent.created_ms = change.now_ms;
        }
        Step::Dropped(_) if state != IntentState::Sending => {
            change.delete(Table::Outbox, keys::intent(account.as_str(), intent.id));
            change.events.push(Event::OutboxChanged { account: account.into(), id: intent.id });
            return Ok(outcome::Kind::Done(Done {}));
        }
        Step::Claimed(_)
        | Step::Sent(_)
        | Step::Delivered(_)
        | Step::Unsent(_)
        | Step::Unknown(_)
        | Step::Failed(_)
        | Step::Previewed(_)
        | Step::PreviewLost(_)
        | Step::Resubmitted(_)
        | Step::Dropped(_) => {
            return Ok(outcome::Kind::Conflict(Conflict { expected: 0, actual: intent.state.unsigned_abs().into() }));
        }
    }
    intent.changed_ms = change.now_ms;
    put(change, &intent);
    Ok(outcome::Kind::Done(Done {}))
}

/// The state of a stored intent, which is never unspecified.
fn state(intent: &Intent) -> Result<IntentState, TableError> {
    match intent.state() {
        IntentState::Unspecified => {
            let key = keys::intent(&intent.account, intent.id);
            Err(TableError::damaged(Table::Outbox, &key, format!("its state is {}", intent.state)))
        }
        state @ (IntentState::Pending | IntentState::Sending | IntentState::Unknown | IntentState::Failed) => Ok(state),
    }
}
