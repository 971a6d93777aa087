//! Whether this instance is well, and not only able to serve: its channels, what they have to send, and its disk.
//!
//! Looks once a second, and shows what it finds as metrics; whoever asks for health gets the last look.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use openclaw_config::diagnostics;
use openclaw_proto::http::{HealthCondition, HealthReason};
use openclaw_proto::ids::ChannelAccount;
use openclaw_raft::Node;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::api::{ClusterView, HealthView, standing};
use crate::channels::health::{Health, Status};
use crate::cluster::validity::Validity;
use crate::metrics::{Metrics, catch_up};
use crate::{logging, traces};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a sync may take: far beyond what a slow disk needs.
const STALLED: Duration = Duration::from_secs(10);

/// Room on a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    free: u64,
    size: u64,
}

/// What is known of this instance's well-being; cheap to clone.
#[derive(Clone)]
pub(super) struct Vitals {
    channels: Health,
    settings: diagnostics::Health,
    data_dir: PathBuf,
    node: Node,
    /// None until the first look, and where the disk cannot be asked.
    room: Arc<Mutex<Option<Room>>>,
}

impl Vitals {
    pub(super) fn new(channels: Health, settings: diagnostics::Health, data_dir: PathBuf, node: Node) -> Self {
        Self { channels, settings, data_dir, node, room: Arc::default() }
    }

    /// Looks until `shutdown`, and copies what others count into metrics.
    pub(super) async fn watch(
        self,
        cluster: Arc<dyn ClusterView>,
        validity: Validity,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A disk in trouble may not answer: then the last look stands, and there is no second one before this is over.
        let mut looking: Option<JoinHandle<nix::Result<Room>>> = None;
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let look = looking.get_or_insert_with(|| {
                let data_dir = self.data_dir.clone();
                tokio::task::spawn_blocking(move || room(&data_dir))
            });
            if let Ok(looked) = tokio::time::timeout(LOOK_EVERY / 2, look).await {
                looking = None;
                match looked {
                    Ok(Ok(room)) => *self.room.lock() = Some(room),
                    Ok(Err(error)) => tracing::debug!(%error, "the disk does not say how much room it has"),
                    Err(error) => tracing::warn!(%error, "the look at the disk ended early"),
                }
            }
            self.show(&*cluster, &validity, &metrics);
        }
    }

    fn show(&self, cluster: &dyn ClusterView, validity: &Validity, metrics: &Metrics) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if let Some(room) = *self.room.lock() {
            metrics.storage_free.set(gauge(room.free));
            metrics.storage_size.set(gauge(room.size));
        }
        let status = cluster.status();
        metrics.instance_draining.set(i64::from(status.draining));
        metrics.instance_maintenance.set(i64::from(status.maintenance));
        metrics.lease_validity.set(validity.left().as_secs_f64());
        catch_up(&metrics.lease_losses, validity.losses());
        self.channels.measure();
        let reasons = [standing(&status), self.reasons()].concat();
        for condition in HealthCondition::ALL {
            let failing = reasons.iter().any(|reason| reason.condition == condition);
            metrics.health_failing.with_label_values(&[condition.as_str()]).set(i64::from(failing));
        }
        catch_up(&metrics.log_dropped_lines, logging::dropped_lines());
        let spans = traces::counters();
        for (result, total) in [("exported", &spans.exported), ("failed", &spans.failed), ("dropped", &spans.dropped)] {
            catch_up(&metrics.trace_spans.with_label_values(&[result]), total);
        }
    }
}

impl HealthView for Vitals {
    fn reasons(&self) -> Vec<HealthReason> {
        let mut accounts = self.channels.all();
        accounts.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        let room = *self.room.lock();
        let channels = accounts.iter().flat_map(|(account, status)| of_account(account, status, &self.settings));
        let full = room.and_then(|room| of_disk(room, &self.data_dir, &self.settings));
        let stalled = self.node.counters().sync_age().and_then(|age| of_sync(age, &self.data_dir));
        channels.chain(full).chain(stalled).collect()
    }
}

