//! Keeps a shared data directory from becoming several clusters of one instance, each with a part of what users said.
//!
//! Instances that are told of each other form one cluster, whatever directory they share. One that is told of nobody, and is to
//! begin where another has its data, was most likely meant to be told: it is refused before it has written anything. One
//! that has data of its own is left alone.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use super::Stopped;
use crate::cluster::session::BOOT_ID;

/// Entries that are looked at; a data directory holds a handful of instances.
const MAX_ENTRIES: usize = 256;

/// Whether an instance without peers may begin in `own`, a directory in `shared`. What is returned is held until `own` can be
/// seen to have data: of two that begin at one moment, one is refused.
///
/// # Errors
/// [`Stopped::Config`] where another instance has its data, and [`Stopped::NotOurs`] where another user has.
pub(super) fn begin(shared: &Path, own: &Path) -> Result<Option<File>, Stopped> {
    let unreadable = |directory: &Path| {
        let directory = directory.to_owned();
        move |error: io::Error| {
            let text = format!("storage.dataDir: cannot read {}: {error}", directory.display());
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Stopped::NotOurs(format!("{text}; {}", openclaw_raft::why_refused(&directory)));
            }
            Stopped::Config(text)
        }
    };
    // A restored one has no boot id yet.
    if fs::read_dir(own).map_err(unreadable(own))?.next().is_some() {
        return Ok(None);
    }
    let refused = |what: String| {
        Stopped::Config(format!(
            "storage.dataDir: {what}, and this instance is told of no other: give all of them the same cluster.bootstrap \
             (OPENCLAW_CLUSTER_BOOTSTRAP), or this one a directory of its own; what is only kept there, or was this one's under \
             another name, belongs outside of {}",
            shared.display()
        ))
    };
    let claim = File::open(shared).map_err(unreadable(shared))?;
    match claim.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(refused(format!("another instance begins in {} just now", shared.display())));
        }
        // Not every network file system can; there, two that begin at one moment may miss each other.
        Err(TryLockError::Error(error)) => tracing::debug!(%error, "the data directory cannot be locked"),
    }
    for entry in fs::read_dir(shared).map_err(unreadable(shared))?.take(MAX_ENTRIES) {
        let path = entry.map_err(unreadable(shared))?.path();
        if path != own && path.join(BOOT_ID).exists() {
            return Err(refused(format!("{} is another instance's", path.display())));
        }
    }
    Ok(Some(claim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_instances_that_know_nobody_only_the_first_begins_in_a_directory() {
        let shared = tempfile::tempdir().unwrap();
        let [one, two, sessions] = ["node-1", "node-2", "sessions"].map(|name| shared.path().join(name));
        for directory in [&one, &two, &sessions] {
            fs::create_dir(directory).unwrap();
        }
        let claim = begin(shared.path(), &one).unwrap();
        assert!(begin(shared.path(), &two).unwrap_err().to_string().contains("just now"));
        fs::write(one.join(BOOT_ID), "0").unwrap();
        drop(claim);
        let error = begin(shared.path(), &two).unwrap_err().to_string();
        assert!(
            error.contains("node-1 is another instance's") && error.contains("OPENCLAW_CLUSTER_BOOTSTRAP"),
            "{error}"
        );
        // It goes on where it was, and so does one that was alone here before there was this rule.
        assert!(begin(shared.path(), &one).unwrap().is_none());
        fs::write(two.join("synced"), "restored").unwrap();
        assert!(begin(shared.path(), &two).unwrap().is_none());
    }
}
