//! Leases on channel accounts, what is on its way out, and who may come in.

use std::collections::BTreeSet;

use openclaw_proto::ids::ChannelAccount;
use openclaw_proto::state::update_intent::Step;
use openclaw_proto::state::{
    ApprovePairing, Done, Enqueue, Enqueued, Intent, IntentState, Lease, ModelSet, MoveLease, NotFound, Paired,
    PlaceLeases, ReleaseLease, RemovePairing, ReplyAddress, RequestPairing, SaveCursor, SetDraining, SetModel,
    ShowPreview, Stale, UpdateIntent,
};

use super::super::{CODE_LIFE, MAX_CURSOR_BYTES, MAX_WAITING};
use super::*;

const ACCOUNT: &str = "telegram:default";

fn runs(instance: &str, boot: &str, accounts: &[&str], preferred: &[&str]) -> Kind {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Kind::RegisterInstance(RegisterInstance {
        accounts: names(accounts),
        preferred: names(preferred),
        ..register_command(instance, boot, "")
    })
}

/// Three instances that can run both accounts; the first prefers one of them.
fn cluster() -> Machine {
    let mut machine = Machine::default();
    let accounts = [ACCOUNT, "discord:default"];
    machine.apply(runs("n1", "b", &accounts, &[ACCOUNT]));
    machine.apply(runs("n2", "b", &accounts, &[]));
    machine.apply(runs("n3", "b", &accounts, &[]));
    machine
}

impl Machine {
    fn lease(&self, account: &str) -> Lease {
        read::leases(&self.tables).unwrap().into_iter().find(|lease| lease.account == account).unwrap()
    }

    fn outbox(&self) -> Vec<Intent> {
        read::outbox(&self.tables, &ChannelAccount::parse(ACCOUNT).unwrap(), 0, usize::MAX).unwrap()
    }

    fn step(&mut self, id: u64, token: u64, step: Step) -> Outcome {
        self.apply(Kind::UpdateIntent(UpdateIntent {
            account: ACCOUNT.into(),
            id,
            fencing_token: token,
            step: Some(step),
        }))
    }

    fn release(&mut self, account: &str, token: u64) -> Outcome {
        self.apply(Kind::ReleaseLease(ReleaseLease { account: account.into(), fencing_token: token }))
    }
}

fn to() -> Option<ReplyAddress> {
    Some(ReplyAddress { account: ACCOUNT.into(), chat: "7".into(), ..ReplyAddress::default() })
}

fn key(id: &str) -> Option<InboxKey> {
    Some(InboxKey { account: ACCOUNT.into(), external_id: id.into(), body_hash: hash(id) })
}

fn enqueue(id: &str) -> Kind {
    Kind::Enqueue(Enqueue { inbox: key(id), to: to(), text: id.into() })
}

fn failback(after_ms: u64) -> Kind {
    Kind::PlaceLeases(PlaceLeases { failback_after_ms: after_ms })
}

fn drain(machine: &Machine, instance: &str, draining: bool) -> Kind {
    let epoch = machine.instance(instance).epoch;
    Kind::SetDraining(SetDraining { instance_id: instance.into(), epoch, draining, alone: false })
}

#[test]
fn accounts_go_to_who_prefers_them_else_to_who_has_least() {
    let machine = cluster();
    // The first was alone when it came, and keeps what it has.
    assert_eq!((machine.lease(ACCOUNT).owner, machine.lease("discord:default").owner), ("n1".into(), "n1".into()));
    let mut machine = machine;
    machine.apply(machine.expire_now("n1"));
    let owners: BTreeSet<_> = [ACCOUNT, "discord:default"].map(|account| machine.lease(account).owner).into();
    assert_eq!(owners, ["n2".to_owned(), "n3".to_owned()].into(), "one each");
    assert_eq!(machine.lease(ACCOUNT).previous_owner, "n1");
}

