//! The cluster as the instance on this machine sees it: leader, voters, who lags, who is gone, who is of another release.

use std::collections::BTreeSet;

use openclaw_proto::http::{Cluster, Health, HealthCondition, HealthStatus, MemberRole};

use super::{Finding, Level, Patient};
use crate::cli::client::Asked;

/// Entries that a member may be behind without a word: a second or so of a busy cluster.
const LAG: u64 = 10_000;

/// What the instance says of its health; nothing when it does not answer.
pub(super) async fn measure(patient: &Patient) -> Option<Health> {
    patient.cluster.as_ref()?;
    patient.client.as_ref()?.health(Asked::Ready).await.ok()
}

pub(super) fn judge(cluster: Option<&Cluster>, health: Option<Health>) -> Vec<Finding> {
    let Some(cluster) = cluster else {
        return vec![Finding::skipped("quorum", "the instance on this machine does not answer")];
    };
    let mut findings = vec![quorum(cluster, health.as_ref()), voters(cluster)];
    for member in &cluster.members {
        let id = &member.instance_id;
        if !member.live {
            findings.push(Finding::problem(
                "members",
                format!("{id} is gone"),
                format!("start it; if its machine is lost for good, `openclaw cluster remove {id}`"),
            ));
        } else if member.draining {
            findings.push(Finding::warning(
                "members",
                format!("{id} takes no new work: it drains or is in maintenance"),
                "`openclaw maintenance off` on that instance ends it, and so does a restart",
            ));
        }
        let lag = member.applied_index.map(|applied| cluster.commit_index.saturating_sub(applied));
        if let Some(lag) = lag.filter(|lag| member.live && *lag > LAG) {
            findings.push(Finding::warning(
                "members",
                format!("{id} is {lag} log entries behind"),
                "look again in a moment; if it does not catch up, look at its disk and its network",
            ));
        }
    }
    findings.extend(versions(cluster));
    if findings.iter().all(|finding| finding.level == Level::Ok) {
        findings.push(Finding::ok("members", format!("all {} live and up to date", cluster.members.len())));
    }
    findings
}

fn quorum(cluster: &Cluster, health: Option<&Health>) -> Finding {
    const CHECK: &str = "quorum";
    let own = &cluster.instance_id;
    // Of an earlier release: who led last is still named by an instance that hears of nobody any more; its health knows better.
    // Its status is one word, in which draining and maintenance stand before a quorum; the reasons are all of them.
    let Some(health) = health else {
        return match &cluster.leader {
            Some(_) => Finding::skipped(CHECK, format!("{own} did not say how it is")),
            None => Finding::problem(CHECK, format!("{own} hears of no leader"), "look at its log, and ask again"),
        };
    };
    let is = |status, condition| {
        let mut reasons = health.detail.iter().flat_map(|detail| &detail.reasons);
        health.status == status || reasons.any(|reason| reason.condition == condition)
    };
    if is(HealthStatus::ConsensusStopped, HealthCondition::ConsensusStopped) {
        return Finding::problem(
            CHECK,
            format!("{own} takes part no more: its consensus has stopped"),
            "its log says why; start its process again",
        );
    }
    let leader = cluster.leader.as_ref().filter(|_| !is(HealthStatus::NoQuorum, HealthCondition::NoQuorum));
    match leader {
        None => Finding::problem(
            CHECK,
            format!("{own} hears of no leader with a majority: nothing can be written"),
            "start the instances that are down; if most are lost for good, stop this one and take a backup of its disk \
             first (`openclaw cluster backup FILE --offline`), then follow deploy/RECOVERY.md",
        ),
        Some(_)
            if health.detail.is_none()
                && matches!(health.status, HealthStatus::Draining | HealthStatus::Maintenance) =>
        {
            Finding::skipped(CHECK, format!("{own} takes no new work, and tells more only to who has the token"))
        }
        Some(leader) => Finding::ok(CHECK, format!("{leader} leads in term {}", cluster.term)),
    }
}

