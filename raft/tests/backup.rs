//! A backup of a node, and a new cluster made of it.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::path::Path;
use std::time::Duration;

use openclaw_proto::ids::{ClusterId, InstanceId, SeqNum, SessionKey};
use openclaw_proto::raft::BackupSource;
use openclaw_proto::state::{Accept, AppendEntry, InboxKey, RegisterInstance, Role, TurnState, command, outcome};
use openclaw_raft::backup::{self, BackupReader, OfflineError, RestoreError, RestoreOptions, Restored, Stamp};
use openclaw_raft::state_machine::restored::INDEX_GAP;
use openclaw_raft::{Formation, Links, Node, OpenError, Options, Running, Security, Timing};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
const CALL: Duration = Duration::from_secs(5);

fn id() -> InstanceId {
    InstanceId::parse("node-1").unwrap()
}

fn stamp() -> Stamp {
    Stamp { taken_ms: 5, release: "test".into() }
}

async fn start(dir: &Path) -> (Node, Running) {
    let begin = Instant::now();
    loop {
        let options = Options {
            instance_id: id(),
            cluster_id: None,
            data_dir: dir.to_owned(),
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            peer_addr: "127.0.0.1:1".into(),
            http_addr: String::new(),
            formation: Formation::Alone,
            security: Security::Plaintext,
            timing: Timing::default(),
            services: tonic::service::Routes::default(),
            links: Links::default(),
        };
        match Node::start(options).await {
            Ok((node, running)) => {
                let mut status = node.watch_status();
                timeout(PATIENCE, status.wait_for(|status| status.is_leader)).await.unwrap().unwrap();
                return (node, running);
            }
            // The last handle of the instance's former life may still be on its way out.
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn inbox(external: &str) -> Option<InboxKey> {
    let body_hash = vec![7; 32].into();
    Some(InboxKey { account: "http".into(), external_id: external.into(), body_hash })
}

fn append(text: &str) -> command::Kind {
    command::Kind::AppendEntry(AppendEntry {
        inbox: inbox(text),
        session_key: "talk".into(),
        role: Role::User.into(),
        text: text.into(),
        expected_head: None,
    })
}

fn accept(turn: &str) -> command::Kind {
    command::Kind::Accept(Accept {
        inbox: inbox(turn),
        session_key: "busy".into(),
        turn_id: turn.into(),
        agent_id: "main".into(),
        runner: "node-1".into(),
        text: "hello".into(),
        max_queued: 10,
        ..Accept::default()
    })
}

fn register(boot_id: &str) -> command::Kind {
    command::Kind::RegisterInstance(RegisterInstance {
        instance_id: "node-1".into(),
        boot_id: boot_id.into(),
        accounts: vec!["telegram:default".into()],
        ..RegisterInstance::default()
    })
}

/// A node with a conversation, a turn that runs, and a lease; and its texts.
async fn lived(dir: &Path) -> (Node, Running, Vec<String>) {
    let (node, running) = start(dir).await;
    let texts: Vec<String> = (0..20).map(|n| format!("entry {n}")).collect();
    node.propose(register("first"), CALL).await.unwrap();
    node.propose(accept("0a1"), CALL).await.unwrap();
    for text in &texts {
        node.propose(append(text), CALL).await.unwrap();
    }
    (node, running, texts)
}

fn options(dir: &Path) -> RestoreOptions {
    RestoreOptions {
        data_dir: dir.join("new").join("node-1"),
        instance_id: id(),
        cluster_id: None,
        peer_addr: "127.0.0.1:2".into(),
        http_addr: String::new(),
        bootstrap: Vec::new(),
    }
}

async fn texts_of(node: &Node) -> Vec<String> {
    let view = node.read_linearizable(CALL).await.unwrap();
    let entries = view.entries(&SessionKey::parse("talk").unwrap(), SeqNum(0), 1000).unwrap();
    entries.into_iter().map(|entry| entry.text).collect()
}

/// Starts what was restored, and looks whether it goes on where the backup ended.
async fn judge(dir: &Path, texts: &[String], restored: &Restored, old: &ClusterId, token: u64) {
    let backed_up = restored.header.applied.unwrap().index;
    assert_eq!(restored.index, backed_up + INDEX_GAP);
    let (node, running) = start(dir).await;
    assert_eq!(node.cluster_id(), &restored.cluster_id);
    assert_ne!(node.cluster_id(), old);
    assert_eq!(texts_of(&node).await, texts);

    let view = node.read_linearizable(CALL).await.unwrap();
    assert_eq!(view.instances().unwrap(), [], "processes of the lost cluster");
    let lease = view.leases().unwrap().remove(0);
    assert_eq!((lease.owner.as_str(), lease.previous_owner.as_str()), ("", "node-1"));
    let lost = lease.fencing_token;
    drop(view);

    // The same write again is known, and a new one goes behind.
    let again = node.propose(append(&texts[3]), CALL).await.unwrap();
    assert!(matches!(again.outcome, outcome::Kind::Appended(ref first) if first.seq == 4), "{again:?}");
    node.propose(append("after"), CALL).await.unwrap();

    // The turn is run again by who comes first, under tokens that are greater than any before.
    node.propose(register("second"), CALL).await.unwrap();
    let view = node.read_linearizable(CALL).await.unwrap();
    let turn = view.turns_of(&id()).unwrap().remove(0);
    assert_eq!((turn.state(), turn.attempt), (TurnState::Running, 2));
    assert!(turn.fencing_token > restored.index && turn.fencing_token > token);
    let lease = view.leases().unwrap().remove(0);
    assert!(lease.owner == "node-1" && lease.fencing_token > lost.max(restored.index));
    drop((node, view));
    running.stop().await;

    // And once more from its own disk.
    let (node, running) = start(dir).await;
    assert_eq!(texts_of(&node).await.len(), texts.len() + 1);
    drop(node);
    running.stop().await;
}

#[tokio::test]
async fn a_backup_of_a_working_node_becomes_a_new_cluster_that_goes_on_where_it_ended() {
    let dir = TempDir::new().unwrap();
    let (node, running, texts) = lived(&dir.path().join("old")).await;
    let token = node.read_local().turns_of(&id()).unwrap().remove(0).fencing_token;
    let mut bytes = Vec::new();
    let trailer = node.back_up(&stamp(), BackupSource::Local, &mut bytes).unwrap();
    let (index, hash) = node.state_hash().unwrap();
    let old = node.cluster_id().clone();
    drop(node);
    running.stop().await;
    assert_eq!(BackupReader::new(&*bytes).unwrap().header().applied.unwrap().index, index);
    assert_eq!(*trailer.state_sha256, hash);

    let options = options(dir.path());
    let restored = backup::restore(options.clone(), &*bytes, &CancellationToken::new()).await.unwrap();
    assert_eq!(restored.trailer, trailer);
    // What lies in the new directory is the backup, but for what must not come again.
    let mut again = Vec::new();
    let there = backup::of_stopped(&options.data_dir, &stamp(), &mut again).unwrap();
    assert_eq!(there.kept_sha256, trailer.kept_sha256);
    assert_ne!(there.state_sha256, trailer.state_sha256);
    judge(&options.data_dir, &texts, &restored, &old, token).await;
}

#[tokio::test]
async fn a_stopped_directory_gives_a_backup_with_all_of_its_log() {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("old");
    let (node, running, texts) = lived(&place).await;
    let (index, hash) = node.state_hash().unwrap();
    let token = node.read_local().turns_of(&id()).unwrap().remove(0).fencing_token;
    let old = node.cluster_id().clone();
    let held = backup::of_stopped(&place, &stamp(), Vec::new()).unwrap_err();
    assert!(matches!(held, OfflineError::Open(OpenError::Locked { .. })), "{held}");
    drop(node);
    running.stop().await;

    let mut bytes = Vec::new();
    let begin = Instant::now();
    let trailer = loop {
        bytes.clear();
        match backup::of_stopped(&place, &stamp(), &mut bytes) {
            Ok(trailer) => break trailer,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let header = BackupReader::new(&*bytes).unwrap().header().clone();
    assert_eq!((header.applied.unwrap().index, &*trailer.state_sha256), (index, &hash[..]));
    let options = options(dir.path());
    let restored = backup::restore(options.clone(), &*bytes, &CancellationToken::new()).await.unwrap();
    judge(&options.data_dir, &texts, &restored, &old, token).await;

    let nowhere = backup::of_stopped(&dir.path().join("nowhere"), &stamp(), Vec::new()).unwrap_err();
    assert!(nowhere.to_string().ends_with("it has no database"), "{nowhere}");
    assert!(!dir.path().join("nowhere").exists(), "looking makes nothing");
}

#[tokio::test]
async fn what_cannot_be_restored_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let (node, running, _) = lived(&dir.path().join("old")).await;
    let mut bytes = Vec::new();
    node.back_up(&stamp(), BackupSource::Local, &mut bytes).unwrap();
    let options = options(dir.path());
    let parent = options.data_dir.parent().unwrap().to_owned();

    let truncated =
        backup::restore(options.clone(), &bytes[..bytes.len() - 40], &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(&truncated, RestoreError::Backup(error) if error.is_damage()), "{truncated}");
    let same = RestoreOptions { cluster_id: Some(node.cluster_id().clone()), ..options.clone() };
    let same = backup::restore(same, &*bytes, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(same, RestoreError::SameCluster(_)), "{same}");
    let unlisted =
        RestoreOptions { bootstrap: vec![(InstanceId::parse("node-2").unwrap(), "h:1".into())], ..options.clone() };
    let unlisted = backup::restore(unlisted, &*bytes, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(unlisted, RestoreError::NotInList(_)), "{unlisted}");
    let stop = CancellationToken::new();
    stop.cancel();
    let stopped = backup::restore(options.clone(), &*bytes, &stop).await.unwrap_err();
    assert!(matches!(stopped, RestoreError::Stopped), "{stopped}");
    assert_eq!(std::fs::read_dir(&parent).unwrap().count(), 0);

    std::fs::create_dir(&options.data_dir).unwrap();
    std::fs::write(options.data_dir.join("file"), "of somebody").unwrap();
    let full = backup::restore(options.clone(), &*bytes, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(full, RestoreError::NotEmpty { .. }), "{full}");
    std::fs::remove_file(options.data_dir.join("file")).unwrap();
    backup::restore(options.clone(), &*bytes, &CancellationToken::new()).await.unwrap();
    assert_eq!(std::fs::read_dir(&parent).unwrap().count(), 1, "the empty directory was taken");
    drop(node);
    running.stop().await;
}