#[test]
fn a_token_grows_with_each_owner_and_an_older_one_is_refused_when_applied() {
    let mut machine = cluster();
    let first = machine.lease(ACCOUNT);
    let save = |token: u64| {
        Kind::SaveCursor(SaveCursor { account: ACCOUNT.into(), fencing_token: token, data: token.to_string() })
    };
    assert_eq!(machine.apply(save(first.fencing_token)), Outcome::Done(Done {}));
    machine.apply(machine.expire_now("n1"));
    let second = machine.lease(ACCOUNT);
    assert!(second.fencing_token > first.fencing_token);
    assert_eq!((second.owner == first.owner, second.epoch == first.epoch), (false, false));
    let fenced = Outcome::Fenced(Fenced { presented: first.fencing_token, current: second.fencing_token });
    assert_eq!(machine.apply(save(first.fencing_token)), fenced);
    machine.apply(enqueue("a"));
    let id = machine.outbox()[0].id;
    assert_eq!(machine.step(id, first.fencing_token, Step::Claimed(true)), fenced);
    let account = ChannelAccount::parse(ACCOUNT).unwrap();
    let cursor = read::cursor(&machine.tables, &account).unwrap().unwrap();
    assert_eq!(cursor.data, first.fencing_token.to_string(), "the next owner goes on from there");
    assert_eq!(machine.release(ACCOUNT, first.fencing_token), Outcome::Stale(Stale {}));
    assert_eq!(machine.lease(ACCOUNT), second);
}

#[test]
fn a_renewal_never_revives_what_expired() {
    let mut machine = cluster();
    let epoch = machine.instance("n1").epoch;
    machine.apply(machine.expire_now("n1"));
    let renew = Kind::RenewInstance(RenewInstance { instance_id: "n1".into(), epoch, renewal: 99 });
    assert_eq!(machine.apply(renew), Outcome::Stale(Stale {}));
    assert_ne!(machine.lease(ACCOUNT).owner, "n1");
}

#[test]
fn a_restarted_process_takes_its_own_accounts_back_at_once_under_a_new_token() {
    let mut machine = cluster();
    let before = machine.lease(ACCOUNT);
    let Kind::RegisterInstance(again) = runs("n1", "b2", &[ACCOUNT], &[ACCOUNT]) else { unreachable!() };
    machine.apply(Kind::RegisterInstance(RegisterInstance { previous_boot_id: "b".into(), ..again }));
    let after = machine.lease(ACCOUNT);
    assert_eq!(after.owner, "n1");
    assert!(after.fencing_token > before.fencing_token && after.epoch > before.epoch);
    assert_ne!(machine.lease("discord:default").owner, "n1", "it is not in its configuration any more");
}

#[test]
fn a_planned_move_waits_for_the_owner_to_let_go() {
    let mut machine = cluster();
    let moved = |to: &str| Kind::MoveLease(MoveLease { account: ACCOUNT.into(), to: to.into() });
    assert_eq!(machine.apply(moved("n3")), Outcome::Done(Done {}));
    let lease = machine.lease(ACCOUNT);
    assert_eq!((&*lease.owner, &*lease.moving_to), ("n1", "n3"), "still its owner's");
    assert!(machine.events.contains(&Event::LeaseChanged(lease.clone())));
    assert_eq!(machine.release(ACCOUNT, lease.fencing_token), Outcome::Done(Done {}));
    let lease = machine.lease(ACCOUNT);
    assert_eq!((&*lease.owner, &*lease.moving_to, &*lease.previous_owner), ("n3", "", "n1"));
    assert_eq!(machine.release(ACCOUNT, 1), Outcome::Stale(Stale {}), "a repetition changes nothing");

    assert!(machine.refused(moved("n9")).contains("n9 is no live instance"));
    machine.apply(runs("n4", "b", &[], &[]));
    assert!(machine.refused(moved("n4")).contains("in its configuration"));
}

