//! Who may talk to a bot. Pure: settings, a message, and whether its sender was approved; a verdict comes out.
//!
//! Only the platform's immutable ids decide. A name can be given to another tomorrow.

use openclaw_config::channels::{Account, DmPolicy, Group, GroupPolicy};

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
    let listed = |list: &[String]| is_listed(list, message);
    match &message.place {
        Place::Direct { .. } => match settings.dm_policy {
            DmPolicy::Disabled => Verdict::Ignore("private messages are disabled"),
            DmPolicy::Open => Verdict::Answer,
            DmPolicy::Allowlist | DmPolicy::Pairing if listed(&settings.allow_from) => Verdict::Answer,
            DmPolicy::Allowlist => Verdict::Ignore("the sender is not in allowFrom"),
            DmPolicy::Pairing if paired => Verdict::Answer,
            DmPolicy::Pairing => Verdict::Pair,
        },
        Place::Group { id, .. } => in_group(settings, id, message),
    }
}

fn is_listed(list: &[String], message: &InboundMessage) -> bool {
    list.iter().any(|entry| entry == "*" || *entry == message.sender.id)
}

/// What is not said of the group `id` is taken from the account.
fn in_group(settings: &Account, id: &str, message: &InboundMessage) -> Verdict {
    let named = settings.groups.get(id);
    let group = named.or_else(|| settings.groups.get(Group::OTHERS));
    match group {
        None if !settings.groups.is_empty() => return Verdict::Ignore("the group is not in groups"),
        Some(group) if !group.enabled => return Verdict::Ignore("the group is switched off"),
        None | Some(_) => {}
    }
    let people = if settings.group_allow_from.is_empty() { &settings.allow_from } else { &settings.group_allow_from };
    let own_people = group.and_then(|group| group.allow_from.as_ref());
    let may_write = match (group.and_then(|group| group.group_policy).unwrap_or(settings.group_policy), own_people) {
        (GroupPolicy::Disabled, _) => return Verdict::Ignore("groups are disabled"),
        (GroupPolicy::Allowlist | GroupPolicy::Open, Some(own)) => is_listed(own, message),
        // Where no people are listed at all, the group that is listed by its id is what is allowed.
        (GroupPolicy::Allowlist, None) => is_listed(people, message) || (named.is_some() && people.is_empty()),
        (GroupPolicy::Open, None) => true,
    };
    if !may_write {
        return Verdict::Ignore("the sender is not listed for groups");
    }
    let require_mention = group.and_then(|group| group.require_mention).unwrap_or(settings.require_mention);
    if require_mention && !message.addressed { Verdict::Ignore("the bot was not meant") } else { Verdict::Answer }
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

    /// In the group `-100`, with what `groups` says of each; nothing else lets 42 write.
    fn in_groups(groups: &[(&str, Group)], addressed: bool, expected: Verdict) {
        let listed = |settings: &mut Account| {
            settings.groups = groups.iter().map(|(id, group)| ((*id).to_owned(), group.clone())).collect();
        };
        check(listed, &group("42", "hi", addressed), false, expected);
    }

    /// A group of which nothing is said but that it is there.
    fn plain() -> Group {
        Group { enabled: true, require_mention: None, group_policy: None, allow_from: None }
    }

    #[test]
    fn a_group_has_its_own_word_about_being_meant() {
        let ignore = Verdict::Ignore("");
        let open = Group { group_policy: Some(GroupPolicy::Open), ..plain() };
        let (loud, meant) = (
            Group { require_mention: Some(false), ..open.clone() },
            Group { require_mention: Some(true), ..open.clone() },
        );
        in_groups(&[("-100", open.clone())], false, ignore);
        in_groups(&[("-100", loud.clone())], false, Verdict::Answer);
        in_groups(&[("*", loud.clone())], false, Verdict::Answer);
        in_groups(&[("*", loud.clone()), ("-100", meant.clone())], false, ignore);
        in_groups(&[("*", meant.clone()), ("-100", loud)], false, Verdict::Answer);
        let quiet_account = |settings: &mut Account| {
            settings.require_mention = false;
            settings.groups = [("-100".to_owned(), meant.clone())].into();
        };
        check(quiet_account, &group("42", "hi", false), false, ignore);
    }

    #[test]
    fn groups_that_are_listed_are_those_that_are_answered() {
        let ignore = Verdict::Ignore("");
        let open = Group { group_policy: Some(GroupPolicy::Open), ..plain() };
        in_groups(&[("-200", open.clone())], true, ignore);
        in_groups(&[("-200", plain()), ("*", open.clone())], true, Verdict::Answer);
        in_groups(&[("-100", Group { enabled: false, ..open.clone() }), ("*", open.clone())], true, ignore);
        in_groups(&[("*", Group { enabled: false, ..open.clone() }), ("-100", open.clone())], true, Verdict::Answer);
        in_groups(&[("-100", Group { group_policy: Some(GroupPolicy::Disabled), ..plain() })], true, ignore);
        // An open account is open in its groups alone.
        let elsewhere = |settings: &mut Account| {
            settings.group_policy = GroupPolicy::Open;
            settings.groups = [("-200".to_owned(), plain())].into();
        };
        check(elsewhere, &group("42", "hi", true), false, ignore);
    }

    #[test]
    fn a_group_that_is_named_is_for_all_of_it_unless_people_are_named() {
        let ignore = Verdict::Ignore("");
        let people = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        in_groups(&[("-100", plain())], true, Verdict::Answer);
        in_groups(&[("*", plain())], true, ignore);
        in_groups(&[("-100", Group { allow_from: people(&["42"]), ..plain() })], true, Verdict::Answer);
        in_groups(&[("-100", Group { allow_from: people(&["43"]), ..plain() })], true, ignore);
        in_groups(&[("-100", Group { allow_from: people(&[]), ..plain() })], true, ignore);
        let open_to_one = Group { group_policy: Some(GroupPolicy::Open), allow_from: people(&["43"]), ..plain() };
        in_groups(&[("-100", open_to_one)], true, ignore);
        let one_person = |settings: &mut Account| {
            settings.allow_from = vec!["43".into()];
            settings.groups = [("-100".to_owned(), plain())].into();
        };
        check(one_person, &group("42", "hi", true), false, ignore);
        check(one_person, &group("43", "hi", true), false, Verdict::Answer);
    }
}
