//! The cluster at a glance, put together from what all instances say.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use openclaw_proto::http::{
    ChannelStatus, Cluster, ClusterEvent, ClusterEventKind, InstanceOverview, Load, MemberRole, Overview, Series,
};
use openclaw_proto::ids::InstanceId;
use openclaw_proto::peer::{self, Observation, Sample};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::api::{ChannelView, ClusterError, ClusterView, OverviewView};
use crate::cluster::history::merge;
use crate::cluster::observer::Observer;
use crate::cluster::rates;

/// For so long one collection serves whoever asks.
const FRESH: Duration = Duration::from_millis(900);

type Collected = Result<Arc<Overview>, ClusterError>;
type Collecting = Shared<BoxFuture<'static, Collected>>;

/// The views of one instance and what the others answer, as one.
pub(super) struct View {
    pub(super) observer: Observer,
    pub(super) cluster: Arc<dyn ClusterView>,
    pub(super) channels: Arc<dyn ChannelView>,
    /// The last collection and when it began. Who asks meanwhile waits for the same.
    pub(super) last: Mutex<Option<(Instant, Collecting)>>,
}

impl OverviewView for View {
    fn overview(&self) -> BoxFuture<'static, Collected> {
        let mut last = self.last.lock();
        if let Some((began, collecting)) = &*last
            && began.elapsed() < FRESH
        {
            return collecting.clone().boxed();
        }
        let (observer, cluster, channels) = (self.observer.clone(), self.cluster.clone(), self.channels.clone());
        let collecting = async move { collect(&observer, &*cluster, &*channels).await.map(Arc::new) }.boxed().shared();
        *last = Some((Instant::now(), collecting.clone()));
        collecting.boxed()
    }
}

