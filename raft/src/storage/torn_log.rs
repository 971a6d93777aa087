//! The end of RocksDB's write-ahead log after a power loss, before RocksDB reads it.
//!
//! What a disk leaves behind the last whole record can be anything. RocksDB's recovery drops it, but for one thing: in a log that
//! is not a recycled one it looks for ever at a header of the kind that recycled logs have (11.8.1, db/log_reader.cc,
//! `ReadPhysicalRecord`: `kBadRecord` without taking anything from the buffer). One torn end in forty is of that kind, and an
//! instance with it would never start. What is not whole is cut off there, as recovery would have done.
//!
//! The format: blocks of 32 KiB, in each of them records of a CRC-32C (masked), a length, a type and a content; at the end
//! of a block less than a header may be left over.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const BLOCK: usize = 32 * 1024;
const HEADER: usize = 4 + 2 + 1;
/// Types of records that begin with a log's number: `kRecyclable..` in RocksDB's db/log_format.h.
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];
/// Added to a checksum before it is stored, after a turn by 15 bits.
const MASK: u32 = 0xa282_ead8;

/// Cuts every log in `db` off where its reader would not come to an end.
///
/// # Errors
/// The disk's.
pub(super) fn cut_endless_logs(db: &Path) -> io::Result<()> {
    for path in logs(db)? {
        if let Some(end) = end_before_endless_header(BufReader::with_capacity(BLOCK, File::open(&path)?))? {
            let file = OpenOptions::new().write(true).open(&path)?;
            let bytes = file.metadata()?.len().saturating_sub(end);
            tracing::warn!(log = %path.display(), at = end, bytes, "the log's end is torn: what is no whole record is cut off");
            file.set_len(end)?;
            file.sync_all()?;
        }
    }
    Ok(())
}

fn logs(db: &Path) -> io::Result<Vec<PathBuf>> {
    let files = match std::fs::read_dir(db) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = files.map(|file| file.map(|file| file.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect())
}

/// Where the whole records end, if a reader would look for ever at something behind them.
fn end_before_endless_header(mut log: impl Read) -> io::Result<Option<u64>> {
    let mut whole_until = None;
    let (mut any, mut start) = (false, 0_u64);
    let mut block = Vec::with_capacity(BLOCK);
    loop {
        block.clear();
        if log.by_ref().take(BLOCK as u64).read_to_end(&mut block)? == 0 {
            return Ok(None);
        }
        let mut at = 0;
        while let Some(header) = block.get(at..at + HEADER) {
            let here = start + at as u64;
            // A log that begins with such a record is a recycled one, and its reader knows it.
            if RECYCLED.contains(&header[6]) {
                return Ok(any.then(|| whole_until.unwrap_or(here)));
            }
            let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
            let whole = block.get(at + 6..at + HEADER + length).is_some_and(|covered| checksum(covered) == header[..4]);
            if !whole {
                // The reader goes on with the next block.
                whole_until.get_or_insert(here);
                break;
            }
            any = true;
            at += HEADER + length;
        }
        start += block.len() as u64;
    }
}

/// As it stands in a header, of a record's type and content.
fn checksum(covered: &[u8]) -> [u8; 4] {
    crc32c::crc32c(covered).rotate_right(15).wrapping_add(MASK).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, content: &[u8]) -> Vec<u8> {
        let covered = [&[kind], content].concat();
        [&checksum(&covered)[..], &u16::try_from(content.len()).unwrap().to_le_bytes(), &covered].concat()
    }

    fn end(log: &[u8]) -> Option<u64> {
        end_before_endless_header(log).unwrap()
    }

    #[test]
    fn a_sound_log_and_a_torn_one_that_the_reader_gets_past_are_left_alone() {
        let sound = [record(1, &[1; 100]), record(2, &[2; 50]), record(4, b"end")].concat();
        assert_eq!(end(&[]), None);
        assert_eq!(end(&sound), None);
        assert_eq!(end(&sound[..sound.len() - 1]), None);
        assert_eq!(end(&[&sound[..], &[0; 500]].concat()), None, "zeros");
        assert_eq!(end(&[&sound[..], &[9; 500]].concat()), None, "another type");
        assert_eq!(end(&[&sound[..], &[7; 6]].concat()), None, "less than a header");
        assert_eq!(end(&[&record(6, &[1; 20])[..], &[7; 50]].concat()), None, "a recycled log");
    }

    #[test]
    fn what_would_be_looked_at_for_ever_is_cut_off_behind_the_last_whole_record() {
        let sound = [record(1, &[1; 100]), record(1, b"end")].concat();
        let whole = Some(sound.len() as u64);
        for kind in RECYCLED {
            assert_eq!(end(&[&sound[..], &[kind; 30]].concat()), whole, "type {kind}");
        }
        // Behind something else that is no record: in the next block, which is where the reader goes on.
        let mut far = sound.clone();
        far.resize(BLOCK, 0xff);
        far.extend([7; 30]);
        assert_eq!(end(&far), whole);
    }
}
