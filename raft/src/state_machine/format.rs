//! Which format rows, commands and snapshots have: the newest one that every registered instance reads.
//!
//! During an update instances of two releases apply the same log. What only the later release understands must not be in it, or
//! the others would apply something else. So each instance registers with the newest format that it reads, the state holds
//! the one that all of them have, and a command or row of a later format is made only once [`active`] has reached it. It never
//! goes back: an instance that reads less is refused from then on, by name of what it lacks.

use super::change::Change;
use super::{Table, TableError, Tables, keys, read};
use crate::planted::next_format;

/// The newest format that this release reads and writes. The first one is that of the first release: builds before it know no
/// formats, and are not to be mixed with it.
pub const STATE_FORMAT_VERSION: u32 = 1;
/// Of a cluster that has not been told otherwise, and of instances that do not say.
pub(crate) const FIRST: u32 = 1;

/// The newest format that this process reads: [`STATE_FORMAT_VERSION`], but in tests of updates.
pub fn supported() -> u32 {
    if next_format() { STATE_FORMAT_VERSION + 1 } else { STATE_FORMAT_VERSION }
}

/// The format in which this state is written.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn active(tables: &(impl Tables + ?Sized)) -> Result<u32, TableError> {
    active_by(tables.get(Table::Marks, keys::FORMAT)?.as_deref())
}

/// The same by the value of the mark.
pub(crate) fn active_by(mark: Option<&[u8]>) -> Result<u32, TableError> {
    let Some(value) = mark else { return Ok(FIRST) };
    <[u8; 4]>::try_from(value)
        .map(u32::from_be_bytes)
        .map_err(|_| TableError::damaged(Table::Marks, keys::FORMAT, "not four bytes"))
}

/// Moves the state to the newest format that all instances read, those that are down among them.
pub(super) fn raise<T: Tables + ?Sized>(change: &mut Change<'_, T>) -> Result<(), TableError> {
    let rows = read::instances(change.tables())?;
    let Some(common) = rows.iter().map(|row| row.format.max(FIRST)).min() else { return Ok(()) };
    if common > active(change.tables())? {
        change.put_bytes(Table::Marks, keys::FORMAT.to_vec(), common.to_be_bytes().to_vec());
    }
    Ok(())
}

/// Why an instance that reads no more than `format` cannot take part in a state of format `active`; none: it can.
pub(crate) fn too_old(format: u32, active: u32) -> Option<String> {
    let format = format.max(FIRST);
    (format < active).then(|| {
        format!("this cluster uses format {active}, and this release reads {format}: install the release that the others have")
    })
}

/// Only in tests of updates: what the release after this one would do with an appended entry, once its format is active.
pub(super) fn of_the_next_release<T: Tables + ?Sized>(change: &mut Change<'_, T>) -> Result<(), TableError> {
    const COUNT: &[u8] = b"appended_entries";
    if next_format() && active(change.tables())? > STATE_FORMAT_VERSION {
        let before = change.tables().get(Table::Marks, COUNT)?.and_then(|value| value.try_into().ok());
        let count = before.map_or(0, u64::from_be_bytes) + 1;
        change.put_bytes(Table::Marks, COUNT.to_vec(), count.to_be_bytes().to_vec());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_less_than_what_is_active_is_told_so() {
        assert_eq!(too_old(0, 1), None, "those that do not say read the first");
        assert_eq!(too_old(2, 2), None);
        assert_eq!(too_old(3, 2), None);
        let why = too_old(1, 2).unwrap();
        assert!(why.contains("uses format 2") && why.contains("reads 1"), "{why}");
    }
}