async fn collect(
    observer: &Observer,
    cluster: &dyn ClusterView,
    channels: &dyn ChannelView,
) -> Result<Overview, ClusterError> {
    let cluster = cluster.cluster().await?;
    let members: Vec<InstanceId> =
        cluster.members.iter().filter_map(|member| InstanceId::parse(member.instance_id.as_str()).ok()).collect();
    let (answers, channels) = tokio::join!(observer.ask_all(&members), channels.channels());
    let said = members.iter().map(|id| id.as_str().to_owned()).zip(answers).collect();
    Ok(put_together(cluster, channels?.channels, said, observer.observation().leaderless_ms, now_ms()))
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What the instances said, by name.
type Said = Vec<(String, Result<Observation, String>)>;

/// One picture out of `cluster` as one instance sees it, and what all of them said.
fn put_together(
    cluster: Cluster,
    channels: Vec<ChannelStatus>,
    mut said: Said,
    leaderless_ms: u64,
    at_ms: u64,
) -> Overview {
    // All counts under the bounds of one of them.
    let bounds = said.iter().find_map(|(_, said)| said.as_ref().ok().filter(|said| !said.bounds.is_empty()));
    let bounds = bounds.map(|said| said.bounds.clone()).unwrap_or_default();
    for (_, said) in &mut said {
        let Ok(said) = said else { continue };
        for sample in &mut said.samples {
            for times in [&mut sample.request_times, &mut sample.turn_times, &mut sample.commit_times] {
                *times = rates::under(&bounds, &said.bounds, times);
            }
        }
    }
    let answered = || said.iter().filter_map(|(id, said)| said.as_ref().ok().map(|said| (id, said)));

    // An instance that is behind, or cut off, still names who led before.
    let newest = answered().map(|(_, said)| said).filter(|said| !said.leader.is_empty()).max_by_key(|said| said.term);
    let leader = newest.map(|said| said.leader.clone());
    let highest = || answered().map(|(_, said)| said.term).chain([cluster.term]).max().unwrap_or_default();
    let term = newest.map_or_else(highest, |said| said.term);
    let commit_index = answered().map(|(_, said)| said.commit_index).chain([cluster.commit_index]).max();
    let commit_index = commit_index.unwrap_or_default();

    let mut total = Sample::default();
    let mut instances = Vec::new();
    for member in cluster.members {
        let mut found = InstanceOverview {
            answered: false,
            silence: None,
            lag: None,
            since_ms: None,
            load: None,
            activity: None,
            member,
        };
        let member = &mut found.member;
        member.role = match member.role {
            MemberRole::Leader | MemberRole::Follower if leader.as_ref() == Some(&member.instance_id) => {
                MemberRole::Leader
            }
            MemberRole::Leader | MemberRole::Follower => MemberRole::Follower,
            MemberRole::Learner => MemberRole::Learner,
        };
        match said.iter().find(|(id, _)| *id == member.instance_id) {
            Some((_, Ok(said))) => {
                let recent = rates::lately(&said.samples);
                rates::join(&mut total, &recent);
                total.took_ms = total.took_ms.max(recent.took_ms);
                member.applied_index = Some(said.applied_index);
                found.answered = true;
                found.lag = Some(commit_index.saturating_sub(said.applied_index));
                found.since_ms = (said.since_ms > 0).then_some(said.since_ms);
                found.load = Some(Load {
                    turns_running: said.turns_running,
                    turns_waiting: said.turns_waiting,
                    streams: said.streams,
                    connections: said.connections,
                });
                found.activity = Some(rates::activity(&recent, &bounds));
            }
            Some((_, Err(reason))) => found.silence = Some(reason.clone()),
            None => {}
        }
        instances.push(found);
    }

    let newest_sample = answered().flat_map(|(_, said)| &said.samples).map(|sample| sample.at_ms).max();
    let series = newest_sample.map(|newest| {
        let end = rates::slot(newest);
        let of = |said: &Observation| rates::lines(&said.samples, &bounds, end);
        Series {
            step_ms: rates::STEP_MS,
            end_ms: (end + 1) * rates::STEP_MS,
            total: rates::lines(answered().flat_map(|(_, said)| &said.samples), &bounds, end),
            instances: answered().map(|(id, said)| (id.clone(), of(said))).collect(),
        }
    });
    Overview {
        cluster_id: cluster.cluster_id,
        instance_id: cluster.instance_id,
        at_ms,
        leaderless_ms: leader.is_none().then_some(leaderless_ms),
        leader,
        term,
        commit_index,
        since_ms: answered().map(|(_, said)| said.since_ms).filter(|since| *since > 0).min(),
        instances,
        channels,
        activity: rates::activity(&total, &bounds),
        events: merge(answered().flat_map(|(_, said)| said.events.clone())).into_iter().filter_map(event).collect(),
        series: Some(series.unwrap_or_default()),
        warnings: cluster.warnings,
    }
}

fn event(event: peer::ClusterEvent) -> Option<ClusterEvent> {
    let kind = match event.kind() {
        peer::ClusterEventKind::LeaderChanged => ClusterEventKind::LeaderChanged,
        peer::ClusterEventKind::LeaderReached => ClusterEventKind::LeaderReached,
        peer::ClusterEventKind::InstanceCame => ClusterEventKind::InstanceCame,
        peer::ClusterEventKind::InstanceWent => ClusterEventKind::InstanceWent,
        peer::ClusterEventKind::InstanceDrains => ClusterEventKind::InstanceDrains,
        peer::ClusterEventKind::InstanceWorks => ClusterEventKind::InstanceWorks,
        peer::ClusterEventKind::ChannelMoved => ClusterEventKind::ChannelMoved,
        peer::ClusterEventKind::ChannelUnowned => ClusterEventKind::ChannelUnowned,
        peer::ClusterEventKind::Unspecified => return None,
    };
    let given = |text: String| (!text.is_empty()).then_some(text);
    Some(ClusterEvent {
        kind,
        at_ms: event.at_ms,
        seen_by: event.seen_by,
        instance: given(event.instance),
        account: given(event.account),
        from: given(event.from),
        to: given(event.to),
        number: event.number,
        gap_ms: (event.gap_ms > 0).then_some(event.gap_ms),
        version: given(event.version),
    })
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::Member;

    use super::*;

    const BOUNDS: [f64; 2] = [0.01, 0.1];

    fn member(id: &str, role: MemberRole) -> Member {
        Member {
            instance_id: id.into(),
            role,
            http_addr: String::new(),
            peer_addr: String::new(),
            applied_index: None,
            version: Some("0.1.0".into()),
            epoch: Some(1),
            live: true,
            draining: false,
            last_seen_ms: Some(0),
        }
    }

    /// As `node-3` sees it, which has not heard of the new leader yet.
    fn cluster() -> Cluster {
        Cluster {
            cluster_id: "test".into(),
            instance_id: "node-3".into(),
            leader: Some("node-1".into()),
            term: 4,
            commit_index: 90,
            format: 1,
            members: vec![
                member("node-1", MemberRole::Leader),
                member("node-2", MemberRole::Follower),
                member("node-3", MemberRole::Follower),
                member("node-4", MemberRole::Learner),
            ],
            warnings: Vec::new(),
        }
    }

    fn observation(leader: &str, term: u64, commit_index: u64, applied_index: u64) -> Observation {
        Observation {
            leader: leader.into(),
            term,
            commit_index,
            applied_index,
            since_ms: 1_000 + term,
            bounds: BOUNDS.to_vec(),
            ..Observation::default()
        }
    }

    fn said(said: [(&str, Result<Observation, &str>); 4]) -> Said {
        said.into_iter().map(|(id, said)| (id.to_owned(), said.map_err(str::to_owned))).collect()
    }

    #[test]
    fn who_knows_the_newest_term_says_who_leads_and_lag_is_behind_what_anybody_knows_to_be_committed() {
        let overview = put_together(
            cluster(),
            Vec::new(),
            said([
                ("node-1", Err("no answer within 500ms")),
                ("node-2", Ok(observation("node-2", 5, 100, 100))),
                ("node-3", Ok(observation("node-1", 4, 90, 88))),
                ("node-4", Ok(observation("", 6, 95, 95))),
            ]),
            0,
            77,
        );
        assert_eq!((overview.leader.as_deref(), overview.term, overview.commit_index), (Some("node-2"), 5, 100));
        assert_eq!((overview.leaderless_ms, overview.at_ms, overview.since_ms), (None, 77, Some(1_004)));
        let seen: Vec<_> = overview
            .instances
            .iter()
            .map(|one| (one.member.role, one.answered, one.lag, one.member.applied_index, one.silence.as_deref()))
            .collect();
        assert_eq!(
            seen,
            [
                (MemberRole::Follower, false, None, None, Some("no answer within 500ms")),
                (MemberRole::Leader, true, Some(0), Some(100), None),
                (MemberRole::Follower, true, Some(12), Some(88), None),
                (MemberRole::Learner, true, Some(5), Some(95), None),
            ]
        );
    }

    #[test]
    fn without_a_leader_it_says_for_how_long() {
        let silent = || Err("it cannot be reached");
        let alone = Ok(observation("", 5, 90, 90));
        let said = said([("node-1", silent()), ("node-2", silent()), ("node-3", alone), ("node-4", silent())]);
        let overview = put_together(cluster(), Vec::new(), said, 1_234, 77);
        assert_eq!((overview.leader, overview.leaderless_ms), (None, Some(1_234)));
        assert!(overview.instances.iter().all(|one| one.member.role != MemberRole::Leader));
    }

    #[test]
    fn work_is_added_up_over_all_that_answer() {
        let sample = |at_ms, turns, times: &[u64]| Sample {
            at_ms,
            took_ms: 5_000,
            turns,
            turn_times: times.to_vec(),
            ..Sample::default()
        };
        let mut two = observation("node-2", 5, 1, 1);
        two.samples = vec![sample(7_500, 10, &[10, 0, 0]), sample(12_500, 10, &[10, 0, 0])];
        two.events = vec![
            peer::ClusterEvent { kind: peer::ClusterEventKind::LeaderChanged.into(), ..peer::ClusterEvent::default() },
            peer::ClusterEvent { kind: 4_711, ..peer::ClusterEvent::default() },
        ];
        // Another release, with bounds of its own.
        let mut three = observation("node-2", 5, 1, 1);
        three.bounds = vec![0.05];
        three.samples = vec![sample(12_500, 20, &[0, 20])];
        let said = said([
            ("node-1", Err("it cannot be reached")),
            ("node-2", Ok(two)),
            ("node-3", Ok(three)),
            ("node-4", Ok(observation("node-2", 5, 1, 1))),
        ]);
        let overview = put_together(cluster(), Vec::new(), said, 0, 77);
        assert_eq!((overview.activity.over_ms, overview.activity.turns_per_second), (10_000, 4.0));
        let turn = overview.activity.turn_time.unwrap();
        assert!((turn.p50_ms - 10.0).abs() < 0.01 && (turn.p99_ms - 100.0).abs() < 0.01, "{turn:?}");
        let series = overview.series.unwrap();
        assert_eq!((series.end_ms, series.total.turns_per_second.last()), (15_000, Some(&Some(6.0))));
        assert_eq!(series.instances["node-2"].turns_per_second.last(), Some(&Some(2.0)));
        assert!(!series.instances.contains_key("node-1"));
        assert_eq!(overview.events.len(), 1, "what a later release tells is not shown as something else");
    }
}
