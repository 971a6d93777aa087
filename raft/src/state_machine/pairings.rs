//! Who may talk to a bot without being in its configuration: a stranger gets a code, and an operator approves it.

use std::time::Duration;

use openclaw_proto::ids::ChannelAccount;
use openclaw_proto::state::inbox_record::Answer as Stored;
use openclaw_proto::state::{
    ApprovePairing, Done, Enqueued, KeyReused, NotFound, Paired, Pairing, RemovePairing, RequestPairing, outcome,
};

use super::change::{Answer, Change, Halt};
use super::inbox::{self, Seen};
use super::{Table, Tables, keys, limits, outbox, read};

/// How long a code can be approved, by the replicated clock.
pub const CODE_LIFE: Duration = Duration::from_secs(60 * 60);
/// Codes that wait in one account; further strangers get no answer until one is approved or too old.
pub const MAX_WAITING: usize = 3;
const MAX_CODE_BYTES: usize = 16;

/// Notes a stranger, and has them told their code the first time.
pub(super) fn request<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &RequestPairing) -> Answer {
    let inbox = inbox::Key::parse(command.inbox.as_ref())?;
    let to = command.to.as_ref().ok_or_else(|| Halt::Refused("the address is missing".to_owned()))?;
    outbox::address(to)?;
    limits::name("sender id", &command.sender_id, outbox::MAX_ADDRESS_BYTES)?;
    limits::at_most("sender name", &command.sender_name, limits::MAX_LABEL_BYTES)?;
    limits::name("code", &command.code, MAX_CODE_BYTES)?;
    limits::at_most("text", &command.text, outbox::MAX_NOTICE_BYTES)?;
    match inbox.seen(change)? {
        Seen::Never => {}
        Seen::Same(Stored::Enqueued(first)) => return Ok(outcome::Kind::Enqueued(first)),
        Seen::Same(_) | Seen::OtherBody => return Ok(outcome::Kind::KeyReused(KeyReused {})),
    }
    let known = change.pairing(&to.account, &command.sender_id)?;
    // One answer per code: whoever writes on is not told the same again and again.
    let answered = known.is_some_and(|pairing| pairing.code.is_empty() || is_fresh(&pairing, change.now_ms));
    let waiting = read::pairings(change.tables(), Some(&to.account))?;
    let waiting = waiting.iter().filter(|one| !one.code.is_empty() && is_fresh(one, change.now_ms)).count();
    let intent_id = if answered || waiting >= MAX_WAITING {
        0
    } else {
        let pairing = Pairing {
            account: to.account.clone(),
            sender_id: command.sender_id.clone(),
            sender_name: command.sender_name.clone(),
            code: command.code.clone(),
            created_ms: change.now_ms,
        };
        change.put(Table::Pairings, keys::pairing(&pairing.account, &pairing.sender_id), &pairing);
        outbox::deliver_text(change, to, command.text.replace("{code}", &command.code))
    };
    let enqueued = Enqueued { intent_id };
    inbox.record(change, Stored::Enqueued(enqueued));
    Ok(outcome::Kind::Enqueued(enqueued))
}

/// Whether a code can still be approved.
fn is_fresh(pairing: &Pairing, now_ms: u64) -> bool {
    Duration::from_millis(now_ms.saturating_sub(pairing.created_ms)) < CODE_LIFE
}

pub(super) fn approve<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &ApprovePairing) -> Answer {
    limits::name("channel", &command.channel, ChannelAccount::MAX_BYTES)?;
    limits::name("code", &command.code, MAX_CODE_BYTES)?;
    let of_channel = |pairing: &Pairing| {
        pairing.account == command.channel
            || pairing.account.split_once(':').is_some_and(|(channel, _)| channel == command.channel)
    };
    let found = read::pairings(change.tables(), None)?.into_iter().find(|pairing| {
        of_channel(pairing) && pairing.code.eq_ignore_ascii_case(&command.code) && is_fresh(pairing, change.now_ms)
    });
    let Some(mut pairing) = found else { return Ok(outcome::Kind::NotFound(NotFound {})) };
    pairing.code.clear();
    pairing.created_ms = change.now_ms;
    change.put(Table::Pairings, keys::pairing(&pairing.account, &pairing.sender_id), &pairing);
    Ok(outcome::Kind::Paired(Paired { pairing: Some(pairing) }))
}

pub(super) fn remove<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &RemovePairing) -> Answer {
    let account = ChannelAccount::parse(command.account.as_str())?;
    limits::name("sender id", &command.sender_id, outbox::MAX_ADDRESS_BYTES)?;
    if change.pairing(account.as_str(), &command.sender_id)?.is_none() {
        return Ok(outcome::Kind::NotFound(NotFound {}));
    }
    change.delete(Table::Pairings, keys::pairing(account.as_str(), &command.sender_id));
    Ok(outcome::Kind::Done(Done {}))
}