fn room(data_dir: &Path) -> nix::Result<Room> {
    let disk = statvfs(data_dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
    // What a process may use that is not root.
    Ok(Room { free: bytes(disk.blocks_available()), size: bytes(disk.blocks()) })
}

fn of_account(account: &ChannelAccount, status: &Status, settings: &diagnostics::Health) -> Vec<HealthReason> {
    let mut reasons = Vec::new();
    let mut add = |condition, message| {
        reasons.push(HealthReason { condition, account: Some(account.as_str().to_owned()), message });
    };
    if let Some(silence) = status.silence().filter(|silence| *silence > settings.deaf_after) {
        let why = match &status.last_error {
            Some(error) => format!("the last error was: {error}"),
            None => "no error was told".to_owned(),
        };
        add(
            HealthCondition::ChannelDeaf,
            format!(
                "{account} runs here and its platform has not answered for {} s; {why}. Check its token and the way to the \
                 platform, or have another instance try: openclaw channels move {account} --to <instance>",
                silence.as_secs()
            ),
        );
    }
    if let Some(standstill) = status.standstill().filter(|standstill| *standstill > settings.outbox_stuck_after) {
        add(
            HealthCondition::OutboxStuck,
            format!(
                "nothing of what waits in a chat of {account} was sent for {} s, though the platform asks for no pause. See \
                 openclaw channels status, and the log of this instance for what the platform answers",
                standstill.as_secs()
            ),
        );
    }
    reasons
}

fn of_disk(room: Room, data_dir: &Path, settings: &diagnostics::Health) -> Option<HealthReason> {
    (room.free < settings.min_free_bytes.0).then(|| HealthReason {
        condition: HealthCondition::DiskFull,
        account: None,
        message: format!(
            "the disk of {} has {} of {} MiB left, less than diagnostics.health.minFreeBytes ({} MiB). Make room: the instance \
             ends when there is none",
            data_dir.display(),
            room.free >> 20,
            room.size >> 20,
            settings.min_free_bytes.0 >> 20
        ),
    })
}

fn of_sync(age: Duration, data_dir: &Path) -> Option<HealthReason> {
    (age > STALLED).then(|| HealthReason {
        condition: HealthCondition::DiskStalled,
        account: None,
        message: format!(
            "the disk of {} has not ended a sync for {} s. Look at the kernel's log and at the storage behind it; if it does not \
             come back, stop this instance: the others go on",
            data_dir.display(),
            age.as_secs()
        ),
    })
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    fn conditions(status: &Status) -> Vec<HealthCondition> {
        let account = ChannelAccount::parse("telegram:default").unwrap();
        let reasons = of_account(&account, status, &diagnostics::Health::default());
        assert!(reasons.iter().all(|reason| reason.message.contains("telegram:default")));
        reasons.into_iter().map(|reason| reason.condition).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_is_deaf_once_its_platform_was_silent_for_too_long_whatever_it_calls_itself() {
        let now = Instant::now();
        let runs = Status { runs: true, connected: true, heard: Some(now), ..Status::default() };
        assert!(conditions(&runs).is_empty());
        advance(Duration::from_secs(180)).await;
        assert!(conditions(&runs).is_empty(), "up to the limit");
        advance(Duration::from_secs(1)).await;
        assert_eq!(conditions(&runs), [HealthCondition::ChannelDeaf]);
        assert!(conditions(&Status { heard: Some(Instant::now()), ..runs.clone() }).is_empty());
        assert!(conditions(&Status { runs: false, ..runs }).is_empty(), "another instance's to mend");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outbox_is_stuck_once_nothing_was_sent_for_too_long() {
        let waits = |since| Status { runs: true, heard: Some(Instant::now()), waits_since: since, ..Status::default() };
        let began = Instant::now();
        advance(Duration::from_secs(301)).await;
        assert_eq!(conditions(&waits(Some(began))), [HealthCondition::OutboxStuck]);
        assert!(
            conditions(&waits(Some(Instant::now() + Duration::from_secs(60)))).is_empty(),
            "the platform asked for it"
        );
        assert!(conditions(&waits(None)).is_empty());
    }

    #[test]
    fn a_disk_that_does_not_end_a_sync_is_stalled() {
        assert_eq!(of_sync(STALLED, Path::new("/data")), None);
        let stalled = of_sync(Duration::from_millis(12_300), Path::new("/data")).unwrap();
        assert_eq!(stalled.condition, HealthCondition::DiskStalled);
        assert!(stalled.message.contains("/data has not ended a sync for 12 s"));
    }

    #[test]
    fn a_disk_with_too_little_room_is_full() {
        let settings = diagnostics::Health::default();
        let of = |free| of_disk(Room { free, size: 1 << 40 }, Path::new("/data"), &settings);
        assert_eq!(of(512 << 20), None);
        assert!(of((512 << 20) - 1).unwrap().message.contains("511 of 1048576 MiB"));
        let here = room(Path::new("/")).unwrap();
        assert!(here.free <= here.size && here.size > 0);
    }
}
