//! The end of a stopped instance's write-ahead log, as a power loss leaves it and as it may never be.
//!
//! Two faults with opposite outcomes. Bytes *behind* the last synced record are nobody's: the instance drops them and
//! starts. Bytes *of* synced records were acknowledged: the instance must refuse to start and say so, never serve.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::Rng;

/// Of a record in RocksDB's log: checksum, length, type.
const HEADER: usize = 7;
/// Less than this before and behind the damage, and it might only have met what nobody was told of.
const MIN_LOG_BYTES: u64 = 4096;

/// Appends half a record, as a write that the power loss interrupted. An instance with this MUST start.
///
/// # Errors
/// When there is no write-ahead log below `data`, or it cannot be written.
pub fn tear_unsynced(data: &Path, rng: &mut impl Rng) -> Result<String> {
    let (path, file) = newest_log(data)?;
    let end = used(&file)?;
    let mut torn = vec![0; rng.random_range(HEADER..400)];
    let how = match rng.random_range(0..3) {
        0 => {
            rng.fill(&mut torn[..4]);
            // It promises 2000 bytes, which never came. Type 1: a whole record.
            torn[4..HEADER].copy_from_slice(&[0xd0, 0x07, 1]);
            rng.fill(&mut torn[HEADER..]);
            "half a record"
        }
        1 => {
            rng.fill(&mut torn[..]);
            "other bytes"
        }
        // The size of the file reached the disk, its blocks did not.
        _ => "zeros",
    };
    file.write_all_at(&torn, end).with_context(|| format!("write to {}", path.display()))?;
    file.sync_all().with_context(|| format!("sync {}", path.display()))?;
    Ok(format!("{how}, {} bytes, at {end} of {}", torn.len(), name(&path)))
}

/// Hits records that were synced, and so acknowledged. An instance with this MUST refuse to start; it is wiped then, and
/// joins as somebody new. Only a minority may ever be hit.
///
/// # Errors
/// When there is no write-ahead log below `data`, too little was written to it, or it cannot be written.
pub fn damage_synced(data: &Path, rng: &mut impl Rng) -> Result<String> {
    let (path, file) = newest_log(data)?;
    let end = used(&file)?;
    ensure!(
        end >= 2 * MIN_LOG_BYTES,
        "{} has only {end} bytes, which is too little to hit what was synced",
        name(&path)
    );
    // Far enough from the end for many syncs to have come after it.
    let at = rng.random_range(MIN_LOG_BYTES..=end - MIN_LOG_BYTES);
    let length = usize::try_from(end - at)?.min(256);
    let mut bytes = vec![0; length];
    let how = match rng.random_range(0..3) {
        0 => {
            file.set_len(at).with_context(|| format!("cut {}", path.display()))?;
            "cut off"
        }
        1 => {
            // One bit, as memory or a cable may turn it over.
            file.read_exact_at(&mut bytes[..1], at).with_context(|| format!("read {}", path.display()))?;
            bytes[0] ^= 1 << rng.random_range(0..8);
            file.write_all_at(&bytes[..1], at).with_context(|| format!("write to {}", path.display()))?;
            "a bit flipped"
        }
        _ => {
            file.read_exact_at(&mut bytes, at).with_context(|| format!("read {}", path.display()))?;
            // Every byte changes, whatever it was.
            bytes.iter_mut().for_each(|byte| *byte ^= rng.random_range(1..=u8::MAX));
            file.write_all_at(&bytes, at).with_context(|| format!("write to {}", path.display()))?;
            "overwritten"
        }
    };
    file.sync_all().with_context(|| format!("sync {}", path.display()))?;
    Ok(format!("{how} at {at} of {end} of {}", name(&path)))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The write-ahead log with the highest number, anywhere below `data`.
fn newest_log(data: &Path) -> Result<(PathBuf, File)> {
    let mut newest: Option<(u64, PathBuf)> = None;
    let mut directories = vec![data.to_owned()];
    while let Some(directory) = directories.pop() {
        for item in std::fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let path = item.with_context(|| format!("list {}", directory.display()))?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log")
                && let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok())
            {
                newest = newest.max(Some((number, path)));
            }
        }
    }
    let (_, path) = newest.with_context(|| format!("{} has no write-ahead log", data.display()))?;
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    Ok((path, file))
}

/// The length without zeros at the end, which are room that was taken ahead.
fn used(file: &File) -> Result<u64> {
    let mut end = file.metadata().context("look at the write-ahead log")?.len();
    let mut block = [0; 4096];
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - begin)?];
        file.read_exact_at(part, begin).context("read the write-ahead log")?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            return Ok(begin + last as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn data(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let db = directory.path().join("node-1/db");
        std::fs::create_dir_all(&db).unwrap();
        std::fs::write(db.join("000009.log"), "an older one").unwrap();
        std::fs::write(db.join("LOG"), "what RocksDB tells").unwrap();
        let path = db.join("000010.log");
        std::fs::write(&path, bytes).unwrap();
        (directory, path)
    }

    #[test]
    fn a_torn_write_leaves_what_was_written_before_as_it_is() {
        for seed in 0..20 {
            let before = vec![7; 10_000];
            let (directory, path) = data(&[&before[..], &[0; 5000]].concat());
            tear_unsynced(directory.path(), &mut StdRng::seed_from_u64(seed)).unwrap();
            assert_eq!(std::fs::read(path).unwrap()[..10_000], before[..], "seed {seed}");
        }
    }

    #[test]
    fn damage_meets_bytes_with_much_before_and_behind_them() {
        for seed in 0..20 {
            let (directory, path) = data(&[7; 20_000]);
            damage_synced(directory.path(), &mut StdRng::seed_from_u64(seed)).unwrap();
            let after = std::fs::read(path).unwrap();
            let first = after.iter().position(|byte| *byte != 7).unwrap_or(after.len());
            assert!((4096..=20_000 - 4096).contains(&first), "seed {seed}: first at {first}");
        }
    }

    #[test]
    fn a_log_that_is_too_short_to_be_hit_safely_is_left_alone() {
        let (directory, path) = data(&[7; 5000]);
        let error = damage_synced(directory.path(), &mut StdRng::seed_from_u64(1)).unwrap_err().to_string();
        assert!(error.contains("5000"), "{error}");
        assert_eq!(std::fs::read(path).unwrap(), [7; 5000]);
        let empty = tempfile::tempdir().unwrap();
        assert!(tear_unsynced(empty.path(), &mut StdRng::seed_from_u64(1)).is_err());
    }
}
