//! `openclaw status`: the state of an instance and of its cluster on one screen.

use clap::Args;
use openclaw_proto::http;

use super::client::{Asked, Client};
use super::exit::{Exit, Failure};
use super::health::{reasons, word};
use super::output::{self, facts, span};
use super::target::Connection;
use super::{cluster, sessions};

/// Show this instance, the leader, the members and the sessions on one screen
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    connection: Connection,
}

/// Everything that the screen shows, and `--json` prints.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    health: http::Health,
    cluster: http::Cluster,
    sessions: Counted,
}

/// What the most recently listed sessions are doing.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Counted {
    sessions: usize,
    /// There are more sessions than were counted.
    more: bool,
    running_turns: usize,
    queued_turns: usize,
}

pub(super) async fn run(arguments: Status, json: bool) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.connection)?;
    // Health first: it answers even when nothing else can.
    let health = client.health(Asked::Health).await?;
    let cluster = cluster::fetch(&client).await?;
    // Counting needs a quorum; without one the rest of the screen matters all the more.
    let sessions = match sessions::page(&client, sessions::PAGE, None).await {
        Ok(page) => Some(count(&page)),
        Err(failure) if failure.exit() == Exit::Unavailable => None,
        Err(failure) => return Err(failure),
    };
    let ok = health.ok;
    if json {
        output::print_json(&Report { health, cluster, sessions: sessions.unwrap_or_default() })?;
    } else {
        output::print(&render(&health, &cluster, sessions.as_ref()))?;
    }
    Ok(if ok { Exit::Ok } else { Exit::Failed })
}

fn count(page: &http::SessionList) -> Counted {
    Counted {
        sessions: page.sessions.len(),
        more: page.next_cursor.is_some(),
        running_turns: page.sessions.iter().filter(|session| session.running_turn.is_some()).count(),
        queued_turns: page.sessions.iter().map(|session| session.queued_turns.len()).sum(),
    }
}

fn render(health: &http::Health, cluster: &http::Cluster, counted: Option<&Counted>) -> String {
    let sessions = match counted {
        None => "not known without a quorum".to_owned(),
        Some(counted) => {
            let plus = if counted.more { "+" } else { "" };
            format!(
                "{}{plus}, {}{plus} turns running, {}{plus} waiting",
                counted.sessions, counted.running_turns, counted.queued_turns
            )
        }
    };
    let mut lines = vec![("instance", format!("{} ({})", cluster.instance_id, word(health.status)))];
    if let Some(detail) = &health.detail {
        lines.push(("version", format!("{}, up {}", detail.version, span(detail.uptime_ms))));
        lines.push(("turns here", detail.running_turns.to_string()));
    }
    lines.push(("sessions", sessions));
    let reasons = reasons(health);
    let gap = if reasons.is_empty() { "" } else { "\n" };
    format!("{}{gap}{reasons}{gap}{}", facts(lines), cluster::render(cluster))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_screen() {
        let health = http::Health {
            ok: true,
            status: http::HealthStatus::Ready,
            detail: Some(http::HealthDetail {
                instance_id: "node-2".into(),
                version: "0.1.0".into(),
                uptime_ms: 5_000,
                leader: Some("node-1".into()),
                term: 3,
                applied_index: 1200,
                running_turns: 2,
                reasons: Vec::new(),
            }),
        };
        let counted = Counted { sessions: 100, more: true, running_turns: 3, queued_turns: 1 };
        let text = render(&health, &cluster::tests::example(), Some(&counted));
        insta::assert_snapshot!(text.split("\n\n").next().unwrap(), @r"
        instance    node-2 (ready)
        version     0.1.0, up 5 s
        turns here  2
        sessions    100+, 3+ turns running, 1+ waiting
        cluster    demo
        seen by    node-2
        leader     node-1
        term       3
        committed  log index 1204
        ");
        assert!(render(&health, &cluster::tests::example(), None).contains("not known without a quorum"));

        let mut unwell = http::Health { ok: false, status: http::HealthStatus::Unwell, ..health };
        let reason = http::HealthReason {
            condition: http::HealthCondition::ChannelDeaf,
            account: Some("telegram:default".into()),
            message: "it hears nothing".into(),
        };
        unwell.detail.as_mut().unwrap().reasons.push(reason);
        let text = render(&unwell, &cluster::tests::example(), None);
        assert!(text.contains("node-2 (unwell)") && text.contains("\n\nchannel_deaf: it hears nothing\n\n"), "{text}");
    }
}
