//! What differs in single groups.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::GroupPolicy;
use super::senders::{Platform, Senders};

/// What holds in one group, or, under `"*"`, in those that are not listed. What is not said of a group is taken from `"*"`, and
/// then from the settings around `groups`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default, bound = "P: Platform")]
#[schemars(rename = "Group")]
pub struct GroupEntry<P> {
    /// Whether the bot answers there; not taken from `"*"`. Default true.
    pub enabled: bool,
    /// Answer only messages that name the bot or reply to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_mention: Option<bool>,
    /// Who may write there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_policy: Option<GroupPolicy>,
    /// Who may write there, under `open` too: numeric ids of people, or `"*"` for everybody; an empty list: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Senders<P>>,
}

impl<P> Default for GroupEntry<P> {
    fn default() -> Self {
        Self { enabled: true, require_mention: None, group_policy: None, allow_from: None }
    }
}

/// What is said of one group. What is not is taken from its [`Account`](super::Account).
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Whether the bot answers there.
    pub enabled: bool,
    /// Only messages that name the bot or answer it.
    pub require_mention: Option<bool>,
    /// Who may write there.
    pub group_policy: Option<GroupPolicy>,
    /// Ids of people, in digits, or `*`. They hold under every policy.
    pub allow_from: Option<Vec<String>>,
}

impl Group {
    /// In place of an id: the groups that are not listed.
    pub const OTHERS: &'static str = "*";
}

/// The groups that are listed, each with what it takes from `"*"`.
pub(super) fn in_force<P>(entries: &BTreeMap<String, GroupEntry<P>>) -> BTreeMap<String, Group> {
    let others = entries.get(Group::OTHERS);
    let in_force = |entry: &GroupEntry<P>| {
        let allow_from = entry.allow_from.as_ref().or(others.and_then(|others| others.allow_from.as_ref()));
        Group {
            enabled: entry.enabled,
            require_mention: entry.require_mention.or(others.and_then(|others| others.require_mention)),
            group_policy: entry.group_policy.or(others.and_then(|others| others.group_policy)),
            allow_from: allow_from.map(|senders| senders.ids().to_vec()),
        }
    };
    entries.iter().map(|(id, entry)| (id.clone(), in_force(entry))).collect()
}
