//! Bot accounts: tokens, owners, what came in last, and what waits to go out.

use openclaw_proto::http::{ChannelList, ChannelStatus};

use super::{Finding, Level, Patient};
use crate::cli::exit::Failure;
use crate::cli::output::{now_ms, span};

/// From here on a message that waits is late.
const LATE_MS: u64 = 60_000;

pub(super) async fn measure(patient: &Patient) -> Option<Result<ChannelList, Failure>> {
    // One that does not answer was told of already.
    patient.cluster.as_ref()?;
    let client = patient.client.as_ref()?;
    Some(client.get(&["api", "v1", "channels"], &[]).await)
}

pub(super) fn judge(asked: &Option<Result<ChannelList, Failure>>) -> Vec<Finding> {
    judge_at(asked, now_ms())
}

fn judge_at(asked: &Option<Result<ChannelList, Failure>>, now_ms: u64) -> Vec<Finding> {
    const CHECK: &str = "channels";
    let list = match asked {
        None => return vec![Finding::skipped(CHECK, "the instance on this machine does not answer")],
        Some(Err(failure)) => {
            let advice = failure.hint.clone().unwrap_or_else(|| "the gateway's log says more".to_owned());
            return vec![Finding::problem(CHECK, failure.message.clone(), advice)];
        }
        Some(Ok(list)) => list,
    };
    let owned: Vec<_> = list.channels.iter().filter(|channel| !channel.everywhere).collect();
    if owned.is_empty() {
        return vec![Finding::skipped(CHECK, "no bot account is configured")];
    }
    owned.into_iter().flat_map(|channel| one(channel, now_ms)).collect()
}

fn one(channel: &ChannelStatus, now_ms: u64) -> Vec<Finding> {
    const CHECK: &str = "channels";
    let account = &channel.account;
    let mut findings = Vec::new();
    match (&channel.owner, channel.connected, &channel.last_error) {
        (None, ..) => findings.push(Finding::problem(
            CHECK,
            format!("{account} is run by nobody"),
            "give its token to at least one live instance, in its configuration or environment, and restart that",
        )),
        (Some(owner), Some(false), Some(error)) => findings.push(Finding::problem(
            CHECK,
            format!("{account} on {owner} is not connected: {error}"),
            "a refused token must be replaced on every instance; else look at the way to the platform",
        )),
        (Some(owner), Some(false), None) => findings.push(Finding::warning(
            CHECK,
            format!("{account} on {owner} is not connected yet"),
            "look again in a moment",
        )),
        (Some(owner), None, _) => findings.push(Finding::warning(
            CHECK,
            format!("{owner}, which runs {account}, does not say how it is"),
            "look at that instance",
        )),
        (Some(owner), Some(true), error) => {
            let last = channel.last_inbound_ms.filter(|at| *at > 0);
            let last =
                last.map_or_else(|| "nothing yet".to_owned(), |at| format!("{} ago", span(now_ms.saturating_sub(at))));
            let error = error.as_ref().map(|error| format!("; last error: {error}")).unwrap_or_default();
            findings.push(Finding::ok(CHECK, format!("{account} on {owner}, last message {last}{error}")));
        }
    }
    let outbox = &channel.outbox;
    if let Some(oldest) = outbox.oldest_ms.filter(|oldest| *oldest > LATE_MS) {
        findings.push(Finding::problem(
            CHECK,
            format!("{account}: {} wait to be sent, the oldest since {}", outbox.waiting, span(oldest)),
            format!("`openclaw channels status`, and the log of the owner of {account}, say why"),
        ));
    }
    if outbox.failed + outbox.unknown > 0 {
        findings.push(Finding::warning(
            CHECK,
            format!("{account}: {} not sent, {} perhaps sent", outbox.failed, outbox.unknown),
            format!("decide about them: `openclaw channels dead-letters {account}`"),
        ));
    }
    debug_assert!(findings.iter().all(|finding| finding.level != Level::Skipped));
    findings
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::OutboxStatus;

    use super::*;

    fn found(change: impl FnOnce(&mut ChannelStatus)) -> Vec<(Level, String)> {
        let mut channel = ChannelStatus {
            account: "telegram:default".into(),
            owner: Some("node-2".into()),
            connected: Some(true),
            last_inbound_ms: Some(1_000),
            ..ChannelStatus::default()
        };
        change(&mut channel);
        let list = ChannelList { instance_id: "node-1".into(), channels: vec![channel] };
        judge_at(&Some(Ok(list)), 91_000).into_iter().map(|finding| (finding.level, finding.saw)).collect()
    }

    #[test]
    fn an_account_is_right_or_says_what_is_not() {
        assert_eq!(found(|_| {}), [(Level::Ok, "telegram:default on node-2, last message 90 s ago".into())]);
        assert_eq!(found(|channel| channel.owner = None)[0].0, Level::Problem);
        let refused = found(|channel| (channel.connected, channel.last_error) = (Some(false), Some("401".into())));
        assert_eq!(refused, [(Level::Problem, "telegram:default on node-2 is not connected: 401".into())]);
        let stuck = found(|channel| {
            channel.outbox = OutboxStatus { waiting: 3, unknown: 1, failed: 2, oldest_ms: Some(600_000) };
        });
        assert_eq!(stuck[1], (Level::Problem, "telegram:default: 3 wait to be sent, the oldest since 10 min".into()));
        assert_eq!(stuck[2], (Level::Warning, "telegram:default: 2 not sent, 1 perhaps sent".into()));
        assert_eq!(found(|channel| channel.everywhere = true)[0].0, Level::Skipped);
        assert_eq!(judge_at(&None, 0)[0].level, Level::Skipped);
    }
}
