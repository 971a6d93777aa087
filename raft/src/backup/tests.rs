use proptest::prelude::*;

use super::*;
use crate::state_machine::{MemoryTables, Write as TableWrite, state_hash};

fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    let row = |table, key: &str, value: &str| TableWrite { table, key: key.into(), value: Some(value.into()) };
    tables.apply([
        row(Table::Sessions, "agent:main:main", "a session"),
        row(Table::Entries, "agent:main:main/1", &"x".repeat(100_000)),
        row(Table::Entries, "agent:main:main/2", ""),
        row(Table::Instances, "node-1", "an instance"),
        row(Table::Marks, "now_ms", "12345678"),
    ]);
    tables
}

fn header() -> pb::BackupHeader {
    pb::BackupHeader {
        cluster_id: "oc-1".into(),
        instance_id: "node-2".into(),
        applied: Some(pb::LogId { term: 3, index: 1204 }),
        taken_ms: 99,
        release: "0.1.0".into(),
        source: pb::BackupSource::Linearizable.into(),
        replayed: 0,
    }
}

fn written() -> (Vec<u8>, pb::BackupTrailer) {
    let mut bytes = Vec::new();
    let trailer = write(&tables(), &header(), &mut bytes).unwrap();
    (bytes, trailer)
}

fn verified(bytes: &[u8]) -> Result<pb::BackupTrailer, BackupError> {
    BackupReader::new(bytes)?.verify()
}

#[test]
fn a_backup_gives_all_rows_back_and_the_hash_of_the_state() {
    let (bytes, trailer) = written();
    let mut reader = BackupReader::new(&*bytes).unwrap();
    assert_eq!(reader.header(), &header());
    let mut again = MemoryTables::default();
    while let Some(SnapshotRow { table, key, value }) = reader.next_row().unwrap() {
        assert_eq!(reader.trailer(), None, "nothing is vouched for yet");
        again.apply([TableWrite { table, key, value: Some(value) }]);
    }
    assert_eq!(again, tables());
    assert_eq!(reader.trailer(), Some(&trailer));
    assert_eq!(*trailer.state_sha256, state_hash(&tables()).unwrap());
    assert_eq!(*trailer.kept_sha256, restored::kept_hash(&tables()).unwrap());
    assert_ne!(trailer.kept_sha256, trailer.state_sha256, "an instance's row is in one of them only");
    let counts: Vec<_> = trailer.tables.iter().map(|table| (table.tag, table.rows)).collect();
    assert_eq!(counts, [(1, 1), (2, 2), (6, 1), (7, 1)]);
}

#[test]
fn what_is_wrong_is_named() {
    let (bytes, _) = written();
    let said = |bytes: &[u8]| verified(bytes).unwrap_err().to_string();
    assert_eq!(said(b""), "it is not a backup: it begins with []");
    assert!(said(b"OCLWSNAP....").starts_with("it is not a backup"));
    let mut newer = bytes.clone();
    newer[11] = 2;
    assert_eq!(said(&newer), "it has backup format 2; this release reads 1: use the release that wrote it");
    let mut other = bytes.clone();
    other[20] ^= 1;
    assert!(said(&other).starts_with("its header is damaged: it has checksum"), "{}", said(&other));
    assert_eq!(said(&bytes[..bytes.len() - 1]), "it ends in the middle, after 5 rows");
    assert_eq!(said(&[&*bytes, b"x"].concat()), "its end is damaged: bytes follow it");
    for error in [verified(&newer), verified(&bytes[..90])] {
        assert!(error.unwrap_err().is_damage());
    }
}

#[test]
fn a_failed_reader_is_not_taken_for_damage() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let (bytes, _) = written();
    for at in [0, 20, 60, 2000] {
        let error = BackupReader::new(bytes[..at].chain(Broken)).and_then(|mut reader| reader.verify()).unwrap_err();
        assert!(!error.is_damage() && error.to_string() == "the disk is gone", "{at}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_backup_that_was_cut_or_altered_is_taken_for_whole(at in 0.0..1.0_f64, bit in 0..8_u32) {
        let (bytes, _) = written();
        let at = ((bytes.len() - 1) as f64 * at) as usize;
        prop_assert!(verified(&bytes[..at]).unwrap_err().is_damage());
        let mut altered = bytes;
        altered[at] ^= 1 << bit;
        prop_assert!(verified(&altered).unwrap_err().is_damage());
    }
}
