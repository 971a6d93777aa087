//! An ext4 filesystem in a file, mounted through a loop device.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{check, command, is_root, run};

/// Less has no room for ext4's journal beside a database.
const MIN_BYTES: u64 = 64 << 20;

/// One instance's disk. It is unmounted when dropped; the image stays, and can be mounted again.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount_point: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Mounts `image` at `mount_point`; one that does not exist is made, sparse, with room for `bytes`.
    ///
    /// # Errors
    /// When the caller is not root, `bytes` is too little, or a tool fails.
    pub async fn create(image: &Path, mount_point: &Path, bytes: u64) -> Result<Self> {
        ensure!(is_root()?, "only root can mount an instance's disk");
        ensure!(bytes >= MIN_BYTES, "a disk of {bytes} bytes is too small; it takes {MIN_BYTES}");
        std::fs::create_dir_all(mount_point).with_context(|| format!("make {}", mount_point.display()))?;
        if !image.exists() {
            let file = std::fs::File::create(image).with_context(|| format!("make {}", image.display()))?;
            file.set_len(bytes).with_context(|| format!("size {}", image.display()))?;
            // All of it belongs to the instance: a reserve for root would be one for the instance under test as well.
            run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_os_str()]).await?;
        }
        let mut disk = Self { image: image.to_owned(), mount_point: mount_point.to_owned(), mounted: false };
        disk.mount().await?;
        Ok(disk)
    }

    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Mounts it. The kernel replays the journal, as it does when a machine starts after a power loss.
    ///
    /// # Errors
    /// When it is mounted, or cannot be even after `e2fsck`.
    pub async fn mount(&mut self) -> Result<()> {
        ensure!(!self.mounted, "{} is mounted", self.image.display());
        if self.try_mount().await.is_err() {
            // Repaired is exit code 1, so it is the mount that decides.
            drop(run("e2fsck", ["-p".as_ref(), self.image.as_os_str()]).await);
            self.try_mount().await?;
        }
        self.mounted = true;
        Ok(())
    }

    async fn try_mount(&self) -> Result<()> {
        // `loop` also has the device let go by itself with the mount, whoever ends it.
        let arguments = ["-o".as_ref(), "loop,noatime".as_ref(), self.image.as_os_str(), self.mount_point.as_os_str()];
        run("mount", arguments).await
    }

    /// Unmounts it; nobody may have a file open there.
    ///
    /// # Errors
    /// When it is in use.
    pub async fn unmount(&mut self) -> Result<()> {
        if self.mounted {
            run("umount", [&self.mount_point]).await?;
            self.mounted = false;
        }
        Ok(())
    }

    /// The moment at which the power goes: nothing that was not synced reaches the image any more, and from now on the
    /// disk answers EIO. Kill whoever uses it, then [`Self::restore_power`].
    ///
    /// # Errors
    /// When it is not mounted.
    pub async fn cut_power(&self) -> Result<()> {
        ensure!(self.mounted, "{} is not mounted", self.image.display());
        // Without -f the journal is not flushed (EXT4_GOING_FLAGS_NOLOGFLUSH), so a file that was only written, and not
        // synced, has neither its blocks nor its size.
        run("xfs_io", ["-x".as_ref(), "-c".as_ref(), "shutdown".as_ref(), self.mount_point.as_os_str()]).await
    }

    /// Mounts what survived a power cut.
    ///
    /// # Errors
    /// When a process still uses the disk.
    pub async fn restore_power(&mut self) -> Result<()> {
        self.unmount().await?;
        self.mount().await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, so that a process which has not died yet cannot keep the mount: it goes with that process.
        if self.mounted
            && let Err(error) =
                check("umount", command("umount", ["-l".as_ref(), self.mount_point.as_os_str()]).output())
        {
            eprintln!("cannot unmount {}: {error:#}", self.mount_point.display());
        }
    }
}
