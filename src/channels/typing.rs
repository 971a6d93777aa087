//! Shows people that a reply is being written, for as long as it is. Of no consequence when it fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::delivery::address;
use super::{Channel, Tenure};
use crate::message::ReplyAddress;
use crate::store::Event;
use crate::store::channels::ChannelStore;

/// Platforms show it for five seconds or more.
const AGAIN: Duration = Duration::from_secs(4);
const CALL: Duration = Duration::from_secs(2);
/// Chats that are shown it at once.
const MAX_CHATS: usize = 64;

/// Runs until the tenure ends.
pub(super) async fn show(store: Arc<dyn ChannelStore>, channel: Arc<dyn Channel>, tenure: Tenure) {
    let account = channel.account().as_str();
    let mut events = store.events();
    let mut writing: BTreeMap<String, ReplyAddress> = BTreeMap::new();
    let mut ticks = interval(AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !tenure.is_over() {
        let shown: Vec<ReplyAddress> = tokio::select! {
            () = tenure.ended.cancelled() => return,
            event = events.next() => match event {
                Some(Event::TurnRunnable(turn)) => {
                    let to = turn.reply_to.as_ref().filter(|to| to.account == account).and_then(address);
                    let Some(to) = to.filter(|_| writing.len() < MAX_CHATS) else { continue };
                    writing.insert(turn.id, to.clone());
                    vec![to]
                }
                Some(Event::TurnEnded(turn)) => {
                    writing.remove(&turn.id);
                    continue;
                }
                // Ends may have been missed: what still runs is shown again with its next attempt.
                Some(Event::Lagged) => {
                    writing.clear();
                    continue;
                }
                Some(Event::LeaseChanged(_) | Event::OutboxChanged { .. }) => continue,
                None => return,
            },
            _ = ticks.tick() => writing.values().cloned().collect(),
        };
        for to in shown {
            if tenure.is_over() {
                return;
            }
            let call = timeout(CALL, channel.typing(&to));
            if tenure.ended.run_until_cancelled(call).await.is_none() {
                return;
            }
        }
    }
}
