//! Whose a data directory is. Commands that open one are often run by root, and the gateway by a user of its own, who could
//! not open what root made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

const ROOT: u32 = 0;

/// Gives what root made in `tree` to the owner of `model`, if this is root.
pub(super) fn give_to_owner_of(model: &Path, tree: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let model = fs::metadata(model)?;
    if model.uid() == ROOT {
        return Ok(());
    }
    give(tree, model.uid(), model.gid())
}

/// By open directories, and never through a link: the new owner may write there, and would else have files given to it that are
/// elsewhere.
fn give(dir: &Path, user: u32, group: u32) -> io::Result<()> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let opened: File = OpenOptions::new().read(true).custom_flags(flags).open(dir)?;
    let base = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    for entry in fs::read_dir(&base)? {
        let path = base.join(entry?.file_name());
        let found = path.symlink_metadata()?;
        if found.is_dir() {
            give(&path, user, group)?;
        } else if found.uid() == ROOT && found.nlink() == 1 {
            lchown(&path, Some(user), Some(group))?;
        }
    }
    if opened.metadata()?.uid() == ROOT {
        fchown(&opened, Some(user), Some(group))?;
    }
    Ok(())
}

/// Why `dir` may not be opened, and what to do about it.
pub fn why_refused(dir: &Path) -> String {
    let user = geteuid().as_raw();
    match foreign(dir, user) {
        Some((path, owner)) => format!(
            "{} belongs to user {owner}, and this is user {user}: run it as the user that owns it, or give it to the one that \
             runs the gateway (chown -R {user} {})",
            path.display(),
            dir.display()
        ),
        None => format!("it belongs to user {user}, who runs this: look at its mode, and at the directories above it"),
    }
}

/// What belongs to another than `user`: `dir`, something in it, or, where it cannot be seen, what it is in.
fn foreign(dir: &Path, user: u32) -> Option<(PathBuf, u32)> {
    let seen = dir.ancestors().find_map(|path| Some((path, path.symlink_metadata().ok()?)));
    let (path, found) = seen?;
    if found.uid() != user {
        return Some((path.to_owned(), found.uid()));
    }
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries.into_iter().find_map(|entry| {
        let found = entry.metadata().ok()?;
        if found.uid() != user {
            return Some((entry.path(), found.uid()));
        }
        found.is_dir().then(|| foreign(&entry.path(), user)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whom no system gives a file.
    const SOMEBODY: u32 = 54_321;

    #[test]
    fn what_root_made_is_the_owners_and_what_a_link_points_to_is_not() {
        if !geteuid().is_root() {
            return;
        }
        let (outside, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        fs::write(&secret, "root's").unwrap();
        let tree = home.path().join("node-1");
        fs::create_dir_all(tree.join("db")).unwrap();
        fs::write(tree.join("db/CURRENT"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.join("link")).unwrap();
        fs::hard_link(&secret, tree.join("hard")).unwrap();
        let owner = |path: &Path| path.symlink_metadata().unwrap().uid();

        give_to_owner_of(home.path(), &tree).unwrap();
        assert_eq!(owner(&tree.join("db/CURRENT")), ROOT, "it is root's home");
        lchown(home.path(), Some(SOMEBODY), None).unwrap();
        give_to_owner_of(home.path(), &tree).unwrap();
        for given in ["", "db", "db/CURRENT", "link"] {
            assert_eq!(owner(&tree.join(given)), SOMEBODY, "{given:?}");
        }
        assert_eq!((owner(outside.path()), owner(&secret)), (ROOT, ROOT));
    }

    #[test]
    fn who_may_not_open_a_directory_is_told_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let (own, user) = (dir.path().metadata().unwrap().uid(), geteuid().as_raw());
        assert_eq!(foreign(dir.path(), user), None);
        assert_eq!(foreign(dir.path(), SOMEBODY), Some((dir.path().to_owned(), own)));
        assert!(why_refused(dir.path()).contains("look at its mode"));
        if geteuid().is_root() {
            lchown(dir.path().join("file"), Some(SOMEBODY), None).unwrap();
            let why = why_refused(dir.path());
            assert!(why.contains(&format!("file belongs to user {SOMEBODY}, and this is user 0")), "{why}");
        }
    }
}
