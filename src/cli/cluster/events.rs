//! `openclaw cluster events`: what the instances that answer saw happen, while they watched.

use openclaw_proto::http::{ClusterEvent, ClusterEventKind, Overview};

use crate::cli::client::Client;
use crate::cli::exit::Failure;
use crate::cli::output::{Align, Table, or_dash, span};

pub(super) async fn fetch(client: &Client) -> Result<Overview, Failure> {
    client.get(&["api", "v1", "overview"], &[]).await
}

/// Oldest first, so that the newest stands above the prompt.
pub(super) fn render(overview: &Overview) -> String {
    let ago = |ms: u64| format!("{} ago", span(overview.at_ms.saturating_sub(ms)));
    let Some(since_ms) = overview.since_ms else {
        return "no instance watches yet: each does so once it has registered\n".to_owned();
    };
    let mut text = String::new();
    if overview.events.is_empty() {
        text.push_str("nothing has happened\n");
    } else {
        let mut table = Table::new([
            ("WHEN", Align::Right),
            ("WHAT", Align::Left),
            ("FROM", Align::Left),
            ("TO", Align::Left),
            ("GAP", Align::Right),
            ("SEEN BY", Align::Left),
        ]);
        for event in overview.events.iter().rev() {
            table.row([
                ago(event.at_ms),
                what(event),
                or_dash(event.from.as_deref()),
                or_dash(event.to.as_deref()),
                event.gap_ms.map_or_else(|| "-".to_owned(), span),
                event.seen_by.clone(),
            ]);
        }
        text.push_str(&table.render());
    }
    text.push_str(&format!("watched since {}\n", ago(since_ms)));
    text
}

fn what(event: &ClusterEvent) -> String {
    let instance = or_dash(event.instance.as_deref());
    let account = or_dash(event.account.as_deref());
    match event.kind {
        ClusterEventKind::LeaderChanged => format!("leader of term {}", event.number),
        ClusterEventKind::LeaderReached if event.instance == event.to => format!("{instance} reaches a quorum again"),
        ClusterEventKind::LeaderReached => format!("{instance} reaches its leader again"),
        ClusterEventKind::InstanceCame => match &event.version {
            Some(version) => format!("{instance} came, version {version}"),
            None => format!("{instance} came"),
        },
        ClusterEventKind::InstanceWent => format!("{instance} went"),
        ClusterEventKind::InstanceDrains => format!("{instance} drains"),
        ClusterEventKind::InstanceWorks => format!("{instance} takes new turns again"),
        ClusterEventKind::ChannelMoved => account,
        ClusterEventKind::ChannelUnowned => format!("{account} has no owner"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: ClusterEventKind, at_ms: u64) -> ClusterEvent {
        ClusterEvent {
            kind,
            at_ms,
            seen_by: "node-2".into(),
            instance: None,
            account: None,
            from: None,
            to: None,
            number: 5,
            gap_ms: None,
            version: None,
        }
    }

    #[test]
    fn events_with_the_newest_last() {
        let went = ClusterEvent { instance: Some("node-1".into()), ..event(ClusterEventKind::InstanceWent, 98_000) };
        let led = ClusterEvent {
            from: Some("node-1".into()),
            to: Some("node-2".into()),
            gap_ms: Some(84),
            ..event(ClusterEventKind::LeaderChanged, 95_000)
        };
        let moved = ClusterEvent {
            account: Some("telegram:default".into()),
            gap_ms: Some(3_100),
            ..ClusterEvent { kind: ClusterEventKind::ChannelMoved, at_ms: 98_001, ..led.clone() }
        };
        let came = ClusterEvent {
            instance: Some("node-1".into()),
            version: Some("0.1.0".into()),
            ..event(ClusterEventKind::InstanceCame, 99_500)
        };
        let mut overview = Overview {
            at_ms: 100_000,
            since_ms: Some(10_000),
            events: vec![came, moved, went, led],
            ..Overview::default()
        };
        insta::assert_snapshot!(render(&overview), @r"
              WHEN  WHAT                        FROM    TO        GAP  SEEN BY
           5 s ago  leader of term 5            node-1  node-2  84 ms  node-2
           2 s ago  node-1 went                 -       -           -  node-2
           1 s ago  telegram:default            node-1  node-2    3 s  node-2
        500 ms ago  node-1 came, version 0.1.0  -       -           -  node-2
        watched since 90 s ago
        ");
        overview.events.clear();
        assert_eq!(render(&overview), "nothing has happened\nwatched since 90 s ago\n");
        overview.since_ms = None;
        assert!(render(&overview).starts_with("no instance watches yet"));
    }
}