#[test]
fn who_drains_gives_to_others_and_keeps_what_nobody_else_can_run() {
    let mut machine = cluster();
    machine.apply(drain(&machine, "n1", true));
    assert_eq!(machine.lease(ACCOUNT).owner, "n1", "it stops first");
    machine.release(ACCOUNT, machine.lease(ACCOUNT).fencing_token);
    assert_ne!(machine.lease(ACCOUNT).owner, "n1");
    let mut alone = Machine::default();
    alone.apply(runs("n1", "b", &[ACCOUNT], &[]));
    alone.apply(drain(&alone, "n1", true));
    alone.release(ACCOUNT, alone.lease(ACCOUNT).fencing_token);
    assert_eq!(alone.lease(ACCOUNT).owner, "n1", "a draining one is better than none");
}

#[test]
fn an_account_goes_back_to_who_prefers_it_once_that_is_stable() {
    let mut machine = cluster();
    machine.apply(machine.expire_now("n1"));
    let owner = machine.lease(ACCOUNT).owner;
    machine.passed_ms = 1000;
    machine.apply(runs("n1", "b3", &[ACCOUNT, "discord:default"], &[ACCOUNT]));
    machine.passed_ms = 1999;
    machine.apply(failback(1000));
    assert_eq!(machine.lease(ACCOUNT).moving_to, "");
    machine.passed_ms = 2000;
    machine.apply(failback(1000));
    let lease = machine.lease(ACCOUNT);
    assert_eq!((&lease.owner, &*lease.moving_to), (&owner, "n1"));
    assert_eq!(machine.lease("discord:default").moving_to, "", "nobody prefers that one");
    machine.release(ACCOUNT, lease.fencing_token);
    machine.apply(failback(1000));
    assert_eq!((&*machine.lease(ACCOUNT).owner, &*machine.lease(ACCOUNT).moving_to), ("n1", ""));
}

#[test]
fn without_anybody_left_an_account_has_no_owner_and_refuses_its_last_one() {
    let mut machine = Machine::default();
    machine.apply(runs("n1", "b", &[ACCOUNT], &[]));
    let token = machine.lease(ACCOUNT).fencing_token;
    machine.apply(machine.expire_now("n1"));
    assert_eq!(machine.lease(ACCOUNT).owner, "");
    let save = Kind::SaveCursor(SaveCursor { account: ACCOUNT.into(), fencing_token: token, data: String::new() });
    assert!(matches!(machine.apply(save), Outcome::Fenced(_)));
    machine.apply(runs("n2", "b", &[ACCOUNT], &[]));
    assert_eq!(machine.lease(ACCOUNT).owner, "n2");
}

#[test]
fn a_reply_to_a_channel_is_committed_with_its_delivery() {
    let mut machine = cluster();
    let Kind::Accept(message) = accept(1, "n2") else { unreachable!() };
    let traced = Accept { request_id: "r-1".into(), trace_parent: "00-a-b-01".into(), ..message };
    machine.apply(Kind::Accept(Accept { reply_to: to(), sender: "Ann".into(), ..traced }));
    assert_eq!((&*machine.turn(1).request_id, &*machine.turn(1).trace_parent), ("r-1", "00-a-b-01"));
    assert_eq!(machine.entries()[0].sender, "Ann");
    assert_eq!(machine.outbox(), [], "nothing to send yet");
    machine.apply(complete(1, machine.turn(1).fencing_token));
    let [intent] = &machine.outbox()[..] else { panic!() };
    assert_eq!((intent.state(), intent.seq, &*intent.session_key), (IntentState::Pending, 2, SESSION));
    assert_eq!((&intent.to, &*intent.trace_parent), (&to(), "00-a-b-01"));
    assert!(machine.events.contains(&Event::OutboxChanged { account: ACCOUNT.into(), id: intent.id }));

    let Kind::Accept(message) = accept(2, "n2") else { unreachable!() };
    machine.apply(Kind::Accept(Accept { reply_to: to(), ..message }));
    let token = machine.turn(2).fencing_token;
    machine.apply(Kind::Fail(Fail {
        turn_id: turn_id(2),
        fencing_token: token,
        error_code: "model_failed".into(),
        error_message: "no model".into(),
    }));
    let failed = machine.outbox().pop().unwrap();
    assert!(failed.text.contains("no model") && failed.text.contains("retry"), "{}", failed.text);
    // A turn that nobody sends anywhere makes no intent.
    let token = machine.accept(3, "n2").fencing_token;
    machine.apply(complete(3, token));
    assert_eq!(machine.outbox().len(), 2);
}

