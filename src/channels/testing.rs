//! Messages and settings for tests.

use std::time::Duration;

use openclaw_config::channels::{Account, DmPolicy, GroupPolicy, UnknownPolicy};
use openclaw_proto::ids::ChannelAccount;

use crate::message::{InboundMessage, Place, ReplyAddress, Sender};

pub(super) fn account() -> ChannelAccount {
    ChannelAccount::parse("telegram:default").unwrap()
}

pub(super) fn settings() -> Account {
    Account {
        dm_policy: DmPolicy::Pairing,
        allow_from: Vec::new(),
        group_policy: GroupPolicy::Allowlist,
        group_allow_from: Vec::new(),
        require_mention: true,
        groups: std::collections::BTreeMap::new(),
        unknown: UnknownPolicy::Resend,
        max_age: Duration::from_secs(3600),
        streaming: false,
        agent_id: "main".into(),
    }
}

fn message(sender: &str, text: &str, place: Place, addressed: bool) -> InboundMessage {
    let chat = match &place {
        Place::Direct { peer } => peer.clone(),
        Place::Group { id, .. } => id.clone(),
    };
    InboundMessage {
        account: account(),
        external_id: format!("{chat}-{text}"),
        place,
        sender: Sender { id: sender.into(), name: "Ann".into() },
        text: text.into(),
        addressed,
        reply_to: ReplyAddress { account: account(), chat, thread: None, message: None },
    }
}

pub(super) fn direct(sender: &str, text: &str) -> InboundMessage {
    message(sender, text, Place::Direct { peer: sender.into() }, true)
}

pub(super) fn group(sender: &str, text: &str, addressed: bool) -> InboundMessage {
    message(sender, text, Place::Group { id: "-100".into(), topic: None }, addressed)
}
