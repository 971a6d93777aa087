//! What one durable write costs on this disk when nothing stands before it: append 256 B, fdatasync.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::figures::{Summary, micros};

/// Bytes of each write, as in every other row of the table.
pub const VALUE_BYTES: usize = 256;

/// Appends `count` times to a new file in `directory` and removes it. It blocks.
///
/// # Errors
/// When the file cannot be written.
pub fn fdatasync(directory: &Path, count: usize) -> Result<Summary> {
    let path = directory.join("fdatasync");
    let mut file = OpenOptions::new().create_new(true).append(true).open(&path).context("create a file")?;
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        file.write_all(&[b'x'; VALUE_BYTES]).context("append")?;
        file.sync_data().context("fdatasync")?;
        samples.push(micros(begin.elapsed()));
    }
    std::fs::remove_file(&path).context("remove the file")?;
    Ok(Summary::of_micros(&mut samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(fdatasync(directory.path(), 3).unwrap().count, 3);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