#[test]
fn turns_that_fail_together_have_intents_of_their_own() {
    let mut machine = cluster();
    for (turn, session) in [(1, "a"), (2, "b")] {
        let Kind::Accept(message) = accept(turn, "n2") else { unreachable!() };
        machine.apply(Kind::Accept(Accept { reply_to: to(), session_key: session.into(), ..message }));
    }
    let row = machine.instance("n2");
    machine.apply(expire("n2", row.epoch, row.renewal, 1, 1));
    let ids: BTreeSet<_> = machine.outbox().iter().map(|intent| intent.id).collect();
    assert_eq!(ids.len(), 2);
}

#[test]
fn an_intent_is_claimed_sent_piece_by_piece_and_gone() {
    let mut machine = cluster();
    let token = machine.lease(ACCOUNT).fencing_token;
    let Outcome::Enqueued(Enqueued { intent_id: id }) = machine.apply(enqueue("a")) else { panic!() };
    assert_eq!(machine.apply(enqueue("a")), Outcome::Enqueued(Enqueued { intent_id: id }), "once");
    let done = Outcome::Done(Done {});
    assert!(matches!(machine.step(id, token, Step::Sent("1".into())), Outcome::Conflict(_)), "it was not claimed");
    assert_eq!(machine.step(id, token, Step::Claimed(true)), done);
    assert_eq!(machine.step(id, token, Step::Claimed(true)), done, "a repetition is no second attempt");
    assert_eq!(machine.outbox()[0].attempts, 1);
    assert_eq!(machine.step(id, token, Step::Sent("55".into())), done);
    let intent = &machine.outbox()[0];
    assert_eq!(
        (intent.state(), intent.pieces_sent, &intent.message_ids[..]),
        (IntentState::Pending, 1, &["55".into()][..])
    );
    machine.step(id, token, Step::Claimed(true));
    assert_eq!(machine.step(id, token, Step::Delivered("56".into())), done);
    assert_eq!(machine.outbox(), []);
    assert_eq!(machine.step(id, token, Step::Claimed(true)), Outcome::NotFound(NotFound {}));
}

#[test]
fn what_an_owner_was_sending_when_it_went_is_unknown_to_the_next() {
    let mut machine = cluster();
    machine.apply(enqueue("a"));
    let id = machine.outbox()[0].id;
    machine.step(id, machine.lease(ACCOUNT).fencing_token, Step::Claimed(true));
    machine.apply(machine.expire_now("n1"));
    let next = machine.lease(ACCOUNT).fencing_token;
    assert!(matches!(machine.step(id, next, Step::Claimed(true)), Outcome::Conflict(_)), "it says so first");
    assert!(matches!(machine.step(id, next, Step::Delivered("1".into())), Outcome::Conflict(_)));
    machine.step(id, next, Step::Unknown("the owner was lost".into()));
    assert_eq!((machine.outbox()[0].state(), machine.outbox()[0].unknowns), (IntentState::Unknown, 1));
    assert_eq!(machine.step(id, next, Step::Claimed(true)), Outcome::Done(Done {}), "the policy may send it again");
    machine.step(id, next, Step::Failed("blocked".into()));
    assert_eq!(machine.outbox()[0].state(), IntentState::Failed);
    assert!(matches!(machine.step(id, next, Step::Claimed(true)), Outcome::Conflict(_)));
    // An operator has no token.
    assert_eq!(machine.step(id, 0, Step::Resubmitted(true)), Outcome::Done(Done {}));
    assert_eq!(machine.outbox()[0].state(), IntentState::Pending);
    assert_eq!(machine.step(id, 0, Step::Dropped(true)), Outcome::Done(Done {}));
    assert_eq!(machine.outbox(), []);
}

