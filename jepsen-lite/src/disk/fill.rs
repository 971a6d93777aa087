//! A full disk: a file that takes all the room but for what is to be left.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use super::Disk;

/// How often the room is looked at again: the instance takes some of it meanwhile.
const ATTEMPTS: u32 = 20;

impl Disk {
    /// Leaves `leave` bytes free. What the instance has allocated before is its own: RocksDB takes room for its
    /// write-ahead log about a megabyte ahead.
    ///
    /// # Errors
    /// When the room cannot be taken.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let filler =
            OpenOptions::new().create(true).append(true).open(self.filler()).context("open the filler file")?;
        for _ in 0..ATTEMPTS {
            let take = self.free_bytes()?.saturating_sub(leave);
            if take == 0 {
                return Ok(());
            }
            match grow(&filler, take) {
                Ok(()) | Err(Errno::ENOSPC) => {}
                Err(error) => return Err(error).context("grow the filler file"),
            }
        }
        bail!("somebody frees the disk as fast as it is filled")
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When the filler file cannot be removed.
    pub fn free(&self) -> Result<()> {
        let filler = self.filler();
        if filler.exists() {
            std::fs::remove_file(filler).context("remove the filler file")?;
        }
        Ok(())
    }

    /// Room that is left.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn free_bytes(&self) -> Result<u64> {
        let room = statvfs(self.mount_point()).context("look at the room on the disk")?;
        Ok(room.blocks_available() * room.fragment_size())
    }

    fn filler(&self) -> PathBuf {
        self.mount_point().join("filler")
    }
}

/// Blocks are taken and not written, so the image stays sparse.
fn grow(filler: &File, bytes: u64) -> nix::Result<()> {
    let length = filler.metadata().map_err(|_| Errno::EIO)?.len();
    let at = |value: u64| i64::try_from(value).map_err(|_| Errno::EFBIG);
    fallocate(filler, FallocateFlags::empty(), at(length)?, at(bytes)?)
}
