//! What the rows of a backup become in the cluster that is made of them.
//!
//! Conversations, turns, idempotency records, cursors and pairings stay as they are, byte for byte. What names a process of the
//! cluster that is gone does not: nobody may believe that it lives. A turn that was running needs no change: the first
//! instance that registers finds its runner gone, and the turn is run again, or fails when it had all its attempts.

use openclaw_proto::state::{Intent, IntentState, Lease};
use prost::Message;

use super::{RowHash, Table, TableError, Tables, read};

/// How far ahead of the backup the log of the new cluster begins: more commands than the lost one can have committed after
/// the backup was made (a year of 2000 a second), so that no fencing token, intent id or log index that somebody remembers
/// comes again. Platforms do remember: Discord drops a message whose nonce, made of the intent's id, it has seen.
pub const INDEX_GAP: u64 = 1 << 36;

/// Whether the rows of `table` stay as they are.
pub fn keeps(table: Table) -> bool {
    match table {
        Table::Instances | Table::Leases | Table::Outbox => false,
        Table::Sessions
        | Table::Entries
        | Table::Turns
        | Table::TurnsByRunner
        | Table::Inbox
        | Table::Marks
        | Table::Cursors
        | Table::Pairings => true,
    }
}

/// The row's new value; none: it is dropped.
///
/// # Errors
/// [`TableError`] for a row that no command wrote.
pub fn row(table: Table, key: &[u8], value: Vec<u8>) -> Result<Option<Vec<u8>>, TableError> {
    match table {
        // Processes of the cluster that is gone. Those of this one register themselves.
        Table::Instances => Ok(None),
        // The token stays, so that the next one is seen to be greater.
        Table::Leases => {
            let mut lease: Lease = read::decode(table, key, &value)?;
            if !lease.owner.is_empty() {
                lease.previous_owner = std::mem::take(&mut lease.owner);
            }
            (lease.epoch, lease.moving_to) = (0, String::new());
            Ok(Some(lease.encode_to_vec()))
        }
        // What waited may have gone out after the backup was made. Nobody knows, so the account's policy decides.
        Table::Outbox => {
            let mut intent: Intent = read::decode(table, key, &value)?;
            let was = intent.state();
            if matches!(was, IntentState::Pending | IntentState::Sending) {
                intent.set_state(IntentState::Unknown);
                intent.unknowns += u32::from(was == IntentState::Sending);
                intent.error = "restored from a backup: it may have been sent since".to_owned();
            }
            Ok(Some(intent.encode_to_vec()))
        }
        Table::Sessions
        | Table::Entries
        | Table::Turns
        | Table::TurnsByRunner
        | Table::Inbox
        | Table::Marks
        | Table::Cursors
        | Table::Pairings => Ok(Some(value)),
    }
}

/// SHA-256 over the rows that a restore leaves as they are.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn kept_hash(tables: &(impl Tables + ?Sized)) -> Result<[u8; 32], TableError> {
    let mut hash = RowHash::default();
    read::for_each_row(tables, |table, key, value| {
        if keeps(table) {
            hash.row(table, key, value);
        }
        Ok::<(), TableError>(())
    })?;
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored<M: Message + Default>(table: Table, before: &M) -> M {
        let value = row(table, b"key", before.encode_to_vec()).unwrap().expect("the row stays");
        M::decode(&*value).unwrap()
    }

    #[test]
    fn no_process_of_the_lost_cluster_is_believed_to_live() {
        assert_eq!(row(Table::Instances, b"node-1", vec![1]).unwrap(), None);
        let lease = Lease {
            account: "telegram:default".into(),
            owner: "node-1".into(),
            epoch: 7,
            fencing_token: 9,
            granted_ms: 5,
            moving_to: "node-2".into(),
            previous_owner: "node-3".into(),
        };
        let expected = Lease {
            owner: String::new(),
            epoch: 0,
            moving_to: String::new(),
            previous_owner: "node-1".into(),
            ..lease.clone()
        };
        assert_eq!(restored(Table::Leases, &lease), expected);
        assert_eq!(restored(Table::Leases, &expected), expected, "nobody owned it: nothing changes");
    }

    #[test]
    fn what_waited_may_have_been_sent_and_what_was_decided_stays() {
        for (before, after, unknowns) in [
            (IntentState::Pending, IntentState::Unknown, 0),
            (IntentState::Sending, IntentState::Unknown, 1),
            (IntentState::Unknown, IntentState::Unknown, 0),
            (IntentState::Failed, IntentState::Failed, 0),
        ] {
            let intent = Intent { id: 3, fencing_token: 9, state: before.into(), pieces_sent: 1, ..Intent::default() };
            let found = restored(Table::Outbox, &intent);
            assert_eq!((found.state(), found.unknowns, found.pieces_sent), (after, unknowns, 1), "{before:?}");
            assert_eq!((found.id, found.fencing_token), (3, 9));
        }
    }

    #[test]
    fn the_rest_stays_byte_for_byte_and_a_damaged_row_is_refused() {
        // Bytes that no message has: nothing may decode and encode them again.
        let odd = vec![0xff, 1, 2];
        for table in Table::ALL {
            let result = row(table, b"key", odd.clone());
            match (keeps(table), table) {
                (true, _) => assert_eq!(result.unwrap(), Some(odd.clone()), "{table:?}"),
                (false, Table::Instances) => assert_eq!(result.unwrap(), None),
                (false, _) => assert!(result.unwrap_err().to_string().contains("is damaged at key key")),
            }
        }
    }
}