fn stranger(id: &str, sender: &str, code: &str) -> Kind {
    Kind::RequestPairing(RequestPairing {
        inbox: key(id),
        sender_id: sender.into(),
        sender_name: "Ann".into(),
        code: code.into(),
        to: to(),
        text: "Your code is {code}.".into(),
    })
}

#[test]
fn a_stranger_is_told_a_code_once_and_approved_by_it() {
    let mut machine = cluster();
    let paired = |machine: &Machine, sender: &str| {
        read::is_paired(&machine.tables, &ChannelAccount::parse(ACCOUNT).unwrap(), sender).unwrap()
    };
    machine.apply(stranger("m1", "42", "AAAA2222"));
    assert_eq!(machine.outbox()[0].text, "Your code is AAAA2222.");
    assert_eq!(machine.apply(stranger("m2", "42", "BBBB2222")), Outcome::Enqueued(Enqueued { intent_id: 0 }));
    assert_eq!(machine.outbox().len(), 1, "not the same again with each message");
    assert!(!paired(&machine, "42"));
    let approve = |code: &str| Kind::ApprovePairing(ApprovePairing { channel: "telegram".into(), code: code.into() });
    assert_eq!(machine.apply(approve("BBBB2222")), Outcome::NotFound(NotFound {}));
    let Outcome::Paired(Paired { pairing: Some(pairing) }) = machine.apply(approve("aaaa2222")) else { panic!() };
    assert_eq!((&*pairing.sender_id, &*pairing.code), ("42", ""));
    assert!(paired(&machine, "42") && !paired(&machine, "43"));
    assert_eq!(machine.apply(approve("AAAA2222")), Outcome::NotFound(NotFound {}), "a code works once");
    assert_eq!(machine.apply(approve("")).clone(), machine.apply(approve("")), "refused alike");
    machine.apply(Kind::RemovePairing(RemovePairing { account: ACCOUNT.into(), sender_id: "42".into() }));
    assert!(!paired(&machine, "42"));
}

#[test]
fn codes_are_few_and_expire() {
    let mut machine = cluster();
    for n in 0..=MAX_WAITING {
        machine.apply(stranger(&format!("m{n}"), &format!("{n}"), &format!("CODE{n}")));
    }
    assert_eq!(machine.outbox().len(), MAX_WAITING, "the last stranger is not answered");
    machine.passed_ms = CODE_LIFE.as_millis() as u64;
    let approve = Kind::ApprovePairing(ApprovePairing { channel: ACCOUNT.into(), code: "CODE0".into() });
    assert_eq!(machine.apply(approve), Outcome::NotFound(NotFound {}));
    machine.apply(stranger("again", "0", "CODE9"));
    assert_eq!(machine.outbox().last().unwrap().text, "Your code is CODE9.");
}

#[test]
fn a_sessions_model_is_that_of_its_next_turns() {
    let mut machine = cluster();
    let set = |id: &str, model: &str| {
        Kind::SetModel(SetModel { inbox: key(id), session_key: SESSION.into(), model: model.into() })
    };
    machine.apply(set("a", "echo/other"));
    let revision = machine.index;
    assert_eq!(machine.apply(set("a", "echo/other")), Outcome::ModelSet(ModelSet { model: "echo/other".into() }));
    assert_eq!(machine.session().revision, revision, "a repetition changes nothing");
    let Kind::Accept(message) = accept(1, "n1") else { unreachable!() };
    machine.apply(Kind::Accept(Accept { model: String::new(), ..message }));
    assert_eq!(machine.turn(1).model, "echo/other");
}

