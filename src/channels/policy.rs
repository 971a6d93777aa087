//! Who may talk to a bot. Pure: settings, a message, and whether its sender was approved; a verdict comes out.
//!
//! Only the platform's immutable ids decide. A name can be given to another tomorrow.

use openclaw_config::channels::{Account, DmPolicy, GroupPolicy};

use crate::message::{InboundMessage, Place};

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Answer,
    /// Not for the bot, or from somebody who may not: no answer, so that nobody learns who may.
    Ignore(&'static str),
    /// A stranger who may be approved.
    Pair,
}

/// Judges `message` by the settings of the account that it came to.
pub fn judge(settings: &Account, message: &InboundMessage, paired: bool) -> Verdict {
    let sender = &message.sender.id;
    let listed = |list: &[String]| list.iter().any(|entry| entry == "*" || entry == sender);
    match &message.place {
        Place::Direct { .. } => match settings.dm_policy {
            DmPolicy::Disabled => Verdict::Ignore("private messages are disabled"),
            DmPolicy::Open => Verdict::Answer,
            DmPolicy::Allowlist | DmPolicy::Pairing if listed(&settings.allow_from) => Verdict::Answer,
            DmPolicy::Allowlist => Verdict::Ignore("the sender is not in allowFrom"),
            DmPolicy::Pairing if paired => Verdict::Answer,
            DmPolicy::Pairing => Verdict::Pair,
        },
        Place::Group { .. } => {
            let list =
                if settings.group_allow_from.is_empty() { &settings.allow_from } else { &settings.group_allow_from };
            match settings.group_policy {
                GroupPolicy::Disabled => Verdict::Ignore("groups are disabled"),
                GroupPolicy::Allowlist if !listed(list) => Verdict::Ignore("the sender is not in groupAllowFrom"),
                GroupPolicy::Allowlist | GroupPolicy::Open if settings.require_mention && !message.addressed => {
                    Verdict::Ignore("the bot was not meant")
                }
                GroupPolicy::Allowlist | GroupPolicy::Open => Verdict::Answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::testing::{direct, group, settings};

    fn check(change: impl FnOnce(&mut Account), message: &InboundMessage, paired: bool, expected: Verdict) {
        let mut settings = settings();
        change(&mut settings);
        let verdict = judge(&settings, message, paired);
        assert_eq!(std::mem::discriminant(&verdict), std::mem::discriminant(&expected), "{verdict:?}");
    }

    #[test]
    fn private_messages_are_for_those_who_are_listed_or_approved() {
        let (ann, ignore) = (direct("42", "hi"), Verdict::Ignore(""));
        check(|_| {}, &ann, false, Verdict::Pair);
        check(|_| {}, &ann, true, Verdict::Answer);
        check(|settings| settings.allow_from = vec!["42".into()], &ann, false, Verdict::Answer);
        check(|settings| settings.dm_policy = DmPolicy::Allowlist, &ann, true, ignore);
        check(|settings| settings.dm_policy = DmPolicy::Open, &ann, false, Verdict::Answer);
        check(|settings| settings.dm_policy = DmPolicy::Disabled, &ann, true, ignore);
        let named = |settings: &mut Account| {
            settings.dm_policy = DmPolicy::Allowlist;
            settings.allow_from = vec!["Ann".into()];
        };
        check(named, &ann, false, ignore);
    }

    #[test]
    fn in_groups_the_bot_must_be_meant_and_the_sender_listed() {
        let ignore = Verdict::Ignore("");
        let (meant, overheard) = (group("42", "hi", true), group("42", "hi", false));
        let open = |settings: &mut Account| settings.group_policy = GroupPolicy::Open;
        check(open, &meant, false, Verdict::Answer);
        check(open, &overheard, false, ignore);
        let loud = |settings: &mut Account| {
            open(settings);
            settings.require_mention = false;
        };
        check(loud, &overheard, false, Verdict::Answer);
        check(|_| {}, &meant, true, ignore);
        check(|settings| settings.allow_from = vec!["42".into()], &meant, false, Verdict::Answer);
        let narrower = |settings: &mut Account| {
            settings.allow_from = vec!["42".into()];
            settings.group_allow_from = vec!["43".into()];
        };
        check(narrower, &meant, false, ignore);
        check(|settings| settings.group_policy = GroupPolicy::Disabled, &meant, true, ignore);
    }
}
