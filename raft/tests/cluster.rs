//! Three instances in one process, over loopback sockets and links that the tests cut.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use openclaw_proto::http::MemberRole;
use openclaw_proto::ids::{InstanceId, SeqNum, SessionKey};
use openclaw_proto::state::{AppendEntry, InboxKey, Role, command, outcome};
use openclaw_raft::{
    Formation, FormationError, Links, MembershipError, Node, OpenError, Options, Over, ProposeError, Running, Security,
    StartError, Status, Timing,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
const CALL: Duration = Duration::from_secs(5);

/// A body hash of the right length.
fn hash(text: &str) -> Bytes {
    Sha256::digest(text).to_vec().into()
}

struct Member {
    id: InstanceId,
    dir: TempDir,
    addr: String,
    /// What it says its address is, if that is another one.
    advertised: Option<String>,
    running: Option<(Node, Running)>,
}

impl Member {
    async fn new(name: &str) -> Self {
        let addr = listen("127.0.0.1:0").await.local_addr().unwrap().to_string();
        Self { id: id(name), dir: TempDir::new().unwrap(), addr, advertised: None, running: None }
    }
}

struct Cluster {
    members: Vec<Member>,
    links: Links,
    timing: Timing,
    security: Security,
}

fn id(name: &str) -> InstanceId {
    InstanceId::parse(name).unwrap()
}

fn key(name: &str) -> SessionKey {
    SessionKey::parse(name).unwrap()
}

async fn listen(addr: &str) -> TcpListener {
    // A port that was just closed may need a moment.
    let started = Instant::now();
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{addr}: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

fn append(session: &str, external: &str, text: &str) -> command::Kind {
    command::Kind::AppendEntry(AppendEntry {
        inbox: Some(InboxKey { account: "http".into(), external_id: external.into(), body_hash: hash(text) }),
        session_key: session.into(),
        role: Role::User.into(),
        text: text.into(),
        expected_head: None,
    })
}

impl Cluster {
    async fn start(count: usize) -> Self {
        Self::start_with(count, Timing::default(), Security::Plaintext).await
    }

    async fn start_with(count: usize, timing: Timing, security: Security) -> Self {
        // RUST_LOG=openraft=info shows what consensus did; a test that fails prints it.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        drop(tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init());
        let mut members = Vec::new();
        for number in 1..=count {
            members.push(Member::new(&format!("node-{number}")).await);
        }
        let mut cluster = Self { members, links: Links::default(), timing, security };
        let list = cluster.members.iter().map(|member| (member.id.clone(), member.addr.clone())).collect();
        let formation = if count == 1 { Formation::Alone } else { Formation::Bootstrap(list) };
        for at in 0..count {
            cluster.run(at, formation.clone()).await.unwrap();
        }
        cluster.leader().await;
        cluster
    }

    async fn run(&mut self, at: usize, formation: Formation) -> Result<(), StartError> {
        let started = Instant::now();
        loop {
            match self.try_run(at, formation.clone()).await {
                // The last handle of the instance's former life may still be on its way out.
                Err(StartError::Open(OpenError::Locked { .. })) if started.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                result => return result,
            }
        }
    }

    async fn try_run(&mut self, at: usize, formation: Formation) -> Result<(), StartError> {
        let member = &self.members[at];
        let options = Options {
            instance_id: member.id.clone(),
            cluster_id: None,
            data_dir: member.dir.path().to_owned(),
            listener: listen(&member.addr).await,
            peer_addr: member.advertised.clone().unwrap_or_else(|| member.addr.clone()),
            http_addr: format!("http-of-{}", member.id),
            formation,
            security: self.security.clone(),
            timing: self.timing.clone(),
            services: tonic::service::Routes::default(),
            links: self.links.clone(),
        };
        let running = Node::start(options).await?;
        self.members[at].running = Some(running);
        Ok(())
    }

    async fn stop(&mut self, at: usize) {
        let (node, running) = self.members[at].running.take().unwrap();
        drop(node);
        running.stop().await;
    }

    fn node(&self, at: usize) -> &Node {
        &self.members[at].running.as_ref().unwrap().0
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|at| self.members[*at].running.is_some())
    }

    /// Waits until `check` holds on the instance `at`.
    async fn until(&self, at: usize, what: &str, check: impl Fn(&Status) -> bool) {
        // Indices move without a word to those who watch.
        let started = Instant::now();
        while !check(&self.node(at).status()) {
            assert!(started.elapsed() < PATIENCE, "{what}: {:?}", self.node(at).status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until all running instances agree on a leader that has a quorum, and says which it is.
    async fn leader(&self) -> usize {
        let started = Instant::now();
        loop {
            let statuses: Vec<_> = self.running().map(|at| self.node(at).status()).collect();
            let leaders: BTreeSet<_> = statuses.iter().map(|status| status.leader.clone()).collect();
            if let Some(Some(leader)) = leaders.first()
                && leaders.len() == 1
                && statuses.iter().all(|status| status.has_quorum)
            {
                let at = self.members.iter().position(|member| member.id == *leader).unwrap();
                if self.members[at].running.is_some() {
                    return at;
                }
            }
            assert!(started.elapsed() < PATIENCE, "no leader: {statuses:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn isolate(&self, at: usize) {
        for other in self.members.iter().filter(|other| other.id != self.members[at].id) {
            self.links.cut(&self.members[at].id, &other.id);
            self.links.cut(&other.id, &self.members[at].id);
        }
    }

    async fn append(&self, at: usize, session: &str, external: &str, text: &str) -> u64 {
        let committed = self.node(at).propose(append(session, external, text), CALL).await.unwrap();
        let outcome::Kind::Appended(appended) = committed.outcome else { panic!("{:?}", committed.outcome) };
        appended.seq
    }

    async fn texts(&self, at: usize, session: &str) -> Vec<String> {
        let view = self.node(at).read_linearizable(CALL).await.unwrap();
        let entries = view.entries(&key(session), SeqNum(0), 100_000).unwrap();
        entries.into_iter().map(|entry| entry.text).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_instance_takes_writes_and_reads_what_any_other_acknowledged() {
    let cluster = Cluster::start(3).await;
    for round in 0..30_u64 {
        let at = (round % 3) as usize;
        assert_eq!(cluster.append(at, "s", &format!("k{round}"), &format!("text {round}")).await, round + 1);
        let texts = cluster.texts((at + 1) % 3, "s").await;
        assert_eq!(texts.len() as u64, round + 1);
        assert_eq!(texts.last().unwrap(), &format!("text {round}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_command_gives_the_first_answer_on_any_instance() {
    let cluster = Cluster::start(3).await;
    let first = cluster.append(0, "s", "same", "hello").await;
    for at in 0..3 {
        assert_eq!(cluster.append(at, "s", "same", "hello").await, first);
    }
    assert_eq!(cluster.texts(1, "s").await, ["hello"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_refuses_quickly_and_the_others_go_on() {
    let cluster = Cluster::start(3).await;
    cluster.append(0, "s", "a", "before").await;
    let old = cluster.leader().await;
    cluster.isolate(old);
    let other = (old + 1) % 3;
    cluster.append(other, "s", "b", "during").await;
    let error = cluster.node(old).propose(append("s", "c", "lost"), Duration::from_millis(800)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum { .. } | ProposeError::EffectUnknown { .. }), "{error}");
    assert!(cluster.node(old).read_linearizable(Duration::from_millis(500)).await.is_err(), "a stale read");
    cluster.links.heal();
    cluster.leader().await;
    let texts = cluster.texts(old, "s").await;
    assert_eq!(texts[..2], ["before", "during"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_deadline_holds_behind_commands_that_wait_long() {
    let mut cluster = Cluster::start(3).await;
    cluster.stop(0).await;
    cluster.stop(1).await;
    let node = cluster.node(2).clone();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..64 {
        let (node, reader) = (node.clone(), node.clone());
        waiting.spawn(async move { node.propose(append("s", &format!("k{number}"), "x"), PATIENCE * 6).await.is_ok() });
        waiting.spawn(async move { reader.read_linearizable(PATIENCE * 6).await.is_ok() });
    }
    // By the time the first of these has given up, the patient ones hold all places, and the second is behind them.
    for external in ["first", "second"] {
        let short = node.propose(append("s", external, "x"), Duration::from_millis(500));
        let error = timeout(PATIENCE, short).await.expect("an answer by its own deadline").unwrap_err();
        assert!(matches!(error, ProposeError::NoQuorum { .. } | ProposeError::EffectUnknown { .. }), "{error}");
        let read = timeout(PATIENCE, node.read_linearizable(Duration::from_millis(500))).await;
        assert!(read.expect("an answer by its own deadline").is_err());
        // One batch takes all that waits, so the places fill one by one.
        for number in 0..4 {
            let (node, reader) = (node.clone(), node.clone());
            let external = format!("{external}-{number}");
            waiting.spawn(async move { node.propose(append("s", &external, "x"), PATIENCE * 6).await.is_ok() });
            waiting.spawn(async move { reader.read_linearizable(PATIENCE * 6).await.is_ok() });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let short = node.propose(append("s", "third", "x"), Duration::from_millis(500));
    timeout(PATIENCE, short).await.expect("an answer by its own deadline").unwrap_err();
    let read = timeout(PATIENCE, node.read_linearizable(Duration::from_millis(500))).await;
    assert!(read.expect("an answer by its own deadline").is_err());
}

/// The leader takes a command from another instance, and is then cut off from both: it neither answers nor steps down.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_does_not_wait_for_a_leader_that_has_a_successor() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let others = [(old + 1) % 3, (old + 2) % 3];
    let id = |at: usize| &cluster.members[at].id;
    others.iter().for_each(|other| cluster.links.cut(id(old), id(*other)));
    let appended = || cluster.node(old).counters().entries_appended.load(std::sync::atomic::Ordering::Relaxed);
    let before = appended();
    let node = cluster.node(others[0]).clone();
    let proposed = tokio::spawn(async move { node.propose(append("s", "k", "x"), PATIENCE * 6).await });
    let began = Instant::now();
    while appended() == before {
        assert!(began.elapsed() < PATIENCE, "the leader was never asked");
        tokio::task::yield_now().await;
    }
    others.iter().for_each(|other| cluster.links.cut(id(*other), id(old)));
    timeout(PATIENCE, proposed).await.expect("an answer of the next leader").unwrap().unwrap();
    assert_eq!(cluster.texts(others[0], "s").await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_under_way_survives_the_loss_of_its_leader() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let other = (old + 1) % 3;
    let node = cluster.node(other).clone();
    let writes = tokio::spawn(async move {
        for number in 0..200 {
            node.propose(append("s", &format!("k{number}"), &format!("{number}")), PATIENCE).await.unwrap();
        }
    });
    cluster.until(other, "some writes", |status| status.applied_index > 40).await;
    cluster.stop(old).await;
    writes.await.unwrap();
    let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    assert_eq!(cluster.texts(other, "s").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_away_catches_up_from_a_snapshot_after_the_log_was_purged() {
    let timing = Timing { snapshot_every: 300, log_keep: 50, ..Timing::default() };
    let mut cluster = Cluster::start_with(3, timing, Security::Plaintext).await;
    let away = (cluster.leader().await + 1) % 3;
    let list =
        Formation::Bootstrap(cluster.members.iter().map(|member| (member.id.clone(), member.addr.clone())).collect());
    cluster.append(0, "s", "first", "first").await;
    cluster.stop(away).await;
    let at = cluster.leader().await;
    let node = cluster.node(at).clone();
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..3000 {
        let node = node.clone();
        writes.spawn(async move { node.propose(append("t", &format!("k{number}"), "x"), PATIENCE).await.unwrap() });
    }
    while let Some(done) = writes.join_next().await {
        done.unwrap();
    }
    cluster.until(at, "a snapshot", |status| status.snapshot_index > 2000).await;
    cluster.run(away, list).await.unwrap();
    assert_eq!(cluster.texts(away, "t").await.len(), 3000);
    assert_eq!(cluster.texts(away, "s").await, ["first"]);
    let index = cluster.node(at).status().applied_index;
    cluster.node(away).read_at_least(index, CALL).await.unwrap();
    assert_eq!(cluster.node(away).state_hash().unwrap(), cluster.node(at).state_hash().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_hash_belongs_to_its_log_index_also_while_commands_are_applied() {
    let cluster = Cluster::start(3).await;
    let node = cluster.node(cluster.leader().await).clone();
    let writing = tokio::spawn(async move {
        for number in 0..300 {
            node.propose(append("s", &format!("k{number}"), "x"), PATIENCE).await.unwrap();
        }
    });
    let (mut hashes, mut compared) = (std::collections::BTreeMap::new(), 0);
    while !writing.is_finished() || compared == 0 {
        for at in 0..3 {
            let node = cluster.node(at).clone();
            let (index, hash) = tokio::task::spawn_blocking(move || node.state_hash().unwrap()).await.unwrap();
            match hashes.insert(index, hash) {
                Some(other) => {
                    assert_eq!(hash, other, "at log index {index}");
                    compared += 1;
                }
                None => tokio::task::yield_now().await,
            }
        }
    }
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_grows_and_shrinks() {
    let mut cluster = Cluster::start(1).await;
    cluster.append(0, "s", "a", "alone").await;
    let door = cluster.members[0].addr.clone();
    for number in 2..=3 {
        cluster.members.push(Member::new(&format!("node-{number}")).await);
        cluster.run(number - 1, Formation::Join(vec![door.clone()])).await.unwrap();
        cluster.until(number - 1, "a voter", |status| status.voter_count() == number).await;
    }
    cluster.append(2, "s", "b", "three").await;
    assert_eq!(cluster.texts(1, "s").await, ["alone", "three"]);

    let leader = cluster.leader().await;
    let to = cluster.node((leader + 1) % 3).transfer_leader(None, CALL).await.unwrap();
    assert_eq!(cluster.leader().await, (leader + 1) % 3, "asked {to} to lead");
    let gone = cluster.members[leader].id.clone();
    cluster.node((leader + 2) % 3).remove(&gone, CALL).await.unwrap();
    cluster.until((leader + 1) % 3, "two voters", |status| status.voter_count() == 2).await;
    // The one that was taken out still runs, and is told.
    let (node, running) = cluster.members[leader].running.as_ref().unwrap();
    let late = node.propose(append("s", "late", "late"), Duration::from_secs(1)).await;
    assert!(matches!(late, Err(ProposeError::NoQuorum { .. })), "{late:?}");
    assert_eq!(timeout(PATIENCE, running.over()).await.unwrap(), Over::Removed);
    cluster.stop(leader).await;
    cluster.append((leader + 1) % 3, "s", "c", "two").await;
}

/// Nobody acknowledges anything to it, however long it has led.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_answers_reads_when_nothing_was_written_for_long() {
    let cluster = Cluster::start(1).await;
    cluster.append(0, "s", "a", "alone").await;
    tokio::time::sleep(Timing::default().election_timeout * 8).await;
    assert_eq!(cluster.texts(0, "s").await, ["alone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_join_at_once_get_a_vote() {
    let mut cluster = Cluster::start(1).await;
    let door = cluster.members[0].addr.clone();
    for number in 2..=5 {
        cluster.members.push(Member::new(&format!("node-{number}")).await);
    }
    for at in 1..5 {
        cluster.run(at, Formation::Join(vec![door.clone()])).await.unwrap();
    }
    cluster.until(0, "five voters", |status| status.voter_count() == 5).await;
    cluster.append(4, "s", "a", "five").await;
}

/// Two machines were given one name. The first is not to be thrown out for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_of_a_name_waits_until_the_first_is_gone() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (first, door) = ((leader + 1) % 3, cluster.members[leader].addr.clone());
    let name = cluster.members[first].id.clone();
    cluster.members.push(Member::new(name.as_str()).await);
    let second = 3;
    cluster.run(second, Formation::Join(vec![door])).await.unwrap();
    let is_at = |status: &Status, addr: &str| {
        status
            .members
            .iter()
            .any(|member| member.instance_id == name && member.peer_addr == addr && member.role != MemberRole::Learner)
    };
    // It asks ten times in this time.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        cluster.append(first, "s", &format!("{:?}", started.elapsed()), "as ever").await;
        assert!(is_at(&cluster.node(leader).status(), &cluster.members[first].addr));
    }
    cluster.stop(first).await;
    cluster.until(second, "in its place", |status| is_at(status, &cluster.members[second].addr)).await;
    cluster.until(leader, "three voters", |status| status.voter_count() == 3).await;
    cluster.append(second, "s", "last", "from the second").await;
}

/// It is a learner by then, whom nobody can reach.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_was_wrong_is_corrected_by_a_start_with_the_right_one() {
    let mut cluster = Cluster::start(3).await;
    let (leader, joining) = (cluster.leader().await, 3);
    let formation = Formation::Join(vec![cluster.members[leader].addr.clone()]);
    cluster.members.push(Member::new("node-4").await);
    let nobody = listen("127.0.0.1:0").await.local_addr().unwrap().to_string();
    cluster.members[joining].advertised = Some(nobody.clone());
    cluster.run(joining, formation.clone()).await.unwrap();
    let is_at = |status: &Status, addr: &str| status.members.iter().any(|member| member.peer_addr == addr);
    cluster.until(leader, "admitted", |status| is_at(status, &nobody)).await;
    cluster.stop(joining).await;
    cluster.members[joining].advertised = None;
    cluster.run(joining, formation).await.unwrap();
    cluster.until(joining, "a voter", |status| status.voter_count() == 4).await;
    assert!(!is_at(&cluster.node(joining).status(), &nobody));
    cluster.append(joining, "s", "a", "four").await;
}

/// Nobody but the leader of then ever heard of it, and that one, which leads again, has forgotten: it was not removed.
#[tokio::test(flavor = "multi_thread")]
async fn an_admission_that_came_to_nothing_is_repeated() {
    let mut cluster = Cluster::start(3).await;
    let (leader, joining) = (cluster.leader().await, 3);
    let (admitting, formation) =
        (cluster.members[leader].id.clone(), Formation::Join(vec![cluster.members[leader].addr.clone()]));
    cluster.isolate(leader);
    cluster.members.push(Member::new("node-4").await);
    let name = cluster.members[joining].id.clone();
    cluster.run(joining, formation.clone()).await.unwrap();
    let knows_it = |status: &Status| status.members.iter().any(|member| member.instance_id == name);
    cluster.until(joining, "admitted by the one that is cut off", knows_it).await;
    cluster.stop(joining).await;

    let other = (leader + 1) % 3;
    let succeeded = |status: &Status| status.leader.as_ref().is_some_and(|new| *new != admitting);
    cluster.until(other, "a successor", succeeded).await;
    cluster.append(other, "s", "a", "without it").await;
    cluster.links.heal();
    cluster.until(leader, "the admission is cut off its log", |status| !knows_it(status)).await;
    cluster.leader().await;
    cluster.node(other).transfer_leader(Some(&admitting), CALL).await.unwrap();

    cluster.run(joining, formation).await.unwrap();
    cluster.until(joining, "a voter", |status| status.voter_count() == 4).await;
    assert_eq!(cluster.texts(joining, "s").await, ["without it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_knows_it() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let gone = cluster.members[leader].id.clone();
    let (_, running) = cluster.members[leader].running.as_ref().unwrap();
    let by = cluster.node((leader + 1) % 3);
    let (over, removed) = tokio::join!(timeout(PATIENCE, running.over()), by.remove(&gone, CALL));
    removed.unwrap();
    assert_eq!(over.unwrap(), Over::Removed);
    cluster.stop(leader).await;
    cluster.until((leader + 1) % 3, "two voters", |status| status.voter_count() == 2).await;
    cluster.append((leader + 1) % 3, "s", "a", "two").await;
    // Its own log says that it is no member, as that of a new instance does.
    let list = cluster.members.iter().map(|member| (member.id.clone(), member.addr.clone())).collect();
    let again = cluster.run(leader, Formation::Bootstrap(list)).await;
    assert!(matches!(again, Err(StartError::Formation(FormationError::Removed))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_removed_while_it_was_down_is_told_by_whoever_leads_then() {
    let mut cluster = Cluster::start(5).await;
    let leader = cluster.leader().await;
    let (gone, by) = ((leader + 1) % 5, (leader + 2) % 5);
    let name = cluster.members[gone].id.clone();
    let list = cluster.members.iter().map(|member| (member.id.clone(), member.addr.clone())).collect();
    cluster.append(gone, "s", "a", "belongs").await;
    cluster.stop(gone).await;
    cluster.node(by).remove(&name, CALL).await.unwrap();
    // The only one that it would ask.
    cluster.stop(leader).await;
    cluster.leader().await;
    cluster.run(gone, Formation::Bootstrap(list)).await.unwrap();
    let (_, running) = cluster.members[gone].running.as_ref().unwrap();
    let over = timeout(PATIENCE, running.over()).await;
    assert_eq!(over, Ok(Over::Removed), "{:?}", cluster.node(gone).status());
}

/// A leader that is cut off knows nothing of whom its successor admits, and must not tell them that they were removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_before_turns_nobody_away() {
    let mut cluster = Cluster::start(3).await;
    let (leader, joined) = (cluster.leader().await, 3);
    cluster.isolate(leader);
    let (deposed, other) = (cluster.members[leader].id.clone(), (leader + 1) % 3);
    cluster.until(other, "a successor", |status| status.leader.as_ref().is_some_and(|new| *new != deposed)).await;
    cluster.members.push(Member::new("node-4").await);
    cluster.run(joined, Formation::Join(vec![cluster.members[other].addr.clone()])).await.unwrap();
    cluster.until(joined, "a voter", |status| status.voter_count() == 4).await;
    // Now the deposed leader is all that it hears.
    let name = cluster.members[joined].id.clone();
    for at in (0..3).filter(|at| *at != leader) {
        cluster.links.cut(&name, &cluster.members[at].id);
        cluster.links.cut(&cluster.members[at].id, &name);
    }
    let (_, running) = cluster.members[joined].running.as_ref().unwrap();
    // It asks after two of these.
    let over = timeout(Duration::from_secs(4), running.over()).await;
    assert!(over.is_err(), "{over:?}");
    cluster.links.heal();
    cluster.append(joined, "s", "a", "belongs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_without_whom_nothing_could_be_decided_stays() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (down, needed) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop(down).await;
    let id = |at: usize| cluster.members[at].id.clone();
    for by in [leader, needed] {
        let refused = cluster.node(by).remove(&id(needed), CALL).await.unwrap_err();
        assert!(refused.to_string().contains("only 1 of 2 voters would answer"), "{refused}");
    }
    cluster.append(leader, "s", "a", "nothing was changed").await;
    // The one that is lost may go, and then a cluster of two shrinks to one.
    cluster.node(leader).remove(&id(down), CALL).await.unwrap();
    cluster.until(leader, "two voters", |status| status.voter_count() == 2).await;
    cluster.node(leader).remove(&id(needed), CALL).await.unwrap();
    cluster.append(leader, "s", "b", "alone").await;
}

/// Whoever changes the voters gives up between the two halves of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_voters_that_was_left_half_done_is_finished() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (removed, node) = (cluster.members[(leader + 2) % 3].id.clone(), cluster.node(leader));
    let before = node.status().last_log_index;
    let first_half = async {
        while node.status().last_log_index == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        done = node.remove(&removed, PATIENCE) => done.unwrap(),
        () = first_half => {}
    }
    cluster.until(leader, "two voters", |status| status.voter_count() == 2).await;
    cluster.append(leader, "s", "a", "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_offered_only_to_those_who_answer() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.stop((leader + 1) % 3).await;
    let to = cluster.node(leader).transfer_leader(None, CALL).await.unwrap();
    assert_eq!(to, cluster.members[(leader + 2) % 3].id);
    let leader = cluster.leader().await;
    cluster.stop((leader + 1) % 3).await;
    let began = Instant::now();
    let nobody = cluster.node(leader).transfer_leader(None, CALL).await;
    assert_eq!(nobody, Err(MembershipError::NobodyElse));
    assert!(began.elapsed() < CALL / 2, "the last one does not wait for those who left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_cannot_take_over_costs_a_moment() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (mute, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.append(leader, "s", "a", "before").await;
    // It answers, and has the log, but what it sends reaches nobody: no vote for it can be asked for.
    for other in [leader, third] {
        cluster.links.cut(&cluster.members[mute].id, &cluster.members[other].id);
    }
    let asked = cluster.members[mute].id.clone();
    // Reads go on meanwhile, and must not look like the word of a leader.
    let reader = cluster.node(leader).clone();
    let reading = tokio::spawn(async move {
        loop {
            reader.read_linearizable(CALL).await.ok();
        }
    });
    let began = Instant::now();
    let refused = cluster.node(leader).transfer_leader(Some(&asked), PATIENCE).await.unwrap_err();
    assert!(matches!(&refused, MembershipError::AnotherLeads { asked: to, .. } if *to == asked), "{refused}");
    reading.abort();
    assert!(began.elapsed() < PATIENCE / 2, "somebody else was asked at once");
    cluster.append(third, "s", "b", "after").await;
    cluster.links.heal();
    assert_eq!(cluster.texts(third, "s").await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_to_one_that_does_not_answer_is_not_begun() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (from, to) = (cluster.members[leader].id.clone(), cluster.members[(leader + 1) % 3].id.clone());
    cluster.links.cut(&from, &to);
    let refused = cluster.node(leader).transfer_leader(Some(&to), CALL).await.unwrap_err();
    assert_eq!(refused, MembershipError::NoAnswer(to));
    assert!(cluster.node(leader).status().is_leader, "it leads, and takes commands:");
    cluster.append(leader, "s", "a", "at once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_lost_its_disk_comes_back_as_somebody_new() {
    let mut cluster = Cluster::start(3).await;
    cluster.append(0, "s", "a", "kept").await;
    let lost = (cluster.leader().await + 1) % 3;
    let list =
        Formation::Bootstrap(cluster.members.iter().map(|member| (member.id.clone(), member.addr.clone())).collect());
    cluster.stop(lost).await;
    cluster.members[lost].dir = TempDir::new().unwrap();
    cluster.run(lost, list).await.unwrap();
    cluster.until(lost, "a voter again", |status| status.voter_count() == 3 && status.applied_index > 0).await;
    assert_eq!(cluster.texts(lost, "s").await, ["kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_list_than_the_first_is_refused_by_name() {
    let mut cluster = Cluster::start(3).await;
    cluster.stop(0).await;
    let other = Formation::Bootstrap(vec![(id("node-1"), "127.0.0.1:1".into()), (id("node-9"), "127.0.0.1:2".into())]);
    let error = cluster.run(0, other).await.unwrap_err().to_string();
    assert!(error.contains("node-9=127.0.0.1:2") && error.contains("node-3="), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_secret_forms_a_cluster_and_keeps_others_out() {
    let secret = |text: &str| Security::Secret(format!("{text}-0123456789abcdef0123456789abcdef"));
    let mut cluster = Cluster::start_with(3, Timing::default(), secret("one")).await;
    cluster.append(1, "s", "a", "secured").await;
    assert_eq!(cluster.texts(2, "s").await, ["secured"]);

    cluster.members.push(Member::new("node-4").await);
    cluster.security = secret("two");
    let door = cluster.members[0].addr.clone();
    let error = cluster.run(3, Formation::Join(vec![door])).await.unwrap_err().to_string();
    assert!(error.contains("none of"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_after_all_instances_stopped() {
    let mut cluster = Cluster::start(3).await;
    for number in 0..100 {
        cluster.append(number % 3, "s", &format!("k{number}"), &number.to_string()).await;
    }
    for at in 0..3 {
        cluster.stop(at).await;
    }
    let list =
        Formation::Bootstrap(cluster.members.iter().map(|member| (member.id.clone(), member.addr.clone())).collect());
    for at in 0..3 {
        cluster.run(at, list.clone()).await.unwrap();
    }
    cluster.leader().await;
    let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(cluster.texts(1, "s").await, expected);
}

#[tokio::test]
async fn a_directory_of_another_instance_is_refused() {
    let mut cluster = Cluster::start(1).await;
    cluster.stop(0).await;
    cluster.members[0].id = id("other");
    let error = cluster.run(0, Formation::Alone).await.unwrap_err().to_string();
    assert!(error.contains("of instance node-1, not other"), "{error}");
    assert!(Path::new(cluster.members[0].dir.path()).exists());
}

#[tokio::test]
async fn commands_and_reads_on_an_instance_that_has_stopped_are_answered_at_once() {
    let mut cluster = Cluster::start(1).await;
    let (node, running) = cluster.members[0].running.take().unwrap();
    running.stop().await;
    let began = Instant::now();
    // They were once tried again until its deadline, as fast as the processor could, with a line in the log each time.
    let error = node.propose(append("s", "x", "x"), CALL).await.unwrap_err();
    assert!(matches!(error, ProposeError::Stopped | ProposeError::EffectUnknown { .. }), "{error}");
    assert!(node.read_linearizable(CALL).await.is_err());
    assert!(began.elapsed() < CALL / 2, "answered after {:?}", began.elapsed());
}
