//! What happened to the cluster while this instance watched: who led, who came and went, which account moved.
//!
//! Events are the differences between one look at the state and the next, so that a look that comes late finds the net
//! change, and nothing has to be counted. Pure: [`observer`](super::observer) looks, and brings the time along.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use openclaw_proto::peer::{ClusterEvent, ClusterEventKind as Kind};
use openclaw_proto::state::{Instance, Lease};

/// Events that are kept; older ones are forgotten.
const KEPT: usize = 256;
/// An instance that drains, or works again, is seen to do so by all within this time. Its epoch does not tell one time from
/// the next, as the numbers of other events do.
const SAME: u64 = 10_000;

/// One moment, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub unix_ms: u64,
    pub instant: Instant,
}

/// What an instance sees of the cluster at once.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// None: no leader that a quorum follows is known.
    pub leader: Option<String>,
    pub term: u64,
    /// When another instance was last heard as the leader.
    pub heard: Option<Instant>,
    pub instances: Vec<Instance>,
    pub leases: Vec<Lease>,
}

/// The events so far, and what the next look is compared with.
#[derive(Debug)]
pub struct History {
    me: String,
    since_ms: Option<u64>,
    /// Who led last, and in which term.
    led: Option<(String, u64)>,
    leaderless: Option<Instant>,
    instances: BTreeMap<String, Instance>,
    leases: BTreeMap<String, Lease>,
    /// Who had an account that nobody has, and until when.
    unowned: BTreeMap<String, (String, Instant)>,
    events: VecDeque<ClusterEvent>,
}