fn voters(cluster: &Cluster) -> Finding {
    const CHECK: &str = "voters";
    let voters: Vec<_> = cluster.members.iter().filter(|member| member.role != MemberRole::Learner).collect();
    let live = voters.iter().filter(|member| member.live).count();
    let majority = voters.len() / 2 + 1;
    let saw = format!("{live} of {} live", voters.len());
    match (voters.len(), live) {
        (0, _) => {
            Finding::problem(CHECK, "none: the cluster has not formed", "start all instances of cluster.bootstrap")
        }
        (1, _) => Finding::warning(CHECK, "one: nothing is replicated", "add two more with --join"),
        (2, _) => Finding::warning(CHECK, format!("{saw}: two tolerate no failure"), "add a third with --join"),
        (_, live) if live < majority => {
            Finding::problem(CHECK, format!("{saw}: no majority"), "start the ones that are down")
        }
        (_, live) if live == majority => {
            Finding::warning(CHECK, format!("{saw}: one more loss stops writes"), "bring the missing ones back")
        }
        _ => Finding::ok(CHECK, saw),
    }
}

fn versions(cluster: &Cluster) -> Option<Finding> {
    let all: BTreeSet<&str> = cluster.members.iter().filter_map(|member| member.version.as_deref()).collect();
    (all.len() > 1).then(|| {
        let all: Vec<_> = all.into_iter().collect();
        Finding::warning(
            "versions",
            format!("{} are mixed", all.join(" and ")),
            "fine during an update: finish it on the other instances",
        )
    })
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::{HealthDetail, HealthReason};

    use super::*;
    use crate::cli::cluster::tests::example;

    fn health(status: HealthStatus, reason: Option<HealthCondition>) -> Health {
        let detail = reason.map(|condition| HealthDetail {
            instance_id: "node-2".into(),
            version: "0.1.0".into(),
            uptime_ms: 1,
            leader: Some("node-1".into()),
            term: 3,
            applied_index: 1200,
            running_turns: 0,
            reasons: vec![HealthReason { condition, account: None, message: String::new() }],
        });
        Health { ok: status == HealthStatus::Ready, status, detail }
    }

    fn found(change: impl FnOnce(&mut Cluster)) -> Vec<(&'static str, Level)> {
        let mut cluster = example();
        for member in &mut cluster.members {
            (member.live, member.version) = (true, Some("0.1.0".into()));
        }
        change(&mut cluster);
        judge(Some(&cluster), Some(health(HealthStatus::Ready, None)))
            .into_iter()
            .map(|finding| (finding.check, finding.level))
            .collect()
    }

    #[test]
    fn a_whole_cluster_is_right() {
        assert_eq!(found(|_| {}), [("quorum", Level::Ok), ("voters", Level::Ok), ("members", Level::Ok)]);
        assert_eq!(judge(None, None)[0].level, Level::Skipped);
    }

    #[test]
    fn a_quorum_is_what_status_and_reasons_say_together() {
        let quorum = |status, reason| judge(Some(&example()), Some(health(status, reason)))[0].level;
        let no_quorum = Some(HealthCondition::NoQuorum);
        assert_eq!(quorum(HealthStatus::NoQuorum, no_quorum), Level::Problem);
        assert_eq!(quorum(HealthStatus::Draining, no_quorum), Level::Problem);
        assert_eq!(quorum(HealthStatus::Maintenance, no_quorum), Level::Problem);
        assert_eq!(quorum(HealthStatus::ConsensusStopped, Some(HealthCondition::ConsensusStopped)), Level::Problem);
        assert_eq!(quorum(HealthStatus::Maintenance, Some(HealthCondition::Maintenance)), Level::Ok);
        // Who has no token hears the word alone.
        assert_eq!(quorum(HealthStatus::NoQuorum, None), Level::Problem);
        assert_eq!(quorum(HealthStatus::Maintenance, None), Level::Skipped);
        assert_eq!(judge(Some(&example()), None)[0].level, Level::Skipped);
    }

    #[test]
    fn who_is_gone_drains_lags_or_differs_is_named() {
        let gone = found(|cluster| cluster.members[2].live = false);
        assert_eq!(gone, [("quorum", Level::Ok), ("voters", Level::Warning), ("members", Level::Problem)]);
        let lost = found(|cluster| {
            cluster.leader = None;
            (cluster.members[0].live, cluster.members[2].live) = (false, false);
        });
        assert_eq!(lost[..2], [("quorum", Level::Problem), ("voters", Level::Problem)]);
        assert_eq!(found(|cluster| cluster.members[1].draining = true)[2], ("members", Level::Warning));
        assert_eq!(found(|cluster| cluster.commit_index += LAG)[2], ("members", Level::Warning));
        assert_eq!(found(|cluster| cluster.members[0].version = Some("0.2.0".into()))[2], ("versions", Level::Warning));
        assert_eq!(found(|cluster| drop(cluster.members.pop()))[1], ("voters", Level::Warning));
    }
}
