//! Faults of disks, done to instances of a cluster. Each says what it did.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;

use super::sync::{self, SyncFault};
use super::tail;
use crate::cluster::Cluster;

impl Cluster {
    /// The power of all of `indexes` goes at once. They are dead then, their disks mounted again with what was synced, and
    /// [`Cluster::start_one`] starts each.
    ///
    /// # Errors
    /// When one has no disk, or cannot be mounted again.
    pub async fn power_cut(&mut self, indexes: &[usize]) -> Result<()> {
        self.cut_power(indexes).await?;
        self.restore_power(indexes).await
    }

    /// The first half of it: they are dead.
    pub(crate) async fn cut_power(&mut self, indexes: &[usize]) -> Result<()> {
        // The disks before the processes: what a dying process still writes must not survive, and what it is told then is
        // that its disk is gone.
        let cuts = indexes.iter().map(|&index| Ok(self.disk(index)?.cut_power())).collect::<Result<Vec<_>>>()?;
        futures::future::try_join_all(cuts).await?;
        for &index in indexes {
            let process = &mut self.instance(index).process;
            // It may have noticed, and ended by itself.
            if process.is_running()? {
                process.send_kill()?;
            }
        }
        for &index in indexes {
            let process = &mut self.instance(index).process;
            process.reap()?;
            // The cut took it down, even if it ended before it was killed.
            process.take_ended_by_itself();
        }
        Ok(())
    }

    /// The second: their disks are there again.
    pub(crate) async fn restore_power(&mut self, indexes: &[usize]) -> Result<()> {
        for &index in indexes {
            self.disk_mut(index)?.restore_power().await?;
        }
        Ok(())
    }

    /// Leaves `leave` bytes on the disk of `index`.
    ///
    /// # Errors
    /// When it has no disk, or the room cannot be taken.
    pub async fn fill_disk(&mut self, index: usize, leave: u64) -> Result<()> {
        self.disk(index)?.fill(leave)
    }

    /// Gives the room on the disk of `index` back.
    ///
    /// # Errors
    /// When it has no disk.
    pub async fn free_disk(&mut self, index: usize) -> Result<()> {
        self.disk(index)?.free()
    }

    /// Half a record behind the end of the log of the stopped instance `index`. It must start.
    ///
    /// # Errors
    /// When it runs, or has no log.
    pub async fn tear_unsynced(&mut self, index: usize, rng: &mut impl Rng) -> Result<String> {
        let instance = self.instance(index);
        ensure!(!instance.process.is_running()?, "{} still runs", instance.id);
        tail::tear_unsynced(&instance.data, rng)
    }

    /// Damages what the stopped instance `index` had acknowledged. It must refuse to start.
    ///
    /// # Errors
    /// When it runs, or its log is too short.
    pub async fn damage_synced(&mut self, index: usize, rng: &mut impl Rng) -> Result<String> {
        let instance = self.instance(index);
        ensure!(!instance.process.is_running()?, "{} still runs", instance.id);
        tail::damage_synced(&instance.data, rng)
    }

    /// Slow syncs of `index`, until the fault is healed. The process must live as long.
    ///
    /// # Errors
    /// When it does not run, or strace does not attach.
    pub async fn slow_fsync(&mut self, index: usize, delay: Duration) -> Result<SyncFault> {
        sync::slow_fsync(self.instance(index).process.pid().context("it is not running")?, delay).await
    }

    /// Failing syncs of `index`. It must end by itself, with exit code 70.
    ///
    /// # Errors
    /// When it does not run, or strace does not attach.
    pub async fn failing_fsync(&mut self, index: usize) -> Result<SyncFault> {
        sync::failing_fsync(self.instance(index).process.pid().context("it is not running")?).await
    }
}