impl History {
    pub fn new(me: String) -> Self {
        Self {
            me,
            since_ms: None,
            led: None,
            leaderless: None,
            instances: BTreeMap::new(),
            leases: BTreeMap::new(),
            unowned: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Unix milliseconds of the first look.
    pub fn since_ms(&self) -> Option<u64> {
        self.since_ms
    }

    /// How long there has been no leader.
    pub fn leaderless(&self, now: Instant) -> Option<Duration> {
        self.leaderless.map(|since| now.saturating_duration_since(since))
    }

    /// Oldest first.
    pub fn events(&self) -> impl Iterator<Item = &ClusterEvent> {
        self.events.iter()
    }

    /// Compares what is seen now with what was seen before. The first look has nothing to compare with.
    pub fn look(&mut self, at: Moment, sight: Sight) {
        let first = self.since_ms.is_none();
        if first {
            self.since_ms = Some(at.unix_ms);
            self.led = sight.leader.clone().map(|leader| (leader, sight.term));
        }
        self.leader(at, &sight);
        let instances = sight.instances.into_iter().map(|row| (row.instance_id.clone(), row)).collect();
        let instances_before = std::mem::replace(&mut self.instances, instances);
        let leases = sight.leases.into_iter().map(|lease| (lease.account.clone(), lease)).collect();
        let leases_before = std::mem::replace(&mut self.leases, leases);
        if !first {
            self.came_and_went(at, &instances_before);
            self.accounts(at, &instances_before, &leases_before);
        }
    }

    fn leader(&mut self, at: Moment, sight: &Sight) {
        let Some(leader) = &sight.leader else {
            if self.leaderless.is_none() {
                // Silence began with the last word of who led. An instance that led itself heard of others long ago.
                let heard = sight.heard.filter(|_| self.led.as_ref().is_some_and(|(leader, _)| *leader != self.me));
                self.leaderless = Some(heard.unwrap_or(at.instant).min(at.instant));
            }
            return;
        };
        let gap = self.leaderless.take().map(|since| at.instant.saturating_duration_since(since));
        let now = (leader.clone(), sight.term);
        if self.led.as_ref() != Some(&now) {
            let from = self.led.replace(now).map(|(leader, _)| leader).unwrap_or_default();
            self.push(at, Kind::LeaderChanged, |event| {
                (event.from, event.to) = (from, leader.clone());
                (event.number, event.gap_ms) = (sight.term, millis(gap));
            });
        } else if gap.is_some() {
            let me = self.me.clone();
            self.push(at, Kind::LeaderReached, |event| {
                (event.instance, event.to) = (me, leader.clone());
                (event.number, event.gap_ms) = (sight.term, millis(gap));
            });
        }
    }

    fn came_and_went(&mut self, at: Moment, before: &BTreeMap<String, Instance>) {
        let now = self.instances.clone();
        for (id, old) in before.iter().filter(|(_, old)| old.live) {
            // One that has another epoch went as well, but came back in the same moment: one event says both.
            if now.get(id).is_none_or(|row| !row.live) {
                self.push(at, Kind::InstanceWent, |event| {
                    (event.instance, event.number) = (id.clone(), old.epoch);
                });
            }
        }
        for (id, row) in now.iter().filter(|(_, row)| row.live) {
            let old = before.get(id).filter(|old| old.live && old.epoch == row.epoch);
            if old.is_none() {
                self.push(at, Kind::InstanceCame, |event| {
                    (event.instance, event.number) = (id.clone(), row.epoch);
                    event.version.clone_from(&row.version);
                });
            }
            if old.map_or(row.draining, |old| old.draining != row.draining) {
                let kind = if row.draining { Kind::InstanceDrains } else { Kind::InstanceWorks };
                self.push(at, kind, |event| (event.instance, event.number) = (id.clone(), row.epoch));
            }
        }
    }

    fn accounts(&mut self, at: Moment, instances: &BTreeMap<String, Instance>, before: &BTreeMap<String, Lease>) {
        for (account, lease) in &self.leases.clone() {
            let old = before.get(account).cloned().unwrap_or_default();
            if lease.owner.is_empty() {
                if !old.owner.is_empty() {
                    self.unowned.insert(account.clone(), (old.owner.clone(), at.instant));
                    self.push(at, Kind::ChannelUnowned, |event| {
                        (event.account, event.from, event.number) = (account.clone(), old.owner, old.fencing_token);
                    });
                }
                continue;
            }
            if lease.fencing_token == old.fencing_token && !old.owner.is_empty() {
                continue;
            }
            let (from, gap_ms) = match self.unowned.remove(account) {
                Some((from, since)) => (from, millis(Some(at.instant.saturating_duration_since(since)))),
                None => (old.owner.clone(), self.silence(&old, lease, instances)),
            };
            self.push(at, Kind::ChannelMoved, |event| {
                (event.account, event.from, event.to) = (account.clone(), from, lease.owner.clone());
                (event.number, event.gap_ms) = (lease.fencing_token, gap_ms);
            });
        }
    }

    /// How long the owner before had not been heard when the lease was granted anew. One that still lives handed it over.
    fn silence(&self, old: &Lease, lease: &Lease, before: &BTreeMap<String, Instance>) -> u64 {
        let epoch = |row: &&Instance| row.epoch == old.epoch;
        let now = self.instances.get(&old.owner).filter(epoch);
        if now.is_some_and(|row| row.live) {
            return 0;
        }
        // Both times are the cluster's.
        let heard = now.or_else(|| before.get(&old.owner).filter(epoch)).map(|row| row.last_seen_ms);
        heard.map_or(0, |heard| lease.granted_ms.saturating_sub(heard))
    }

    fn push(&mut self, at: Moment, kind: Kind, fill: impl FnOnce(&mut ClusterEvent)) {
        let mut event =
            ClusterEvent { kind: kind.into(), at_ms: at.unix_ms, seen_by: self.me.clone(), ..ClusterEvent::default() };
        fill(&mut event);
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

fn millis(duration: Option<Duration>) -> u64 {
    u64::try_from(duration.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// What several instances saw, each event once, newest first.
///
/// It happened when the first of them saw it. Without a leader was the group until the new one knew that it leads, so of a
/// change of leader its own account counts.
pub fn merge(seen: impl IntoIterator<Item = ClusterEvent>) -> Vec<ClusterEvent> {
    let mut all: Vec<ClusterEvent> = seen.into_iter().collect();
    all.sort_by(|a, b| (a.at_ms, &a.seen_by).cmp(&(b.at_ms, &b.seen_by)));
    let mut merged: Vec<ClusterEvent> = Vec::new();
    let mut known: BTreeMap<(i32, String, u64), usize> = BTreeMap::new();
    for event in all {
        let (subject, window) = match event.kind() {
            Kind::LeaderChanged => (String::new(), u64::MAX),
            // Of nobody's concern but its own.
            Kind::LeaderReached => (format!("{} {}", event.instance, event.at_ms), u64::MAX),
            Kind::InstanceCame | Kind::InstanceWent => (event.instance.clone(), u64::MAX),
            Kind::InstanceDrains | Kind::InstanceWorks => (event.instance.clone(), SAME),
            Kind::ChannelMoved | Kind::ChannelUnowned => (event.account.clone(), u64::MAX),
            // Of a later release.
            Kind::Unspecified => continue,
        };
        let key = (event.kind, subject, event.number);
        match known.get(&key).and_then(|at| merged.get_mut(*at)) {
            Some(first) if event.at_ms - first.at_ms <= window => {
                if event.kind() == Kind::LeaderChanged && event.seen_by == event.to {
                    (first.seen_by, first.from, first.gap_ms) = (event.seen_by, event.from, event.gap_ms);
                }
            }
            Some(_) | None => {
                known.insert(key, merged.len());
                merged.push(event);
            }
        }
    }
    merged.reverse();
    merged.truncate(KEPT);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history of `node-1`, and the clock of its looks.
    struct Watch {
        history: History,
        start: Instant,
    }

    impl Watch {
        fn new() -> Self {
            Self { history: History::new("node-1".into()), start: Instant::now() }
        }

        fn instant(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn look(&mut self, ms: u64, sight: Sight) {
            let at = Moment { unix_ms: 1_000_000 + ms, instant: self.instant(ms) };
            self.history.look(at, sight);
        }

        fn told(&self) -> Vec<String> {
            self.history.events().map(tell).collect()
        }
    }

    fn tell(event: &ClusterEvent) -> String {
        let ClusterEvent { at_ms, seen_by, instance, account, from, to, number, gap_ms, version, .. } = event;
        let what = format!("{:?}", event.kind());
        let words = [what.as_str(), instance, account, from, "->", to, version];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        format!("{} {} #{number} gap {gap_ms} by {seen_by}", at_ms - 1_000_000, words.join(" "))
    }

    fn led_by(leader: &str, term: u64) -> Sight {
        Sight { leader: Some(leader.into()), term, ..Sight::default() }
    }

    fn instance(id: &str, epoch: u64) -> Instance {
        Instance { instance_id: id.into(), epoch, live: true, version: "1.0".into(), ..Instance::default() }
    }

    fn lease(owner: &str, epoch: u64, token: u64) -> Lease {
        Lease {
            account: "telegram:default".into(),
            owner: owner.into(),
            epoch,
            fencing_token: token,
            ..Lease::default()
        }
    }

    #[test]
    fn what_is_there_at_first_is_no_event() {
        let mut watch = Watch::new();
        let sight = Sight {
            instances: vec![instance("node-1", 3)],
            leases: vec![lease("node-1", 3, 5)],
            ..led_by("node-1", 1)
        };
        watch.look(0, sight.clone());
        watch.look(1_000, sight);
        assert_eq!(watch.told(), [] as [String; 0]);
        assert_eq!(watch.history.since_ms(), Some(1_000_000));
    }

    #[test]
    fn a_failover_lasts_from_the_last_word_of_the_leader_to_the_next_one() {
        let mut watch = Watch::new();
        watch.look(0, led_by("node-2", 1));
        let heard = Some(watch.instant(900));
        watch.look(1_000, Sight { heard, term: 1, ..Sight::default() });
        assert_eq!(watch.history.leaderless(watch.instant(1_050)), Some(Duration::from_millis(150)));
        watch.look(1_010, Sight { heard, term: 2, ..Sight::default() });
        watch.look(1_100, led_by("node-3", 2));
        assert_eq!(watch.told(), ["1100 LeaderChanged node-2 -> node-3 #2 gap 200 by node-1"]);
        assert_eq!(watch.history.leaderless(watch.instant(2_000)), None);
        // It leads itself, and whom it heard before says nothing of when that ended.
        watch.look(5_000, led_by("node-1", 3));
        watch.look(6_000, Sight { heard, term: 3, ..Sight::default() });
        watch.look(6_030, led_by("node-2", 4));
        assert_eq!(watch.told()[2], "6030 LeaderChanged node-1 -> node-2 #4 gap 30 by node-1");
    }

    #[test]
    fn an_instance_that_was_cut_off_says_so_when_it_is_back() {
        let mut watch = Watch::new();
        watch.look(0, led_by("node-2", 1));
        watch.look(5_000, Sight { heard: Some(watch.instant(4_000)), term: 1, ..Sight::default() });
        watch.look(9_000, led_by("node-2", 1));
        assert_eq!(watch.told(), ["9000 LeaderReached node-1 -> node-2 #1 gap 5000 by node-1"]);
    }

    #[test]
    fn instances_come_go_drain_and_come_back_as_another_version() {
        let mut watch = Watch::new();
        let with = |instances: &[Instance]| Sight { instances: instances.to_vec(), ..led_by("node-1", 1) };
        let (one, two) = (instance("node-1", 3), instance("node-2", 4));
        watch.look(0, with(std::slice::from_ref(&one)));
        watch.look(10, with(&[one.clone(), two.clone()]));
        watch.look(20, with(&[one.clone(), Instance { draining: true, ..two.clone() }]));
        watch.look(30, with(&[one.clone(), two.clone()]));
        watch.look(40, with(&[one.clone(), Instance { live: false, ..two.clone() }]));
        watch.look(50, with(&[one.clone(), Instance { version: "1.1".into(), ..instance("node-2", 9) }]));
        watch.look(60, with(&[one.clone(), instance("node-2", 12)]));
        watch.look(70, with(&[one]));
        assert_eq!(
            watch.told(),
            [
                "10 InstanceCame node-2 -> 1.0 #4 gap 0 by node-1",
                "20 InstanceDrains node-2 -> #4 gap 0 by node-1",
                "30 InstanceWorks node-2 -> #4 gap 0 by node-1",
                "40 InstanceWent node-2 -> #4 gap 0 by node-1",
                "50 InstanceCame node-2 -> 1.1 #9 gap 0 by node-1",
                "60 InstanceCame node-2 -> 1.0 #12 gap 0 by node-1",
                "70 InstanceWent node-2 -> #12 gap 0 by node-1",
            ]
        );
    }

    #[test]
    fn an_account_moves_with_the_silence_of_its_owner_and_without_one_by_order() {
        let mut watch = Watch::new();
        let with = |instances: &[Instance], leases: &[Lease]| Sight {
            instances: instances.to_vec(),
            leases: leases.to_vec(),
            ..led_by("node-1", 1)
        };
        let (one, two) = (instance("node-1", 3), Instance { last_seen_ms: 10_000, ..instance("node-2", 4) });
        let both = [one.clone(), two.clone()];
        watch.look(0, with(&both, &[]));
        watch.look(1, with(&both, &[lease("node-1", 3, 5)]));
        watch.look(2, with(&both, &[Lease { granted_ms: 12_000, ..lease("node-2", 4, 6) }]));
        // Where it shall go is no move yet.
        watch.look(3, with(&both, &[Lease { moving_to: "node-1".into(), ..lease("node-2", 4, 6) }]));
        let dead = Instance { live: false, ..two.clone() };
        watch.look(4, with(&[one.clone(), dead], &[Lease { granted_ms: 13_000, ..lease("node-1", 3, 7) }]));
        watch.look(5, with(&[], &[Lease { owner: String::new(), ..lease("", 0, 7) }]));
        watch.look(2_005, with(std::slice::from_ref(&two), &[lease("node-2", 4, 9)]));
        // Its owner was restarted within its silence: what is known of the epoch before is in the look before.
        let again = instance("node-2", 11);
        watch.look(2_006, with(&[again], &[Lease { granted_ms: 10_700, ..lease("node-2", 11, 12) }]));
        let moves: Vec<_> = watch.told().into_iter().filter(|told| told.contains("Channel")).collect();
        assert_eq!(
            moves,
            [
                "1 ChannelMoved telegram:default -> node-1 #5 gap 0 by node-1",
                "2 ChannelMoved telegram:default node-1 -> node-2 #6 gap 0 by node-1",
                "4 ChannelMoved telegram:default node-2 -> node-1 #7 gap 3000 by node-1",
                "5 ChannelUnowned telegram:default node-1 -> #7 gap 0 by node-1",
                "2005 ChannelMoved telegram:default node-1 -> node-2 #9 gap 2000 by node-1",
                "2006 ChannelMoved telegram:default node-2 -> node-2 #12 gap 700 by node-1",
            ]
        );
    }

    #[test]
    fn a_look_that_comes_late_finds_the_net_change_and_the_ring_has_an_end() {
        let mut watch = Watch::new();
        watch.look(0, Sight { leases: vec![lease("node-1", 3, 5)], ..led_by("node-1", 1) });
        watch.look(9, Sight { leases: vec![lease("node-3", 9, 50)], ..led_by("node-3", 7) });
        assert_eq!(
            watch.told(),
            [
                "9 LeaderChanged node-1 -> node-3 #7 gap 0 by node-1",
                "9 ChannelMoved telegram:default node-1 -> node-3 #50 gap 0 by node-1",
            ]
        );
        for term in 8..1_000 {
            watch.look(term, Sight { leases: vec![lease("node-3", 9, 50)], ..led_by("node-2", term) });
        }
        assert_eq!(watch.told().len(), KEPT);
        assert_eq!(watch.history.events().last().unwrap().number, 999);
    }

    #[test]
    fn what_several_saw_is_told_once_and_a_failover_by_its_new_leader() {
        let event = |kind: Kind, by: &str, at_ms: u64, gap_ms| ClusterEvent {
            kind: kind.into(),
            seen_by: by.into(),
            at_ms: 1_000_000 + at_ms,
            gap_ms,
            ..ClusterEvent::default()
        };
        let led = |by, at, gap| ClusterEvent {
            from: "node-1".into(),
            to: "node-2".into(),
            number: 5,
            ..event(Kind::LeaderChanged, by, at, gap)
        };
        let drains =
            |by, at| ClusterEvent { instance: "node-3".into(), number: 9, ..event(Kind::InstanceDrains, by, at, 0) };
        let reached = |by: &str| ClusterEvent { instance: by.into(), ..event(Kind::LeaderReached, by, 50, 7) };
        let merged = merge([
            led("node-3", 30, 90),
            led("node-2", 31, 60),
            led("node-4", 32, 9_000),
            drains("node-2", 100),
            drains("node-3", 40),
            drains("node-3", 60_000),
            drains("node-2", 60_010),
            reached("node-3"),
            reached("node-4"),
            event(Kind::Unspecified, "node-9", 1, 0),
        ]);
        let told: Vec<_> = merged.iter().map(tell).collect();
        assert_eq!(
            told,
            [
                "60000 InstanceDrains node-3 -> #9 gap 0 by node-3",
                "50 LeaderReached node-4 -> #0 gap 7 by node-4",
                "50 LeaderReached node-3 -> #0 gap 7 by node-3",
                "40 InstanceDrains node-3 -> #9 gap 0 by node-3",
                "30 LeaderChanged node-1 -> node-2 #5 gap 60 by node-2",
            ]
        );
    }
}