#[test]
fn what_is_too_large_or_no_name_is_refused() {
    let mut machine = cluster();
    let token = machine.lease(ACCOUNT).fencing_token;
    let data = "x".repeat(MAX_CURSOR_BYTES + 1);
    let save = Kind::SaveCursor(SaveCursor { account: ACCOUNT.into(), fencing_token: token, data });
    assert!(machine.refused(save).contains("cursor has 4097 bytes"));
    assert!(machine.refused(runs("n9", "b", &["Telegram"], &[])).contains("channel account"));
    let nowhere = Kind::Enqueue(Enqueue { inbox: key("x"), to: None, text: "x".into() });
    assert!(machine.refused(nowhere).contains("address is missing"));
    let no_chat = ReplyAddress { account: ACCOUNT.into(), ..ReplyAddress::default() };
    let no_chat = Kind::Enqueue(Enqueue { inbox: key("x"), to: Some(no_chat), text: "x".into() });
    assert!(machine.refused(no_chat).contains("chat must not be empty"));
}

/// A turn whose reply goes to the account: the accepting command's index is its token.
fn asked(machine: &mut Machine, turn: u32) -> u64 {
    machine.apply(Kind::Accept(Accept { inbox: key("question"), reply_to: to(), ..accept_command(turn, "n1") }));
    machine.index
}

fn show(turn: u32, token: u64, message_id: &str) -> Kind {
    Kind::ShowPreview(ShowPreview {
        account: ACCOUNT.into(),
        fencing_token: token,
        turn_id: turn_id(turn),
        message_id: message_id.into(),
    })
}

#[test]
fn a_reply_takes_the_place_of_what_showed_it_while_it_was_written() {
    let mut machine = cluster();
    let token = machine.lease(ACCOUNT).fencing_token;
    let of_turn = asked(&mut machine, 1);
    assert!(matches!(machine.apply(show(1, token - 1, "")), Outcome::Fenced(_)), "asking needs the lease too");
    assert_eq!(machine.apply(show(1, token, "55")), Outcome::Done(Done {}));
    assert_eq!(machine.apply(show(1, token, "")), Outcome::Done(Done {}), "asking changes nothing");
    machine.apply(complete(1, of_turn));
    assert!(matches!(machine.apply(show(1, token, "")), Outcome::TurnEnded(_)));
    let intent = machine.outbox().remove(0);
    assert_eq!((intent.turn_id, intent.preview), (turn_id(1), "55".to_owned()));
    // Too late for the turn, and for who is not the owner; the intent is for its owner to change.
    assert!(matches!(machine.apply(show(1, token, "56")), Outcome::TurnEnded(_)));
    assert!(matches!(machine.apply(show(1, token - 1, "56")), Outcome::Fenced(_)));
    assert_eq!(machine.apply(show(2, token, "56")), Outcome::NotFound(NotFound {}));

    let id = intent.id;
    machine.step(id, token, Step::Previewed("57".into()));
    assert_eq!(machine.outbox()[0].preview, "57");
    machine.step(id, token, Step::Claimed(true));
    assert!(matches!(machine.step(id, token, Step::Previewed("58".into())), Outcome::Conflict(_)), "it is being sent");
    machine.step(id, token, Step::PreviewLost("message to edit not found".into()));
    let intent = machine.outbox().remove(0);
    assert_eq!((intent.state(), intent.preview.as_str()), (IntentState::Pending, ""), "sent as one of its own");
}

#[test]
fn why_there_is_no_reply_takes_its_place_too() {
    let mut machine = cluster();
    let token = machine.lease(ACCOUNT).fencing_token;
    let of_turn = asked(&mut machine, 1);
    machine.apply(show(1, token, "55"));
    machine.apply(fail(1, of_turn));
    let intent = machine.outbox().remove(0);
    assert_eq!(intent.preview, "55");
    assert!(intent.text.contains("/retry"), "{}", intent.text);
}

#[test]
fn a_preview_is_of_a_turn_that_goes_to_the_account() {
    let mut machine = cluster();
    let token = machine.lease(ACCOUNT).fencing_token;
    machine.apply(accept(1, "n1"));
    assert!(matches!(machine.apply(show(1, token, "55")), Outcome::Refused(_)));
}
